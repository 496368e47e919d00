// The interface of the resize: the weights along one axis and the two passes of one instruction
// set. The arithmetic is Pillow's, integers with 22 binary places, where the order of a sum does
// not matter: modulo 2^32 every order gives the same bits. This header uses no template of the
// standard library, because the linker keeps any of equal instances, perhaps one built for AVX2.
#pragma once

#include <cstdint>

namespace vggjax {

constexpr int kPlaces = 22;  // binary places of the weights
constexpr int kGroup = 4;    // rows that the horizontal pass processes together
constexpr int kPad = 32;     // bytes that a pass may access after the last pixel of a row

// A weight w as two 16-bit numbers, w = (high << 16) + low with a signed low, for the instruction
// that multiplies 16-bit numbers and adds two neighbors.
struct Pair {
  int16_t low[2], high[2];
};

// Output i is the sum over the inputs from first[i] on, with 2 * pairs weights; the weights after
// counts[i] are 0, but their inputs are read.
struct Axis {
  int64_t outputs, pairs;
  const int64_t *first, *counts;
  const Pair* weights;  // [outputs][pairs]
};

struct ResizeKernels {
  // Horizontal pass over rows of RGB: writes one byte more than the outputs.
  void (*across)(const Axis&, const uint8_t* const from[kGroup], uint8_t* const to[kGroup]);
  // Vertical pass over 2 * pairs rows: writes exactly `bytes`.
  void (*down)(const Pair* weights, int64_t pairs, const uint8_t* const* rows, int64_t bytes,
               uint8_t* to);
};

extern const ResizeKernels baseline_resize, avx2_resize;

}  // namespace vggjax
