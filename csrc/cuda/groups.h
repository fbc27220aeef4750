// Classes with several rows in the batch, whose δ is found by relaxation (../cpu/group_solver.h
// says how): which they are, and what their kernels leave for each other.
//
// A row's rivals are measured by q, in units of their mass before the steps, made of logits
// wherever it is wanted. GroupStepsBody takes all steps of a class; before each further time
// GroupTailBody finds what the tail gains by them. What that leaves for each row is little more
// than for one alone in its class, and GroupGradientBody makes its gradient of it.
#pragma once

#include "../series.h"
#include "learned_row.h"
#include "steps.h"

namespace lpl {

constexpr int kNodes = 7, kSlots = kNodes + 1;  // moments of the steps, beyond their start; all
constexpr int kMostExact = 512;                 // classes that take their steps one by one
constexpr int kMostParts = 64, kColumnsOfPart = 512;
constexpr int kRounds = 3;  // of steps with the tail's gains, at most

// Moments of the steps, the first of which is their start.
template <typename Acc>
struct Nodes {
  int count;                          // beyond the start
  Acc at[kSlots];                     // Σ of the mean of 1/Z, over the gradient's length where
                                      // steps are normalised
  Acc own[kSlots];                    // minus the gradient's entry at the target
  Acc second[kSlots], third[kSlots];  // of Bend
};

template <typename Acc>
struct GroupState {
  Nodes<Acc> nodes[2];  // of the last steps, and of those before, by turns
  Acc own_change, second, third, log_second, log_third;
};

// What is kept for every row of a class, in their order.
template <typename Acc>
struct Member {
  Acc lift;                // log of the target's mass over the rivals'
  Acc mass, inverse;       // of the tail; 1/Z
  Acc rest;                // the rivals' mass after the steps, in units of that before
  Acc strength;            // of the gradient, in those units
  Acc way, lost, squares;  // W = Σ 1/Z so far, what rounding has added to it, Σ 1/Z²
  Acc gains[kSlots];       // of the tail's mass, at the nodes
  Acc ways[2][kSlots], inverses[2][kSlots];  // at the nodes, as GroupState's
  // of the part of the columns that the team of this place has
  Acc lengths[kSlots], most;  // Σ of squares of the gradient at the nodes, over own²; largest B
  int exact;                  // classes found
};

// The class of the row at one place in Scratch::order.
template <typename Acc>
class Group {
 public:
  LPL_DEVICE Group(const Call& call, i64 place)
      : call_(call), c(call.p.c), room(room_of(call.p.c)) {
    const Scratch& s = call.scratch;
    begin = s.begin[s.order[place]];
    count = s.counts[s.order[place]];
    const i64 n = call.p.n, leader = s.order[begin];
    // classes of two rows and more begin at places of different halves
    state = static_cast<GroupState<Acc>*>(s.groups) + begin / 2;
    Member<Acc>* all = reinterpret_cast<Member<Acc>*>(state - begin / 2 + n / 2);
    members = all + begin;
    sums_ = reinterpret_cast<Acc*>(all + n) + begin * parts_of(c) * kSlots;
    parts = count < parts_of(c) ? int(count) : parts_of(c);
    const bool solves = learned_row<Acc>(call, leader).standing == Standing::grouped;
    open = solves && s.outcome && s.outcome[leader] == kRelaxed;
    done = solves && !open;
    if (!open && !done) return;
    label = int(call.p.target[leader]);
    steps = call.p.steps[label];
    step = Acc(steps < 0 ? -call.p.step_size : call.p.step_size);
    steps = steps < 0 ? -steps : steps;
    delta = static_cast<Acc*>(call.out.delta);
    if (delta) delta += leader * c;
  }

  // Bytes of Scratch::groups; 0 where there is nothing to solve. In double what relaxation leaves
  // out would show, so that all classes have to find room.
  static i64 bytes(i64 n, i64 c) {
    if (n < 2 || (sizeof(Acc) == 8 && c > kMostExact)) return 0;
    const i64 row = parts_of(c) * kSlots * i64(sizeof(Acc)) + i64(sizeof(Member<Acc>));
    return n / 2 * i64(sizeof(GroupState<Acc>)) + n * row;
  }

  // Whether the rows of a class that takes these steps are solved.
  LPL_DEVICE static bool pays(const Call& call, int steps, i64 count) {
    return call.scratch.groups && count > 1 && steps != 0;
  }
  // e^δ has to stay a number.
  LPL_DEVICE static bool bounded(const Call& call, int steps) {
    return std::fabs(call.p.step_size * steps) <= largest_exponent();
  }
  LPL_HOST_DEVICE static constexpr Acc largest_exponent() { return sizeof(Acc) == 8 ? 500 : 80; }

  LPL_DEVICE i64 row(i64 r) const { return call_.scratch.order[begin + r]; }
  // Log of the target's mass over the rivals'; nan where nothing can be solved.
  LPL_DEVICE Acc lift(i64 r) const {
    const LearnedRow<Acc>& from = learned_row<Acc>(call_, row(r));
    // where there are no rivals it does not matter
    return has_rivals(from) ? over_rivals(from) : from.own - from.own;
  }
  LPL_DEVICE static bool has_rivals(const LearnedRow<Acc>& from) { return from.series[1] != 0; }

  // Notes Σ e of a row's rivals, and 1/Σ; those that are nothing beside the label are none.
  LPL_DEVICE static void join(LearnedRow<Acc>& to, Acc rest) {
    to.series[0] = rest;
    const bool rivals = rest > 0 && !(over_rivals(to) > largest_exponent());
    to.series[1] = rivals ? 1 / rest : Acc(0);
  }
  // (room,): q of member r's exact classes, that of member 0 at last their δ; the columns of those
  // that are found in a part. Both stand where a row alone in its class has its heads.
  LPL_DEVICE Acc* exact(i64 r) const { return head_numbers_of<Acc>(call_, row(r)); }
  LPL_DEVICE int32_t* columns(int part) const { return head_columns_of(call_, row(part)); }
  // (kSlots,): the tail's mass, and its gains at the nodes, in one part of member r's columns.
  LPL_DEVICE Acc* sums(i64 r, int part) const { return sums_ + (r * parts_of(c) + part) * kSlots; }

  // f(column, number) for the exact classes of a part, shared by `size` threads; the number of all
  // in it and before it.
  template <typename F>
  LPL_DEVICE int exact_of(int part, int before, int rank, int size, F f) const {
    const int found = members[part].exact;
    for (int k = rank; k < found; k += size) f(columns(part)[k], before + k);
    return before + found;
  }

  template <typename Team>
  LPL_DEVICE void tell(Team& team, Outcome outcome) const {
    for (i64 r = team.rank(); r < count; r += team.size()) {
      if (outcome == kPerturbed)
        call_.scratch.outcome[row(r)] = outcome;
      else
        leave<Acc>(call_, row(r), outcome);
    }
  }

 private:
  LPL_DEVICE static Acc over_rivals(const LearnedRow<Acc>& from) {
    return from.own * Scale<Acc>::kUnit - std::log(from.series[0]);
  }
  LPL_HOST_DEVICE static int room_of(i64 c) { return c < kMostExact ? int(c) : kMostExact; }
  LPL_HOST_DEVICE static int parts_of(i64 c) {
    const i64 parts = (c + kColumnsOfPart - 1) / kColumnsOfPart;
    return parts < kMostParts ? int(parts) : kMostParts;
  }

  const Call& call_;
  Acc* sums_;

 public:
  const i64 c;
  const int room;
  i64 begin, count;
  int parts;        // that columns come in, each the work of the team of one of the first places
  bool open, done;  // without a verdict yet; solved
  int label, steps;
  Acc step;  // its size, with the direction's sign
  GroupState<Acc>* state;
  Member<Acc>* members;  // (count,)
  Acc* delta;            // (C,), if that is wanted
};

// q of the rows of a class, from their logits.
template <typename T, Set kSet>
class GroupRivals {
 public:
  using Acc = typename AccumulateOf<T>::type;

  struct Member {
    Row<Acc> row;
    const T* logits;
    Acc level, inverse;
  };

  LPL_DEVICE GroupRivals(const Call& call, const Group<Acc>& group)
      : call_(call), a_(call), g_(group) {}

  LPL_DEVICE const Algebra<T, kSet>& algebra() const { return a_; }

  LPL_DEVICE Member member(i64 r) const {
    const i64 i = g_.row(r);
    const LearnedRow<Acc>& from = learned_row<Acc>(call_, i);
    Member m;
    if (kSet != kBare) {
      m.row = a_.row(i, nullptr);
      use_norm(a_, from.terms, m.row);
    }
    m.logits = a_.logits(i);
    m.level = from.level;
    m.inverse = from.series[1];
    return m;
  }

  // Of a rival.
  LPL_DEVICE Acc q(const Member& m, i64 j) const { return of(m, load(m.logits[j]), j); }

  // Of columns beside each other that come before `end`; 0 of others.
  template <int kCount>
  LPL_DEVICE void tile(const Member& m, int first, int end, Acc* q) const {
    Acc u[kCount];
    take_beside<kCount>(m.logits + first, end - first, u);
#pragma unroll
    for (int v = 0; v < kCount; ++v) q[v] = first + v < end ? of(m, u[v], first + v) : Acc(0);
  }

 private:
  LPL_DEVICE Acc of(const Member& m, Acc u, i64 j) const {
    const Acc z = kSet == kBare ? u : a_.perturbed(u, int(j), m.row);
    return Scale<Acc>::exp(Scale<Acc>::exponent(z, m.level)) * m.inverse;
  }

  const Call& call_;
  const Algebra<T, kSet> a_;
  const Group<Acc>& g_;
};

}  // namespace lpl
