// The multi-label kernels of one instruction set: compiled once for each, as namespace LPL_ISA.
#include "columns.h"
#include "dispatch.h"

namespace lpl {
namespace LPL_ISA {
namespace {

// Loss (summed by row) and gradient, row by row.
template <typename T>
void run_rows(const BinaryCall<T>& call, double norm, Vector<double>& losses) {
  using Acc = typename AccumulateOf<T>::type;
  losses.assign(call.n, 0.0);
  const int threads = call.threads_for(call.n);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const auto scratch = std::make_unique<typename BinaryCall<T>::Scratch>();
#pragma omp for schedule(static)
    for (i64 i = 0; i < call.n; ++i) {
      const auto row = call.row(i, *scratch);
      for (i64 lo = 0; lo < call.c; lo += kBlock) {
        const i64 size = std::min(kBlock, call.c - lo);
        Acc* y = scratch->y;
        const bool hard = call.labels(i, lo, size, y);
        losses[i] += call.block(i, lo, size, call.logits(i) + lo, y, hard, row, call.offset(0) + lo,
                                call.offset(1) + lo, norm, *scratch);
      }
    }
  }
}

// The same with a learned perturbation, and that into `delta`: tile by tile of classes.
template <typename T>
BinaryStatus run_columns(const BinaryCall<T>& call, double norm, Vector<double>& losses) {
  using Acc = typename AccumulateOf<T>::type;
  const bool wants_loss = call.out.loss || call.out.grad;
  Vector<typename BinaryCall<T>::Row> rows(call.n);
  const i64 width = Columns<T>::width(call, call.threads_for(call.c));
  const i64 tiles = (call.c + width - 1) / width;
  losses.assign(tiles, 0.0);
  i64 solved = 0, swept = 0;
  const int threads = call.threads_for(std::max(tiles, call.n));
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(+ : solved, swept)
  {
    const auto scratch = std::make_unique<typename BinaryCall<T>::Scratch>();
#pragma omp for schedule(static)
    for (i64 i = 0; i < call.n; ++i) rows[i] = call.row(i, *scratch);
    Columns<T> columns(call, width);
    BinaryStatus status{};
#pragma omp for schedule(dynamic)
    for (i64 tile = 0; tile < tiles; ++tile) {
      const i64 lo = tile * width, size = std::min(width, call.c - lo);
      columns.learn(lo, size, status);
      if (call.out.delta) {
        Acc* delta = static_cast<Acc*>(call.out.delta) + lo;
        for (i64 j = 0; j < size; ++j) {
          delta[j] = columns.delta(1, j);
          delta[call.c + j] = columns.delta(0, j);
        }
      }
      if (!wants_loss) continue;
      for (i64 i = 0; i < call.n; ++i)
        losses[tile] +=
            call.block(i, lo, size, columns.logits(i), columns.labels(i), columns.hard(), rows[i],
                       columns.offset(0), columns.offset(1), norm, *scratch);
    }
    solved += status.solved;
    swept += status.swept;
  }
  return {solved, swept};
}

template <typename T>
BinaryStatus run_type(const BinaryProblem& p, const BinaryOutputs& out) {
  using Acc = typename AccumulateOf<T>::type;
  const BinaryCall<T> call(p, out);
  const double norm = call.normalizer();
  Vector<double> losses;
  BinaryStatus status{};
  if (p.steps) {
    status = run_columns(call, norm, losses);
  } else {
    run_rows(call, norm, losses);
  }
  if (out.norm) *static_cast<Acc*>(out.norm) = Acc(norm);
  if (out.loss && p.reduction != Reduction::none) {
    double total = 0;
    for (const double loss : losses) total += loss;
    *static_cast<Acc*>(out.loss) = Acc(total / norm);
  }
  return status;
}

}  // namespace

BinaryStatus binary_cross_entropy(const BinaryProblem& p, const BinaryOutputs& out) {
  switch (p.dtype) {
    case DType::f64: return run_type<double>(p, out);
    case DType::bf16: return run_type<BFloat16>(p, out);
    case DType::f16: return run_type<Float16>(p, out);
    default: return run_type<float>(p, out);
  }
}

}  // namespace LPL_ISA
}  // namespace lpl
