// Multi-label targets of any dtype: read as numbers, or only the few that are not 0 listed.
#pragma once

#include <algorithm>
#include <type_traits>

#include "binary_block.h"

namespace lpl {
namespace {

template <typename Y>
inline Y load_label(Y label) {
  return label;
}
inline float load_label(BFloat16 label) {
  return load(label);
}
inline float load_label(Float16 label) {
  return load(label);
}

// Labels of a block as Acc, nan where they are missing; whether all that are there are 0 or 1.
template <bool Missing, typename Y, typename Acc>
__attribute__((noinline)) bool read_block(const Y* label, Acc ignored, Acc* y, int32_t size) {
  using Bits = typename std::conditional<sizeof(Acc) == 8, uint64_t, uint32_t>::type;
  Bits soft = 0;
#pragma omp simd reduction(| : soft)
  for (int32_t j = 0; j < size; ++j) {
    Acc value = Acc(load_label(label[j]));
    if (Missing) value = value == ignored ? Acc(NAN) : value;
    y[j] = value;
    const Acc off = value * value - value;  // +0 of 0 and 1 alone
    soft |= bit_cast<Bits>(Missing && value != value ? Acc(0) : off);
  }
  return soft == 0;
}

// An unsigned number of so many bytes, as which anything may be read.
template <size_t Size>
struct BitsOf;
template <>
struct BitsOf<1> {
  typedef uint8_t type __attribute__((may_alias));
};
template <>
struct BitsOf<2> {
  typedef uint16_t type __attribute__((may_alias));
};
template <>
struct BitsOf<4> {
  typedef uint32_t type __attribute__((may_alias));
};
template <>
struct BitsOf<8> {
  typedef uint64_t type __attribute__((may_alias));
};

// Calls `found` with the place of every label whose bits are not all 0, in order, until it returns
// false; whether it never did.
template <typename Y, typename Found>
inline bool for_each_set(const Y* label, i64 size, Found found) {
  using Bits = typename BitsOf<sizeof(Y)>::type;
  const auto* bits = reinterpret_cast<const Bits*>(label);
  constexpr i64 kMask = 32, kChunk = 2 * kMask;
  i64 lo = 0;
  for (; lo + kChunk <= size; lo += kChunk) {
    Bits any = 0;
#pragma omp simd reduction(| : any)
    for (i64 k = lo; k < lo + kChunk; ++k) any |= bits[k];
    if (!any) continue;
    for (i64 half = lo; half < lo + kChunk; half += kMask) {
      uint32_t set = 0;
#pragma omp simd reduction(| : set)
      for (int32_t k = 0; k < kMask; ++k) set |= uint32_t(bits[half + k] != 0) << k;
      for (; set; set &= set - 1)
        if (!found(half + __builtin_ctz(set))) return false;
    }
  }
  for (; lo < size; ++lo)
    if (bits[lo] && !found(lo)) return false;
  return true;
}

// The labels of a problem; Acc is the dtype of its sums.
template <typename Acc>
class Labels {
 public:
  explicit Labels(const BinaryProblem& problem) : p_(problem) {}

  // Those from lo to lo + size of row i into y; whether they are hard.
  bool read(i64 i, i64 lo, i64 size, Acc* y) const {
    return as_type([&](auto type) {
      const auto* label = row<decltype(type)>(i) + lo;
      const Acc ignored = Acc(p_.ignored);
      return p_.missing ? read_block<true>(label, ignored, y, int32_t(size))
                        : read_block<false>(label, ignored, y, int32_t(size));
    });
  }

  // Row by row the entries of rows from i, classes lo to lo + size, if all labels are hard and
  // about one in `few` at most is not 0; whether it is so. Logits are left to the caller.
  bool list(i64 i, i64 rows, i64 lo, i64 size, i64 few, Vector<Entry<Acc>>& entries) const {
    constexpr i64 kFirst = 8;  // are not many yet
    entries.clear();
    if (p_.missing && p_.ignored == 0) return false;
    // rows that follow one another are one run of labels
    const bool together = size == p_.target_stride;
    const i64 runs = together ? 1 : rows, length = together ? rows * size : size;
    return as_type([&](auto type) {
      for (i64 run = 0; run < runs; ++run) {
        const auto* label = row<decltype(type)>(i + run) + lo;
        if (run + kAhead < runs) prefetch(label + kAhead * p_.target_stride, length);
        i64 r = i + run, begin = 0;
        const bool good = for_each_set(label, length, [&](i64 j) {
          Acc y = Acc(load_label(label[j]));
          if (y == 0) return true;
          if (p_.missing && y == Acc(p_.ignored)) y = NAN;
          if (y != 1 && !(p_.missing && y != y)) return false;
          for (; j >= begin + size; begin += size) ++r;
          entries.push_back({r, lo + j - begin, y, 0});
          return (i64(entries.size()) - kFirst) * few <= run * size + j;
        });
        if (!good) return false;
      }
      return true;
    });
  }

 private:
  template <typename Y>
  const Y* row(i64 i) const {
    return static_cast<const Y*>(p_.target) + i * p_.target_stride;
  }

  template <typename Visit>
  bool as_type(Visit visit) const {
    switch (p_.target_type) {
      case LabelType::f64: return visit(double{});
      case LabelType::f32: return visit(float{});
      case LabelType::bf16: return visit(BFloat16{});
      case LabelType::f16: return visit(Float16{});
      case LabelType::u8: return visit(uint8_t{});
      case LabelType::i8: return visit(int8_t{});
      case LabelType::i16: return visit(int16_t{});
      case LabelType::i32: return visit(int32_t{});
      default: return visit(int64_t{});
    }
  }

  const BinaryProblem& p_;
};

}  // namespace
}  // namespace lpl
