// Selects the instruction set of all kernels at run time.

#include "dispatch.h"

#include <atomic>

namespace vggjax {
namespace {

const char* const kNames[] = {"baseline", "avx2", "avx512"};

int64_t num_supported() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
  return __builtin_cpu_supports("avx512f") ? 3 : 2;
#else
  return 1;
#endif
}

std::atomic<int64_t>& selected() {
  static std::atomic<int64_t> index{num_supported() - 1};
  return index;
}

}  // namespace

int64_t instruction_set() { return selected(); }

}  // namespace vggjax

#pragma GCC visibility push(default)

// Returns the name of this machine's instruction set `index`, null after the last one.
extern "C" const char* vggjax_kernels_name(int64_t index) {
  return index >= 0 && index < vggjax::num_supported() ? vggjax::kNames[index] : nullptr;
}

// Returns the name of the instruction set in use.
extern "C" const char* vggjax_kernels_in_use() { return vggjax::kNames[vggjax::selected()]; }

// Selects one of the instruction sets that vggjax_kernels_name returns, for the whole process.
extern "C" void vggjax_use_kernels(int64_t index) { vggjax::selected() = index; }

#pragma GCC visibility pop
