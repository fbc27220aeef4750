// A row of logits in pieces of up to 16 bytes, each the work of one thread of its team.
//
// Rows may begin anywhere (8,142 and 50,257 columns are no multiple of 16 bytes): pieces lie where
// the memory's own lines of that size lie, and only the first and the last of a row may be short. A
// thread keeps to its pieces, so what it stages on chip nobody else has to wait for; what is copied
// in bulk arrives in parts.
#pragma once

#include "lines.h"

namespace lpl {

// All columns of a piece exist, or perhaps some: the two ways in which a visitor is compiled.
struct Whole {
  static constexpr bool value = true;
};
struct Short {
  static constexpr bool value = false;
};

// 16 bytes are a thread's widest load; what does much with each column is compiled for fewer of
// them. Where nothing is read twice nothing is staged.
template <typename Team, typename T, int kBytes = 16, bool kStages = true>
class Pieces {
 public:
  using Acc = typename AccumulateOf<T>::type;
  static constexpr int kSize = kBytes / sizeof(T);
  struct alignas(kBytes) Line {
    T value[kSize];
  };

  // Begins to fetch the row's share of this team's block, where it has a stage.
  LPL_DEVICE Pieces(Team& team, const T* row, int c) : team_(team), row_(row), c_(c) {
    phase_ = phase_of(row);
    first_ = phase_ / kSize;
    count_ = (c + phase_ + kSize - 1) / kSize;
    whole_from_ = first_ + (phase_ % kSize > 0);
    whole_to_ = (c + phase_) / kSize;
    // a block's share begins with a line of memory
    const int each =
        multiple(team.blocks() == 1 ? count_ : (count_ - 1) / team.blocks() + 1, kPerLine);
    begin_ = team.block() * each;
    end_ = count_ < begin_ + each ? count_ : begin_ + each;
    stage_ = kStages ? static_cast<Line*>(team.stage()) : nullptr;
    part_ = end_ - begin_;
    LPL_USUALLY(!kStages || stage_);
    if (stage_) fetch();
  }

  Pieces(const Pieces&) = delete;
  // no block may end before what it has asked for has arrived
  LPL_DEVICE ~Pieces() { arrive(kParts); }

  // f(first, u, whole) for every piece of this thread: columns first … first + kSize − 1, all of
  // which exist if `whole` is Whole, else those that are inside(j); u is 0 beyond. Who takes a
  // `const Line&` for u has the logits as they lie in memory.
  template <typename F>
  LPL_DEVICE void visit(F f) const {
    if (stage_) arrive(kParts);
    int k = begin_ + team_.place();
    whole_ones<false>(k, end_, f);
    short_ones(f);
  }

  // The same for the first visit: what has arrived is visited while the rest is on its way.
  template <typename F>
  LPL_DEVICE void visit_arriving(F f) const {
    int k = begin_ + team_.place();
    const int parts = stage_ ? kParts : 1;
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      if (stage_) arrive(part + 1);
      const int last = begin_ + (part + 1) * part_;
      whole_ones<true>(k, part + 1 == parts || last > end_ ? end_ : last, f);
    }
    short_ones(f);
  }

  // The same for the pieces whose turn in visit(), of 32 that follow one another, is in a mask.
  template <typename F>
  LPL_DEVICE void visit_again(unsigned turns, F f) const {
    if (turns == 0) return;
    const int step = team_.places();
    int k = begin_ + team_.place();
    while (k < whole_from_) k += step;
    const int last = end_ < whole_to_ ? end_ : whole_to_;
    int turn = k < last ? (last - k + step - 1) / step : 0;  // of the first that is short
    for (unsigned left = turns; left != 0; left &= left - 1) {
#pragma unroll 1
      for (int at = lowest(left); at < turn; at += 32) {
        const int piece = k + at * step;
        show(piece, stage_ ? stage_[piece - begin_] : *line(piece), f, Whole());
      }
    }
    each_short([&](int piece) {
      if (turns >> (turn++ & 31) & 1)
        show(piece, stage_ ? stage_[piece - begin_] : inside_of(piece), f, Short());
    });
  }

  // f(first, whole) for every piece of this thread, of which nothing is loaded.
  template <typename F>
  LPL_DEVICE void places(F f) const {
    int k = begin_ + team_.place();
    while (k < whole_from_) k += team_.places();
    for (; k < end_ && k < whole_to_; k += team_.places()) f(first_of(k), Whole());
    each_short([&](int short_one) { f(first_of(short_one), Short()); });
  }

  // The same piece of another row, which begins at the same place in a line of memory.
  LPL_DEVICE void take(const T* row, int first, Whole, Acc* u) const {
    load_all<kSize>(u, read_once(*reinterpret_cast<const Line*>(row + first)).value);
  }
  LPL_DEVICE void take(const T* row, int first, Short, Acc* u) const {
#pragma unroll
    for (int v = 0; v < kSize; ++v) u[v] = inside(first + v) ? load(row[first + v]) : Acc(0);
  }

  LPL_DEVICE bool inside(int j) const { return unsigned(j) < unsigned(c_); }
  // Whether a column is of the block's share.
  LPL_DEVICE bool has(int j) const {
    const int k = (j + phase_) / kSize;
    return inside(j) && k >= begin_ && k < end_;
  }

  // The columns first … of another row, which begins at the same place in a line of memory.
  template <typename U>
  LPL_DEVICE void put(U* row, int first, const Acc* x, Whole) const {
    struct alignas(kBytes) {
      U value[kSize];
    } line;
    store_all<kSize>(line.value, x);
    write_once(reinterpret_cast<decltype(line)*>(row + first), line);
  }
  template <typename U>
  LPL_DEVICE void put(U* row, int first, const Acc* x, Short) const {
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (inside(first + v)) store(row[first + v], x[v]);
  }

  // Whether it is in a piece of this thread.
  LPL_DEVICE bool owns(int j) const { return inside(j) && mine((j + phase_) / kSize); }

  // A row of the same length to write to, which may begin elsewhere.
  template <typename U>
  class Target {
   public:
    LPL_DEVICE Target(const Pieces& pieces, U* row)
        : row_(row),
          pieces_(pieces),
          aligned_(sizeof(U) == sizeof(T) && phase_of(row) == pieces.phase_) {}

    // The columns first … of it.
    template <typename Kind>
    LPL_DEVICE void write(int first, const Acc* x, Kind) const {
      LPL_USUALLY(aligned_);
      if constexpr (Kind::value) {
        if (aligned_) return pieces_.put(row_, first, x, Whole());
        put_anywhere<kSize>(row_ + first, x);
      } else {
#pragma unroll
        for (int v = 0; v < kSize; ++v)
          if (pieces_.inside(first + v)) store(row_[first + v], x[v]);
      }
    }

   private:
    U* row_;
    const Pieces& pieces_;
    const bool aligned_;
  };

  template <typename U>
  LPL_DEVICE Target<U> target(U* row) const {
    return Target<U>(*this, row);
  }

 private:
  static constexpr int kParts = Team::kParts;  // that a bulk copy comes in
  static constexpr int kPerLine = 16 / kBytes;
  static constexpr int kLeast = Team::kLeastPart;  // pieces of a thread in a part

  static LPL_DEVICE int lowest(unsigned bits) {
#if defined(__CUDA_ARCH__)
    return __ffs(int(bits)) - 1;
#else
    return __builtin_ctz(bits);
#endif
  }

  // The next multiple of a power of two.
  static LPL_DEVICE int multiple(int x, int of) { return (x + of - 1) & -of; }

  // Elements between the line in which a row begins and its first.
  template <typename U>
  LPL_DEVICE static int phase_of(const U* row) {
    return int(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(U));
  }
  LPL_DEVICE int first_of(int k) const { return k * kSize - phase_; }
  LPL_DEVICE bool whole(int k) const { return first_of(k) >= 0 && first_of(k) + kSize <= c_; }
  LPL_DEVICE const Line* line(int k) const {
    return reinterpret_cast<const Line*>(row_ + first_of(k));
  }
  LPL_DEVICE bool mine(int k) const {
    return k >= begin_ && k < end_ && team_.place_of(k - begin_) == team_.place();
  }

  // Whole pieces of this thread from k on, which moves, and before `last`.
  template <bool kArriving, typename F>
  LPL_DEVICE void whole_ones(int& k, int last, F& f) const {
    const int step = team_.places();
    while (k < whole_from_) k += step;
    if (last > whole_to_) last = whole_to_;
    // all loads of a batch before what is made of them
    if (kStages && stage_) {
      batches<2>(k, last, f, [&](int at) { return stage_[at - begin_]; });
    } else if (!kStages || kArriving) {
      batches<4>(k, last, f, [&](int at) { return read_once(*line(at)); });
    }
    LPL_USUALLY(k >= last);  // no piece is left beside batches of them
    for (; k < last; k += step)
      show(k, stage_ ? stage_[k - begin_] : read_once(*line(k)), f, Whole());
  }

  template <int kBatch, typename F, typename Read>
  LPL_DEVICE void batches(int& k, int last, F& f, Read read) const {
    if (kBytes < 16) return;
    const int step = team_.places();
    for (; k + (kBatch - 1) * step < last; k += kBatch * step) {
      Line here[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) here[b] = read(k + b * step);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) show(k + b * step, here[b], f, Whole());
    }
  }

  template <typename F, typename Kind>
  LPL_DEVICE void show(int k, const Line& here, F& f, Kind kind) const {
    if constexpr (std::is_invocable<F&, int, const Line&, Kind>::value) {
      f(first_of(k), here, kind);
    } else {
      Acc u[kSize];
      load_all<kSize>(u, here.value);
      f(first_of(k), u, kind);
    }
  }

  // The first and the last piece, where they are short.
  template <typename F>
  LPL_DEVICE void short_ones(F& f) const {
    each_short([&](int k) { show(k, stage_ ? stage_[k - begin_] : inside_of(k), f, Short()); });
  }
  template <typename F>
  LPL_DEVICE void each_short(F f) const {
#pragma unroll 1
    for (int k = first_;; k = count_ - 1) {
      LPL_USUALLY(whole(k));
      if (!whole(k) && mine(k)) f(k);
      if (k == count_ - 1) return;
    }
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

  LPL_DEVICE void fetch() {
    in_bulk_ = team_.begins_bulk();
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    LPL_USUALLY(in_bulk_);
#endif
    // pieces that are copied as they lie in memory: in bulk by lines that are the row's alone
    int from = in_bulk_ ? multiple(whole_from_, kPerLine) : whole_from_;
    int to = in_bulk_ ? whole_to_ / kPerLine * kPerLine : whole_to_;
    if (to < from) from = to = first_;
    LPL_USUALLY(from == first_ && to == count_);
    // the rest by whose it is
    for (int k = first_; k < from; ++k)
      if (mine(k)) stage_[k - begin_] = inside_of(k);
    for (int k = to; k < count_; ++k)
      if (mine(k)) stage_[k - begin_] = inside_of(k);
    from_ = from > begin_ ? from : begin_;
    to_ = to < end_ ? to : end_;
    if (!in_bulk_) {
      int k = begin_ + team_.place();
      while (k < from_) k += team_.places();
      for (; k < to_; k += team_.places())
        team_.template copy_line<kBytes>(&stage_[k - begin_], line(k));
      team_.wait_for_copies();
      return;
    }
    // a thread's pieces follow one another in a part
    const int span = team_.places() > kPerLine ? team_.places() : kPerLine;
    part_ = multiple((end_ - begin_ + kParts - 1) / kParts, span);
    if (part_ < kLeast * span) part_ = kLeast * span;  // a part costs as much as a few pieces
    LPL_USUALLY(team_.place() != 0);
    if (team_.place() != 0) return;
    for (int part = 0; part < kParts; ++part) {
      const int first = part_from(part), last = part_to(part);
      if (first < last)
        team_.copy_bulk(&stage_[first - begin_], line(first), (last - first) * kBytes, part);
    }
  }

  // What of a part comes in bulk.
  LPL_DEVICE int part_from(int part) const {
    const int first = begin_ + part * part_;
    return first > from_ ? first : from_;
  }
  LPL_DEVICE int part_to(int part) const {
    const int last = begin_ + (part + 1) * part_;
    return last < to_ ? last : to_;
  }

  // Waits until so many parts have arrived.
  LPL_DEVICE void arrive(int parts) const {
    if (!in_bulk_) return;
    for (; arrived_ < parts; ++arrived_)
      if (part_from(arrived_) < part_to(arrived_)) team_.wait_bulk(arrived_);
  }

  Team& team_;
  const T* row_;
  const int c_;
  int phase_, first_, count_;  // of the row: elements before it, its pieces
  int whole_from_, whole_to_;  // those of them that are whole
  int begin_, end_, part_;     // the block's share, and how much of it a part is
  int from_ = 0, to_ = 0;      // what of it is copied as it lies in memory
  bool in_bulk_ = false;
  mutable int arrived_ = 0;  // parts
  Line* stage_;
};

// row ← factor·row
template <typename Team, typename T, typename Acc>
LPL_DEVICE inline void scale_row(Team& team, T* row, int c, Acc factor) {
  const Pieces<Team, T, 16, false> pieces(team, row, c);
  const auto to = pieces.target(row);
  pieces.visit([&](int first, const Acc* u, auto kind) {
    Acc x[pieces.kSize];
#pragma unroll
    for (int v = 0; v < pieces.kSize; ++v) x[v] = u[v] * factor;
    to.write(first, x, kind);
  });
}

}  // namespace lpl
