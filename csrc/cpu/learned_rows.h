// All rows of a batch under the learned perturbation of their classes: who is solved, who takes
// plain steps, and which thread does it.
#pragma once

#include "group_solver.h"
#include "learned.h"
#include "solver.h"

namespace lpl {
namespace {

// Rows of a batch by what they have to do.
template <typename T>
struct Plan {
  Vector<Group> large;   // several rows that all threads share
  Vector<Group> small;   // several rows for one thread, and rows that take no steps
  Vector<Group> unique;  // one row alone in its class, most steps first
  int threads;

  Plan(const Learned<T>& learned, const Grouping& grouping, const Call<T>& call) {
    const auto alone = [&](const Group& g) { return g.size == 1 && learned.steps(g) > 0; };
    const auto work_of = [&](const Group& g) {
      const double plain = double(learned.steps(g));
      return i64((alone(g) ? 2 : std::min(plain, GroupSolver<T>::kCost)) * g.size * call.c);
    };
    i64 work = 0;
    for (const Group& g : grouping.groups) work += work_of(g);
    threads = call.threads_for(work + call.n * call.c);
    for (const Group& g : grouping.groups) {
      const bool heavy = g.size > 1 && threads > 1 && work_of(g) > work / (2 * threads);
      (alone(g) ? unique : heavy ? large : small).push_back(g);
    }
    // rows that are solved side by side had better take as many steps, all up or all down
    std::stable_sort(unique.begin(), unique.end(), [&](const Group& a, const Group& b) {
      const i64 ours = call.p.steps[a.label], theirs = call.p.steps[b.label];
      return std::make_pair(std::abs(ours), ours) > std::make_pair(std::abs(theirs), theirs);
    });
  }

  // Whether several rows share a perturbation.
  bool shared(const Learned<T>& learned) const {
    const auto moves = [&](const Group& g) { return g.size > 1 && learned.steps(g) > 0; };
    return !large.empty() || std::any_of(small.begin(), small.end(), moves);
  }
};

// Runs every row once, by one of
//     row(thread, i, delta)        under δ (C,), null where it does not move
//     solved(thread, i, solver, lane)  as the solver left it; false if it wants δ after all
// `place(i)` says where the row's exponentials may go until then, null if nowhere.
template <typename T, typename Place, typename SolvedRow, typename Row>
void run_learned(const Call<T>& call, const Plan<T>& plan, const Learned<T>& learned, Place place,
                 SolvedRow solved, Row row, Status* status) {
  using Acc = typename AccumulateOf<T>::type;
  const i64 c = call.c;
  i64 rows_solved = 0, rows_swept = 0;
  const auto move = [&](GroupSolver<T>& solver, const Group& group, Acc* delta, int threads,
                        i64& solved_rows, i64& swept_rows) {
    const i64 steps = learned.steps(group);
    if (solver.pays(group, steps)) {
      const bool found = solver.run(group, steps, delta, threads, place);
      (found ? solved_rows : swept_rows) += group.size;
      if (found) return;
    }
    learned.run(group, delta, threads);
  };
  Vector<Acc> shared_delta(plan.large.empty() ? 0 : c);
  for (const Group& group : plan.large) {
    GroupSolver<T> solver(call);
    move(solver, group, shared_delta.data(), plan.threads, rows_solved, rows_swept);
#pragma omp parallel for schedule(static) num_threads(plan.threads)
    for (i64 r = 0; r < group.size; ++r)
      row(omp_get_thread_num(), group.rows[r], shared_delta.data());
  }
#pragma omp parallel num_threads(plan.threads) if (plan.threads > 1) \
    reduction(+ : rows_solved, rows_swept)
  {
    const int thread = omp_get_thread_num();
    Vector<Acc> delta(c);
    GroupSolver<T> group_solver(call);
#pragma omp for schedule(dynamic) nowait
    for (i64 g = 0; g < i64(plan.small.size()); ++g) {
      const Group& group = plan.small[g];
      const bool moves = learned.steps(group) > 0;
      if (moves) move(group_solver, group, delta.data(), 1, rows_solved, rows_swept);
      for (i64 r = 0; r < group.size; ++r)
        row(thread, group.rows[r], moves ? delta.data() : nullptr);
    }

    Solver<T> solver(call);
    const i64 lanes = solver.lanes(), count = plan.unique.size();
    Vector<Acc> e(lanes * c), z(c), capped(call.p.softcap > 0 ? kBlock : 0);
#pragma omp for schedule(dynamic)
    for (i64 first = 0; first < count; first += lanes) {
      const int size = int(std::min(lanes, count - first));
      for (int lane = 0; lane < size; ++lane) {
        const i64 i = plan.unique[first + lane].rows[0];
        Acc* own = place(i);
        solver.take(lane, i, own ? own : e.data() + lane * c, z.data(), capped.data());
      }
      solver.solve(size);
      for (int lane = 0; lane < size; ++lane) {
        const Group& group = plan.unique[first + lane];
        const i64 i = group.rows[0];
        switch (solver.state(lane)) {
          case State::unmoved: row(thread, i, nullptr); break;
          case State::lost:
            std::fill(delta.begin(), delta.end(), Acc(NAN));
            row(thread, i, delta.data());
            break;
          case State::solved:
            ++rows_solved;
            if (solved(thread, i, solver, lane)) break;
            solver.perturbation(lane, group.label, delta.data());
            row(thread, i, delta.data());
            break;
          case State::open:
            ++rows_swept;
            learned.run(group, delta.data(), 1);
            row(thread, i, delta.data());
        }
      }
    }
  }
  status->solved = rows_solved;
  status->swept = rows_swept;
}

}  // namespace
}  // namespace lpl
