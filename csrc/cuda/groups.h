// Classes with several rows in the batch, whose δ is found by relaxation (../cpu/group_solver.h
// says how): which they are, and what their kernels leave for each other.
//
// A row's rivals are measured by q, in units of their mass before the steps, made of logits
// wherever it is wanted. FirstStepsBody takes all steps of a class; then several times over
// GroupTailBody finds what the tail gains by them, and the last of its teams takes them anew. What
// that leaves for each row is little more than for one alone in its class, and GroupGradientBody
// makes its gradient of it.
#pragma once

#include "../series.h"
#include "learned_row.h"
#include "steps.h"

namespace lpl {

constexpr int kNodes = 7, kSlots = kNodes + 1;  // moments of the steps, beyond their start; all
constexpr int kFirstNodes = 3;  // of the first steps, whose ways are off by the tail's gains anyway
constexpr int kMostExact = 512;  // classes that take their steps one by one
constexpr int kMostParts = 64, kColumnsOfPart = 512, kPartsOfRow = 8;
constexpr int kRounds = 3;  // of steps with the tail's gains, at most

// Whether a body of classes with several rows has anything to do: where there are any, or where one
// has no verdict yet.
struct OfSharing {
  template <typename Team>
  LPL_DEVICE static bool wanted(Team&, const Call& call, i64, i64) {
    return call.scratch.flags[kSharing];
  }
};
struct OfOpen {
  template <typename Team>
  LPL_DEVICE static bool wanted(Team&, const Call& call, i64, i64) {
    return call.scratch.flags[kOpen + call.scratch.round];
  }
};

// A number at each of the moments.
template <typename Acc>
struct alignas(16) AtNodes {
  Acc of[kSlots];
};

// Moments of the steps, the first of which is their start.
template <typename Acc>
struct Nodes {
  int count;         // beyond the start
  AtNodes<Acc> at;   // Σ of the mean of 1/Z, over the gradient's length where steps are normalised
  AtNodes<Acc> own;  // minus the gradient's entry at the target
  AtNodes<Acc> second, third;  // of Bend
};

template <typename Acc>
struct alignas(16) GroupState {
  Nodes<Acc> nodes[2];  // of the last steps, and of those before, by turns
  int parts;            // that gains are found in
  int32_t arrived;      // teams that have found their part: the last one takes the steps
  Acc own_change, second, third, log_second, log_third;
};

// From one row of logits to the next.
LPL_DEVICE inline i64 row_bytes(const Problem& p) {
  return p.row_stride * (p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2);
}

// What is kept for every row of a class, in their order. Numbers that are wanted together are
// together.
template <typename Acc>
struct alignas(16) Source {  // of q
  Acc level, inverse;
  const void* logits;  // in the forward: the backward's may lie elsewhere
};
template <typename Acc>
struct alignas(16) Masses {
  Acc lift;      // log of the target's over the rivals'
  Acc tail;      // of the tail
  Acc rest;      // of the rivals after the steps, in units of that before
  Acc strength;  // of the gradient, in those units
};
template <typename Acc>
struct alignas(16) Walked {
  Acc inverse;             // 1/Z
  Acc way, lost, squares;  // W = Σ 1/Z so far, what rounding has added to it, Σ 1/Z²
};
// Of the columns that the team of a place has.
template <typename Acc>
struct alignas(16) Found {
  AtNodes<Acc> lengths;  // Σ of squares of the gradient at the nodes, over own²
  Acc most;              // largest B
  int exact;             // classes
};

// The class of the row at one place in Scratch::order.
template <typename Acc>
class Group {
 public:
  LPL_DEVICE Group(const Call& call, i64 place)
      : call_(call), c(int(call.p.c)), room(room_of(call.p.c)) {
    const Scratch& s = call.scratch;
    begin = int(s.begin[s.order[place]]);
    count = int(s.counts[s.order[place]]);
    const i64 n = call.p.n, leader = s.order[begin];
    // classes of two rows and more begin at places of different halves
    state = static_cast<GroupState<Acc>*>(s.groups) + begin / 2;
    char* memory = reinterpret_cast<char*>(state - begin / 2 + n / 2);
    take(memory, n, sources_);
    take(memory, n, masses_);
    take(memory, n, walked_);
    take(memory, n, found_);
    take(memory, n, gains_);
    take(memory, 2 * n, ways_);
    take(memory, 2 * n, inverses_);
    rows_ = int(n);
    sums_ = reinterpret_cast<AtNodes<Acc>*>(memory) + i64(begin) * parts_of(c);
    teams = count < kMostParts ? count : kMostParts;
    parts = kPartsOfRow * teams < parts_of(c) ? kPartsOfRow * teams : parts_of(c);
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
    const i64 row = i64(sizeof(Source<Acc>) + sizeof(Masses<Acc>) + sizeof(Walked<Acc>)) +
                    i64(sizeof(Found<Acc>)) + (5 + parts_of(c)) * i64(sizeof(AtNodes<Acc>));
    return n / 2 * i64(sizeof(GroupState<Acc>)) + n * row;
  }

  // Whether a row takes its steps together with others of its class.
  LPL_DEVICE static bool shares(const Call& call, i64 i) {
    return learned_row<Acc>(call, i).steps != 0 && call.scratch.counts[i] > 1;
  }
  // What becomes of the rows that share these steps.
  LPL_DEVICE static Outcome outcome_of(const Call& call, int steps) {
    if (!call.scratch.groups) return kGroup;
    // e^δ has to stay a number
    return std::fabs(call.p.step_size * steps) <= largest_exponent() ? kRelaxed : kFellBack;
  }
  // Whether the rows of a class that begins at a place are to be solved.
  LPL_DEVICE static bool begins(const Call& call, i64 place) {
    const i64 leader = call.scratch.order[place];
    return call.scratch.begin[leader] == place && shares(call, leader) &&
           outcome_of(call, learned_row<Acc>(call, leader).steps) == kRelaxed;
  }
  LPL_HOST_DEVICE static constexpr Acc largest_exponent() { return sizeof(Acc) == 8 ? 500 : 80; }

  LPL_DEVICE i64 row(i64 r) const { return call_.scratch.order[begin + r]; }
  // Log of the target's mass over the rivals'; nan where nothing can be solved.
  LPL_DEVICE static Acc lift(const LearnedRow<Acc>& from) {
    // where there are no rivals it does not matter
    return has_rivals(from) ? over_rivals(from) : from.own - from.own;
  }
  LPL_DEVICE static bool has_rivals(const LearnedRow<Acc>& from) { return from.series[1] != 0; }

  // Notes Σ e of a row's rivals, and 1/Σ; those that are nothing beside the label are none. A row
  // without a Σ makes the whole class nan.
  LPL_DEVICE static void join(const Call& call, i64 i) {
    LearnedRow<Acc>& row = learned_row<Acc>(call, i);
    row.series[0] = row.rest;
    if (row.rest != row.rest) row.own = NAN;
    const bool rivals = row.rest > 0 && !(over_rivals(row) > largest_exponent());
    row.series[1] = rivals ? 1 / row.rest : Acc(0);
    row.standing = Standing::grouped;
    call.scratch.outcome[i] = kRelaxed;
  }
  // (room,): q of member r's exact classes, that of member 0 at last their δ; the columns of those
  // that are found by the team of a place. Both stand where a row alone in its class has its heads.
  LPL_DEVICE Acc* exact(i64 r) const { return head_numbers_of<Acc>(call_, row(r)); }
  LPL_DEVICE int32_t* columns(int team) const { return head_columns_of(call_, row(team)); }

  LPL_DEVICE Source<Acc>& source(i64 r) const { return sources_[r]; }
  LPL_DEVICE Masses<Acc>& masses(i64 r) const { return masses_[r]; }
  LPL_DEVICE Walked<Acc>& walked(i64 r) const { return walked_[r]; }
  LPL_DEVICE Found<Acc>& found(int team) const { return found_[team]; }
  // Of the tail's mass; W and 1/Z, of the last steps and of those before by turns.
  LPL_DEVICE AtNodes<Acc>& gains(i64 r) const { return gains_[r]; }
  LPL_DEVICE AtNodes<Acc>& ways(int turn, i64 r) const {
    return ways_[i64((turn & 1) * rows_) + r];
  }
  LPL_DEVICE AtNodes<Acc>& inverses(int turn, i64 r) const {
    return inverses_[i64((turn & 1) * rows_) + r];
  }
  // The tail's mass, and its gains at the nodes, in one part of member r's columns.
  LPL_DEVICE AtNodes<Acc>& sums(i64 r, int part) const { return sums_[r * parts_of(c) + part]; }

  // f(column, number) for the exact classes that a team has found, shared by `size` threads; the
  // number of all in it and before it.
  template <typename F>
  LPL_DEVICE int exact_of(int team, int before, int rank, int size, F f) const {
    const int found = this->found(team).exact;
    for (int k = rank; k < found; k += size) f(columns(team)[k], before + k);
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

  // The numbers of this class of what all rows have.
  template <typename Number>
  LPL_DEVICE void take(char*& memory, i64 n, Number*& numbers) {
    numbers = reinterpret_cast<Number*>(memory) + begin;
    memory += n * i64(sizeof(Number));
  }

  const Call& call_;
  Source<Acc>* sources_;
  Masses<Acc>* masses_;
  Walked<Acc>* walked_;
  Found<Acc>* found_;
  AtNodes<Acc>*gains_, *ways_, *inverses_, *sums_;
  int rows_;  // of the batch, fewer than a grid has blocks

 public:
  const int c;
  const int room;
  int begin, count;
  int teams, parts;  // those of the first places share the columns; parts of them that find room
  bool open, done;   // without a verdict yet; solved
  int label, steps;
  Acc step;  // its size, with the direction's sign
  GroupState<Acc>* state;
  Acc* delta;  // (C,), if that is wanted
};

// Which rows and columns of a class a crew has. The rows of a large class are shared by the crews
// of a team, which add up what they find for a column; those of a small one have columns of their
// own.
template <typename Team, typename Acc>
struct Share {
  LPL_DEVICE Share(const Team& team, const Group<Acc>& g)
      : width(team.crew()), lane(team.rank() % width) {
    const int crews = team.size() / width, crew = team.rank() / width;
    while (crews % (2 * split) == 0 && g.count >= 2 * split * Team::kLeastRows) split *= 2;
    wide = crews / split < g.parts ? crews / split : g.parts;
    turns = g.parts / wide;
    part = crew % wide;
    begin = crew < split * wide ? crew / wide : g.count;
    each = ((g.c + parts() - 1) / parts() + 7) & -8;
  }

  // That columns come in.
  LPL_DEVICE int parts() const { return turns * wide; }

  // f(first, end, whole) for the columns of the team at a place of the class, kColumns at a time,
  // the same number of times in all of its threads: one has those of first + v, v < kColumns, that
  // come before `end`; all of them, and not the label, in all threads of a crew if it is `whole`.
  // In between begins(part), under which a crew keeps what it finds.
  template <int kColumns, typename Begins, typename F>
  LPL_DEVICE void each_tile(const Group<Acc>& g, int team, Begins begins, F f) const {
    for (int k = team; k < turns; k += g.teams) {
      const int begins_at = k * wide * each, ends_at = begins_at + wide * each;
      const int last = ends_at < g.c ? ends_at : g.c;
      begins(k * wide + part);
      // crews side by side, so that who goes by ranks goes by columns
      for (int lo = begins_at; lo < ends_at; lo += wide * width * kColumns) {
        const int mine = lo + part * width * kColumns, next = mine + width * kColumns;
        f(mine + lane * kColumns, last, next <= last && (g.label < mine || g.label >= next));
      }
    }
  }

  int width, lane;
  // crews that share the rows, those that share the columns, and how often these come
  int split = 1, wide, turns;
  int begin, part;  // this one's first row of every `split`, and its place among `wide`
  int each;         // columns of a part
};

// q of the rows of a class, from their logits; `kHere`: these lie where Source says.
template <typename T, Set kSet, bool kHere>
class GroupRivals {
 public:
  using Acc = typename AccumulateOf<T>::type;

  struct Member {
    Row<Acc> row;
    const T* logits;
    Acc level, inverse;
  };

  LPL_DEVICE GroupRivals(const Call& call, const Group<Acc>& group)
      : call_(call),
        a_(call),
        g_(group),
        in_line_(reinterpret_cast<uintptr_t>(call.p.input) % 16 == 0 &&
                 call.p.row_stride * i64(sizeof(T)) % 16 == 0) {}

  LPL_DEVICE const Algebra<T, kSet>& algebra() const { return a_; }

  LPL_DEVICE Member member(i64 r) const {
    const Source<Acc> source = g_.source(r);
    Member m;
    if (kSet != kBare) {
      const i64 i = g_.row(r);
      m.row = a_.row(i, nullptr);
      use_norm(a_, learned_row<Acc>(call_, i).terms, m.row);
    }
    m.logits = kHere ? static_cast<const T*>(source.logits) : a_.logits(g_.row(r));
    m.level = source.level;
    m.inverse = source.inverse;
    return m;
  }

  // Of a rival.
  LPL_DEVICE Acc q(const Member& m, i64 j) const {
    return mass(m, load(m.logits[j]), j) * m.inverse;
  }

  // Whether columns that lie beside each other in a row do so in all rows in lines of memory.
  LPL_DEVICE bool in_line() const { return in_line_; }

  // q over `inverse` of columns beside each other; 0 of the label, whose may be beyond all numbers,
  // and of those from `end` on. kWhole: there are none of these, and rows lie in_line().
  template <int kCount, bool kWhole>
  LPL_DEVICE void tile(const Member& m, int first, int end, Acc* e) const {
    Acc u[kCount];
    if (kWhole)
      take_line<kCount>(m.logits + first, u);
    else
      take_beside<kCount>(m.logits + first, end - first, u);
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      const bool rival = kWhole || (first + v < end && first + v != g_.label);
      e[v] = rival ? mass(m, u[v], first + v) : Acc(0);
    }
  }

 private:
  LPL_DEVICE Acc mass(const Member& m, Acc u, i64 j) const {
    const Acc z = kSet == kBare ? u : a_.perturbed(u, int(j), m.row);
    return Scale<Acc>::exp(Scale<Acc>::exponent(z, m.level));
  }

  const Call& call_;
  const Algebra<T, kSet> a_;
  const Group<Acc>& g_;
  const bool in_line_;
};

}  // namespace lpl
