// The gradient of rows under a learned perturbation of their own, from what their steps have left:
// every column by itself, so that blocks that share a row need nothing of each other.
#pragma once

#include "learned_row.h"
#include "rows.h"

namespace lpl {

// dL/dz of columns becomes dL/du.
template <typename T, Set kSet>
class Through {
 public:
  using Acc = typename AccumulateOf<T>::type;

  LPL_DEVICE Through(const Algebra<T, kSet>& algebra, const Row<Acc>& row, const Terms<Acc>& terms)
      : a_(algebra), row_(row), terms_(terms), pull_(algebra.p, terms.top) {}

  template <int kSize, typename Here, typename Kind>
  LPL_DEVICE void piece(const Here& pieces, int first, const Acc* u, Kind kind, Acc* x) const {
    if (kSet == kBare) return;
    const auto tables = a_.template tables<kSize>(first, kind);
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (Kind::value || pieces.inside(first + v))
        x[v] = a_.to_input(a_.to_offset(x[v]), u[v], tables.scale[v], row_);
    if (a_.normed()) through_norm<kSize>(a_, terms_.along, u, row_, x);
    if (a_.penalised()) add_penalty<kSize, Kind>(a_.p, pull_, pieces, first, u, terms_, x);
  }

 private:
  const Algebra<T, kSet>& a_;
  const Row<Acc>& row_;
  const Terms<Acc>& terms_;
  const Pull<Acc> pull_;
};

template <typename T, Set kSet>
struct LearnedGradientBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  // Rows that share a block meet at its barrier, those that have nothing to do here and places
  // beyond the last row, too.
  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 place) {
    const bool exists = place < call.p.n;
    const i64 i = exists ? place : 0;
    const LearnedRow<Acc>& from = learned_row<Acc>(call, i);
    LPL_USUALLY(exists && from.heads == 0 && team.place() != 0);
    LPL_USUALLY(from.standing == Standing::settled && from.order == kShortOrder<Acc>);
    const bool dead = exists && from.standing == Standing::dead;
    const bool settled = exists && from.standing == Standing::settled;
    const Algebra<T, kSet> algebra(call);
    const Pieces<Team, T, kBytes, false> pieces(team, algebra.logits(i), algebra.c);
    T* const out = static_cast<T*>(call.out.grad) + i * call.p.c;
    const auto grad = pieces.target(out);
    Row<Acc> row = algebra.row(i, nullptr);
    const Terms<Acc> terms = scaled(from.terms, upstream_of<Acc>(call, i));
    use_norm(algebra, terms, row);
    const Through<T, kSet> through(algebra, row, terms);
    // on their way while the series is at work
    const int32_t* columns = head_columns_of(call, i);
    const Acc* masses = head_numbers_of<Acc>(call, i);
    const bool has_head = settled && team.place() < from.heads;
    const int column = has_head ? columns[team.place()] : 0;
    const Acc mass = has_head ? masses[team.place()] : Acc(0);
    if (dead) {
      const Acc nothing[kSize] = {};
      pieces.visit([&](int first, const Acc*, auto kind) { grad.write(first, nothing, kind); });
    } else if (settled && from.order == kShortOrder<Acc>) {
      write<kShortOrder<Acc>>(algebra, row, from, terms.strength, through, pieces, grad);
    } else if (settled) {
      write<kLongOrder<Acc>>(algebra, row, from, terms.strength, through, pieces, grad);
    }
    team.sync_block();
    if (!settled) return;
    // heads and the label in the place of what the series has made of them
    const auto put = [&](int j, Acc dz) {
      if (!pieces.has(j)) return;
      if (kSet != kBare) {
        const Acc u = load(algebra.logits(i)[j]);
        through.template piece<1>(pieces, j, &u, Whole(), &dz);
      }
      store(out[j], dz);
    };
    if (has_head) put(column, mass * terms.strength);
    for (int k = team.place() + team.places(); k < from.heads; k += team.places())
      put(columns[k], masses[k] * terms.strength);
    if (team.place() == 0) put(row.label, terms.part);
  }

 private:
  // as TeamRow: what does much with each column is compiled for fewer of them
  static constexpr int kBytes = (kSet & kRest) == 0 ? 16 : sizeof(T) < 4 ? 4 : sizeof(T);
  static constexpr int kSize = kBytes / sizeof(T);

  template <int kOrder, typename Here, typename Target>
  LPL_DEVICE static void write(const Algebra<T, kSet>& algebra, const Row<Acc>& row,
                               const LearnedRow<Acc>& from, Acc strength,
                               const Through<T, kSet>& through, const Here& pieces,
                               const Target& grad) {
    const Acc level = from.level;
    Acc series[kOrder];
#pragma unroll
    for (int r = 0; r < kOrder; ++r) series[r] = from.series[r] * strength;
    pieces.visit([&](int first, const Acc* u, auto kind) {
      Acc x[kSize];
      algebra.template perturb<kSize>(first, u, row, kind, x);
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        const Acc e = Scale<Acc>::exp(Scale<Acc>::exponent(x[v], level));
        Acc sum = series[kOrder - 1];
#pragma unroll
        for (int r = kOrder - 2; r >= 0; --r) sum = std::fma(sum, e, series[r]);
        x[v] = sum * e;
      }
      through.template piece<kSize>(pieces, first, u, kind, x);
      grad.write(first, x, kind);
    });
  }
};

template <typename T>
struct LearnedDeltaBody {
  using Shared = Nothing;
  using Acc = typename AccumulateOf<T>::type;

  // δ of row i, into out.delta; of a row whose label is out of range, or that has no softmax, there
  // is none.
  template <typename Team>
  LPL_DEVICE static void run(Team& team, const Call& call, i64 i) {
    const LearnedRow<Acc>& from = learned_row<Acc>(call, i);
    if (from.standing == Standing::grouped || from.standing == Standing::left) return;
    const Algebra<T, kAll> algebra(call);
    Row<Acc> row = algebra.row(i, nullptr);
    Acc* delta = static_cast<Acc*>(call.out.delta) + i * call.p.c;
    TeamRow<Team, T, kAll, false> here(team, call, algebra, row);
    if (call.scratch.outcome[i] != kSolved) {
      const bool lost = from.standing == Standing::settled && from.own != from.own;
      const Acc none = row.outside || lost ? Acc(NAN) : Acc(0);
      here.fill(static_cast<Acc*>(call.out.delta), [&](int, Acc) { return none; });
      return;
    }
    here.use(from.terms);
    here.fill(static_cast<Acc*>(call.out.delta), [&](int, Acc z) {
      const Acc e = Scale<Acc>::exp(Scale<Acc>::exponent(z, from.level));
      Acc gain = from.series[from.order - 1];
      for (int r = from.order - 2; r > 0; --r) gain = gain * e + from.series[r];
      return std::log1p(gain * e);
    });
    team.sync();
    const int32_t* columns = head_columns_of(call, i);
    const Acc* changes = head_numbers_of<Acc>(call, i);
    for (int k = team.rank(); k < from.heads; k += team.size()) delta[columns[k]] = changes[k];
    if (team.rank() == 0) delta[row.label] = from.own;
  }
};

}  // namespace lpl
