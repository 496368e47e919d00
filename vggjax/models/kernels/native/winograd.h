// The interface of the 3x3 convolution: the problem, its division into tasks, and the functions of
// one instruction set. A task runs on one thread, writes to memory of its own, and needs its own
// scratch; the assignment of tasks to threads does not change a bit of the result.
#pragma once

#include <cstdint>

namespace vggjax {

// Stride 1, zero padding: x (batch, height, width, in), float32 or bfloat16, a float32 kernel
// (3, 3, in, out) and y (batch, height, width, out), float32 or bfloat16, all dense. With a float32
// bias (out) a ReLU follows; with `pool` then the largest of each 2x2 pixels, y (batch, height / 2,
// width / 2, out).
struct Problem {
  int64_t batch, height, width, in, out;
  int64_t threads;
  bool from_bfloat16, to_bfloat16;  // x, and y or the gradient of y, are
  const float* bias;  // or null
  bool pool;

  int64_t tiles_y() const { return (height + 3) / 4; }
  int64_t tiles_x() const { return (width + 3) / 4; }
  int64_t tiles() const { return batch * tiles_y() * tiles_x(); }
};

// Tasks of a phase, and the floats of scratch that each needs.
struct Phase {
  int64_t tasks, scratch;
};

struct WinogradKernels {
  // y = x * kernel, in blocks one after the other, each in two phases: its tasks transform the
  // input into `shared`, which all have; when they are done, other tasks multiply.
  int64_t (*blocks)(const Problem&);
  int64_t (*shared)(const Problem&);  // in floats
  Phase (*transform_phase)(const Problem&, int64_t block);
  void (*transform)(const Problem&, int64_t block, int64_t task, const void* x, float* shared);
  Phase (*multiply_phase)(const Problem&, int64_t block);
  void (*multiply)(const Problem&, int64_t block, int64_t task, const float* shared,
                   const float* kernel, void* y, float* scratch);
  // The same directly, for few input channels; without `pool`
  Phase (*direct_phase)(const Problem&);
  void (*direct)(const Problem&, int64_t task, const void* x, const float* kernel, void* y,
                 float* scratch);
  // The gradient of the kernel, summed over ranges of tiles: partial (parts, 3, 3, in, out)
  int64_t (*gradient_parts)(const Problem&);
  Phase (*gradient_phase)(const Problem&);
  void (*gradient)(const Problem&, int64_t task, const void* x, const void* grad, float* partial,
                   float* scratch);
};

extern const WinogradKernels baseline_winograd, avx2_winograd, avx512_winograd;
extern const WinogradKernels avx512_bf16_winograd;  // multiplies in bfloat16

}  // namespace vggjax
