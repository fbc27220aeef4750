// Logits with their labels, in pieces of 16 bytes of logits, each the work of one thread. As in
// pieces.h they lie where the memory's own lines of that size lie; labels and gradients, which may
// begin elsewhere, are taken together where they lie as the logits do, else one by one.
#pragma once

#include "binary_labels.h"
#include "lines.h"

namespace lpl {

// Elements of U beside so many logits, which one or a few accesses load.
template <typename U, int kSize>
struct Beside16 {
  static constexpr int kBytes = int(sizeof(U)) * kSize;
  static constexpr int kLine = kBytes < 16 ? kBytes : 16;
  struct alignas(kLine) Line {
    U value[kLine / sizeof(U)];
  };

  Line line[kBytes / kLine];

  LPL_DEVICE const U& operator[](int v) const {
    constexpr int kEach = kLine / int(sizeof(U));
    return line[v / kEach].value[v % kEach];
  }
  LPL_DEVICE U& operator[](int v) {
    constexpr int kEach = kLine / int(sizeof(U));
    return line[v / kEach].value[v % kEach];
  }

  LPL_DEVICE static bool lies(const U* from) {
    return reinterpret_cast<uintptr_t>(from) % kLine == 0;
  }
  LPL_DEVICE void take(const U* from) {
#pragma unroll
    for (int k = 0; k < kBytes / kLine; ++k)
      line[k] = read_once(reinterpret_cast<const Line*>(from)[k]);
  }
  LPL_DEVICE void put(U* to) const {
#pragma unroll
    for (int k = 0; k < kBytes / kLine; ++k) write_once(reinterpret_cast<Line*>(to) + k, line[k]);
  }
};

// Where a number of elements begins in memory's lines: element v of piece k is number k·kSize −
// phase + v of them.
template <typename T>
struct Lined {
  static constexpr int kSize = 16 / sizeof(T);

  int phase;

  LPL_DEVICE explicit Lined(const T* from)
      : phase(int(reinterpret_cast<uintptr_t>(from) % 16 / sizeof(T))) {}
  LPL_DEVICE i64 first(i64 k) const { return k * kSize - phase; }
};

// Calls f(u, y) with a span of logits and labels, which gives dL/du, to be stored where that is
// wanted.
template <typename T, typename Label>
class Span {
 public:
  using Acc = typename AccumulateOf<T>::type;
  static constexpr int kSize = Lined<T>::kSize;

  LPL_DEVICE Span(const T* u, const Label* y, T* grad, int count)
      : u_(u), y_(y), grad_(grad), count_(count), lined_(u) {}

  template <typename Team, typename F>
  LPL_DEVICE void visit(const Team& team, F& f) const {
    const int pieces = (lined_.phase + count_ + kSize - 1) / kSize;
    const int from = lined_.phase > 0, to = (lined_.phase + count_) / kSize;
    const int step = team.places();
    int k = from + team.place();
    if (Labels16::lies(y_ + lined_.first(from)) &&
        (!grad_ || Logits::lies(grad_ + lined_.first(from)))) {
      for (; k + (kBatch - 1) * step < to; k += kBatch * step) {
        Logits u[kBatch];
        Labels16 y[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          u[b].take(u_ + lined_.first(k + b * step));
          y[b].take(y_ + lined_.first(k + b * step));
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) show(int(lined_.first(k + b * step)), u[b], y[b], f);
      }
      for (; k < to; k += step) {
        Logits u;
        Labels16 y;
        u.take(u_ + lined_.first(k));
        y.take(y_ + lined_.first(k));
        show(int(lined_.first(k)), u, y, f);
      }
    } else {
      for (; k < to; k += step) each(int(lined_.first(k)), f);
    }
    // the ends
    if (from > 0 && team.place() == 0) each(int(lined_.first(0)), f);
    if (to >= from && to < pieces && team.place() == team.places() - 1)
      each(int(lined_.first(to)), f);
  }

 private:
  using Logits = Beside16<T, kSize>;
  using Labels16 = Beside16<Label, kSize>;
  static constexpr int kBatch = sizeof(Label) > sizeof(T) ? 2 : 4;  // on their way at once

  template <typename F>
  LPL_DEVICE void show(int first, const Logits& here, const Labels16& y, F& f) const {
    Acc u[kSize];
    load_all<kSize>(u, here.line[0].value);
#pragma unroll
    for (int v = 0; v < kSize; ++v) u[v] = f(u[v], y[v]);
    f.settle();
    if (!grad_) return;
    Logits grad;
    store_all<kSize>(grad.line[0].value, u);
    grad.put(grad_ + first);
  }

  // One by one.
  template <typename F>
  LPL_DEVICE void each(int first, F& f) const {
#pragma unroll 1
    for (int v = 0; v < kSize; ++v) {
      const int j = first + v;
      if (j < 0 || j >= count_) continue;
      const Acc du = f(load(u_[j]), y_[j]);
      if (grad_) store(grad_[j], du);
    }
    f.settle();
  }

  const T* u_;
  const Label* y_;
  T* grad_;
  const int count_;
  const Lined<T> lined_;
};

}  // namespace lpl
