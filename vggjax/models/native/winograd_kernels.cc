// Winograd's F(4x4, 3x3) (Lavin and Gray, arXiv:1509.09308) for one instruction set: the file is
// compiled once for each, with VECTOR_BYTES and NAME given, and dispatched to at run time.
//
// A map is cut into 4x4 tiles of outputs, each fed by a 6x6 patch of inputs that overlaps its
// neighbours'. Transformed, a tile is 36 numbers a channel, and the convolution is 36 matrix
// products of (tiles, in) with (in, out): 4 times fewer multiplications than done directly.
//
// Forward, a task is up to kTiles tiles and a range of outputs. Its transformed tiles V lie in L3
// (12 MB at most); kDepth channels of 16 transformed kernels U (147 kB) and the products M (up to
// 440 kB) share L2; one point's 64x16 kernels (4 kB) stay in L1 for all tiles, in registers are
// 6x16 sums. Kernels are transformed anew for every task: that is a twentieth of its time, where
// keeping all of U (four times the kernel, 38 MB at 512 channels) would go through memory.

#include "winograd.h"

#include <cstring>

namespace vggjax {
namespace {

typedef float Vec __attribute__((vector_size(VECTOR_BYTES)));
typedef float Loose __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

constexpr int kLanes = VECTOR_BYTES / 4;
constexpr int kCols = 2 * kLanes;                 // of a product's block in registers
constexpr int kRows = VECTOR_BYTES == 64 ? 12 : 6;  // 12 or 24 sums in 16 or 32 registers
constexpr int64_t kTiles = 192;
constexpr int64_t kDepth = 64;
constexpr int64_t kPad = 16;  // floats between points: strides of 4 kB would share a cache set

// Not std::min: a template that both this file and a file for older machines instantiate would be
// linked once, perhaps in the newer machine's instructions.
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

Vec load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
void store(float* to, Vec v) { *reinterpret_cast<Loose*>(to) = v; }

// The first `count` of a vector: a channel count need not divide by the lanes.
Vec load_some(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vec v = {};
  if (count > 0) std::memcpy(&v, from, count * sizeof(float));
  return v;
}
void store_some(float* to, Vec v, int64_t count) {
  if (count >= kLanes) return store(to, v);
  if (count > 0) std::memcpy(to, &v, count * sizeof(float));
}

// The transforms of one column or row; applied to all columns, then to all rows. Interpolation
// points 0, 1, -1, 2, -2 and infinity.

// B^T: 6 inputs -> 6
inline void transform_input(const Vec* d, Vec* v) {
  Vec even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1];
  Vec even2 = d[4] - d[2], odd2 = 2 * (d[3] - d[1]);
  v[0] = 4 * d[0] - 5 * d[2] + d[4];
  v[1] = even + odd;
  v[2] = even - odd;
  v[3] = even2 + odd2;
  v[4] = even2 - odd2;
  v[5] = 4 * d[1] - 5 * d[3] + d[5];
}

// G: 3 taps -> 6
inline void transform_kernel(const Vec* g, Vec* u) {
  constexpr float sixth = 1.f / 6, twelfth = 1.f / 12, twentyfourth = 1.f / 24;
  Vec even = -sixth * (g[0] + g[2]), even2 = twentyfourth * (g[0] + 4 * g[2]);
  u[0] = 0.25f * g[0];
  u[1] = even - sixth * g[1];
  u[2] = even + sixth * g[1];
  u[3] = even2 + twelfth * g[1];
  u[4] = even2 - twelfth * g[1];
  u[5] = g[2];
}

// A^T: 6 products -> 4 outputs
inline void transform_output(const Vec* m, Vec* y) {
  Vec sum = m[1] + m[2], difference = m[1] - m[2];
  Vec sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  y[0] = m[0] + sum + sum2;
  y[1] = difference + 2 * difference2;
  y[2] = sum + 4 * sum2;
  y[3] = difference + 8 * difference2 + m[5];
}

// A: 4 gradients of outputs -> 6
inline void transform_gradient(const Vec* g, Vec* p) {
  Vec even = g[0] + g[2], odd = g[1] + g[3];
  Vec even2 = g[0] + 4 * g[2], odd2 = 2 * g[1] + 8 * g[3];
  p[0] = g[0];
  p[1] = even + odd;
  p[2] = even - odd;
  p[3] = even2 + odd2;
  p[4] = even2 - odd2;
  p[5] = g[3];
}

// G^T: 6 sums -> 3 taps' gradients
inline void transform_taps(const Vec* u, Vec* w) {
  constexpr float sixth = 1.f / 6, twelfth = 1.f / 12, twentyfourth = 1.f / 24;
  Vec sum = sixth * (u[1] + u[2]), sum2 = u[3] + u[4];
  w[0] = 0.25f * u[0] - sum + twentyfourth * sum2;
  w[1] = sixth * (u[2] - u[1]) + twelfth * (u[3] - u[4]);
  w[2] = u[5] - sum + sixth * sum2;
}

// One transform down the columns, then along the rows: IN x IN values that `source(i, j)` gives
// become OUT x OUT that `sink(i, j, value)` takes. Unrolled, or each index would cost a division.
template <int IN, int OUT, typename Transform, typename Source, typename Sink>
inline __attribute__((always_inline)) void transform_both(Transform transform, Source source,
                                                          Sink sink) {
  Vec half[OUT][IN], from[IN], to[OUT];
#pragma GCC unroll 6
  for (int j = 0; j < IN; ++j) {
#pragma GCC unroll 6
    for (int i = 0; i < IN; ++i) from[i] = source(i, j);
    transform(from, to);
#pragma GCC unroll 6
    for (int i = 0; i < OUT; ++i) half[i][j] = to[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < OUT; ++i) {
    transform(half[i], to);
#pragma GCC unroll 6
    for (int j = 0; j < OUT; ++j) sink(i, j, to[j]);
  }
}

// sums (R, kCols) (+)= a (R, depth) @ b (depth, kCols); in `a`, rows are `row_stride` apart and
// what is multiplied `step` apart.
template <int R>
void multiply(const float* __restrict a, int64_t row_stride, int64_t step,
              const float* __restrict b, float* __restrict sums, int64_t depth, bool add) {
  Vec left[R], right[R];
  if (add) {
    for (int r = 0; r < R; ++r) {
      left[r] = load(sums + r * kCols);
      right[r] = load(sums + r * kCols + kLanes);
    }
  } else {
    const Vec zero = {};
    for (int r = 0; r < R; ++r) left[r] = zero;
    for (int r = 0; r < R; ++r) right[r] = zero;
  }
  for (int64_t k = 0; k < depth; ++k, a += step, b += kCols) {
    const Vec b_left = load(b), b_right = load(b + kLanes);
    for (int r = 0; r < R; ++r) {
      const float factor = a[r * row_stride];
      left[r] += factor * b_left;
      right[r] += factor * b_right;
    }
  }
  for (int r = 0; r < R; ++r) {
    store(sums + r * kCols, left[r]);
    store(sums + r * kCols + kLanes, right[r]);
  }
}

using Multiply = void (*)(const float*, int64_t, int64_t, const float*, float*, int64_t, bool);
constexpr Multiply kMultiply[] = {
    nullptr,     multiply<1>, multiply<2>, multiply<3>, multiply<4>,  multiply<5>,  multiply<6>,
#if VECTOR_BYTES == 64
    multiply<7>, multiply<8>, multiply<9>, multiply<10>, multiply<11>, multiply<12>,
#endif
};

// sums (rows, kCols) (+)= a (rows, depth) @ b (depth, kCols), in nearly equal groups of rows: one
// row left over would wait for the latency of its own sums.
void product(const float* a, int64_t row_stride, int64_t step, const float* b, float* sums,
             int64_t rows, int64_t depth, bool add) {
  for (int64_t groups = ceil_div(rows, kRows); groups > 0; --groups) {
    const int64_t count = ceil_div(rows, groups);
    kMultiply[count](a, row_stride, step, b, sums, depth, add);
    a += count * row_stride;
    sums += count * kCols;
    rows -= count;
  }
}

struct Tile {
  int64_t image, top, left;  // of its first output
};
Tile tile_at(const Problem& p, int64_t index) {
  const int64_t per_image = p.tiles_y() * p.tiles_x(), inside = index % per_image;
  return {index / per_image, inside / p.tiles_x() * 4, inside % p.tiles_x() * 4};
}

// Pointers to SIZE x SIZE pixels whose first is at (top, left), `zeros` where there is no map.
template <int SIZE>
void pixels(const Problem& p, const float* map, int64_t channels, Tile tile, int64_t margin,
            const float* zeros, const float* (&found)[SIZE][SIZE]) {
  const float* image = map + tile.image * p.height * p.width * channels;
  for (int i = 0; i < SIZE; ++i) {
    for (int j = 0; j < SIZE; ++j) {
      const int64_t row = tile.top + i - margin, column = tile.left + j - margin;
      const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
      found[i][j] = inside ? image + (row * p.width + column) * channels : zeros;
    }
  }
}

// Where the transformed input of a block of tiles lies: [depth / kDepth][36][tiles][kDepth].
struct InputBlock {
  float* at;
  int64_t tiles, depth;  // depth: channels rounded up to whole vectors

  static int64_t floats(int64_t tiles, int64_t channels) {
    return ceil_div(channels, kDepth) * 36 * (tiles * kDepth + kPad);
  }
  int64_t chunk(int64_t first) const { return least(kDepth, depth - first); }
  int64_t point_stride() const { return tiles * kDepth + kPad; }
  float* point(int64_t first, int64_t point) const {
    return at + (first / kDepth * 36 + point) * point_stride();
  }
};

void fill_input(const Problem& p, const float* x, int64_t first_tile, const float* zeros,
                int64_t first_channel, int64_t channels, InputBlock block) {
  for (int64_t t = 0; t < block.tiles; ++t) {
    const float* from[6][6];
    pixels<6>(p, x, p.in, tile_at(p, first_tile + t), 1, zeros, from);
    for (int64_t c = 0; c < channels; c += kLanes) {
      float* to = block.point(c, 0) + t * kDepth + c % kDepth;
      const int64_t stride = block.point_stride(), count = channels - c;
      auto sink = [=](int i, int j, Vec v) { store(to + (i * 6 + j) * stride, v); };
      const int64_t at = first_channel + c;
      if (count >= kLanes)
        transform_both<6, 6>(transform_input, [&](int i, int j) { return load(from[i][j] + at); },
                             sink);
      else
        transform_both<6, 6>(
            transform_input, [&](int i, int j) { return load_some(from[i][j] + at, count); }, sink);
    }
  }
}

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

constexpr int64_t kKernelPoint = kDepth * kCols + kPad;  // U: [36][kDepth][kCols]

int64_t forward_scratch(const Problem& p) {
  const int64_t tiles = least(most_tiles(p), p.tiles());
  return round_up(p.in, kLanes) + InputBlock::floats(tiles, p.in) + 36 * kKernelPoint +
         36 * (tiles * kCols + kPad);
}

void fill_kernel(const Problem& p, const float* kernel, int64_t first, int64_t depth,
                 int64_t column, float* u) {
  const int64_t tap = p.in * p.out;
  for (int64_t c = 0; c < depth; ++c) {
    const float* from = kernel + (first + c) * p.out + column;
    // The rows of a kernel are up to 2 kB apart, which no hardware foresees.
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
  const int64_t m_stride = tiles * kCols + kPad;
  std::memset(zeros, 0, round_up(p.in, kLanes) * sizeof(float));

  fill_input(p, x, first_tile, zeros, 0, p.in, input);
  for (int64_t b = group * d.columns / d.groups; b < (group + 1) * d.columns / d.groups; ++b) {
    for (int64_t first = 0; first < input.depth; first += kDepth) {
      const int64_t depth = input.chunk(first);
      fill_kernel(p, kernel, first, depth, b * kCols, u);
      for (int point = 0; point < 36; ++point)
        product(input.point(first, point), kDepth, 1, u + point * kKernelPoint,
                m + point * m_stride, tiles, depth, first > 0);
    }
    write_output(p, m, m_stride, first_tile, tiles, b * kCols, y);
  }
}

// ---- the kernel's gradient ----
//
// Its sums over tiles are 36 products of (in, tiles) with (tiles, out). A task holds the sums of
// up to 128 x 128 channels (2.4 MB, L3) and adds to them kGradientTiles tiles at a time; where the
// channels make too few tasks, ranges of tiles make more. Summing blocks keeps float32 accurate.

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
constexpr int64_t kGradientPoint = kSide * kGradientTiles + kPad;  // [36][panels][tiles][kCols]
constexpr int64_t kSumsPoint = kSide * kSide + kPad;               // [36][panels][kSide][kCols]

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

  const int64_t begin = part * p.tiles() / b.parts, end = (part + 1) * p.tiles() / b.parts;
  for (int64_t first = begin; first < end; first += kGradientTiles) {
    const int64_t tiles = least(kGradientTiles, end - first);
    const InputBlock input{input_at, tiles, round_up(in, kLanes)};
    fill_input(p, x, first, zeros, first_in, in, input);
    fill_gradient(p, grad, first, tiles, zeros, first_out, out, panels);
    for (int point = 0; point < 36; ++point)
      for (int64_t j = 0; j < ceil_div(out, kCols); ++j)
        for (int64_t c = 0; c < in; c += kDepth)
          product(input.point(c, point), 1, kDepth,
                  panels + point * kGradientPoint + j * tiles * kCols,
                  sums + point * kSumsPoint + (j * kSide + c) * kCols, least(kDepth, in - c),
                  tiles, first > begin);
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
}

}  // namespace

extern const Kernels NAME;
#define QUOTE(name) #name
#define TEXT(name) QUOTE(name)
const Kernels NAME = {TEXT(NAME),      forward_tasks,  forward_scratch,  forward,
                      gradient_parts, gradient_tasks, gradient_scratch, gradient};

}  // namespace vggjax
