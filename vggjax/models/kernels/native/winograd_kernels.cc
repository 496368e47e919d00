// The 3x3 convolution by Winograd's F(4x4, 3x3), forward and backward, for one instruction set: the
// file is compiled once for each, with VECTOR_BYTES and NAME defined. Lavin and Gray
// (arXiv:1509.09308) give the algorithm: U = G g G^T of the kernel, V = B^T d B of the input, M = UV
// summed over channels, Y = A^T M A.
//
// Forward, V of a block of tiles lies in L3 for all threads. A task is kCols outputs of a group of
// these tiles: its M and the U for kDepth channels share L2, beyond which the prefetch of the
// products hides L3; U for one point stays in L1 for all tiles, kRows x kCols sums stay in
// registers, and the rows of V are fetched ahead from L3. Every task transforms its kernels again:
// keeping all of U (four times the kernel, 38 MB at 512 channels) would go through memory.
//
// With AVX512_BF16 U, V and the transformed gradient are rounded to bfloat16, which doubles the rate
// of the products. M and everything after it is float32.

#include "dispatch.h"
#include "winograd.h"
#include "winograd_tiles.h"

namespace vggjax {
namespace {

// ---- y = x * kernel ----

constexpr int64_t kKernelsAhead = 8;  // channels by which a kernel's rows are fetched ahead
// U: [36][kDepth / kPack][kCols][kPack]
constexpr int64_t kKernelPoint = kDepth / kPack * kCols + kGap;

int64_t chunks_of(const Problem& p) { return ceil_div(p.in, kDepth); }

// Groups of tiles whose M takes 0.9 of L2, in blocks whose V takes a quarter of L3.
struct Division {
  int64_t tiles, groups, blocks;  // of all

  explicit Division(const Problem& p) : tiles(p.tiles()) {
    const int64_t in_l2 = cache_bytes(2) * 9 / 10 / (36 * 4 * kCols) / kRows * kRows;
    const int64_t in_l3 = cache_bytes(3) / 4 / (36 * 4 * kDepth / kPack * chunks_of(p));
    groups = ceil_div(tiles, most(kRows, in_l2));
    blocks = least(groups, ceil_div(tiles, most(most(kRows, in_l2), in_l3)));
    // A block of few groups and columns of outputs would leave threads without a task.
    const int64_t tasks = groups * ceil_div(p.out, kCols), wanted = 2 * p.threads * blocks;
    if (tasks < wanted) groups = least(ceil_div(tiles, kRows), groups * ceil_div(wanted, tasks));
  }
  int64_t first_tile(int64_t group) const { return group * tiles / groups; }
  int64_t first_group(int64_t block) const { return block * groups / blocks; }
  int64_t groups_of(int64_t block) const { return first_group(block + 1) - first_group(block); }
  int64_t most_tiles() const { return ceil_div(tiles, groups); }
};

// V of a block: [groups][chunks][36][tiles][kDepth]
struct Group {
  int64_t first_tile;
  InputBlock input;

  Group(const Problem& p, const Division& d, int64_t block, int64_t index, float* shared) {
    const int64_t group = d.first_group(block) + index;
    first_tile = d.first_tile(group);
    input.tiles = d.first_tile(group + 1) - first_tile;
    input.at = shared + index * chunks_of(p) * InputBlock::floats(d.most_tiles());
  }
};

int64_t blocks(const Problem& p) { return Division(p).blocks; }

int64_t shared(const Problem& p) {
  const Division d(p);
  return ceil_div(d.groups, d.blocks) * chunks_of(p) * InputBlock::floats(d.most_tiles());
}

Phase transform_phase(const Problem& p, int64_t block) {
  return {Division(p).groups_of(block) * chunks_of(p), 0};
}

void transform(const Problem& p, int64_t block, int64_t task, const void* x, float* shared) {
  StageWatch watch;
  const int64_t chunk = task % chunks_of(p), first = chunk * kDepth;
  const Group group(p, Division(p), block, task / chunks_of(p), shared);
  use_number(p.from_bfloat16, [&](auto number) {
    fill_input(p, static_cast<const decltype(number)*>(x), group.first_tile, first,
               least(kDepth, p.in - first), {group.input.chunk(chunk), group.input.tiles});
  });
  watch.lap(kInputTransform);
}

Phase multiply_phase(const Problem& p, int64_t block) {
  const Division d(p);
  return {d.groups_of(block) * ceil_div(p.out, kCols),
          36 * kKernelPoint + 36 * (d.most_tiles() * kCols + kGap)};
}

void fill_kernel(const Problem& p, const float* kernel, int64_t first, int64_t depth,
                 int64_t column, float* u) {
  const int64_t tap = p.in * p.out;
  for (int64_t c = 0; c < depth; c += kPack) {
    const float* from = kernel + (first + c) * p.out + column;
    // The rows of a kernel are up to 2 kB apart, too far for the hardware's prefetcher.
    for (int64_t i = 0; i < 9 * kPack; ++i)
      for (int64_t o = 0; o < kCols; o += 16)
        __builtin_prefetch(from + i % 9 * tap + (i / 9 + kKernelsAhead) * p.out + o);
    for (int64_t o = 0; o < kCols; o += kLanes) {
      auto with_taps = [&](int64_t k, auto use) INLINE_LAMBDA {
        const float* at = from + k * p.out + o;
        const int64_t count = first + c + k < p.in ? p.out - column - o : 0;
        if (count >= kLanes)
          use([=](int i, int j) { return load(at + (i * 3 + j) * tap); });
        else
          use([=](int i, int j) { return load_some(at + (i * 3 + j) * tap, count); });
      };
      transform_factors<3>(transform_kernel, with_taps, u + c / kPack * kCols + o, kKernelPoint);
    }
  }
}

// Adds the bias and applies the ReLU, if there is a bias.
Vec finish(const Problem& p, Vec v, Vec bias) { return p.bias ? relu(v + bias) : v; }

template <typename Number>
void write_output(const Problem& p, const float* m, int64_t point_stride, int64_t first_tile,
                  int64_t tiles, int64_t column, Number* y) {
  const int64_t height = p.pool ? p.height / 2 : p.height, width = p.pool ? p.width / 2 : p.width;
  const int64_t line = width * p.out;
  for (int64_t t = 0; t < tiles; ++t) {
    const Tile tile = tile_at(p, first_tile + t);
    const int64_t top = p.pool ? tile.top / 2 : tile.top, left = p.pool ? tile.left / 2 : tile.left;
    const int64_t rows = height - top, columns = width - left;
    for (int64_t o = 0; o < kCols && column + o < p.out; o += kLanes) {
      const float* from = m + t * kCols + o;
      const int64_t count = p.out - column - o;
      Number* to = y + ((tile.image * height + top) * width + left) * p.out + column + o;
      const Vec bias = p.bias ? load_some(p.bias + column + o, count) : Vec{};
      auto source = [=](int i, int j) { return load(from + (i * 6 + j) * point_stride); };
      if (p.pool) {
        Vec above[2], pair, best;
        transform_both<6, 4>(transform_output, source, [&](int i, int j, Vec v) {
          if (j % 2 == 0) {
            pair = v;
            return;
          }
          pair = largest(pair, v);
          if (i % 2 == 0) {
            above[j / 2] = pair;
            return;
          }
          best = finish(p, largest(above[j / 2], pair), bias);  // both are monotonic
          if (i / 2 < rows && j / 2 < columns)
            store_some(to + i / 2 * line + j / 2 * p.out, best, count);
        });
      } else if (count >= kLanes && rows >= 4 && columns >= 4) {
        transform_both<6, 4>(transform_output, source, [=, &p](int i, int j, Vec v) {
          store(to + i * line + j * p.out, finish(p, v, bias));
        });
      } else {
        transform_both<6, 4>(transform_output, source, [=, &p](int i, int j, Vec v) {
          if (i < rows && j < columns)
            store_some(to + i * line + j * p.out, finish(p, v, bias), count);
        });
      }
    }
  }
}

void multiply(const Problem& p, int64_t block, int64_t task, const float* shared,
              const float* kernel, void* y, float* scratch) {
  const Division d(p);
  const int64_t groups = d.groups_of(block), column = task / groups * kCols;
  const Group group(p, d, block, task % groups, const_cast<float*>(shared));
  const int64_t tiles = group.input.tiles, m_stride = tiles * kCols + kGap;
  float *u = scratch, *m = u + 36 * kKernelPoint;
  StageWatch watch;
  for (int64_t chunk = 0; chunk < chunks_of(p); ++chunk) {
    const int64_t first = chunk * kDepth, depth = least(kDepth, p.in - first);
    fill_kernel(p, kernel, first, depth, column, u);
    watch.lap(kKernelTransform);
    for (int point = 0; point < 36; ++point)
      product(ByChannels(), group.input.point(chunk, point), u + point * kKernelPoint,
              m + point * m_stride, tiles, ceil_div(depth, kPack), first > 0);
    watch.lap(kProducts);
  }
  use_number(p.to_bfloat16, [&](auto number) {
    write_output(p, m, m_stride, group.first_tile, tiles, column,
                 static_cast<decltype(number)*>(y));
  });
  watch.lap(kOutputTransform);
}

// ---- y = x * kernel, directly ----
//
// A task is a row of outputs. Its nine products are three, because the pixels of a row that a tap
// row needs lie side by side.

int64_t padded_row(const Problem& p) { return round_up((p.width + 2) * p.in, kLanes); }

Phase direct_phase(const Problem& p) {
  return {p.batch * p.height, 3 * padded_row(p) + (9 * p.in + p.width) * kCols};
}

template <typename From, typename To>
void convolve_row(const Problem& p, int64_t task, const From* x, const float* kernel, To* y,
                  float* scratch) {
  StageWatch watch;
  const int64_t row = task % p.height, length = p.width * p.in, depth = 3 * p.in;
  float *taps = scratch + 3 * padded_row(p), *sums = taps + 3 * depth * kCols;
  std::memset(scratch, 0, 3 * padded_row(p) * sizeof(float));
  for (int64_t i = 0; i < 3; ++i)
    if (row + i >= 1 && row + i <= p.height)
      for (int64_t k = 0; k < length; k += kLanes)
        store_some(scratch + i * padded_row(p) + p.in + k,
                   load_some(x + (task + i - 1) * length + k, length - k), length - k);
  watch.lap(kInputTransform);
  for (int64_t column = 0; column < p.out; column += kCols) {
    for (int64_t k = 0; k < 3 * depth; ++k)
      for (int64_t o = 0; o < kCols; o += kLanes)
        store(taps + k * kCols + o, load_some(kernel + k * p.out + column + o, p.out - column - o));
    watch.lap(kKernelTransform);
    for (int64_t i = 0; i < 3; ++i)
      product(Pixels{p.in}, scratch + i * padded_row(p), taps + i * depth * kCols, sums, p.width,
              depth, i > 0);
    watch.lap(kProducts);
    for (int64_t o = 0; o < kCols && column + o < p.out; o += kLanes) {
      const int64_t count = p.out - column - o;
      const Vec bias = p.bias ? load_some(p.bias + column + o, count) : Vec{};
      for (int64_t j = 0; j < p.width; ++j)
        store_some(y + (task * p.width + j) * p.out + column + o,
                   finish(p, load(sums + j * kCols + o), bias), count);
    }
    watch.lap(kOutputTransform);
  }
}

void direct(const Problem& p, int64_t task, const void* x, const float* kernel, void* y,
            float* scratch) {
  use_number(p.from_bfloat16, [&](auto from) {
    use_number(p.to_bfloat16, [&](auto to) {
      convolve_row(p, task, static_cast<const decltype(from)*>(x), kernel,
                   static_cast<decltype(to)*>(y), scratch);
    });
  });
}

// ---- the gradient of the kernel ----
//
// Its sums over tiles are 36 products of (in, tiles) with (tiles, out). A task holds the sums of
// up to 128 x 128 channels (2.4 MB, L3) and adds kGradientTiles tiles at a time; with few channels,
// ranges of tiles give more tasks. Summing in blocks keeps float32 accurate.

constexpr int64_t kSide = kWidest, kGradientTiles = 48;

struct Blocks {
  int64_t in, out, parts;
};
Blocks gradient_blocks(const Problem& p) {
  const int64_t in = ceil_div(p.in, kSide), out = ceil_div(p.out, kSide);
  const int64_t longest = ceil_div(p.tiles(), 2 * kGradientTiles);
  return {in, out, least(longest, ceil_div(2 * p.threads, in * out))};
}
int64_t gradient_parts(const Problem& p) { return gradient_blocks(p).parts; }

constexpr int64_t kGradientPoint =  // [36][panels][tiles / kPack][kCols][kPack]
    kSide * kGradientTiles / kPack + kGap;
constexpr int64_t kSumsPoint = kSide * kSide + kGap;               // [36][panels][kSide][kCols]

constexpr int64_t kInputFloats = kSide / kDepth * 36 * (kGradientTiles / kPack * kDepth + kGap);

Phase gradient_phase(const Problem& p) {
  const Blocks b = gradient_blocks(p);
  return {b.in * b.out * b.parts, kInputFloats + 36 * (kGradientPoint + kSumsPoint)};
}

// V, for products of pairs of tiles.
template <typename Number>
void fill_tiles(const Problem& p, const Number* x, int64_t first_tile, int64_t first_channel,
                int64_t channels, InputBlock block) {
  if constexpr (kPack == 1) return fill_input(p, x, first_tile, first_channel, channels, block);
  for (int64_t t = 0; t < block.tiles; t += kPack) {
    const Number* from[kPack][6][6];
    for (int64_t k = 0; k < kPack; ++k)
      pixels<6>(p, x + first_channel, p.in, tile_at(p, first_tile + t + k), 1, from[k]);
    for (int64_t c = 0; c < channels; c += kLanes) {
      auto with_pixels = [&](int64_t k, auto use) INLINE_LAMBDA {
        use_pixels(from[k], c, t + k < block.tiles ? channels - c : 0, use);
      };
      transform_factors<6>(transform_input, with_pixels,
                           block.chunk(c / kDepth) + t / kPack * kDepth + c % kDepth,
                           InputBlock::point_floats(block.tiles));
    }
  }
}

template <typename Number>
void fill_gradient(const Problem& p, const Number* grad, int64_t first_tile, int64_t tiles,
                   int64_t first, int64_t channels, float* panels) {
  for (int64_t t = 0; t < tiles; t += kPack) {
    const Number* from[kPack][4][4];
    for (int64_t k = 0; k < kPack; ++k)
      pixels<4>(p, grad + first, p.out, tile_at(p, first_tile + t + k), 0, from[k]);
    for (int64_t o = 0; o < round_up(channels, kCols); o += kLanes) {
      auto with_pixels = [&](int64_t k, auto use) INLINE_LAMBDA {
        use_pixels(from[k], o, t + k < tiles ? channels - o : 0, use);
      };
      float* to = panels + (o / kCols * ceil_div(tiles, kPack) + t / kPack) * kCols + o % kCols;
      transform_factors<4>(transform_gradient, with_pixels, to, kGradientPoint);
    }
  }
}

void gradient(const Problem& p, int64_t task, const void* x, const void* grad, float* partial,
              float* scratch) {
  const Blocks b = gradient_blocks(p);
  const int64_t part = task / (b.in * b.out);
  const int64_t first_in = task / b.out % b.in * kSide, first_out = task % b.out * kSide;
  const int64_t in = least(kSide, p.in - first_in), out = least(kSide, p.out - first_out);
  float *input_at = scratch, *panels = input_at + kInputFloats;
  float* sums = panels + 36 * kGradientPoint;

  StageWatch watch;
  const int64_t begin = part * p.tiles() / b.parts, end = (part + 1) * p.tiles() / b.parts;
  for (int64_t first = begin; first < end; first += kGradientTiles) {
    const int64_t tiles = least(kGradientTiles, end - first), depth = ceil_div(tiles, kPack);
    const InputBlock input{input_at, tiles};
    use_number(p.from_bfloat16, [&](auto number) {
      using Number = decltype(number);
      fill_tiles(p, static_cast<const Number*>(x), first, first_in, in, input);
      watch.lap(kInputTransform);
      fill_gradient(p, static_cast<const Number*>(grad), first, tiles, first_out, out, panels);
      watch.lap(kKernelTransform);
    });
    for (int point = 0; point < 36; ++point)
      for (int64_t j = 0; j < ceil_div(out, kCols); ++j)
        for (int64_t c = 0; c < in; c += kDepth)
          product(ByTiles(), input.point(c / kDepth, point),
                  panels + point * kGradientPoint + j * depth * kCols,
                  sums + point * kSumsPoint + (j * kSide + c) * kCols, least(kDepth, in - c), depth,
                  first > begin);
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

const WinogradKernels NAME = {blocks,          shared,         transform_phase, transform,
                              multiply_phase,  multiply,       direct_phase,    direct,
                              gradient_parts,  gradient_phase, gradient};

}  // namespace vggjax
