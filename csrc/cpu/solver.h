// The solver of the learned perturbation for classes with one row in the batch: see ../series.h.
// Rows are solved side by side, one per lane of a vector, so that a step costs a few instructions.
#pragma once

#include "../series.h"
#include "call.h"
#include "memory.h"
#include "short_steps.h"

namespace lpl {
namespace {

// What became of one row: p_j·Z of every class, where Z = rest + own.
template <typename Acc>
struct Solved {
  Acc* e;          // (C,) initial exponentials of the rivals, 0 at the target; q = e·inverse
  double inverse;  // 1 / Σ of them
  double base;     // log of that sum, in units of the logits
  double lift;     // log of the target's mass, by which ...
  double own;      // ... e^lift is in the units of q
  double rest;     // the rivals' mass after all steps
  double initial_lift;
  double series[kOrder + 1];
  Thresholds cut;
  // rivals above cut.tiny and above cut.middling, by class
  Vector<i64> middling, head;
  Vector<double> middling_q;
  Vector<double> head_mass;

  // q of class j.
  double share(i64 j) const { return double(e[j]) * inverse; }

  double at(double q) const {
    double value = series[kOrder];
    for (int r = kOrder - 1; r >= 1; --r) value = value * q + series[r];
    return value * q;
  }
};

// A row that the solver has: it has no direction, or does not move, its solution is not accepted
// (yet), or it is.
enum class State { lost, unmoved, open, solved };

template <typename T>
class Solver {
 public:
  using Acc = typename AccumulateOf<T>::type;

  explicit Solver(const Call<T>& call) : call_(call), c_(call.c) {
    lanes_ = int(std::max<i64>(1, std::min<i64>(kLanes, near_bytes() / (c_ * i64(sizeof(Acc))))));
    standing_out_.resize(c_);
    marks_.resize(c_ / kMarked + 1);
  }

  // Rows that are solved together: as many as stay in the cache from first to last sweep.
  int lanes() const { return lanes_; }

  State state(int lane) const { return states_[lane]; }
  const Solved<Acc>& solution(int lane) const { return rows_[lane]; }

  // Takes row i into a lane; `e` (C,) receives its exponentials, z and capped are scratch.
  void take(int lane, i64 i, Acc* e, Acc* z, Acc* capped) {
    const i64 y = call_.p.target[i];
    const auto swept = call_.exponentials(i, nullptr, y, z, capped, e);
    Solved<Acc>& row = rows_[lane];
    // without rivals nothing moves; with nan or +inf, or −inf throughout, a softmax is nan
    const bool own = swept.own > std::numeric_limits<Acc>::lowest() && swept.own < INFINITY;
    const bool rivals = swept.rest > 0 && swept.rest < INFINITY;
    states_[lane] = rivals && swept.own < INFINITY ? State::open
                    : own && swept.rest == 0       ? State::unmoved
                                                   : State::lost;
    if (states_[lane] != State::open) return;
    e[y] = 0;
    row.e = e;
    row.inverse = 1 / swept.rest;
    const double log_rest = std::log(swept.rest);
    row.base = double(swept.shift) + log_rest;
    // beyond e^700 the rivals' probabilities vanish, in the exact iteration too
    row.initial_lift = std::min(double(swept.own) - double(swept.shift) - log_rest, 700.0);
    const int steps = call_.p.steps[y];
    step_[lane] = steps > 0 ? call_.p.step_size : -call_.p.step_size;
    count_[lane] = std::abs(steps);
    // raising a class's loss lets the rivals grow: Z and Z‖g‖ stay at 1 or more. Lowering it lets
    // them shrink; how far, the solution itself will tell.
    const double dose = call_.p.step_size * std::abs(steps);
    expected_dose_[lane] = steps > 0 ? dose : kLoweringDose * dose;
  }

  // Solves the first `size` lanes. A lane that stays open is left to plain steps.
  void solve(int size) {
    for (int lane = size; lane < kLanes; ++lane) states_[lane] = State::unmoved;
    const auto is_open = [](State state) { return state == State::open; };
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      if (!std::any_of(states_, states_ + kLanes, is_open)) return;
      bool collected[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        // the path that reverse() goes back is that of the last iteration, for all lanes
        const bool again = call_.p.through && states_[lane] == State::solved;
        collected[lane] = (again || is_open(states_[lane])) && collect(lane);
        if (collected[lane]) continue;
        if (again) states_[lane] = State::open;
        idle(lane);
      }
      if (std::none_of(collected, collected + kLanes, [](bool b) { return b; })) return;
      iterate(attempt + 1 == kAttempts);
      for (int lane = 0; lane < kLanes; ++lane) {
        if (!collected[lane]) continue;
        finish(lane);
        // of the dose that thresholds are made for, and of any smaller one, the bound is known
        const double missed = this->missed(lane), allowed = tolerance();
        const bool bounded =
            (dose_[lane] <= expected_dose_[lane] && missed <= kBlockShare * allowed) ||
            series_error(dose_[lane], rows_[lane].cut) + missed <= allowed;
        const bool good = bounded && fits(rows_[lane].series);
        states_[lane] = good ? State::solved : State::open;
        expected_dose_[lane] = kRetryDose * dose_[lane];
      }
    }
  }

  // The gradient through all steps of a solved row: what dL/d(z + δ) is in dL/dz, for a problem
  // that is to be differentiated `through` them. dL/d(z + δ) is `share` times the rivals' mass e^(z
  // + δ) and `own` at the target; the solution's series and head take the place of that mass, and
  // what `own` becomes is returned. v ← v + J(v − ĝ⟨ĝ, v⟩ or v), J = a·(diag(m) − m mᵀ/Z), step by
  // step back, is in the tail a polynomial in q as the masses m are.
  double reverse(int lane, double share, double own) {
    Solved<Acc>& row = rows_[lane];
    const i64 heads = row.head.size();
    double v[kOrder + 1], w[kOrder + 1], product[kOrder + 1], mass[kOrder + 1];
    for (int r = 1; r <= kOrder; ++r) v[r] = share * row.series[r];
    Vector<double>& head = row.head_mass;
    for (double& value : head) value *= share;
    for (i64 k = i64(count_[lane]) - 1; k >= 0; --k) {
      const Step& step = path_[k];
      const Lanes* masses = path_masses_.data() + k * i64(masses_.size());
      const double a = step.a[lane], z = step.rest[lane] + step.own[lane];
      if (a == 0) continue;
      for (int r = 1; r <= kOrder; ++r) mass[r] = step.series[r][lane];
      // Σ_rivals m·v
      const auto along = [&](const double* tail, const Vector<double>& values) {
        double sum = 0;
        for (int s = 2; s <= kOrder; ++s) {
          product[s] = 0;
          for (int r = 1; r < s; ++r) product[s] += mass[r] * tail[s - r];
          sum += product[s] * moments_[s][lane];
        }
        for (i64 j = 0; j < heads; ++j) sum += masses[j][lane] * values[j];
        return sum;
      };
      double rivals = along(v, head), turned = own;
      std::copy(v + 1, v + kOrder + 1, w + 1);
      turned_.assign(head.begin(), head.end());
      if (call_.p.normalize) {
        const double length = std::abs(step_[lane] / a);  // ‖g‖·Z
        const double part = (rivals - step.rest[lane] * own) / (length * length);
        for (int r = 1; r <= kOrder; ++r) w[r] -= part * mass[r];
        for (i64 j = 0; j < heads; ++j) turned_[j] -= part * masses[j][lane];
        turned += part * step.rest[lane];
        rivals = along(w, turned_);
      }
      const double mean = (rivals + step.own[lane] * turned) / z;
      v[1] -= a * mean * mass[1];
      for (int r = 2; r <= kOrder; ++r) v[r] += a * (product[r] - mean * mass[r]);
      for (i64 j = 0; j < heads; ++j) head[j] += a * masses[j][lane] * (turned_[j] - mean);
      own += a * step.own[lane] * (turned - mean);
    }
    std::copy(v + 1, v + kOrder + 1, row.series + 1);
    return own;
  }

  // δ of a solved row.
  void perturbation(int lane, i64 y, Acc* delta) const {
    const Solved<Acc>& row = rows_[lane];
    double log_series[kOrder];
    series_log(row.series, log_series);
    const Acc inverse = Acc(row.inverse);
    const Acc first = Acc(log_series[1]), second = Acc(log_series[2]);
    const Acc third = Acc(log_series[3]), fourth = Acc(log_series[4]);
    LPL_SIMD
    for (i64 j = 0; j < c_; ++j) {
      const Acc q = row.e[j] * inverse;
      delta[j] = (((fourth * q + third) * q + second) * q + first) * q;
    }
    for (size_t k = 0; k < row.middling.size(); ++k)
      delta[row.middling[k]] = Acc(std::log(row.at(row.middling_q[k]) / row.middling_q[k]));
    for (size_t k = 0; k < row.head.size(); ++k)
      delta[row.head[k]] = Acc(std::log(row.head_mass[k] / row.share(row.head[k])));
    delta[y] = 0;
    // a step adds up to nothing, so what a masked target's is, or one's whose lift has no digits
    // for it, shows in the others'
    const bool far = std::abs(row.initial_lift) > 1e6;
    delta[y] = Acc(far ? -sum_of(delta, c_) : row.lift - row.initial_lift);
  }

 private:
  static constexpr bool kPrecise = sizeof(Acc) == 8;
  static constexpr int kAttempts = 3;
  static constexpr double kFarthest = 500;  // as of classes with several rows
  // What a lowered row's dose is expected to be, over that of constant Z: of logits of standard
  // deviation 3 one row in 40 takes more. A row that does lets all lanes do their steps again.
  static constexpr double kLoweringDose = 1.5, kRetryDose = 1.25;
  // Steps are taken in blocks (short_steps.h) of so many, if those may be so long. What they miss
  // is a share of the tolerance.
  static constexpr double kLeastShort = 4, kMostShort = 12, kBlockShare = 1.0 / 16;
  // Heads that begin a block with less than such a step end it with less than 1/30, for which
  // exp_near_zero<4> is right to 4e-10.
  static constexpr double kTinyStep = 1.0 / 50;
  // Solving a head of more than this share of the classes costs more than plain steps.
  static constexpr i64 kHeadShare = 8;

  // The coefficients of the way back grow like the product of two series, so they get more room.
  double tolerance() const { return series_tolerance<Acc>() / (call_.p.through ? 64 : 1); }

  // Whether the coefficients are numbers of the type that a row is made of them in, with room for
  // those of a logarithm. Steps that lower a row by 20 nats and more may have others: plain steps.
  static bool fits(const double* series) {
    const double most = sizeof(Acc) == 8 ? 1e290 : 1e30;
    return std::all_of(series + 1, series + kOrder + 1,
                       [most](double each) { return std::abs(each) < most; });
  }

  // Power sums of the tail and the list of what stands out of it. False if too much does, or if
  // steps add up to more than exponents of a double hold.
  bool collect(int lane) {
    Solved<Acc>& row = rows_[lane];
    if (!(call_.p.step_size * double(count_[lane]) <= kFarthest)) return false;
    if (cut_dose_ != expected_dose_[lane]) {  // their powers cost as much as a tenth of a short row
      cut_dose_ = expected_dose_[lane];
      cut_ = series_thresholds(cut_dose_, (1 - kBlockShare) * tolerance());
    }
    row.cut = cut_;
    double sums[kTinyOrder + 1] = {0};
    const FlushSubnormals flush;  // of q⁵
    const Acc inverse = Acc(row.inverse), tiny = Acc(row.cut.tiny / row.inverse);
    const i64 words = tail_sums(row.e, inverse, tiny, c_, sums, marks_.data());
    size_t count = 0;
    for_each_mark(marks_.data(), words, [&](i64 j) { standing_out_[count++] = j; });
    // into both lists, of which one keeps it: nobody foretells which
    row.middling.resize(count);
    row.middling_q.resize(count);
    row.head.resize(count);
    row.head_mass.resize(count);
    size_t middling = 0, heads = 0;
    for (size_t k = 0; k < count; ++k) {
      const i64 j = standing_out_[k];
      const double q = row.share(j);
      row.middling[middling] = row.head[heads] = j;
      row.middling_q[middling] = row.head_mass[heads] = q;
      const bool large = q > row.cut.middling;
      middling += !large;
      heads += large;
    }
    row.middling.resize(middling);
    row.middling_q.resize(middling);
    row.head.resize(heads);
    row.head_mass.resize(heads);
    if (i64(heads) > std::max<i64>(64, c_ / kHeadShare)) return false;
    // Σ q^r of the middling, kLanes of them side by side
    Lanes power_sums[kOrder + 1] = {};
    row.middling_q.resize(middling + kLanes, 0.0);
    for (size_t k = 0; k < middling; k += kLanes) {
      Lanes q, power;
      std::memcpy(&q, &row.middling_q[k], sizeof(q));
      power = q;
      LPL_UNROLL
      for (int r = 1; r <= kOrder; ++r) {
        power_sums[r] += power;
        power *= q;
      }
    }
    row.middling_q.resize(middling);
    for (int r = 1; r <= kOrder; ++r)
      moments_[r][lane] = sum_lanes(power_sums[r]) + (r <= kTinyOrder ? sums[r] : 0);
    lift_[lane] = row.initial_lift;
    count_now_[lane] = count_[lane];
    if (masses_.size() < row.head.size()) masses_.resize(row.head.size(), Lanes{});
    for (size_t k = 0; k < masses_.size(); ++k)
      masses_[k][lane] = k < row.head.size() ? row.head_mass[k] : 0;
    return true;
  }

  void idle(int lane) {
    for (int r = 1; r <= kOrder; ++r) moments_[r][lane] = 0;
    moments_[1][lane] = 1;
    lift_[lane] = 0;
    count_now_[lane] = 0;
    for (Lanes& slot : masses_) slot[lane] = 0;
  }

  // All steps of all lanes; `last`: nobody tries again.
  void iterate(bool last) {
    // slots that rows before had, and none has now
    while (!masses_.empty() && !any(masses_.back())) masses_.pop_back();
    double most = 0;
    for (int lane = 0; lane < kLanes; ++lane) most = std::max(most, count_now_[lane]);
    if (call_.p.through) {
      path_.resize(i64(most));
      path_masses_.resize(i64(most) * i64(masses_.size()));
    }
    bool long_series = false;
    for (int r = kTinyOrder + 1; r <= kOrder; ++r) long_series |= any(moments_[r]);
    long_series ? iterate<kOrder>(most, last) : iterate<kTinyOrder>(most, last);
  }

  // Whether any lane, or any bit of a comparison's, is not 0.
  template <typename V>
  static bool any(const V& lanes) {
    const auto* first = &lanes[0];
    return std::any_of(first, first + sizeof(V) / sizeof(*first),
                       [](auto lane) { return lane != 0; });
  }

  // By `Order` terms of the series: those beyond stand for middling rivals alone.
  template <int Order>
  void iterate(double most, bool last) {
    for (int r = Order + 1; r <= kOrder; ++r) series_[r] = Lanes{};
    // a rival has at most all of Z, and of Z‖g‖
    const bool brief = call_.p.step_size <= kShort;
    if (!brief) {
      logs_.resize(masses_.size());
      for (size_t slot = 0; slot < masses_.size(); ++slot)
        for (int lane = 0; lane < kLanes; ++lane) logs_[slot][lane] = std::log(masses_[slot][lane]);
    }
    const double length = brief && !last ? block_length<Order>() : 0;
    miss_ = Lanes{};
    for (int pack = 0; pack < kLanes / kPack; ++pack) {
      if (!any(pack_of(count_now_, pack))) continue;
      if (length > 0)
        call_.p.normalize ? iterate_blocks<Order, true>(pack, most, length)
                          : iterate_blocks<Order, false>(pack, most, length);
      else if (call_.p.normalize)
        brief ? iterate<Order, true, true>(pack, most) : iterate<Order, true, false>(pack, most);
      else
        brief ? iterate<Order, false, true>(pack, most) : iterate<Order, false, false>(pack, most);
    }
  }

  // `Brief`: no exponent of a step is above kShort.
  template <int Order, bool Normalize, bool Brief>
  void iterate(int pack, double most) {
    const auto of = [pack](Lanes& lanes) -> Pack& { return pack_of(lanes, pack); };
    Lanes *const logs = logs_.data(), *const masses = masses_.data();
    const size_t count = masses_.size();
    const Pack none{}, highest = none + 700.0;
    Pack series[Order + 1], moments[Order + 1];
    for (int r = 1; r <= Order; ++r) series[r] = none + (r == 1 ? 1.0 : 0.0);
    for (int r = 1; r <= Order; ++r) moments[r] = of(moments_[r]);
    Pack lift = of(lift_), rest, own, dose{}, heads{}, head_squares{};
    for (size_t slot = 0; slot < count; ++slot) {
      const Pack mass = of(masses[slot]);
      heads += mass;
      if (Normalize) head_squares += mass * mass;
    }
    for (double k = 0;; ++k) {
      // what rivals and target weigh before step k, and the size of that; the series' last term is
      // the one that a step knows last
      Pack tail = moments[1];
      for (int r = 2; r <= Order; ++r) tail += series[r] * moments[r];
      rest = heads + tail;
      own = exp_of<kPrecise>(lift);
      if (k == most) break;
      const Pack z = rest + own;
      Pack a = of(step_) / z;
      if (Normalize) {
        Pack square[Order + 1], squares = head_squares;
        series_square<Order>(series, square);
        for (int s = 2; s <= Order; ++s) squares += square[s] * moments[s];
        const Pack length = sqrt_of(squares + rest * rest);  // ‖g‖·Z
        a = length < kNormFloor * z ? none : of(step_) / length;
      }
      a = of(count_now_) > k ? a : none;
      dose += a < none ? -a : a;
      if (call_.p.through) remember(pack, i64(k), a, own, rest, series, Order);

      lift -= a * rest;
      lift = lift > highest ? highest : lift;
      series_step<Order>(series, a);
      heads = head_squares = none;
      for (size_t slot = 0; slot < count; ++slot) {
        const Pack before = of(masses[slot]), change = a * before;
        Pack mass;
        if (Brief) {
          mass = before * short_exp_of<kPrecise>(change);
        } else {
          of(logs[slot]) += change;
          mass = exp_of<true>(of(logs[slot]));
        }
        of(masses[slot]) = mass;
        heads += mass;
        if (Normalize) head_squares += mass * mass;
      }
    }
    for (int r = 1; r <= Order; ++r) of(series_[r]) = series[r];
    of(lift_) = lift;
    of(rest_) = rest;
    of(own_) = own;
    of(dose_) = dose;
  }

  // How many steps a block may have, for all that collect() has put into lanes; 0 if they are too
  // few, or too long, for blocks to be of use. What a block misses is measured, too: this is a
  // guess, by equal steps.
  template <int Order>
  double block_length() {
    if (kPrecise || call_.p.through) return 0;
    using Tail = ShortSteps<Order>;
    double length = kMostShort;
    const double room = kBlockShare / 2 * tolerance();
    for (int lane = 0; lane < kLanes; ++lane) {
      const double count = count_now_[lane], dose = expected_dose_[lane];
      if (count == 0) continue;
      const Thresholds& cut = rows_[lane].cut;
      const double most = Order == kTinyOrder ? cut.tiny : cut.middling;
      reach_[lane] = step_[lane] > 0 ? most / (1 - dose * most) : most;
      const double weight = (1 + dose) * reach_[lane] / most * count;
      const double each = dose * reach_[lane] / count, square = each * each;
      if (!(weight * square * square / factorial(kShortTerms) <= room)) return 0;
      if (Tail::kWhole) continue;
      const double steps = std::pow(room / (weight * square * square * square), 1.0 / 5);
      static_assert(Tail::kWhole || Tail::kInner == 6, "the powers above");
      length = std::min(length, std::floor(steps));
    }
    return length < kLeastShort ? 0 : length;
  }

  // A bound of what the blocks of a row have missed, relative, as series_error: at most a tenth
  // more than the powers of dE, which grows with the rivals where they are raised, and changes Z in
  // all later steps.
  double missed(int lane) const {
    const double growth = step_[lane] > 0 ? 1 + dose_[lane] * reach_[lane] : 1;
    return 1.1 * (1 + dose_[lane]) * growth * miss_[lane];
  }

  // All steps of a pack in blocks of `length`.
  template <int Order, bool Normalize>
  void iterate_blocks(int pack, double most, double length) {
    const auto of = [pack](Lanes& lanes) -> Pack& { return pack_of(lanes, pack); };
    Lanes* const masses = masses_.data();
    const size_t count = masses_.size();
    const Pack none{}, highest = none + 700.0, step = of(step_), counts = of(count_now_);
    const Pack reach = of(reach_);
    Pack moments[Order + 1];
    for (int r = 1; r <= Order; ++r) moments[r] = of(moments_[r]);
    ShortSteps<Order> tail(moments);
    Pack lift = of(lift_), dose{}, miss{}, heads{}, head_squares{}, own;
    for (size_t slot = 0; slot < count; ++slot) {
      const Pack mass = of(masses[slot]);
      heads += mass;
      if (Normalize) head_squares += mass * mass;
    }
    for (double k = 0; k < most;) {
      const Pack before = dose;
      Pack largest{}, top{};
      for (size_t slot = 0; slot < count; ++slot) {
        const Pack mass = of(masses[slot]);
        top = mass > top ? mass : top;
      }
      lift = lift > highest ? highest : lift;
      own = exp_of<kPrecise>(lift);
      tail.begin_block();
      const double end = std::min(most, k + length), steps = end - k;
      const auto run = [&](auto grow) __attribute__((always_inline)) {
        for (; k < end; ++k) {
          const Pack rest = heads + tail.mass(), z = rest + own;
          Pack a = step / z;
          if (Normalize) {
            const Pack length = sqrt_of(head_squares + tail.squares() + rest * rest);  // ‖g‖·Z
            a = length < kNormFloor * z ? none : step / length;
          }
          a = counts > k ? a : none;
          const Pack size = a < none ? -a : a, fall = a * rest;
          dose += size;
          largest = size > largest ? size : largest;
          lift -= fall;
          own *= soon_exp_of(-fall);
          tail.step(a);
          heads = head_squares = none;
          for (size_t slot = 0; slot < count; ++slot) {
            const Pack mass = of(masses[slot]), grown = mass * grow(a * mass);
            of(masses[slot]) = grown;
            heads += grown;
            if (Normalize) head_squares += grown * grown;
          }
        }
      };
      // a rival's step, its share of all that moves times the size, grows by itself at most
      if (any(top * call_.p.step_size > kTinyStep * (heads + tail.mass())))
        run([](Pack x) { return soon_exp_of(x); });
      else
        run([](Pack x) { return exp_near_zero<4>(x); });
      tail.end_block();
      const Pack wide = (dose - before) * reach, one = largest * reach;
      if (!tail.kWhole) miss += wide * wide * wide * (wide * wide * wide);
      miss += steps / factorial(kShortTerms) * (one * one * (one * one));
    }
    lift = lift > highest ? highest : lift;
    for (int r = 1; r <= Order; ++r) of(series_[r]) = tail.series()[r];
    of(lift_) = lift;
    of(rest_) = heads + tail.mass();
    of(own_) = exp_of<kPrecise>(lift);
    of(dose_) = dose;
    of(miss_) = miss;
  }

  void remember(int pack, i64 k, Pack a, Pack own, Pack rest, const Pack* series, int order) {
    const auto of = [pack](Lanes& lanes) -> Pack& { return pack_of(lanes, pack); };
    Step& step = path_[k];
    of(step.a) = a;
    of(step.own) = own;
    of(step.rest) = rest;
    for (int r = 1; r <= kOrder; ++r) of(step.series[r]) = r <= order ? series[r] : Pack{};
    Lanes* const masses = path_masses_.data() + k * i64(masses_.size());
    for (size_t slot = 0; slot < masses_.size(); ++slot) of(masses[slot]) = of(masses_[slot]);
  }

  void finish(int lane) {
    Solved<Acc>& row = rows_[lane];
    for (int r = 1; r <= kOrder; ++r) row.series[r] = series_[r][lane];
    row.lift = lift_[lane];
    row.own = own_[lane];
    row.rest = rest_[lane];
    for (size_t k = 0; k < row.head.size(); ++k) row.head_mass[k] = masses_[k][lane];
  }

  // Before a step: its size and what it was made from.
  struct Step {
    Lanes a, own, rest, series[kOrder + 1];
  };

  const Call<T>& call_;
  const i64 c_;
  int lanes_;
  State states_[kLanes];
  Solved<Acc> rows_[kLanes];
  // of a row: classes that stand out, as marks and listed
  Vector<i64> standing_out_;
  Vector<Marks> marks_;
  // of heads, by slot; their logarithms where steps are not brief
  Vector<Lanes> masses_, logs_;
  Lanes moments_[kOrder + 1], series_[kOrder + 1];
  Vector<Step> path_;
  Vector<Lanes> path_masses_;  // (steps, masses_.size())
  Vector<double> turned_;
  Thresholds cut_;  // of the last dose that was asked for
  double cut_dose_ = -1;
  Lanes lift_, own_, rest_, step_, count_, count_now_, dose_, expected_dose_;
  Lanes reach_{}, miss_{};  // the largest of the series' rivals; what blocks of steps have missed
};

}  // namespace
}  // namespace lpl
