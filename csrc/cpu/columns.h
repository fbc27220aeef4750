// The learned perturbation of multi-label logits: one number for a class's positives, one for its
// negatives, from columns of the batch that stay in the cache.
//
// In the distance s of a logit from its label (−z of positives, z of negatives) both sides are one
// recursion, d ← d + a·mean_i σ(s_i + d), whose steps come from moments (moments.h). Where these
// no longer do they are taken again about a centre further along d's path, leg by leg; where steps
// are too long for that, or numbers are double, they are taken one by one.
#pragma once

#include "binary_loss.h"
#include "moments.h"

namespace lpl {
namespace {

constexpr int kLegs = 16;   // more would cost what single steps do
constexpr i64 kBatch = 32;  // rows whose sums are kept in Acc

// Labels for each that is not 0, from where those are followed one by one.
constexpr i64 kFollowed = 16;

template <typename T>
class Columns {
 public:
  using Acc = typename AccumulateOf<T>::type;
  using Group = typename GroupOf<Acc>::type;
  using Entry = lpl::Entry<Acc>;

  // Classes of a tile: as many as keep the logits of all rows in the second cache, whole cache
  // lines of them, and no more than leave every thread some, however many there are: sums depend on
  // the tiles.
  static i64 width(const BinaryCall<T>& call) {
    constexpr i64 kCache = 256 * 1024, kLine = 16, kLeast = 4 * kLine, kMostShares = 8;
    const i64 fit = kCache / (std::max<i64>(1, call.n) * i64(sizeof(Acc))) / kLine * kLine;
    const i64 shares = std::min(kMostShares, std::max<i64>(1, call.n * call.c / kWorkPerThread));
    const i64 share = std::max(2 * kLine, (call.c + shares - 1) / shares);
    return std::min(std::min(kBlock, std::max(kLeast, fit)), (share + kLine - 1) / kLine * kLine);
  }

  Columns(const BinaryCall<T>& call, i64 width)
      : call_(call),
        n_(call.n),
        width_(width),
        pitch_(width | 16),
        s_(room()),
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
      const bool packs = side && listed_;
      if (!packs) fill(side);
      for (i64 g = 0; g < size; g += kGroup)
        if (most(g) > 0)
          solved_[g / kGroup] &=
              packs ? find(side, g, pack(g), false) : find(side, g, tile(g), true);
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
    if (!listed_) share_.resize(room());
    std::fill(centre_.begin(), centre_.end(), Acc(0));
    std::fill(moments_.begin(), moments_.end(), 0.0);
    const Entry *front = entries_.data(), *end = front + entries_.size();
    for (i64 lo = 0; lo < n_; lo += kBatch) {
      const i64 hi = std::min(n_, lo + kBatch);
      for (i64 i = lo; i < hi; ++i) {
        if (i + kAhead < n_) prefetch(call_.logits(i + kAhead) + lo_, size_);
        fill_row(side, i);
      }
      // a distance of 0 is in no moment
      for (; listed_ && front < end && front->row < hi; ++front) *place(*front) = 0;
      for (i64 g = 0; g < size_; g += kGroup)
        if (most(g) > 0) add(g, tile(g), lo, hi);
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

  // Of all rows; of no row a place to begin at, too.
  i64 room() const { return std::max<i64>(1, n_) * pitch_; }

  Acc* place(const Entry& entry) { return &s_[entry.row * pitch_ + entry.place - lo_]; }

  // Calls `visit` with every entry of the classes from g.
  template <typename Visit>
  void for_entries(i64 g, Visit visit) {
    for (i64 k = starts_[g / kGroup]; k < starts_[g / kGroup + 1]; ++k) visit(*sorted_[k]);
  }

  double& moment(int n, i64 j) { return moments_[n * width_ + j]; }

  // Distances of a group of classes on a side, rows `pitch` apart, and their shares, null for 1.
  struct Rows {
    const Acc *s, *share;
    i64 pitch, rows;
  };

  Rows tile(i64 g) const { return {&s_[g], listed_ ? nullptr : &share_[g], pitch_, n_}; }

  // The listed positives of the classes from g, each below the last of its class.
  Rows pack(i64 g) {
    i64 count[kGroup] = {}, rows = 0;
    const auto for_positives = [&](auto visit) {
      for_entries(g, [&](const Entry& e) {
        if (e.label == 1) visit(e, e.place - lo_ - g);
      });
    };
    for_positives([&](const Entry&, i64 lane) { rows = std::max(rows, ++count[lane]); });
    packed_.assign(2 * rows * kGroup, Acc(0));
    Acc *s = packed_.data(), *share = s + rows * kGroup;
    for_positives([&](const Entry& e, i64 lane) {
      const i64 at = --count[lane] * kGroup + lane;
      s[at] = -(e.u * call_.scale(1)[e.place] + call_.offset(1)[e.place]);
      share[at] = 1;
    });
    return {s, share, kGroup, rows};
  }

  // Adds the moments of rows lo to hi of the classes from g.
  void add(i64 g, const Rows& of, i64 lo, i64 hi) {
    if constexpr (std::is_same<Acc, float>::value) {
      const float *s = of.s + lo * of.pitch, *share = of.share ? of.share + lo * of.pitch : nullptr;
      share ? add_moments<true>(s, share, of.pitch, hi - lo, &centre_[g], &moment(0, g), width_)
            : add_moments<false>(s, share, of.pitch, hi - lo, &centre_[g], &moment(0, g), width_);
    }
  }

  // Counts of a side without shares: all rows but the entries', whose distances it sets.
  template <typename Value>
  Lanes leave_out(i64 g, Value value) {
    Lanes count = Lanes{} + double(n_);
    for_entries(g, [&](const Entry& e) {
      *place(e) = value(e.place - lo_);
      count[e.place - lo_ - g] -= 1;
    });
    return count;
  }

  // The steps of the classes from g, whose moments about 0 may be taken; whether moments gave them.
  bool find(int side, i64 g, const Rows& of, bool taken) {
    if (of.rows == 0) return true;
    if constexpr (std::is_same<Acc, float>::value) {
      Walk walk;
      const int32_t most = this->most(g);
      std::fill(&centre_[g], &centre_[g] + kGroup, Acc(0));
      for (int leg = 0; leg < kLegs; ++leg) {
        const int32_t before = walk.k;
        Lanes count = {};
        if (!of.share) count = leave_out(g, [&](i64 j) { return -centre_[j]; });  // in no moment
        if (leg > 0 || !taken) {
          for (int n = 0; n <= kMoments; ++n) std::memset(&moment(n, g), 0, sizeof(Lanes));
          for (i64 lo = 0; lo < of.rows; lo += kBatch)
            add(g, of, lo, std::min(of.rows, lo + kBatch));
        }
        if (!of.share) std::memcpy(&moment(0, g), &count, sizeof(count));
        walk_on(&moment(0, g), width_, &steps_[g], most, call_.p.step_size, &centre_[g], walk);
        std::memcpy(&moved_[side][g], &walk.d, sizeof(walk.d));
        if (walk.k == most) return true;
        if (walk.k == before) break;
        // the next centre lies ahead; not as far as this one now lies behind, where the steps of
        // this leg have used up what may be missed
        for (int lane = 0; lane < kGroup; ++lane) {
          const double ahead = 0.6 * std::abs(walk.d[lane] - double(centre_[g + lane]));
          centre_[g + lane] = Acc(walk.d[lane] + (steps_[g + lane] < 0 ? -ahead : ahead));
        }
      }
    }
    sweep(side, g, of);
    return false;
  }

  // Steps one by one.
  void sweep(int side, i64 g, const Rows& of) {
    Lanes mass = {}, d = {};
    if (!of.share) mass = leave_out(g, [](i64) { return Acc(-INFINITY); });
    for (i64 i = 0; of.share && i < of.rows; ++i)
      mass += __builtin_convertvector(load_group<Group>(of.share + i * of.pitch), Lanes);
    for (int32_t k = 0; k < most(g); ++k) {
      Lanes sum = {};
      const Group moved = __builtin_convertvector(d, Group);
      for (i64 lo = 0; lo < of.rows; lo += kBatch) {
        Group values = {};
        for (i64 i = lo; i < std::min(of.rows, lo + kBatch); ++i) {
          const Group value = sigmoid_of(load_group<Group>(of.s + i * of.pitch) + moved);
          values += of.share ? value * load_group<Group>(of.share + i * of.pitch) : value;
        }
        sum += __builtin_convertvector(values, Lanes);
      }
      step(g, k, sum, mass, d);
    }
    std::memcpy(&moved_[side][g], &d, sizeof(d));
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
  Vector<Acc> s_, share_, packed_, y_, centre_, ones_, offset_[2], delta_[2];
  Vector<double> moved_[2], moments_;
  Vector<int32_t> steps_;
  Vector<char> solved_;  // by group
  Vector<Entry> entries_;
  Vector<const Entry*> sorted_;
  Vector<i64> starts_;
};

}  // namespace
}  // namespace lpl
