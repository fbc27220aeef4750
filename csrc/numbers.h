// The numbers of a row that pass between Python and the kernels, each a list X(name) in the order
// of the class that says what they are: lpl_fused/algebra/terms.py, lpl_fused/algebra/parts.py.
#pragma once

namespace lpl {

// What a row's gradient is made of; (N, …) Acc.
#define LPL_TERMS(X) \
  X(factor)          \
  X(length)          \
  X(bend)            \
  X(top)             \
  X(shift)           \
  X(log_total)       \
  X(strength)        \
  X(uniform)         \
  X(part)            \
  X(other_part)      \
  X(along)           \
  X(raises)          \
  X(each)

// What is summed over a row's columns; (N, …) double.
#define LPL_SIZE(X) \
  X(peak)           \
  X(total)          \
  X(top)            \
  X(ties)

#define LPL_MASS(X) \
  X(shift)          \
  X(rest)           \
  X(own)            \
  X(other)          \
  X(mass)           \
  X(pull)           \
  X(along)          \
  X(along_own)      \
  X(along_other)    \
  X(along_spread)

#define LPL_DETAIL(X) \
  X(value)            \
  X(slope)            \
  X(along)            \
  X(penalty)          \
  X(push)

#define LPL_STATISTICS(X) \
  X(shift)                \
  X(total)                \
  X(heat)                 \
  X(top)                  \
  X(place)

// Beside the powers and the heads.
#define LPL_RIVALS(X) \
  X(shift)            \
  X(rest)             \
  X(own)              \
  X(largest)          \
  X(listed)

#define LPL_NUMBER(name) Number name;

template <typename Number>
struct Terms {
  LPL_TERMS(LPL_NUMBER)
};
template <typename Number>
struct Size {
  LPL_SIZE(LPL_NUMBER)
};
template <typename Number>
struct Mass {
  LPL_MASS(LPL_NUMBER)
};
template <typename Number>
struct Detail {
  LPL_DETAIL(LPL_NUMBER)
};
template <typename Number>
struct Rivals {
  LPL_RIVALS(LPL_NUMBER)
};
template <typename Number>
struct Statistics {
  LPL_STATISTICS(LPL_NUMBER)
};

#undef LPL_NUMBER

// e^x is 0 in every dtype below it, and products with it are numbers: of Statistics::heat.
constexpr int kNothing = -10000;

}  // namespace lpl
