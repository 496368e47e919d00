// The instruction sets that the kernels are compiled for, from the least to the best: 0 baseline,
// 1 AVX2 with FMA, 2 AVX-512, 3 the same with AVX512_BF16. Machines other than x86-64 have the
// baseline alone.
#pragma once

#include <cstdint>

namespace vggjax {

// The index of the instruction set in use: the best of this machine unless vggjax_use_kernels
// selected another one.
int64_t instruction_set();

// The bytes of the cache of a level, 2 or 3, read from the machine, or a usual size.
int64_t cache_bytes(int level);

}  // namespace vggjax
