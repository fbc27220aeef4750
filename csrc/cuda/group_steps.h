// All steps of a class with several rows, from the start, with the gains of its tail that are
// known.
#pragma once

#include "../bend.h"
#include "group_sums.h"
#include "groups.h"
#include "rows.h"

namespace lpl {

// What a block has at hand.
template <typename Acc>
struct WalkShared {
  static constexpr int kCrews = sizeof(Acc) == 8 ? 2 : 8;  // that add up what rows move classes by
  // of the exact classes: e^δ; δ, what rounding has added to it, their mean in a step
  Acc x[kMostExact], change[kMostExact], lost[kMostExact], mean[kMostExact];
  Acc means[kCrews][kMostExact];
  // of the nodes that gains are known at: their progress, their factors in the barycentric formula,
  // 1 over the gradient's entry at the target, the squares of the tail's entries over its; what a
  // value at a node counts now
  Acc at[kSlots], pull[kSlots], faster[kSlots], length[kSlots];
  Acc weight[2][kSlots];  // by turns: the next ones are found while some read these
};

// The first steps know of no gains and no exact classes.
template <typename Team, typename Acc, bool kFirst>
class Walk {
 public:
  using Shared = WalkShared<Acc>;

  LPL_DEVICE Walk(Team& team, const Call& call, const Group<Acc>& group, int round)
      : team_(team),
        call_(call),
        g_(group),
        round_(kFirst ? 0 : round),
        width_(team.crew()),
        lane_(team.rank() % width_),
        crew_(team.rank() / width_),
        crews_(team.size() / width_),
        normalize_(call.p.normalize),
        h_(team.template shared<Shared>(team.block())) {}

  LPL_DEVICE void run() {
    if constexpr (kFirst) {
      if (solvable()) take_steps();
    } else {
      prepare();
      take_steps();
      judge();
    }
  }

 private:
  static constexpr int kMoments = kFirst ? kFirstNodes : kNodes;
  // nodes that are nearer than that, relative to all the way, carry rounding
  static constexpr double kNearest = 2e-3;

  // Of the last steps, and of these.
  LPL_DEVICE const Nodes<Acc>& before() const { return g_.state->nodes[(round_ + 1) & 1]; }
  LPL_DEVICE Nodes<Acc>& now() const { return g_.state->nodes[round_ & 1]; }

  // Before all steps: nan is left to plain steps, which make the whole class nan.
  LPL_DEVICE bool solvable() {
    int lost = 0;
    for (int r = team_.rank(); r < g_.count; r += team_.size()) {
      const LearnedRow<Acc>& from = learned_row<Acc>(call_, g_.row(r));
      g_.source(r) = {from.level, from.series[1],
                      static_cast<const char*>(call_.p.input) + g_.row(r) * row_bytes(call_.p)};
      const Acc lift = g_.lift(from);
      g_.masses(r) = {lift, 0, 0, 0};
      lost |= lift != lift;
    }
    lost = team_.reduce(lost, [](int a, int b) { return a | b; });
    if (lost)
      g_.tell(team_, kGroup);
    else
      stays_open();
    if (team_.rank() == 0) g_.state->arrived = 0;
    set_up();
    return !lost;
  }

  // What GroupTailBody has found.
  LPL_DEVICE void prepare() {
    for (int at = 0; at < g_.teams; ++at) {
      heads_ += g_.found(at).exact;
      most_ = larger(most_, g_.found(at).most);
    }
    known_ = before().count;
    const int parts = g_.state->parts;
    for (int r = team_.rank(); r < g_.count; r += team_.size()) {
      AtNodes<Acc> sums{};
      for (int part = 0; part < parts; ++part) {
        const AtNodes<Acc> of_part = g_.sums(r, part);
#pragma unroll
        for (int m = 0; m < kSlots; ++m) sums.of[m] += of_part.of[m];
      }
      g_.masses(r).tail = sums.of[0];
      sums.of[0] = 0;
      g_.gains(r) = sums;
    }
    set_up();
  }

  LPL_DEVICE void set_up() {
    const Acc end = known_ ? before().at.of[known_] : Acc(1);
    for (int m = team_.place(); m < kSlots; m += team_.places()) {
      if (m > known_ || known_ == 0) continue;
      Acc pull = 1;
      for (int other = 0; other <= known_; ++other)
        if (other != m) pull *= end / (before().at.of[m] - before().at.of[other]);
      h_.at[m] = before().at.of[m] / end;
      h_.pull[m] = pull;
      h_.faster[m] = before().own.of[m] > 0 ? 1 / before().own.of[m] : Acc(0);
      h_.length[m] = 0;
      for (int at = 0; at < g_.teams; ++at) h_.length[m] += g_.found(at).lengths.of[m];
    }
    for (int k = team_.place(); k < heads_; k += team_.places()) {
      h_.x[k] = 1;
      h_.change[k] = h_.lost[k] = 0;
    }
    team_.sync();
    progress(0);
    team_.sync();
  }

  LPL_DEVICE void take_steps() {
    const Acc share = 1 / Acc(g_.count);
    Acc own_lost = 0, walked_lost = 0, squares_walked = 0, last_at = 0;
    int passed = 0, count = 0;
    for (int k = 0;; ++k) {
      bool due = k > 0 && (k == g_.steps || g_.steps <= kMoments);
      for (; passed + 1 < kMoments && progress_ >= place_of(passed + 1); ++passed) due = true;
      slot_ = k == 0 ? 0 : -1;
      if (due && walked_ > 0) {
        // one that is too near the last takes its place
        if (count == 0 || walked_ - last_at > Acc(kNearest) * walked_) ++count;
        slot_ = count;
      }
      const StepSums<Acc> sums = visit_rows(k);
      const Acc own = sums.own * share;
      const Acc factor = move_exact(k, own, sums, share);
      if (slot_ >= 0) {
        last_at = walked_;
        kappa_ = k ? double(squares_walked / (2 * walked_ * walked_)) : 0;
        if (team_.rank() == 0) note(own, count);
      }
      if (k == g_.steps) {
        // κ of a class is at most the largest of its rows, and at least that of equal steps
        const Acc least = Acc(0.5) / Acc(g_.steps), kappa = Acc(kappa_);
        const Acc spread = larger(kappa - least, sums.bend - kappa);
        if (known_ && walked_ > 0) error_ = larger(error_, most_ * most_ * spread);
        return;
      }
      factor_ = factor;
      add(own_change_, own_lost, -(g_.step * factor) * own);
      const Acc weight = factor * (sums.speed * share);
      add(walked_, walked_lost, weight);
      squares_walked += weight * weight;
      progress(k + 1);
      team_.sync();
    }
  }

  // How far the first k steps have gone, and what a value at a node counts there: the barycentric
  // formula, in which at a node its own weight is overwhelming.
  LPL_DEVICE void progress(int k) {
    progress_ = known_ ? walked_ / before().at.of[known_] : Acc(k) / Acc(g_.steps);
    if (!known_ || team_.place() >= width_) return;
    const Acc near = progress_ < Acc(1.125) ? progress_ : Acc(1.125);
    const auto pull = [&](int m) {
      const Acc off = near - h_.at[m];
      return h_.pull[m] / (off == 0 ? Acc(1e-20) : off);
    };
    Acc pulls = 0;
    for (int m = lane_; m <= known_; m += width_) pulls += pull(m);
    pulls = team_.crew_sum(pulls);
    for (int m = lane_; m <= known_; m += width_) h_.weight[k & 1][m] = pull(m) / pulls;
  }

  // Progress that asks for a node: close to Lobatto's points, of which the start is one.
  LPL_DEVICE Acc place_of(int m) const {
    const Acc part = Acc(m) / Acc(kMoments);
    return part * part * (3 - 2 * part);
  }

  LPL_DEVICE void note(Acc own, int count) const {
    const Bend bend{kappa_};
    now().count = count;
    now().at.of[slot_] = walked_;
    now().own.of[slot_] = own;
    now().second.of[slot_] = Acc(bend.second());
    now().third.of[slot_] = Acc(bend.third());
  }

  // A crew has every so-many-th row, each of its threads a row of these: first the crew adds up
  // their exact classes, one row after the other.
  LPL_DEVICE StepSums<Acc> visit_rows(int k) {
    StepSums<Acc> sums = no_rows<Acc>();
    for (int first = crew_; first < g_.count; first += crews_ * width_) {
      Acc exact = 0;
      if (heads_) {
        for (int of = 0; of < width_; ++of) {
          const int r = first + of * crews_;
          if (r >= g_.count) break;
          const Acc* q = g_.exact(r);
          Acc rest = 0;
          for (int at = lane_; at < heads_; at += width_) rest += q[at] * h_.x[at];
          rest = team_.crew_sum(rest);
          if (of == lane_) exact = rest;
        }
      }
      const int r = first + lane_ * crews_;
      if (r < g_.count) visit_row(k, r, exact, sums);
    }
    if constexpr (kFirst) {
      struct Speeds {
        Acc own, speed;
      };
      const Speeds all =
          team_.reduce(Speeds{sums.own, sums.speed}, [](const Speeds& a, const Speeds& b) {
            return Speeds{a.own + b.own, a.speed + b.speed};
          });
      sums.own = all.own;
      sums.speed = all.speed;
      return sums;
    } else {
      return team_.reduce(
          sums, [](const StepSums<Acc>& a, const StepSums<Acc>& b) { return joined(a, b); });
    }
  }

  LPL_DEVICE void visit_row(int k, int r, Acc rest, StepSums<Acc>& sums) {
    Masses<Acc> masses = g_.masses(r);
    Acc gain = 0, way = 0, square = 0, speed = 0;
    if (known_) {
      const AtNodes<Acc> gains = g_.gains(r), ways = g_.ways(round_ + 1, r);
      AtNodes<Acc> inverses;
      if (normalize_) inverses = g_.inverses(round_ + 1, r);
#pragma unroll
      for (int m = 0; m < kSlots; ++m) {
        if (m > known_) break;
        const Acc weight = h_.weight[k & 1][m], w = ways.of[m];
        gain += weight * gains.of[m];
        way += weight * w;
        square += weight * w * w;
        if (!normalize_) continue;
        const Acc s = inverses.of[m] * h_.faster[m];
        speed += weight * s * s;
      }
    }
    rest += (round_ == 0 ? Acc(1) : masses.tail) + gain;
    Walked<Acc> row;
    if (k == 0) {
      row.way = row.lost = row.squares = 0;
    } else {
      row = g_.walked(r);
      const Acc by = factor_ * row.inverse;
      add(row.way, row.lost, by);
      row.squares += by * by;
    }
    const Acc lift = masses.lift + own_change_, most = Group<Acc>::largest_exponent();
    const Acc inverse = row.inverse = 1 / (rest + std::exp(lift < most ? lift : most));
    g_.walked(r) = row;
    if (k == g_.steps) g_.masses(r).rest = rest;
    sums.own += rest * inverse;
    sums.speed += inverse;
    if (slot_ >= 0) {
      g_.ways(round_, r).of[slot_] = row.way;
      g_.inverses(round_, r).of[slot_] = inverse;
    }
    if (kFirst || row.way == 0) return;
    const Acc ratio = inverse * inverse / speed, bend = row.squares / (2 * row.way * row.way);
    sums.way = larger(sums.way, excess(row.way, way));
    sums.square = larger(sums.square, excess(row.way * row.way, square));
    sums.gained = larger(sums.gained, std::fabs(gain) * inverse);
    sums.low = -larger(-sums.low, -ratio);
    sums.high = larger(sums.high, ratio);
    sums.bend = larger(sums.bend, bend);
  }

  // The exact classes' means, of all rows: every crew adds up its own.
  LPL_DEVICE void find_means(Acc share) {
    const int many = crews_ < Shared::kCrews ? crews_ : Shared::kCrews;
    const int crews = g_.count < many ? int(g_.count) : many;
    Shared& all = team_.template shared<Shared>(0);
    if (crew_ < crews) {
      for (int at = lane_; at < heads_; at += width_) {
        Acc mean = 0;
#pragma unroll(sizeof(Acc) == 8 ? 1 : 2)
        for (int r = crew_; r < g_.count; r += crews)
          mean += g_.exact(r)[at] * g_.walked(r).inverse;
        all.means[crew_][at] = mean;
      }
    }
    team_.sync();
    for (int at = team_.rank(); at < heads_; at += team_.size()) {
      Acc mean = 0;
      for (int crew = 0; crew < crews; ++crew) mean += all.means[crew][at];
      h_.mean[at] = mean * (h_.x[at] * share);
    }
  }

  // A step of the exact classes; returns what its size is multiplied by.
  LPL_DEVICE Acc move_exact(int k, Acc own, const StepSums<Acc>& sums, Acc share) {
    Acc squares = 0, factor = 1, of_tail = 0;
    if (heads_) find_means(share);
    if (normalize_) {
      for (int at = team_.rank(); at < heads_; at += team_.size())
        squares += h_.mean[at] * h_.mean[at];
      squares = team_.reduce(squares, [](Acc a, Acc b) { return a + b; });
      Acc length = 0;  // of the tail
      if (known_)
        for (int m = 0; m <= known_; ++m) length += h_.weight[k & 1][m] * h_.length[m];
      const Acc square = own * own * (1 + length) + squares;
      // to begin with the tail's part is unknown: it is at most the target's
      const Acc longest = round_ ? square : square + own * own;
      factor = std::sqrt(longest) < Acc(kNormFloor) ? Acc(0) : 1 / std::sqrt(square);
      if (factor > 0) of_tail = length * own * own / square;
    }
    if (known_ && k > 0) measure(sums, own, of_tail);
    if (k == g_.steps) return factor;
    for (int at = team_.rank(); at < heads_; at += team_.size()) {
      add(h_.change[at], h_.lost[at], g_.step * factor * h_.mean[at]);
      const Acc x = std::exp(h_.change[at]);
      for (int block = 0; block < team_.blocks(); ++block)
        team_.template shared<Shared>(block).x[at] = x;
    }
    return factor;
  }

  // How far a value is off the one that gains were found for, in units of the latter: as much are
  // the gains.
  LPL_DEVICE static Acc excess(Acc value, Acc found) {
    return found > 0 ? std::fabs(value / found - 1) : Acc(INFINITY);
  }

  // Error of what a step was taken with, relative to the rows' masses: that of W, which B and most
  // of the gains share, that of W² in their second order, and what becomes of the gradient's
  // length.
  LPL_DEVICE void measure(const StepSums<Acc>& sums, Acc own, Acc of_tail) {
    distance_ = sums.way;
    if (sums.gained != 0)
      error_ = larger(error_, (sums.way + 2 * most_ * sums.square) * sums.gained);
    if (of_tail == 0) return;
    const Acc low = excess(sums.low, own * own), high = excess(sums.high, own * own);
    error_ = larger(error_, (larger(low, high) + 2 * most_ * sums.way) * of_tail);
  }

  LPL_DEVICE void judge() {
    // the fourth power of B is left out; in the end B is at most by `distance_` larger than found
    const double b = most_ != 0 ? double(most_ * (1 + distance_)) : 0.0;
    const double error = double(error_) + b * b * b * b;
    // steps with gains that are far off may lead nowhere, from where there is no way back
    const bool lost = !(std::fabs(own_change_) + std::fabs(walked_) < Acc(INFINITY));
    if (lost || !(error <= series_tolerance<Acc>())) {
      if (lost || round_ == kRounds)
        g_.tell(team_, kFellBack);
      else
        stays_open();
      return;
    }
    team_.sync();  // nobody reads row 0 of `exact` any more
    for (int at = team_.rank(); at < heads_; at += team_.size()) g_.exact(0)[at] = h_.change[at];
    if (team_.rank() == 0) {
      const Bend bend{kappa_};
      g_.state->own_change = own_change_;
      g_.state->second = Acc(bend.second());
      g_.state->third = Acc(bend.third());
      g_.state->log_second = Acc(bend.log_second());
      g_.state->log_third = Acc(bend.log_third());
    }
    g_.tell(team_, kPerturbed);
    if (call_.scratch.only_delta) return;
    for (int r = team_.rank(); r < g_.count; r += team_.size()) tell_loss(r);
  }

  // The loss of member r, and what its gradient is made of.
  LPL_DEVICE void tell_loss(int r) const {
    const i64 i = g_.row(r);
    LearnedRow<Acc>& from = learned_row<Acc>(call_, i);
    const Algebra<Acc, kAll> algebra(call_);
    const Row<Acc> row = algebra.row(i, nullptr);
    Terms<Acc> terms = from.terms;
    const Acc lift = g_.masses(r).lift + own_change_;
    // where there are no rivals all is the label's
    const bool rivals = Group<Acc>::has_rivals(from);
    const Acc rest = rivals ? g_.masses(r).rest : Acc(0);
    const Acc log_rest = rivals ? std::log(from.series[0]) : from.own * Scale<Acc>::kUnit;
    const Acc unit = lift > 0 ? lift : Acc(0), fold = std::exp(-unit);
    const Acc shift = from.level * Scale<Acc>::kUnit + log_rest + unit;
    const Acc loss = algebra.of_label(row, lift - unit, rest * fold, shift, terms);
    g_.masses(r).strength = terms.strength * fold;
    from.terms = terms;
    if (call_.scratch.losses) static_cast<Acc*>(call_.scratch.losses)[i] = loss + from.penalty;
  }

  LPL_DEVICE void stays_open() const {
    if (team_.rank() == 0) call_.scratch.flags[kOpen + round_] = 1;
  }

  Team& team_;
  const Call& call_;
  const Group<Acc>& g_;
  const int round_;
  const int width_, lane_, crew_, crews_;  // this thread's place in its crew, and its crew's
  const bool normalize_;
  Shared& h_;
  int heads_ = 0, known_ = 0;  // exact classes; nodes before, beyond the start
  int slot_ = -1;              // of the node that the step is, or −1
  double kappa_ = 0;
  Acc most_ = 0, error_ = 0, distance_ = 0;
  Acc progress_ = 0, walked_ = 0, factor_ = 0, own_change_ = 0;
};

// All steps of a class, the first time: without gains. One team for each class, which is the first
// to know that it has several rows.
template <typename A>
struct FirstStepsBody {
  using Acc = A;
  using Shared = WalkShared<Acc>;

  // As no flag says so yet, all places are looked at at once.
  template <typename Team>
  LPL_DEVICE static bool wanted(Team& team, const Call& call, i64 first, i64 step) {
    int any = 0;
    for (i64 place = first + team.rank() * step; place < call.p.n; place += team.size() * step)
      any |= Group<Acc>::begins(call, place);
    return team.reduce(any, [](int a, int b) { return a | b; }) != 0;
  }

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    if (!Group<Acc>::begins(call, place)) return;
    const Scratch& s = call.scratch;
    const i64 count = s.counts[s.order[place]];
    for (i64 r = team.rank(); r < count; r += team.size())
      Group<Acc>::join(call, s.order[place + r]);
    if (team.rank() == 0) s.flags[kSharing] = 1;
    team.sync();
    const Group<Acc> group(call, place);
    Walk<Team, Acc, true>(team, call, group, 0).run();
  }
};

// The same again by the last of the teams, one for each row or as many as share the columns, that
// have found what it wants to know. Nothing of what they had at hand is kept for it.
template <typename Team, typename Acc>
LPL_DEVICE inline void step_again(Team& team, const Call& call, i64 place, bool of_rows,
                                  int round) {
  const Group<Acc> group(call, place);
  if (team.last_of(&group.state->arrived, of_rows ? group.count : group.teams))
    Walk<Team, Acc, false>(team, call, group, round).run();
}

// q of the exact classes, once they are known, of the row at a place: a crew has those that a team
// of the class has found. Then the class's next steps.
template <typename T, Set kSet>
struct GroupGatherBody : OfOpen {
  using Acc = typename AccumulateOf<T>::type;
  using Shared = WalkShared<Acc>;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> group(call, place);
    if (!group.open) return;
    const GroupRivals<T, kSet, true> rivals(call, group);
    const i64 r = place - group.begin;
    const auto member = rivals.member(r);
    Acc* to = group.exact(r);
    const int width = team.crew(), lane = team.rank() % width, crews = team.size() / width;
    for (int at = team.rank() / width; at < group.teams; at += crews) {
      int before = 0;
      for (int other = lane; other < at; other += width) before += group.found(other).exact;
      before = team.crew_sum(before);
      group.exact_of(at, before, lane, width,
                     [&](i64 column, int k) { to[k] = rivals.q(member, column); });
    }
    step_again<Team, Acc>(team, call, place, true, call.scratch.round + 1);
  }
};

}  // namespace lpl
