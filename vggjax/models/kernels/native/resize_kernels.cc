// The two passes of the resize for one instruction set: the file is compiled once for each, with
// NAME defined. The AVX2 version processes two rows in the two 128-bit lanes of a vector.

#include <cstring>

#include "resize.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace vggjax {
namespace {

constexpr int32_t kHalf = 1 << (kPlaces - 1);

#ifdef __AVX2__

using Vec = __m256i;
Vec load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const Vec*>(from)); }
void store(uint8_t* to, Vec v) { _mm256_storeu_si256(reinterpret_cast<Vec*>(to), v); }

constexpr int kLanes = sizeof(Vec) / 16;       // of 128 bits, one row of the group per lane
constexpr int kVectors = kGroup / kLanes;

Vec spread(const int16_t (&weights)[2]) {
  int32_t both;
  std::memcpy(&both, weights, 4);
  return _mm256_set1_epi32(both);
}

struct Sum {
  Vec low = _mm256_set1_epi32(kHalf), high = _mm256_set1_epi32(0);

  // `values` are pairs of 16-bit numbers, one per tap.
  void add(Vec values, Vec low_weights, Vec high_weights) {
    low = _mm256_add_epi32(low, _mm256_madd_epi16(values, low_weights));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(values, high_weights));
  }
  Vec whole() const {
    return _mm256_srai_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(high, 16)), kPlaces);
  }
};

Vec load_rows(const uint8_t* const* rows, int64_t at) {
  const auto one = [at](const uint8_t* row) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + at));
  };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(one(rows[0])), one(rows[1]), 1);
}

// Two pixels from byte 0 or 6 of each lane, as 16-bit R0 R1 G0 G1 B0 B1 0 0.
template <int kByte>
Vec two_pixels(Vec v) {
  const __m128i places =
      _mm_setr_epi8(kByte, -1, kByte + 3, -1, kByte + 1, -1, kByte + 4, -1, kByte + 2, -1,
                    kByte + 5, -1, -1, -1, -1, -1);
  return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(places));
}

void store_pixel(uint8_t* to, int32_t pixel) { std::memcpy(to, &pixel, 4); }

// The saturation of the two packs clips as Pillow does.
void store_pixels(const Sum (&sums)[kVectors], int64_t at, uint8_t* const to[kGroup]) {
  const Vec words = _mm256_packs_epi32(sums[0].whole(), sums[1].whole());
  const Vec bytes = _mm256_packus_epi16(words, words);
  const __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
  store_pixel(to[0] + at, _mm_cvtsi128_si32(even));
  store_pixel(to[1] + at, _mm_cvtsi128_si32(odd));
  store_pixel(to[2] + at, _mm_extract_epi32(even, 1));
  store_pixel(to[3] + at, _mm_extract_epi32(odd, 1));
}

// kPairs is the axis' number of pairs, or 0 for any number: a constant saves a third of the time of
// a small image.
template <int kPairs>
void across_by(const Axis& axis, const uint8_t* const from[kGroup], uint8_t* const to[kGroup]) {
  const int64_t pairs = kPairs ? kPairs : axis.pairs;
  const Pair* weights = axis.weights;
  for (int64_t i = 0; i < axis.outputs; ++i, weights += pairs) {
    int64_t at = 3 * axis.first[i], pair = 0;
    Sum sums[kVectors];
    for (; pair + 2 <= pairs; pair += 2, at += 12) {
      const Vec low0 = spread(weights[pair].low), high0 = spread(weights[pair].high);
      const Vec low1 = spread(weights[pair + 1].low), high1 = spread(weights[pair + 1].high);
      for (int v = 0; v < kVectors; ++v) {
        const Vec four = load_rows(from + v * kLanes, at);
        sums[v].add(two_pixels<0>(four), low0, high0);
        sums[v].add(two_pixels<6>(four), low1, high1);
      }
    }
    if (pair < pairs) {
      const Vec low = spread(weights[pair].low), high = spread(weights[pair].high);
      for (int v = 0; v < kVectors; ++v)
        sums[v].add(two_pixels<0>(load_rows(from + v * kLanes, at)), low, high);
    }
    store_pixels(sums, 3 * i, to);
  }
}

void across(const Axis& axis, const uint8_t* const from[kGroup], uint8_t* const to[kGroup]) {
  switch (axis.pairs) {
    case 1: return across_by<1>(axis, from, to);
    case 2: return across_by<2>(axis, from, to);
    case 3: return across_by<3>(axis, from, to);
    default: return across_by<0>(axis, from, to);
  }
}

Vec down_block(const Pair* weights, int64_t pairs, const uint8_t* const* rows, int64_t at) {
  const Vec zero = _mm256_set1_epi32(0);
  Sum sums[4];
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const Vec a = load(rows[2 * pair] + at), b = load(rows[2 * pair + 1] + at);
    const Vec low = spread(weights[pair].low), high = spread(weights[pair].high);
    const Vec first = _mm256_unpacklo_epi8(a, b), last = _mm256_unpackhi_epi8(a, b);
    sums[0].add(_mm256_unpacklo_epi8(first, zero), low, high);
    sums[1].add(_mm256_unpackhi_epi8(first, zero), low, high);
    sums[2].add(_mm256_unpacklo_epi8(last, zero), low, high);
    sums[3].add(_mm256_unpackhi_epi8(last, zero), low, high);
  }
  // Unpacking and packing both work within lanes, so the bytes come out in order.
  return _mm256_packus_epi16(_mm256_packs_epi32(sums[0].whole(), sums[1].whole()),
                             _mm256_packs_epi32(sums[2].whole(), sums[3].whole()));
}

void down(const Pair* weights, int64_t pairs, const uint8_t* const* rows, int64_t bytes,
          uint8_t* to) {
  constexpr int64_t kBlock = sizeof(Vec);
  int64_t at = 0;
  for (; at + kBlock <= bytes; at += kBlock) store(to + at, down_block(weights, pairs, rows, at));
  if (at == bytes) return;
  uint8_t rest[kBlock];
  store(rest, down_block(weights, pairs, rows, at));
  std::memcpy(to + at, rest, bytes - at);
}

#else  // baseline

uint32_t weight(const Pair& pair, int i) {
  return (static_cast<uint32_t>(pair.high[i]) << 16) + static_cast<uint32_t>(pair.low[i]);
}

uint8_t clip(uint32_t sum) {
  const int32_t whole = static_cast<int32_t>(sum) >> kPlaces;
  return whole < 0 ? 0 : whole > 255 ? 255 : whole;
}

void across(const Axis& axis, const uint8_t* const from[kGroup], uint8_t* const to[kGroup]) {
  const Pair* weights = axis.weights;
  for (int64_t i = 0; i < axis.outputs; ++i, weights += axis.pairs) {
    uint32_t sums[kGroup][3];
    for (auto& row : sums) row[0] = row[1] = row[2] = kHalf;
    for (int64_t tap = 0; tap < axis.counts[i]; ++tap) {
      const uint32_t w = weight(weights[tap / 2], tap % 2);
      for (int row = 0; row < kGroup; ++row)
        for (int c = 0; c < 3; ++c) sums[row][c] += w * from[row][3 * (axis.first[i] + tap) + c];
    }
    for (int row = 0; row < kGroup; ++row)
      for (int c = 0; c < 3; ++c) to[row][3 * i + c] = clip(sums[row][c]);
  }
}

void down(const Pair* weights, int64_t pairs, const uint8_t* const* rows, int64_t bytes,
          uint8_t* to) {
  constexpr int64_t kBlock = 64;
  for (int64_t at = 0; at < bytes; at += kBlock) {
    const int64_t count = bytes - at < kBlock ? bytes - at : kBlock;
    uint32_t sums[kBlock];
    for (auto& sum : sums) sum = kHalf;
    for (int64_t tap = 0; tap < 2 * pairs; ++tap) {
      const uint32_t w = weight(weights[tap / 2], tap % 2);
      for (int64_t i = 0; i < count; ++i) sums[i] += w * rows[tap][at + i];
    }
    for (int64_t i = 0; i < count; ++i) to[at + i] = clip(sums[i]);
  }
}

#endif

}  // namespace

const ResizeKernels NAME = {across, down};

}  // namespace vggjax
