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
  // of the exact classes: e^δ; δ, what rounding has added to it, their mean in a step
  Acc x[kMostExact], change[kMostExact], lost[kMostExact], mean[kMostExact];
  // of the nodes that gains are known at: their progress, their factors in the barycentric formula,
  // 1 over the gradient's entry at the target, the squares of the tail's entries over its
  Acc at[kSlots], pull[kSlots], faster[kSlots], length[kSlots];
};

template <typename Team, typename Acc>
class Walk {
 public:
  using Shared = WalkShared<Acc>;

  LPL_DEVICE Walk(Team& team, const Call& call, const Group<Acc>& group)
      : team_(team),
        g_(group),
        round_(call.scratch.round),
        normalize_(call.p.normalize),
        before_(group.state->nodes[(round_ + 1) & 1]),
        now_(group.state->nodes[round_ & 1]),
        h_(team.template shared<Shared>(team.block())) {}

  LPL_DEVICE void run() {
    if (round_ == 0 && !solvable()) return;
    if (round_ > 0) prepare();
    take_steps();
    if (round_ > 0) judge();
  }

 private:
  // nodes that are nearer than that, relative to all the way, carry rounding
  static constexpr double kNearest = 2e-3;

  // Before all steps: nan is left to plain steps, which make the whole class nan.
  LPL_DEVICE bool solvable() {
    int lost = 0;
    for (i64 r = team_.rank(); r < g_.count; r += team_.size())
      lost |= (g_.members[r].lift = g_.lift(r)) != g_.lift(r);
    lost = team_.reduce(lost, [](int a, int b) { return a | b; });
    if (lost) g_.tell(team_, kGroup);
    set_up();
    return !lost;
  }

  // What GroupTailBody has found.
  LPL_DEVICE void prepare() {
    for (int part = 0; part < g_.parts; ++part) {
      heads_ += g_.members[part].exact;
      most_ = larger(most_, g_.members[part].most);
    }
    known_ = before_.count;
    for (i64 at = team_.rank(); at < g_.count * kSlots; at += team_.size()) {
      const i64 r = at / kSlots;
      const int m = int(at % kSlots);
      Acc sum = 0;
      for (int part = 0; part < g_.parts; ++part) sum += g_.sums(r, part)[m];
      if (m == 0) g_.members[r].mass = sum;
      g_.members[r].gains[m] = m == 0 ? Acc(0) : sum;
    }
    set_up();
  }

  LPL_DEVICE void set_up() {
    const Acc end = known_ ? before_.at[known_] : Acc(1);
    for (int m = team_.place(); m < kSlots; m += team_.places()) {
      if (m > known_ || known_ == 0) continue;
      Acc pull = 1;
      for (int other = 0; other <= known_; ++other)
        if (other != m) pull *= end / (before_.at[m] - before_.at[other]);
      h_.at[m] = before_.at[m] / end;
      h_.pull[m] = pull;
      h_.faster[m] = before_.own[m] > 0 ? 1 / before_.own[m] : Acc(0);
      h_.length[m] = 0;
      for (int part = 0; part < g_.parts; ++part) h_.length[m] += g_.members[part].lengths[m];
    }
    for (int k = team_.place(); k < heads_; k += team_.places()) {
      h_.x[k] = 1;
      h_.change[k] = h_.lost[k] = 0;
    }
    team_.sync();
  }

  LPL_DEVICE void take_steps() {
    const Acc share = 1 / Acc(g_.count), end = known_ ? before_.at[known_] : Acc(1);
    Acc own_lost = 0, walked_lost = 0, squares_walked = 0, last_at = 0;
    int passed = 0, count = 0;
    for (int k = 0;; ++k) {
      progress_ = known_ ? walked_ / end : Acc(k) / Acc(g_.steps);
      bool due = k > 0 && (k == g_.steps || g_.steps <= kNodes);
      for (; passed + 1 < kNodes && progress_ >= place_of(passed + 1); ++passed) due = true;
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
      team_.sync();
    }
  }

  // Progress that asks for a node: close to Lobatto's points, of which the start is one.
  LPL_DEVICE static Acc place_of(int m) {
    const Acc part = Acc(m) / kNodes;
    return part * part * (3 - 2 * part);
  }

  LPL_DEVICE void note(Acc own, int count) const {
    const Bend bend{kappa_};
    now_.count = count;
    now_.at[slot_] = walked_;
    now_.own[slot_] = own;
    now_.second[slot_] = Acc(bend.second());
    now_.third[slot_] = Acc(bend.third());
  }

  // What node m contributes to an interpolated value, beside `pulls_` of all: the barycentric
  // formula, in which at a node its own weight is overwhelming.
  LPL_DEVICE Acc pull(int m) const {
    const Acc off = (progress_ < Acc(1.125) ? progress_ : Acc(1.125)) - h_.at[m];
    return h_.pull[m] / (off == 0 ? Acc(1e-20) : off);
  }

  // A crew has a row, its threads exact classes and nodes; its first thread keeps the row.
  LPL_DEVICE StepSums<Acc> visit_rows(int k) {
    const int width = team_.crew(), lane = team_.rank() % width, crews = team_.size() / width;
    StepSums<Acc> sums = no_rows<Acc>();
    Acc pulls = 0;
    if (known_) {
      for (int m = lane; m <= known_; m += width) pulls += pull(m);
      pulls = team_.crew_sum(pulls);
    }
    for (i64 r = team_.rank() / width; r < g_.count; r += crews) {
      Member<Acc>& row = g_.members[r];
      const Acc* exact = g_.exact(r);
      Acc rest = 0, gain = 0, way = 0, square = 0, speed = 0;
      for (int at = lane; at < heads_; at += width) rest += exact[at] * h_.x[at];
      rest = team_.crew_sum(rest);
      if (known_) {
        for (int m = lane; m <= known_; m += width) {
          const Acc weight = pull(m) / pulls, w = row.ways[(round_ + 1) & 1][m];
          const Acc s = row.inverses[(round_ + 1) & 1][m] * h_.faster[m];
          gain += weight * row.gains[m];
          way += weight * w;
          square += weight * w * w;
          speed += weight * s * s;
        }
        gain = team_.crew_sum(gain);
        way = team_.crew_sum(way);
        square = team_.crew_sum(square);
        if (normalize_) speed = team_.crew_sum(speed);
      }
      if (lane != 0) continue;
      rest += (round_ == 0 ? Acc(1) : row.mass) + gain;
      row.rest = rest;
      if (k == 0) {
        row.way = row.lost = row.squares = 0;
      } else {
        const Acc by = factor_ * row.inverse;
        add(row.way, row.lost, by);
        row.squares += by * by;
      }
      const Acc lift = row.lift + own_change_, most = Group<Acc>::largest_exponent();
      const Acc inverse = row.inverse = 1 / (rest + std::exp(lift < most ? lift : most));
      sums.own += rest * inverse;
      sums.speed += inverse;
      if (slot_ >= 0) {
        row.ways[round_ & 1][slot_] = row.way;
        row.inverses[round_ & 1][slot_] = inverse;
      }
      if (row.way == 0) continue;
      const Acc ratio = inverse * inverse / speed, bend = row.squares / (2 * row.way * row.way);
      sums.way = larger(sums.way, excess(row.way, way));
      sums.square = larger(sums.square, excess(row.way * row.way, square));
      sums.gained = larger(sums.gained, std::fabs(gain) * inverse);
      sums.low = -larger(-sums.low, -ratio);
      sums.high = larger(sums.high, ratio);
      sums.bend = larger(sums.bend, bend);
    }
    pulls_ = pulls;
    return team_.reduce(
        sums, [](const StepSums<Acc>& a, const StepSums<Acc>& b) { return joined(a, b); });
  }

  // A step of the exact classes; returns what its size is multiplied by.
  LPL_DEVICE Acc move_exact(int k, Acc own, const StepSums<Acc>& sums, Acc share) {
    Acc squares = 0, factor = 1, of_tail = 0;
    for (int at = team_.rank(); at < heads_; at += team_.size()) {
      Acc mean = 0;
      for (i64 r = 0; r < g_.count; ++r) mean += g_.exact(r)[at] * g_.members[r].inverse;
      mean *= h_.x[at] * share;
      squares += mean * mean;
      h_.mean[at] = mean;
    }
    if (normalize_) {
      squares = team_.reduce(squares, [](Acc a, Acc b) { return a + b; });
      Acc length = 0;  // of the tail
      if (known_)
        for (int m = 0; m <= known_; ++m) length += pull(m) / pulls_ * h_.length[m];
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
      if (lost || round_ == kRounds) g_.tell(team_, kFellBack);
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
  }

  Team& team_;
  const Group<Acc>& g_;
  const int round_;
  const bool normalize_;
  const Nodes<Acc>& before_;
  Nodes<Acc>& now_;
  Shared& h_;
  int heads_ = 0, known_ = 0;  // exact classes; nodes before, beyond the start
  int slot_ = -1;              // of the node that the step is, or −1
  double kappa_ = 0;
  Acc most_ = 0, error_ = 0, distance_ = 0;
  Acc progress_ = 0, pulls_ = 0, walked_ = 0, factor_ = 0, own_change_ = 0;
};

// q of the exact classes, once they are known, of every row. One team for each class.
template <typename T, Set kSet>
struct GroupGatherBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> group(call, place);
    if (group.begin != place || !group.open) return;
    const GroupRivals<T, kSet> rivals(call, group);
    for (i64 r = 0; r < group.count; ++r) {
      const auto member = rivals.member(r);
      int before = 0;
      for (int part = 0; part < group.parts; ++part)
        before = group.exact_of(part, before, team.rank(), team.size(), [&](i64 column, int at) {
          group.exact(r)[at] = rivals.q(member, column);
        });
    }
  }
};

// In round 0 without gains; then with those that GroupTailBody found. One team for each class.
template <typename A>
struct GroupStepsBody {
  using Acc = A;
  using Shared = WalkShared<Acc>;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const Group<Acc> group(call, place);
    if (group.begin == place && group.open) Walk<Team, Acc>(team, call, group).run();
  }
};

}  // namespace lpl
