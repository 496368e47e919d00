// The 3x3 convolution as XLA custom calls, which run the tasks on XLA's thread pool. Maps are
// float32 or bfloat16, kernels float32.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "dispatch.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace vggjax {
namespace {

constexpr int64_t kFewChannels = 8;  // the transforms cost more than the products that they save
// Up to 8x8 px products stay in float32: they cost little, and those of the last block have the
// largest part in the error of bfloat16 products.
constexpr int64_t kFewTiles = 4;

const WinogradKernels& kernels(const Problem& p) {
  static const WinogradKernels* const table[] = {
      &baseline_winograd,
#ifdef __x86_64__
      &avx2_winograd, &avx512_winograd, &avx512_winograd,
#endif
  };
#ifdef __x86_64__
  const bool small = p.tiles_y() * p.tiles_x() <= kFewTiles;
  if (p.from_bfloat16 && !small && instruction_set() == 3) return avx512_bf16_winograd;
#endif
  return *table[instruction_set()];
}

constexpr int64_t kHugePage = 1 << 21;

// Asks for huge pages before memory is first written: XLA allocates the large maps of each call
// anew, and 4 kB at a time the kernel's zeroing takes longer than a thin layer.
void use_huge_pages(void* at, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(at) + kHugePage - 1) & -kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(at) + bytes) & -kHugePage;
  if (end >= begin + kHugePage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Scratch memory, kept between calls: new pages for 8 MB cost as much as a small layer. There are as
// many pieces as threads used at once, however many threads XLA has.
class Scratch {
 public:
  explicit Scratch(int64_t floats) {
    if (floats == 0) return;
    {
      std::lock_guard<std::mutex> lock(mutex());
      if (!free_pieces().empty()) {
        piece_ = free_pieces().back();
        free_pieces().pop_back();
      }
    }
    if (piece_.floats >= floats) return;
    std::free(piece_.at);
    // Whole huge pages: the 36 points of a transform are as many pages apart.
    const int64_t page = floats * 4 < kHugePage ? 64 : kHugePage;
    const int64_t bytes = (floats * 4 + page - 1) / page * page;
    piece_.at = static_cast<float*>(std::aligned_alloc(page, bytes));
    if (piece_.at) use_huge_pages(piece_.at, bytes);
    piece_.floats = piece_.at ? floats : 0;
  }
  ~Scratch() {
    if (!piece_.at) return;
    std::lock_guard<std::mutex> lock(mutex());
    free_pieces().push_back(piece_);
  }
  Scratch(const Scratch&) = delete;
  float* at() const { return piece_.at; }

 private:
  struct Piece {
    float* at = nullptr;
    int64_t floats = 0;
  };
  // Never destroyed: threads may work while the process ends.
  static std::mutex& mutex() {
    static auto* const mutex = new std::mutex;
    return *mutex;
  }
  static std::vector<Piece>& free_pieces() {
    static auto* const pieces = new std::vector<Piece>;
    return *pieces;
  }
  Piece piece_;
};

// Calls work(task, scratch) for each task, on the caller's thread and on the pool's free threads.
// The caller waits only for tasks that have begun, not for helpers: all threads of the pool may be
// callers that wait. A helper that starts late finds no task and accesses only the shared state.
template <typename Work>
bool run(ffi::ThreadPool& pool, int64_t threads, Phase phase, const Work& work) {
  struct State {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
  };
  auto state = std::make_shared<State>();
  const int64_t tasks = phase.tasks;
  auto help = [state, phase, &work] {
    int64_t mine = 0, task = state->next.fetch_add(1);
    if (task >= phase.tasks) return;
    {
      const Scratch scratch(phase.scratch);
      if (phase.scratch > 0 && !scratch.at()) state->failed = true;
      for (; task < phase.tasks; task = state->next.fetch_add(1), ++mine)
        if (!state->failed) work(task, scratch.at());
    }
    std::lock_guard<std::mutex> lock(state->mutex);
    state->done += mine;
    if (state->done == phase.tasks) state->all_done.notify_all();
  };
  for (int64_t i = 1; i < threads && i < tasks; ++i) pool.Schedule([help] { help(); });
  help();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == tasks; });
  return !state->failed;
}

using Array = ffi::Buffer<ffi::F32>;
using Map = ffi::AnyBuffer;  // of float or bfloat16

bool is_bfloat16(Map map) { return map.element_type() == ffi::BF16; }
bool is_map(Map map) { return is_bfloat16(map) || map.element_type() == ffi::F32; }

ffi::Error status(bool done) {
  return done ? ffi::Error::Success()
              : ffi::Error(ffi::ErrorCode::kResourceExhausted, "winograd: out of memory");
}

ffi::Error wrong_shapes(const char* what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, std::string("winograd: ") + what);
}

int64_t threads_of(ffi::ThreadPool& pool) { return pool.num_threads() > 1 ? pool.num_threads() : 1; }

constexpr int64_t kSquare = 32;  // floats of two cache lines

// to (3, 3, D, C) = a kernel (3, 3, C, D), rotated by 180 degrees, in squares that use whole cache
// lines: XLA's transposition takes several times as long.
bool rotate(ffi::ThreadPool& pool, int64_t threads, const float* kernel, int64_t in, int64_t out,
            float* to) {
  const int64_t strips = (in + kSquare - 1) / kSquare;
  return run(pool, threads, {9 * strips, 0}, [&](int64_t task, float*) {
    const int64_t tap = task / strips, first = task % strips * kSquare;
    const float* from = kernel + (8 - tap) * in * out;
    float* rotated = to + tap * in * out;
    const int64_t last = std::min(in, first + kSquare);
    for (int64_t column = 0; column < out; column += kSquare)
      for (int64_t d = column; d < std::min(out, column + kSquare); ++d)
        for (int64_t c = first; c < last; ++c) rotated[d * in + c] = from[c * out + d];
  });
}

// y (N, H, W, D) = x (N, H, W, C) * kernel (3, 3, C, D); with a bias (D) also a ReLU, and with
// `pool` the largest of 2x2 pixels. Few input channels are convolved directly. With `rotated` the
// kernel is (3, 3, D, C), to be rotated by 180 degrees.
ffi::Error forward(ffi::ThreadPool pool, Map x, Array kernel, Array bias, ffi::Result<Map> y,
                   bool pooled, bool rotated) {
  const auto in = x.dimensions(), taps = kernel.dimensions(), out = y->dimensions();
  if (in.size() != 4 || taps.size() != 4 || out.size() != 4 || taps[rotated ? 3 : 2] != in[3])
    return wrong_shapes("x is (N, H, W, C), the kernel (3, 3, C, D), or rotated (3, 3, D, C)");
  if (!is_map(x) || !is_map(*y)) return wrong_shapes("x and y are float32 or bfloat16");
  const int64_t biases = bias.element_count(), outputs = taps[rotated ? 2 : 3];
  if (biases != 0 && biases != outputs) return wrong_shapes("the bias is (D) or (0)");
  const float* offsets = biases ? bias.typed_data() : nullptr;
  const Problem p{in[0],          in[1],           in[2],   in[3], outputs, threads_of(pool),
                  is_bfloat16(x), is_bfloat16(*y), offsets, pooled};
  const void* from = x.untyped_data();
  const float* weights = kernel.typed_data();
  void* to = y->untyped_data();
  if (y->element_count() == 0) return ffi::Error::Success();
  if (p.in == 0) return wrong_shapes("no channels");
  const Scratch turned(rotated ? kernel.element_count() : 0);
  if (rotated) {
    if (!turned.at() || !rotate(pool, p.threads, weights, p.out, p.in, turned.at()))
      return status(false);
    weights = turned.at();
  }
  use_huge_pages(to, y->size_bytes());
  const WinogradKernels& k = kernels(p);
  if (p.in < kFewChannels && !p.pool)
    return status(run(pool, p.threads, k.direct_phase(p), [&](int64_t task, float* scratch) {
      k.direct(p, task, from, weights, to, scratch);
    }));
  const Scratch shared(k.shared(p));
  bool done = shared.at() != nullptr;
  for (int64_t block = 0; done && block < k.blocks(p); ++block)
    done = run(pool, p.threads, k.transform_phase(p, block),
               [&](int64_t task, float*) { k.transform(p, block, task, from, shared.at()); }) &&
           run(pool, p.threads, k.multiply_phase(p, block), [&](int64_t task, float* scratch) {
             k.multiply(p, block, task, shared.at(), weights, to, scratch);
           });
  return status(done);
}

// The gradient of the kernel (3, 3, C, D) from x (N, H, W, C) and the output's gradient (N, H, W, D)
ffi::Error gradient(ffi::ThreadPool pool, Map x, Map grad, ffi::Result<Array> kernel) {
  const auto in = x.dimensions(), out = grad.dimensions();
  if (in.size() != 4 || out.size() != 4 || in[0] != out[0] || in[1] != out[1] || in[2] != out[2])
    return wrong_shapes("x is (N, H, W, C), the gradient (N, H, W, D)");
  if (!is_map(x) || x.element_type() != grad.element_type())
    return wrong_shapes("both maps are float32 or both bfloat16");
  const Problem p{in[0],          in[1],             in[2],   in[3], out[3], threads_of(pool),
                  is_bfloat16(x), is_bfloat16(grad), nullptr, false};
  const void *from = x.untyped_data(), *grads = grad.untyped_data();
  float* to = kernel->typed_data();
  const int64_t size = kernel->element_count();
  if (p.tiles() * p.in * p.out == 0) {
    std::fill(to, to + size, 0.f);
    return ffi::Error::Success();
  }
  const WinogradKernels& k = kernels(p);
  const int64_t parts = k.gradient_parts(p);
  std::unique_ptr<float[]> sums(parts > 1 ? new (std::nothrow) float[parts * size] : nullptr);
  if (parts > 1 && !sums) return status(false);
  float* partial = parts > 1 ? sums.get() : to;
  bool done = run(pool, p.threads, k.gradient_phase(p), [&](int64_t task, float* scratch) {
    k.gradient(p, task, from, grads, partial, scratch);
  });
  if (done && parts > 1)
    done = run(pool, p.threads, {p.threads, 0}, [&](int64_t task, float*) {
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(vggjax_conv3x3, vggjax::forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<vggjax::Map>()
                                  .Arg<vggjax::Array>()
                                  .Arg<vggjax::Array>()
                                  .Ret<vggjax::Map>()
                                  .Attr<bool>("pool")
                                  .Attr<bool>("rotated"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(vggjax_conv3x3_gradient, vggjax::gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<vggjax::Map>()
                                  .Arg<vggjax::Map>()
                                  .Ret<vggjax::Array>());

#pragma GCC visibility pop
