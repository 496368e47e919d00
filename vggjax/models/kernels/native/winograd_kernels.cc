// The 3x3 convolution by Winograd's F(4x4, 3x3), forward and backward, for one instruction set: the
// file is compiled once for each, with VECTOR_BYTES and NAME defined. Lavin and Gray
// (arXiv:1509.09308) give the algorithm: U = G g G^T of the kernel, V = B^T d B of the input, M = UV
// summed over channels, Y = A^T M A.
//
// A forward task is up to kTiles tiles and a range of output channels. Its V fits L3 (12 MB at
// most); U for kDepth channels of 16 outputs (147 kB) and M (up to 440 kB) share L2; U for one
// point (64x16, 4 kB) stays in L1 for all tiles, and 6x16 sums stay in registers. Every task
// transforms its kernels again: that takes a twentieth of its time, while keeping all of U (four
// times the kernel, 38 MB at 512 channels) would go through memory.

#include <cstring>

#include "winograd.h"
#include "winograd_tiles.h"

namespace vggjax {
namespace {

// ---- y = x * kernel ----

int64_t most_tiles(const Problem& p) {
  return most(kTiles / 4, least(kTiles, (3 << 20) / (36 * round_up(p.in, kLanes))));
}

struct Division {
  int64_t blocks, groups, columns;  // of tiles, of outputs, blocks of kCols outputs in all
};
Division divide(const Problem& p) {
  Division d{ceil_div(p.tiles(), most_tiles(p)), 1, ceil_div(p.out, kCols)};
  while (d.blocks * d.groups < 2 * p.threads && 2 * d.groups <= d.columns) d.groups *= 2;
  return d;
}

int64_t forward_tasks(const Problem& p) {
  const Division d = divide(p);
  return d.blocks * d.groups;
}

constexpr int64_t kKernelPoint = kDepth * kCols + kGap;  // U: [36][kDepth][kCols]

int64_t forward_scratch(const Problem& p) {
  const int64_t tiles = least(most_tiles(p), p.tiles());
  return round_up(p.in, kLanes) + InputBlock::floats(tiles, p.in) + 36 * kKernelPoint +
         36 * (tiles * kCols + kGap);
}

void fill_kernel(const Problem& p, const float* kernel, int64_t first, int64_t depth,
                 int64_t column, float* u) {
  const int64_t tap = p.in * p.out;
  for (int64_t c = 0; c < depth; ++c) {
    const float* from = kernel + (first + c) * p.out + column;
    // The rows of a kernel are up to 2 kB apart, too far for the hardware's prefetcher.
    for (int i = 0; i < 9; ++i) __builtin_prefetch(from + i * tap + 6 * p.out);
    for (int64_t o = 0; o < kCols; o += kLanes, from += kLanes) {
      const int64_t count = first + c < p.in ? p.out - column - o : 0;
      auto sink = [=](int i, int j, Vec v) {
        store(u + (i * 6 + j) * kKernelPoint + c * kCols + o, v);
      };
      if (count >= kLanes)
        transform_both<3, 6>(
            transform_kernel, [=](int i, int j) { return load(from + (i * 3 + j) * tap); }, sink);
      else
        transform_both<3, 6>(
            transform_kernel,
            [=](int i, int j) { return load_some(from + (i * 3 + j) * tap, count); }, sink);
    }
  }
}

void write_output(const Problem& p, const float* m, int64_t point_stride, int64_t first_tile,
                  int64_t tiles, int64_t column, float* y) {
  for (int64_t t = 0; t < tiles; ++t) {
    const Tile tile = tile_at(p, first_tile + t);
    for (int64_t o = 0; o < kCols && column + o < p.out; o += kLanes) {
      const float* from = m + t * kCols + o;
      const int64_t count = p.out - column - o, line = p.width * p.out;
      float* to = y + ((tile.image * p.height + tile.top) * p.width + tile.left) * p.out + column + o;
      auto source = [=](int i, int j) { return load(from + (i * 6 + j) * point_stride); };
      if (count >= kLanes && tile.top + 4 <= p.height && tile.left + 4 <= p.width)
        transform_both<6, 4>(transform_output, source, [=](int i, int j, Vec v) {
          store(to + i * line + j * p.out, v);
        });
      else
        transform_both<6, 4>(transform_output, source, [=](int i, int j, Vec v) {
          if (tile.top + i < p.height && tile.left + j < p.width)
            store_some(to + i * line + j * p.out, v, count);
        });
    }
  }
}

void forward(const Problem& p, int64_t task, const float* x, const float* kernel, float* y,
             float* scratch) {
  const Division d = divide(p);
  const int64_t block = task / d.groups, group = task % d.groups;
  const int64_t first_tile = block * p.tiles() / d.blocks;
  const int64_t tiles = (block + 1) * p.tiles() / d.blocks - first_tile;
  float* zeros = scratch;
  const InputBlock input{zeros + round_up(p.in, kLanes), tiles, round_up(p.in, kLanes)};
  float* u = input.at + InputBlock::floats(tiles, p.in);
  float* m = u + 36 * kKernelPoint;
  const int64_t m_stride = tiles * kCols + kGap;
  std::memset(zeros, 0, round_up(p.in, kLanes) * sizeof(float));

  StageWatch watch;
  fill_input(p, x, first_tile, zeros, 0, p.in, input);
  watch.lap(kInputTransform);
  for (int64_t b = group * d.columns / d.groups; b < (group + 1) * d.columns / d.groups; ++b) {
    for (int64_t first = 0; first < input.depth; first += kDepth) {
      const int64_t depth = input.chunk(first);
      fill_kernel(p, kernel, first, depth, b * kCols, u);
      watch.lap(kKernelTransform);
      for (int point = 0; point < 36; ++point)
        product(input.point(first, point), kDepth, 1, u + point * kKernelPoint,
                m + point * m_stride, tiles, depth, first > 0);
      watch.lap(kProducts);
    }
    write_output(p, m, m_stride, first_tile, tiles, b * kCols, y);
    watch.lap(kOutputTransform);
  }
}

// ---- the gradient of the kernel ----
//
// Its sums over tiles are 36 products of (in, tiles) with (tiles, out). A task holds the sums of
// up to 128 x 128 channels (2.4 MB, L3) and adds kGradientTiles tiles at a time; with few channels,
// ranges of tiles give more tasks. Summing in blocks keeps float32 accurate.

constexpr int64_t kSide = 128, kGradientTiles = 48;

struct Blocks {
  int64_t in, out, parts;
};
Blocks gradient_blocks(const Problem& p) {
  const int64_t in = ceil_div(p.in, kSide), out = ceil_div(p.out, kSide);
  const int64_t longest = ceil_div(p.tiles(), 2 * kGradientTiles);
  return {in, out, least(longest, ceil_div(2 * p.threads, in * out))};
}
int64_t gradient_parts(const Problem& p) { return gradient_blocks(p).parts; }
int64_t gradient_tasks(const Problem& p) {
  const Blocks b = gradient_blocks(p);
  return b.in * b.out * b.parts;
}

constexpr int64_t kSidePanels = kSide / kCols;
constexpr int64_t kGradientPoint = kSide * kGradientTiles + kGap;  // [36][panels][tiles][kCols]
constexpr int64_t kSumsPoint = kSide * kSide + kGap;               // [36][panels][kSide][kCols]

int64_t gradient_scratch(const Problem& p) {
  return round_up(most(p.in, p.out), kLanes) + InputBlock::floats(kGradientTiles, kSide) +
         36 * (kGradientPoint + kSumsPoint);
}

void fill_gradient(const Problem& p, const float* grad, int64_t first_tile, int64_t tiles,
                   const float* zeros, int64_t first, int64_t channels, float* panels) {
  for (int64_t t = 0; t < tiles; ++t) {
    const float* from[4][4];
    pixels<4>(p, grad, p.out, tile_at(p, first_tile + t), 0, zeros, from);
    for (int64_t o = 0; o < round_up(channels, kCols); o += kLanes) {
      float* to = panels + (o / kCols * tiles + t) * kCols + o % kCols;
      const int64_t count = channels - o, at = first + o;
      auto sink = [=](int i, int j, Vec v) { store(to + (i * 6 + j) * kGradientPoint, v); };
      if (count >= kLanes)
        transform_both<4, 6>(
            transform_gradient, [&](int i, int j) { return load(from[i][j] + at); }, sink);
      else
        transform_both<4, 6>(
            transform_gradient, [&](int i, int j) { return load_some(from[i][j] + at, count); },
            sink);
    }
  }
}

void gradient(const Problem& p, int64_t task, const float* x, const float* grad, float* partial,
              float* scratch) {
  const Blocks b = gradient_blocks(p);
  const int64_t part = task / (b.in * b.out);
  const int64_t first_in = task / b.out % b.in * kSide, first_out = task % b.out * kSide;
  const int64_t in = least(kSide, p.in - first_in), out = least(kSide, p.out - first_out);
  float* zeros = scratch;
  const int64_t widest = round_up(most(p.in, p.out), kLanes);
  std::memset(zeros, 0, widest * sizeof(float));
  float* input_at = zeros + widest;
  float* panels = input_at + InputBlock::floats(kGradientTiles, kSide);
  float* sums = panels + 36 * kGradientPoint;

  StageWatch watch;
  const int64_t begin = part * p.tiles() / b.parts, end = (part + 1) * p.tiles() / b.parts;
  for (int64_t first = begin; first < end; first += kGradientTiles) {
    const int64_t tiles = least(kGradientTiles, end - first);
    const InputBlock input{input_at, tiles, round_up(in, kLanes)};
    fill_input(p, x, first, zeros, first_in, in, input);
    watch.lap(kInputTransform);
    fill_gradient(p, grad, first, tiles, zeros, first_out, out, panels);
    watch.lap(kKernelTransform);
    for (int point = 0; point < 36; ++point)
      for (int64_t j = 0; j < ceil_div(out, kCols); ++j)
        for (int64_t c = 0; c < in; c += kDepth)
          product(input.point(c, point), 1, kDepth,
                  panels + point * kGradientPoint + j * tiles * kCols,
                  sums + point * kSumsPoint + (j * kSide + c) * kCols, least(kDepth, in - c),
                  tiles, first > begin);
    watch.lap(kProducts);
  }

  const int64_t tap = p.in * p.out;
  for (int64_t c = 0; c < in; ++c)
    for (int64_t o = 0; o < out; o += kLanes) {
      const float* from = sums + (o / kCols * kSide + c) * kCols + o % kCols;
      float* to = partial + part * 9 * tap + (first_in + c) * p.out + first_out + o;
      const int64_t count = out - o;
      transform_both<6, 3>(
          transform_taps, [=](int i, int j) { return load(from + (i * 6 + j) * kSumsPoint); },
          [=](int i, int j, Vec v) { store_some(to + (i * 3 + j) * tap, v, count); });
    }
  watch.lap(kOutputTransform);
}

}  // namespace

const WinogradKernels NAME = {forward_tasks,  forward_scratch, forward,         gradient_parts,
                              gradient_tasks, gradient_scratch, gradient};

}  // namespace vggjax
