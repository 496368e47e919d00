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

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// Indices into arrays of vectors must be constants, which GCC finds only after inlining.
#define INLINE_LAMBDA __attribute__((always_inline))
#define ALWAYS_INLINE inline INLINE_LAMBDA

namespace vggjax {
namespace {

typedef float Vec __attribute__((vector_size(VECTOR_BYTES)));
typedef float Loose __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));

// The upper half of a float.
struct Bfloat16 {
  uint16_t bits;
};

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

// The numbers that are multiplied. AVX512_BF16 multiplies pairs and adds both to a float.
#ifdef __AVX512BF16__
typedef Bfloat16 Factor;
#else
typedef float Factor;
#endif
constexpr int64_t kPack = 4 / sizeof(Factor);

// Not std::min: of a template that two files instantiate, the linker keeps one, perhaps with the
// instructions of the newer machine.
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

Vec load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
void store(float* to, Vec v) { *reinterpret_cast<Loose*>(to) = v; }

Vec load(const Bfloat16* from) {
  const Bits bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits) << 16;
  return reinterpret_cast<const Vec&>(bits);
}
// Rounds to the nearest, to even.
void store(Bfloat16* to, Vec v) {
#ifdef __AVX512BF16__
  const __m256bh halves = _mm512_cvtneps_pbh(reinterpret_cast<__m512&>(v));
  std::memcpy(to, &halves, sizeof(halves));
#else
  const Bits bits = reinterpret_cast<Bits&>(v);
  const Bits rounded = v == v ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;  // NaN stays
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(rounded >> 16, Halves);
#endif
}

#ifdef __AVX512BF16__
// Stores the lanes of two vectors in turn, as the pairs that are multiplied together.
void store_pairs(float* to, Vec first, Vec second) {
  typedef int16_t Order __attribute__((vector_size(64)));
  constexpr Order in_turn = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                             8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512bh halves = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second),
                                              reinterpret_cast<__m512>(first));
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(reinterpret_cast<__m512i>(in_turn),
                                                   reinterpret_cast<__m512i>(halves)));
}
#endif

// The first `count` lanes: the number of channels need not be a multiple of kLanes.
template <typename Number>
Vec load_some(const Number* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Number some[kLanes] = {};
  if (count > 0) std::memcpy(some, from, count * sizeof(Number));
  return load(some);
}
template <typename Number>
void store_some(Number* to, Vec v, int64_t count) {
  if (count >= kLanes) return store(to, v);
  Number some[kLanes];
  store(some, v);
  if (count > 0) std::memcpy(to, some, count * sizeof(Number));
}

// The larger of each two lanes and of a lane and 0, as jax has them: NaN if one is.
Vec largest(Vec a, Vec b) { return ((a > b) | (a != a)) ? a : b; }
Vec relu(Vec v) {
  const Vec zero = {};
  return v < zero ? zero : v;
}

// The transforms of one column or row; applied to all columns, then to all rows. The interpolation
// points are 0, A, -A, B, -B and infinity. With the usual 1 and 2 the rounding errors are larger.
constexpr float A = 0.6875f, B = 1.5f, A2 = A * A, B2 = B * B;
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
ALWAYS_INLINE void transform_both(Transform transform, Source source,
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

// How the left matrix of a product lies: rows are `row` numbers apart, the numbers or pairs of a
// row `step`.
struct ByChannels {  // of an InputBlock, its channels side by side
  static constexpr int64_t row = kDepth, step = kPack;
};
struct ByTiles {  // of an InputBlock of pairs of tiles, transposed
  static constexpr int64_t row = kPack, step = kPack * kDepth;
};
struct Pixels {  // of a map
  int64_t row;
  static constexpr int64_t step = 1;
};

// sum += a * b
inline void add_product(Vec& sum, const float* a, Vec b) { sum += *a * b; }
#ifdef __AVX512BF16__
inline void add_product(Vec& sum, const Bfloat16* a, Vec b) {
  int pair;
  std::memcpy(&pair, a, sizeof(pair));
  const __m512i pairs = _mm512_set1_epi32(pair);
  sum = reinterpret_cast<Vec>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(b),
      reinterpret_cast<__m512bh>(pairs)));
}
#endif

// sums (R, kCols) (+)= a (R, depth) @ b (depth, kCols), where `depth` counts numbers or pairs
template <int R, typename Layout, typename Number>
void multiply(Layout layout, const Number* __restrict a, const float* __restrict b,
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
      add_product(left[r], a + r * layout.row, b_left);
      add_product(right[r], a + r * layout.row, b_right);
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
template <typename Layout, typename Number>
void product(Layout layout, const Number* a, const float* b, float* sums, int64_t rows,
             int64_t depth, bool add) {
  using Multiply = void (*)(Layout, const Number*, const float*, float*, int64_t, bool);
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
template <int SIZE, typename Number>
void pixels(const Problem& p, const Number* map, int64_t channels, Tile tile, int64_t margin,
            const Number* (&pointers)[SIZE][SIZE]) {
  const Number* image = map + tile.image * p.height * p.width * channels;
  for (int i = 0; i < SIZE; ++i) {
    for (int j = 0; j < SIZE; ++j) {
      const int64_t row = tile.top + i - margin, column = tile.left + j - margin;
      const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
      pointers[i][j] = inside ? image + (row * p.width + column) * channels
                              : reinterpret_cast<const Number*>(kZeros);
    }
  }
}

// Calls use(source) with the vectors `channel` of pixels, of which `count` lanes are there.
template <int SIZE, typename Number, typename Use>
ALWAYS_INLINE void use_pixels(const Number* (&from)[SIZE][SIZE],
                                                      int64_t channel, int64_t count, Use use) {
  if (count >= kLanes)
    use([&](int i, int j) { return load(from[i][j] + channel); });
  else
    use([&](int i, int j) { return load_some(from[i][j] + channel, count); });
}

// Transforms what `with_source(k, use)` passes to `use`, for each k of the numbers that are
// multiplied together, and stores it at 36 points `stride` floats apart.
template <int IN, typename Transform, typename WithSource>
ALWAYS_INLINE void transform_factors(Transform transform,
                                                             WithSource with_source, float* to,
                                                             int64_t stride) {
#ifdef __AVX512BF16__
  Vec first[36];
  with_source(0, [&](auto source) INLINE_LAMBDA {
    transform_both<IN, 6>(transform, source, [&](int i, int j, Vec v) { first[i * 6 + j] = v; });
  });
  with_source(1, [&](auto source) INLINE_LAMBDA {
    transform_both<IN, 6>(transform, source, [&](int i, int j, Vec v) {
      store_pairs(to + (i * 6 + j) * stride, first[i * 6 + j], v);
    });
  });
#else
  with_source(0, [&](auto source) INLINE_LAMBDA {
    transform_both<IN, 6>(transform, source,
                          [=](int i, int j, Vec v) { store(to + (i * 6 + j) * stride, v); });
  });
#endif
}

// The transformed input of up to kDepth channels of some tiles: [36][tiles][kDepth], or for
// products of pairs of tiles [36][tiles / kPack][kDepth][kPack].
struct InputBlock {
  float* at;
  int64_t tiles;

  static int64_t point_floats(int64_t tiles) { return ceil_div(tiles, kPack) * kDepth + kGap; }
  static int64_t floats(int64_t tiles) { return 36 * point_floats(tiles); }
  float* chunk(int64_t index) const { return at + index * floats(tiles); }
  const Factor* point(int64_t index, int64_t point) const {
    return reinterpret_cast<const Factor*>(chunk(index) + point * point_floats(tiles));
  }
};

// Fills the chunks of kDepth channels of a block from `channels` channels of x, at most kWidest.
template <typename Number>
void fill_input(const Problem& p, const Number* x, int64_t first_tile, int64_t first_channel,
                int64_t channels, InputBlock block) {
  const int64_t stride = InputBlock::point_floats(block.tiles) * kPack;
  for (int64_t t = 0; t < block.tiles; ++t) {
    const Number* from[6][6];
    pixels<6>(p, x + first_channel, p.in, tile_at(p, first_tile + t), 1, from);
    for (int64_t c = 0; c < channels; c += kLanes) {
      Factor* to = reinterpret_cast<Factor*>(block.chunk(c / kDepth)) + t * kDepth + c % kDepth;
      use_pixels(from, c, channels - c, [=](auto source) INLINE_LAMBDA {
        transform_both<6, 6>(transform_input, source,
                             [=](int i, int j, Vec v) { store(to + (i * 6 + j) * stride, v); });
      });
    }
  }
}

// Calls use(number) with a number of a map's type.
template <typename Use>
void use_number(bool bfloat16, Use use) {
  if (bfloat16)
    use(Bfloat16());
  else
    use(float());
}

}  // namespace
}  // namespace vggjax
