// What the fast 3x3 convolution's two files share: the problem, its division into tasks, and the
// entries of one instruction set's kernels. A task is worked by one thread, shares nothing that it
// writes with any other, and needs a scratch of its own; which thread takes it changes no bit.
#pragma once

#include <cstdint>

namespace vggjax {

// Stride 1, zeros around the map: x (batch, height, width, in), kernel (3, 3, in, out) and
// y (batch, height, width, out), all dense float32.
struct Problem {
  int64_t batch, height, width, in, out;
  int64_t threads;

  int64_t tiles_y() const { return (height + 3) / 4; }
  int64_t tiles_x() const { return (width + 3) / 4; }
  int64_t tiles() const { return batch * tiles_y() * tiles_x(); }
};

struct Kernels {
  const char* name;
  // y = x * kernel
  int64_t (*forward_tasks)(const Problem&);
  int64_t (*forward_scratch)(const Problem&);  // floats
  void (*forward)(const Problem&, int64_t task, const float* x, const float* kernel, float* y,
                  float* scratch);
  // The kernel's gradient, summed over ranges of tiles: partial (parts, 3, 3, in, out)
  int64_t (*gradient_parts)(const Problem&);
  int64_t (*gradient_tasks)(const Problem&);
  int64_t (*gradient_scratch)(const Problem&);
  void (*gradient)(const Problem&, int64_t task, const float* x, const float* grad,
                   float* partial, float* scratch);
};

extern const Kernels baseline_kernels, avx2_kernels, avx512_kernels;

}  // namespace vggjax
