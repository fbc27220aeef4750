// What multi-label losses sum over rows of labels, and over the batch, in a fixed order.
#pragma once

#include "batch.h"
#include "binary_tiles.h"

namespace lpl {

// Of a row's labels how many are there, and what its positives weigh.
template <typename A>
struct BinaryLabelsBody {
  using Shared = Nothing;
  using Acc = A;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64 i) {
    const BinaryProblem& p = call.p;
    const Labels<Acc, Any> labels(p);
    const Acc* balance = static_cast<const Acc*>(p.inverse_count);
    struct Found {
      Acc mass;
      int known;
    } found = {0, 0};
#pragma unroll 4
    for (i64 j = team.rank(); j < p.c; j += team.size()) {
      bool there;
      const Acc y = labels.at(i * p.target_stride + j, there);
      found.known += there;
      if (balance) found.mass += y * balance[j];
    }
    found = team.reduce(found, [](const Found& a, const Found& b) {
      return Found{a.mass + b.mass, a.known + b.known};
    });
    if (team.rank() != 0) return;
    if (call.scratch.masses) static_cast<Acc*>(call.scratch.masses)[i] = found.mass;
    if (call.scratch.known) call.scratch.known[i] = found.known;
  }
};

// out.norm ← the labels that are there.
template <typename A>
struct BinaryNormBody {
  using Acc = A;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64) {
    i64 sum = 0;
    each_of(team, call.scratch.known, call.p.n, [&](i64, i64 known) { sum += known; });
    sum = team.reduce(sum, [](i64 a, i64 b) { return a + b; });
    if (team.rank() == 0) *static_cast<Acc*>(call.out.norm) = Acc(sum);
  }
};

// out.loss ← what the sweep's teams have summed, divided by the norm; which is out.norm.
template <typename A>
struct BinaryLossBody {
  using Acc = A;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64) {
    double sum = 0;
    each_of(team, static_cast<const Acc*>(call.scratch.losses), call.scratch.teams,
            [&](i64, Acc loss) { sum += double(loss); });
    sum = team.reduce(sum, [](double a, double b) { return a + b; });
    if (team.rank() != 0) return;
    const Acc norm = norm_of<Acc>(call);
    *static_cast<Acc*>(call.out.loss) = Acc(sum / double(norm));
    if (!call.p.normalizer) *static_cast<Acc*>(call.out.norm) = norm;
  }
};

}  // namespace lpl
