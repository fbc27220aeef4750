// A row alone in its class whose steps the series does not give exactly enough: by plain steps, one
// softmax each.
#pragma once

#include "learned_row.h"
#include "rows.h"

namespace lpl {

// Rivals of a row in units of e^top, which moves: Σ e^(x − top), and of their squares.
template <typename Acc>
struct MovedSums {
  Acc top, rest, squares;

  LPL_DEVICE void raise(Acc to) {
    const Acc by = std::exp(top - finite_shift(to));
    rest *= by;
    squares *= by * by;
    top = to;
  }
};

// Of the rows that were left those from team t on, as many apart as there are teams: all that is
// wanted of them. A team has memory for one δ.
template <typename T>
struct SweptBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 t) {
    for (i64 i = t; i < call.p.n; i += call.scratch.teams) {
      if (learned_row<Acc>(call, i).standing != Standing::left) continue;
      Sweep<Team>(team, call, i, t).run();
      team.sync();  // the next row's columns may be other threads'
    }
  }

 private:
  template <typename Team>
  class Sweep {
   public:
    LPL_DEVICE Sweep(Team& team, const Call& call, i64 i, i64 t)
        : team_(team),
          call_(call),
          a_(call),
          row_(a_.row(i, nullptr)),
          here_(team, call, a_, row_),
          label_(row_.label),
          delta_(call.scratch.only_delta ? static_cast<Acc*>(call.out.delta) + i * call.p.c
                                         : static_cast<Acc*>(call.scratch.swept) + t * call.p.c) {}

    LPL_DEVICE void run() {
      // its norm and its penalty were measured with its statistics
      const LearnedRow<Acc>& from = learned_row<Acc>(call_, row_.index);
      Terms<Acc> terms = from.terms;
      here_.use(terms);
      Acc top = -INFINITY;
      here_.each([&](int j, Acc z) {
        if (j != label_ && z > top) top = z;
        delta_[j] = 0;
      });
      top = team_.reduce(top, [](Acc a, Acc b) { return a > b ? a : b; });
      // z keeps its digits under a common offset: δ is added to what remains
      base_ = finite_shift(top);
      own_ = a_.logit(label_, row_) - base_;
      take();
      const Acc own_change = own_change_;
      if (call_.scratch.only_delta) {
        team_.sync();
        if (team_.rank() == 0) delta_[label_] = row_.outside ? Acc(NAN) : own_change;
        return;
      }
      const MovedSums<Acc> sums = moved_sums();
      const Acc shift = shift_of(sums), rest = sums.rest * std::exp(sums.top - shift);
      const Acc loss = a_.of_label(row_, own_ + own_change - shift, rest, base_ + shift, terms);
      here_.finish(loss + from.penalty, terms, [&](int j, Acc z, const Terms<Acc>& t) {
        return j == label_ ? t.part : std::exp(moved(j, z) - shift) * t.strength;
      });
    }

   private:
    LPL_DEVICE Acc moved(int j, Acc z) const { return (z - base_) + delta_[j]; }

    LPL_DEVICE void take() {
      const int steps = learned_row<Acc>(call_, row_.index).steps;
      const Acc size = Acc(steps < 0 ? -call_.p.step_size : call_.p.step_size);
      Acc lost = 0;
      for (int k = 0; k < (steps < 0 ? -steps : steps); ++k) {
        const MovedSums<Acc> sums = moved_sums();
        const Acc shift = shift_of(sums), scale = std::exp(sums.top - shift);
        const Acc share = 1 / (sums.rest * scale + std::exp(own_ + own_change_ - shift));
        const Acc others = sums.rest * scale * share;
        Acc factor = size;
        if (call_.p.normalize) {
          // the label's entry is minus the rivals' sum: p_y − 1 without cancellation
          const Acc each = scale * share;
          const Acc norm = std::sqrt(sums.squares * each * each + others * others);
          factor = norm < Acc(kNormFloor) ? Acc(0) : size / norm;
        }
        here_.each([&](int j, Acc z) {
          if (j != label_) delta_[j] += factor * (std::exp(moved(j, z) - shift) * share);
        });
        add(own_change_, lost, -factor * others);
      }
    }

    LPL_DEVICE Acc shift_of(const MovedSums<Acc>& sums) const {
      const Acc own = own_ + own_change_;
      Acc shift = finite_shift(sums.top > own ? sums.top : own);
      if (row_.outside) shift = NAN;
      return shift;
    }

    LPL_DEVICE MovedSums<Acc> moved_sums() const {
      MovedSums<Acc> sums = {Acc(-INFINITY), 0, 0};
      here_.each([&](int j, Acc z) {
        if (j == label_) return;
        const Acc x = moved(j, z);
        if (x > sums.top) sums.raise(x);
        const Acc e = std::exp(x - finite_shift(sums.top));
        sums.rest += e;
        sums.squares += e * e;
      });
      return team_.reduce(sums, [](MovedSums<Acc> a, MovedSums<Acc> b) {
        const Acc top = a.top > b.top ? a.top : b.top;
        a.raise(top);
        b.raise(top);
        return MovedSums<Acc>{top, a.rest + b.rest, a.squares + b.squares};
      });
    }

    Team& team_;
    const Call& call_;
    const Algebra<T, kAll> a_;
    Row<Acc> row_;
    TeamRow<Team, T, kAll, false> here_;
    const int label_;
    Acc* const delta_;
    Acc base_, own_, own_change_ = 0;
  };
};

}  // namespace lpl
