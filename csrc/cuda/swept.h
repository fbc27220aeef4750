// The classes whose δ the solvers do not give exactly enough: by plain steps, each one softmax of
// every row.
#pragma once

#include "batch.h"
#include "learned_gradient.h"
#include "steps.h"

namespace lpl {

// Rivals of a row in units of e^top, which moves: Σ e^(x − top).
template <typename Acc>
struct MovedSums {
  Acc top, rest;

  LPL_DEVICE void raise(Acc to) {
    rest *= std::exp(top - finite_shift(to));
    top = to;
  }
};

constexpr i64 kLossesOfTeam = 16384;  // more are the work of a larger team

// Of the classes that were left those that begin at place t of the order of rows and so many places
// beyond as there are teams: all that is wanted of them. A team has memory for one δ. If the loss
// is wanted the last team adds up all rows' losses, which are then there.
template <typename T, Set kSet>
struct SweptBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 t) {
    const Scratch& s = call.scratch;
    if (s.flags[kLeft]) sweep(team, call, t);
    if (!call.out.loss || s.only_delta || call.p.n > kLossesOfTeam) return;
    if (team.last_of(&s.flags[kArrived], int(s.teams))) LossBody<Acc>::run(team, call, 0);
  }

 private:
  template <typename Team>
  class Sweep;

  template <typename Team>
  LPL_DEVICE static void sweep(Team& team, const Call& call, i64 t) {
    const Scratch& s = call.scratch;
    for (i64 place = t; place < call.p.n; place += s.teams) {
      const i64 i = s.order[place];
      const LearnedRow<Acc>& row = learned_row<Acc>(call, i);
      if (row.standing != Standing::left) continue;
      // rows without steps have nothing in common
      const i64 count = row.steps == 0 ? 1 : s.counts[i];
      if (count > 1 && s.begin[i] != place) continue;
      Sweep<Team>(team, call, place, count, t).run();
      team.sync();  // before the memory is another class's
    }
  }

  template <typename Team>
  class Sweep {
   public:
    LPL_DEVICE Sweep(Team& team, const Call& call, i64 place, i64 count, i64 t)
        : team_(team), call_(call), a_(call), members_(call.scratch.order + place), count_(count) {
      const LearnedRow<Acc>& first = from(0);
      steps_ = first.steps < 0 ? -first.steps : first.steps;
      size_ = Acc(first.steps < 0 ? -call.p.step_size : call.p.step_size);
      label_ = a_.row(members_[0], nullptr).label;
      delta_ = call.scratch.only_delta ? static_cast<Acc*>(call.out.delta) + members_[0] * call.p.c
                                       : static_cast<Acc*>(call.scratch.swept) + t * call.p.c;
    }

    LPL_DEVICE void run() {
      for (int j = team_.rank(); j < a_.c; j += team_.size()) delta_[j] = 0;
      take();
      if (call_.scratch.only_delta) {
        team_.sync();
        const bool outside = count_ == 1 && row(0).outside;
        if (team_.rank() == 0) delta_[label_] = outside ? Acc(NAN) : own_change_;
        return;
      }
      for (i64 r = 0; r < count_; ++r) finish(r);
    }

   private:
    LPL_DEVICE LearnedRow<Acc>& from(i64 r) const { return learned_row<Acc>(call_, members_[r]); }
    LPL_DEVICE Row<Acc> row(i64 r) const {
      Row<Acc> row = a_.row(members_[r], nullptr);
      use_norm(a_, from(r).terms, row);
      return row;
    }
    LPL_DEVICE Acc base(i64 r) const { return base_of(from(r)); }
    // z keeps its digits under a common offset: δ is added to what remains.
    LPL_DEVICE Acc moved(Acc u, int j, const Row<Acc>& row, Acc base) const {
      return (a_.perturbed(u, j, row) - base) + delta_[j];
    }
    LPL_DEVICE Acc own(const Row<Acc>& row, Acc base) const {
      return (a_.logit(label_, row) - base) + own_change_;
    }

    LPL_DEVICE void take() {
      const Acc each = 1 / Acc(count_);
      Acc lost = 0;
      for (int k = 0; k < steps_; ++k) {
        Acc others = 0;
        for (i64 r = 0; r < count_; ++r) others += each * weigh(r);
        team_.sync();
        Acc factor = size_;
        if (call_.p.normalize) {
          Acc squares = 0;
          for (int j = team_.rank(); j < a_.c; j += team_.size()) {
            const Acc g = j == label_ ? Acc(0) : mean(j) * each;
            squares += g * g;
          }
          squares = team_.reduce(squares, [](Acc a, Acc b) { return a + b; });
          // the label's entry is minus the rivals' sum: p_y − 1 without cancellation
          const Acc norm = std::sqrt(squares + others * others);
          factor = norm < Acc(kNormFloor) ? Acc(0) : size_ / norm;
        }
        for (int j = team_.rank(); j < a_.c; j += team_.size())
          if (j != label_) delta_[j] += factor * (mean(j) * each);
        add(own_change_, lost, -factor * others);
        team_.sync();  // before the rows' numbers are the next step's
      }
    }

    // The rivals' probability in row r, of whose numbers shift and 1/Σ are told.
    LPL_DEVICE Acc weigh(i64 r) const {
      Row<Acc> row = this->row(r);
      const Acc base = this->base(r), own = this->own(row, base);
      const MovedSums<Acc> sums = moved_sums(row, base);
      const Acc shift = shift_of(sums, own, row), rest = sums.rest * std::exp(sums.top - shift);
      const Acc share = 1 / (rest + std::exp(own - shift));
      if (team_.rank() == 0) {
        from(r).series[1] = shift;
        from(r).series[2] = share;
      }
      return rest * share;
    }

    // Σ of a rival's probability over the rows.
    LPL_DEVICE Acc mean(int j) const {
      Acc sum = 0;
      for (i64 r = 0; r < count_; ++r) {
        const Row<Acc> row = this->row(r);
        const Acc u = load(a_.logits(row.index)[j]);
        sum += std::exp(moved(u, j, row, base(r)) - from(r).series[1]) * from(r).series[2];
      }
      return sum;
    }

    LPL_DEVICE Acc shift_of(const MovedSums<Acc>& sums, Acc own, const Row<Acc>& row) const {
      const Acc shift = finite_shift(sums.top > own ? sums.top : own);
      return row.outside ? Acc(NAN) : shift;
    }

    LPL_DEVICE MovedSums<Acc> moved_sums(const Row<Acc>& row, Acc base) const {
      MovedSums<Acc> sums = {Acc(-INFINITY), 0};
      const Strided<Team, T> columns(team_, a_.logits(row.index), a_.c);
      columns.visit([&](int j, const Acc* u, auto) {
        if (j == label_) return;
        const Acc x = moved(*u, j, row, base);
        if (x > sums.top) sums.raise(x);
        sums.rest += std::exp(x - finite_shift(sums.top));
      });
      return team_.reduce(sums, [](MovedSums<Acc> a, MovedSums<Acc> b) {
        const Acc top = a.top > b.top ? a.top : b.top;
        a.raise(top);
        b.raise(top);
        return MovedSums<Acc>{top, a.rest + b.rest};
      });
    }

    // The loss of row r, and its gradient if that is wanted.
    LPL_DEVICE void finish(i64 r) const {
      const Row<Acc> row = this->row(r);
      const Acc base = this->base(r), own = this->own(row, base);
      const MovedSums<Acc> sums = moved_sums(row, base);
      const Acc shift = shift_of(sums, own, row), rest = sums.rest * std::exp(sums.top - shift);
      Terms<Acc> terms = from(r).terms;
      const Acc loss = a_.of_label(row, own - shift, rest, base + shift, terms);
      if (call_.scratch.losses && team_.rank() == 0)
        static_cast<Acc*>(call_.scratch.losses)[row.index] = loss + from(r).penalty;
      if (!call_.out.grad) return;
      terms = scaled(terms, upstream_of<Acc>(call_, row.index));
      const Through<T, kSet> through(a_, row, terms);
      T* to = static_cast<T*>(call_.out.grad) + row.index * call_.p.c;
      const Strided<Team, T> columns(team_, a_.logits(row.index), a_.c);
      columns.visit([&](int j, const Acc* u, auto) {
        Acc x =
            j == label_ ? terms.part : std::exp(moved(*u, j, row, base) - shift) * terms.strength;
        through.template piece<1>(columns, j, u, Whole(), &x);
        store(to[j], x);
      });
    }

    Team& team_;
    const Call& call_;
    const Algebra<T, kSet> a_;
    const i64* const members_;
    const i64 count_;
    int steps_, label_;
    Acc size_, own_change_ = 0;
    Acc* delta_;
  };
};

}  // namespace lpl
