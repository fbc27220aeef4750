// The gradient of some columns of a row from its Terms, in one sweep: lpl_fused/algebra/terms.py
// has the equation.
#pragma once

#include "part_rows.h"
#include "penalty.h"

namespace lpl {
namespace {

template <typename T>
class PartGradient {
 public:
  using Acc = typename AccumulateOf<T>::type;

  // Sums over the rows that a thread had, of tables.
  Vector<Acc> scale, offset, margin;

  PartGradient(const Call<T>& call, const Known& known, const Outputs& out)
      : scale(out.grad_scale ? call.c : 0, Acc(0)),
        offset(out.grad_offset ? call.c : 0, Acc(0)),
        margin(out.grad_margin ? call.p.all_classes() : 0, Acc(0)),
        rows_(call, known),
        call_(call),
        p_(call.p),
        out_(out),
        c_(call.c),
        penalty_(call.p),
        d_(kBlock),
        push_(p_.penalty != Penalty::none ? kBlock : 0) {}

  void run(i64 i) {
    T* input = out_.grad ? static_cast<T*>(out_.grad) + i * c_ : nullptr;
    Acc* row = out_.grad_perturbed ? static_cast<Acc*>(out_.grad_perturbed) + i * c_ : nullptr;
    if (call_.nothing(i)) {
      if (input) std::memset(input, 0, sizeof(T) * c_);
      if (row) std::memset(row, 0, sizeof(Acc) * c_);
      return;
    }
    const Acc upstream = Call<T>::table(out_.grad_rows)[i * out_.grad_rows_stride];
    for (i64 lo = 0; lo < c_; lo += kBlock) {
      const i64 size = std::min(kBlock, c_ - lo);
      prefetch(call_.logits(i) + lo + kBlock, kBlock);
      at_logits(i, lo, size, upstream);
      at_tables(i, lo, size, row);
      if (!input) continue;
      rows_.carry(i, lo, size, d_.data());
      through_norm(i, lo, size, upstream);
      if (!push_.empty()) push(i, lo, size, upstream);
      const Acc* d = d_.data();
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) input[lo + j] = store<T>(d[j]);
    }
  }

 private:
  // dL/dz of a block.
  void at_logits(i64 i, i64 lo, i64 size, Acc upstream) {
    const Terms<Acc>& terms = rows_.terms(i);
    const Acc strength = upstream * terms.strength, shift = terms.shift;
    const Acc* z = rows_.z(i, lo, size);
    Acc* d = d_.data();
    LPL_SIMD
    for (i64 j = 0; j < size; ++j) d[j] = strength * exp_of(z[j] - shift);
    if (rows_.spread) pull(i, lo, size, upstream * terms.uniform, z);
    const i64 own = rows_.own(i) - lo, other = rows_.other(i) - lo;
    if (own >= 0 && own < size) {
      const Acc part = upstream * terms.part;
      d[own] = rows_.alone ? part : d[own] + part;
    }
    if (other >= 0 && other < size) d[other] += upstream * terms.other_part;
  }

  // What a target that is spread over the classes pulls.
  void pull(i64 i, i64 lo, i64 size, Acc uniform, const Acc* z) {
    const Terms<Acc>& terms = rows_.terms(i);
    const Acc* w = rows_.weights(i, lo, size);
    Acc* d = d_.data();
    if (p_.phi == Phi::log) {
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) d[j] -= uniform * w[j];
      return;
    }
    for (i64 j = 0; j < size; ++j) {
      if (w[j] == 0) continue;
      const Acc ell = terms.log_total - (z[j] - terms.shift);
      d[j] -= uniform * w[j] * phi_of(ell, p_.phi, Acc(p_.phi_parameter)).slope;
    }
  }

  void at_tables(i64 i, i64 lo, i64 size, Acc* row) {
    const Acc* d = d_.data();
    const Acc uniform = call_.uniform;
    if (!offset.empty()) {
      Acc* sum = offset.data() + lo;
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) sum[j] += uniform * d[j];
    }
    if (!scale.empty()) {
      const T* u = call_.logits(i) + lo;
      Acc* sum = scale.data() + lo;
      const Acc factor = rows_.terms(i).factor;
      if (p_.softcap > 0) {
        const Acc cap = uniform * Acc(p_.softcap), inverse = factor * Acc(1 / p_.softcap);
        LPL_SIMD
        for (i64 j = 0; j < size; ++j) sum[j] += d[j] * cap * tanh_of(load(u[j]) * inverse);
      } else {
        const Acc length = uniform * factor;
        LPL_SIMD
        for (i64 j = 0; j < size; ++j) sum[j] += length * d[j] * load(u[j]);
      }
    }
    if (!margin.empty()) {
      const i64 own = rows_.own(i) - lo;
      if (own >= 0 && own < size) margin[p_.target[i]] -= uniform * d[own];
    }
    if (row) {
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) row[lo + j] = uniform * d[j];
    }
  }

  void through_norm(i64 i, i64 lo, i64 size, Acc upstream) {
    const Terms<Acc>& terms = rows_.terms(i);
    if (p_.norm_p == 0 || (terms.factor == 1 && terms.bend == 0)) return;
    const Acc pull = Acc(double(upstream) * terms.factor * terms.bend * terms.along);
    const T* u = call_.logits(i) + lo;
    Acc* d = d_.data();
    lpl::through_norm<Acc>(p_.norm_p, terms.length, terms.factor, pull, [&](auto through) {
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) d[j] = through(u[j], d[j]);
    });
  }

  void push(i64 i, i64 lo, i64 size, Acc upstream) {
    const Terms<Acc>& terms = rows_.terms(i);
    const T* row = call_.logits(i);
    penalty_.at(row, lo, terms.top, double(upstream) * terms.each, push_.data());
    const Acc raise = upstream * terms.raises, top = terms.top;
    const T* u = row + lo;
    const Acc* push = push_.data();
    Acc* d = d_.data();
    LPL_SIMD
    for (i64 j = 0; j < size; ++j) d[j] += push[j] + (load(u[j]) == top ? raise : Acc(0));
  }

  PartRows<T> rows_;
  const Call<T>& call_;
  const Problem& p_;
  const Outputs& out_;
  const i64 c_;
  RowPenalty<T> penalty_;
  Vector<Acc> d_, push_;  // a block's gradient, and what the penalty adds
};

}  // namespace
}  // namespace lpl
