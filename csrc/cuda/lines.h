// Elements that lie beside each other in memory, loaded and stored together.
#pragma once

#include <cstring>
#include <type_traits>

#include "call.h"

namespace lpl {

template <int kCount, typename T, typename Acc>
LPL_DEVICE inline void load_all(Acc* to, const T* from) {
#if defined(__CUDACC__)
  if constexpr (std::is_same<T, BFloat16>::value && kCount % 2 == 0) {
    // one instruction each, where the compiler takes two for the upper half of a word
#pragma unroll
    for (int k = 0; k < kCount; k += 2) {
      unsigned word;
      memcpy(&word, from + k, sizeof(word));
      to[k] = __uint_as_float(word << 16);
      to[k + 1] = __uint_as_float(word & 0xffff0000u);
    }
    return;
  }
#endif
#pragma unroll
  for (int k = 0; k < kCount; ++k) to[k] = load(from[k]);
}
template <int kCount, typename T, typename Acc>
LPL_DEVICE inline void store_all(T* to, const Acc* from) {
#if defined(__CUDACC__)
  if constexpr (std::is_same<T, BFloat16>::value && kCount % 2 == 0) {
#pragma unroll
    for (int k = 0; k < kCount; k += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(from[k], from[k + 1]);
      memcpy(to + k, &pair, sizeof(pair));
    }
    return;
  }
  if constexpr (std::is_same<T, Float16>::value && kCount % 2 == 0) {
#pragma unroll
    for (int k = 0; k < kCount; k += 2) {
      const __half2 pair = __floats2half2_rn(from[k], from[k + 1]);
      memcpy(to + k, &pair, sizeof(pair));
    }
    return;
  }
#endif
#pragma unroll
  for (int k = 0; k < kCount; ++k) store(to[k], from[k]);
}

// A line of memory that is read, or written, this once: it takes no place from what is needed
// again.
template <typename Line>
LPL_DEVICE inline Line read_once(const Line& from) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Line) == 16) {
    uint4 words;
    asm("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
        : "l"(&from));
    Line line;
    memcpy(&line, &words, sizeof(line));
    return line;
  }
#endif
  return from;
}
template <typename Line>
LPL_DEVICE inline void write_once(Line* to, const Line& line) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Line) == 16) {
    uint4 words;
    memcpy(&words, &line, sizeof(line));
    __stcs(reinterpret_cast<uint4*>(to), words);
    return;
  }
#endif
  *to = line;
}

}  // namespace lpl
