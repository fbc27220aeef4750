// The kernels of one instruction set for parts of a problem's columns: compiled once for each, as
// namespace LPL_ISA.
#include "dispatch.h"
#include "part_gradient.h"
#include "part_sums.h"

namespace lpl {
namespace LPL_ISA {
namespace {

// Runs every row by the worker that make() gives its thread.
template <typename T, typename Make>
Status for_rows(const Problem& p, Make make) {
  const Call<T> call(p);
  const Status status = call.check();
  if (status.fault != Fault::none) return status;
  const int threads = call.threads_for(p.n * p.c);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    auto worker = make(call);
#pragma omp for schedule(static)
    for (i64 i = 0; i < p.n; ++i) worker.run(i);
  }
  return status;
}

template <typename T>
class Perturbed {
 public:
  using Acc = typename AccumulateOf<T>::type;

  Perturbed(const Call<T>& call, const Known& known, i64 begin, i64 end, void* out)
      : rows_(call, known), begin_(begin), end_(end), out_(static_cast<Acc*>(out)) {}

  void run(i64 i) {
    Acc* row = out_ + i * (end_ - begin_) - begin_;
    for (i64 lo = begin_; lo < end_; lo += kBlock) {
      const i64 size = std::min(kBlock, end_ - lo);
      if (rows_.call.nothing(i)) {
        std::fill(row + lo, row + lo + size, Acc(0));
      } else {
        const Acc* z = rows_.z(i, lo, size);
        std::copy(z, z + size, row + lo);
      }
    }
  }

 private:
  PartRows<T> rows_;
  const i64 begin_, end_;
  Acc* out_;
};

// The gradient with sums of tables, whose order is that of chunks of rows, whichever thread has
// them.
template <typename T>
Status sum_tables(const Problem& p, const Known& known, const Outputs& out) {
  using Acc = typename AccumulateOf<T>::type;
  constexpr i64 kFew = PartGradient<T>::kFew;
  const Call<T> call(p);
  const Status status = call.check();
  if (status.fault != Fault::none) return status;
  const i64 few = std::max<i64>(1, 4 * kWorkPerThread / (kFew * std::max<i64>(1, p.c)));
  const i64 rows = few * kFew, chunks = (p.n + rows - 1) / rows;
  const int threads = int(std::min<i64>(call.threads_for(p.n * p.c), std::max<i64>(1, chunks)));
  PartGradient<T> shared(call, known, out);
  using Sum = typename PartGradient<T>::Sum;
  Sum* const totals[] = {&shared.scale, &shared.offset, &shared.margin};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    PartGradient<T> part(call, known, out);
    Sum* const sums[] = {&part.scale, &part.offset, &part.margin};
#pragma omp for ordered schedule(static, 1)
    for (i64 chunk = 0; chunk < chunks; ++chunk) {
      const i64 end = std::min(p.n, (chunk + 1) * rows);
      for (i64 i = chunk * rows; i < end; ++i) {
        part.run(i);
        if ((i + 1) % kFew == 0 || i + 1 == end)
          for (Sum* sum : sums) sum->settle();
      }
#pragma omp ordered
      for (int k = 0; k < 3; ++k) sums[k]->add_to(totals[k]->many);
    }
  }
  void* const places[] = {out.grad_scale, out.grad_offset, out.grad_margin};
  for (int k = 0; k < 3; ++k)
    for (size_t j = 0; j < totals[k]->many.size(); ++j)
      static_cast<Acc*>(places[k])[j] += Acc(totals[k]->many[j]);
  return status;
}

}  // namespace

Status reduce(const Problem& p, const Known& known, Kind kind, const Sums& out) {
  return for_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    return for_rows<T>(p, [&](const Call<T>& call) { return PartSums<T>(call, known, out, kind); });
  });
}

Status perturbed(const Problem& p, const Known& known, int64_t begin, int64_t end, void* out) {
  return for_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    return for_rows<T>(
        p, [&](const Call<T>& call) { return Perturbed<T>(call, known, begin, end, out); });
  });
}

// Sums of tables are added to what the caller has set to 0.
Status gradient(const Problem& p, const Known& known, const Outputs& out) {
  return for_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (out.grad_scale || out.grad_offset || out.grad_margin) return sum_tables<T>(p, known, out);
    return for_rows<T>(p, [&](const Call<T>& call) { return PartGradient<T>(call, known, out); });
  });
}

}  // namespace LPL_ISA
}  // namespace lpl
