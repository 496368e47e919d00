#include "stages.h"

#include <atomic>
#include <ctime>

namespace vggjax {
namespace {

std::atomic<bool> profiling{false};
std::atomic<int64_t> total_ns[kNumStages];

int64_t thread_ns() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return int64_t{1000000000} * now.tv_sec + now.tv_nsec;
}

}  // namespace

StageWatch::StageWatch() : last_ns_(profiling ? thread_ns() : 0) {}

void StageWatch::lap(Stage stage) {
  if (!profiling || last_ns_ == 0) return;
  const int64_t now = thread_ns();
  total_ns[stage] += now - last_ns_;
  last_ns_ = now;
}

}  // namespace vggjax

#pragma GCC visibility push(default)

// Starts or ends taking times.
extern "C" void vggjax_profile(int on) { vggjax::profiling = on != 0; }

// Moves the seconds of each stage to `seconds`, in the order of the enumeration.
extern "C" void vggjax_take_stage_seconds(double* seconds) {
  for (int i = 0; i < vggjax::kNumStages; ++i) seconds[i] = 1e-9 * vggjax::total_ns[i].exchange(0);
}

#pragma GCC visibility pop
