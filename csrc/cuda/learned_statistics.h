// What the steps of a row alone in its class want to know of it: one pass for the largest rival,
// and one, with one exponential a logit, for the power sums of its tail and the list of its heads.
//
// Who is a head is known before the first exponential: the masses of the threads' own largest
// rivals add up to no more than the mass of all, and heads have more than a part of that. So no
// rival of the tail has a larger part of the whole.
#pragma once

#include <cfloat>

#include "groups.h"
#include "learned_row.h"
#include "rows.h"

namespace lpl {

template <typename Acc>
struct FoundHeads {
  int column[kMostHeads];
  Acc exponent[kMostHeads];
};

template <typename T, Set kSet>
struct LearnedStatisticsBody {
  using Acc = typename AccumulateOf<T>::type;
  using Shared = FoundHeads<Acc>;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Algebra<T, kSet> algebra(call);
    Row<Acc> row = algebra.row(i, nullptr);
    LearnedRow<Acc>& to = learned_row<Acc>(call, i);
    const i64 label = call.p.target[i];
    const bool labelled = row.live && label >= 0 && label < call.p.c;
    const int steps = labelled ? call.p.steps[label] : 0;
    LPL_USUALLY(row.live);
    if (!row.live) {
      if (team.rank() != 0) return;
      to.steps = 0;
      to.standing = Standing::dead;
      call.scratch.outcome[i] = kUnchanged;
      return;
    }
    // of those that share their class, where that is known, their rivals' mass is all
    const bool shares = steps != 0 && call.scratch.by_class && call.scratch.counts[i] > 1;
    LPL_USUALLY(!shares);
    Pass<Team> pass(team, call, algebra, row, steps);
    if (shares) {
      pass.weigh(to);
    } else {
      pass.run(to);
    }
  }

 private:
  template <typename Team>
  class Pass {
   public:
    LPL_DEVICE Pass(Team& team, const Call& call, const Algebra<T, kSet>& algebra, Row<Acc>& row,
                    int steps)
        : team_(team),
          call_(call),
          a_(algebra),
          row_(row),
          here_(team, call, algebra, row),
          steps_(steps) {}

    LPL_DEVICE void run(LearnedRow<Acc>& to) {
      const Acc least = find_top();
      const Acc own = own_exponent();

      Powers<kLongOrder<Acc>> powers{};
      Acc largest;
      screen(least / kPart, largest);
      // steps that go far want the long series of most rows, and a pass for the short one is lost
      int order = call_.p.step_size * std::abs(steps_) > kFar ? kLongOrder<Acc> : kShortOrder<Acc>;
      LPL_USUALLY(order != kLongOrder<Acc>);
      int heads, begin;
      for (Acc part = kPart;;) {
        if (order == kLongOrder<Acc>) {
          powers = sums<kLongOrder<Acc>, true>();
        } else {
          const auto few = sums<kShortOrder<Acc>, true>();
#pragma unroll
          for (int r = 0; r < kShortOrder<Acc>; ++r) powers.sum[r] = few.sum[r];
        }
        begin = team_.before(count_, heads);
        LPL_USUALLY(heads <= kMostHeads);
        if (heads > kMostHeads) {  // of a mass that is much larger than `least`
          part /= 2;
          screen(least / part, largest);
          continue;
        }
        if (order == kLongOrder<Acc>) break;
        const Dose<Acc> dose = most_dose(least, powers.sum[0], own);
        const Acc last_power = powers.sum[kShortOrder<Acc> - 1];
        const bool exact = exact_enough<kShortOrder<Acc>>(call_, dose, largest, last_power);
        LPL_USUALLY(exact);
        if (exact) break;
        order = kLongOrder<Acc>;
      }
      LPL_USUALLY(heads == 0);  // which are few, and no logits
      if (heads > 0) list(begin, heads);
      LPL_USUALLY(team_.rank() != 0);
      if (team_.rank() != 0) return;
      note(to, own, powers.sum[0] + of_heads_);
      to.largest = largest;
#pragma unroll
      for (int r = 0; r < kLongOrder<Acc>; ++r) to.series[r] = powers.sum[r];
      to.order = order;
      to.heads = heads;
    }

    LPL_DEVICE void weigh(LearnedRow<Acc>& to) {
      find_top();
      const Acc rest = sums<1, false>().sum[0];
      if (team_.rank() == 0) note(to, own_exponent(), rest);
    }

   private:
    using Here = TeamRow<Team, T, kSet>;
    using Line = typename Here::Here::Line;
    static constexpr int kSize = Here::kSize;
    // Heads have more than one part in so many: few, as their steps cost most; the fewer, the
    // larger are the rivals that the series has to be exact for.
    static constexpr int kPart = sizeof(T) == 2 ? 256 : 512;
    // K·α. On an H200 normal logits of deviation 2 took as long at 5 as at 0.5, and a quarter more
    // at 10, for second passes.
    static constexpr double kFar = 7;

    template <int kOrder>
    struct Powers {
      Acc sum[kOrder];
    };

    LPL_DEVICE static int number_of(unsigned bits) {
#if defined(__CUDA_ARCH__)
      return __popc(bits);
#else
      return __builtin_popcount(bits);
#endif
    }
    LPL_DEVICE static Acc larger_of(Acc a, Acc b) { return a > b ? a : b; }
    LPL_DEVICE static Acc most_of(const Acc (&z)[kSize]) {
      Acc most = z[0];
#pragma unroll
      for (int v = 1; v < kSize; ++v) most = larger_of(z[v], most);
      return most;
    }

    // The row's level; returns what the rivals' mass is at least, in units of e^top: the largest of
    // every thread's.
    LPL_DEVICE Acc find_top() {
      here_.measure_all();
      Largest<T> as_they_are;
      Acc mine = -INFINITY;
      here_.pieces().visit_arriving([&](int first, const Line& line, auto kind) {
        if constexpr (kSet == kBare && decltype(kind)::value) {
          const bool own = has_label(first);
          LPL_USUALLY_NOT(own);
          if (!own) return as_they_are.template add<kSize>(line.value);
        }
        Acc z[kSize];
        rivals(first, line, kind, z);
        mine = larger_of(mine, most_of(z));
      });
      mine = larger_of(mine, as_they_are.value());
      // one exchange for both: the mass of a warp in units of its own
      struct Peak {
        Acc top, mass;
        LPL_DEVICE Acc in(Acc level) const {
          return mass == 0 ? mass : mass * Scale<Acc>::exp(Scale<Acc>::level(top) - level);
        }
      };
      Peak peak = {team_.crew_max(mine), 0};
      const Acc level = Scale<Acc>::level(peak.top);
      peak.mass = team_.crew_sum(Scale<Acc>::exp(Scale<Acc>::exponent(mine, level)));
      peak = team_.reduce_crews(peak, [](const Peak& a, const Peak& b) {
        const Acc top = larger_of(a.top, b.top), level = Scale<Acc>::level(top);
        return Peak{top, a.in(level) + b.in(level)};
      });
      top_ = peak.top;
      level_ = Scale<Acc>::level(top_);
      return peak.mass;
    }

    LPL_DEVICE Acc own_exponent() const {
      return Scale<Acc>::exponent(a_.logit(row_.label, row_), level_);
    }

    // What is the same whoever takes the steps.
    LPL_DEVICE void note(LearnedRow<Acc>& to, Acc own, Acc rest) {
      to.terms = here_.measured();
      to.penalty = here_.penalty();
      to.level = level_;
      to.own = own;
      const bool known = !row_.outside && rest < INFINITY && top_ < INFINITY;
      to.rest = known ? rest : Acc(NAN);
      to.steps = steps_;
      to.standing = Standing::settled;
    }

    LPL_DEVICE bool has_label(int first) const {
      return unsigned(row_.label - first) < unsigned(kSize);
    }

    template <typename Kind>
    LPL_DEVICE void perturbed(int first, const Line& line, Kind kind, Acc (&z)[kSize]) const {
      Acc u[kSize];
      load_all<kSize>(u, line.value);
      a_.template perturb<kSize>(first, u, row_, kind, z);
    }

    // z of a piece, −∞ at the label.
    template <typename Kind>
    LPL_DEVICE void rivals(int first, const Line& line, Kind kind, Acc (&z)[kSize]) const {
      perturbed(first, line, kind, z);
      a_.template replace<kSize>(row_.label - first, Acc(-INFINITY), z);
    }

    // Heads have at least the mass `bound`; `largest` bounds what all others have.
    LPL_DEVICE void screen(Acc bound, Acc& largest) {
      const bool all = a_.c <= kMostHeads;  // but those of −∞, which have no mass
      screen_ = all ? lowest() : top_ + Scale<Acc>::log(bound) * Scale<Acc>::kUnit;
      if (kSet == kBare) {  // as logits are compared in memory
        if (screen_ < lowest()) screen_ = lowest();
        store(screen_of_logits_, screen_);
        screen_ = load(screen_of_logits_);
      }
      largest = all ? Acc(0) : Scale<Acc>::exp(Scale<Acc>::exponent(screen_, level_)) * Acc(1.0001);
      if (!(largest < 1)) largest = 1;
    }
    LPL_DEVICE static Acc lowest() {
      return sizeof(Acc) == 8                                 ? Acc(-DBL_MAX)
             : kSet != kBare || std::is_same<T, float>::value ? Acc(-FLT_MAX)
             : std::is_same<T, BFloat16>::value               ? Acc(-3.3895314e38f)
                                                              : Acc(-65504);
    }

    template <typename Kind>
    LPL_DEVICE bool may_have_heads(const Line& line, const Acc (&z)[kSize], Kind) const {
      if (kSet != kBare || !Kind::value) return most_of(z) >= screen_;
      Largest<T> most;
      most.template add<kSize>(line.value);
      return !most.below(screen_of_logits_, screen_);
    }

    // Power sums of the tail; if it `kLists`, notes how many heads this thread has, and in which of
    // its pieces.
    template <int kOrder, bool kLists>
    LPL_DEVICE Powers<kOrder> sums() {
      Powers<kOrder> powers{};
      Acc lost = 0;
      int turn = 0;
      count_ = 0;
      pieces_ = 0;
      here_.pieces().visit([&](int first, const Line& line, auto kind) {
        Acc z[kSize];
        perturbed(first, line, kind, z);
        const bool looks = has_label(first) || (kLists && may_have_heads(line, z, kind));
        LPL_USUALLY_NOT(looks);
        if (looks) {
          a_.template replace<kSize>(row_.label - first, Acc(-INFINITY), z);
          unsigned found = 0;
#pragma unroll
          for (int v = 0; v < kSize; ++v) {
            if (!kLists || !(z[v] >= screen_)) continue;
            found |= 1u << v;
            z[v] = -INFINITY;
          }
          count_ += number_of(found);
          if (found) pieces_ |= 1u << (turn & 31);
        }
        ++turn;
        Acc few = 0;
#pragma unroll
        for (int v = 0; v < kSize; ++v)
          few += add_powers<kOrder>(Scale<Acc>::exp(Scale<Acc>::exponent(z[v], level_)), powers);
        // a thread may have thousands of columns
        add(powers.sum[0], lost, few);
      });
#pragma unroll
      for (int r = 0; r < kOrder; ++r) powers.sum[r] = team_.crew_sum(powers.sum[r]);
      return team_.reduce_crews(powers, [](const Powers<kOrder>& a, const Powers<kOrder>& b) {
        Powers<kOrder> sum;
#pragma unroll
        for (int r = 0; r < kOrder; ++r) sum.sum[r] = a.sum[r] + b.sum[r];
        return sum;
      });
    }

    // Adds the powers of e from the second on, each a product of two that are known; returns e.
    template <int kOrder>
    LPL_DEVICE static Acc add_powers(Acc e, Powers<kOrder>& powers) {
      Acc power[kOrder / 2 + 2];
      power[1] = e;
#pragma unroll
      for (int r = 2; r <= kOrder; ++r) {
        if (r <= kOrder / 2) {
          power[r] = power[r / 2] * power[r - r / 2];
          powers.sum[r - 1] += power[r];
        } else {
          powers.sum[r - 1] = std::fma(power[r / 2], power[r - r / 2], powers.sum[r - 1]);
        }
      }
      return e;
    }

    // A bound of the steps' dose: where the rivals gain, Z is at least their mass; where they lose,
    // what remains of the tail's (each of its rivals keeps two thirds, else the series is not exact
    // anyway), and each step takes at most e^size from Z.
    LPL_DEVICE Dose<Acc> most_dose(Acc least, Acc tail, Acc own) const {
      Dose<Acc> dose;
      dose.size = Acc(call_.p.step_size) * Acc(steps_ < 0 ? -steps_ : steps_);
      Acc rivals = larger_of(least, tail);
      if (steps_ < 0) {
        const Acc decay = std::exp(-dose.size);
        rivals = larger_of(tail / Acc(1.5), rivals * decay);
      }
      dose.least = rivals;
      // a normalised step is divided by no less than the rivals' part of Z
      if (steps_ < 0 && !call_.p.normalize) dose.least += Scale<Acc>::exp(own);
      dose.sum = steps_ == 0 ? Acc(0) : dose.size / dose.least;
      return dose;
    }

    // Writes the heads in the order of their columns; this thread has those from `begin` on.
    LPL_DEVICE void list(int begin, int heads) {
      Shared& found = team_.template shared<Shared>(0);
      if (count_ > 0) {
        int at = begin;
        here_.pieces().visit_again(pieces_, [&](int first, const Line& line, auto kind) {
          Acc z[kSize];
          rivals(first, line, kind, z);
#pragma unroll
          for (int v = 0; v < kSize; ++v) {
            if (!(z[v] >= screen_) || at == begin + count_) continue;
            found.column[at] = first + v;
            found.exponent[at] = Scale<Acc>::exponent(z[v], level_);
            ++at;
          }
        });
        // a logit at the screen itself, rounded otherwise this time: its row is left to plain steps
        for (; at < begin + count_; ++at) {
          found.column[at] = -1 - at;
          found.exponent[at] = NAN;
        }
      }
      team_.sync();
      if (team_.block() != 0) return;
      if (team_.place() < team_.crew()) {
        for (int k = team_.place(); k < heads; k += team_.crew())
          of_heads_ += Scale<Acc>::exp(found.exponent[k]);
        of_heads_ = team_.crew_sum(of_heads_);
      }
      int32_t* columns = head_columns_of(call_, row_.index);
      Acc* exponents = head_numbers_of<Acc>(call_, row_.index);
      const bool all = heads == a_.c - 1;
      for (int k = team_.place(); k < heads; k += team_.places()) {
        const int column = found.column[k];
        int place = 0;
        if (all && column >= 0) {
          place = column - (column > row_.label);
        } else {
          for (int other = 0; other < heads; ++other) place += found.column[other] < column;
        }
        columns[place] = column;
        exponents[place] = found.exponent[k];
      }
    }

    Team& team_;
    const Call& call_;
    const Algebra<T, kSet>& a_;
    Row<Acc>& row_;
    Here here_;
    const int steps_;
    Acc top_, level_, screen_;
    Acc of_heads_ = 0;  // their mass, in the first thread
    T screen_of_logits_;
    int count_ = 0;        // heads of this thread
    unsigned pieces_ = 0;  // in which of its pieces they are, of 32 in turn
  };
};

}  // namespace lpl
