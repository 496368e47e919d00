// The interface of the 3x3 convolution: the problem, its division into tasks, and the functions of
// one instruction set. A task runs on one thread, writes to memory of its own, and needs its own
// scratch; the assignment of tasks to threads does not change a bit of the result.
#pragma once

#include <cstdint>

namespace vggjax {

// Stride 1, zero padding: x (batch, height, width, in), kernel (3, 3, in, out) and
// y (batch, height, width, out), all dense float32.
struct Problem {
  int64_t batch, height, width, in, out;
  int64_t threads;

  int64_t tiles_y() const { return (height + 3) / 4; }
  int64_t tiles_x() const { return (width + 3) / 4; }
  int64_t tiles() const { return batch * tiles_y() * tiles_x(); }
};

struct WinogradKernels {
  // y = x * kernel
  int64_t (*forward_tasks)(const Problem&);
  int64_t (*forward_scratch)(const Problem&);  // in floats
  void (*forward)(const Problem&, int64_t task, const float* x, const float* kernel, float* y,
                  float* scratch);
  // The gradient of the kernel, summed over ranges of tiles: partial (parts, 3, 3, in, out)
  int64_t (*gradient_parts)(const Problem&);
  int64_t (*gradient_tasks)(const Problem&);
  int64_t (*gradient_scratch)(const Problem&);
  void (*gradient)(const Problem&, int64_t task, const float* x, const float* grad,
                   float* partial, float* scratch);
};

extern const WinogradKernels baseline_winograd, avx2_winograd, avx512_winograd;

}  // namespace vggjax
