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

  // Sums over rows, of tables: of kFew rows in Acc, of more in double.
  struct Sum {
    Vector<Acc> few;
    Vector<double> many;

    Sum(bool wanted, i64 size) : few(wanted ? size : 0, Acc(0)), many(few.size(), 0.0) {}
    bool wanted() const { return !few.empty(); }
    Acc* of_few(i64 lo) { return few.data() + lo; }
    void settle() { move(few, many); }
    void add_to(Vector<double>& total) { move(many, total); }

   private:
    template <typename From>
    static void move(Vector<From>& from, Vector<double>& to) {
      From* part = from.data();
      double* sum = to.data();
      LPL_SIMD
      for (i64 j = 0; j < i64(from.size()); ++j) sum[j] += part[j];
      std::fill(from.begin(), from.end(), From(0));
    }
  };
  static constexpr i64 kFew = 32;

  Sum scale, offset, margin;

  PartGradient(const Call<T>& call, const Known& known, const Outputs& out)
      : scale(out.grad_scale, call.c),
        offset(out.grad_offset, call.c),
        margin(out.grad_margin, call.p.all_classes()),
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
    const Acc strength = upstream * terms.strength, shift = rows_.shift(i);
    const Acc* z = rows_.z(i, lo, size);
    Acc* d = d_.data();
    LPL_SIMD
    for (i64 j = 0; j < size; ++j) d[j] = strength * exp_of(z[j] - shift);
    if (rows_.spread) pull(i, lo, size, upstream * terms.uniform, z);
    const i64 own = rows_.own(i) - lo, other = rows_.other(i) - lo;
    const auto at = [&](i64 label, Acc part) {
      if (label >= 0 && label < size) d[label] = upstream * part + (rows_.spread ? d[label] : 0);
    };
    at(own, terms.part);
    at(other, terms.other_part);
  }

  // What a target that is spread over the classes pulls.
  void pull(i64 i, i64 lo, i64 size, Acc uniform, const Acc* z) {
    const Terms<Acc>& terms = rows_.terms(i);
    const Acc* w = rows_.weights(i, lo, size);
    const Acc shift = rows_.shift(i);
    Acc* d = d_.data();
    if (p_.phi == Phi::log) {
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) d[j] -= uniform * w[j];
      return;
    }
    for (i64 j = 0; j < size; ++j) {
      if (w[j] == 0) continue;
      const Acc ell = terms.log_total - (z[j] - shift);
      d[j] -= uniform * w[j] * phi_of(ell, p_.phi, Acc(p_.phi_parameter)).slope;
    }
  }

  void at_tables(i64 i, i64 lo, i64 size, Acc* row) {
    const Acc* d = d_.data();
    const Acc uniform = call_.uniform;
    if (offset.wanted()) {
      Acc* sum = offset.of_few(lo);
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) sum[j] += uniform * d[j];
    }
    if (scale.wanted()) {
      const T* u = call_.logits(i) + lo;
      Acc* sum = scale.of_few(lo);
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
    if (margin.wanted()) {
      const i64 own = rows_.own(i) - lo;
      if (own >= 0 && own < size) *margin.of_few(p_.target[i]) -= uniform * d[own];
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
