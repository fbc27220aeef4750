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

// The largest of elements as they lie in memory, −∞ of none; nan is left out.
template <typename T>
class Largest {
 public:
  using Acc = typename AccumulateOf<T>::type;

  template <int kCount>
  LPL_DEVICE void add(const T* from) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const Acc other = load(from[k]);
      most_ = other > most_ ? other : most_;
    }
  }
  LPL_DEVICE Acc value() const { return most_; }
  // None is `least`, whose value is given, or more. Of those that are nan alone it may say either.
  LPL_DEVICE bool below(T, Acc least) const { return most_ < least; }

 private:
  Acc most_ = -INFINITY;
};

#if defined(__CUDACC__)
// Two at a time.
template <typename T, typename Pair, unsigned kNone>
class LargestOfPairs {
 public:
  template <int kCount>
  LPL_DEVICE void add(const T* from) {
    static_assert(kCount % 2 == 0, "pairs");
    Pair other;
#pragma unroll
    for (int k = 0; k < kCount; k += 2) {
      memcpy(&other, from + k, sizeof(other));
      most_ = __hmax2(most_, other);
    }
  }
  LPL_DEVICE float value() const { return fmaxf(load(most_.x), load(most_.y)); }
  LPL_DEVICE bool below(T least, float) const { return __hblt2(most_, Pair(least, least)); }

 private:
  LPL_DEVICE static Pair none() {
    const unsigned bits = kNone;
    Pair pair;
    memcpy(&pair, &bits, sizeof(pair));
    return pair;
  }
  Pair most_ = none();
};
template <>
class Largest<BFloat16> : public LargestOfPairs<BFloat16, __nv_bfloat162, 0xff80ff80u> {};
template <>
class Largest<Float16> : public LargestOfPairs<Float16, __half2, 0xfc00fc00u> {};
#endif

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
// All of them, which lie so.
template <int kCount, typename T, typename Acc>
LPL_DEVICE inline void take_line(const T* from, Acc* to) {
  struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Line {
    T value[kCount];
  };
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(from));
#endif
  const Line line = *reinterpret_cast<const Line*>(from);
  load_all<kCount>(to, line.value);
}
template <int kCount, typename T, typename Acc>
LPL_DEVICE inline void put_line(T* to, const Acc* from) {
  struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Line {
    T value[kCount];
  };
  Line line;
  store_all<kCount>(line.value, from);
  *reinterpret_cast<Line*>(to) = line;
}

// All of them, wherever they lie: two in one access, from the first or the second on. Without a
// branch between the two: one within the loop that writes would cost rows that lie alike, too.
template <int kCount, typename T, typename Acc>
LPL_DEVICE inline void put_anywhere(T* to, const Acc* from) {
  if constexpr (kCount < 4 || sizeof(T) > 4) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) store(to[k], from[k]);
  } else {
    const bool odd = reinterpret_cast<uintptr_t>(to) % (2 * sizeof(T)) != 0;
    T* const at = to + odd;
#pragma unroll
    for (int k = 0; k + 2 < kCount; k += 2) {
      const Acc pair[2] = {odd ? from[k + 1] : from[k], odd ? from[k + 2] : from[k + 1]};
      put_line<2>(at + k, pair);
    }
    if (odd) {
      store(to[0], from[0]);
      store(to[kCount - 1], from[kCount - 1]);
    } else {
      put_line<2>(to + kCount - 2, from + kCount - 2);
    }
  }
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
