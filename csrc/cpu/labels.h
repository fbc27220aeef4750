// Multi-label targets of any dtype: read as numbers, or only the few that are not 0 listed.
#pragma once

#include <type_traits>

#include "../binary.h"
#include "simd.h"

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

// Calls `found` with the place of every 8 bytes (the last may be fewer) that are not all 0, until
// it returns false; whether it never did.
template <typename Found>
inline bool for_each_word(const char* bytes, i64 size, Found found) {
  constexpr i64 kWord = 8, kChunk = 32 * kWord;
  const auto word = [&](i64 at) {
    uint64_t bits = 0;
    std::memcpy(&bits, bytes + at, at + kWord <= size ? kWord : size - at);
    return bits;
  };
  for (i64 lo = 0; lo < size; lo += kChunk) {
    if (lo + kChunk <= size) {
      uint64_t words[kChunk / kWord], any = 0;
      std::memcpy(words, bytes + lo, kChunk);
#pragma omp simd reduction(| : any)
      for (int k = 0; k < kChunk / kWord; ++k) any |= words[k];
      if (!any) continue;
    }
    for (i64 at = lo; at < lo + kChunk && at < size; at += kWord)
      if (word(at) && !found(at)) return false;
  }
  return true;
}

// The labels of a problem; Acc is the dtype of its sums.
template <typename Acc>
class Labels {
 public:
  // A label that is not 0: 1, or nan where it is missing.
  struct Entry {
    i64 row, place;
    Acc label;
  };

  explicit Labels(const BinaryProblem& problem) : p_(problem) {}

  // Those from lo to lo + size of row i into y; whether they are hard.
  bool read(i64 i, i64 lo, i64 size, Acc* y) const {
    switch (p_.target_type) {
      case LabelType::f64: return read_as<double>(i, lo, size, y);
      case LabelType::f32: return read_as<float>(i, lo, size, y);
      case LabelType::bf16: return read_as<BFloat16>(i, lo, size, y);
      case LabelType::f16: return read_as<Float16>(i, lo, size, y);
      case LabelType::u8: return read_as<uint8_t>(i, lo, size, y);
      case LabelType::i8: return read_as<int8_t>(i, lo, size, y);
      case LabelType::i16: return read_as<int16_t>(i, lo, size, y);
      case LabelType::i32: return read_as<int32_t>(i, lo, size, y);
      default: return read_as<int64_t>(i, lo, size, y);
    }
  }

  // Row by row the entries of rows from i, classes lo to lo + size, if all labels are hard and few
  // are not 0; whether it is so.
  bool list(i64 i, i64 rows, i64 lo, i64 size, Vector<Entry>& entries) const {
    constexpr i64 kFew = 16;  // labels for each entry, and entries that are few anyhow
    entries.clear();
    if (p_.missing && p_.ignored == 0) return false;
    const i64 bytes = label_bytes();
    for (i64 r = 0; r < rows; ++r) {
      const char* row = static_cast<const char*>(p_.target) + ((i + r) * p_.target_stride + lo) * bytes;
      const bool good = for_each_word(row, size * bytes, [&](i64 at) {
        for (i64 j = at / bytes; j < std::min(size, (at + 8) / bytes); ++j) {
          Acc y;
          if (!read(i + r, lo + j, 1, &y)) return false;
          if (y != 0) entries.push_back({i + r, lo + j, y});
        }
        return (i64(entries.size()) - kFew) * kFew <= r * size + at / bytes;
      });
      if (!good) return false;
    }
    return true;
  }

 private:
  i64 label_bytes() const {
    switch (p_.target_type) {
      case LabelType::f64:
      case LabelType::i64: return 8;
      case LabelType::f32:
      case LabelType::i32: return 4;
      case LabelType::u8:
      case LabelType::i8: return 1;
      default: return 2;
    }
  }

  template <typename Y>
  bool read_as(i64 i, i64 lo, i64 size, Acc* y) const {
    const Y* label = static_cast<const Y*>(p_.target) + i * p_.target_stride + lo;
    const Acc ignored = Acc(p_.ignored);
    return p_.missing ? read_block<true>(label, ignored, y, int32_t(size))
                      : read_block<false>(label, ignored, y, int32_t(size));
  }

  const BinaryProblem& p_;
};

}  // namespace
}  // namespace lpl
