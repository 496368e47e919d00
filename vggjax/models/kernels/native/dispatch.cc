// Selects the instruction set of all kernels at run time.

#include "dispatch.h"

#include <atomic>

#ifdef __linux__
#include <unistd.h>
#endif

namespace vggjax {
namespace {

const char* const kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

int64_t num_supported() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
  if (!__builtin_cpu_supports("avx512f")) return 2;
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") ? 4 : 3;
#else
  return 1;
#endif
}

// What the machine says of a cache, within bounds: a virtual machine may say nothing, or give all
// of a server's L3 to two cores.
int64_t read_cache_bytes(int level) {
  const int64_t least = level == 2 ? 1 << 18 : 1 << 23, most = level == 2 ? 1 << 21 : 1 << 25;
  int64_t bytes = level == 2 ? 1 << 19 : 1 << 24;
#ifdef _SC_LEVEL2_CACHE_SIZE
  const int64_t read = sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
  if (read > 0) bytes = read;
#endif
  return bytes < least ? least : bytes > most ? most : bytes;
}

std::atomic<int64_t>& selected() {
  static std::atomic<int64_t> index{num_supported() - 1};
  return index;
}

}  // namespace

int64_t instruction_set() { return selected(); }

int64_t cache_bytes(int level) {
  static const int64_t bytes[] = {read_cache_bytes(2), read_cache_bytes(3)};
  return bytes[level - 2];
}

}  // namespace vggjax

#pragma GCC visibility push(default)

// Returns the number of the interface with Python, which library.py compares with its own.
extern "C" int64_t vggjax_interface() { return 2; }

// Returns the name of this machine's instruction set `index`, null after the last one.
extern "C" const char* vggjax_kernels_name(int64_t index) {
  return index >= 0 && index < vggjax::num_supported() ? vggjax::kNames[index] : nullptr;
}

// Returns the name of the instruction set in use.
extern "C" const char* vggjax_kernels_in_use() { return vggjax::kNames[vggjax::selected()]; }

// Selects one of the instruction sets that vggjax_kernels_name returns, for the whole process.
extern "C" void vggjax_use_kernels(int64_t index) { vggjax::selected() = index; }

#pragma GCC visibility pop
