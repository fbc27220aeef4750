// Rows of some columns of a problem, block by block: perturbed logits, targets, what a norm wants.
#pragma once

#include "../parts.h"
#include "call.h"

namespace lpl {
namespace {

// What a thread reads a block at a time; see lpl_fused/algebra/parts.py for z, w and x.
template <typename T>
class PartRows {
 public:
  using Acc = typename AccumulateOf<T>::type;

  const Call<T>& call;
  const Problem& p;
  const i64 c;
  const bool spread;  // the target is, over the classes

  PartRows(const Call<T>& made, const Known& known)
      : call(made),
        p(made.p),
        c(made.c),
        spread(p.dense || made.smooth()),
        known_(known),
        z_(kBlock),
        w_(spread ? kBlock : 0),
        capped_(p.softcap > 0 ? kBlock : 0) {}

  const Terms<Acc>& terms(i64 i) const { return static_cast<const Terms<Acc>*>(known_.terms)[i]; }

  // The columns of a row's labels, −1 where this problem has none.
  i64 own(i64 i) const { return p.target ? call.column(p.target[i]) : -1; }
  i64 other(i64 i) const { return p.other ? call.column(p.other[i]) : -1; }

  // z of a block of row i, less `base`; in scratch of this object's, or the logits themselves.
  const Acc* z(i64 i, i64 lo, i64 size) {
    const Acc* z = call.perturbed(i, lo, size, terms(i).factor, z_.data(), capped_.data());
    if (!known_.delta) return z;
    const Acc* delta = static_cast<const Acc*>(known_.delta) + i * c + lo;
    const Acc less = base(i);
    Acc* moved = z_.data();
    LPL_SIMD
    for (i64 j = 0; j < size; ++j) moved[j] = (z[j] - less) + delta[j];
    return moved;
  }

  // Under a δ the shift of the row's terms, else 0: of logits far from 0 δ keeps its digits so.
  Acc base(i64 i) const { return known_.delta ? terms(i).shift : Acc(0); }
  // The shift of the terms, less the base.
  Acc shift(i64 i) const { return known_.delta ? Acc(0) : terms(i).shift; }

  // Such a block with one of its numbers left out, in scratch: at −∞.
  const Acc* without(i64 place, const Acc* block, i64 size) {
    if (block != z_.data()) std::copy(block, block + size, z_.begin());
    z_[place] = -INFINITY;
    return z_.data();
  }

  // w_j of a block of row i, where the target is spread.
  const Acc* weights(i64 i, i64 lo, i64 size) {
    call.weigh(i, lo, size, 1, w_.data());
    return w_.data();
  }

  // Carries values of a block from z to what the norm leaves: times dz_j/dT_j.
  void carry(i64 i, i64 lo, i64 size, Acc* values) const {
    const Acc* scale = call.scale ? call.scale + lo : nullptr;
    if (scale) {
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) values[j] *= scale[j];
    } else if (call.uniform != 1) {
      scale_by(call.uniform, values, size);
    }
    if (p.softcap == 0) return;
    const T* u = call.logits(i) + lo;
    const Acc inverse = terms(i).factor * Acc(1 / p.softcap);
    LPL_SIMD
    for (i64 j = 0; j < size; ++j) values[j] *= cap_slope(load(u[j]) * inverse);
  }

  // x_j of a block of row i, where there is a norm.
  void directions(i64 i, i64 lo, i64 size, Acc* x) const {
    const T* u = call.logits(i) + lo;
    const Acc n = terms(i).length;
    if (n == 0) {
      std::fill(x, x + size, Acc(0));
      return;
    }
    LPL_SIMD
    for (i64 j = 0; j < size; ++j) x[j] = counted(u[j]) / n;
    carry(i, lo, size, x);
  }

 private:
  const Known& known_;
  Vector<Acc> z_, w_, capped_;
};

}  // namespace
}  // namespace lpl
