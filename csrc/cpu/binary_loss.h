// Loss and gradient of multi-label logits: rows, cut into blocks that stay in the nearest cache.
#pragma once

#include <omp.h>

#include <algorithm>
#include <limits>

#include "binary_block.h"
#include "call.h"

namespace lpl {
namespace {

// One call with its types known.
template <typename T>
class BinaryCall {
 public:
  using Acc = typename AccumulateOf<T>::type;

  // Labels of a block, and room for what soft ones need.
  struct Scratch {
    Acc y[kBlock], sides[2][kBlock], weights[2][kBlock], u[kBlock], grads[2][kBlock],
        losses[2][kBlock];
    T unwanted[kBlock];
  };

  const BinaryProblem& p;
  const BinaryOutputs& out;
  const i64 n, c;

  BinaryCall(const BinaryProblem& problem, const BinaryOutputs& outputs)
      : p(problem), out(outputs), n(problem.n), c(problem.c) {
    bare_ = !p.inverse_count && !p.sample_weight && !p.missing && p.phi == Phi::log;
    for (const int side : {0, 1}) {
      bare_ = bare_ && !p.weight[side] && !p.scale[side] && !p.offset[side];
    }
    for (const int side : {0, 1}) {
      weight_[side] = table(p.weight[side], 1, ones_);
      scale_[side] = table(p.scale[side], 1, ones_);
      offset_[side] = table(p.offset[side], 0, zeros_);
    }
  }

  int threads_for(i64 items) const {
    const i64 useful = std::max<i64>(1, n * c / kWorkPerThread);
    return int(std::min<i64>(std::min<i64>(p.threads, useful), std::max<i64>(1, items)));
  }

  const T* logits(i64 i) const { return static_cast<const T*>(p.input) + i * p.row_stride; }
  const Acc* weight(int side) const { return weight_[side]; }
  const Acc* scale(int side) const { return scale_[side]; }
  const Acc* offset(int side) const { return offset_[side]; }

  // Labels lo to lo + size of row i into y; whether they are hard.
  bool labels(i64 i, i64 lo, i64 size, Acc* y) const {
    switch (p.target_type) {
      case LabelType::f64: return read<double>(i, lo, size, y);
      case LabelType::f32: return read<float>(i, lo, size, y);
      case LabelType::bf16: return read<BFloat16>(i, lo, size, y);
      case LabelType::f16: return read<Float16>(i, lo, size, y);
      case LabelType::u8: return read<uint8_t>(i, lo, size, y);
      case LabelType::i8: return read<int8_t>(i, lo, size, y);
      case LabelType::i16: return read<int16_t>(i, lo, size, y);
      case LabelType::i32: return read<int32_t>(i, lo, size, y);
      default: return read<int64_t>(i, lo, size, y);
    }
  }

  // What "mean" divides by.
  double normalizer() const {
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
          labels(i, lo, size, y.data());
          int32_t known = 0;
#pragma omp simd reduction(+ : known)
          for (i64 j = 0; j < size; ++j) known += int32_t(y[j] == y[j]);
          total += known;
        }
    }
    return double(total);
  }

  // Σ_j Y_ij v_j of a row.
  double mass(i64 i, Scratch& scratch) const {
    const Acc* v = static_cast<const Acc*>(p.inverse_count);
    double total = 0;
    for (i64 lo = 0; lo < c; lo += kBlock) {
      const i64 size = std::min(kBlock, c - lo);
      labels(i, lo, size, scratch.y);
      Acc sum = 0;
#pragma omp simd reduction(+ : sum)
      for (i64 j = 0; j < size; ++j)
        sum += scratch.y[j] == scratch.y[j] ? scratch.y[j] * v[lo + j] : Acc(0);
      total += sum;
    }
    return total;
  }

  // The factor that all losses of a row share, and the mass of its positives if that matters.
  struct Row {
    Acc weight;
    double mass;
  };
  Row row(i64 i, Scratch& scratch) const {
    const Acc own = p.sample_weight ? static_cast<const Acc*>(p.sample_weight)[i] : Acc(1);
    return {own, p.inverse_count ? mass(i, scratch) : 0.0};
  }

  // Loss, summed, and gradient of a block of row i, its logits and labels wherever they stand; the
  // offsets of both sides are at the block's first class, `lo`.
  double block(i64 i, i64 lo, i64 size, const T* u, const Acc* y, bool hard, const Row& row,
               const Acc* negative_offset, const Acc* positive_offset, double norm,
               Scratch& scratch) const {
    Block<T> b{};
    b.u = u;
    b.label = y;
    for (const int side : {0, 1}) {
      b.weight[side] = weight_[side] + lo;
      b.scale[side] = scale_[side] + lo;
    }
    b.offset[0] = negative_offset;
    b.offset[1] = positive_offset;
    b.row = row.weight;
    b.alpha = Acc(p.alpha);
    if (p.inverse_count && row.mass > 0) {
      b.balance = static_cast<const Acc*>(p.inverse_count) + lo;
      b.inverse_mass = Acc(1 / row.mass);
      b.beta = Acc(p.beta);
      b.mu = Acc(p.mu);
    } else if (p.inverse_count) {  // no positives: the ratio is infinite
      b.row *= b.alpha + (p.beta > 0 ? Acc(1) : p.beta < 0 ? Acc(0) : Acc(NAN));
    }
    const Acc* upstream = static_cast<const Acc*>(out.upstream);
    b.pull = upstream && !out.upstream_each ? *upstream : Acc(1 / norm);
    b.phi = p.phi;
    b.parameter = Acc(p.phi_parameter);
    b.grad = out.grad ? static_cast<T*>(out.grad) + i * c + lo : scratch.unwanted;
    if (p.reduction == Reduction::none && out.loss)
      b.loss = static_cast<Acc*>(out.loss) + i * c + lo;
    b.size = int32_t(size);
    if (out.upstream_each) return widened(b, upstream + i * c + lo, scratch);
    if (!hard) return widened(b, nullptr, scratch);
    if (!bare_) return table_block(b);
    return p.steps ? plain<true>(b) : plain<false>(b);
  }

 private:
  // A block in Acc: with an upstream gradient of its own for every logit (may be null), or with
  // soft labels, whose two sides are two blocks.
  double widened(const Block<T>& b, const Acc* upstream, Scratch& scratch) const {
    const int32_t size = b.size;
    const bool all = !p.missing;  // a nan among them is to be seen
    LPL_SIMD
    for (int32_t j = 0; j < size; ++j) scratch.u[j] = load(b.u[j]);
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
      Block<Acc> wide{};
      wide.u = scratch.u;
      wide.label = label;
      for (const int k : {0, 1}) {
        wide.weight[k] = weight;
        wide.scale[k] = b.scale[k];
        wide.offset[k] = b.offset[k];
      }
      wide.balance = b.balance;
      wide.inverse_mass = b.inverse_mass;
      wide.alpha = b.alpha;
      wide.beta = b.beta;
      wide.mu = b.mu;
      wide.row = b.row;
      wide.pull = b.pull;
      wide.phi = b.phi;
      wide.parameter = b.parameter;
      wide.grad = scratch.grads[side];
      wide.loss = b.loss ? scratch.losses[side] : nullptr;
      wide.size = size;
      total += double(table_block(wide));
    }
    LPL_SIMD
    for (int32_t j = 0; j < size; ++j) {
      const Acc grad = scratch.grads[0][j] + scratch.grads[1][j];
      b.grad[j] = store<T>(upstream ? grad * upstream[j] : grad);
    }
    if (b.loss) {
      LPL_SIMD
      for (int32_t j = 0; j < size; ++j) b.loss[j] = scratch.losses[0][j] + scratch.losses[1][j];
    }
    return total;
  }

  template <bool Moved>
  double plain(const Block<T>& b) const {
    const Acc *zero = b.offset[0], *one = b.offset[1];
    return b.loss
               ? plain_block<true, Moved>(b.u, b.label, zero, one, b.pull, b.grad, b.loss, b.size)
               : plain_block<false, Moved>(b.u, b.label, zero, one, b.pull, b.grad, b.loss, b.size);
  }

  template <typename Y>
  bool read(i64 i, i64 lo, i64 size, Acc* y) const {
    const Y* label = static_cast<const Y*>(p.target) + i * p.target_stride + lo;
    const Acc ignored = Acc(p.ignored);
    return p.missing ? read_block<true>(label, ignored, y, int32_t(size))
                     : read_block<false>(label, ignored, y, int32_t(size));
  }

  const Acc* table(const void* given, Acc value, Vector<Acc>& filled) const {
    if (given) return static_cast<const Acc*>(given);
    if (filled.empty()) filled.assign(c, value);
    return filled.data();
  }

  bool bare_;
  Vector<Acc> ones_, zeros_;
  const Acc *weight_[2], *scale_[2], *offset_[2];
};

}  // namespace
}  // namespace lpl
