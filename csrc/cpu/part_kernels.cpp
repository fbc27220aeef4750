// The kernels of one instruction set for parts of a problem's columns: compiled once for each, as
// namespace LPL_ISA.
#include "dispatch.h"
#include "part_gradient.h"
#include "part_sums.h"

namespace lpl {
namespace LPL_ISA {
namespace {

// Runs every row by the worker that make() gives its thread, then done(worker) thread by thread.
template <typename T, typename Make, typename Done>
Status for_rows(const Problem& p, Make make, Done done) {
  const Call<T> call(p);
  const Status status = call.check();
  if (status.fault != Fault::none) return status;
  const int threads = call.threads_for(p.n * p.c);
  using Worker = decltype(make(call));
  Vector<std::unique_ptr<Worker>> workers(threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    workers[thread].reset(new Worker(make(call)));
#pragma omp for schedule(static)
    for (i64 i = 0; i < p.n; ++i) workers[thread]->run(i);
  }
  for (const auto& worker : workers)
    if (worker) done(*worker);
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

template <typename Acc>
void add_to(void* total, const Vector<Acc>& part) {
  Acc* to = static_cast<Acc*>(total);
  const Acc* from = part.data();
  LPL_SIMD
  for (size_t j = 0; j < part.size(); ++j) to[j] += from[j];
}

}  // namespace

Status reduce(const Problem& p, const Known& known, Kind kind, const Sums& out) {
  return for_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    return for_rows<T>(
        p, [&](const Call<T>& call) { return PartSums<T>(call, known, out, kind); },
        [](const PartSums<T>&) {});
  });
}

Status perturbed(const Problem& p, const Known& known, int64_t begin, int64_t end, void* out) {
  return for_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    return for_rows<T>(
        p, [&](const Call<T>& call) { return Perturbed<T>(call, known, begin, end, out); },
        [](const Perturbed<T>&) {});
  });
}

// Sums of tables are added to what the caller has set to 0.
Status gradient(const Problem& p, const Known& known, const Outputs& out) {
  return for_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    return for_rows<T>(
        p, [&](const Call<T>& call) { return PartGradient<T>(call, known, out); },
        [&](const PartGradient<T>& part) {
          add_to(out.grad_scale, part.scale);
          add_to(out.grad_offset, part.offset);
          add_to(out.grad_margin, part.margin);
        });
  });
}

}  // namespace LPL_ISA
}  // namespace lpl
