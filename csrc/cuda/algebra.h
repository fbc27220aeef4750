// A row's target, its perturbed logits column by column, and what differentiates them; out-of-range
// labels and row indices make a row's weights nan, and are never followed.
#pragma once

#include "../lpl_math.h"
#include "../numbers.h"
#include "exponent.h"

namespace lpl {

// Target weights t_j = hard·1[j = label] + other_hard·1[j = other] + uniform·w_j (w_j: see
// Algebra::weight) and the places of a row's tables.
template <typename Acc>
struct Row {
  i64 index;
  int label, other;  // their columns, which may lie elsewhere (Algebra::has)
  bool live;         // else it counts nothing
  bool outside;      // its label or row index is out of range
  Acc hard, other_hard, uniform, margin;
  const Acc *extra, *delta;  // (C,), null where there is none
  Acc base;                  // what is taken off z before δ is added
  Acc factor, length, bend;  // its norm: logits are `factor` times as long
  Acc per_length;            // 1/length, 0 where that is 0
  bool finite;               // known: its logits are
};

template <typename Acc>
LPL_DEVICE inline Terms<Acc> terms_of(const Call& call, i64 i) {
  return static_cast<const Terms<Acc>*>(call.out.terms)[i];
}

// The upstream gradient of row i's loss.
template <typename Acc>
LPL_DEVICE inline Acc upstream_of(const Call& call, i64 i) {
  const Acc* given = static_cast<const Acc*>(call.out.grad_rows);
  if (given) {
    const Acc* divisor = static_cast<const Acc*>(call.scratch.divisor);
    const Acc upstream = given[i * call.out.grad_rows_stride];
    return divisor ? upstream / *divisor : upstream;
  }
  const Acc upstream = call.out.norm ? 1 / *static_cast<const Acc*>(call.out.norm) : Acc(1);
  return call.scratch.factor ? upstream * factor_of<Acc>(call, i) : upstream;
}

// The same for who has many rows: one that they share is made once.
template <typename Acc>
class Upstream {
 public:
  LPL_DEVICE explicit Upstream(const Call& call)
      : call_(call),
        by_row_(call.out.grad_rows ? call.out.grad_rows_stride : call.scratch.factor_stride),
        shared_(by_row_ ? Acc(0) : upstream_of<Acc>(call, 0)) {}

  LPL_DEVICE Acc of(i64 i) const { return by_row_ ? upstream_of<Acc>(call_, i) : shared_; }

 private:
  const Call& call_;
  const bool by_row_;
  const Acc shared_;
};

// The terms of a row's gradient for an upstream of 1, times another.
template <typename Acc>
LPL_DEVICE inline Terms<Acc> scaled(Terms<Acc> t, Acc upstream) {
  t.strength *= upstream;
  t.uniform *= upstream;
  t.part *= upstream;
  t.other_part *= upstream;
  t.along *= upstream;
  t.raises *= upstream;
  t.each *= upstream;
  return t;
}

// What of a problem's algebra touches every column, and whether a row's target is one label: a set
// for which kernels are compiled. What touches a row alone (its weight, margin, φ, z-loss) all of
// them have, but only those with kTables a temperature.
using Set = unsigned;
constexpr Set kBare = 0, kTables = 1;  // scale, offset, temperature
constexpr Set kEven = 2;               // weight that is spread evenly, φ = log
constexpr Set kLength = 4;             // a norm
constexpr Set kPull = 8;               // a penalty
constexpr Set kMove = 16;              // a learned perturbation
constexpr Set kRest = 32;              // all others
constexpr Set kAll = 63;

// Which p-norm: all but the last are compiled for by themselves.
enum class Norm { none, one, two, most, other };
LPL_HOST_DEVICE inline Norm norm_of(double p) {
  return p == 0          ? Norm::none
         : p == 1        ? Norm::one
         : p == 2        ? Norm::two
         : p == INFINITY ? Norm::most
                         : Norm::other;
}

template <typename T, Set kSet>
class Algebra {
 public:
  using Acc = typename AccumulateOf<T>::type;
  // what serves all calls is also exact for those whose gradients cancel
  using E = Exponential<Acc, (kSet & kRest) == 0>;
  // one label has the target's whole weight, whatever the call
  static constexpr bool kOneLabel = (kSet & (kEven | kRest)) == 0;

  LPL_DEVICE explicit Algebra(const Call& call)
      : p(call.p),
        norm(has(kLength) ? norm_of(call.p.norm_p) : Norm::none),
        call_(call),
        c(int(call.p.c)),
        classes(call.p.classes ? call.p.classes : call.p.c),
        inverse_temperature_(Acc(call.p.inverse_temperature)),
        softcap_(Acc(call.p.softcap)) {
    spread = has(kRest) ? p.dense || p.smoothing || p.label_smoothing > 0 : has(kEven);
  }

  const Problem& p;
  bool spread;
  const Norm norm;

  LPL_DEVICE static constexpr bool has(Set what) { return (kSet & what) != 0; }
  LPL_DEVICE static const Acc* table(const void* place) { return static_cast<const Acc*>(place); }
  LPL_DEVICE const T* logits(i64 i) const {
    return static_cast<const T*>(p.input) + i * p.row_stride;
  }
  LPL_DEVICE bool exists(int column) const { return unsigned(column) < unsigned(c); }
  LPL_DEVICE bool normed() const { return has(kLength) && norm != Norm::none; }
  LPL_DEVICE bool penalised() const { return has(kPull) && p.penalty != Penalty::none; }
  LPL_DEVICE bool mixed() const { return has(kRest) && p.other; }

  // Row i; `delta` (N, C) may be null.
  LPL_DEVICE Row<Acc> row(i64 i, const Acc* delta) const {
    Row<Acc> r{};
    r.index = i;
    r.live = true;
    r.factor = 1;
    Acc share = p.sample_weight ? table(p.sample_weight)[i] : Acc(1);
    bool ignored = false, outside = false;
    if (p.target) r.label = column(p.target[i], ignored, outside);
    i64 place = r.label + p.first;
    if (has(kRest) && p.row_index) {
      place = p.row_index[i];
      if (place < 0 || place >= p.row_count) {
        place = 0;
        outside = true;
      }
    }
    r.outside = outside;
    if (outside) share = NAN;
    if (!p.target) {
      r.uniform = share;
    } else if (!mixed()) {
      r.live = !ignored;
      split(r.label, share, r.hard, r.uniform);
    } else {
      bool other_ignored = false, other_outside = false;
      r.other = column(p.other[i], other_ignored, other_outside);
      r.live = !(ignored && other_ignored);
      const Acc lam = table(p.lam)[i];
      Acc second = other_ignored || lam == 1 ? Acc(0) : share * (1 - lam);
      if (other_outside) second = NAN;
      // nan comes through: a label out of range was looked at before
      const Acc first = ignored || lam == 0 ? (outside ? share : Acc(0)) : share * lam;
      Acc other_uniform;
      split(r.label, first, r.hard, r.uniform);
      split(r.other, second, r.other_hard, other_uniform);
      r.uniform += other_uniform;
    }
    if (has(kRest) && p.rows) r.extra = table(p.rows) + place * classes;
    if (p.margin && p.target) r.margin = table(p.margin)[r.label];
    if (has(kMove) && delta) r.delta = delta + (call_.out.slot ? call_.out.slot[i] : i) * p.c;
    return r;
  }

  // Under a δ z is less the shift of the row's terms, `t`, which has none left: of logits far from
  // 0 δ keeps its digits so.
  LPL_DEVICE Terms<Acc> centre(Row<Acc>& r, Terms<Acc> t) const {
    if (has(kMove) && r.delta) {
      r.base = t.shift;
      t.shift = 0;
    }
    return t;
  }

  // v = softcap·tanh(T(u)/softcap)
  LPL_DEVICE Acc bounded(Acc u, const Row<Acc>& r) const {
    const Acc x = has(kLength) ? u * r.factor : u;
    return has(kRest) && softcap_ > 0 ? softcap_ * std::tanh(x / softcap_) : x;
  }

  // z = ((scale·v + offset + rows[r] − margin[y]·1[j = y])/temperature − base) + δ
  LPL_DEVICE Acc perturbed(Acc u, int j, const Row<Acc>& r) const {
    expect(exists(j));
    Acc z = bounded(u, r);
    if (has(kTables)) {  // rounded as in a piece
      const Acc scale = p.scale ? table(p.scale)[j] : Acc(1);
      z = std::fma(z, scale, p.offset ? table(p.offset)[j] : Acc(0));
    }
    if (has(kRest) && r.extra) z += r.extra[j];
    if (j == r.label) z -= r.margin;
    if (has(kTables)) z *= inverse_temperature_;
    if (has(kMove) && r.delta) z = (z - r.base) + r.delta[j];
    return z;
  }

  // What the columns of a piece are multiplied by, and what is added.
  template <int kSize>
  struct Tables {
    Acc scale[kSize], offset[kSize];
  };
  template <int kSize, typename Kind>
  LPL_DEVICE Tables<kSize> tables(int first, Kind) const {
    Tables<kSize> t{};
    if constexpr (has(kTables)) {
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        t.scale[v] = 1;
        t.offset[v] = 0;
      }
      if (p.scale) each<kSize, Kind>(table(p.scale), first, [&](int v, Acc x) { t.scale[v] = x; });
      if (p.offset)
        each<kSize, Kind>(table(p.offset), first, [&](int v, Acc x) { t.offset[v] = x; });
    }
    return t;
  }

  // z of the columns of a piece; −∞ where there is none.
  template <int kSize, typename Kind>
  LPL_DEVICE void perturb(int first, const Acc* u, const Row<Acc>& r, const Tables<kSize>& tables,
                          Kind, Acc* z) const {
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      z[v] = bounded(u[v], r);
      if (has(kTables)) z[v] = std::fma(z[v], tables.scale[v], tables.offset[v]);
    }
    if (has(kRest) && r.extra) each<kSize, Kind>(r.extra, first, [&](int v, Acc x) { z[v] += x; });
    if constexpr (!kOneLabel) {  // else nobody wants z of the label
      if (r.margin != 0) {
#pragma unroll
        for (int v = 0; v < kSize; ++v) z[v] -= first + v == r.label ? r.margin : Acc(0);
      }
    }
    if constexpr (has(kTables)) {
#pragma unroll
      for (int v = 0; v < kSize; ++v) z[v] *= inverse_temperature_;
    }
    if (has(kMove) && r.delta)
      each<kSize, Kind>(r.delta, first, [&](int v, Acc x) { z[v] = (z[v] - r.base) + x; });
    if constexpr (!Kind::value) {
#pragma unroll
      for (int v = 0; v < kSize; ++v)
        if (!exists(first + v)) z[v] = -INFINITY;
    }
  }
  template <int kSize, typename Kind>
  LPL_DEVICE void perturb(int first, const Acc* u, const Row<Acc>& r, Kind kind, Acc* z) const {
    perturb<kSize>(first, u, r, tables<kSize>(first, kind), kind, z);
  }

  // f(v, values[first + v]) for the columns of a piece that exist.
  template <int kSize, typename Kind, typename F>
  LPL_DEVICE void each(const Acc* values, int first, F f) const {
    const Acc* from = values + first;
    if (Kind::value && kSize * sizeof(Acc) % 16 == 0 &&
        reinterpret_cast<uintptr_t>(from) % 16 == 0) {
      constexpr int kOf = 16 / sizeof(Acc);
      struct alignas(16) {
        Acc value[kOf];
      } line;
#pragma unroll
      for (int v = 0; v < kSize; v += kOf) {
        line = *reinterpret_cast<const decltype(line)*>(from + v);
#pragma unroll
        for (int k = 0; k < kOf; ++k) f(v + k, line.value[k]);
      }
      return;
    }
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (Kind::value || exists(first + v)) f(v, from[v]);
  }

  LPL_DEVICE Acc logit(int j, const Row<Acc>& r) const {
    return perturbed(load(logits(r.index)[j]), j, r);
  }

  LPL_DEVICE Acc scale_of(int j) const {
    expect(exists(j));
    return has(kTables) && p.scale ? table(p.scale)[j] : Acc(1);
  }

  // dL/d offset of a column from its dL/dz.
  LPL_DEVICE Acc to_offset(Acc dz) const { return has(kTables) ? dz * inverse_temperature_ : dz; }

  // dL/dT from dL/d offset.
  LPL_DEVICE Acc to_input(Acc d_offset, Acc u, int j, const Row<Acc>& r) const {
    return to_input(d_offset, u, scale_of(j), r);
  }
  LPL_DEVICE Acc to_input(Acc d_offset, Acc u, Acc scale, const Row<Acc>& r) const {
    Acc du = has(kTables) ? d_offset * scale : d_offset;
    if (has(kRest) && softcap_ > 0) {
      // 1 − tanh² from e^(−2|x|), not from tanh, where it would cancel
      const Acc decay = std::exp(-2 / softcap_ * std::fabs(u * r.factor));
      du *= 4 * decay / ((1 + decay) * (1 + decay));
    }
    return du;
  }

  // What `uniform` multiplies: class weights w_j, for class probabilities t_j·w_j.
  LPL_DEVICE Acc weight(int j, const Row<Acc>& r) const {
    Acc weight = 1;
    if (!has(kRest)) return weight;
    expect(exists(j));
    if (p.dense) {
      const Acc smoothing = Acc(p.label_smoothing);
      weight = probability(r.index * p.dense_stride + j) * (1 - smoothing);
      weight += smoothing / Acc(classes);
    }
    return p.weight ? weight * table(p.weight)[j] : weight;
  }

  LPL_DEVICE PhiValue<Acc> phi(Acc ell) const { return phi_of(ell, p.phi, Acc(p.phi_parameter)); }

  // dL/dz of a column; `e` is e^(z − shift).
  LPL_DEVICE Acc gradient(Acc z, Acc e, int j, const Row<Acc>& r, const Terms<Acc>& t) const {
    Acc dz = e * t.strength;
    if (!spread) return j == r.label ? t.part : mixed() && j == r.other ? t.other_part : dz;
    const Acc slope = has(kRest) ? phi(t.log_total - (z - t.shift)).slope : Acc(1);
    dz -= weight(j, r) * slope * t.uniform;
    if (p.target && j == r.label) dz += t.part;
    if (mixed() && j == r.other) dz += t.other_part;
    return dz;
  }

  // The same for the columns of a piece, `e` being the exponentials of the row's shift.
  template <int kSize, typename Kind>
  LPL_DEVICE void gradients(int first, const Acc* z, const E& e, Acc unit, const Row<Acc>& r,
                            const Terms<Acc>& t, Acc* dz) const {
    if constexpr (has(kRest)) {
      if (spread) {
#pragma unroll
        for (int v = 0; v < kSize; ++v)
          if (Kind::value || exists(first + v))
            dz[v] = gradient(z[v], e.of(z[v]) * unit, first + v, r, t);
        return;
      }
    }
    const Acc strength = t.strength * unit;
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      dz[v] = e.of(z[v]) * strength;
      if (has(kEven) && spread) dz[v] -= t.uniform;
    }
    const int at = r.label - first;
    if (!spread) {
      replace<kSize>(at, t.part, dz);
      if (mixed()) replace<kSize>(r.other - first, t.other_part, dz);
      return;
    }
    if (unsigned(at) >= unsigned(kSize)) return;
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (v == at) dz[v] += t.part;
  }

  // x[at] ← value, if there is such a place; a row has one such piece.
  template <int kSize>
  static LPL_DEVICE void replace(int at, Acc value, Acc* x) {
    if (unsigned(at) >= unsigned(kSize)) return;
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (v == at) x[v] = value;
  }

  // The loss of a row and the softmax's Terms where all its weight is on one label; masses in units
  // of e^shift: `own` = e^lift of the label, `rest` of the others.
  LPL_DEVICE Acc of_label(const Row<Acc>& r, Acc lift, Acc rest, Acc shift, Terms<Acc>& t) const {
    const Acc own = std::exp(lift), total = own + rest;
    const Acc ell = cross_entropy_of(lift, own, rest);
    const PhiValue<Acc> at = phi(ell);
    t.shift = shift;
    // keeps its digits where the label has most of the mass; where it has none both are infinite
    t.log_total = own >= rest ? ell + lift : std::log(total);
    Acc slope = r.hard * at.slope, value = r.hard * at.value;
    t.part = -slope * (rest / total);
    const Acc push = pressure(r.hard, r.base + shift + t.log_total, value);
    if (push != 0) {
      slope += push;
      t.part += push * (own / total);
    }
    t.strength = slope / total;
    return value;
  }

  // The same for two labels, `rest` of all others; where both are one class the second's lift is
  // −∞.
  LPL_DEVICE Acc of_labels(const Row<Acc>& r, const Acc* lift, Acc rest, Acc shift,
                           Terms<Acc>& t) const {
    const bool same = r.label == r.other;
    const Acc hard[2] = {same ? r.hard + r.other_hard : r.hard, same ? Acc(0) : r.other_hard};
    const Acc own[2] = {std::exp(lift[0]), std::exp(lift[1])};
    const Acc total = rest + own[0] + own[1];
    t.shift = shift;
    t.log_total = std::log(total);
    Acc value = 0 * t.log_total, others[2], pull[2];  // a weight of 0 hides no nan
    for (int k = 0; k < 2; ++k) {
      others[k] = rest + own[1 - k];
      const Acc ell = cross_entropy_of(lift[k], own[k], others[k]);
      if (own[k] >= others[k]) t.log_total = ell + lift[k];
      const PhiValue<Acc> at = phi(ell);
      if (hard[k] != 0) value += hard[k] * at.value;
      pull[k] = hard[k] * at.slope;
    }
    const Acc push = pressure(hard[0] + hard[1], r.base + shift + t.log_total, value);
    Acc part[2];
    for (int k = 0; k < 2; ++k)
      part[k] = (push + pull[1 - k]) * (own[k] / total) - pull[k] * (others[k] / total);
    t.part = part[0];
    t.other_part = same ? part[0] : part[1];
    t.strength = (push + pull[0] + pull[1]) / total;
    return value;
  }

  // The same for any other target, from Σ_j w_j (φ(ℓ_j), φ'(ℓ_j), 1) and the labels' z − shift.
  LPL_DEVICE Acc of_target(const Row<Acc>& r, const Acc* gap, Acc total, const Acc* sums, Acc shift,
                           Terms<Acc>& t) const {
    t.shift = shift;
    t.log_total = std::log(total);
    // where nothing is spread the infinite loss of a masked class does not count; a weight of 0
    // hides no row that has no softmax
    Acc value = (r.uniform == 0 ? Acc(0) : r.uniform * sums[0]) + 0 * t.log_total;
    Acc slope = r.uniform * sums[1], weight = r.uniform * sums[2];
    const Acc hard[2] = {r.hard, r.other_hard};
    Acc* part[2] = {&t.part, &t.other_part};
    for (int k = 0; k < (!p.target ? 0 : mixed() ? 2 : 1); ++k) {
      const PhiValue<Acc> at = phi(t.log_total - gap[k]);
      if (hard[k] != 0) value += hard[k] * at.value;
      *part[k] = -hard[k] * at.slope;
      slope -= *part[k];
      weight += hard[k];
    }
    slope += pressure(weight, r.base + shift + t.log_total, value);
    t.uniform = r.uniform;
    t.strength = slope / total;
    return value;
  }

 private:
  LPL_DEVICE int column(i64 label, bool& ignored, bool& outside) const {
    ignored = label == p.ignore_index;
    outside = !ignored && (label < 0 || label >= classes);
    // what names no class reads the tables of the first one
    return int(ignored || outside ? -p.first : label - p.first);
  }

  // What a label that has this share of the row's weight keeps, and what it spreads.
  LPL_DEVICE void split(int label, Acc share, Acc& hard, Acc& uniform) const {
    hard = p.weight ? share * table(p.weight)[label] : share;
    uniform = 0;
    if (!spread) return;
    const Acc epsilon = p.smoothing ? table(p.smoothing)[label] : Acc(p.label_smoothing);
    hard *= 1 - epsilon;
    uniform = share * epsilon / Acc(classes);
  }

  LPL_DEVICE Acc probability(i64 at) const {
    switch (p.dense_dtype) {
      case DType::f64: return Acc(static_cast<const double*>(p.dense)[at]);
      case DType::bf16: return Acc(load(static_cast<const BFloat16*>(p.dense)[at]));
      case DType::f16: return Acc(load(static_cast<const Float16*>(p.dense)[at]));
      default: return Acc(static_cast<const float*>(p.dense)[at]);
    }
  }

  // Adds z_loss·lse² of a row of this weight; its slope.
  LPL_DEVICE Acc pressure(Acc weight, Acc lse, Acc& value) const {
    if (!(p.z_loss > 0)) return 0;
    if (weight != 0) value += weight * (Acc(p.z_loss) * lse * lse);
    return weight * (2 * Acc(p.z_loss) * lse);
  }

  const Call& call_;

 public:
  const int c;        // columns here
  const i64 classes;  // in all

 private:
  // converted once, not for every column
  const Acc inverse_temperature_, softcap_;
};

}  // namespace lpl
