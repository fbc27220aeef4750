// The multi-label kernels of one instruction set: compiled once for each, as namespace LPL_ISA.
#include "columns.h"
#include "dispatch.h"

namespace lpl {
namespace LPL_ISA {
namespace {

// Labels for each that is not 0, from where a block is made for zeros and mended.
constexpr i64 kFewPatches = 64;

// Loss, summed by rows that share a block, and gradient.
template <typename T>
void run_rows(const BinaryCall<T>& call, double norm, Vector<double>& losses) {
  using Scratch = typename BinaryCall<T>::Scratch;
  const i64 n = call.n, c = call.c, height = call.height(), batches = (n + height - 1) / height;
  losses.assign(batches, 0.0);
  const int threads = call.threads_for(batches);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const std::unique_ptr<Scratch> scratch(new Scratch);  // not filled with zeros
    Vector<typename BinaryCall<T>::Factors> factors(height);
    typename BinaryCall<T>::Entries entries;
#pragma omp for schedule(static)
    for (i64 batch = 0; batch < batches; ++batch) {
      const i64 i = batch * height, rows = std::min(height, n - i);
      const bool listed = call.list(i, rows, 0, c, kFewPatches, entries);
      auto *front = entries.data(), *end = front + entries.size();
      for (i64 lo = 0; lo < c; lo += kBlock) {
        auto b = call.block(i, rows, lo, std::min(kBlock, c - lo), factors.data(), norm, *scratch);
        call.read(b, *scratch);
        if (!listed) call.label(b, *scratch);
        if (lo == 0) call.factors(i, rows, listed ? &entries : nullptr, *scratch, factors.data());
        losses[batch] += listed ? call.listed(b, front, end, *scratch) : call.mixed(b, *scratch);
      }
    }
  }
}

// Learned perturbations, into `delta`, tile by tile of classes; and, unless rows of few classes are
// better done together, the same as above with them.
template <typename T>
BinaryStatus run_columns(BinaryCall<T>& call, double norm, Vector<double>& losses) {
  using Acc = typename BinaryCall<T>::Acc;
  using Scratch = typename BinaryCall<T>::Scratch;
  const i64 n = call.n, c = call.c;
  const bool wants_loss = call.out.loss || call.out.grad;
  Vector<typename BinaryCall<T>::Factors> factors(n);
  const i64 width = Columns<T>::width(call);
  const i64 tiles = (c + width - 1) / width, height = kBlock / width;
  losses.assign(tiles, 0.0);
  i64 solved = 0, swept = 0;
  const int threads = call.threads_for(std::max(tiles, n));
  Vector<Acc> moved(call.out.delta ? 0 : 2 * c);
  Acc* delta = call.out.delta ? static_cast<Acc*>(call.out.delta) : moved.data();
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(+ : solved, swept)
  {
    const std::unique_ptr<Scratch> scratch(new Scratch);
    if (wants_loss && !call.narrow()) {
#pragma omp for schedule(static)
      for (i64 i = 0; i < n; ++i) call.factors(i, 1, nullptr, *scratch, &factors[i]);
    }
    Columns<T> columns(call, width);
    BinaryStatus status{};
#pragma omp for schedule(dynamic)
    for (i64 tile = 0; tile < tiles; ++tile) {
      const i64 lo = tile * width, size = std::min(width, c - lo);
      columns.learn(lo, size, status);
      for (const int side : {1, 0}) {
        const Acc* learned = columns.delta(side);
        std::copy(learned, learned + size, delta + lo + (side ? 0 : c));
      }
      if (!wants_loss || call.narrow()) continue;
      const bool listed = columns.listed();
      auto *front = columns.entries().data(), *end = front + columns.entries().size();
      for (i64 i = 0; i < n; i += height) {
        const i64 rows = std::min(height, n - i);
        auto b = call.block(i, rows, lo, size, &factors[i], norm, *scratch);
        for (i64 r = i + kAhead; call.out.grad && r < std::min(n, i + rows + kAhead); ++r)
          prefetch<true>(static_cast<const T*>(call.out.grad) + r * c + lo, size);
        columns.perturb(b);
        listed ? columns.read(b) : call.read(b, *scratch);
        if (!listed) call.label(b, *scratch);
        losses[tile] += listed ? call.listed(b, front, end, *scratch) : call.mixed(b, *scratch);
      }
    }
    solved += status.solved;
    swept += status.swept;
  }
  if (wants_loss && call.narrow()) {
    call.move(delta + c, delta);
    run_rows(call, norm, losses);
  }
  return {solved, swept};
}

template <typename T>
BinaryStatus run_type(const BinaryProblem& p, const BinaryOutputs& out) {
  using Acc = typename AccumulateOf<T>::type;
  BinaryCall<T> call(p, out);
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
  return for_type(p.dtype, [&](auto t) { return run_type<decltype(t)>(p, out); });
}

}  // namespace LPL_ISA
}  // namespace lpl
