// What a row's rivals add up to that are no heads.
#pragma once

#include "learned_row.h"
#include "rows.h"

namespace lpl {

// Σ q^r of the tail, and its largest q.
template <typename Acc>
struct Tail {
  Acc power[kLongOrder<Acc>], largest;
};

// The tail of a row with q = e^(z − shift)·inverse; of this thread's rivals `heads` exceed `bound`.
template <typename Team, typename Here, typename Acc>
LPL_DEVICE Tail<Acc> tail_of(Team& team, const Here& here, int label, Acc shift, Acc inverse,
                             Acc bound, int& heads) {
  constexpr int kOrder = kLongOrder<Acc>;
  Tail<Acc> tail{};
  heads = 0;
  here.each([&](int j, Acc z) {
    if (j == label) return;
    const Acc q = std::exp(z - shift) * inverse;
    if (q > bound) {
      ++heads;
      return;
    }
    if (q > tail.largest) tail.largest = q;
    Acc power = 1;
#pragma unroll
    for (int r = 0; r < kOrder; ++r) tail.power[r] += power *= q;
  });
  return team.reduce(tail, [](const Tail<Acc>& a, const Tail<Acc>& b) {
    Tail<Acc> sum;
#pragma unroll
    for (int r = 0; r < kOrder; ++r) sum.power[r] = a.power[r] + b.power[r];
    sum.largest = a.largest > b.largest ? a.largest : b.largest;
    return sum;
  });
}

}  // namespace lpl
