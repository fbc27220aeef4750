// A row of logits in pieces of up to 16 bytes, each the work of one thread of its team.
//
// Rows may begin anywhere (8,142 and 50,257 columns are no multiple of 16 bytes): pieces lie where
// the memory's own lines of that size lie, and only the first and the last of a row may be short. A
// thread keeps to its pieces, so what it stages on chip nobody else has to wait for.
#pragma once

#include "call.h"

namespace lpl {

// 16 bytes are a thread's widest load; what does much with each column is compiled for fewer of
// them.
template <typename Team, typename T, int kBytes = 16>
class Pieces {
 public:
  using Acc = typename AccumulateOf<T>::type;
  static constexpr int kSize = kBytes / sizeof(T);
  struct alignas(kBytes) Line {
    T value[kSize];
  };

  // Begins to fetch the row's share of this thread, where the team has a stage.
  LPL_DEVICE Pieces(Team& team, const T* row, int c) : team_(team), row_(row), c_(c) {
    phase_ = phase_of(row);
    const int count = (c + phase_ + kSize - 1) / kSize;
    const int each = (count + team.blocks() - 1) / team.blocks();
    begin_ = team.block() * each;
    end_ = count < begin_ + each ? count : begin_ + each;
    stage_ = static_cast<Line*>(team.stage());
    if (!stage_) return;
    for (int k = begin_ + team.place(); k < end_; k += team.places()) {
      Line& to = stage_[k - begin_];
      if (whole(k)) {
        team.template copy_line<kBytes>(&to, line(row_, k));
      } else {
        to = inside_of(k);
      }
    }
    team.wait_for_copies();
  }

  // f(first, u) for every piece of this thread: columns first … first + kSize − 1, of which
  // inside(j) exist; u is 0 beyond.
  template <typename F>
  LPL_DEVICE void visit(F f) const {
    for (int k = begin_ + team_.place(); k < end_; k += team_.places()) {
      const Line here = stage_ ? stage_[k - begin_] : whole(k) ? *line(row_, k) : inside_of(k);
      Acc u[kSize];
#pragma unroll
      for (int v = 0; v < kSize; ++v) u[v] = load(here.value[v]);
      f(first_of(k), u);
    }
  }

  LPL_DEVICE bool inside(int j) const { return unsigned(j) < unsigned(c_); }

  // Writes the columns first … of a row of the same length, which may begin elsewhere.
  template <typename U>
  LPL_DEVICE void write(U* row, int first, const Acc* x) const {
    if (sizeof(U) == sizeof(T) && phase_of(row) == phase_ && first >= 0 && first + kSize <= c_) {
      struct alignas(kBytes) {
        U value[kSize];
      } values;
#pragma unroll
      for (int v = 0; v < kSize; ++v) store(values.value[v], x[v]);
      *reinterpret_cast<decltype(values)*>(row + first) = values;
      return;
    }
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (inside(first + v)) store(row[first + v], x[v]);
  }

 private:
  // Elements between the line in which a row begins and its first.
  template <typename U>
  LPL_DEVICE static int phase_of(const U* row) {
    return int(reinterpret_cast<uintptr_t>(row) % kBytes / sizeof(U));
  }
  LPL_DEVICE int first_of(int k) const { return k * kSize - phase_; }
  LPL_DEVICE bool whole(int k) const { return first_of(k) >= 0 && first_of(k) + kSize <= c_; }
  LPL_DEVICE const Line* line(const T* row, int k) const {
    return reinterpret_cast<const Line*>(row + first_of(k));
  }
  // A piece that is not whole, with 0 where there is no column: on chip as well, where the row of
  // before has left its own.
  LPL_DEVICE Line inside_of(int k) const {
    Line line{};
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (inside(first_of(k) + v)) line.value[v] = row_[first_of(k) + v];
    return line;
  }

  Team& team_;
  const T* row_;
  const int c_;
  int phase_, begin_, end_;
  Line* stage_;
};

}  // namespace lpl
