// The 3x3 convolution as XLA custom calls, which run the tasks on XLA's thread pool.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "dispatch.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace vggjax {
namespace {

const WinogradKernels& kernels() {
  static const WinogradKernels* const table[] = {
      &baseline_winograd,
#ifdef __x86_64__
      &avx2_winograd, &avx512_winograd,
#endif
  };
  return *table[instruction_set()];
}

// The scratch memory of a thread, kept between calls: new pages for 8 MB cost as much as a small
// layer.
float* scratch_of_this_thread(int64_t floats) {
  struct Scratch {
    float* at = nullptr;
    int64_t floats = 0;
    ~Scratch() { std::free(at); }
  };
  static thread_local Scratch scratch;
  if (scratch.floats < floats) {
    std::free(scratch.at);
    const int64_t bytes = (floats * 4 + 63) / 64 * 64;
    scratch.at = static_cast<float*>(std::aligned_alloc(64, bytes));
    scratch.floats = scratch.at ? floats : 0;
  }
  return scratch.at;
}

// Calls work(task, scratch) for each task, on the caller's thread and on the pool's free threads.
// The caller waits only for tasks that have begun, not for helpers: all threads of the pool may be
// callers that wait. A helper that starts late finds no task and accesses only the shared state.
template <typename Work>
bool run(ffi::ThreadPool& pool, int64_t threads, int64_t tasks, int64_t scratch_floats,
         const Work& work) {
  struct State {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
  };
  auto state = std::make_shared<State>();
  auto help = [state, tasks, scratch_floats, &work] {
    int64_t mine = 0;
    for (int64_t task; (task = state->next.fetch_add(1)) < tasks; ++mine) {
      float* scratch = scratch_of_this_thread(scratch_floats);
      if (scratch)
        work(task, scratch);
      else
        state->failed = true;
    }
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(state->mutex);
    state->done += mine;
    if (state->done == tasks) state->all_done.notify_all();
  };
  for (int64_t i = 1; i < threads && i < tasks; ++i) pool.Schedule([help] { help(); });
  help();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == tasks; });
  return !state->failed;
}

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

ffi::Error status(bool done) {
  return done ? ffi::Error::Success()
              : ffi::Error(ffi::ErrorCode::kResourceExhausted, "winograd: out of memory");
}

ffi::Error wrong_shapes(const char* what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, std::string("winograd: ") + what);
}

int64_t threads_of(ffi::ThreadPool& pool) { return pool.num_threads() > 1 ? pool.num_threads() : 1; }

// y (N, H, W, D) = x (N, H, W, C) * kernel (3, 3, C, D)
ffi::Error forward(ffi::ThreadPool pool, Array x, Array kernel, Result y) {
  const auto in = x.dimensions(), taps = kernel.dimensions(), out = y->dimensions();
  if (in.size() != 4 || taps.size() != 4 || out.size() != 4 || taps[2] != in[3])
    return wrong_shapes("x is (N, H, W, C), the kernel (3, 3, C, D)");
  const Problem p{in[0], in[1], in[2], in[3], taps[3], threads_of(pool)};
  const float *from = x.typed_data(), *weights = kernel.typed_data();
  float* to = y->typed_data();
  if (p.tiles() * p.in * p.out == 0) {
    std::fill(to, to + y->element_count(), 0.f);
    return ffi::Error::Success();
  }
  const WinogradKernels& k = kernels();
  return status(run(pool, p.threads, k.forward_tasks(p), k.forward_scratch(p),
                    [&](int64_t task, float* scratch) {
                      k.forward(p, task, from, weights, to, scratch);
                    }));
}

// The gradient of the kernel (3, 3, C, D) from x (N, H, W, C) and the output's gradient (N, H, W, D)
ffi::Error gradient(ffi::ThreadPool pool, Array x, Array grad, Result kernel) {
  const auto in = x.dimensions(), out = grad.dimensions();
  if (in.size() != 4 || out.size() != 4 || in[0] != out[0] || in[1] != out[1] || in[2] != out[2])
    return wrong_shapes("x is (N, H, W, C), the gradient (N, H, W, D)");
  const Problem p{in[0], in[1], in[2], in[3], out[3], threads_of(pool)};
  const float *from = x.typed_data(), *grads = grad.typed_data();
  float* to = kernel->typed_data();
  const int64_t size = kernel->element_count();
  if (p.tiles() * p.in * p.out == 0) {
    std::fill(to, to + size, 0.f);
    return ffi::Error::Success();
  }
  const WinogradKernels& k = kernels();
  const int64_t parts = k.gradient_parts(p);
  std::unique_ptr<float[]> sums(parts > 1 ? new (std::nothrow) float[parts * size] : nullptr);
  if (parts > 1 && !sums) return status(false);
  float* partial = parts > 1 ? sums.get() : to;
  bool done = run(pool, p.threads, k.gradient_tasks(p), k.gradient_scratch(p),
                  [&](int64_t task, float* scratch) {
                    k.gradient(p, task, from, grads, partial, scratch);
                  });
  if (done && parts > 1)
    done = run(pool, p.threads, p.threads, 1, [&](int64_t task, float*) {
      for (int64_t i = task * size / p.threads; i < (task + 1) * size / p.threads; ++i) {
        float sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += partial[part * size + i];
        to[i] = sum;
      }
    });
  return status(done);
}

}  // namespace
}  // namespace vggjax

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(vggjax_winograd_forward, vggjax::forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<vggjax::Array>()
                                  .Arg<vggjax::Array>()
                                  .Ret<vggjax::Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(vggjax_winograd_gradient, vggjax::gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<vggjax::Array>()
                                  .Arg<vggjax::Array>()
                                  .Ret<vggjax::Array>());

#pragma GCC visibility pop
