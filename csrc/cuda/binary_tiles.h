// The losses of multi-label logits and their gradient: logits and labels read once, the gradient
// written once.
#pragma once

#include "binary_loss.h"
#include "binary_pieces.h"
#include "pieces.h"

namespace lpl {

// How logits are dealt to teams where nothing depends on their class: in spans, of rows or, where
// these follow one another, of memory.
struct Spans {
  static constexpr i64 kLongest = 16384, kShortest = 2048, kMany = 1024;

  i64 count, length, size;  // of all logits

  static LPL_HOST_DEVICE Spans of(const BinaryProblem& p) {
    const i64 size = p.n * p.c;
    if (p.row_stride != p.c || p.target_stride != p.c) return {p.n, p.c, size};
    i64 length = kLongest;
    while (length > kShortest && size < kMany * length) length /= 2;
    return {(size + length - 1) / length, length, size};
  }
};

// … and where it does: in tiles of columns and rows, whose tables stay on chip. Pieces of logits
// beside each other in a row are a power of two, so that threads find theirs quickly.
struct Tiles {
  static constexpr int kUnits = 4096, kLeastRows = 8, kMany = 1024;  // pieces of a tile

  int pieces, rows;  // of a tile
  i64 across, down;  // tiles

  // `size` logits of a piece, `most` pieces of which tables find room.
  static LPL_HOST_DEVICE Tiles of(const BinaryProblem& p, int size, int most) {
    const i64 wanted = (p.c + 2 * size - 2) / size;  // of a row that begins anywhere
    Tiles found{most, 0, 0, 0};
    while (found.pieces > 1 && found.pieces / 2 >= wanted) found.pieces /= 2;
    found.across = (wanted + found.pieces - 1) / found.pieces;
    found.rows = kUnits / found.pieces;
    while (found.rows > kLeastRows && (p.n + found.rows - 1) / found.rows * found.across < kMany)
      found.rows /= 2;
    found.down = (p.n + found.rows - 1) / found.rows;
    return found;
  }

  LPL_HOST_DEVICE i64 count() const { return across * down; }
};

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

// Whether a finished gradient has only to be multiplied by its factor, which a team has then done
// with one of `shares` shares of it.
template <typename T, typename Team>
LPL_DEVICE inline bool rescaled(Team& team, const BinaryCall& call, i64 share, i64 shares) {
  using Acc = typename AccumulateOf<T>::type;
  if (!call.scratch.factor) return false;
  const Acc factor = *static_cast<const Acc*>(call.scratch.factor);
  if (sizeof(T) == 2 && !keeps_digits(factor)) return false;
  const i64 size = call.p.n * call.p.c, line = 16 / sizeof(T);
  const i64 each = ((size + shares - 1) / shares + line - 1) / line * line, from = share * each;
  if (from < size)
    scale_row(team, static_cast<T*>(call.out.grad) + from,
              int(size - from < each ? size - from : each), factor);
  return true;
}

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

  static LPL_HOST_DEVICE i64 teams(const BinaryProblem& p) { return Spans::of(p).count; }

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64 t) {
    const BinaryProblem& p = call.p;
    const Spans spans = Spans::of(p);
    if (rescaled<T>(team, call, t, spans.count)) return;
    const bool flat = p.row_stride == p.c && p.target_stride == p.c;
    const i64 from = t * spans.length;
    const i64 count = flat && spans.size - from < spans.length ? spans.size - from : spans.length;
    const T* u = static_cast<const T*>(p.input) + t * (flat ? spans.length : p.row_stride);
    const Label* y =
        static_cast<const Label*>(p.target) + t * (flat ? spans.length : p.target_stride);
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

// A tile of logits whose sides have tables: the learned perturbation's δ, or everything there is.
template <typename T, typename Label, bool kAll>
class BinaryTile {
 public:
  using Acc = typename AccumulateOf<T>::type;
  static constexpr int kSize = Lined<T>::kSize;
  static constexpr int kPieces = kAll ? 64 : 128;  // of a tile at most
  static constexpr int kTables = kAll ? 7 : 2;
  enum Table { offset, scale = 2, weight = 4, balance = 6 };  // of a side, negatives first

  // What the columns of a piece have lies together, wherever in memory's lines its row begins: its
  // first is slot kSize − phase. A slot more, so that threads beside each other are of other banks.
  static constexpr int kPitch = 2 * kSize + 1;
  struct Shared {
    Acc of[kTables][kPieces * kPitch];
  };

  LPL_DEVICE BinaryTile(const BinaryCall& call, const Shared& shared)
      : call_(call), p_(call.p), shared_(shared), pull_(pull_of<Acc>(call)), loss_(pull_) {}

  // Puts the tables of the columns from lo − kSize on in their slots.
  template <typename Team>
  LPL_DEVICE static void stage(Team& team, const BinaryCall& call, i64 lo, int pieces,
                               Shared& shared) {
    const BinaryProblem& p = call.p;
    const auto put = [&](int table, const void* from, Acc off, const void* more) {
      for (int k = team.place(); k < pieces * 2 * kSize; k += team.places()) {
        const int piece = k / (2 * kSize), slot = k % (2 * kSize);
        const i64 j = lo + (piece - 1) * kSize + slot;
        Acc value = off;
        if (j >= 0 && j < p.c) {
          if (from) value = static_cast<const Acc*>(from)[j];
          if (more) value += static_cast<const Acc*>(more)[j];
        }
        shared.of[table][piece * kPitch + slot] = value;
      }
    };
    for (int side = 0; side < 2; ++side) {
      // (2, C): positives first
      const Acc* delta = static_cast<const Acc*>(call.scratch.delta);
      if (delta) delta += side ? 0 : p.c;
      put(offset + side, kAll ? p.offset(side) : nullptr, 0, delta);
      if (!kAll) continue;
      put(scale + side, p.scale(side), 1, nullptr);
      put(weight + side, p.weight(side), 1, nullptr);
    }
    if (kAll && p.inverse_count) put(balance, p.inverse_count, 0, nullptr);
  }

  // Loss and gradient of a piece of row i.
  LPL_DEVICE void piece(i64 i, i64 lo, int k) {
    const T* row = static_cast<const T*>(p_.input) + i * p_.row_stride;
    const Lined<T> lined(row);
    const i64 first = lo + lined.first(k);
    if (first >= p_.c || first + kSize <= 0) return;
    const int slot = k * kPitch + kSize - lined.phase;
    const bool whole = first >= 0 && first + kSize <= p_.c;
    Acc u[kSize], y[kSize];
    unsigned here = 0;  // which columns exist and have a label
    if (whole) {
      Beside16<T, kSize> line;
      line.take(row + first);
      load_all<kSize>(u, line.line[0].value);
    } else {
#pragma unroll
      for (int v = 0; v < kSize; ++v)
        u[v] = first + v >= 0 && first + v < p_.c ? load(row[first + v]) : Acc(0);
    }
    const i64 at = i * p_.target_stride + first;
    if constexpr (std::is_same<Label, Any>::value) {
      const Labels<Acc, Any> labels(p_);
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        bool there = first + v >= 0 && first + v < p_.c;
        y[v] = there ? labels.at(at + v, there) : Acc(0);
        here |= unsigned(there) << v;
      }
    } else {
      const Label* label = static_cast<const Label*>(p_.target) + at;
      here = whole ? (1u << kSize) - 1 : 0;
      if (whole && Beside16<Label, kSize>::lies(label)) {
        Beside16<Label, kSize> line;
        line.take(label);
#pragma unroll
        for (int v = 0; v < kSize; ++v) y[v] = number(line[v]);
      } else {
#pragma unroll
        for (int v = 0; v < kSize; ++v) {
          const bool there = first + v >= 0 && first + v < p_.c;
          y[v] = there ? number(label[v]) : Acc(0);
          here |= unsigned(there) << v;
        }
      }
    }
    Acc value[kAll ? kSize : 1];
    if constexpr (kAll)
      everything(i, slot, u, y, here, value);
    else
      moved(slot, u, y, here);
    put(i, first, whole, u, value);
  }

  LPL_DEVICE Acc sum() { return loss_.sum() + sum_; }

 private:
  LPL_DEVICE static Acc number(Bool y) { return Acc(y.bits & 1); }
  template <typename From>
  LPL_DEVICE static Acc number(From y) {
    return load(y);
  }

  // u becomes the gradient.
  LPL_DEVICE void moved(int slot, Acc* u, const Acc* y, unsigned here) {
    bool shared_labels = false;
    if (!std::is_same<Label, Bool>::value)
#pragma unroll
      for (int v = 0; v < kSize; ++v) shared_labels |= y[v] != 0 && y[v] != 1;
    if (shared_labels) return both_sides(slot, u, y, here);
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      const bool positive = y[v] != 0;
      const Acc z = u[v] + shared_.of[offset + positive][slot + v];
      if (here == (1u << kSize) - 1 || here >> v & 1)
        u[v] = loss_.hard(z, uint32_t(positive) << 31);
    }
    loss_.settle();
  }
  LPL_DEVICE void both_sides(int slot, Acc* u, const Acc* y, unsigned here) {
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      if (!(here >> v & 1)) continue;
      Acc slope = 0;
      side(u[v], y[v], 1, slot + v, sum_, slope);
      side(u[v], 1 - y[v], 0, slot + v, sum_, slope);
      u[v] = slope * pull_;
    }
  }

  // Adds what a side that has a share of a label adds to loss and dL/du.
  LPL_DEVICE void side(Acc u, Acc share, int positive, int slot, Acc& value, Acc& slope) const {
    if (share == 0) return;  // however infinite its loss
    Acc a = 1, weight_here = share;
    Acc z = u + shared_.of[offset + positive][slot];
    if constexpr (kAll) {
      a = shared_.of[scale + positive][slot];
      z = u * a + shared_.of[offset + positive][slot];
      weight_here *= shared_.of[weight + positive][slot];
    }
    const SideLoss<Acc> of =
        side_loss<T>(positive ? -z : z, kAll ? p_.phi : Phi::log, Acc(p_.phi_parameter));
    value += weight_here * of.value;
    slope += (positive ? -weight_here : weight_here) * a * of.slope;
  }

  LPL_DEVICE void everything(i64 i, int slot, Acc* u, const Acc* y, unsigned here, Acc* value) {
    Acc row_weight = 1, mass = 0;
    if (p_.sample_weight) row_weight = static_cast<const Acc*>(p_.sample_weight)[i];
    if (p_.inverse_count) mass = static_cast<const Acc*>(call_.scratch.masses)[i];
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      value[v] = 0;
      Acc slope = 0;
      if (here >> v & 1) {
        const bool positive = y[v] > Acc(0.5);
        side(u[v], positive ? y[v] : 1 - y[v], positive, slot + v, value[v], slope);
        if (y[v] != 0 && y[v] != 1)
          side(u[v], positive ? 1 - y[v] : y[v], !positive, slot + v, value[v], slope);
        Acc all = row_weight;
        if (p_.inverse_count) {
          const Acc ratio = mass > 0 ? shared_.of[balance][slot + v] / mass : Acc(INFINITY);
          all *= Acc(p_.alpha) + 1 / (1 + std::exp(Acc(p_.beta) * (Acc(p_.mu) - ratio)));
        }
        value[v] *= all;
        slope *= all;
      }
      sum_ += value[v];
      // where no label counts the norm is 0, and so is every gradient
      u[v] = slope == 0 ? Acc(0) : slope * pull_;
    }
  }

  LPL_DEVICE void put(i64 i, i64 first, bool whole, Acc* du, const Acc* value) const {
    const i64 at = i * p_.c + first;
    if constexpr (kAll) {
      if (call_.out.loss && p_.reduction == Reduction::none) {
        Acc* losses = static_cast<Acc*>(call_.out.loss) + at;
#pragma unroll
        for (int v = 0; v < kSize; ++v)
          if (whole || (first + v >= 0 && first + v < p_.c)) losses[v] = value[v];
      }
      if (call_.out.upstream_each) {
        const Acc* upstream = static_cast<const Acc*>(call_.out.upstream) + at;
#pragma unroll
        for (int v = 0; v < kSize; ++v)
          if (whole || (first + v >= 0 && first + v < p_.c)) du[v] *= upstream[v];
      }
    }
    if (!call_.out.grad) return;
    T* grad = static_cast<T*>(call_.out.grad) + at;
    if (whole && Beside16<T, kSize>::lies(grad)) {
      Beside16<T, kSize> line;
      store_all<kSize>(line.line[0].value, du);
      line.put(grad);
      return;
    }
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (whole || (first + v >= 0 && first + v < p_.c)) store(grad[v], du[v]);
  }

  const BinaryCall& call_;
  const BinaryProblem& p_;
  const Shared& shared_;
  const Acc pull_;
  PlainLoss<T> loss_;
  Acc sum_ = 0;
};

template <typename T, typename Label, bool kAll>
struct BinaryTileBody {
  using Tile = BinaryTile<T, Label, kAll>;
  using Shared = typename Tile::Shared;
  using Acc = typename Tile::Acc;

  static LPL_HOST_DEVICE Tiles tiles(const BinaryProblem& p) {
    return Tiles::of(p, Tile::kSize, Tile::kPieces);
  }
  static LPL_HOST_DEVICE i64 teams(const BinaryProblem& p) { return tiles(p).count(); }

  template <typename Team>
  LPL_DEVICE static void run(Team& team, const BinaryCall& call, i64 t) {
    const Tiles tiles = BinaryTileBody::tiles(call.p);
    if (rescaled<T>(team, call, t, tiles.count())) return;
    const i64 lo = t % tiles.across * tiles.pieces * Tile::kSize;
    const i64 begin = t / tiles.across * tiles.rows, rest = call.p.n - begin;
    Shared& shared = team.template shared<Shared>(0);
    Tile::stage(team, call, lo, tiles.pieces, shared);
    team.sync();
    Tile tile(call, shared);
    const int units = int(rest < tiles.rows ? rest : tiles.rows) * tiles.pieces;
    for (int q = team.place(); q < units; q += team.places())
      tile.piece(begin + q / tiles.pieces, lo, q % tiles.pieces);
    store_sum(team, call, t, tile.sum());
  }
};

}  // namespace lpl
