// Few classes: rows stand side by side in vector lanes, because what a row costs beside its
// exponentials (a maximum, a logarithm, the ends of loops) would be most of it.
#pragma once

#include "../parts.h"
#include "call.h"

namespace lpl {
namespace {

// Labels, unsmoothed, and tables by class: what most calls with few classes ask for.
template <typename T>
class NarrowRows {
 public:
  using Acc = typename AccumulateOf<T>::type;

  static constexpr i64 kRows = 32;  // side by side
  // Beyond, a row's own loops are as fast.
  static constexpr i64 kMostClasses = 48;

  NarrowRows(const Call<T>& call, const Outputs& out, double norm)
      : call_(call), p_(call.p), out_(out), norm_(norm), c_(call.c), tile_(c_ * kRows) {}

  static bool serves(const Call<T>& call, const Outputs& out) {
    return call.c <= kMostClasses && kNarrowPath.serves(call.features, wanted_of(out));
  }

  // Rows first … first + count − 1, at most kRows. Writes their gradients and losses (if wanted).
  void run(i64 first, i64 count, Acc* losses) {
    first_ = first;
    count_ = count;
    read();
    out_.lse ? exponentials<true>() : exponentials<false>();
    if (out_.lse) store_all_stats();
    out_.terms ? settle<true>(losses) : settle<false>(losses);
    if (out_.grad) write();
  }

 private:
  // z (C, rows) and its maxima. Lanes beyond the last row repeat it.
  void read() {
    Acc* z = tile_.data();
    // four rows at a time, a vector's store for four loads
    for (i64 r = 0; r < kRows; r += 4) {
      const T* u[4];
      for (i64 k = 0; k < 4; ++k) u[k] = call_.logits(row(r + k));
      for (i64 j = 0; j < c_; ++j)
        for (i64 k = 0; k < 4; ++k) z[j * kRows + r + k] = load(u[k][j]);
    }
    for (i64 r = 0; r < kRows; ++r) {
      const i64 i = row(r);
      label_[r] = call_.ignored(p_.target[i]) ? 0 : p_.target[i];
      column_[r] = Acc(label_[r]);
      top_[r] = std::numeric_limits<Acc>::lowest();
      rest_[r] = 0;
    }
    if (out_.lse) compare();
    for (i64 j = 0; j < c_; ++j) {
      const Acc scale = scale_of(j), offset = call_.offset ? call_.offset[j] : Acc(0);
      Acc* column = z + j * kRows;
      LPL_SIMD
      for (i64 r = 0; r < kRows; ++r) column[r] = column[r] * scale + offset;
    }
    if (p_.margin) {
      const Acc* margin = Call<T>::table(p_.margin);
      for (i64 r = 0; r < kRows; ++r) z[label_[r] * kRows + r] -= call_.uniform * margin[label_[r]];
    }
    for (i64 j = 0; j < c_; ++j) {
      const Acc* column = z + j * kRows;
      LPL_SIMD
      for (i64 r = 0; r < kRows; ++r) top_[r] = column[r] > top_[r] ? column[r] : top_[r];
    }
  }

  // Whether a class has a larger logit than the target, or as large a one before it.
  void compare() {
    const Acc* u = tile_.data();
    Acc own[kRows];
    for (i64 r = 0; r < kRows; ++r) {
      own[r] = u[label_[r] * kRows + r];
      beaten_[r] = 0;
    }
    for (i64 j = 0; j < c_; ++j) {
      const Acc* column = u + j * kRows;
      const Acc here = Acc(j);
      LPL_SIMD
      for (i64 r = 0; r < kRows; ++r)
        beaten_[r] += Acc(column[r] > own[r]) + Acc(column[r] == own[r]) * Acc(here < column_[r]);
    }
  }

  // e^(z − maximum) over z, and its sums without the target's own term.
  template <bool kStats>
  void exponentials() {
    Acc* z = tile_.data();
    for (i64 r = 0; r < kRows; ++r) lift_[r] = z[label_[r] * kRows + r] - top_[r];
    if (kStats) std::fill(heat_, heat_ + kRows, Acc(0));
    for (i64 j = 0; j < c_; ++j) {
      Acc* column = z + j * kRows;
      const Acc here = Acc(j);
      LPL_SIMD
      for (i64 r = 0; r < kRows; ++r) {
        const Acc above = column[r] - top_[r], e = exp_of(above);
        column[r] = e;
        if (kStats) heat_[r] += e * (above < Acc(kNothing) ? Acc(kNothing) : above);
        rest_[r] += e * Acc(column_[r] != here);
      }
    }
  }

  void store_all_stats() const {
    for (i64 r = 0; r < count_; ++r) {
      const bool counts = !call_.ignored(p_.target[row(r)]);
      const double total = double(exp_of(lift_[r])) + double(rest_[r]);
      const RowStats stats = counts ? stats_of(top_[r], total, heat_[r]) : RowStats{};
      store_stats<Acc>(out_, row(r), stats, counts && beaten_[r] == 0);
    }
  }

  // The losses; of the gradient share_·e at the rivals and at_label_ at the targets; what it is
  // made of, if that is to be kept.
  template <bool Keeps>
  void settle(Acc* losses) {
    Acc ell[kRows], lse[kRows], own[kRows];
    LPL_SIMD
    for (i64 r = 0; r < kRows; ++r) {
      own[r] = exp_of(lift_[r]);
      const Acc total = own[r] + rest_[r];
      // as cross_entropy_of: log1p of what is small, with what rounding took from 1 + x
      const Acc ratio = rest_[r] / own[r], sum = 1 + ratio;
      const Acc likely = log_of(sum) + (ratio - (sum - 1)) / sum;
      const Acc log_total = log_of(total);
      ell[r] = own[r] >= rest_[r] ? likely : log_total - lift_[r];
      lse[r] = top_[r] + log_total;
    }
    for (i64 r = 0; r < kRows; ++r) {
      const i64 i = row(r);
      const bool counts = !call_.ignored(p_.target[i]);
      const Acc mass = call_.weight(label_[r]);
      const PhiValue<Acc> phi = p_.phi == Phi::log ? PhiValue<Acc>{ell[r], 1}
                                                   : phi_of(ell[r], p_.phi, Acc(p_.phi_parameter));
      const Acc slope = mass * phi.slope;
      const Acc pressure = p_.z_loss > 0 ? mass * Acc(2 * p_.z_loss) * lse[r] : Acc(0);
      const Acc penalty = p_.z_loss > 0 ? Acc(p_.z_loss) * lse[r] * lse[r] : Acc(0);
      const Acc sample = call_.sample_weight(i);
      if (losses) losses[i] = counts ? mass * (phi.value + penalty) * sample : Acc(0);
      const Acc total = own[r] + rest_[r], factor = upstream(i) * sample / total;
      share_[r] = factor * (slope + pressure);
      at_label_[r] = factor * (pressure * own[r] - slope * rest_[r]);
      if (!Keeps) continue;
      Terms<Acc> terms{};
      if (counts) {
        terms.factor = 1;
        terms.shift = top_[r];
        terms.log_total = std::log(total);
        terms.strength = sample / total * (slope + pressure);
        terms.part = sample / total * (pressure * own[r] - slope * rest_[r]);
      }
      static_cast<Terms<Acc>*>(out_.terms)[i] = terms;
    }
  }

  void write() {
    Acc* e = tile_.data();
    for (i64 j = 0; j < c_; ++j) {
      const Acc scale = scale_of(j);
      Acc* column = e + j * kRows;
      LPL_SIMD
      for (i64 r = 0; r < kRows; ++r) column[r] *= share_[r] * scale;
    }
    for (i64 r = 0; r < count_; r += 4) {
      // lanes beyond the last row write what it gets anyway
      T* grad[4];
      for (i64 k = 0; k < 4; ++k) grad[k] = gradient(r + k);
      for (i64 j = 0; j < c_; ++j)
        for (i64 k = 0; k < 4; ++k) grad[k][j] = store<T>(e[j * kRows + r + k]);
    }
    for (i64 r = 0; r < count_; ++r) {
      if (call_.ignored(p_.target[row(r)]))
        std::memset(gradient(r), 0, sizeof(T) * c_);
      else
        gradient(r)[label_[r]] = store<T>(at_label_[r] * scale_of(label_[r]));
    }
  }

  i64 row(i64 r) const { return first_ + std::min(r, count_ - 1); }
  T* gradient(i64 r) const { return static_cast<T*>(out_.grad) + row(r) * c_; }
  Acc scale_of(i64 j) const { return call_.scale ? call_.scale[j] : call_.uniform; }
  Acc upstream(i64 i) const {
    if (out_.grad_rows) return Call<T>::table(out_.grad_rows)[i * out_.grad_rows_stride];
    return Acc(1 / norm_);
  }

  const Call<T>& call_;
  const Problem& p_;
  const Outputs& out_;
  const double norm_;
  const i64 c_;
  i64 first_ = 0, count_ = 0;
  Vector<Acc> tile_;  // (C, rows)
  i64 label_[kRows];
  Acc column_[kRows];  // the label as a number that compares with lanes
  Acc top_[kRows], lift_[kRows], rest_[kRows], share_[kRows], at_label_[kRows];
  Acc heat_[kRows], beaten_[kRows];
};

}  // namespace
}  // namespace lpl
