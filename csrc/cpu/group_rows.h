// Rows of one class for the solver of their common δ: the exponentials of their rivals, tile by
// tile of columns. Rows that have a place keep them there. So do the others in scratch, as far as
// it stays in a cache; beyond that their exponentials are computed anew for every tile, which costs
// less than main memory.
#pragma once

#include "call.h"
#include "learned.h"

namespace lpl {
namespace {

// sum_j (+)= Σ_r weights_r·rows_rj over Rows rows: added, or the first of a sum.
template <int Rows, bool First, typename Acc>
__attribute__((noinline)) void add_rows(const Acc* const* rows, const Acc* weights, i64 size,
                                        Acc* sum) {
  const Acc *a = rows[0], *b = rows[Rows > 1], *c = rows[Rows > 2 ? 2 : 0];
  const Acc* d = rows[Rows > 3 ? 3 : 0];
  const Acc wa = weights[0], wb = weights[Rows > 1], wc = weights[Rows > 2 ? 2 : 0];
  const Acc wd = weights[Rows > 3 ? 3 : 0];
  LPL_SIMD
  for (i64 j = 0; j < size; ++j) {
    Acc total = First ? wa * a[j] : sum[j] + wa * a[j];
    if (Rows > 1) total += wb * b[j];
    if (Rows > 2) total += wc * c[j] + wd * d[j];
    sum[j] = total;
  }
}

// The nine scalar products of three rows with three others. Written out, because GCC keeps an array
// of sums in memory.
template <typename Acc>
__attribute__((noinline)) void products_of_three(const Acc* const* left, const Acc* const* right,
                                                 i64 size, Acc* products) {
  const Acc *a = left[0], *b = left[1], *c = left[2];
  const Acc *x = right[0], *y = right[1], *z = right[2];
  Acc ax = 0, ay = 0, az = 0, bx = 0, by = 0, bz = 0, cx = 0, cy = 0, cz = 0;
#pragma omp simd reduction(+ : ax, ay, az, bx, by, bz, cx, cy, cz)
  for (i64 j = 0; j < size; ++j) {
    ax += a[j] * x[j];
    ay += a[j] * y[j];
    az += a[j] * z[j];
    bx += b[j] * x[j];
    by += b[j] * y[j];
    bz += b[j] * z[j];
    cx += c[j] * x[j];
    cy += c[j] * y[j];
    cz += c[j] * z[j];
  }
  const Acc all[9] = {ax, ay, az, bx, by, bz, cx, cy, cz};
  std::memcpy(products, all, sizeof(all));
}

// sum_j = Σ_r weights_r·rows_rj over `count` rows.
template <typename Acc>
void sum_of_rows(const Acc* const* rows, const Acc* weights, i64 count, i64 size, Acc* sum) {
  i64 r = count % 4;  // those that do not fill a quartet come first
  switch (r) {
    case 3:
      add_rows<1, true>(rows, weights, size, sum);
      add_rows<2, false>(rows + 1, weights + 1, size, sum);
      break;
    case 2: add_rows<2, true>(rows, weights, size, sum); break;
    case 1: add_rows<1, true>(rows, weights, size, sum); break;
    default: add_rows<4, true>(rows, weights, size, sum); r = 4;
  }
  for (; r < count; r += 4) add_rows<4, false>(rows + r, weights + r, size, sum);
}

template <typename T>
class GroupRows {
 public:
  using Acc = typename AccumulateOf<T>::type;

  // Some columns of all rows, and what a thread needs to have them.
  struct Tile {
    Vector<const Acc*> rows;
    Vector<Acc> homeless, z, capped;
  };

  // Nats by which δ may raise a rival above a row's mass: those that are lost in a row below the
  // least exponential are nothing until then. Rows raise what another has lost.
  static constexpr double kReach = sizeof(Acc) == 8 ? 650 : 55;

  explicit GroupRows(const Call<T>& call) : call_(call), c_(call.c) {}

  i64 size() const { return size_; }
  // Columns of a tile, a power of two: as many as keep all rows in the second cache.
  i64 width() const { return width_; }
  double unit(i64 r) const { return rows_[r].unit; }  // 1 / Σ of a row's exponentials
  double lift(i64 r) const { return rows_[r].lift; }  // log of the target's mass in such units

  // Sweeps all rows once; place(i) says where the exponentials of a row may stay, or null. False
  // where there is nan, or a row that is −inf throughout, whose softmax is nan.
  template <typename Place>
  bool sweep(const Group& group, int threads, Place place) {
    label_ = group.label;
    size_ = group.size;
    width_ = kBlock;
    while (width_ > kNarrowest && width_ * size_ * i64(sizeof(Acc)) > kCache) width_ /= 2;
    rows_.resize(size_);
    const i64 room = kScratch / (c_ * i64(sizeof(Acc)));
    i64 homeless = 0;
    for (i64 r = 0; r < size_; ++r) homeless += !(rows_[r].e = place(group.rows[r]));
    if (homeless <= room) {
      scratch_.resize(std::max<i64>(scratch_.size(), homeless * c_));
      for (i64 r = 0; r < size_; ++r)
        if (!rows_[r].e) rows_[r].e = scratch_.data() + --homeless * c_;
    }
    for_shares(threads, size_, [&](int, i64 begin, i64 end) {
      Vector<Acc> z(c_), capped(call_.p.softcap > 0 ? kBlock : 0);
      for (i64 r = begin; r < end; ++r) {
        const i64 i = group.rows[r];
        Acc* e = rows_[r].e;
        const auto swept = call_.exponentials(i, nullptr, label_, z.data(), capped.data(), e);
        if (e) e[label_] = 0;
        const bool rivals = swept.rest > 0;
        const double lift = double(swept.own) - double(swept.shift) - std::log(swept.rest);
        const bool something = rivals || swept.own > std::numeric_limits<Acc>::lowest();
        // beyond e^700 the rivals' probabilities vanish, in the exact iteration too
        rows_[r] = {i,
                    e,
                    swept.shift,
                    swept.norm.factor,
                    rivals ? 1 / swept.rest : 0,
                    rivals ? std::min(lift, 700.0) : 0,
                    swept.rest < INFINITY && swept.own == swept.own && something};
      }
    });
    return std::all_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.finite; });
  }

  Tile tile() const {
    Tile tile;
    tile.rows.resize(size_);
    const auto is_homeless = [](const Row& row) { return !row.e; };
    const i64 homeless = std::count_if(rows_.begin(), rows_.end(), is_homeless);
    tile.homeless.resize(homeless * width_);
    if (homeless) tile.z.resize(width_);
    if (homeless && call_.p.softcap > 0) tile.capped.resize(width_);
    return tile;
  }

  // Columns lo to lo + size of all rows, 0 at the target.
  void read(i64 lo, i64 size, Tile& tile) const {
    Acc* next = tile.homeless.data();
    for (i64 r = 0; r < size_; ++r) {
      const Row& row = rows_[r];
      tile.rows[r] = row.e ? row.e + lo : next;
      if (row.e) continue;
      call_.block_again(row.i, row.length, row.shift, lo, size, tile.z.data(), tile.capped.data(),
                        next);
      if (label_ >= lo && label_ < lo + size) next[label_ - lo] = 0;
      next += width_;
    }
  }

  // sum_j = Σ_r weights_r·rows_rj
  void add(const Tile& tile, const Acc* weights, i64 size, Acc* sum) const {
    sum_of_rows(tile.rows.data(), weights, size_, size, sum);
  }

  // sums (count + 1, N) += Σ_j rows_rj·values_mj, from m = 1 on, of values (count + 1, width()):
  // three by three, where those beyond the last repeat it.
  void add_products(const Tile& tile, const Acc* values, int count, i64 size, double* sums) const {
    for (i64 r = 0; r < size_; r += 3)
      for (int m = 1; m <= count; m += 3) {
        const Acc *left[3], *right[3];
        for (int t = 0; t < 3; ++t) {
          left[t] = tile.rows[std::min(r + t, size_ - 1)];
          right[t] = values + std::min(m + t, count) * width_;
        }
        Acc products[9];
        products_of_three(left, right, size, products);
        for (int s = 0; s < 3 && r + s < size_; ++s)
          for (int t = 0; t < 3 && m + t <= count; ++t)
            sums[(m + t) * size_ + r + s] += products[s * 3 + t];
      }
  }

 private:
  static constexpr i64 kCache = 256 << 10, kNarrowest = 128, kScratch = 4 << 20;

  struct Row {
    i64 i;
    Acc* e;  // (C,), null where it has no place
    Acc shift, length;
    double unit, lift;
    bool finite;
  };

  const Call<T>& call_;
  const i64 c_;
  i64 label_ = 0, size_ = 0, width_ = kBlock;
  Vector<Row> rows_;
  Vector<Acc> scratch_;  // of rows that have no other place
};

}  // namespace
}  // namespace lpl
