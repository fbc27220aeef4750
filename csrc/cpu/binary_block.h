// The losses of a block of multi-label logits, and their gradient: the vectorised part.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../binary.h"
#include "../lpl_math.h"
#include "simd.h"

namespace lpl {
namespace {

// log(1 + e)/e for 0 ≤ e ≤ 1, fitted to the last place.
inline float log1p_over(float e) {
  return polynomial(e, 1.0f, -0.499996479755f, 0.333213228809f, -0.248571658588f, 0.191536637711f,
                    -0.137538213006f, 0.079204757928f, -0.0300659268283f, 0.00536485719205f);
}
inline double log1p_over(double e) {
  return polynomial(
      e, 1.0, -0.49999999999997, 0.3333333333283826, -0.24999999971098116, 0.19999999135199614,
      -0.16666651022973056, 0.14285526319460104, -0.12498406349765519, 0.11101171519411274,
      -0.09953001779511284, 0.08918576858089669, -0.0783447778923972, 0.0653490909015031,
      -0.04959137127219399, 0.03260698186301152, -0.017632766950514835, 0.0073973235641422936,
      -0.002231010637990402, 0.00042697049012027817, -3.873992227491524e-05);
}

// What the logits of a row share: a weight w, and that of their re-balanced weights,
// α + σ(slope·v_j − shift).
template <typename Acc>
struct RowFactors {
  Acc weight, shift, slope;
};

// A label that is not 0: 1, or nan where it is missing; and its logit.
template <typename Acc>
struct Entry {
  i64 row, place;
  Acc label, u;
};

// Rows × classes and all that their losses depend on; tables stand at the block's first class.
// Labels are 0 and 1 (of positives), or nan where there is none.
template <typename A>
struct BlockOf {
  using Acc = A;

  i64 i, lo;         // first row and class
  const Acc* u;      // logits; not those of entries
  i64 pitch;         // from a row of u to the next
  const Acc* label;  // rows × size; null: 0 but for the entries
  const Entry<Acc>*front, *end;
  const Acc *weight[2], *scale[2], *offset[2];  // as BinaryProblem
  const Acc* stretch[2];                        // dz/du: the scale, unless u has it already
  const Acc* balance;                           // v; null where it is the same for all
  const RowFactors<Acc>* row;                   // of each row
  Acc alpha, limit;  // of re-balanced weights: added to σ(x); where |x| ends
  Acc pull;          // the upstream gradient
  Phi phi;
  Acc parameter, negative, clip;  // of φ; the latter two of negatives under an asymmetric one
  bool detached;
  i64 grad_pitch;  // from a row of the gradient to the next
  Acc* loss;       // of each logit
  i64 loss_pitch;
  int32_t rows, size;
};
template <typename T>
struct Block : BlockOf<typename AccumulateOf<T>::type> {
  T* grad;
};

constexpr int kLog = 0, kSquare = 1, kFocal = 2, kOther = 3;  // forms of φ

inline int form_of(Phi phi, double parameter) {
  if (phi == Phi::log) return kLog;
  if (phi != Phi::focal) return kOther;
  return parameter == 2 ? kSquare : kFocal;
}

// What logits have beside their labels: nothing, an offset, all tables, re-balanced weights too.
constexpr int kBare = 0, kMoved = 1, kTables = 2, kBalanced = 3;

// No product with it is infinite, and e^(−this) is 0.
template <typename Acc>
constexpr Acc kBeyond = Acc(1e30);

// x, or 0 if it is negative; nan stays.
inline float positive_part(float x) {
  return bit_cast<float>(std::max(bit_cast<int32_t>(x), int32_t(0)));
}
inline double positive_part(double x) {
  return x < 0 ? 0 : x;
}

// Losses and gradient of a block, whose labels are `Mixed` or 0 but for the entries; returns the
// sum of losses.
template <bool Mixed, int Parts, int Form, typename T, typename Acc = typename Block<T>::Acc>
__attribute__((noinline)) double losses_of(const Block<T>& b) {
  const Acc *w0 = b.weight[0], *w1 = b.weight[1], *a0 = b.scale[0], *a1 = b.scale[1];
  const Acc *b0 = b.offset[0], *b1 = b.offset[1], *d0 = b.stretch[0], *d1 = b.stretch[1];
  const Acc *balance = b.balance, alpha = b.alpha, pull = b.pull, gamma = b.parameter;
  const Acc negative = b.negative, clip = b.clip;
  const bool detached = b.detached;
  const Phi phi = b.phi;
  const int32_t size = b.size;
  // where σ is nothing beside what it is added to, or 1; not a constant, for which there would be
  // a branch
  const Acc limit = b.limit;
  // Loss and gradient of a logit u at place j of a row; `Sided`: its label is y, else 0.
  const auto one = [=](auto sided, Acc u, Acc y, int32_t j, const RowFactors<Acc>& row, T& grad,
                       Acc& loss) {
    constexpr bool Sided = decltype(sided)::value;
    const bool positive = Sided && y > Acc(0.5);
    const auto side = [&](const Acc* table0, const Acc* table1) {
      const Acc zero = table0[j], one = Sided ? table1[j] : zero;  // both: no branch
      return positive ? one : zero;
    };
    if (Parts >= kTables) u *= side(a0, a1);
    if (Parts >= kMoved) u += side(b0, b1);
    const Acc sign = positive ? Acc(-1) : Acc(1), s = sign * u;
    const Acc e = exp_of(-std::abs(s));
    Acc inverse, balanced = 1;
    if (Parts == kBalanced) {
      const Acc x = row.shift - row.slope * balance[j], most = x > limit ? limit : x;
      const Acc f = rough_exp_of(most < -limit ? -limit : most);
      const Acc both = 1 / ((1 + e) * (1 + f));  // a division is dear
      inverse = both * (1 + f);
      balanced = alpha + both * (1 + e);  // α + σ(−x)
    } else {
      inverse = 1 / (1 + e);
    }
    const Acc near = e * inverse, low = e * log1p_over(e);
    const Acc probability = s < 0 ? near : inverse;  // σ(s) = 1 − p
    Acc ell = positive_part(s) + low;
    Acc slope = probability;  // dφ/ds
    if (Form == kSquare || Form == kFocal) {
      const Acc rest = s < 0 ? inverse : near;  // p
      const Acc factor = Form == kSquare ? probability * probability
                                         : exp_of(gamma * ((s < 0 ? s : Acc(0)) - low));
      // ℓ·p vanishes where ℓ is beyond all numbers
      slope = factor * (probability + gamma * (std::min(ell, kBeyond<Acc>) * rest));
      ell *= factor;
    }
    if (Form == kOther && phi == Phi::asymmetric) {
      const Acc rest = s < 0 ? inverse : near;  // σ(−s)
      const PhiValue<Acc> value = asymmetric_of(ell, probability, rest, positive ? gamma : negative,
                                                positive ? Acc(0) : clip, detached);
      slope = value.slope;
      ell = value.value;
    } else if (Form == kOther) {
      const PhiValue<Acc> value = phi_of(ell, phi, gamma);
      slope *= value.slope;
      ell = value.value;
    }
    slope *= Sided ? pull * sign : pull;
    if (Parts >= kTables) {
      const Acc weight = side(w0, w1) * (row.weight * balanced);
      ell *= weight;
      slope *= weight * side(d0, d1);
      if (Sided) {
        ell = y == y ? ell : Acc(0);
        slope = y == y ? slope : Acc(0);
      }
    }
    grad = store<T>(slope);
    loss = ell;
  };
  double total = 0;
  for (int32_t r = 0; r < b.rows; ++r) {
    const Acc *u = b.u + r * b.pitch, *label = b.label + (Mixed ? r * size : 0);
    const RowFactors<Acc> row = b.row[r];
    T* grad = b.grad + r * b.grad_pitch;
    Acc* loss = b.loss + r * b.loss_pitch;
    const std::integral_constant<bool, Mixed> sided{};
    if (Form == kOther) {
      for (int32_t j = 0; j < size; ++j)
        one(sided, u[j], Mixed ? label[j] : Acc(0), j, row, grad[j], loss[j]);
    } else {
      LPL_SIMD
      for (int32_t j = 0; j < size; ++j)
        one(sided, u[j], Mixed ? label[j] : Acc(0), j, row, grad[j], loss[j]);
    }
    total += sum_of(loss, size);
  }
  if (Mixed || b.front == b.end) return total;
  double wrong = 0, right = 0;
  for (const Entry<Acc>* entry = b.front; entry < b.end; ++entry) {
    const i64 r = entry->row - b.i, j = entry->place - b.lo;
    Acc& loss = b.loss[r * b.loss_pitch + j];
    wrong += loss;
    one(std::true_type{}, entry->u, entry->label, int32_t(j), b.row[r],
        b.grad[r * b.grad_pitch + j], loss);
    right += loss;
  }
  if (std::abs(wrong) < total / 2) return total - wrong + right;
  total = 0;  // what is left would have lost its digits
  for (int32_t r = 0; r < b.rows; ++r) total += sum_of(b.loss + r * b.loss_pitch, b.size);
  return total;
}

template <bool Mixed, int Parts, typename T>
double losses_of_form(const Block<T>& b) {
  switch (form_of(b.phi, double(b.parameter))) {
    case kLog: return losses_of<Mixed, Parts, kLog>(b);
    case kSquare: return losses_of<Mixed, Parts, kSquare>(b);
    case kFocal: return losses_of<Mixed, Parts, kFocal>(b);
    default: return losses_of<Mixed, Parts, kOther>(b);
  }
}

template <bool Mixed, typename T>
double losses_of_parts(const Block<T>& b, int parts) {
  switch (parts) {
    case kBare: return losses_of<Mixed, kBare, kLog>(b);
    case kMoved: return losses_of<Mixed, kMoved, kLog>(b);
    default:
      return b.balance ? losses_of_form<Mixed, kBalanced>(b) : losses_of_form<Mixed, kTables>(b);
  }
}

template <typename T>
double losses_of(const Block<T>& b, int parts) {
  return b.label ? losses_of_parts<true>(b, parts) : losses_of_parts<false>(b, parts);
}

}  // namespace
}  // namespace lpl
