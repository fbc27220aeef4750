// The learned perturbation of multi-label logits: one number for a class's positives, one for its
// negatives, from columns of the batch that stay in the cache.
//
// In the distance s of a logit from its label (−z of positives, z of negatives) both sides are one
// recursion, d ← d + a·mean_i σ(s_i + d). The mean is a smooth function of d alone. About a centre
// c, with T_i = tanh((s_i + c)/2) and τ = tanh((d − c)/2),
//
//     σ(s_i + d) = 1/2 + (τ + (1 − τ²)·T_i/(1 + T_i τ))/2 ,   1/(1 + T τ) = Σ_n (−τ)^n T^n
//
// so its steps need the batch only through moments mean T^n: one exponential per logit, whatever
// the number of steps. |τ| bounds what the series leaves out; where that is too much it is taken
// again about a centre halfway along d's path, and where that is still too much, or numbers are
// double, steps are taken one by one.
#pragma once

#include <type_traits>

#include "binary_loss.h"

namespace lpl {
namespace {

constexpr int kMoments = 10;             // enough for any steps that add up to 1
constexpr int kListedMoments = 16;       // of positives that are followed one by one
constexpr double kLargestMiss = 1.5e-7;  // of δ, which is to have the digits of a float
constexpr int kCentres = 3;              // tries
constexpr int kGroup = 8;                // classes side by side
constexpr i64 kBatch = 64;               // rows whose sums are kept in Acc

typedef float Floats __attribute__((vector_size(kGroup * sizeof(float))));
typedef int32_t FloatBits __attribute__((vector_size(kGroup * sizeof(float))));

template <typename Acc>
struct GroupOf {
  using type = Floats;
};
template <>
struct GroupOf<double> {
  using type = Lanes;
};

inline Floats exp_of(Floats x) {
  const Floats shifted = x * 1.44269504088896341f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Floats y = (Floats)((FloatBits)p + ((FloatBits)shifted << 23));
  return x < -87.33654f ? Floats{} : y;
}
inline Lanes exp_of(Lanes x) {
  return exp_of<true>(x);
}

template <typename V>
inline V negative_magnitude(V x) {
  return x < 0 ? x : -x;
}

template <typename V>
inline V sigmoid_of(V x) {
  const V e = exp_of(negative_magnitude(x));
  const V near = 1 / (1 + e);
  return x > 0 ? near : e * near;
}

template <typename T>
class Columns {
 public:
  using Acc = typename AccumulateOf<T>::type;
  using Group = typename GroupOf<Acc>::type;
  using Scratch = typename BinaryCall<T>::Scratch;

  // Classes of a tile: as many as keep logits and labels of all rows in the second cache, whole
  // cache lines of them, and no more than leave every thread some.
  static i64 width(const BinaryCall<T>& call, int threads) {
    constexpr i64 kCache = 192 * 1024, kLine = 64;
    const i64 fit = kCache / (std::max<i64>(1, call.n) * i64(sizeof(T) + sizeof(Acc)));
    const i64 share = (call.c + threads - 1) / threads;
    const i64 most = std::min<i64>(std::min(fit, kBlock), (share + kLine - 1) / kLine * kLine);
    return std::max<i64>(kLine, most / kLine * kLine);
  }

  Columns(const BinaryCall<T>& call, i64 width)
      : call_(call), n_(call.n), width_(width), u_(n_ * width), y_(n_ * width) {
    for (const int side : {0, 1}) {
      scale_[side].resize(width);
      offset_[side].resize(width);
      centre_[side].resize(width);
      moved_[side].resize(width);
    }
    moments_.resize((kListedMoments + 1) * width);
    steps_.resize(width);
  }

  // Reads classes lo to lo + size, and finds their δ: offset(side) holds it afterwards.
  void learn(i64 lo, i64 size, BinaryStatus& status) {
    fill(lo, size);
    int32_t most = 0;
    for (i64 j = 0; j < width_; ++j) most = std::max(most, std::abs(steps_[j]));
    if (most == 0) return;
    if (hard_) find_positives();
    for (i64 g = 0; g < size; g += kGroup) {
      most_ = 0;
      for (i64 j = g; j < g + kGroup; ++j) most_ = std::max(most_, std::abs(steps_[j]));
      if (most_ == 0) continue;
      bool solved = true;
      for (const int side : {0, 1}) solved = find(side, g) && solved;
      (solved ? status.solved : status.swept) += std::min<i64>(kGroup, size - g);
    }
    for (const int side : {0, 1}) {
      LPL_SIMD
      for (i64 j = 0; j < width_; ++j) offset_[side][j] += delta(side, j);
    }
  }

  const T* logits(i64 i) const { return u_.data() + i * width_; }
  const Acc* labels(i64 i) const { return y_.data() + i * width_; }
  const Acc* offset(int side) const { return offset_[side].data(); }
  bool hard() const { return hard_; }
  Acc delta(int side, i64 j) const { return Acc(side ? -moved_[side][j] : moved_[side][j]); }

 private:
  void fill(i64 lo, i64 size) {
    hard_ = true;
    for (i64 i = 0; i < n_; ++i) {
      T* u = u_.data() + i * width_;
      Acc* y = y_.data() + i * width_;
      std::memcpy(u, call_.logits(i) + lo, size * sizeof(T));
      std::memset(static_cast<void*>(u + size), 0, (width_ - size) * sizeof(T));
      hard_ = call_.labels(i, lo, size, y) && hard_;
      std::fill(y + size, y + width_, Acc(NAN));
    }
    for (i64 j = 0; j < width_; ++j) {
      steps_[j] = j < size ? call_.p.steps[lo + j] : 0;
      for (const int side : {0, 1}) {
        scale_[side][j] = j < size ? call_.scale(side)[lo + j] : Acc(0);
        offset_[side][j] = j < size ? call_.offset(side)[lo + j] : Acc(0);
        centre_[side][j] = moved_[side][j] = 0;
      }
    }
  }

  // Places of positives, those of a group of classes together.
  void find_positives() {
    const i64 groups = width_ / kGroup;
    starts_.assign(groups + 1, 0);
    found_.clear();
    for (i64 i = 0; i < n_; ++i)
      for_each_above(labels(i), Acc(0.5), width_, [&](i64 j) {
        found_.push_back(i * width_ + j);
        ++starts_[j / kGroup + 1];
      });
    for (i64 g = 0; g < groups; ++g) starts_[g + 1] += starts_[g];
    positives_.resize(found_.size());
    Vector<i64> next(starts_.begin(), starts_.end());
    for (const i64 place : found_) positives_[next[place % width_ / kGroup]++] = place;
  }

  // Few positives are followed one by one, many as everything else.
  bool listed(int side, i64 g) const {
    const i64 count = hard_ && side ? starts_[g / kGroup + 1] - starts_[g / kGroup] : 0;
    return hard_ && side && count < n_;
  }

  int order(int side, i64 g) const { return listed(side, g) ? kListedMoments : kMoments; }

  double distance(int side, i64 place) const {
    const i64 j = place % width_;
    const double z = double(load(u_[place])) * scale_[side][j] + offset_[side][j];
    return side ? -z : z;
  }

  // Of row i and the classes from g: distances, and how much of each is on this side.
  void entries(int side, i64 i, i64 g, Group scale, Group offset, Group& s, Group& share) const {
    Group y;
    std::memcpy(&y, labels(i) + g, sizeof(y));
    const Group z = read(logits(i) + g) * scale + offset;
    share = side ? y : 1 - y;
    share = y == y ? share : Group{};
    s = side ? -z : z;
    s = share != 0 ? s : Group{};
  }

  Group group_of(const Vector<Acc>& table, i64 g) const {
    Group values;
    std::memcpy(&values, table.data() + g, sizeof(values));
    return values;
  }

  bool find(int side, i64 g) {
    if (std::is_same<Acc, float>::value) {
      for (int k = 0; k < kCentres; ++k) {
        take_moments(side, g);
        if (recur(side, g)) return true;
        for (i64 j = g; j < g + kGroup; ++j) centre_[side][j] = Acc(moved_[side][j] / 2);
      }
    }
    sweep(side, g);
    return false;
  }

  // Σ share·T^n of the classes from g, n = 0 … order.
  void take_moments(int side, i64 g) {
    double* moments = moments_.data();
    const auto at = [&](int n, i64 j) -> double& { return moments[n * width_ + j]; };
    for (int n = 0; n <= order(side, g); ++n)
      for (i64 j = g; j < g + kGroup; ++j) at(n, j) = 0;
    if (listed(side, g)) {
      for (i64 k = starts_[g / kGroup]; k < starts_[g / kGroup + 1]; ++k) {
        const i64 j = positives_[k] % width_;
        const double s = distance(side, positives_[k]) + centre_[side][j];
        const double e = exp_of(-std::abs(s));
        const double size = (1 - e) / (1 + e);
        const double t = s < 0 ? -size : size;
        double power = 1;
        for (int n = 0; n <= kListedMoments; ++n) {
          at(n, j) += power;
          power *= t;
        }
      }
      return;
    }
    for (i64 lo = 0; lo < n_; lo += kBatch) {
      Group sums[kMoments + 1];
      const i64 hi = std::min(n_, lo + kBatch);
      if (side) {
        hard_ ? sum_powers<1, true>(g, lo, hi, sums) : sum_powers<1, false>(g, lo, hi, sums);
      } else {
        hard_ ? sum_powers<0, true>(g, lo, hi, sums) : sum_powers<0, false>(g, lo, hi, sums);
      }
      for (int n = 0; n <= kMoments; ++n)
        for (int lane = 0; lane < kGroup; ++lane) at(n, g + lane) += sums[n][lane];
    }
  }

  // The same over some rows, in Acc.
  template <int Side, bool Hard>
  __attribute__((noinline)) void sum_powers(i64 g, i64 lo, i64 hi, Group* sums) const {
    const Group scale = group_of(scale_[Side], g), centre = group_of(centre_[Side], g);
    const Group offset = group_of(offset_[Side], g) + (Side ? -centre : centre);
    Group s0 = {}, s1 = {}, s2 = {}, s3 = {}, s4 = {}, s5 = {}, s6 = {}, s7 = {}, s8 = {};
    Group s9 = {}, s10 = {};
    for (i64 i = lo; i < hi; ++i) {
      Group y;
      std::memcpy(&y, labels(i) + g, sizeof(y));
      const Group z = read(logits(i) + g) * scale + offset;
      const Group e = exp_of(negative_magnitude(z));
      const Group size = (1 - e) / (1 + e);
      const Group sized = Side ? -size : size;
      Group t = z < 0 ? -sized : sized;
      Group power;
      if (Hard) {
        power = y == Acc(Side) ? Group{} + 1 : Group{};
      } else {
        power = y == y ? (Side ? y : 1 - y) : Group{};
      }
      t = power != 0 ? t : Group{};  // whatever the logit is where nothing counts
      s0 += power;
      s1 += power *= t;
      s2 += power *= t;
      s3 += power *= t;
      s4 += power *= t;
      s5 += power *= t;
      s6 += power *= t;
      s7 += power *= t;
      s8 += power *= t;
      s9 += power *= t;
      s10 += power *= t;
    }
    static_assert(kMoments == 10, "as many sums; an array of them would stay in memory");
    const Group all[kMoments + 1] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10};
    std::copy(all, all + kMoments + 1, sums);
  }

  static Group read(const Acc* u) {
    Group values;
    std::memcpy(&values, u, sizeof(values));
    return values;
  }
  template <typename U>
  static Group read(const U* u) {
    Group values;
    for (int lane = 0; lane < kGroup; ++lane) values[lane] = load(u[lane]);
    return values;
  }

  // The steps of the classes from g, from their moments; whether what the series leaves out is as
  // little as promised.
  bool recur(int side, i64 g) {
    const int order = this->order(side, g);
    Lanes mean[kListedMoments + 1], step, count, centre, d = {}, miss = {};
    for (int lane = 0; lane < kGroup; ++lane) {
      const i64 j = g + lane;
      const double mass = moments_[j];
      for (int n = 1; n <= order; ++n)
        mean[n][lane] = mass > 0 ? moments_[n * width_ + j] / mass : 0;
      count[lane] = mass > 0 ? std::abs(steps_[j]) : 0;
      step[lane] = steps_[j] < 0 ? -call_.p.step_size : call_.p.step_size;
      centre[lane] = double(centre_[side][j]);
    }
    for (int32_t k = 0; k < most_; ++k) {
      const Lanes e = exp_of<false>(centre - d);
      const Lanes tau = (1 - e) / (1 + e), square = tau * tau;
      Lanes sum = mean[order];
      for (int n = order - 1; n > 0; --n) sum = mean[n] - tau * sum;
      const Lanes value = 0.5 + 0.5 * (tau + (1 - square) * sum);
      static_assert(kMoments == 10 && kListedMoments == 16, "the powers that are left out");
      const Lanes fourth = square * square, eighth = fourth * fourth;
      const Lanes left = eighth * (order == kMoments ? square : eighth);
      const Lanes active = count > double(k) ? Lanes{} + 1.0 : Lanes{};
      miss += active * 0.5 * call_.p.step_size * left;
      d += active * step * value;
    }
    bool good = true;
    for (int lane = 0; lane < kGroup; ++lane) {
      // an early miss grows with the steps that follow, by σ' ≤ 1/4 in each
      const double dose = count[lane] * call_.p.step_size;
      good = good && miss[lane] * std::exp(std::min(dose / 4, 100.0)) <= kLargestMiss;
      moved_[side][g + lane] = d[lane];
    }
    return good;
  }

  // Steps one by one.
  void sweep(int side, i64 g) {
    double mass[kGroup] = {}, d[kGroup] = {}, mean[kGroup];
    const Group scale = group_of(scale_[side], g), offset = group_of(offset_[side], g);
    for (int32_t k = 0; k < most_; ++k) {
      std::fill(mean, mean + kGroup, 0.0);
      std::fill(mass, mass + kGroup, 0.0);
      if (listed(side, g)) {
        for (i64 at = starts_[g / kGroup]; at < starts_[g / kGroup + 1]; ++at) {
          const i64 lane = positives_[at] % width_ - g;
          const double x = distance(side, positives_[at]) + d[lane];
          const double e = exp_of(-std::abs(x));
          mean[lane] += (x > 0 ? 1 : e) / (1 + e);
          mass[lane] += 1;
        }
      } else {
        Group moved;
        for (int lane = 0; lane < kGroup; ++lane) moved[lane] = Acc(d[lane]);
        for (i64 lo = 0; lo < n_; lo += kBatch) {
          Group values = {}, shares = {};
          const i64 hi = std::min(n_, lo + kBatch);
          for (i64 i = lo; i < hi; ++i) {
            Group s, share;
            entries(side, i, g, scale, offset, s, share);
            values += share * sigmoid_of(s + moved);
            shares += share;
          }
          for (int lane = 0; lane < kGroup; ++lane) {
            mean[lane] += values[lane];
            mass[lane] += shares[lane];
          }
        }
      }
      for (int lane = 0; lane < kGroup; ++lane) {
        const int32_t steps = steps_[g + lane];
        if (k >= std::abs(steps) || !(mass[lane] > 0)) continue;
        d[lane] += (steps < 0 ? -1 : 1) * call_.p.step_size * mean[lane] / mass[lane];
      }
    }
    for (int lane = 0; lane < kGroup; ++lane) moved_[side][g + lane] = d[lane];
  }

  const BinaryCall<T>& call_;
  const i64 n_, width_;
  bool hard_ = true;
  int32_t most_ = 0;  // steps of the classes at hand
  Vector<T> u_;
  Vector<Acc> y_, scale_[2], offset_[2], centre_[2];
  Vector<double> moved_[2], moments_;
  Vector<int32_t> steps_;
  Vector<i64> starts_, positives_, found_;
};

}  // namespace
}  // namespace lpl
