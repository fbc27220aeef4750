// The kernels of one instruction set: this file is compiled once for each, as namespace LPL_ISA.
#include <cstdlib>
#include <type_traits>

#include "dispatch.h"
#include "learned.h"
#include "row_loss.h"

namespace lpl {
namespace LPL_ISA {
namespace {

template <typename Acc>
void add_all(void* total, std::vector<Workspace<Acc>>& parts,
             std::vector<Acc> Workspace<Acc>::* sum, i64 c) {
  if (!total) return;
  Acc* to = static_cast<Acc*>(total);
  std::fill(to, to + c, Acc(0));
  for (Workspace<Acc>& part : parts) {
    const Acc* from = (part.*sum).data();
    if ((part.*sum).empty()) continue;  // a thread that had no rows
    LPL_SIMD
    for (i64 j = 0; j < c; ++j) to[j] += from[j];
  }
}

template <typename T>
Status cross_entropy_of_type(const Problem& p, const Outputs& out) {
  using Acc = typename AccumulateOf<T>::type;
  const Call<T> call(p);
  const Status status = call.check();
  if (status.fault != Fault::none) return status;

  const double norm = call.normalizer();
  const RowLoss<T> row_loss(call, out, norm);
  std::vector<Acc> kept;
  Acc* losses = static_cast<Acc*>(out.loss);
  if (p.reduction != Reduction::none && out.loss) {
    kept.resize(p.n);
    losses = kept.data();
  }

  std::vector<Workspace<Acc>> workspaces;
  const auto run_row = [&](i64 i, const Acc* delta, Workspace<Acc>& w) {
    const Acc loss = row_loss.run(i, delta, w);
    if (losses) losses[i] = loss;
  };

  if (!p.steps) {
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
    i64 work = p.n * p.c;
    for (const Group& group : grouping.groups) work += learned.work(group);
    const int threads = call.threads_for(work);
    workspaces.resize(threads);
    for (Workspace<Acc>& w : workspaces) w = row_loss.workspace();
    // A group that outweighs a thread's fair share is worked on by all threads; the others go
    // whole to one thread each.
    const auto large = [&](const Group& group) {
      return threads > 1 && group.size > 1 && learned.work(group) > work / (2 * threads);
    };
    std::vector<Acc> delta(p.c);
    for (const Group& group : grouping.groups) {
      if (!large(group)) continue;
      learned.run(group, delta.data(), threads);
#pragma omp parallel for schedule(static) num_threads(threads)
      for (i64 r = 0; r < group.size; ++r)
        run_row(group.rows[r], delta.data(), workspaces[omp_get_thread_num()]);
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Workspace<Acc>& w = workspaces[omp_get_thread_num()];
      std::vector<Acc> own_delta(p.c);
#pragma omp for schedule(dynamic)
      for (i64 g = 0; g < i64(grouping.groups.size()); ++g) {
        const Group& group = grouping.groups[g];
        if (large(group)) continue;
        const bool moves = learned.steps(group) > 0;
        if (moves) learned.run(group, own_delta.data(), 1);
        for (i64 r = 0; r < group.size; ++r)
          run_row(group.rows[r], moves ? own_delta.data() : nullptr, w);
      }
    }
  }

  add_all(out.grad_scale, workspaces, &Workspace<Acc>::grad_scale, p.c);
  add_all(out.grad_offset, workspaces, &Workspace<Acc>::grad_offset, p.c);
  add_all(out.grad_margin, workspaces, &Workspace<Acc>::grad_margin, p.c);
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
  const Status status = call.check();
  if (status.fault != Fault::none) return status;
  const Learned<T> learned(call);
  const Grouping grouping(p);
  i64 work = 0;
  for (const Group& group : grouping.groups) work += learned.work(group);
  const int threads = call.threads_for(work);
  Acc* delta = static_cast<Acc*>(out.delta);
  for (const Group& group : grouping.groups) {
    for (i64 r = 0; r < group.size; ++r) out.slot[group.rows[r]] = group.rows[0];
    if (learned.steps(group) > 0) learned.run(group, delta + group.rows[0] * p.c, threads);
  }
  return status;
}

template <typename Run>
Status for_type(DType dtype, Run run) {
  switch (dtype) {
    case DType::f64: return run(double());
    case DType::bf16: return run(BFloat16());
    case DType::f16: return run(Float16());
    default: return run(float());
  }
}

}  // namespace

Status cross_entropy(const Problem& p, const Outputs& out) {
  return for_type(p.dtype, [&](auto t) { return cross_entropy_of_type<decltype(t)>(p, out); });
}

Status learned_perturbation(const Problem& p, const Outputs& out) {
  return for_type(p.dtype,
                  [&](auto t) { return learned_perturbation_of_type<decltype(t)>(p, out); });
}

}  // namespace LPL_ISA
}  // namespace lpl
