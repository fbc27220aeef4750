// The learned perturbation of multi-label logits: one number for a class's positives, one for its
// negatives, from columns of the batch that stay in the cache.
//
// In the distance s of a logit from its label (−z of positives, z of negatives) both sides are one
// recursion, d ← d + a·mean_i σ(s_i + d), whose steps come from moments (moments.h). Where these
// are too few they are taken again about a centre halfway along d's path, and where that is still
// too little, or numbers are double, steps are taken one by one.
#pragma once

#include "binary_loss.h"
#include "moments.h"

namespace lpl {
namespace {

constexpr int kCentres = 3;  // tries
constexpr i64 kBatch = 32;   // rows whose sums are kept in Acc

// Labels for each that is not 0, from where those are followed one by one.
constexpr i64 kFollowed = 16;

template <typename T>
class Columns {
 public:
  using Acc = typename AccumulateOf<T>::type;
  using Group = typename GroupOf<Acc>::type;
  using Entry = lpl::Entry<Acc>;

  // Classes of a tile: as many as keep the logits of all rows in the second cache, whole cache
  // lines of them, and no more than leave every thread some.
  static i64 width(const BinaryCall<T>& call, int threads) {
    constexpr i64 kCache = 256 * 1024, kLine = 16, kLeast = 4 * kLine;
    const i64 fit = kCache / (std::max<i64>(1, call.n) * i64(sizeof(Acc))) / kLine * kLine;
    const i64 share = (call.c + threads - 1) / threads;
    return std::min(std::min(kBlock, std::max(kLeast, fit)), (share + kLine - 1) / kLine * kLine);
  }

  Columns(const BinaryCall<T>& call, i64 width)
      : call_(call),
        n_(call.n),
        width_(width),
        pitch_(width | 16),
        s_(n_ * pitch_),
        solved_(width / kGroup),
        starts_(width / kGroup + 1) {
    for (const int side : {0, 1}) {
      offset_[side].resize(width);
      delta_[side].resize(width);
      moved_[side].resize(width);
    }
    for (Vector<Acc>* table : {&centre_, &ones_, &y_}) table->assign(width, Acc(1));
    moments_.resize((kMoments + 1) * width);
    steps_.resize(width);
  }

  // Reads classes lo to lo + size, and finds their δ.
  void learn(i64 lo, i64 size, BinaryStatus& status) {
    lo_ = lo;
    size_ = size;
    std::fill(steps_.begin(), steps_.end(), 0);
    std::copy(call_.p.steps + lo, call_.p.steps + lo + size, steps_.begin());
    std::fill(solved_.begin(), solved_.end(), true);
    listed_ = call_.list(0, n_, lo, size, kFollowed, entries_);
    if (listed_) sort_entries();
    for (const int side : {1, 0}) {
      std::fill(moved_[side].begin(), moved_[side].end(), 0.0);
      const bool follows = side && listed_;
      if (!follows) fill(side);
      for (i64 g = 0; g < size; g += kGroup)
        if (most(g) > 0) solved_[g / kGroup] &= follows ? follow(g) : find(side, g);
      for (i64 j = 0; j < size; ++j) {
        delta_[side][j] = Acc(side ? -moved_[side][j] : moved_[side][j]);
        offset_[side][j] = call_.offset(side)[lo + j] + delta_[side][j];
      }
    }
    for (i64 g = 0; g < size; g += kGroup)
      if (most(g) > 0)
        (solved_[g / kGroup] ? status.solved : status.swept) += std::min<i64>(kGroup, size - g);
  }

  // Moves a block of the tile's classes by δ.
  void perturb(Block<T>& b) const {
    for (const int side : {0, 1}) b.offset[side] = offset_[side].data();
  }

  // Gives a block whose labels are listed the tile's logits and their δ.
  void read(Block<T>& b) const {
    b.u = s_.data() + b.i * pitch_;
    b.pitch = pitch_;
    b.scale[0] = ones_.data();
    b.offset[0] = delta_[0].data();
  }

  bool listed() const { return listed_; }
  Vector<Entry>& entries() { return entries_; }
  const Acc* delta(int side) const { return delta_[side].data(); }

 private:
  int32_t most(i64 g) const {
    int32_t most = 0;
    for (i64 j = g; j < g + kGroup; ++j) most = std::max(most, std::abs(steps_[j]));
    return most;
  }

  // Places in the tile of entries, those of a group of classes together.
  void sort_entries() {
    std::fill(starts_.begin(), starts_.end(), 0);
    for (const Entry& entry : entries_) ++starts_[(entry.place - lo_) / kGroup + 1];
    for (size_t g = 1; g < starts_.size(); ++g) starts_[g] += starts_[g - 1];
    sorted_.resize(entries_.size());
    Vector<i64> next(starts_.begin(), starts_.end());
    for (const Entry& entry : entries_) sorted_[next[(entry.place - lo_) / kGroup]++] = &entry;
  }

  // Distances of a side, and where labels are not listed their shares, batch by batch, with moments
  // about 0.
  void fill(int side) {
    if (!listed_) share_.resize(n_ * pitch_);
    std::fill(centre_.begin(), centre_.end(), Acc(0));
    std::fill(moments_.begin(), moments_.end(), 0.0);
    const Entry *front = entries_.data(), *end = front + entries_.size();
    for (i64 lo = 0; lo < n_; lo += kBatch) {
      const i64 hi = std::min(n_, lo + kBatch);
      for (i64 i = lo; i < hi; ++i) fill_row(side, i);
      // a distance of 0 is in no moment
      for (; listed_ && front < end && front->row < hi; ++front) *place(*front) = 0;
      for (i64 g = 0; g < size_; g += kGroup)
        if (most(g) > 0) add(g, lo, hi);
    }
  }

  void fill_row(int side, i64 i) {
    const T* u = call_.logits(i) + lo_;
    const Acc *scale = call_.scale(side) + lo_, *offset = call_.offset(side) + lo_;
    Acc* s = s_.data() + i * pitch_;
    const int32_t size = int32_t(size_);
    if (call_.bare() && !side) {
      LPL_SIMD
      for (int32_t j = 0; j < size; ++j) s[j] = load(u[j]);
    } else {
      const Acc sign = side ? Acc(-1) : Acc(1);
      LPL_SIMD
      for (int32_t j = 0; j < size; ++j) s[j] = sign * (load(u[j]) * scale[j] + offset[j]);
    }
    if (size < width_) std::fill(s + size, s + width_, Acc(0));
    if (listed_) return;
    Acc *share = share_.data() + i * pitch_, *y = y_.data();
    call_.labels.read(i, lo_, size_, y);
    LPL_SIMD
    for (int32_t j = 0; j < size; ++j) {
      const Acc part = side ? y[j] : 1 - y[j];
      share[j] = part == part ? part : Acc(0);
      s[j] = share[j] != 0 ? s[j] : Acc(0);  // whatever the logit is where nothing counts
    }
    if (size < width_) std::fill(share + size, share + width_, Acc(0));
  }

  Acc* place(const Entry& entry) { return &s_[entry.row * pitch_ + entry.place - lo_]; }

  i64 entries_of(i64 g) const { return starts_[g / kGroup + 1] - starts_[g / kGroup]; }

  // Calls `visit` with every entry of the classes from g.
  template <typename Visit>
  void for_entries(i64 g, Visit visit) {
    for (i64 k = starts_[g / kGroup]; k < starts_[g / kGroup + 1]; ++k) visit(*sorted_[k]);
  }

  double& moment(int n, i64 j) { return moments_[n * width_ + j]; }

  // Adds the moments of some rows of the classes from g; the number of those rows that are on this
  // side too where labels are listed.
  void add(i64 g, i64 lo, i64 hi) {
    if constexpr (std::is_same<Acc, float>::value) {
      const float* s = &s_[lo * pitch_ + g];
      if (listed_) {
        add_moments<false>(s, nullptr, pitch_, hi - lo, &centre_[g], &moment(0, g), width_);
      } else {
        const float* share = &share_[lo * pitch_ + g];
        add_moments<true>(s, share, pitch_, hi - lo, &centre_[g], &moment(0, g), width_);
      }
    }
  }

  bool recur(int side, i64 g) {
    Lanes centre;
    for (int lane = 0; lane < kGroup; ++lane) centre[lane] = double(centre_[g + lane]);
    return steps_from_moments(&moment(0, g), width_, &steps_[g], call_.p.step_size, centre,
                              &moved_[side][g]);
  }

  void clear_moments(i64 g) {
    for (int n = 0; n <= kMoments; ++n) std::fill(&moment(n, g), &moment(n, g) + kGroup, 0.0);
  }

  // The steps of the classes from g; whether moments gave them.
  bool find(int side, i64 g) {
    for (int k = 0; std::is_same<Acc, float>::value && k < kCentres; ++k) {
      if (k > 0) {
        for (i64 j = g; j < g + kGroup; ++j) centre_[j] = Acc(moved_[side][j] / 2);
        if (listed_) for_entries(g, [&](const Entry& e) { *place(e) = -centre_[e.place - lo_]; });
        clear_moments(g);
        for (i64 lo = 0; lo < n_; lo += kBatch) add(g, lo, std::min(n_, lo + kBatch));
      }
      if (listed_) {
        for (i64 j = g; j < g + kGroup; ++j) moment(0, j) = double(n_);
        for_entries(g, [&](const Entry& e) { moment(0, e.place - lo_) -= 1; });
      }
      if (recur(side, g)) return true;
    }
    sweep(side, g);
    return false;
  }

  // Steps one by one.
  void sweep(int side, i64 g) {
    Lanes mass = {}, d = {};
    if (listed_) {
      for_entries(g, [&](const Entry& e) { *place(e) = -INFINITY; });
      mass += double(n_);
      for_entries(g, [&](const Entry& e) { mass[(e.place - lo_) % kGroup] -= 1; });
    } else {
      for (i64 i = 0; i < n_; ++i)
        for (int lane = 0; lane < kGroup; ++lane) mass[lane] += share_[i * pitch_ + g + lane];
    }
    for (int32_t k = 0; k < most(g); ++k) {
      Lanes sum = {};
      const Group moved = __builtin_convertvector(d, Group);
      for (i64 lo = 0; lo < n_; lo += kBatch) {
        Group values = {};
        for (i64 i = lo; i < std::min(n_, lo + kBatch); ++i) {
          const Group value = sigmoid_of(load_group<Group>(&s_[i * pitch_ + g]) + moved);
          values += listed_ ? value : value * load_group<Group>(&share_[i * pitch_ + g]);
        }
        sum += __builtin_convertvector(values, Lanes);
      }
      step(g, k, sum, mass, d);
    }
    std::memcpy(&moved_[side][g], &d, sizeof(d));
  }

  // The listed positives of the classes from g: by moments of their own, or one by one; whether
  // they are as exact as moments are to be.
  bool follow(i64 g) {
    Lanes mass = {}, d = {};
    for_entries(g, [&](const Entry& e) { mass[(e.place - lo_) % kGroup] += e.label == 1 ? 1 : 0; });
    const i64 count = entries_of(g), most = this->most(g);
    std::fill(&centre_[g], &centre_[g] + kGroup, Acc(0));
    for (int k = 0; count * most > 2 * (count + most) && k < kCentres; ++k) {
      clear_moments(g);
      for_entries(g, [&](const Entry& e) {
        if (e.label != 1) return;
        const i64 j = e.place - lo_;
        const double s = distance(e) + centre_[j], decay = exp_of(-std::abs(s));
        const double t = std::copysign((1 - decay) / (1 + decay), s);
        double power = 1;
        for (int n = 0; n <= kMoments; ++n) {
          moment(n, j) += power;
          power *= t;
        }
      });
      if (recur(1, g)) return true;
      for (i64 j = g; j < g + kGroup; ++j) centre_[j] = Acc(moved_[1][j] / 2);
    }
    for (int32_t k = 0; k < most; ++k) {
      Lanes sum = {};
      for_entries(g, [&](const Entry& e) {
        if (e.label != 1) return;
        const i64 lane = (e.place - lo_) % kGroup;
        const double x = distance(e) + d[lane], decay = exp_of(-std::abs(x));
        sum[lane] += (x > 0 ? 1 : decay) / (1 + decay);
      });
      step(g, k, sum, mass, d);
    }
    std::memcpy(&moved_[1][g], &d, sizeof(d));
    return count * most <= 2 * (count + most);
  }

  // −z of a positive.
  double distance(const Entry& e) const {
    return -(double(e.u) * call_.scale(1)[e.place] + call_.offset(1)[e.place]);
  }

  // One step of the classes from g by their mean σ.
  void step(i64 g, int32_t k, Lanes sum, Lanes mass, Lanes& d) const {
    for (int lane = 0; lane < kGroup; ++lane) {
      const int32_t steps = steps_[g + lane];
      if (k >= std::abs(steps) || !(mass[lane] > 0)) continue;
      d[lane] += (steps < 0 ? -1 : 1) * call_.p.step_size * sum[lane] / mass[lane];
    }
  }

  const BinaryCall<T>& call_;
  const i64 n_, width_, pitch_;  // an odd number of lines, which share no set of the nearest cache
  i64 lo_ = 0, size_ = 0;
  bool listed_ = false;  // labels are 0 but for entries_
  Vector<Acc> s_, share_, y_, centre_, ones_, offset_[2], delta_[2];
  Vector<double> moved_[2], moments_;
  Vector<int32_t> steps_;
  Vector<char> solved_;  // by group
  Vector<Entry> entries_;
  Vector<const Entry*> sorted_;
  Vector<i64> starts_;
};

}  // namespace
}  // namespace lpl
