// Pillow's resize of 8-bit RGB, bit for bit: the weights, the order of the passes, the C interface.
// The source of all arithmetic is Pillow's src/libImaging/Resample.c.
//
// One direction is resized and rounded to bytes, then the other. This file is compiled for the
// baseline machine, as Pillow is: with fused multiplications a weight could round differently.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "dispatch.h"
#include "resize.h"

namespace vggjax {
namespace {

enum Filter { kBilinear = 0, kBicubic = 1 };
enum Status { kDone = 0, kNoMemory = 1, kRefused = 2 };

const ResizeKernels& current_kernels() {
  static const ResizeKernels* const table[] = {
      &baseline_resize,
#ifdef __x86_64__
      // AVX-512 would not help: the groups of rows fill AVX2's vectors
      &avx2_resize, &avx2_resize, &avx2_resize,
#endif
  };
  return *table[instruction_set()];
}

double triangle(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double cubic(double x) {  // Keys' with a = -1/2, each rounding where Pillow has it
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

Pair split(int32_t w0, int32_t w1) {
  const auto low = [](int32_t w) { return static_cast<int16_t>(w & 0xffff); };
  const auto high = [=](int32_t w) { return static_cast<int16_t>((w - low(w)) >> 16); };
  return {{low(w0), low(w1)}, {high(w0), high(w1)}};
}

int32_t fixed(double w) {
  return static_cast<int32_t>((w < 0 ? -0.5 : 0.5) + w * (1 << kPlaces));
}

struct Weights {
  int64_t outputs, pairs;
  std::vector<int64_t> first, counts;
  std::vector<Pair> pair;

  Axis axis() const { return {outputs, pairs, first.data(), counts.data(), pair.data()}; }
  int64_t end() const { return first.back() + counts.back(); }
};

// The weights that map inputs begin..end of `inputs` to `outputs`. The ends are float like Pillow's
// box, and so is their difference.
template <typename Weigh>
Weights plan(int64_t inputs, float begin, float end, int64_t outputs, double radius, Weigh weigh) {
  const double scale = static_cast<double>(end - begin) / outputs;
  const double stretch = std::max(scale, 1.0);  // antialiasing: a wider filter when downsampling
  const double support = radius * stretch, step = 1.0 / stretch;
  Weights made{outputs, 1, std::vector<int64_t>(outputs), std::vector<int64_t>(outputs), {}};
  const auto center = [&](int64_t i) { return begin + (i + 0.5) * scale; };
  for (int64_t i = 0; i < outputs; ++i) {
    const auto from = static_cast<int64_t>(center(i) - support + 0.5);
    const auto to = static_cast<int64_t>(center(i) + support + 0.5);
    made.first[i] = std::max<int64_t>(from, 0);
    made.counts[i] = std::min(to, inputs) - made.first[i];
    made.pairs = std::max(made.pairs, (made.counts[i] + 1) / 2);
  }
  made.pair.resize(outputs * made.pairs);
  std::vector<double> raw(2 * made.pairs);
  for (int64_t i = 0; i < outputs; ++i) {
    const int64_t count = made.counts[i];
    const double middle = center(i);
    double sum = 0.0;
    for (int64_t tap = 0; tap < count; ++tap) {
      raw[tap] = weigh((tap + made.first[i] - middle + 0.5) * step);
      sum += raw[tap];
    }
    for (int64_t tap = 0; tap < count; ++tap)
      if (sum != 0.0) raw[tap] /= sum;
    std::fill(raw.begin() + count, raw.end(), 0.0);
    for (int64_t pair = 0; pair < made.pairs; ++pair)
      made.pair[i * made.pairs + pair] = split(fixed(raw[2 * pair]), fixed(raw[2 * pair + 1]));
  }
  return made;
}

struct Extent {
  int64_t inputs, outputs;
  float begin, end;
  int filter;

  bool operator==(const Extent& o) const {
    return inputs == o.inputs && outputs == o.outputs && begin == o.begin && end == o.end &&
           filter == o.filter;
  }
};

// Caches the last weights per thread and direction: computing them takes a fifth of the time of a
// small image, and the images of a dataset often have one size.
template <int kDirection>
const Weights& plan(const Extent& e) {
  static thread_local Extent last{};
  static thread_local Weights weights;
  if (!(e == last)) {
    weights = e.filter == kBilinear ? plan(e.inputs, e.begin, e.end, e.outputs, 1.0, triangle)
                                    : plan(e.inputs, e.begin, e.end, e.outputs, 2.0, cubic);
    last = e;
  }
  return weights;
}

struct Image {
  const uint8_t* at;
  int64_t height, width, stride;
};

// The rows of an image, such that a pass may read `beyond` bytes after the end of a row: the last
// rows, where that would leave the image, are copied.
class Rows {
 public:
  Rows(const Image& image, int64_t beyond)
      : image_(image), slot_(3 * image.width + beyond) {
    const int64_t copied = (beyond + image.stride - 1) / image.stride;
    whole_ = std::max<int64_t>(image.height - copied, 0);
    copies_.resize((image.height - whole_) * slot_);
    for (int64_t y = whole_; y < image.height; ++y)
      std::memcpy(&copies_[(y - whole_) * slot_], image.at + y * image.stride,
                  3 * image.width);
  }
  const uint8_t* operator[](int64_t y) const {
    return y < whole_ ? image_.at + y * image_.stride : &copies_[(y - whole_) * slot_];
  }

 private:
  Image image_;
  int64_t slot_, whole_;
  std::vector<uint8_t> copies_;
};

// Keeps only the rows between the passes that one output row needs, in a ring that fits L1 or L2.
void rows_first(const ResizeKernels& kernels, const Image& from, uint8_t* to, int64_t to_stride,
                const Weights& across, const Weights& down) {
  const Rows source(from, 6 * across.pairs + kPad);
  const int64_t taps = 2 * down.pairs, bytes = 3 * across.outputs, slot = bytes + kPad;
  const int64_t end = down.end(), ring_rows = taps + kGroup;
  std::vector<uint8_t> ring(ring_rows * slot);
  std::vector<const uint8_t*> rows(taps);
  const auto made_row = [&](int64_t y) { return &ring[y % ring_rows * slot]; };
  int64_t made = down.first[0];  // rows, from the image's first
  for (int64_t i = 0; i < down.outputs; ++i) {
    const int64_t needed = down.first[i] + down.counts[i];
    for (; made < needed; made += kGroup) {
      const uint8_t* read[kGroup];
      uint8_t* written[kGroup];
      for (int64_t row = 0; row < kGroup; ++row) {
        const int64_t y = std::min(made + row, end - 1);  // repeat the last row to complete a group
        read[row] = source[y];
        written[row] = made_row(y);
      }
      kernels.across(across.axis(), read, written);
    }
    for (int64_t tap = 0; tap < taps; ++tap)
      rows[tap] = made_row(std::min(down.first[i] + tap, needed - 1));
    kernels.down(&down.pair[i * down.pairs], down.pairs, rows.data(), bytes,
                 to + i * to_stride);
  }
}

void columns_first(const ResizeKernels& kernels, const Image& from, uint8_t* to, int64_t to_stride,
                   const Weights& across, const Weights& down) {
  const Rows source(from, kPad);
  const int64_t taps = 2 * down.pairs, begin = 3 * across.first[0];
  const int64_t bytes = 3 * across.end() - begin;
  const int64_t slot = 3 * (from.width + 2 * across.pairs) + kPad;
  const int64_t to_bytes = 3 * across.outputs, to_slot = to_bytes + kPad;
  std::vector<uint8_t> between(kGroup * slot), made(kGroup * to_slot);
  std::vector<const uint8_t*> rows(taps);
  for (int64_t first = 0; first < down.outputs; first += kGroup) {
    const int64_t count = std::min<int64_t>(kGroup, down.outputs - first);
    const uint8_t* read[kGroup];
    uint8_t* written[kGroup];
    for (int64_t row = 0; row < kGroup; ++row) {
      read[row] = &between[row * slot];
      written[row] = &made[row * to_slot];
      if (row >= count) continue;
      const int64_t i = first + row, last = down.first[i] + down.counts[i] - 1;
      for (int64_t tap = 0; tap < taps; ++tap)
        rows[tap] = source[std::min(down.first[i] + tap, last)] + begin;
      kernels.down(&down.pair[i * down.pairs], down.pairs, rows.data(), bytes,
                   &between[row * slot + begin]);
    }
    kernels.across(across.axis(), read, written);
    for (int64_t row = 0; row < count; ++row)
      std::memcpy(to + (first + row) * to_stride, written[row], to_bytes);
  }
}

bool is_valid(const Extent& e) {
  return e.inputs >= 1 && e.outputs >= 1 && 0 <= e.begin && e.begin <= e.end &&
         e.end <= static_cast<float>(e.inputs) && (e.filter == kBilinear || e.filter == kBicubic);
}

}  // namespace
}  // namespace vggjax

#pragma GCC visibility push(default)

// Resizes the box (left, top, right, bottom) of an image, uint8 RGB with `stride` bytes per row, into
// another image. `filter` is 0, bilinear, or 1, bicubic. `down_first` resizes the height before the
// width, which matters because the bytes between are rounded. Returns 0 on success, 1 if out of
// memory, 2 for invalid arguments.
extern "C" int vggjax_resize(const uint8_t* from, int64_t height, int64_t width, int64_t stride,
                             uint8_t* to, int64_t to_height, int64_t to_width, int64_t to_stride,
                             double left, double top, double right, double bottom, int filter,
                             int down_first) {
  using namespace vggjax;
  const auto f = [](double x) { return static_cast<float>(x); };
  const Extent across{width, to_width, f(left), f(right), filter};
  const Extent down{height, to_height, f(top), f(bottom), filter};
  if (!is_valid(across) || !is_valid(down) || stride < 3 * width || to_stride < 3 * to_width)
    return kRefused;
  try {
    (down_first ? columns_first : rows_first)(current_kernels(), {from, height, width, stride}, to,
                                              to_stride, plan<0>(across), plan<1>(down));
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  return kDone;
}

#pragma GCC visibility pop
