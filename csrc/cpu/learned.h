// The learned perturbation δ of a class: |steps| sweeps over the rows that have its label.
#pragma once

#include "call.h"

namespace lpl {
namespace {

// Rows of one label, in the order of the batch.
struct Group {
  i64 label;
  const i64* rows;
  i64 size;
};

// Groups the rows of a batch by label: `order` holds row numbers, group after group. Ignored rows
// form one group, whose label is the ignored one.
struct Grouping {
  Vector<i64> order;
  Vector<Group> groups;

  explicit Grouping(const Problem& p) : order(p.n) {
    for (i64 i = 0; i < p.n; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](i64 a, i64 b) { return p.target[a] < p.target[b]; });
    for (i64 begin = 0, end = 0; begin < p.n; begin = end) {
      const i64 label = p.target[order[begin]];
      while (end < p.n && p.target[order[end]] == label) ++end;
      groups.push_back({label, order.data() + begin, end - begin});
    }
  }
};

template <typename T>
class Learned {
 public:
  using Acc = typename AccumulateOf<T>::type;

  explicit Learned(const Call<T>& call) : call_(call), c_(call.c) {}

  int steps(const Group& group) const {
    return call_.ignored(group.label) ? 0 : std::abs(call_.p.steps[group.label]);
  }

  // Exponentials that a group costs; what threads are shared out by.
  i64 work(const Group& group) const { return group.size * c_ * i64(steps(group)); }

  // δ of one group into `delta` (C,), its rows shared among `threads`.
  void run(const Group& group, Acc* delta, int threads) const {
    const int count = steps(group);
    std::fill(delta, delta + c_, Acc(0));
    if (count == 0) return;
    const Acc direction = Acc(call_.p.steps[group.label] > 0 ? 1 : -1) * Acc(call_.p.step_size);
    // chunks do not depend on the number of threads
    const int chunks = int(std::min<i64>(kChunks, (group.size + kFewRows - 1) / kFewRows));
    threads = std::min(threads, chunks);
    Vector<Vector<Acc>> mean(chunks), z(threads), capped(threads);
    for (Vector<Acc>& of_chunk : mean) of_chunk.resize(c_);
    for (int t = 0; t < threads; ++t) {
      z[t].resize(c_);
      if (call_.p.softcap > 0) capped[t].resize(kBlock);
    }
    for (int k = 0; k < count; ++k) {
      for_shares(threads, chunks, [&](int t, i64 begin, i64 end) {
        for (i64 chunk = begin; chunk < end; ++chunk) {
          Vector<Acc>& sum = mean[chunk];
          std::fill(sum.begin(), sum.end(), Acc(0));
          for (i64 r = group.size * chunk / chunks; r < group.size * (chunk + 1) / chunks; ++r)
            add_probabilities(group.rows[r], delta, z[t].data(), capped[t].data(), sum.data());
        }
      });
      Acc* g = mean[0].data();
      for (int chunk = 1; chunk < chunks; ++chunk) {
        const Acc* other = mean[chunk].data();
        LPL_SIMD
        for (i64 j = 0; j < c_; ++j) g[j] += other[j];
      }
      step(group, direction, g, delta);
    }
  }

 private:
  static constexpr i64 kChunks = 16, kFewRows = 4;  // that threads share; not worth sharing

  // mean += softmax(z_i + δ)
  void add_probabilities(i64 i, const Acc* delta, Acc* z, Acc* capped, Acc* mean) const {
    const Acc inverse = Acc(1 / call_.exponentials(i, delta, -1, z, capped, z).rest);
    LPL_SIMD
    for (i64 j = 0; j < c_; ++j) mean[j] += inverse * z[j];
  }

  // One step of δ along the mean gradient; `g` comes as the sum of the rows' probabilities.
  void step(const Group& group, Acc direction, Acc* g, Acc* delta) const {
    const Acc share = Acc(1) / Acc(group.size);
    // the target's entry is minus the rivals' sum: p_y − 1 without cancellation
    g[group.label] = 0;
    const double rivals = sum_of(g, c_) * double(share);
    Acc factor = direction;
    if (call_.p.normalize) {
      const double squares = square_sum(g, c_) * double(share) * double(share) + rivals * rivals;
      const double norm = std::sqrt(squares);
      factor = norm < kNormFloor ? Acc(0) : Acc(direction / norm);
    }
    const Acc each = factor * share;
    LPL_SIMD
    for (i64 j = 0; j < c_; ++j) delta[j] += each * g[j];
    delta[group.label] -= Acc(factor * rivals);
  }

  const Call<T>& call_;
  const i64 c_;
};

}  // namespace
}  // namespace lpl
