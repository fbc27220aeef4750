// The order of kernels in a call. A Launcher (kernels.cu; in tests the host) offers
//     rows(body, call, n, bytes, stage)   a team for each of n rows of so many bytes, on chip if
//                                         `stage`
//     rows_beside(body, call, n, bytes, other, teams)
//                                         a team for each of n rows, on chip, beside teams of
//                                         another body, which begin first: as many as teams(size)
//                                         says of teams of so many threads
//     pieces(body, call, n, bytes)        the same as rows for bodies whose threads need
//                                         nothing of each other
//     pieces_beside(body, call, n, bytes, other, teams, work)
//                                         the same, beside teams of another body for `work` bytes
//                                         each, which begin first
//     warps(body, call, n)                a warp for each of n rows
//     warps_beside(body, n, other, teams, call)
//                                         the same, beside teams of another body, which begin first
//     batches(body, call, count)          so many of the largest teams, of batch_places() threads
//     once(body, call)                    one of them for all
//     many_rows()                         how many keep all of it busy, a block each
//     most_compared()                     how many are compared, each with all, rather than sorted
//     few_rows(), few_logits()            that are compared beside their statistics
//     few_losses()                        that the last row adds up
//     crew                                threads of a warp
#pragma once

#include <type_traits>

#include "batch.h"
#include "group_steps.h"
#include "group_tail.h"
#include "grouping.h"
#include "kernels.h"
#include "learned_gradient.h"
#include "learned_statistics.h"
#include "learned_stats.h"
#include "paths.h"
#include "reduce.h"
#include "row_steps.h"
#include "swept.h"
#include "types.h"

namespace lpl {

template <Set... kSets>
struct SetList {};

inline bool serves(const Path& path, const Call& call) {
  return path.serves(features_of(call.p), wanted_of(call.out));
}

inline const Path& path_of(Set set) {
  switch (set) {
    case kBare: return kBarePath;
    case kTables: return kTablesPath;
    case kEven: return kEvenPath;
    case kLength: return kLengthPath;
    case kTables | kLength: return kLengthTablesPath;
    case kPull: return kPullPath;
    case kMove: return kMovePath;
    default: return kPartPath;
  }
}

// use(Body<T, set>()) of the first of these sets that serves the call, or of all there is.
template <template <typename, Set> class Body, typename T, typename Use>
void for_set(const Call&, SetList<>, Use use) {
  use(Body<T, kAll>());
}
template <template <typename, Set> class Body, typename T, typename Use, Set kFirst, Set... kOthers>
void for_set(const Call& call, SetList<kFirst, kOthers...>, Use use) {
  // float64 has no kernels of its own for what is less than all
  if constexpr (!std::is_same<T, double>::value)
    if (serves(path_of(kFirst), call) &&
        !((kFirst & kLength) && norm_of(call.p.norm_p) == Norm::other))
      return use(Body<T, kFirst>());
  for_set<Body, T>(call, SetList<kOthers...>(), use);
}

// A team for every row.
template <template <typename, Set> class Body, typename T, typename Launcher, typename Sets>
void launch_rows(Launcher& launch, const Call& call, bool stage, Sets sets) {
  for_set<Body, T>(call, sets, [&](auto body) {
    launch.rows(body, call, call.p.n, call.p.c * i64(sizeof(T)), stage);
  });
}

// Whether a call is one for rows beside each other: tables are all that it has of columns, and all
// rows of logits and gradient, and the tables, lie alike in lines of memory.
template <typename T>
bool shares_tables(const Call& call) {
  using Acc = typename AccumulateOf<T>::type;
  const auto in_line = [](i64 stride) { return stride * i64(sizeof(T)) % 16 == 0; };
  const auto place = [](const void* row) { return i64(reinterpret_cast<uintptr_t>(row) % 16); };
  // of the table's number that is beside the first of a line of logits
  const i64 before = place(call.p.input) / i64(sizeof(T)) * i64(sizeof(Acc));
  const auto beside = [&](const void* table) {
    return !table || (place(table) - before) % 16 == 0;
  };
  const bool alike = !call.out.grad || place(call.out.grad) == place(call.p.input);
  return !std::is_same<T, double>::value && serves(kTablesPath, call) && !serves(kBarePath, call) &&
         in_line(call.p.row_stride) && (!call.out.grad || in_line(call.p.c)) && alike &&
         beside(call.p.scale) && beside(call.p.offset);
}

using LeanRows = SetList<kBare, kTables, kEven, kLength, kTables | kLength, kPull>;
// gradients of parts know of a δ
using Lean = SetList<kBare, kTables, kEven, kLength, kTables | kLength, kPull, kMove>;

// Work for classes with several rows, of which a batch may have none: as many teams as keep a
// device busy take rows in turn, so that a batch without such classes pays little for each kernel.
template <typename Body>
struct InTurns {
  using Acc = typename Body::Acc;
  using Shared = typename Body::Shared;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 t) {
    const unsigned step = unsigned(kTurns * call.scratch.teams);
    if (!Body::wanted(team, call, t, step)) return;
    const unsigned n = unsigned(call.p.n);  // read before, it takes a register too much on 10.0
    for (unsigned i = unsigned(t); i < n; i += step) {
      Body::run(team, call, i);
      team.sync();  // the memory that the block has for itself
    }
  }

  LPL_HOST_DEVICE static i64 teams(const Call& call) {
    const i64 teams = kTurns * call.scratch.teams;
    return call.p.n < teams ? call.p.n : teams;
  }

 private:
  static constexpr int kTurns = 4;  // teams for each that has memory for plain steps
};

// Such teams, and behind them those that have memory for plain steps.
template <typename Body, typename Left>
struct InTurnsAndLeft {
  using Acc = typename Body::Acc;
  using InTurns = lpl::InTurns<Body>;
  union Shared {
    typename Body::Shared of_turns;
    typename Left::Shared of_left;
  };

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 t) {
    const i64 in_turns = InTurns::teams(call);
    if (t < in_turns)
      InTurns::run(team, call, t);
    else
      Left::run(team, call, t - in_turns);
  }

  LPL_HOST_DEVICE static i64 teams(const Call& call) {
    return InTurns::teams(call) + call.scratch.teams;
  }
};

template <typename Body, typename Launcher>
void launch_in_turns(Launcher& launch, Body, const Call& call, i64 bytes) {
  launch.rows(InTurns<Body>(), call, InTurns<Body>::teams(call), bytes, false);
}

// use(Body<T, set>()) for a learned perturbation of rows in the set that serves the call.
template <template <typename, Set> class Body, typename T, typename Use>
void for_learned(const Call& call, Use use) {
  constexpr bool simple = !std::is_same<T, double>::value;
  if constexpr (simple)
    if (serves(kLearnedBarePath, call)) return use(Body<T, kBare>());
  use(Body<T, kAll>());
}
// The same where tables alone have a kernel of their own, too: whether that serves the call.
template <template <typename, Set> class Body, typename T, typename Use>
bool for_tables(const Call& call, Use use) {
  if constexpr (!std::is_same<T, double>::value) {
    if (!serves(kLearnedBarePath, call) && serves(kLearnedTablesPath, call)) {
      use(Body<T, kTables>());
      return true;
    }
  }
  return false;
}

// What bytes of a row would be as much work as a team of such a class has: a warp for every part of
// the columns, whether it finds gains, takes steps or makes gradients.
inline i64 group_work(i64 c) {
  const i64 parts = (c + kColumnsOfPart - 1) / kColumnsOfPart;
  return parts * 8192 - 16;
}

inline Call but_for_statistics(Call call) {
  call.out.lse = call.out.entropy = nullptr;
  call.out.correct = nullptr;
  return call;
}

// Statistics of rows, by a sweep of its own, for which nothing matters but their softmax.
template <typename T, typename Launcher>
void sweep_stats(Launcher& launch, Call call) {
  Outputs out;
  out.lse = call.out.lse;
  out.entropy = call.out.entropy;
  out.correct = call.out.correct;
  out.delta = call.out.delta;
  out.slot = call.out.slot;
  call.out = out;
  call.scratch.losses = nullptr;
  call.p.penalty = Penalty::none;
  call.p.phi = Phi::log;
  call.p.label_smoothing = 0;
  call.p.smoothing = nullptr;
  const bool stage = call.p.norm_p > 0 || call.p.n < launch.many_rows();
  launch.rows(StatsRowBody<T, kAll>(), call, call.p.n, call.p.c * i64(sizeof(T)), stage);
}

// The steps of the classes with several rows, which have taken the first: until they have a
// verdict, which lets the rest of the kernels pass.
template <typename T, typename Launcher>
void relax_groups(Launcher& launch, Call call) {
  using Acc = typename AccumulateOf<T>::type;
  const i64 work = group_work(call.p.c);
  const i64 most = call.p.n * kMostExact * i64(sizeof(Acc));  // that one class has for its steps
  const auto in_turns = [&](auto body) { launch_in_turns(launch, body, call, work); };
  if (call.p.normalize)
    for_learned<FirstNormalizedTailBody, T>(call, in_turns);
  else
    for_learned<FirstTailBody, T>(call, in_turns);
  for_learned<GroupGatherBody, T>(call,
                                  [&](auto body) { launch_in_turns(launch, body, call, most); });
  for (int round = 1; round < kRounds; ++round) {
    call.scratch.round = round;
    if (call.p.normalize)
      for_learned<NormalizedTailBody, T>(call, in_turns);
    else
      for_learned<GroupTailBody, T>(call, in_turns);
  }
}

// Whether rows are ordered by class beside their statistics, in one launch. That has the statistics
// do more than anybody wants of rows that share their class, and teams as small as theirs, of which
// each reads all labels, compare these. A penalty wants its weight at once.
template <typename Launcher>
bool orders_beside(const Launcher& launch, const Call& call) {
  const i64 n = call.p.n;
  return n > 0 && n <= launch.few_rows() && n * call.p.c <= launch.few_logits() &&
         !call.scratch.penalty_weight;
}

// The steps of all rows, but for those that are left.
template <typename T, typename Launcher>
void take_steps(Launcher& launch, Call call) {
  using Acc = typename AccumulateOf<T>::type;
  using Ranks = RanksBody<Acc, 8192>;
  using RanksBeside = RanksBody<Acc, 1024>;
  const i64 n = call.p.n, bytes = call.p.c * i64(sizeof(T));
  const bool beside = orders_beside(launch, call);
  call.scratch.by_class = !beside;
  if (!beside && n <= launch.most_compared())
    launch.batches(Ranks(), call, Ranks::teams(n, launch.batch_places(), launch.crew));
  else if (!beside)
    launch.once(SortBody<Acc>(), call);
  const auto teams = [&](int size) {
    return beside ? RanksBeside::teams(n, size, launch.crew) : 0;
  };
  const auto measure = [&](auto body) {
    launch.rows_beside(body, call, n, bytes, RanksBeside(), teams);
  };
  if (!for_tables<LearnedStatisticsBody, T>(call, measure))
    for_learned<LearnedStatisticsBody, T>(call, measure);
  if (!call.scratch.groups) return launch.warps(RowStepsBody<Acc>(), call, n);
  using First = InTurns<FirstStepsBody<Acc>>;
  launch.warps_beside(RowStepsBody<Acc>(), n, First(), First::teams(call), call);
  relax_groups<T>(launch, call);
}

// All that is wanted of what was left to plain steps.
template <typename T, typename Launcher>
void sweep_left(Launcher& launch, const Call& call) {
  launch.rows(SweptBody<T, kAll>(), call, call.scratch.teams, call.p.c * i64(sizeof(T)), false);
}

// δ of the rows that share theirs with others, or are left to plain steps.
template <typename T, typename Launcher>
void delta_of_others(Launcher& launch, const Call& call) {
  if (call.scratch.groups)
    for_learned<GroupDeltaBody, T>(
        call, [&](auto body) { launch_in_turns(launch, body, call, group_work(call.p.c)); });
  sweep_left<T>(launch, call);
}

// δ of all rows.
template <typename T, typename Launcher>
void learned_perturbation(Launcher& launch, Call call) {
  call.scratch.only_delta = true;
  take_steps<T>(launch, call);
  launch.rows(LearnedDeltaBody<T>(), call, call.p.n, call.p.c * i64(sizeof(T)), false);
  delta_of_others<T>(launch, call);
}

// The loss of every row under its δ, which is there, its gradient and its statistics, if they
// are wanted.
template <typename T, typename Launcher>
void under_delta(Launcher& launch, Call call) {
  call.scratch.only_delta = true;
  launch_rows<RowBody, T>(launch, but_for_statistics(call), true, SetList<>());
  if (call.out.lse) sweep_stats<T>(launch, call);
}

// Statistics of rows whose steps are taken: where they have a δ of their own from what these
// have left, else under δ.
template <typename T, typename Launcher>
void learned_stats(Launcher& launch, Call call) {
  call.scratch.stats_by_steps = true;
  const i64 bytes = call.p.c * i64(sizeof(T));
  for_learned<StatsStepsBody, T>(
      call, [&](auto body) { launch.rows(body, call, call.p.n, bytes, false); });
  call.scratch.only_delta = true;
  delta_of_others<T>(launch, call);
  sweep_stats<T>(launch, call);
}

template <typename T, Set kSet>
using GradientOfOthers = InTurnsAndLeft<GroupGradientBody<T, kSet>, SweptBody<T, kSet>>;

// The gradients of rows whose steps are taken, and all that is wanted of those that are left: in
// one launch where the kernels of both find as much room on a multiprocessor.
template <typename T, typename Launcher>
void gradients_of_steps(Launcher& launch, const Call& call) {
  const i64 n = call.p.n, bytes = call.p.c * i64(sizeof(T)), work = group_work(call.p.c);
  if constexpr (!std::is_same<T, double>::value) {
    if (serves(kLearnedBarePath, call)) {
      using Others = GradientOfOthers<T, kBare>;
      return launch.pieces_beside(LearnedGradientBody<T, kBare>(), call, n, bytes, Others(),
                                  Others::teams(call), work);
    }
  }
  const auto of_rows = [&](auto body) { launch.pieces(body, call, n, bytes); };
  if (!for_tables<LearnedGradientBody, T>(call, of_rows)) of_rows(LearnedGradientBody<T, kAll>());
  using Others = GradientOfOthers<T, kAll>;
  launch.rows(Others(), call, Others::teams(call), work, false);
}

// The loss of every row under a learned perturbation, what its gradient is made of, and if wanted
// that.
template <typename T, typename Launcher>
void learned_cross_entropy(Launcher& launch, const Call& call) {
  if (!serves(kSolvedPath, call)) {
    learned_perturbation<T>(launch, call);
    return under_delta<T>(launch, call);
  }
  take_steps<T>(launch, call);
  if (call.out.grad)
    gradients_of_steps<T>(launch, call);
  else
    sweep_left<T>(launch, call);
  if (call.out.lse) learned_stats<T>(launch, call);
}

// The gradient from what that has left.
template <typename T, typename Launcher>
void learned_gradient(Launcher& launch, const Call& call) {
  if (!serves(kSolvedPath, call)) return under_delta<T>(launch, call);
  gradients_of_steps<T>(launch, call);
}

// What is wanted of rows that learn nothing, but for their statistics.
template <typename T, typename Launcher>
void rows_without_stats(Launcher& launch, const Call& call, bool stage, bool again) {
  const i64 n = call.p.n;
  if constexpr (!std::is_same<T, double>::value)
    if (shares_tables<T>(call) && !again && n >= launch.many_rows())
      return launch.rows(StatisticsBody<T, kTables>(), call, groups_beside(n),
                         call.p.c * i64(sizeof(T)), false);
  launch_rows<RowBody, T>(launch, call, stage, LeanRows());
}

template <typename T, Set kSet>
StatsRowBody<T, kSet> with_stats(RowBody<T, kSet>) {
  return {};
}
template <typename Body>
constexpr bool kHasStats = false;
template <typename T>
constexpr bool kHasStats<RowBody<T, kBare>> = true;
template <typename T>
constexpr bool kHasStats<RowBody<T, kAll>> = true;

// The same with those: from the sweep of their loss where a kernel has both, else
// from one more.
template <typename T, typename Launcher>
void rows_with_stats(Launcher& launch, const Call& call, bool stage, bool again) {
  const Call without = but_for_statistics(call);
  for_set<RowBody, T>(without, LeanRows(), [&](auto body) {
    if constexpr (kHasStats<decltype(body)>) {
      launch.rows(with_stats(body), call, call.p.n, call.p.c * i64(sizeof(T)), stage);
    } else {
      rows_without_stats<T>(launch, without, stage, again);
      sweep_stats<T>(launch, call);
    }
  });
}

// Whether the last row adds up the mean of few plain rows, which spares them a launch.
template <typename Launcher>
bool last_sums(const Launcher& launch, const Call& call) {
  const Problem& p = call.p;
  return !p.steps && !p.normalizer && call.out.norm && call.out.loss && call.scratch.flags &&
         !call.out.lse && p.n > 0 && p.n <= launch.few_losses() && serves(kBarePath, call);
}

// The loss of every row, its terms, its gradient and its statistics, and what is summed over
// the batch, as far as wanted.
template <typename T, typename Launcher>
void cross_entropy(Launcher& launch, Call call) {
  using Acc = typename AccumulateOf<T>::type;
  const Problem& p = call.p;
  if (call.out.norm && !p.normalizer && !p.steps) launch.once(NormBody<Acc>(), call);
  // one sweep of one row needs no stage; few rows are cut, for which they have to be on chip
  const bool again = call.out.grad || p.norm_p > 0 || p.penalty != Penalty::none;
  const bool stage = again || p.n < launch.many_rows() || std::is_same<T, double>::value;
  if constexpr (!std::is_same<T, double>::value)
    if (last_sums(launch, call))
      return launch.rows(AndLoss<RowBody<T, kBare>>(), call, p.n, p.c * i64(sizeof(T)), stage);
  if (p.steps)
    learned_cross_entropy<T>(launch, call);
  else if (call.out.lse)
    rows_with_stats<T>(launch, call, stage, again);
  else
    rows_without_stats<T>(launch, call, stage, again);
  // after plain steps their last team has the sum; of no row there is none
  const bool summed = p.steps && serves(kSolvedPath, call) && p.n > 0 && p.n <= kLossesOfTeam;
  if (call.out.loss && !summed) launch.once(LossBody<Acc>(), call);
}

template <typename T, typename Launcher>
void gradient_of_rows(Launcher& launch, const Call& call) {
  const i64 bytes = call.p.c * i64(sizeof(T));
  if constexpr (!std::is_same<T, double>::value)
    if (shares_tables<T>(call) && !call.scratch.factor)
      return launch.pieces(GradientsBody<T, kTables>(), call, groups_beside(call.p.n), bytes);
  for_set<GradientBody, T>(call, Lean(),
                           [&](auto body) { launch.pieces(body, call, call.p.n, bytes); });
}

// The gradients of rows whose terms are known, as far as wanted.
template <typename T, typename Launcher>
void gradient(Launcher& launch, const Call& call) {
  const Problem& p = call.p;
  const Outputs& out = call.out;
  if (out.grad || out.grad_perturbed || out.grad_margin) gradient_of_rows<T>(launch, call);
  if (!out.grad_scale && !out.grad_offset) return;
  const i64 chunks = (p.n + call.scratch.chunk - 1) / call.scratch.chunk;
  const i64 bytes = p.c * i64(sizeof(T));
  launch.rows(TableBody<T>(), call, chunks * TableBody<T>::tiles(p.c), bytes, false);
}

// A finished gradient times a factor. One of 16 bits is made anew where that would round it again:
// from its terms, or where these are not known from the logits, with all steps.
template <typename T, typename Launcher>
void rescale(Launcher& launch, Call call) {
  if (call.out.terms) return gradient<T>(launch, call);
  launch.pieces(ScaleBody<T>(), call, call.p.n, call.p.c * i64(sizeof(T)));
  if (sizeof(T) != 2) return;
  call.scratch.anew = true;
  cross_entropy<T>(launch, call);
}

// A call of logits of one type.
template <typename T, typename Launcher>
void run_of(Launcher& launch, Work work, const Call& call) {
  const i64 n = call.p.n, bytes = call.p.c * i64(sizeof(T));
  switch (work) {
    case Work::cross_entropy: return cross_entropy<T>(launch, call);
    case Work::learned_perturbation: return learned_perturbation<T>(launch, call);
    case Work::learned_gradient: return learned_gradient<T>(launch, call);
    case Work::size: return launch.rows(SizeBody<T>(), call, n, bytes, true);
    case Work::mass: return launch_rows<MassBody, T>(launch, call, true, SetList<kBare>());
    case Work::detail: return launch.rows(DetailBody<T>(), call, n, bytes, true);
    case Work::rivals: return launch.rows(RivalsBody<T>(), call, n, bytes, true);
    case Work::perturbed: return launch.pieces(PerturbedBody<T>(), call, n, bytes);
    case Work::gradient: return gradient<T>(launch, call);
    case Work::rescale: return rescale<T>(launch, call);
  }
}

// Bytes of a LearnedRow.
inline i64 learned_bytes(DType dtype) {
  return dtype == DType::f64 ? sizeof(LearnedRow<double>) : sizeof(LearnedRow<float>);
}

// Bytes of Scratch::groups.
inline i64 group_bytes(i64 n, i64 c, DType dtype) {
  return dtype == DType::f64 ? Group<double>::bytes(n, c) : Group<float>::bytes(n, c);
}

}  // namespace lpl
