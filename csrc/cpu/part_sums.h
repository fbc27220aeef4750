// Sums over the columns of a row: the parts of lpl_fused/algebra/parts.py, which says what each is.
#pragma once

#include "part_rows.h"
#include "penalty.h"

namespace lpl {
namespace {

template <typename Acc>
inline Acc finite(Acc shift) {
  return shift == -INFINITY ? Acc(0) : shift;
}

// What e^(z − old) is to be multiplied by where the shift rises to `top`.
template <typename Acc>
inline double lowered(Acc old, Acc top) {
  return std::exp(double(old) - double(finite(top)));
}

template <typename T>
class PartSums {
 public:
  using Acc = typename AccumulateOf<T>::type;

  PartSums(const Call<T>& call, const Known& known, const Sums& out, Kind kind)
      : rows_(call, known),
        call_(call),
        p_(call.p),
        known_(known),
        out_(out),
        kind_(kind),
        c_(call.c),
        penalty_(call.p),
        e_(kind == Kind::rivals ? c_ : kBlock),
        x_(kBlock),
        whole_(kind == Kind::rivals ? c_ : 0),
        tail_(kind == Kind::rivals ? kBlock : 0) {}

  void run(i64 i) {
    switch (kind_) {
      case Kind::size: return size(i);
      case Kind::mass: return mass(i);
      case Kind::detail: return detail(i);
      case Kind::rivals: return rivals(i);
      case Kind::statistics: return statistics(i);
    }
  }

 private:
  template <typename... Numbers>
  void leave(i64 i, Numbers... numbers) const {
    const double all[] = {double(numbers)...};
    constexpr i64 count = sizeof...(numbers);
    std::copy(all, all + count, out_.numbers + i * count);
  }

  // Calls `block` with the first column and the size of every block of row i.
  template <typename Block>
  void for_blocks(Block block) const {
    for (i64 lo = 0; lo < c_; lo += kBlock) block(lo, std::min(kBlock, c_ - lo));
  }

  void size(i64 i) {
    if (call_.nothing(i)) return leave(i, 0, 0, -INFINITY, 0);
    const T* row = call_.logits(i);
    const bool endless = p_.norm_p == INFINITY;
    Acc peak = 0, top = -INFINITY;
    double total = 0, ties = 0;
    for_blocks([&](i64 lo, i64 size) {
      const T* u = row + lo;
      prefetch(u + kBlock, kBlock);
      Acc here = 0, highest = -INFINITY;
#pragma omp simd reduction(max : here, highest)
      for (i64 j = 0; j < size; ++j) {
        const Acc magnitude = magnitude_of(counted(u[j]));
        here = magnitude > here ? magnitude : here;
        highest = load(u[j]) > highest ? load(u[j]) : highest;
      }
      if (here > peak) {
        total *= endless ? 0 : std::pow(double(peak) / double(here), p_.norm_p);
        peak = here;
      }
      if (highest > top) {
        top = highest;
        ties = 0;
      }
      if (highest == top) ties += double(count_of(u, size, top));
      if (p_.norm_p > 0 && peak > 0) total += powers(u, size, peak);
    });
    leave(i, peak, total, top, ties);
  }

  static i64 count_of(const T* u, i64 size, Acc value) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (i64 j = 0; j < size; ++j) count += int32_t(load(u[j]) == value);
    return count;
  }

  // Σ (|u_j|/peak)^p over a block; for p = ∞ how many are the peak.
  double powers(const T* u, i64 size, Acc peak) const {
    const auto sum = [&](auto term) {
      return sum_over<Acc>(size, [=](i64 j) { return term(magnitude_of(counted(u[j]))); });
    };
    const Acc power = Acc(p_.norm_p);
    if (p_.norm_p == 1) return sum([=](Acc x) { return x / peak; });
    if (p_.norm_p == 2) return sum([=](Acc x) { return (x / peak) * (x / peak); });
    if (p_.norm_p == INFINITY) return sum([=](Acc x) { return Acc(x == peak); });
    return sum([=](Acc x) { return power_of(x / peak, power); });
  }

  void mass(i64 i) {
    Acc shift = -INFINITY;
    double rest = 0, mass = 0, pull = 0, along = 0, spread = 0;
    Acc z_at[2] = {-INFINITY, -INFINITY}, x_at[2] = {0, 0};
    if (call_.nothing(i)) return leave(i, shift, 0, z_at[0], z_at[1], 0, 0, 0, 0, 0, 0);
    const i64 labels[2] = {rows_.own(i), rows_.other(i)};
    const bool normed = p_.norm_p > 0, log = p_.phi == Phi::log;
    for_blocks([&](i64 lo, i64 size) {
      const Acc* z = rows_.z(i, lo, size);
      if (normed) rows_.directions(i, lo, size, x_.data());
      for (int k = 0; k < 2; ++k) {
        if (labels[k] < lo || labels[k] >= lo + size) continue;
        z_at[k] = z[labels[k] - lo];
        if (normed) x_at[k] = x_[labels[k] - lo];
      }
      for (const i64 label : labels)
        if (!rows_.spread && label >= lo && label < lo + size)
          z = rows_.without(label - lo, z, size);
      const Acc top = max_of(z, size);
      if (top > shift) {
        const double factor = lowered(shift, top);
        rest *= factor;
        along *= factor;
        pull += mass * (double(finite(shift)) - double(top));
        shift = top;
      }
      const Acc from = finite(shift);
      Acc* e = normed ? e_.data() : nullptr;
      rest += call_.block_sum(i, lo, size, z, from, e, -1, kBlock);
      if (normed) along += dot(e, x_.data(), size);
      if (!rows_.spread) return;
      const Acc* w = rows_.weights(i, lo, size);
      mass += sum_of(w, size);
      if (!log) return;
      // of class probabilities one of 0 counts nothing, even at a logit of −inf
      pull += p_.dense ? sum_over<Acc>(
                             size, [=](i64 j) { return w[j] == 0 ? Acc(0) : w[j] * (z[j] - from); })
                       : sum_over<Acc>(size, [=](i64 j) { return w[j] * (z[j] - from); });
      if (normed) spread += dot(w, x_.data(), size);
    });
    const double base = rows_.base(i);
    leave(i, shift + base, rest, z_at[0] + base, z_at[1] + base, mass, pull, along, x_at[0],
          x_at[1], spread);
  }

  static double dot(const Acc* a, const Acc* b, i64 size) {
    return sum_over<Acc>(size, [=](i64 j) { return a[j] * b[j]; });
  }

  void detail(i64 i) {
    if (call_.nothing(i)) return leave(i, 0, 0, 0, 0, 0);
    const Terms<Acc>& terms = rows_.terms(i);
    const Acc shift = rows_.shift(i);
    const bool normed = p_.norm_p > 0, bent = rows_.spread && p_.phi != Phi::log;
    double value = 0, slope = 0, along = 0, penalty = 0, push = 0;
    for_blocks([&](i64 lo, i64 size) {
      if (bent) {
        const Acc* z = rows_.z(i, lo, size);
        const Acc* w = rows_.weights(i, lo, size);
        if (normed) rows_.directions(i, lo, size, x_.data());
        for (i64 j = 0; j < size; ++j) {
          if (p_.dense && w[j] == 0) continue;
          const PhiValue<Acc> phi =
              phi_of(terms.log_total - (z[j] - shift), p_.phi, Acc(p_.phi_parameter));
          value += double(w[j]) * phi.value;
          slope += double(w[j]) * phi.slope;
          if (normed) along += double(w[j] * phi.slope) * x_[j];
        }
      }
      const auto block = penalty_.at(call_.logits(i), lo, terms.top, 0, nullptr);
      penalty += block.value;
      push += block.slope;
    });
    leave(i, value, slope, along, penalty, push);
  }

  void rivals(i64 i) {
    double* powers = out_.powers + i * kPowers<Acc>;
    int32_t* columns = out_.columns + i * out_.heads;
    Acc* logits = static_cast<Acc*>(out_.logits) + i * out_.heads;
    std::fill(powers, powers + kPowers<Acc>, 0.0);
    std::fill(columns, columns + out_.heads, -1);
    std::fill(logits, logits + out_.heads, -std::numeric_limits<Acc>::infinity());
    Acc shift = -INFINITY, own = -INFINITY, largest = 0;
    if (call_.nothing(i)) return leave(i, shift, 0, own, 0, 0);
    const i64 y = rows_.own(i);
    Acc *z = whole_.data(), *e = e_.data();
    for_blocks([&](i64 lo, i64 size) {
      const Acc* block = rows_.z(i, lo, size);
      std::copy(block, block + size, z + lo);
    });
    if (y >= 0) {
      own = z[y];
      z[y] = -INFINITY;
    }
    shift = max_of(z, c_);
    double rest = 0;
    for_blocks([&](i64 lo, i64 size) {
      rest += call_.block_sum(i, lo, size, z + lo, finite(shift), e + lo, -1, kBlock);
    });
    const double threshold = known_.threshold[i];
    const bool all = threshold < 0;
    const Acc cut = all ? Acc(-1) : Acc(threshold * rest);
    i64 listed = 0;
    for_blocks([&](i64 lo, i64 size) {
      for_each_above(e + lo, cut, size, [&](i64 j) {
        if (lo + j == y) return;
        if (listed < out_.heads) {
          columns[listed] = int32_t(p_.first + lo + j);
          logits[listed] = z[lo + j];
        }
        ++listed;
      });
      largest = std::max(largest, tail(e + lo, cut, size, powers));
    });
    leave(i, shift, rest, own, largest, listed);
  }

  void statistics(i64 i) {
    Acc shift = -INFINITY;
    stats_.begin();
    if (!call_.nothing(i)) {
      for_blocks([&](i64 lo, i64 size) {
        const T* u = call_.logits(i) + lo;
        const Acc* z = rows_.z(i, lo, size);
        const Acc top = max_of(z, size);
        if (top > shift) {
          stats_.raise(shift, top);
          shift = top;
        }
        const Acc from = finite(shift);
        const double total = call_.block_sum(i, lo, size, z, from, e_.data(), -1, kBlock);
        stats_.add(p_.first + lo, size, z, e_.data(), from, total, u, max_of(u, size));
      });
    }
    const auto& [none, total, heat, largest, place] = stats_.sums();
    leave(i, double(shift) + double(rows_.base(i)), total, heat, largest, place);
  }

  // Adds Σ e_j^r, r = 1 …, of what is at most `cut`, and gives the largest of that.
  Acc tail(const Acc* e, Acc cut, i64 size, double* powers) {
    Acc *power = x_.data(), *kept = tail_.data();
    Acc largest = 0;
#pragma omp simd reduction(max : largest)
    for (i64 j = 0; j < size; ++j) {
      const Acc value = e[j] > cut ? Acc(0) : e[j];
      kept[j] = power[j] = value;
      largest = value > largest ? value : largest;
    }
    for (int r = 0; r < kPowers<Acc>; ++r) {
      Acc sum = 0;
#pragma omp simd reduction(+ : sum)
      for (i64 j = 0; j < size; ++j) {
        sum += power[j];
        power[j] *= kept[j];
      }
      powers[r] += sum;
    }
    return largest;
  }

  PartRows<T> rows_;
  const Call<T>& call_;
  const Problem& p_;
  const Known& known_;
  const Sums& out_;
  const Kind kind_;
  const i64 c_;
  RowPenalty<T> penalty_;
  RowStatistics<Acc> stats_;
  Vector<Acc> e_, x_, whole_, tail_;  // exponentials, directions, z of a whole row, e of its tail
};

}  // namespace
}  // namespace lpl
