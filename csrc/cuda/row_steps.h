// All steps of a row alone in its class, from its statistics: the work of a warp.
#pragma once

#include "groups.h"
#include "rows.h"

namespace lpl {

constexpr int kHeadsAtHand = 128;  // that a crew has in its registers; others in its own memory

template <typename Acc>
struct HeadsBeyond {
  static constexpr int kMost = kMostHeads - kHeadsAtHand;
  Acc start[kMost], change[kMost], lost[kMost];
};

// Row i, if it has its class to itself: its loss, and what its gradient, or if only δ is wanted
// that, is made of. What becomes of its class FirstStepsBody says, if that can be solved.
template <typename A>
struct RowStepsBody {
  using Acc = A;
  using Shared = HeadsBeyond<Acc>;

  template <typename Crew>
  LPL_DEVICE static void run(Crew& crew, const Call& call, i64 i) {
    LearnedRow<Acc>& row = learned_row<Acc>(call, i);
    if (row.standing == Standing::dead) {
      if (crew.place() == 0) say(call, i, row, Acc(0), Terms<Acc>{});
      return;
    }
    if (Group<Acc>::shares(call, i)) {
      const Outcome outcome = Group<Acc>::outcome_of(call, row.steps);
      if (crew.place() == 0 && outcome != kRelaxed) leave<Acc>(call, i, outcome);
      return;
    }
    Walk<Crew> walk(crew, call, row, i);
    const bool takes = row.steps != 0 && row.rest == row.rest && walk.has_rivals();
    bool good = true;
    if (takes) {
      if (row.order == kShortOrder<Acc>) {
        good = call.p.normalize ? walk.template take<kShortOrder<Acc>, true>()
                                : walk.template take<kShortOrder<Acc>, false>();
      } else {
        good = call.p.normalize ? walk.template take<kLongOrder<Acc>, true>()
                                : walk.template take<kLongOrder<Acc>, false>();
      }
    }
    good = walk.end() && good;
    // without steps nothing is left out
    if (takes && !good) {
      if (crew.place() != 0) return;
      leave<Acc>(call, i, kFellBack);
      return;
    }
    walk.tell();
    if (crew.place() == 0) call.scratch.outcome[i] = takes ? kSolved : kUnchanged;
  }

  // What is said of a row whose loss is known.
  LPL_DEVICE static void say(const Call& call, i64 i, LearnedRow<Acc>& row, Acc loss,
                             const Terms<Acc>& terms) {
    row.terms = terms;
    if (call.scratch.losses) static_cast<Acc*>(call.scratch.losses)[i] = loss;
  }

 private:
  template <typename Crew>
  class Walk {
   public:
    LPL_DEVICE Walk(Crew& crew, const Call& call, LearnedRow<Acc>& row, i64 i)
        : crew_(crew),
          call_(call),
          row_(row),
          index_(i),
          beyond_(crew.template shared<Shared>(0)),
          heads_(row.heads) {
#pragma unroll
      for (int r = 1; r <= kLong; ++r) {
        power_[r] = row.series[r - 1];
        series_[r] = r == 1;
      }
      const Acc* exponents = head_numbers_of<Acc>(call, i);
      Acc beside = 0;  // the mass of all rivals
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        start_[s] = head(s) < heads_ ? exponents[head(s)] : Acc(-INFINITY);
        change_[s] = lost_[s] = 0;
        beside += Scale<Acc>::exp(start_[s]);
      }
#pragma unroll 1
      for (int k = first(); k < heads_; k += kWidth) {
        beyond_.start[k - kHeadsAtHand] = exponents[k];
        beyond_.change[k - kHeadsAtHand] = beyond_.lost[k - kHeadsAtHand] = 0;
        beside += Scale<Acc>::exp(exponents[k]);
      }
      beside = crew.crew_sum(beside) + power_[1];
      own_ = row.own;
      level_ = Scale<Acc>::log(beside);
      if (!(own_ <= level_)) level_ = own_;
      // nan is nobody's rival, and has none
      moves_ = beside > 0 && beside < INFINITY && own_ == own_;
      // what has no softmax has no δ either
      const bool lost =
          !(beside < INFINITY) || own_ != own_ || (beside == 0 && std::fabs(own_) == INFINITY);
      if (lost && row.steps != 0) own_change_ = NAN;
      if (!(level_ - level_ == 0)) level_ = 0;
    }

    // Without them, or with nan among them, there is no direction to move in.
    LPL_DEVICE bool has_rivals() const { return moves_; }

    // False where the series was not exact enough.
    template <int kOrder, bool kNormalize>
    LPL_DEVICE bool take() {
      const int steps = row_.steps < 0 ? -row_.steps : row_.steps;
      const Acc size = Acc(row_.steps < 0 ? -call_.p.step_size : call_.p.step_size);
      Acc own_lost = 0, dose = 0, least = INFINITY;
      for (int k = 0; k < steps; ++k) {
        const Acc unit = Scale<Acc>::exp(-level_);
        Acc mass[kSlots], others = 0, squares = 0;
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          if (s * kWidth >= heads_) break;
          mass[s] = Scale<Acc>::exp(moved(start_[s], change_[s], lost_[s], level_));
          others += mass[s];
          if (kNormalize) squares += mass[s] * mass[s];
        }
#pragma unroll 1
        for (int at = first(); at < heads_; at += kWidth) {
          const Acc e = moved_beyond(at, level_);
          others += e;
          if (kNormalize) squares += e * e;
        }
        others = crew_.crew_sum(others) + tail<kOrder>(series_, 1) * unit;
        const Acc total = others + Scale<Acc>::exp(own_ + own_change_ - level_);
        Acc share = 1 / total;
        if (kNormalize) {
          Acc square[kLong + 1];
          series_square<kOrder>(series_, square);
          squares = crew_.crew_sum(squares) + tail<kOrder>(square, 2) * unit * unit;
          const Acc norm = std::sqrt(squares + others * others) * share;
          share = norm < Acc(kNormFloor) ? Acc(0) : share / norm;
        }
        share *= size;
        const Acc by = share * Scale<Acc>::kPerUnit;
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          if (s * kWidth >= heads_) break;
          add(change_[s], lost_[s], mass[s] * by);
        }
#pragma unroll 1
        for (int at = first(); at < heads_; at += kWidth) {
          const int k = at - kHeadsAtHand;
          add(beyond_.change[k], beyond_.lost[k], moved_beyond(at, level_) * by);
        }
        add(own_change_, own_lost, -others * by);
        const Acc a = share * unit;
        series_step<kOrder>(series_, a);
        dose += std::fabs(a);
        // log Z so far, up to what a step changes: keeps every exponential near its share of 1
        level_ += Scale<Acc>::log(total);
        if (level_ < least) least = level_;
      }
      const Dose<Acc> taken = {dose, Scale<Acc>::exp(least), Acc(steps) * Acc(call_.p.step_size)};
      return exact_enough<kOrder>(call_, taken, row_.largest, power_[kOrder]);
    }

    // The masses in the end, in units of the largest; false where one has overflowed on the way.
    LPL_DEVICE bool end() {
      const Acc tail = this->tail<kLong>(series_, 1);
      own_ += own_change_;
      Acc most = own_;
      each_head(0, [&](int, Acc x, Acc) { most = x > most ? x : most; });
      most = crew_.crew_max(most);
      const Acc of_tail = Scale<Acc>::log(tail);
      unit_ = finite_shift(of_tail > most ? of_tail : most);
      rest_ = 0;
      each_head(unit_, [&](int, Acc x, Acc) { rest_ += Scale<Acc>::exp(x); });
      rest_ = crew_.crew_sum(rest_) + (has_tail() ? tail * Scale<Acc>::exp(-unit_) : Acc(0));
      return rest_ + (own_ - unit_) < INFINITY && Scale<Acc>::exp(-unit_) < INFINITY;
    }

    LPL_DEVICE void tell() {
      const bool delta = call_.scratch.only_delta;
      crew_.sync();  // all have read the row's numbers, which are now others
      Acc* numbers = head_numbers_of<Acc>(call_, index_);
      each_head(unit_, [&](int k, Acc x, Acc change) {
        numbers[k] = delta ? change * Scale<Acc>::kUnit : Scale<Acc>::exp(x);
      });
      if (crew_.place() != 0) return;
      const Acc fold = delta ? Acc(1) : has_tail() ? Scale<Acc>::exp(-unit_) : Acc(0);
#pragma unroll
      for (int r = 1; r <= kLong; ++r) row_.series[r - 1] = series_[r] * fold;
      row_.own = delta ? own_change_ * Scale<Acc>::kUnit : own_ - unit_;
      if (delta) return;
      // what is said of a row alone is the same for all element types
      const Algebra<Acc, kAll> algebra(call_);
      const Row<Acc> row = algebra.row(index_, nullptr);
      Terms<Acc> terms = row_.terms;
      const Acc lift = (own_ - unit_) * Scale<Acc>::kUnit;
      const Acc shift = (row_.level + unit_) * Scale<Acc>::kUnit;
      const Acc loss = algebra.of_label(row, lift, rest_, shift, terms);
      say(call_, index_, row_, loss + row_.penalty, terms);
    }

   private:
    static constexpr int kWidth = Crew::kWidth, kSlots = kHeadsAtHand / kWidth;
    static constexpr int kLong = kLongOrder<Acc>;

    LPL_DEVICE int head(int slot) const { return slot * kWidth + crew_.place(); }
    LPL_DEVICE int first() const { return kHeadsAtHand + crew_.place(); }
    LPL_DEVICE Acc moved_beyond(int at, Acc level) const {
      const int k = at - kHeadsAtHand;
      return Scale<Acc>::exp(moved(beyond_.start[k], beyond_.change[k], beyond_.lost[k], level));
    }

    // Of none nothing is left in any unit: that of a label alone, far below 0, may be infinite.
    LPL_DEVICE bool has_tail() const { return power_[1] != 0; }

    // A head's exponent less a level, about as large as its change: that is taken off first.
    LPL_DEVICE static Acc moved(Acc start, Acc change, Acc lost, Acc level) {
      return start + ((change - level) - lost);
    }

    // f(k, exponent less a level, change) for the heads of this thread.
    template <typename F>
    LPL_DEVICE void each_head(Acc level, F f) const {
#pragma unroll
      for (int s = 0; s < kSlots; ++s)
        if (head(s) < heads_) f(head(s), moved(start_[s], change_[s], lost_[s], level), change_[s]);
#pragma unroll 1
      for (int at = first(); at < heads_; at += kWidth) {
        const int k = at - kHeadsAtHand;
        f(at, moved(beyond_.start[k], beyond_.change[k], beyond_.lost[k], level),
          beyond_.change[k]);
      }
    }

    // Σ coefficient_r · Σ e^r over the tail.
    template <int kOrder>
    LPL_DEVICE Acc tail(const Acc* coefficient, int from) const {
      Acc sum = 0;
#pragma unroll
      for (int r = 1; r <= kOrder; ++r)
        if (r >= from) sum += coefficient[r] * power_[r];
      return sum;
    }

    Crew& crew_;
    const Call& call_;
    LearnedRow<Acc>& row_;
    const i64 index_;
    Shared& beyond_;
    const int heads_;
    bool moves_;
    // of heads at hand: log e, δ, what rounding has added to that so far
    Acc start_[kSlots], change_[kSlots], lost_[kSlots];
    Acc power_[kLong + 1], series_[kLong + 1];
    Acc own_, own_change_ = 0, level_, unit_, rest_;
  };
};

}  // namespace lpl
