// The kernels of one instruction set: this file is compiled once for each, as namespace LPL_ISA.
#include <cstdlib>
#include <type_traits>

#include "dispatch.h"
#include "learned_rows.h"
#include "narrow_rows.h"
#include "row_loss.h"

namespace lpl {
namespace LPL_ISA {
namespace {

template <typename T>
Status cross_entropy_of_type(const Problem& p, const Outputs& out) {
  using Acc = typename AccumulateOf<T>::type;
  const Call<T> call(p);
  Status status = call.check();
  if (status.fault != Fault::none) return status;

  const double norm = call.normalizer();
  const RowLoss<T> row_loss(call, out, norm);
  Vector<Acc> kept;
  Acc* losses = static_cast<Acc*>(out.loss);
  if (p.reduction != Reduction::none && out.loss) {
    kept.resize(p.n);
    losses = kept.data();
  }

  Vector<Workspace<Acc>> workspaces;
  const auto run_row = [&](i64 i, const Acc* delta, Workspace<Acc>& w) {
    const Acc loss = row_loss.run(i, delta, w);
    if (losses) losses[i] = loss;
  };

  if (NarrowRows<T>::serves(call, out)) {
    constexpr i64 kRows = NarrowRows<T>::kRows;
    const int threads = call.threads_for(p.n * p.c);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      NarrowRows<T> rows(call, out, norm);
#pragma omp for schedule(static)
      for (i64 i = 0; i < p.n; i += kRows) rows.run(i, std::min(kRows, p.n - i), losses);
    }
  } else if (!p.steps) {
    const int threads = call.threads_for(p.n * p.c);
    workspaces.resize(threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Workspace<Acc>& w = workspaces[omp_get_thread_num()];
      w = row_loss.workspace();
#pragma omp for schedule(static)
      for (i64 i = 0; i < p.n; ++i) run_row(i, nullptr, w);
    }
  } else {
    const Learned<T> learned(call);
    const Grouping grouping(p);
    const Plan<T> plan(learned, grouping, call);
    const bool through = p.through && out.grad;
    if (through && (!row_loss.direct() || plan.shared(learned))) return {Fault::through, 0, 0, 0};
    workspaces.resize(plan.threads);
    for (Workspace<Acc>& w : workspaces) w = row_loss.workspace();
    const auto place = [&](i64 i) { return row_loss.place(i); };
    const auto solved = [&](int thread, i64 i, Solver<T>& solver, int lane) {
      if (!row_loss.direct()) return false;
      const Acc loss = row_loss.run_solved(i, solver, lane, workspaces[thread]);
      if (losses) losses[i] = loss;
      return true;
    };
    const auto row = [&](int thread, i64 i, const Acc* delta) {
      run_row(i, delta, workspaces[thread]);
    };
    run_learned(call, plan, learned, place, solved, row, &status);
    if (through && status.swept > 0) return {Fault::through, status.swept, 0, 0};
  }

  if (out.norm) *static_cast<Acc*>(out.norm) = Acc(norm);
  if (p.reduction != Reduction::none && out.loss) {
    double total = 0;
    for (i64 i = 0; i < p.n; ++i) total += losses[i];
    *static_cast<Acc*>(out.loss) = Acc(total / norm);
  }
  return status;
}

template <typename T>
Status learned_perturbation_of_type(const Problem& p, const Outputs& out) {
  using Acc = typename AccumulateOf<T>::type;
  const Call<T> call(p);
  Status status = call.check();
  if (status.fault != Fault::none) return status;
  const Learned<T> learned(call);
  const Grouping grouping(p);
  const Plan<T> plan(learned, grouping, call);
  for (const Group& group : grouping.groups)
    for (i64 r = 0; r < group.size; ++r) out.slot[group.rows[r]] = group.rows[0];
  Acc* all = static_cast<Acc*>(out.delta);
  const auto row = [&](int, i64 i, const Acc* delta) {
    if (delta && out.slot[i] == i) std::copy(delta, delta + p.c, all + i * p.c);
  };
  run_learned(
      call, plan, learned, [](i64) -> Acc* { return nullptr; },
      [](int, i64, Solver<T>&, int) { return false; }, row, &status);
  return status;
}

// The exponentials of every row into the gradient's row, and −log p of the target into the loss.
template <typename T>
Status sweep_of_type(const Problem& p, const Outputs& out) {
  using Acc = typename AccumulateOf<T>::type;
  const Call<T> call(p);
  const Status status = call.check();
  if (status.fault != Fault::none) return status;
  const int threads = call.threads_for(p.n * p.c);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Vector<Acc> z(p.c);
#pragma omp for schedule(static)
    for (i64 i = 0; i < p.n; ++i) {
      Acc* swept = static_cast<Acc*>(out.swept) + 3 * i;
      Acc* loss = static_cast<Acc*>(out.loss) + i;
      *loss = 0;
      if (call.ignored(p.target[i])) continue;
      Acc* e = static_cast<Acc*>(out.grad) + i * p.c;
      const auto row = call.exponentials(i, nullptr, p.target[i], z.data(), nullptr, e);
      swept[0] = row.shift;
      swept[1] = Acc(row.rest);
      swept[2] = row.own;
      const Acc lift = row.own - row.shift;
      *loss = cross_entropy_of(lift, exp_of(lift), swept[1]);
    }
  }
  return status;
}

// Finished gradients times an upstream gradient, each row by its own or all, whatever their rows,
// by one; nothing is done, and a fault said, where one is not finite, which ignored rows must not
// hear of. From the last to the first: those written last are still in the caches.
template <typename T>
Status scale_rows_of_type(const Problem& p, const Outputs& out) {
  using Acc = typename AccumulateOf<T>::type;
  const Acc* factors = static_cast<const Acc*>(out.grad_rows);
  const bool one = out.grad_rows_stride == 0;
  if (one && *factors == 1) return {};
  for (i64 i = 0; i < (one ? 1 : p.n); ++i)
    if (!std::isfinite(factors[i * out.grad_rows_stride])) return {Fault::upstream, i, 0, 0};
  const i64 all = p.n * p.c, length = one ? 4 * kBlock : p.c;
  const i64 pieces = length > 0 ? (all + length - 1) / length : 0;
  const int threads = Call<T>(p).threads_for(all);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 thread = 0; thread < threads; ++thread) {
    for (i64 i = pieces * (thread + 1) / threads - 1; i >= pieces * thread / threads; --i) {
      T* piece = static_cast<T*>(out.grad) + i * length;
      const Acc factor = factors[i * out.grad_rows_stride];
      const i64 size = std::min(length, all - i * length);
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) piece[j] = store<T>(load(piece[j]) * factor);
    }
  }
  return {};
}

}  // namespace

Status cross_entropy(const Problem& p, const Outputs& out) {
  return for_type(p.dtype, [&](auto t) { return cross_entropy_of_type<decltype(t)>(p, out); });
}

Status learned_perturbation(const Problem& p, const Outputs& out) {
  return for_type(p.dtype,
                  [&](auto t) { return learned_perturbation_of_type<decltype(t)>(p, out); });
}

Status sweep(const Problem& p, const Outputs& out) {
  if (p.dtype == DType::f64) return sweep_of_type<double>(p, out);
  return sweep_of_type<float>(p, out);
}

Status scale_rows(const Problem& p, const Outputs& out) {
  return for_type(p.dtype, [&](auto t) { return scale_rows_of_type<decltype(t)>(p, out); });
}

}  // namespace LPL_ISA
}  // namespace lpl
