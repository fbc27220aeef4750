// One call with its types known: tables folded with 1/temperature, labels checked, rows perturbed.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "../lpl_math.h"
#include "norm.h"
#include "paths.h"
#include "row_statistics.h"

namespace lpl {
namespace {

// Fewer exponentials than this per thread are not worth waking it.
constexpr i64 kWorkPerThread = 16384;

// e^x keeps its digits up to here: the rounding of x counts as much as that of the result.
constexpr int kSlack = 4;

// run(share, begin, end) for `threads` shares of `count`, side by side. One is run as it is: within
// a thread of others a team of one costs more than a short row.
template <typename Run>
inline void for_shares(int threads, i64 count, Run run) {
  if (threads == 1) return run(0, i64(0), count);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int share = 0; share < threads; ++share)
    run(share, count * share / threads, count * (share + 1) / threads);
}

// run(t) with t of the type of logits.
template <typename Run>
inline auto for_type(DType dtype, Run run) {
  switch (dtype) {
    case DType::f64: return run(double());
    case DType::bf16: return run(BFloat16());
    case DType::f16: return run(Float16());
    default: return run(float());
  }
}

template <typename T>
struct Call {
  using Acc = typename AccumulateOf<T>::type;

  const Problem& p;
  const uint64_t features;
  const i64 n, c;
  Vector<Acc> folded_scale, folded_offset;
  const Acc *scale = nullptr, *offset = nullptr;  // times 1/temperature
  const Acc uniform;  // 1/temperature, the scale where there is no table

  explicit Call(const Problem& problem)
      : p(problem),
        features(features_of(problem)),
        n(problem.n),
        c(problem.c),
        uniform(Acc(problem.inverse_temperature)),
        raw_(kRawPath.serves(features, 0)) {
    scale = fold(p.scale, folded_scale);
    offset = fold(p.offset, folded_offset);
  }

  static const Acc* table(const void* pointer) { return static_cast<const Acc*>(pointer); }
  // A table by column, from this problem's first column on.
  const Acc* by_column(const void* pointer) const {
    return pointer ? table(pointer) + p.first : nullptr;
  }
  const T* logits(i64 i) const { return static_cast<const T*>(p.input) + i * p.row_stride; }
  bool smooth() const { return p.smoothing || p.label_smoothing > 0; }
  bool ignored(i64 label) const { return label == p.ignore_index; }
  // Whether row i counts nothing: all its labels are ignored.
  bool nothing(i64 i) const {
    return p.target && ignored(p.target[i]) && (!p.other || ignored(p.other[i]));
  }
  // The column of a label, −1 where this problem does not have it.
  i64 column(i64 label) const {
    const i64 at = label - p.first;
    return !ignored(label) && at >= 0 && at < c ? at : -1;
  }
  Acc weight(i64 label) const { return p.weight ? table(p.weight)[label] : Acc(1); }
  Acc sample_weight(i64 i) const { return p.sample_weight ? table(p.sample_weight)[i] : Acc(1); }
  Acc share(i64 i) const { return p.lam ? table(p.lam)[i] : Acc(1); }

  // Additive row of sample i, before 1/temperature; null where there is none.
  const Acc* extra_row(i64 i) const {
    if (!p.rows) return nullptr;
    const i64 index = p.row_index ? p.row_index[i] : p.target[i];
    return by_column(p.rows) + index * p.all_classes();
  }

  int threads_for(i64 exponentials) const {
    const i64 useful = std::max<i64>(1, exponentials / kWorkPerThread);
    return int(std::min<i64>(std::min<i64>(p.threads, useful), std::max<i64>(1, n)));
  }

  Status check() const {
    for (const int64_t* labels : {p.target, p.other}) {
      if (!labels) continue;
      for (i64 i = 0; i < n; ++i)
        if ((labels[i] < 0 || labels[i] >= p.all_classes()) && !ignored(labels[i]))
          return {Fault::target, labels[i], 0, 0};
    }
    if (p.rows && p.row_index)
      for (i64 i = 0; i < n; ++i)
        if (p.row_index[i] < 0 || p.row_index[i] >= p.row_count)
          return {Fault::row_index, p.row_index[i], 0, 0};
    return {Fault::none, 0, 0, 0};
  }

  // What the sum of the losses is divided by.
  double normalizer() const {
    if (p.normalizer) return double(*static_cast<const Acc*>(p.normalizer));
    if (p.reduction != Reduction::mean) return 1;
    double total = 0;
    for (i64 i = 0; i < n; ++i) {
      Acc counts = 1;
      if (p.target) {
        counts = ignored(p.target[i]) ? Acc(0) : share(i) * weight(p.target[i]);
        if (p.other && !ignored(p.other[i])) counts += (1 - share(i)) * weight(p.other[i]);
      }
      total += double(counts) * double(sample_weight(i));
    }
    return total;
  }

  // How many rows count: what the mean of the penalties divides by.
  i64 counted_rows() const {
    if (!p.target) return n;
    i64 count = 0;
    for (i64 i = 0; i < n; ++i) count += !nothing(i);
    return count;
  }

  // The class that is right of row i: of class probabilities the first of the most likely, as torch
  // has it, nan the most; of two labels that with the larger share.
  i64 aim(i64 i) const {
    if (!p.dense) {
      const bool first =
          !p.other || ignored(p.other[i]) || (!(share(i) < Acc(0.5)) && !ignored(p.target[i]));
      return first ? p.target[i] : p.other[i];
    }
    switch (p.dense_dtype) {
      case DType::f64: return most_likely<double>(i);
      case DType::f32: return most_likely<float>(i);
      case DType::bf16: return most_likely<BFloat16>(i);
      case DType::f16: return most_likely<Float16>(i);
    }
    return 0;
  }

  // Exponentials of a row: e^(z_j − shift), Σ over all but one of them, z of that one, and where z
  // is; null where that is not known any more. What the row's norm has done to it.
  struct Exponentials {
    Acc shift;
    double rest;
    Acc own;
    const Acc* z;
    RowNorm<Acc> norm;
    Acc base;
  };

  // One sweep over row i plus `delta` (may be null): perturbed logits to `z` (where anything
  // changes them; `capped` is scratch of a block, for the softcap), the exponentials to `e` (may be
  // null or `z`), their sum without class `skip` (or −1). The maximum comes to light block by
  // block; what was summed before is scaled to it where it exceeds the shift by more than kSlack.
  // Nothing is swept where an earlier call has left the exponentials in the gradient's row. What is
  // `stats` of the row beside that, a RowStatistics if anybody asks, need an `e` that is not `z`,
  // or none. Beside `delta` all z are less `base`, or logits far from 0 would take its digits.
  template <typename Stats = std::nullptr_t>
  Exponentials exponentials(i64 i, const Acc* delta, i64 skip, Acc* z, Acc* capped, Acc* e,
                            Stats stats = nullptr) const {
    constexpr bool kStats = !std::is_same<Stats, std::nullptr_t>::value;
    if (p.swept && !delta) {
      const Acc* swept = table(p.swept) + 3 * i;
      return {swept[0], double(swept[1]), swept[2], nullptr, {}, 0};
    }
    RowNorm<Acc> norm;
    if (p.norm_p > 0) norm = measured_norm<Acc>(p, logits(i));
    const Acc* row = delta ? nullptr : unperturbed(i, norm.factor);
    const bool fill = row == nullptr;
    if (fill) row = z;
    const Acc base = delta ? largest(i, norm.factor, z, capped) : Acc(0);
    if constexpr (kStats) stats->begin();
    Acc shift = std::numeric_limits<Acc>::lowest();
    double rest = 0;
    const i64 ahead = p.norm_p > 0 && c <= kRowAhead ? p.row_stride : kBlock;
    for (i64 lo = 0; lo < c; lo += kBlock) {
      const i64 size = std::min(kBlock, c - lo);
      if (delta)
        move(base, delta + lo, size, z + lo);
      else if (fill)
        perturb(i, lo, size, norm.factor, z + lo, capped);
      // a number that base + shift holds whole: the shift is handed on as that
      const Acc top = (base + max_of(row + lo, size)) - base;
      if (top > shift + kSlack) {
        const Acc factor = exp_of(shift - top);
        rest *= factor;
        if (e) scale_by(factor, e, lo);
        if constexpr (kStats) stats->raise(shift, top);
        shift = top;
      }
      Acc* to = at(e, lo);
      if constexpr (kStats)
        if (!e) to = stats->room();
      const double sum = block_sum(i, lo, size, row + lo, shift, to, skip, ahead);
      rest += sum;
      if constexpr (kStats) {
        const bool own = skip >= lo && skip < lo + size, raw = raw_ && norm.factor == 1 && !delta;
        const T* u = logits(i) + lo;
        stats->add(lo, size, row + lo, to, shift, own ? sum + to[skip - lo] : sum, u,
                   raw ? top : max_of(u, size));
      }
    }
    return {shift, rest, skip < 0 ? Acc(0) : row[skip], row, norm, base};
  }

  // e^(z_j − shift) of a block of row i to `e`, once more, by the shift and the norm's factor that
  // exponentials() has found; z and capped are scratch.
  void block_again(i64 i, Acc length, Acc shift, i64 lo, i64 size, Acc* z, Acc* capped,
                   Acc* e) const {
    exp_sum(perturbed(i, lo, size, length, z, capped), shift, e, size, -1);
  }

  // z of a block of row i, whose norm makes its logits `length` times as long: the logits
  // themselves, or `z`, with the bounded ones in `capped` if there is a softcap.
  const Acc* perturbed(i64 i, i64 lo, i64 size, Acc length, Acc* z, Acc* capped) const {
    const Acc* row = unperturbed(i, length);
    if (row) return row + lo;
    perturb(i, lo, size, length, z, capped);
    return z;
  }

  // Σ e^(z_j − shift) over a block of row i, without class `skip` (or −1); the exponentials to `e`
  // (may be null or `z`). Fetches what lies `ahead`.
  double block_sum(i64 i, i64 lo, i64 size, const Acc* z, Acc shift, Acc* e, i64 skip,
                   i64 ahead) const {
    double sum = 0;
    for (i64 part = 0; part < size; part += kPart) {
      prefetch(logits(i) + lo + part + ahead, kPart);
      const i64 length = std::min(kPart, size - part);
      sum += exp_sum(z + part, shift, at(e, part), length, skip - lo - part);
    }
    return sum;
  }

  // What a block of row i has of its target where that is spread over the classes: class weights
  // times class probabilities, smoothed, or times `spread` where there are none.
  void weigh(i64 i, i64 lo, i64 size, Acc spread, Acc* t) const {
    if (!p.dense) return weigh(lo, size, t, [=](i64) { return spread; });
    switch (p.dense_dtype) {
      case DType::f64: return weigh_dense<double>(i, lo, size, t);
      case DType::f32: return weigh_dense<float>(i, lo, size, t);
      case DType::bf16: return weigh_dense<BFloat16>(i, lo, size, t);
      case DType::f16: return weigh_dense<Float16>(i, lo, size, t);
    }
  }

 private:
  template <typename D>
  i64 most_likely(i64 i) const {
    const D* row = static_cast<const D*>(p.dense) + i * p.dense_stride;
    int32_t strange = 0;
#pragma omp simd reduction(| : strange)
    for (i64 j = 0; j < c; ++j) strange |= int32_t(load(row[j]) != load(row[j]));
    if (!strange) return first_of(row, c, max_of(row, c));
    return std::find_if(row, row + c, [](D x) { return load(x) != load(x); }) - row;
  }

  template <typename D>
  void weigh_dense(i64 i, i64 lo, i64 size, Acc* t) const {
    const D* row = static_cast<const D*>(p.dense) + i * p.dense_stride + lo;
    const Acc keep = Acc(1 - p.label_smoothing),
              spread = Acc(p.label_smoothing / double(p.all_classes()));
    weigh(lo, size, t, [=](i64 j) { return Acc(load(row[j])) * keep + spread; });
  }

  template <typename F>
  void weigh(i64 lo, i64 size, Acc* t, F target) const {
    const Acc* weight = at(by_column(p.weight), lo);
    if (weight) {
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) t[j] = target(j) * weight[j];
    } else {
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) t[j] = target(j);
    }
  }

  const Acc* fold(const void* pointer, Vector<Acc>& folded) const {
    const Acc* given = by_column(pointer);
    if (!given || uniform == 1) return given;
    folded.resize(c);
    for (i64 j = 0; j < c; ++j) folded[j] = given[j] * uniform;
    return folded.data();
  }

  // Row i where it needs no work to be z, else null.
  const Acc* unperturbed(i64 i, Acc length) const {
    return raw_ && length == 1 ? same_type(logits(i)) : nullptr;
  }
  static const Acc* same_type(const Acc* row) { return row; }
  template <typename Other>
  static const Acc* same_type(const Other*) {
    return nullptr;
  }

  // The same, always into `z`.
  void perturb(i64 i, i64 lo, i64 size, Acc length, Acc* z, Acc* capped) const {
    const Acc* extra = at(extra_row(i), lo);
    if (p.softcap > 0) {
      const Acc cap = Acc(p.softcap), inverse = length * Acc(1 / p.softcap);
      const T* u = logits(i) + lo;
      LPL_SIMD
      for (i64 j = 0; j < size; ++j) capped[j] = cap * tanh_of(load(u[j]) * inverse);
      add_tables(static_cast<const Acc*>(capped), Acc(1), extra, lo, size, z);
    } else {
      add_tables(logits(i) + lo, length, extra, lo, size, z);
    }
    if (p.margin) {
      const i64 y = column(p.target[i]) - lo;
      if (y >= 0 && y < size) z[y] -= uniform * table(p.margin)[p.target[i]];
    }
  }

  template <typename U>
  void add_tables(const U* u, Acc length, const Acc* extra, i64 lo, i64 size, Acc* z) const {
    const Acc each = scale ? length : length * uniform;  // `scale` has 1/temperature in it
    const auto run = [&](auto kernel) {
      kernel(u, at(scale, lo), each, at(offset, lo), extra, uniform, z, size);
    };
    const bool stretched = scale && length != 1;
    switch ((stretched ? 8 : scale ? 4 : 0) | (offset ? 2 : 0) | (extra ? 1 : 0)) {
      case 0: return run(perturb_block<false, true, false, false, U, Acc>);
      case 1: return run(perturb_block<false, true, false, true, U, Acc>);
      case 2: return run(perturb_block<false, true, true, false, U, Acc>);
      case 3: return run(perturb_block<false, true, true, true, U, Acc>);
      case 4: return run(perturb_block<true, false, false, false, U, Acc>);
      case 5: return run(perturb_block<true, false, false, true, U, Acc>);
      case 6: return run(perturb_block<true, false, true, false, U, Acc>);
      case 7: return run(perturb_block<true, false, true, true, U, Acc>);
      case 8: return run(perturb_block<true, true, false, false, U, Acc>);
      case 9: return run(perturb_block<true, true, false, true, U, Acc>);
      case 10: return run(perturb_block<true, true, true, false, U, Acc>);
      default: return run(perturb_block<true, true, true, true, U, Acc>);
    }
  }

  // Row i's z, always into `z`; the largest, 0 where that is no number.
  Acc largest(i64 i, Acc length, Acc* z, Acc* capped) const {
    for (i64 lo = 0; lo < c; lo += kBlock)
      perturb(i, lo, std::min(kBlock, c - lo), length, z + lo, capped);
    const Acc top = max_of(z, c);
    return std::isfinite(top) ? top : Acc(0);
  }

  static void move(Acc base, const Acc* delta, i64 size, Acc* z) {
    LPL_SIMD
    for (i64 j = 0; j < size; ++j) z[j] = (z[j] - base) + delta[j];
  }

  // Logits that the sweep comes to a block later, of this row or the next: fetched part by part, so
  // that the memory works while exponentials are computed. (Measured: a tenth less time where rows
  // come from main memory. The hardware's own prefetching ends with a page, which is a block.)
  static constexpr i64 kPart = 256;
  // A norm has read the row already: up to this length the next row is what to fetch.
  static constexpr i64 kRowAhead = 32768;

  template <typename V>
  static V* at(V* values, i64 lo) {
    return values ? values + lo : nullptr;
  }

  const bool raw_;
};

}  // namespace
}  // namespace lpl
