// The losses of a block of multi-label logits, and their gradient: the vectorised part.
#pragma once

#include "../binary.h"
#include "../lpl_math.h"
#include "simd.h"

namespace lpl {
namespace {

// first + x·(second + x·(third + …))
template <typename Acc>
inline Acc polynomial(Acc, Acc first) {
  return first;
}
template <typename Acc, typename... More>
inline Acc polynomial(Acc x, Acc first, More... more) {
  return first + x * polynomial(x, more...);
}

// log(1 + e)/e for 0 ≤ e ≤ 1, fitted to the last place.
inline float log1p_over(float e) {
  return polynomial(e, 1.0f, -0.499996479755f, 0.333213228809f, -0.248571658588f, 0.191536637711f,
                    -0.137538213006f, 0.079204757928f, -0.0300659268283f, 0.00536485719205f);
}
inline double log1p_over(double e) {
  return polynomial(e, 1.0, -0.4999999999999700216, 0.3333333333283825843, -0.2499999997109811686,
                    0.1999999913519961369, -0.1666665102297305651, 0.1428552631946010303,
                    -0.1249840634976551817, 0.1110117151941127404, -0.09953001779511283682,
                    0.08918576858089669416, -0.07834477789239720024, 0.065349090901503107,
                    -0.0495913712721939886, 0.03260698186301151791, -0.01763276695051483319,
                    0.007397323564142293466, -0.00223101063799040224, 0.0004269704901202781958,
                    -0.00003873992227491523996);
}

// What the logits of a row share: a weight w, and that of their re-balanced weights,
// α + σ(slope·v_j − shift).
template <typename Acc>
struct RowFactors {
  Acc weight, shift, slope;
};

// Rows × classes and all that their losses depend on. Labels are 0 and 1 (of positives), or nan
// where there is none; tables stand at the block's first class.
template <typename Acc>
struct BlockOf {
  const Acc* u;
  i64 pitch;         // from a row of u to the next
  const Acc* label;  // rows × size; null: all are 0
  const Acc *weight[2], *scale[2], *offset[2];  // as BinaryProblem
  const Acc* stretch[2];                        // dz/du: the scale, unless u has it already
  const Acc* balance;                           // v; null where it is the same for all
  const RowFactors<Acc>* row;                   // of each row
  Acc alpha;
  Acc pull;  // the upstream gradient
  Phi phi;
  Acc parameter;
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

// Loss and gradient of a block; `Mixed` ones have labels, of others all are 0.
template <bool Mixed, int Parts, int Form, typename T>
__attribute__((noinline)) void losses_of(const Block<T>& b) {
  using Acc = typename AccumulateOf<T>::type;
  const Acc *w0 = b.weight[0], *w1 = b.weight[1], *a0 = b.scale[0], *a1 = b.scale[1];
  const Acc *b0 = b.offset[0], *b1 = b.offset[1], *d0 = b.stretch[0], *d1 = b.stretch[1];
  const Acc *balance = b.balance, alpha = b.alpha, pull = b.pull, gamma = b.parameter;
  const Phi phi = b.phi;
  const int32_t size = b.size;
  for (int32_t r = 0; r < b.rows; ++r) {
    const Acc *u = b.u + r * b.pitch, *label = Mixed ? b.label + r * size : nullptr;
    const RowFactors<Acc> row = b.row[r];
    T* grad = b.grad + r * b.grad_pitch;
    Acc* loss = b.loss + r * b.loss_pitch;
    const auto one = [&](int32_t j) {
      const Acc y = Mixed ? label[j] : Acc(0);
      const bool positive = Mixed && y > Acc(0.5);
      const auto side = [&](const Acc* negative, const Acc* table) {
        const Acc zero = negative[j], one = Mixed ? table[j] : zero;  // both: no branch
        return positive ? one : zero;
      };
      Acc z = u[j];
      if (Parts >= kTables) z *= side(a0, a1);
      if (Parts >= kMoved) z += side(b0, b1);
      const Acc sign = positive ? Acc(-1) : Acc(1), s = sign * z;
      const Acc e = exp_of(-std::abs(s));
      const Acc inverse = 1 / (1 + e), near = e * inverse, low = e * log1p_over(e);
      const Acc probability = s > 0 ? inverse : near;  // σ(s) = 1 − p
      Acc ell = (s > 0 ? s : Acc(0)) + low;
      Acc slope = probability;  // dφ/ds
      if (Form == kSquare || Form == kFocal) {
        const Acc rest = s > 0 ? near : inverse;  // p
        const Acc factor = Form == kSquare ? probability * probability
                                           : exp_of(gamma * ((s < 0 ? s : Acc(0)) - low));
        slope = factor * (probability + gamma * ell * rest);
        ell *= factor;
      }
      if (Form == kOther) {
        const PhiValue<Acc> value = phi_of(ell, phi, gamma);
        slope *= value.slope;
        ell = value.value;
      }
      slope *= Mixed ? pull * sign : pull;
      if (Parts >= kTables) {
        Acc weight = side(w0, w1) * row.weight;
        if (Parts == kBalanced) {
          // σ(x) with e^−x capped, where σ is nothing beside what it is added to or 0 itself
          const Acc x = row.shift - row.slope * balance[j];
          weight *= alpha + 1 / (1 + exp_of(x < Acc(80) ? x : Acc(80)));
        }
        ell *= weight;
        slope *= weight * side(d0, d1);
        if (Mixed) {
          ell = y == y ? ell : Acc(0);
          slope = y == y ? slope : Acc(0);
        }
      }
      grad[j] = store<T>(slope);
      loss[j] = ell;
    };
    if (Form == kOther) {
      for (int32_t j = 0; j < size; ++j) one(j);
    } else {
      LPL_SIMD
      for (int32_t j = 0; j < size; ++j) one(j);
    }
  }
}

template <bool Mixed, int Parts, typename T>
void losses_of_form(const Block<T>& b) {
  switch (form_of(b.phi, double(b.parameter))) {
    case kLog: return losses_of<Mixed, Parts, kLog>(b);
    case kSquare: return losses_of<Mixed, Parts, kSquare>(b);
    case kFocal: return losses_of<Mixed, Parts, kFocal>(b);
    default: return losses_of<Mixed, Parts, kOther>(b);
  }
}

template <bool Mixed, typename T>
void losses_of_parts(const Block<T>& b, int parts) {
  switch (parts) {
    case kBare: return losses_of<Mixed, kBare, kLog>(b);
    case kMoved: return losses_of<Mixed, kMoved, kLog>(b);
    default: return b.balance ? losses_of_form<Mixed, kBalanced>(b)
                              : losses_of_form<Mixed, kTables>(b);
  }
}

template <typename T>
void losses_of(const Block<T>& b, int parts) {
  b.label ? losses_of_parts<true>(b, parts) : losses_of_parts<false>(b, parts);
}

}  // namespace
}  // namespace lpl
