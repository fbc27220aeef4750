// The losses of multi-label logits and their gradient: logits and labels read once, the gradient
// written once.
#pragma once

#include "binary_loss.h"
#include "binary_pieces.h"
#include "pieces.h"

namespace lpl {

// What the sum of the losses is divided by.
template <typename Acc>
LPL_DEVICE inline Acc norm_of(const BinaryCall& call) {
  const BinaryProblem& p = call.p;
  if (p.normalizer) return *static_cast<const Acc*>(p.normalizer);
  if (p.reduction != Reduction::mean) return 1;
  return p.missing ? *static_cast<const Acc*>(call.out.norm) : Acc(p.n * p.c);
}

// What the gradient of every logit is multiplied by.
template <typename Acc>
LPL_DEVICE inline Acc pull_of(const BinaryCall& call) {
  const BinaryOutputs& out = call.out;
  if (out.upstream) return out.upstream_each ? Acc(1) : *static_cast<const Acc*>(out.upstream);
  const Acc* factor = static_cast<const Acc*>(call.scratch.factor);
  return (factor ? *factor : Acc(1)) / norm_of<Acc>(call);
}

// A span of a finished gradient times its factor, in place, as ScaleBody in gradient.h.
template <typename T>
struct BinaryScaleBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64 t) {
    const Acc factor = *static_cast<const Acc*>(call.scratch.factor);
    if (sizeof(T) == 2 && !keeps_digits(factor)) return;
    const Spans& spans = call.spans;
    const i64 from = t * spans.length, rest = spans.size - from;
    T* grad = static_cast<T*>(call.out.grad) + from;
    const int count = int(rest < spans.length ? rest : spans.length);
    if (call.p.missing && !(std::fabs(factor) < INFINITY))
      return scale_known(team, call, from, grad, count, factor);
    scale_row(team, grad, count, factor);
  }

 private:
  // The gradient of a label that is not there stays 0, which must not become 0·inf.
  template <typename Team>
  LPL_DEVICE static void scale_known(Team& team, const BinaryCall& call, i64 from, T* grad,
                                     int count, Acc factor) {
    const BinaryProblem& p = call.p;
    const Labels<Acc, Any> labels(p);
    for (int k = team.place(); k < count; k += team.places()) {
      const i64 i = (from + k) / p.c, j = (from + k) % p.c;
      bool there;
      labels.at(i * p.target_stride + j, there);
      if (there) store(grad[k], load(grad[k]) * factor);
    }
  }
};

template <typename Acc, typename Team>
LPL_DEVICE inline void store_sum(Team& team, const BinaryCall& call, i64 t, Acc sum) {
  if (!call.scratch.losses) return;
  sum = team.reduce(sum, [](Acc a, Acc b) { return a + b; });
  if (team.rank() == 0) static_cast<Acc*>(call.scratch.losses)[t] = sum;
}

// A span of logits that have labels and nothing else.
template <typename T, typename Label>
struct BinarySpanBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  static i64 plan(BinaryCall& call, int) {
    call.spans = Spans::of(call.p);
    return call.spans.count;
  }

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64 t) {
    const BinaryProblem& p = call.p;
    const Spans& spans = call.spans;
    const i64 from = t * spans.length, rest = spans.size - from;
    const i64 count = rest < spans.length ? rest : spans.length;
    const T* u = static_cast<const T*>(p.input) + t * spans.stride;
    const Label* y = static_cast<const Label*>(p.target) + t * spans.label_stride;
    T* grad = call.out.grad ? static_cast<T*>(call.out.grad) + from : nullptr;
    struct {
      PlainLoss<T> loss;
      LPL_DEVICE Acc operator()(Acc z, Label label) {
        if constexpr (std::is_same<Label, Bool>::value)
          return loss.hard(z, uint32_t(label.bits) << 31);
        else
          return loss.soft(z, load(label));
      }
      LPL_DEVICE void settle() { loss.settle(); }
    } f{PlainLoss<T>(pull_of<Acc>(call))};
    Span<T, Label>(u, y, grad, int(count)).visit(team, f);
    store_sum(team, call, t, f.loss.sum());
  }
};

// A tile of logits whose sides have tables: the learned perturbation's δ, or everything there is
// but for an asymmetric φ; that, too, where it is kSided.
template <typename T, typename Label, bool kAll, bool kSided>
struct BinaryTiles {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  static i64 plan(BinaryCall& call, int places) {
    call.tiles = Tiles::of(call.p, places);
    return call.tiles.count();
  }

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64 t) {
    const Tiles& tiles = call.tiles;
    const BinaryProblem& p = call.p;
    const int down = int(t) / tiles.across, across = int(t) % tiles.across;
    const i64 j = i64(across) * tiles.wide + team.place() % tiles.wide;
    const i64 begin = i64(down) * tiles.rows, end = begin + tiles.rows;
    Column column(call, j < p.c ? j : p.c - 1);
    if (j < p.c) {
      const i64 first = begin + team.place() / tiles.wide, last = end < p.n ? end : p.n;
      const int step = team.places() / tiles.wide;
      call.out.grad ? column.template rows<true>(first, last, step)
                    : column.template rows<false>(first, last, step);
    }
    store_sum(team, call, t, column.sum());
  }

 private:
  // What a thread has to do with its column.
  class Column {
   public:
    LPL_DEVICE Column(const BinaryCall& call, i64 j)
        : call_(call), p_(call.p), labels_(call.p), j_(j), pull_(pull_of<Acc>(call)), loss_(pull_) {
      const Acc* delta = static_cast<const Acc*>(call.scratch.delta);  // positives first
      for (int side = 0; side < 2; ++side) {
        offset_[side] = table(kAll ? p_.offset(side) : nullptr, 0);
        if (delta) offset_[side] += delta[(side ? 0 : p_.c) + j];
        if (!kAll) continue;
        scale_[side] = table(p_.scale(side), 1);
        weight_[side] = table(p_.weight(side), 1);
      }
      if (kAll) balance_ = table(p_.inverse_count, 0);
    }

    LPL_DEVICE Acc sum() { return kAll ? sum_ : sum_ + loss_.sum(); }

    // Loss and gradient of rows i, i + step, …
    template <bool kGrad>
    LPL_DEVICE void rows(i64 i, i64 end, int step) {
      const T* u = static_cast<const T*>(p_.input) + i * p_.row_stride + j_;
      T* grad = kGrad ? static_cast<T*>(call_.out.grad) + i * p_.c + j_ : nullptr;
      auto y = labels_.from(i * p_.target_stride + j_);
      const uint32_t u_step = uint32_t(step * p_.row_stride);
      const uint32_t y_step = uint32_t(step * p_.target_stride), grad_step = uint32_t(step * p_.c);
      for (; i + (kBatch - 1) * step < end; i += kBatch * step) {
        Acc us[kBatch], ys[kBatch];
        bool there[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          us[k] = load(u[uint64_t(k) * u_step]);
          ys[k] = labels_.at(y + uint64_t(k) * y_step, there[k]);
        }
        u += uint64_t(kBatch) * u_step, y += uint64_t(kBatch) * y_step;
        take<kBatch>(i, step, us, ys, there);
        if constexpr (kGrad) {
#pragma unroll
          for (int k = 0; k < kBatch; ++k) store(grad[uint64_t(k) * grad_step], us[k]);
          grad += uint64_t(kBatch) * grad_step;
        }
      }
#pragma unroll 1
      for (; i < end; i += step) {
        Acc du = load(*u), label;
        bool there;
        label = labels_.at(y, there);
        take<1>(i, step, &du, &label, &there);
        if (kGrad) store(*grad, du);
        u += u_step, y += y_step, grad += grad_step;
      }
    }

   private:
    static constexpr int kBatch = kAll ? 4 : 8;  // rows on their way at once

    // Logits become gradients.
    template <int kCount>
    LPL_DEVICE void take(i64 i, int step, Acc* u, const Acc* y, const bool* there) {
      if constexpr (kAll) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) u[k] = everything(i + k * step, u[k], y[k], there[k]);
        sum_ += few_;
        few_ = 0;
      } else {
        Acc between = 0;  // 0 and 1
        if (!std::is_same<Label, Bool>::value)
#pragma unroll
          for (int k = 0; k < kCount; ++k) between += std::fabs(std::fma(y[k], y[k], -y[k]));
        if (between != 0) return both_sides<kCount>(u, y);
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const bool positive = y[k] != 0;
          u[k] = loss_.hard(u[k] + (positive ? offset_[1] : offset_[0]), uint32_t(positive) << 31);
        }
        loss_.settle();
      }
    }
    template <int kCount>
    LPL_DEVICE void both_sides(Acc* u, const Acc* y) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const SideLoss<Acc> of = shared_loss<T>(u[k], y[k], offset_[1], offset_[0]);
        sum_ += of.value;
        u[k] = of.slope * pull_;
      }
    }

    LPL_DEVICE Acc table(const void* from, Acc off) const {
      return from ? static_cast<const Acc*>(from)[j_] : off;
    }

    LPL_DEVICE SideLoss<Acc> of_distance(Acc s, bool positive) const {
      if constexpr (kSided)
        return asymmetric_loss<T>(s, Acc(positive ? p_.phi_parameter : p_.phi_negative),
                                  positive ? Acc(0) : Acc(p_.phi_clip), p_.phi_detached);
      else
        return side_loss<T>(s, p_.phi, Acc(p_.phi_parameter));
    }

    // Adds what a side that has a share of a label adds to loss and dL/du.
    LPL_DEVICE void side(Acc u, Acc share, bool positive, Acc& value, Acc& slope) const {
      if (share == 0) return;  // however infinite its loss
      const Acc a = positive ? scale_[1] : scale_[0];
      const Acc z = u * a + (positive ? offset_[1] : offset_[0]);
      const Acc weight = share * (positive ? weight_[1] : weight_[0]);
      const SideLoss<Acc> loss = of_distance(positive ? -z : z, positive);
      value += weight * loss.value;
      slope += (positive ? -weight : weight) * a * loss.slope;
    }

    LPL_DEVICE Acc everything(i64 i, Acc u, Acc y, bool there) {
      Acc value = 0, slope = 0;
      if (there) {
        const bool positive = y > Acc(0.5);
        side(u, positive ? y : 1 - y, positive, value, slope);
        if (y != 0 && y != 1) side(u, positive ? 1 - y : y, !positive, value, slope);
        Acc all = 1;
        if (p_.sample_weight) all = static_cast<const Acc*>(p_.sample_weight)[i];
        if (p_.inverse_count) {
          const Acc mass = static_cast<const Acc*>(call_.scratch.masses)[i];
          const Acc ratio = mass > 0 ? balance_ * reciprocal_of(mass) : Acc(INFINITY);
          const Acc away = exp_of<T>(Acc(p_.beta) * (Acc(p_.mu) - ratio));
          all *= Acc(p_.alpha) + reciprocal_of(1 + away);
        }
        value *= all;
        slope *= all;
      }
      few_ += value;
      const i64 at = i * p_.c + j_;
      if (p_.reduction == Reduction::none && call_.out.loss)
        static_cast<Acc*>(call_.out.loss)[at] = value;
      if (!there) return 0;  // whatever comes from upstream, or the norm of no labels
      slope *= pull_;
      return call_.out.upstream_each ? slope * static_cast<const Acc*>(call_.out.upstream)[at]
                                     : slope;
    }

    const BinaryCall& call_;
    const BinaryProblem& p_;
    const Labels<Acc, Label> labels_;
    const i64 j_;
    const Acc pull_;
    PlainLoss<T> loss_;
    Acc offset_[2], scale_[2], weight_[2], balance_;
    Acc few_ = 0, sum_ = 0;  // many terms that are alike would lose digits in one sum
  };
};

template <typename T, typename Label, bool kAll>
struct BinaryTileBody : BinaryTiles<T, Label, kAll, false> {};
// Everything, under an asymmetric φ: in a kernel of its own, whose registers others need not have.
template <typename T>
struct BinarySidedBody : BinaryTiles<T, Any, true, true> {};

}  // namespace lpl
