// Loss and gradient of multi-label logits: rows, cut into blocks that stay in the nearest cache.
#pragma once

#include <omp.h>

#include <algorithm>
#include <limits>

#include "binary_block.h"
#include "call.h"
#include "labels.h"

namespace lpl {
namespace {

// One call with its types known.
template <typename T>
class BinaryCall {
 public:
  using Acc = typename AccumulateOf<T>::type;
  using Factors = RowFactors<Acc>;
  static constexpr i64 kSpan = 8;  // what rows of few classes are made in
  using Entries = Vector<Entry<Acc>>;

  // Room for a block: what is read into Acc or made by row, losses that nobody asked for, and what
  // soft labels need; and for what rows of few classes write beyond their end.
  struct Scratch {
    static constexpr i64 kRoom = kBlock + kSpan;
    Acc u[kBlock], y[kBlock], balance[kRoom], loss[kBlock], sides[2][kBlock], weights[2][kRoom],
        grads[2][kBlock], losses[2][kBlock];
    double mass[kBlock];
    T unwanted[kBlock];
    Factors factors;
    bool hard;  // the labels in y
  };

  const BinaryProblem& p;
  const BinaryOutputs& out;
  const i64 n, c;
  const Labels<Acc> labels;

  BinaryCall(const BinaryProblem& problem, const BinaryOutputs& outputs)
      : p(problem), out(outputs), n(problem.n), c(problem.c), labels(problem) {
    const bool bare = kBareBinaryPath.serves(features_of(p), wanted_of(out));
    parts_ = !bare ? kTables : p.steps ? kMoved : kBare;
    ones_.assign(height() * c, Acc(1));
    zeros_.assign(height() * c, Acc(0));
    for (const int side : {0, 1}) {
      weight_[side] = table(p.weight(side), ones_, repeated_[0][side]);
      scale_[side] = table(p.scale(side), ones_, repeated_[1][side]);
      offset_[side] = table(p.offset(side), zeros_, repeated_[2][side]);
    }
    balance_ = table(p.inverse_count, zeros_, repeated_[3][0]);
  }

  // Rows of few classes share a block.
  bool narrow() const { return c <= kBlock / 4; }
  i64 height() const { return narrow() ? kBlock / std::max<i64>(1, c) : 1; }

  // Adds δ to the offsets of rows of few classes.
  void move(const Acc* negative, const Acc* positive) {
    for (const int side : {0, 1}) {
      Vector<Acc> moved(c);
      const Acc* delta = side ? positive : negative;
      for (i64 j = 0; j < c; ++j) moved[j] = offset_[side][j] + delta[j];
      offset_[side] = table(moved.data(), zeros_, repeated_[4][side]);
    }
  }

  int threads_for(i64 items) const {
    const i64 useful = std::max<i64>(1, n * c / kWorkPerThread);
    return int(std::min<i64>(std::min<i64>(p.threads, useful), std::max<i64>(1, items)));
  }

  bool bare() const { return parts_ != kTables; }
  const T* logits(i64 i) const { return static_cast<const T*>(p.input) + i * p.row_stride; }
  const Acc* scale(int side) const { return scale_[side]; }
  const Acc* offset(int side) const { return offset_[side]; }

  // What the sum of the losses is divided by.
  double normalizer() const {
    if (p.normalizer) return double(*static_cast<const Acc*>(p.normalizer));
    if (p.reduction != Reduction::mean) return 1;
    if (!p.missing) return double(n) * double(c);
    const int threads = threads_for(n);
    i64 total = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(+ : total)
    {
      Vector<Acc> y(kBlock);
#pragma omp for schedule(static)
      for (i64 i = 0; i < n; ++i)
        for (i64 lo = 0; lo < c; lo += kBlock) {
          const i64 size = std::min(kBlock, c - lo);
          labels.read(i, lo, size, y.data());
          int32_t known = 0;
#pragma omp simd reduction(+ : known)
          for (i64 j = 0; j < size; ++j) known += int32_t(y[j] == y[j]);
          total += known;
        }
    }
    return double(total);
  }

  // The factors of rows from i, whose labels may be listed; those of rows of few classes have been
  // read.
  void factors(i64 i, i64 rows, const Entries* entries, Scratch& scratch, Factors* f) const {
    double* total = scratch.mass;
    std::fill(total, total + rows, 0.0);
    if (p.inverse_count && entries) {
      for (const Entry<Acc>& entry : *entries)
        if (entry.label == 1) total[entry.row - i] += inverse_count()[entry.place];
    } else if (p.inverse_count && narrow()) {
      i64 begin = 0;
      for_each_set(scratch.y, rows * c, [&](i64 j) {
        for (; j >= begin + c; begin += c) ++total;
        if (scratch.y[j] == scratch.y[j]) *total += scratch.y[j] * inverse_count()[j - begin];
        return true;
      });
      total = scratch.mass;
    } else if (p.inverse_count) {
      for (i64 r = 0; r < rows; ++r) total[r] = mass(i + r, scratch.sides[0]);
    }
    for (i64 r = 0; r < rows; ++r) f[r] = factors(i + r, total[r]);
  }

  // Rows from i and classes lo to lo + size, as yet without logits and labels.
  Block<T> block(i64 i, i64 rows, i64 lo, i64 size, const Factors* row, double norm,
                 Scratch& scratch) const {
    Block<T> b{};
    b.i = i;
    b.lo = lo;
    for (const int side : {0, 1}) {
      b.weight[side] = weight_[side] + lo;
      b.scale[side] = b.stretch[side] = scale_[side] + lo;
      b.offset[side] = offset_[side] + lo;
    }
    if (p.inverse_count) b.balance = balance_ + lo;
    b.row = row;
    b.alpha = Acc(p.alpha);
    b.limit = 80;
    const Acc* upstream = static_cast<const Acc*>(out.upstream);
    b.pull = upstream && !out.upstream_each ? *upstream : Acc(1 / norm);
    b.phi = p.phi;
    b.parameter = Acc(p.phi_parameter);
    b.negative = Acc(p.phi_negative);
    b.clip = Acc(p.phi_clip);
    b.detached = p.phi_detached;
    b.grad = out.grad ? static_cast<T*>(out.grad) + i * c + lo : scratch.unwanted;
    b.grad_pitch = out.grad ? c : size;
    const bool each = p.reduction == Reduction::none && out.loss;
    b.loss = each ? static_cast<Acc*>(out.loss) + i * c + lo : scratch.loss;
    b.loss_pitch = each ? c : size;
    b.rows = int32_t(rows);
    b.size = int32_t(size);
    return b;
  }

  // Gives a block its logits.
  void read(Block<T>& b, Scratch& scratch) const {
    const T* from = logits(b.i) + b.lo;
    if constexpr (std::is_same<T, Acc>::value) {
      b.u = from;
      b.pitch = p.row_stride;
      if (b.rows == 1 || !narrow() || b.pitch == b.size) return;
    }
    b.u = scratch.u;
    b.pitch = b.size;
    for (i64 r = 0; r < b.rows; ++r) {
      const T* u = from + r * p.row_stride;
      Acc* to = scratch.u + r * b.size;
      LPL_SIMD
      for (int32_t j = 0; j < b.size; ++j) to[j] = load(u[j]);
    }
  }

  // The entries of rows from i, classes lo to lo + size, if labels can be taken from such a list
  // and about one in `few` at most is not 0.
  bool list(i64 i, i64 rows, i64 lo, i64 size, i64 few, Entries& entries) const {
    if (out.upstream_each || !labels.list(i, rows, lo, size, few, entries)) {
      entries.clear();
      return false;
    }
    for (Entry<Acc>& entry : entries) entry.u = load(logits(entry.row)[entry.place]);
    return true;
  }

  // Loss and gradient of a block whose labels are listed from `front`, which moves past its own.
  double listed(Block<T>& b, Entry<Acc>*& front, const Entry<Acc>* end, Scratch& scratch) const {
    b.front = front;
    for (; front < end && front->row < b.i + b.rows && front->place < b.lo + b.size; ++front) {
      if (!narrow()) continue;
      front->place += (front->row - b.i) * c;
      front->row = b.i;
    }
    b.end = front;
    flatten(b, scratch);
    return losses_of(b, parts_);
  }

  // Gives a block its labels.
  void label(Block<T>& b, Scratch& scratch) const {
    const bool together = p.target_stride == b.size;
    const i64 parts = together ? 1 : b.rows, size = together ? i64(b.rows) * b.size : b.size;
    scratch.hard = true;
    for (i64 r = 0; r < parts; ++r)
      scratch.hard &= labels.read(b.i + r, b.lo, size, scratch.y + r * size);
    b.label = scratch.y;
  }

  // The same of a block that has been given any labels.
  double mixed(Block<T>& b, Scratch& scratch) const {
    if (scratch.hard && !out.upstream_each) {
      flatten(b, scratch);
      return losses_of(b, parts_);
    }
    Block<T> one = b;
    one.rows = 1;
    double total = 0;
    for (i64 r = 0; r < b.rows; ++r) {
      one.u = b.u + r * b.pitch;
      one.label = b.label + r * b.size;
      one.row = b.row + r;
      one.grad = b.grad + r * b.grad_pitch;
      one.loss = b.loss + r * b.loss_pitch;
      total += widened(one, b.i + r, scratch);
    }
    return total;
  }

 private:
  const Acc* inverse_count() const { return static_cast<const Acc*>(p.inverse_count); }

  // What all losses of row i share, from Σ_j Y_ij v_j.
  Factors factors(i64 i, double mass) const {
    Factors f{p.sample_weight ? static_cast<const Acc*>(p.sample_weight)[i] : Acc(1), 0, 0};
    if (!p.inverse_count) return f;
    f.shift = Acc(p.beta * p.mu);
    f.slope = Acc(p.beta / mass);
    if (mass > 0) return f;
    // no positives: the ratio is infinite, its σ 1 or 0, whatever is added to the shift
    f.shift = p.beta > 0 ? -INFINITY : p.beta < 0 ? INFINITY : NAN;
    f.slope = std::copysign(std::numeric_limits<Acc>::min(), Acc(p.beta));
    return f;
  }

  // Σ_j Y_ij v_j of a row, with room for a block of labels.
  double mass(i64 i, Acc* y) const {
    double total = 0;
    for (i64 lo = 0; lo < c; lo += kBlock) {
      const i64 size = std::min(kBlock, c - lo);
      const Acc* v = inverse_count() + lo;
      labels.read(i, lo, size, y);
      Acc sum = 0;
#pragma omp simd reduction(+ : sum)
      for (i64 j = 0; j < size; ++j) sum += y[j] == y[j] ? y[j] * v[j] : Acc(0);
      total += sum;
    }
    return total;
  }

  // Makes one row of rows of few classes: their tables stand side by side.
  void flatten(Block<T>& b, Scratch& scratch) const {
    if (b.rows == 1 || !narrow()) return;
    // span by span, over the end: what a row writes there is the next one's, which follows
    for (i64 r = 0; r < b.rows; ++r) {
      const Factors f = b.row[r];
      for (i64 lo = 0; lo < c; lo += kSpan) {
        Acc* balance = scratch.balance + r * c + lo;
        if (b.balance) {
          LPL_SIMD
          for (i64 j = 0; j < kSpan; ++j) balance[j] = f.shift - f.slope * b.balance[lo + j];
        }
        for (int side = 0; p.sample_weight && side < 2; ++side) {
          Acc* weight = scratch.weights[side] + r * c + lo;
          LPL_SIMD
          for (i64 j = 0; j < kSpan; ++j) weight[j] = f.weight * b.weight[side][lo + j];
        }
      }
    }
    if (b.balance) b.balance = scratch.balance;
    for (const int side : {0, 1}) {
      if (p.sample_weight) b.weight[side] = scratch.weights[side];
    }
    scratch.factors = {1, 0, -1};
    b.row = &scratch.factors;
    b.size *= b.rows;
    b.rows = 1;
  }

  // A row of soft labels, whose two sides are two blocks, or with an upstream gradient of its own
  // for every logit.
  double widened(const Block<T>& b, i64 i, Scratch& scratch) const {
    const int32_t size = b.size;
    const bool all = !p.missing;  // a nan among them is to be seen
    double total = 0;
    for (const int side : {0, 1}) {
      Acc *label = scratch.sides[side], *weight = scratch.weights[side];
      const Acc* given = b.weight[side];
      LPL_SIMD
      for (int32_t j = 0; j < size; ++j) {
        const Acc y = b.label[j];
        const Acc share = side ? y : 1 - y;
        label[j] = share != 0 && (all || y == y) ? Acc(side) : Acc(NAN);
        weight[j] = share * given[j];
      }
      Block<Acc> wide{b, scratch.grads[side]};
      wide.label = label;
      wide.weight[0] = wide.weight[1] = weight;
      wide.loss = scratch.losses[side];
      total += losses_of(wide, kTables);
    }
    const Acc* upstream =
        out.upstream_each ? static_cast<const Acc*>(out.upstream) + i * c + b.lo : nullptr;
    LPL_SIMD
    for (int32_t j = 0; j < size; ++j) {
      const Acc grad = scratch.grads[0][j] + scratch.grads[1][j];
      const bool there = all || b.label[j] == b.label[j];  // else 0, whatever comes from upstream
      b.grad[j] = store<T>(upstream && there ? grad * upstream[j] : grad);
      b.loss[j] = scratch.losses[0][j] + scratch.losses[1][j];
    }
    return total;
  }

  // A table of all classes, or what stands for it; again for every row that shares a block.
  const Acc* table(const void* given, const Vector<Acc>& absent, Vector<Acc>& repeated) const {
    const Acc* once = static_cast<const Acc*>(given);
    if (!once) return absent.data();
    if (!narrow()) return once;
    repeated.resize(height() * c);
    for (i64 r = 0; r < height(); ++r) std::copy(once, once + c, repeated.data() + r * c);
    return repeated.data();
  }

  int parts_;
  Vector<Acc> ones_, zeros_, repeated_[5][2];  // weight, scale, offset, balance, offset with δ
  const Acc *weight_[2], *scale_[2], *offset_[2], *balance_;
};

}  // namespace
}  // namespace lpl
