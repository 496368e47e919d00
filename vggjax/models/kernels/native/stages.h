// The CPU time of the stages of a convolution, summed over threads, for benchmarks/layers.py. It is
// taken only while vggjax_profile(1) is in effect; otherwise a lap is one test of a flag.
#pragma once

#include <cstdint>

namespace vggjax {

enum Stage { kInputTransform, kKernelTransform, kProducts, kOutputTransform, kNumStages };

// The watch of one task, on one thread.
class StageWatch {
 public:
  StageWatch();
  void lap(Stage stage);  // adds the time since the last lap to `stage`

 private:
  int64_t last_ns_;
};

}  // namespace vggjax
