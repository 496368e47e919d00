// What the resize's two files share: the weights along one axis and the two passes, for one
// instruction set. All arithmetic is Pillow's, whole numbers of 22 binary places, where the order
// of a sum changes nothing: modulo 2^32 every way of adding gives the same bits. Nothing of the
// standard library's templates is here: of equal instances the linker keeps any, AVX2's too.
#pragma once

#include <cstdint>

namespace vggjax {

constexpr int kPlaces = 22;  // after the point
constexpr int kGroup = 4;    // rows that go through the horizontal pass together
constexpr int kPad = 32;     // bytes that a pass may read or write beyond the last pixel of a row

// A weight w as two numbers of 16 bits, w = (high << 16) + low with a signed low, for the
// instruction that multiplies 16 bits and adds two neighbors.
struct Pair {
  int16_t low[2], high[2];
};

// Output i is the sum over inputs from first[i] on, with 2 * pairs weights; those beyond
// counts[i] are 0, and what lies there is read all the same.
struct Axis {
  int64_t outputs, pairs;
  const int64_t *first, *counts;
  const Pair* weights;  // [outputs][pairs]
};

struct Kernels {
  const char* name;
  // Along rows of RGB: writes a byte more than the outputs.
  void (*across)(const Axis&, const uint8_t* const from[kGroup], uint8_t* const to[kGroup]);
  // Across 2 * pairs rows: writes no byte more than `bytes`.
  void (*down)(const Pair* weights, int64_t pairs, const uint8_t* const* rows, int64_t bytes,
               uint8_t* to);
};

extern const Kernels baseline_resize, sse41_resize, avx2_resize;

}  // namespace vggjax
