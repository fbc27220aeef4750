// The learned perturbation of multi-label logits, one number for a class's positives and one for
// its negatives, from moments of the batch, so that steps cost next to nothing.
//
// In the distance s of a logit from its label both sides are one recursion, d ← d + a·mean_i
// σ(s_i + d). About a centre c, with T_i = tanh((s_i + c)/2), ρ = tanh((d − c)/4) and Chebyshev's
// polynomials C_n, whose generating function 1/(1 + 2ρT + ρ²) leads to,
//
//     σ(s_i + d) = ½ + ½·(ρ + (1 − ρ²)·Σ_{n ≥ 1} (−ρ)^(n−1) C_n(T_i)) ,
//
// the steps need mean C_n alone. |C_n| ≤ 1, so |ρ| bounds what the series leaves out. A guess from
// some rows of the batch says where the steps will go, and the centre lies half way. Where the
// promise is used up before the end, moments are taken again about a centre further along; where
// steps are too long for that, or numbers are double, they are taken one by one.
#pragma once

#include "binary_loss.h"

namespace lpl {

constexpr int kFours = 6;  // moments are found by fours: C_4k·C_j = ½·(C_4k+j + C_4k−j)
constexpr int kSums = 4 * kFours, kLastMoment = kSums - 1;
constexpr double kLargestMiss = 1.5e-7;  // of δ, which is to have the digits of a float
constexpr int kLegs = 16;                // centres of a class
constexpr int kRowsOfMask = 32;
constexpr int kGuessed = 256;  // rows

// The sums over logits of w·C_4k(T)·C_j(T), at place 4k + j.
struct MomentSums {
  float of[kSums] = {};

  LPL_DEVICE void add(float t, float w) {
    const float twice = t + t, c2 = std::fma(twice, t, -1.0f), c3 = std::fma(twice, c2, -t);
    const float c4 = std::fma(twice, c3, -c2), twice4 = c4 + c4;
    float before = w, now = w * c4;
    four(0, w, t, c2, c3);
    four(1, now, t, c2, c3);
#pragma unroll
    for (int k = 2; k < kFours; ++k) {
      const float next = std::fma(twice4, now, -before);
      before = now;
      now = next;
      four(k, now, t, c2, c3);
    }
  }

 private:
  LPL_DEVICE void four(int k, float w, float t, float c2, float c3) {
    of[4 * k] += w;
    of[4 * k + 1] = std::fma(w, t, of[4 * k + 1]);
    of[4 * k + 2] = std::fma(w, c2, of[4 * k + 2]);
    of[4 * k + 3] = std::fma(w, c3, of[4 * k + 3]);
  }
};

// The means of C_n from sums(place), and the sum of weights.
template <typename Sums>
LPL_DEVICE inline double means_of(Sums sums, float* mean) {
  double found[kSums];
#pragma unroll
  for (int n = 0; n < kSums; ++n) {
    const double sum = sums(n);
    found[n] = n < 4 || n % 4 == 0 ? sum : 2 * sum - found[n / 4 * 4 - n % 4];
  }
  const double mass = found[0], inverse = mass > 0 ? 1 / mass : 0;
#pragma unroll
  for (int n = 1; n < kSums; ++n) mean[n] = float(found[n] * inverse);
  return mass;
}

// The steps of a class on one side.
struct StepsOf {
  int count;
  double size;  // with their sign

  LPL_DEVICE StepsOf(const BinaryProblem& p, i64 j) {
    const int signed_count = j < p.c ? p.steps[j] : 0;
    count = signed_count < 0 ? -signed_count : signed_count;
    size = signed_count < 0 ? -p.step_size : p.step_size;
  }

  // By how much what one of them misses can grow: σ' is between 0 and 1/4, so that steps down do
  // not spread.
  LPL_DEVICE double growth() const {
    if (size <= 0 && size >= -8) return 1;
    const double dose = count * std::fabs(size) / 4;
    return std::exp(dose < 100 ? dose : 100);
  }
};

// How far the steps of a class have come on one side: so many, to d. `miss` bounds what series have
// left out, at the end of all steps.
struct ClassWalk {
  double d = 0, miss = 0;
  int taken = 0;
  float centre = 0;

  // mean σ(s + d)
  LPL_DEVICE static float sigma(const float* mean, float rho) {
    const float square = rho * rho;
    float even = mean[kLastMoment], odd = mean[kLastMoment - 1];
#pragma unroll
    for (int n = kLastMoment - 2; n > 0; n -= 2) even = std::fma(square, even, mean[n]);
#pragma unroll
    for (int n = kLastMoment - 3; n > 0; n -= 2) odd = std::fma(square, odd, mean[n]);
    const float sum = std::fma(-rho, odd, even);
    return 0.5f + 0.5f * std::fma(1 - square, sum, rho);
  }
  static_assert(kLastMoment % 2 == 1, "of which powers of ρ are even");

  // Takes steps as long as what the series leaves out is no more than allowed.
  LPL_DEVICE void go_on(const float* mean, const StepsOf& steps, double allowed) {
    const double growth = steps.growth() * std::fabs(steps.size) / 2;
    while (taken < steps.count) {
      const float rho = std::tanh(float(d - centre) / 4), least = std::fabs(rho);
      const float r2 = rho * rho, r4 = r2 * r2, r8 = r4 * r4;
      static_assert(kLastMoment == 23, "the powers that are left out");
      const double missed = miss + growth * double((1 + least) * (r8 * r8 * r4 * r2 * least));
      if (!(missed <= allowed)) return;  // nor where it is nan
      miss = missed;
      d += steps.size * double(sigma(mean, rho));
      ++taken;
    }
  }

  // The next centre: half way to where the steps will go, if the series is any good, but not so far
  // that the steps from here use up what may be missed.
  LPL_DEVICE void look_ahead(const float* mean, const StepsOf& steps) {
    double end = d;
    for (int k = taken; k < steps.count; ++k) {
      const float rate = sigma(mean, std::tanh(float(end - centre) / 4));
      end += steps.size * double(rate > 0 ? rate < 1 ? rate : 1.0f : 0.0f);
    }
    const double each = steps.growth() * std::fabs(steps.size) * steps.count / kSums;
    const double nearest = std::exp(std::log(kLargestMiss / 2 / each) / kLastMoment);
    const double most = 4 * std::atanh(nearest < 0.6 ? nearest : 0.6);
    double ahead = std::fabs(end - d) / 2;
    ahead = ahead < most ? ahead : most;
    centre = float(end < d ? d - ahead : d + ahead);
  }
};

// One column of logits and labels, of a thread.
template <typename T, typename Label>
class LabelledColumn {
 public:
  using Acc = typename AccumulateOf<T>::type;

  LPL_DEVICE LabelledColumn(const BinaryProblem& p, i64 j)
      : labels_(p),
        u_(static_cast<const T*>(p.input) + j),
        j_(j),
        stride_(p.row_stride),
        label_stride_(p.target_stride) {
    for (int side = 0; side < 2; ++side) {
      const Acc sign = side ? Acc(-1) : Acc(1);
      scale_[side] = sign * (p.scale(side) ? static_cast<const Acc*>(p.scale(side))[j] : Acc(1));
      offset_[side] = p.offset(side) ? sign * static_cast<const Acc*>(p.offset(side))[j] : Acc(0);
    }
  }

  LPL_DEVICE Acc logit(i64 i) const { return load(u_[i * stride_]); }
  // How much of a label is on the side of positives, and of negatives.
  LPL_DEVICE Acc positive(i64 i, Acc& negative) const {
    return split(labels_.from(i * label_stride_ + j_), negative);
  }
  // The same of kCount rows from i on, so many apart.
  template <int kCount>
  LPL_DEVICE void take(i64 i, i64 step, Acc* u, Acc* one, Acc* zero) const {
    const T* from = u_ + i * stride_;
    const auto label = labels_.from(i * label_stride_ + j_);
    const uint32_t apart = uint32_t(step * stride_), labels_apart = uint32_t(step * label_stride_);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      u[k] = load(from[uint64_t(k) * apart]);
      one[k] = split(label + uint64_t(k) * labels_apart, zero[k]);
    }
  }
  // The distance from a side's label, the side moved by d: what it is made of, times a unit.
  struct Distance {
    Acc scale, offset;
    LPL_DEVICE Acc of(Acc u) const { return std::fma(u, scale, offset); }
  };
  LPL_DEVICE Distance distance(int side, Acc moved, Acc unit = 1) const {
    return {scale_[side] * unit, (offset_[side] + moved) * unit};
  }

 private:
  template <typename Place>
  LPL_DEVICE Acc split(Place place, Acc& negative) const {
    bool there;
    const Acc y = labels_.at(place, there);
    negative = there ? 1 - y : Acc(0);
    return y;
  }

  const Labels<Acc, Label> labels_;
  const T* u_;
  const i64 j_, stride_, label_stride_;
  Acc scale_[2], offset_[2];
};

// tanh(x·ln 2/2), to the last place of 1; nan stays.
LPL_DEVICE inline float half_tanh2(float x) {
  return std::fma(-2.0f, reciprocal_of(1 + exp2_of(x)), 1.0f);
}

LPL_DEVICE inline int lowest_bit(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __ffs(int(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// Rows begin, begin + step, …
struct RowsOf {
  i64 begin, step;
  int count;  // kMostRows at most

  LPL_DEVICE i64 at(int k) const { return begin + k * step; }
};

// The sums over rows that a team finds, for its columns.
template <typename T, typename Label>
class Moments {
 public:
  static constexpr int kMostCrews = 8, kWide = 32;
  struct Shared {
    float of_crews[kMostCrews][kSums][kWide];
    uint32_t positive[kMostRows / kRowsOfMask][kWide];  // rows that a thread has seen, by masks
  };

  // store(side, n, place of the column, sum), of negatives and of positives. `goes` where these are
  // wanted of the column. Barriers.
  template <typename Team, typename Store>
  LPL_DEVICE static void sum(Team& team, Shared& shared, const LabelledColumn<T, Label>& column,
                             const RowsOf& rows, const float* centre, const bool* goes,
                             Store store) {
    const int wide = team.crew(), lane = team.place() % wide, crew = team.place() / wide;
    const int crews = team.places() / wide, masks = (rows.count + kRowsOfMask - 1) / kRowsOfMask;
    MomentSums sums;
    for (int k = crew; k < masks; k += crews) {
      const int first = k * kRowsOfMask;
      if (goes[0])
        shared.positive[k][lane] = negatives(column, rows, first, centre[0], sums);
      else if (goes[1])
        shared.positive[k][lane] = labelled(column, rows, first);
    }
    share(team, shared, sums, 0, store);
    sums = MomentSums();
    // of which there are few
    if (goes[1])
      for (int k = crew; k < masks; k += crews)
        positives(column, rows, k * kRowsOfMask, shared.positive[k][lane], centre[1], sums);
    share(team, shared, sums, 1, store);
  }

 private:
  static constexpr int kBatch = 8;  // rows on their way at once

  // Adds those of a mask's rows; which of these have something of a positive label.
  LPL_DEVICE static uint32_t negatives(const LabelledColumn<T, Label>& column, const RowsOf& rows,
                                       int first, float centre, MomentSums& sums) {
    uint32_t found = 0;
    const auto distance = column.distance(0, centre, kLog2E);
    const auto add = [&](int k, float u, float one, float zero) {
      const float x = zero == 0 ? 0.0f : distance.of(u);  // whatever the logit is
      sums.add(half_tanh2(x), zero);
      return uint32_t(one != 0) << k;
    };
    if (rows.count - first >= kRowsOfMask) {
#pragma unroll 1
      for (int from = 0; from < kRowsOfMask; from += kBatch) {
        float u[kBatch], one[kBatch], zero[kBatch];
        uint32_t here = 0;
        column.template take<kBatch>(rows.at(first + from), rows.step, u, one, zero);
#pragma unroll
        for (int k = 0; k < kBatch; ++k) here |= add(k, u[k], one[k], zero[k]);
        found |= here << from;
      }
      return found;
    }
#pragma unroll 1
    for (int k = 0; first + k < rows.count; ++k) {
      const i64 i = rows.at(first + k);
      float zero;
      const float one = column.positive(i, zero);
      found |= add(k, column.logit(i), one, zero);
    }
    return found;
  }

  // The same without adding any.
  LPL_DEVICE static uint32_t labelled(const LabelledColumn<T, Label>& column, const RowsOf& rows,
                                      int first) {
    const int rest = rows.count - first, count = rest < kRowsOfMask ? rest : kRowsOfMask;
    uint32_t found = 0;
#pragma unroll 8
    for (int k = 0; k < count; ++k) {
      float zero;
      found |= uint32_t(column.positive(rows.at(first + k), zero) != 0) << k;
    }
    return found;
  }

  LPL_DEVICE static void positives(const LabelledColumn<T, Label>& column, const RowsOf& rows,
                                   int first, uint32_t mask, float centre, MomentSums& sums) {
    const auto distance = column.distance(1, centre, kLog2E);
#pragma unroll 1
    for (; mask; mask &= mask - 1) {
      const i64 i = rows.at(first + lowest_bit(mask));
      float zero;
      const float one = column.positive(i, zero);
      sums.add(half_tanh2(distance.of(column.logit(i))), one);
    }
  }

  // Sums over the team's warps.
  template <typename Team, typename Store>
  LPL_DEVICE static void share(Team& team, Shared& shared, const MomentSums& sums, int side,
                               Store& store) {
    const int wide = team.crew(), lane = team.place() % wide, crews = team.places() / wide;
#pragma unroll
    for (int n = 0; n < kSums; ++n) shared.of_crews[team.place() / wide][n][lane] = sums.of[n];
    team.sync();
    for (int k = team.place(); k < kSums * wide; k += team.places()) {
      const int n = k / wide, at = k % wide;
      float sum = shared.of_crews[0][n][at];
      for (int crew = 1; crew < crews; ++crew) sum += shared.of_crews[crew][n][at];
      store(side, n, at, sum);
    }
    team.sync();
  }
};

// What all kernels of the learned perturbation know of a thread's column.
template <typename T, typename Label, typename Team>
struct Learner {
  const int wide, lane;
  const i64 first, j;
  const bool exists;
  const LabelledColumn<T, Label> column;

  LPL_DEVICE Learner(const Team& team, const BinaryProblem& p, i64 block)
      : wide(team.crew()),
        lane(team.place() % wide),
        first(block * wide),
        j(first + lane),
        exists(j < p.c),
        column(p, exists ? j : p.c - 1) {}
};

// The place of a partial sum.
LPL_DEVICE inline float* partial_of(const BinaryCall& call, i64 chunks, int side, int n,
                                    i64 chunk) {
  return static_cast<float*>(call.scratch.partial) +
         ((side * kSums + n) * chunks + chunk) * call.p.c;
}

// Centres of the moments: for a block of columns, from some rows of the batch.
template <typename T>
struct BinaryGuessBody {
  using Acc = float;
  using Moments = lpl::Moments<T, Any>;
  struct Shared {
    typename Moments::Shared moments;
    float total[2][kSums][Moments::kWide];
  };

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64 block) {
    const BinaryProblem& p = call.p;
    Shared& shared = team.template shared<Shared>(0);
    const Learner<T, Any, Team> own(team, p, block);
    const i64 step = p.n < 2 * kGuessed ? 1 : p.n / kGuessed;
    const i64 count = p.n / step < kMostRows ? p.n / step : kMostRows;
    const float about[2] = {0, 0};
    const bool goes = own.exists && p.steps[own.j] != 0, both[2] = {goes, goes};
    Moments::sum(team, shared.moments, own.column, RowsOf{0, step, int(count)}, about, both,
                 [&](int side, int n, int at, float sum) { shared.total[side][n][at] = sum; });
    const int side = team.place() / own.wide;
    for (int s = side; s < 2; s += team.places() / own.wide) {
      if (!own.exists) continue;
      const StepsOf steps(p, own.j);
      float mean[kSums];
      ClassWalk walk;
      if (means_of([&](int n) { return double(shared.total[s][n][own.lane]); }, mean) > 0)
        walk.look_ahead(mean, steps);
      static_cast<float*>(call.scratch.centre)[s * p.c + own.j] = walk.centre;
    }
  }
};

// Sums over a chunk of rows, for a block of columns.
template <typename T, typename Label>
struct BinaryMomentsBody {
  using Acc = float;
  using Moments = lpl::Moments<T, Label>;
  using Shared = typename Moments::Shared;

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64 t) {
    const BinaryProblem& p = call.p;
    const Chunks& chunks = call.chunks;
    const int blocks = int((p.c + team.crew() - 1) / team.crew()), chunk = int(t) / blocks;
    const Learner<T, Label, Team> own(team, p, int(t) % blocks);
    const i64 begin = i64(chunk) * chunks.rows, rest = p.n - begin;
    const float* centres = static_cast<const float*>(call.scratch.centre);
    float centre[2] = {0, 0};
    const bool goes = own.exists && p.steps[own.j] != 0, both[2] = {goes, goes};
    if (own.exists)
      for (int side = 0; side < 2; ++side) centre[side] = centres[side * p.c + own.j];
    Moments::sum(team, team.template shared<Shared>(0), own.column,
                 RowsOf{begin, 1, int(rest < chunks.rows ? rest : chunks.rows)}, centre, both,
                 [&](int side, int n, int at, float sum) {
                   const i64 j = own.first + at;
                   if (j < p.c) partial_of(call, chunks.count, side, n, chunk)[j] = sum;
                 });
  }
};

// δ of a block of columns: the steps that its moments give; where these do not reach, more moments;
// and then steps one by one, as in double all are.
template <typename T>
struct BinaryStepsBody {
  using Acc = typename AccumulateOf<T>::type;
  using Moments = lpl::Moments<T, Any>;
  static constexpr int kWide = Moments::kWide;
  struct Plain {
    double of_crews[Moments::kMostCrews][4][kWide];  // Σ σ and Σ weights of both sides
  };
  struct Shared {
    union {
      typename Moments::Shared moments;
      Plain plain;
    };
    double total[2][kSums][kWide];
    double moved[2][kWide];
    float centre[2][kWide];
    int taken[2][kWide];
  };

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64 block) {
    const BinaryProblem& p = call.p;
    Shared& shared = team.template shared<Shared>(0);
    const Learner<T, Any, Team> own(team, p, block);
    const StepsOf steps(p, own.j);
    const int crew = team.place() / own.wide, crews = team.places() / own.wide;
    // the walks of both sides, each by one thread of a column; by the same where warps are few
    ClassWalk walk[2];
    const auto each_walk = [&](auto f) {
#pragma unroll
      for (int side = 0; side < 2; ++side)
        if (side % crews == crew) f(side, walk[side]);
    };
    const auto any_left = [&] {
      int left = 0;
      each_walk([&](int, const ClassWalk& of) { left |= of.taken < steps.count; });
      return team.reduce(left, [](int a, int b) { return a | b; }) != 0;
    };
    if constexpr (!std::is_same<Acc, double>::value) {
      const Chunks& chunks = call.chunks;
      each_walk([&](int side, ClassWalk& of) {
        if (steps.count == 0) return;
        of.centre = static_cast<const float*>(call.scratch.centre)[side * p.c + own.j];
        take(of, steps, 0, [&](int n) {
          double sum = 0;
          for (i64 k = 0; k < chunks.count; ++k)
            sum += double(partial_of(call, chunks.count, side, n, k)[own.j]);
          return sum;
        });
      });
      for (int leg = 1; leg < kLegs && any_left(); ++leg) {
        each_walk([&](int side, const ClassWalk& of) {
          shared.centre[side][own.lane] = of.centre;
          shared.taken[side][own.lane] = of.taken;
        });
        for (int k = team.place(); k < 2 * kSums * own.wide; k += team.places())
          shared.total[k / own.wide / kSums][k / own.wide % kSums][k % own.wide] = 0;
        team.sync();
        const float centre[2] = {shared.centre[0][own.lane], shared.centre[1][own.lane]};
        const bool goes[2] = {shared.taken[0][own.lane] < steps.count,
                              shared.taken[1][own.lane] < steps.count};
        for (i64 begin = 0; begin < p.n; begin += kMostRows) {
          const i64 rest = p.n - begin;
          Moments::sum(team, shared.moments, own.column,
                       RowsOf{begin, 1, int(rest < kMostRows ? rest : kMostRows)}, centre, goes,
                       [&](int side, int n, int at, float sum) {
                         shared.total[side][n][at] += double(sum);
                       });
        }
        each_walk([&](int side, ClassWalk& of) {
          if (of.taken < steps.count)
            take(of, steps, leg, [&](int n) { return shared.total[side][n][own.lane]; });
        });
      }
    }
    each_walk([&](int side, const ClassWalk& of) {
      shared.moved[side][own.lane] = of.d;
      shared.taken[side][own.lane] = of.taken;
    });
    team.sync();
    plain_steps(team, p, shared, own, steps);
    each_walk([&](int side, const ClassWalk&) {
      if (!own.exists) return;
      const double d = shared.moved[side][own.lane];
      static_cast<Acc*>(call.out.delta)[(side ? 0 : p.c) + own.j] = Acc(side ? -d : d);
    });
    if (!call.scratch.left || !own.exists || crew != 0) return;
    const int least = shared.taken[0][own.lane] < shared.taken[1][own.lane]
                          ? shared.taken[0][own.lane]
                          : shared.taken[1][own.lane];
    call.scratch.left[own.j] = steps.count - least;
  }

 private:
  template <typename Sums>
  LPL_DEVICE static void take(ClassWalk& walk, const StepsOf& steps, int leg, Sums sums) {
    float mean[kSums];
    const double mass = means_of(sums, mean);
    const int before = walk.taken;
    // nothing moves a side without labels, or what is nan
    if (!(mass > 0) || walk.d != walk.d) {
      walk.taken = steps.count;
      return;
    }
    // half of what may be missed, then half of the rest
    walk.go_on(mean, steps, kLargestMiss * (1 - std::ldexp(1.0, -1 - leg)));
    if (walk.taken == steps.count) return;
    if (walk.taken == before)
      walk.centre = float(walk.d);
    else
      walk.look_ahead(mean, steps);
  }

  // The steps that are left, from moved.
  template <typename Team>
  LPL_DEVICE static void plain_steps(Team& team, const BinaryProblem& p, Shared& shared,
                                     const Learner<T, Any, Team>& own, const StepsOf& steps) {
    const int crew = team.place() / own.wide, crews = team.places() / own.wide;
    const int taken[2] = {shared.taken[0][own.lane], shared.taken[1][own.lane]};
    struct Range {
      int first, last;
    } range = {steps.count, 0};
    for (int side = 0; side < 2; ++side)
      if (taken[side] < steps.count)
        range = {taken[side] < range.first ? taken[side] : range.first, steps.count};
    range = team.reduce(range, [](const Range& a, const Range& b) {
      const bool none = b.last == 0, all = a.last == 0;
      if (none || all) return none ? a : b;
      return Range{a.first < b.first ? a.first : b.first, a.last > b.last ? a.last : b.last};
    });
    for (int k = range.first; k < range.last; ++k) {
      double sum[4] = {0, 0, 0, 0};
      const Acc moved[2] = {Acc(shared.moved[0][own.lane]), Acc(shared.moved[1][own.lane])};
      for (i64 i = crew; i < p.n; i += crews) {
        Acc share[2];
        share[1] = own.column.positive(i, share[0]);
        const Acc u = own.column.logit(i);
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          if (share[side] == 0) continue;
          const Acc s = own.column.distance(side, moved[side]).of(u), e = std::exp(-std::fabs(s));
          sum[side] += double(share[side] * ((s > 0 ? Acc(1) : e) / (1 + e)));
          sum[2 + side] += double(share[side]);
        }
      }
      for (int n = 0; n < 4; ++n) shared.plain.of_crews[crew][n][own.lane] = sum[n];
      team.sync();
      for (int side = crew; side < 2; side += crews) {
        double total = 0, mass = 0;
        for (int other = 0; other < crews; ++other) {
          total += shared.plain.of_crews[other][side][own.lane];
          mass += shared.plain.of_crews[other][2 + side][own.lane];
        }
        if (k >= taken[side] && k < steps.count && mass > 0)
          shared.moved[side][own.lane] += steps.size * (total / mass);
      }
      team.sync();
    }
  }
};

}  // namespace lpl
