// What is summed over the rows of a batch, in a fixed order: the mean's normaliser, the loss, the
// gradients of scale and offset.
#pragma once

#include "beside.h"

namespace lpl {

// f(values[i]) for i of a thread's share of n rows. A batch of them is on its way at once: one
// after the other a single block would wait for memory most of the time.
template <typename T, typename Team, typename F>
LPL_DEVICE inline void each_of(const Team& team, const T* values, i64 n, F f) {
  constexpr int kBatch = 8;
  for (i64 first = team.rank(); first < n; first += kBatch * team.size()) {
    T value[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const i64 i = first + i64(k) * team.size();
      value[k] = i < n ? values[i] : T();
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const i64 i = first + i64(k) * team.size();
      if (i < n) f(i, value[k]);
    }
  }
}

// out.norm and scratch.penalty_weight from labels and weights.
template <typename A>
struct NormBody {
  using Acc = A;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64) {
    const Problem& p = call.p;
    struct Counts {
      double weight, rows;
    } sum = {0, 0};
    const Acc* sample_weight = static_cast<const Acc*>(p.sample_weight);
    const Acc* lam = static_cast<const Acc*>(p.lam);
    const auto count = [&](i64 i, Acc counts, bool live) {
      sum.weight += double(counts) * (sample_weight ? double(sample_weight[i]) : 1.0);
      sum.rows += live;
    };
    if (!p.target) {
      for (i64 i = team.rank(); i < p.n; i += team.size()) count(i, 1, true);
    } else {
      each_of(team, p.target, p.n, [&](i64 i, i64 label) {
        Acc counts = weight_of(p, label) * (lam ? lam[i] : Acc(1));
        bool live = label != p.ignore_index;
        if (p.other) {
          counts += weight_of(p, p.other[i]) * (1 - lam[i]);
          live |= p.other[i] != p.ignore_index;
        }
        count(i, counts, live);
      });
    }
    sum = team.reduce(sum, [](const Counts& a, const Counts& b) {
      return Counts{a.weight + b.weight, a.rows + b.rows};
    });
    if (team.rank() != 0) return;
    if (call.scratch.flags) call.scratch.flags[kArrived] = 0;
    *static_cast<Acc*>(call.out.norm) = Acc(sum.weight);
    if (call.scratch.penalty_weight)
      *static_cast<Acc*>(call.scratch.penalty_weight) = Acc(sum.weight / sum.rows);
  }

 private:
  LPL_DEVICE static Acc weight_of(const Problem& p, i64 label) {
    if (label == p.ignore_index) return 0;
    if (!p.weight) return 1;
    // a label out of range makes the loss nan elsewhere, but must not be followed
    return label >= 0 && label < p.c ? static_cast<const Acc*>(p.weight)[label] : Acc(0);
  }
};

// out.loss = Σ losses / norm
template <typename A>
struct LossBody {
  using Acc = A;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64) {
    const Acc* losses = static_cast<const Acc*>(call.scratch.losses);
    double sum = 0;
    each_of(team, losses, call.p.n, [&](i64, Acc loss) { sum += double(loss); });
    sum = team.reduce(sum, [](double a, double b) { return a + b; });
    if (team.rank() != 0) return;
    const Acc* norm = static_cast<const Acc*>(call.out.norm);
    *static_cast<Acc*>(call.out.loss) = Acc(norm ? sum / double(*norm) : sum);
  }
};

// Rows, the last of which adds up the loss of all; NormBody has been before.
template <typename Body>
struct AndLoss {
  using Shared = typename Body::Shared;
  using Acc = typename Body::Acc;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    Body::run(team, call, i);
    if (team.last_of(&call.scratch.flags[kArrived], int(call.p.n)))
      LossBody<Acc>::run(team, call, 0);
  }
};

// Partial sums of dL/d scale and dL/d offset over a chunk of rows, from their Terms: team i has a
// tile of the columns of one chunk.
template <typename T>
struct TableBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;
  static constexpr int kTile = 1024;

  static LPL_HOST_DEVICE i64 tiles(i64 c) { return (c + kTile - 1) / kTile; }

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const Algebra<T, kAll> algebra(call);
    const Outputs& out = call.out;
    const i64 chunk = i / tiles(call.p.c);
    const int first = int(i % tiles(call.p.c)) * kTile;
    const int last = algebra.c < first + kTile ? algebra.c : first + kTile;
    const i64 begin = chunk * call.scratch.chunk, end = begin + call.scratch.chunk;
    for (int j = first + team.rank(); j < last; j += team.size()) {
      Acc scale = 0, offset = 0;
      for (i64 k = begin; k < end && k < call.p.n; ++k) {
        Row<Acc> row = algebra.row(k, static_cast<const Acc*>(out.delta));
        if (!row.live) continue;
        const Terms<Acc> t =
            algebra.centre(row, scaled(terms_of<Acc>(call, k), upstream_of<Acc>(call, k)));
        row.factor = t.factor;
        const Acc u = load(algebra.logits(k)[j]), z = algebra.perturbed(u, j, row);
        const Acc dz = algebra.gradient(z, std::exp(z - t.shift), j, row, t);
        offset += algebra.to_offset(dz);
        scale += algebra.to_offset(dz) * algebra.bounded(u, row);
      }
      const i64 at = chunk * call.p.c + j;
      if (out.grad_scale) static_cast<Acc*>(out.grad_scale)[at] = scale;
      if (out.grad_offset) static_cast<Acc*>(out.grad_offset)[at] = offset;
    }
  }
};

}  // namespace lpl
