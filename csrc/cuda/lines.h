// Elements that lie beside each other in memory, loaded and stored together.
#pragma once

#include <cstring>

#include "call.h"

namespace lpl {

// Two at once, where that is fewer instructions.
template <typename T, typename Acc>
LPL_DEVICE inline void load_pair(Acc* to, const T* from) {
  to[0] = load(from[0]);
  to[1] = load(from[1]);
}
template <typename T, typename Acc>
LPL_DEVICE inline void store_pair(T* to, const Acc* from) {
  store(to[0], from[0]);
  store(to[1], from[1]);
}
#if defined(__CUDACC__)
template <>
LPL_DEVICE inline void load_pair(float* to, const BFloat16* from) {
  unsigned word;
  memcpy(&word, from, sizeof(word));
  to[0] = __uint_as_float(word << 16);
  to[1] = __uint_as_float(word & 0xffff0000u);
}
template <>
LPL_DEVICE inline void store_pair(BFloat16* to, const float* from) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(from[0], from[1]);
  memcpy(to, &pair, sizeof(pair));
}
template <>
LPL_DEVICE inline void store_pair(Float16* to, const float* from) {
  const __half2 pair = __floats2half2_rn(from[0], from[1]);
  memcpy(to, &pair, sizeof(pair));
}
#endif

template <int kCount, typename T, typename Acc>
LPL_DEVICE inline void load_all(Acc* to, const T* from) {
#pragma unroll
  for (int k = 0; k + 1 < kCount; k += 2) load_pair(to + k, from + k);
  if (kCount % 2) to[kCount - 1] = load(from[kCount - 1]);
}
template <int kCount, typename T, typename Acc>
LPL_DEVICE inline void store_all(T* to, const Acc* from) {
#pragma unroll
  for (int k = 0; k + 1 < kCount; k += 2) store_pair(to + k, from + k);
  if (kCount % 2) store(to[kCount - 1], from[kCount - 1]);
}

// The largest of such elements, nan left out unless it is the first of all.
template <int kCount, typename T>
LPL_DEVICE inline typename AccumulateOf<T>::type largest_of(const T* from) {
#if defined(__CUDACC__)
  if constexpr (std::is_same<T, BFloat16>::value && kCount % 2 == 0) {
    __nv_bfloat162 most, other;  // two at a time
    memcpy(&most, from, sizeof(most));
#pragma unroll
    for (int k = 2; k < kCount; k += 2) {
      memcpy(&other, from + k, sizeof(other));
      most = __hmax2(most, other);
    }
    return fmaxf(__low2float(most), __high2float(most));
  }
  if constexpr (std::is_same<T, Float16>::value && kCount % 2 == 0) {
    __half2 most, other;
    memcpy(&most, from, sizeof(most));
#pragma unroll
    for (int k = 2; k < kCount; k += 2) {
      memcpy(&other, from + k, sizeof(other));
      most = __hmax2(most, other);
    }
    return fmaxf(__low2float(most), __high2float(most));
  }
#endif
  auto most = load(from[0]);
#pragma unroll
  for (int k = 1; k < kCount; ++k) {
    const auto other = load(from[k]);
    most = other > most ? other : most;
  }
  return most;
}

// The first `count` of so many elements, in one access where they lie as it asks for.
template <int kCount, typename T>
LPL_DEVICE inline bool together(const T* place, int count) {
  return count >= kCount && reinterpret_cast<uintptr_t>(place) % (kCount * sizeof(T)) == 0;
}
template <int kCount, typename T, typename Acc>
LPL_DEVICE inline void take_beside(const T* from, int count, Acc* to) {
  struct alignas(kCount * sizeof(T)) {
    T value[kCount];
  } line;
  if (together<kCount>(from, count)) {
    line = *reinterpret_cast<const decltype(line)*>(from);
    return load_all<kCount>(to, line.value);
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) to[k] = k < count ? load(from[k]) : Acc(0);
}
template <int kCount, typename T, typename Acc>
LPL_DEVICE inline void put_beside(T* to, int count, const Acc* from) {
  struct alignas(kCount * sizeof(T)) {
    T value[kCount];
  } line;
  if (together<kCount>(to, count)) {
    store_all<kCount>(line.value, from);
    *reinterpret_cast<decltype(line)*>(to) = line;
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k)
    if (k < count) store(to[k], from[k]);
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
  } else {
    return from;
  }
#else
  return from;
#endif
}
template <typename Line>
LPL_DEVICE inline void write_once(Line* to, const Line& line) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Line) == 16) {
    uint4 words;
    memcpy(&words, &line, sizeof(line));
    __stcs(reinterpret_cast<uint4*>(to), words);
  } else {
    *to = line;
  }
#else
  *to = line;
#endif
}

}  // namespace lpl
