// Tiles, their transforms and the matrix product in registers, which forward and backward share.
// VECTOR_BYTES is defined by the build. Everything is local to the including file, because the
// linker must not mix instruction sets.
//
// A map is divided into 4x4 tiles of outputs, each computed from a 6x6 patch of inputs that
// overlaps its neighbors'. A transformed tile is 36 numbers per channel, and the convolution is 36
// matrix products of (tiles, in) with (in, out): a quarter of the direct multiplications.
#pragma once

#include "stages.h"
#include "winograd.h"

#include <cstring>

namespace vggjax {
namespace {

typedef float Vec __attribute__((vector_size(VECTOR_BYTES)));
typedef float Loose __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

constexpr int kLanes = VECTOR_BYTES / 4;
constexpr int kCols = 2 * kLanes;                   // of a product's block in registers
#if VECTOR_BYTES == 64 || defined(__aarch64__)
#define MANY_REGISTERS 1  // 32, of which 24 hold sums
#else
#define MANY_REGISTERS 0  // 16, of which 12 hold sums
#endif
constexpr int kRows = MANY_REGISTERS ? 12 : 6;
constexpr int64_t kDepth = 64;   // channels at a time
constexpr int64_t kWidest = 128;  // channels that a transform of input reads
constexpr int64_t kGap = 16;     // floats between points: strides of 4 kB share a cache set

// Not std::min: of a template that two files instantiate, the linker keeps one, perhaps with the
// instructions of the newer machine.
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

Vec load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
void store(float* to, Vec v) { *reinterpret_cast<Loose*>(to) = v; }

// The first `count` lanes: the number of channels need not be a multiple of kLanes.
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

// The larger of each two lanes and of a lane and 0, as jax has them: NaN if one is.
Vec largest(Vec a, Vec b) { return (a > b) | (a != a) ? a : b; }
Vec relu(Vec v) {
  const Vec zero = {};
  return v < zero ? zero : v;
}

// The transforms of one column or row; applied to all columns, then to all rows. The interpolation
// points are 0, A, -A, B, -B and infinity. With the usual 1 and 2 the rounding errors are larger.
constexpr float A = 0.75f, B = 1.5f, A2 = A * A, B2 = B * B;
constexpr float kInverse0 = 1 / (A2 * B2);  // 1 over the product of a point's distances to the rest
constexpr float kInverseA = 1 / (2 * A2 * (A2 - B2)), kInverseB = 1 / (2 * B2 * (B2 - A2));

// B^T: 6 inputs -> 6
inline void transform_input(const Vec* d, Vec* v) {
  Vec even = d[4] - B2 * d[2], odd = A * (d[3] - B2 * d[1]);
  Vec even2 = d[4] - A2 * d[2], odd2 = B * (d[3] - A2 * d[1]);
  v[0] = A2 * B2 * d[0] - (A2 + B2) * d[2] + d[4];
  v[1] = even + odd;
  v[2] = even - odd;
  v[3] = even2 + odd2;
  v[4] = even2 - odd2;
  v[5] = A2 * B2 * d[1] - (A2 + B2) * d[3] + d[5];
}

// G: 3 taps -> 6
inline void transform_kernel(const Vec* g, Vec* u) {
  Vec even = kInverseA * g[0] + kInverseA * A2 * g[2];
  Vec even2 = kInverseB * g[0] + kInverseB * B2 * g[2];
  u[0] = kInverse0 * g[0];
  u[1] = even + kInverseA * A * g[1];
  u[2] = even - kInverseA * A * g[1];
  u[3] = even2 + kInverseB * B * g[1];
  u[4] = even2 - kInverseB * B * g[1];
  u[5] = g[2];
}

// A^T: 6 products -> 4 outputs
inline void transform_output(const Vec* m, Vec* y) {
  Vec sum = m[1] + m[2], difference = m[1] - m[2];
  Vec sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  y[0] = m[0] + sum + sum2;
  y[1] = A * difference + B * difference2;
  y[2] = A2 * sum + B2 * sum2;
  y[3] = A * A2 * difference + B * B2 * difference2 + m[5];
}

// A: 4 gradients of outputs -> 6
inline void transform_gradient(const Vec* g, Vec* p) {
  Vec even = g[0] + A2 * g[2], odd = A * g[1] + A * A2 * g[3];
  Vec even2 = g[0] + B2 * g[2], odd2 = B * g[1] + B * B2 * g[3];
  p[0] = g[0];
  p[1] = even + odd;
  p[2] = even - odd;
  p[3] = even2 + odd2;
  p[4] = even2 - odd2;
  p[5] = g[3];
}

// G^T: 6 sums -> 3 taps' gradients
inline void transform_taps(const Vec* u, Vec* w) {
  Vec sum = kInverseA * (u[1] + u[2]), sum2 = kInverseB * (u[3] + u[4]);
  w[0] = kInverse0 * u[0] + sum + sum2;
  w[1] = kInverseA * A * (u[1] - u[2]) + kInverseB * B * (u[3] - u[4]);
  w[2] = A2 * sum + B2 * sum2 + u[5];
}

// One transform of the columns, then of the rows: maps the IN x IN values of `source(i, j)` to
// OUT x OUT calls of `sink(i, j, value)`. Unrolled, so that every index is a constant.
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

// How the entries of the left matrix of a product lie: rows are `row` floats apart, the entries of a
// row `step`; 0 if only known at run time.
struct ByChannels {  // of an InputBlock, its channels side by side
  static constexpr int64_t row = kDepth, step = 1;
};
struct ByTiles {  // the same, transposed
  static constexpr int64_t row = 1, step = kDepth;
};
struct Pixels {  // of a map
  int64_t row;
  static constexpr int64_t step = 1;
};

// sums (R, kCols) (+)= a (R, depth) @ b (depth, kCols)
template <int R, typename Layout>
void multiply(Layout layout, const float* __restrict a, const float* __restrict b,
              float* __restrict sums, int64_t depth, bool add) {
  Vec left[R], right[R];
  if (add) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      left[r] = load(sums + r * kCols);
      right[r] = load(sums + r * kCols + kLanes);
    }
  } else {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) left[r] = right[r] = Vec{};
  }
  // The hardware does not foresee the next rows, which may be in L3, nor the next sums.
  const char* ahead = reinterpret_cast<const char*>(a + R * layout.row);
  const char* sums_ahead = reinterpret_cast<const char*>(sums + R * kCols);
  for (int64_t k = 0; k < depth; ++k, a += layout.step, b += kCols, ahead += 64) {
    __builtin_prefetch(ahead);
    if (64 * k < R * kCols * 4) __builtin_prefetch(sums_ahead + 64 * k);
    const Vec b_left = load(b), b_right = load(b + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const float factor = a[r * layout.row];
      left[r] += factor * b_left;
      right[r] += factor * b_right;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    store(sums + r * kCols, left[r]);
    store(sums + r * kCols + kLanes, right[r]);
  }
}

// sums (rows, kCols) (+)= a (rows, depth) @ b (depth, kCols), in groups of nearly equal numbers of
// rows: a group of one row would be bound by the latency of its additions.
template <typename Layout>
void product(Layout layout, const float* a, const float* b, float* sums, int64_t rows,
             int64_t depth, bool add) {
  using Multiply = void (*)(Layout, const float*, const float*, float*, int64_t, bool);
  static constexpr Multiply kMultiply[] = {
      nullptr,
      multiply<1>, multiply<2>, multiply<3>, multiply<4>,  multiply<5>,  multiply<6>,
#if MANY_REGISTERS
      multiply<7>, multiply<8>, multiply<9>, multiply<10>, multiply<11>, multiply<12>,
#endif
  };
  for (int64_t groups = ceil_div(rows, kRows); groups > 0; --groups) {
    const int64_t count = ceil_div(rows, groups);
    kMultiply[count](layout, a, b, sums, depth, add);
    a += count * layout.row;
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

alignas(64) const float kZeros[kWidest] = {};

// Sets pointers to SIZE x SIZE pixels from (top, left) - margin on, to zeros outside of the map, of
// which at most kWidest channels may be read.
template <int SIZE>
void pixels(const Problem& p, const float* map, int64_t channels, Tile tile, int64_t margin,
            const float* (&pointers)[SIZE][SIZE]) {
  const float* image = map + tile.image * p.height * p.width * channels;
  for (int i = 0; i < SIZE; ++i) {
    for (int j = 0; j < SIZE; ++j) {
      const int64_t row = tile.top + i - margin, column = tile.left + j - margin;
      const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
      pointers[i][j] = inside ? image + (row * p.width + column) * channels : kZeros;
    }
  }
}

// The transformed input of up to kDepth channels of some tiles: [36][tiles][kDepth].
struct InputBlock {
  float* at;
  int64_t tiles;

  static int64_t floats(int64_t tiles) { return 36 * (tiles * kDepth + kGap); }
  int64_t point_stride() const { return tiles * kDepth + kGap; }
  float* point(int64_t point) const { return at + point * point_stride(); }
};

// Fills block[0], block[1] ... from `channels` channels of x, at most kWidest.
void fill_input(const Problem& p, const float* x, int64_t first_tile, int64_t first_channel,
                int64_t channels, InputBlock block) {
  for (int64_t t = 0; t < block.tiles; ++t) {
    const float* from[6][6];
    pixels<6>(p, x + first_channel, p.in, tile_at(p, first_tile + t), 1, from);
    for (int64_t c = 0; c < channels; c += kLanes) {
      float* to = block.at + c / kDepth * InputBlock::floats(block.tiles) + t * kDepth + c % kDepth;
      const int64_t stride = block.point_stride(), count = channels - c;
      auto sink = [=](int i, int j, Vec v) { store(to + (i * 6 + j) * stride, v); };
      if (count >= kLanes)
        transform_both<6, 6>(transform_input, [&](int i, int j) { return load(from[i][j] + c); },
                             sink);
      else
        transform_both<6, 6>(
            transform_input, [&](int i, int j) { return load_some(from[i][j] + c, count); }, sink);
    }
  }
}

}  // namespace
}  // namespace vggjax
