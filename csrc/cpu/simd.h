// Loops that the compiler vectorises: exponentials, 16-bit conversions, row sums.
// Included by files that are compiled once per instruction set, so everything here is static.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "../loops.h"
#include "../row.h"

#define LPL_SIMD _Pragma("omp simd")

namespace lpl {
namespace {

using i64 = int64_t;

// std::vector whose code belongs to one instruction set: with an allocator of an unnamed namespace
// nothing of it is shared between objects, where the linker would keep any one of them. New
// elements are left uninitialised unless a value is given.
template <typename V>
struct Allocator : std::allocator<V> {
  template <typename U>
  struct rebind {
    using other = Allocator<U>;
  };
  template <typename U>
  void construct(U* place) noexcept {
    ::new (static_cast<void*>(place)) U;
  }
  template <typename U, typename... Arguments>
  void construct(U* place, Arguments&&... arguments) {
    ::new (static_cast<void*>(place)) U(std::forward<Arguments>(arguments)...);
  }
};
template <typename V>
using Vector = std::vector<V, Allocator<V>>;

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// first + x·(second + x·(third + …)), of numbers or of vectors of them.
template <typename V, typename C>
inline V polynomial(V, C first) {
  return V{} + first;
}
template <typename V, typename C, typename... More>
inline V polynomial(V x, C first, More... more) {
  return first + x * polynomial(x, more...);
}

// e^x = 2^n·e^r with |r| ≤ ln2/2; n + Bias stands in the low bits of `shifted`.
template <typename Acc, int Bias, typename V>
inline V split_power(V x, V& shifted) {
  if constexpr (sizeof(Acc) == 4) {
    shifted = x * 1.44269504088896341f + (12582912.0f + Bias);  // 1.5·2^23: rounds to integer
    const V n = shifted - (12582912.0f + Bias);
    return (x - n * 0.693359375f) + n * 2.12194440e-4f;
  } else {
    shifted = x * 1.4426950408889634074 + (6755399441055744.0 + Bias);  // 1.5·2^52
    const V n = shifted - (6755399441055744.0 + Bias);
    return (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  }
}

// e^r to 3e-9 of it: fitted, with the first terms held.
template <typename V>
inline V exp_near_zero(V r) {
  return polynomial(r, 1.0f, 1.0f, 0.49999994f, 0.16666521f, 0.04166839f, 0.008368745f,
                    0.001381454f);
}

constexpr double factorial(int n) {
  return n < 2 ? 1 : n * factorial(n - 1);
}

// e^r by Taylor's polynomial.
template <int Degree, int From = 0, typename V>
inline V exp_near_zero(V r) {
  constexpr double first = 1 / factorial(From);
  if constexpr (From == Degree) {
    return V{} + first;
  } else {
    return first + r * exp_near_zero<Degree, From + 1>(r);
  }
}

// e^x to about one unit in the last place for x ≤ 88; 0 below the smallest normal number. A product
// with 2^n, as a sum of exponents makes numbers of a nan that has bits at its end (a GPU's has).
inline float exp_of(float x) {
  float shifted;
  const float p = exp_near_zero(split_power<float, 127>(x, shifted));
  const float y = p * bit_cast<float>(bit_cast<uint32_t>(shifted) << 23);
  // bits, not a choice: that would become one in all that is made of y
  return bit_cast<float>(bit_cast<uint32_t>(y) & -uint32_t(!(x < -87.33654f)));
}

// The same for double, x ≤ 709.
inline double exp_of(double x) {
  double shifted;
  const double p = exp_near_zero<13>(split_power<double, 1023>(x, shifted));
  const double y = p * bit_cast<double>(bit_cast<uint64_t>(shifted) << 52);
  return x < -708.39 ? 0.0 : y;
}

// e^x to 1e-7 of it, in fewer operations, for −87 ≤ x ≤ 88.
inline float rough_exp_of(float x) {
  const float shifted = x * 1.44269504088896341f + 12583039.0f;  // as above
  const float r = x - (shifted - 12583039.0f) * 0.693147180559945f;
  const float p = polynomial(r, 1.0f, 1.0f, 0.4999923f, 0.16667116f, 0.04189033f, 0.008312501f);
  return p * bit_cast<float>(bit_cast<uint32_t>(shifted) << 23);
}
inline double rough_exp_of(double x) {
  return exp_of(x);
}

// e^x for |x| ≤ kShort, precise or to 4e-10 of it, by Taylor's polynomial: more than 2^n times that
// of a reduced exponent, for half of the instructions.
constexpr double kShort = 0.25;
template <bool Precise, typename V>
inline V short_exp_of(V x) {
  return exp_near_zero<Precise ? 13 : 7>(x);
}

// Doubles side by side, one per row that is solved.
constexpr int kLanes = 8;
typedef double Lanes __attribute__((vector_size(kLanes * sizeof(double))));
typedef uint64_t LaneBits __attribute__((vector_size(kLanes * sizeof(double))));

// As many of them as a register holds: what is wider passes every operation through memory.
#if defined(__AVX512F__)
constexpr int kPack = 8;
#elif defined(__AVX__)
constexpr int kPack = 4;
#else
constexpr int kPack = 2;
#endif
typedef double Pack __attribute__((vector_size(kPack * sizeof(double)), may_alias));
typedef uint64_t PackBits __attribute__((vector_size(kPack * sizeof(double))));

inline Pack& pack_of(Lanes& lanes, int k) {
  return reinterpret_cast<Pack*>(&lanes)[k];
}

// Precise as exp_of(double), or to the 1e-9 that rows of float logits need.
template <bool Precise, typename V>
inline V exp_of(V x) {
  using Bits = typename std::conditional<sizeof(V) == sizeof(LaneBits), LaneBits, PackBits>::type;
  V shifted;
  const V p = exp_near_zero<Precise ? 13 : 9>(split_power<double, 1023>(x, shifted));
  const V y = p * (V)((Bits)shifted << 52);
  return x < -708.39 ? V{} : y;
}

inline double sum_lanes(const Lanes& x) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

inline Pack sqrt_of(Pack x) {
  for (int lane = 0; lane < kPack; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
}

// log x to about one unit in the last place for normal x > 0, about −88 for smaller x; inf and nan
// stay. Inlined by force: a call would leave the loop scalar.
__attribute__((always_inline)) inline float log_of(float x) {
  // x = 2^n·m with m in [√½, √2)
  const uint32_t shifted = bit_cast<uint32_t>(x) - 0x3f3504f3u;
  const float n = float(int32_t(shifted) >> 23);
  const float f = bit_cast<float>((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f;
  const float low = p * f * square - n * 2.12194440e-4f - 0.5f * square;
  const float y = (f + low) + n * 0.693359375f;
  return x < 3.4e38f ? y : x;
}
inline double log_of(double x) {
  return std::log(x);
}

// tanh without cancellation at 0.
inline float tanh_of(float x) {
  const float square = x * x;
  const float series =
      x +
      x * square *
          (-1.0f / 3 + square * (2.0f / 15 + square * (-17.0f / 315 + square * (62.0f / 2835))));
  const float magnitude = x < 0 ? -x : x;
  const float decay = exp_of(-2.0f * magnitude);
  const float far = (1.0f - decay) / (1.0f + decay);
  return magnitude < 0.3f ? series : (x < 0 ? -far : far);
}
inline double tanh_of(double x) {
  return std::tanh(x);
}

// 1 − tanh² x, from e^(−2|x|): as 1 − tanh·tanh it would cancel.
template <typename Acc>
inline Acc cap_slope(Acc x) {
  const Acc decay = exp_of(Acc(-2) * (x < 0 ? -x : x));
  return 4 * decay / ((1 + decay) * (1 + decay));
}

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline double load(double x) {
  return x;
}
inline float load(float x) {
  return x;
}
inline float load(BFloat16 x) {
  return bit_cast<float>(uint32_t(x.bits) << 16);
}
inline float load(Float16 x) {
  // the exponent is rebased by a multiplication, which is right for subnormals too
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  float value = bit_cast<float>(magnitude) * 5.192296858534828e+33f;  // 2^112
  uint32_t bits = bit_cast<uint32_t>(value);
  bits |= (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;  // inf, nan
  return bit_cast<float>(bits | uint32_t(x.bits & 0x8000u) << 16);
}

template <typename T>
inline T store(double x);
template <typename T>
inline T store(float x);
template <>
inline double store<double>(double x) {
  return x;
}
template <>
inline float store<float>(float x) {
  return x;
}
template <>
inline BFloat16 store<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded =
      (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  return {uint16_t(x != x ? 0x7fc0u : rounded)};
}
// inlined by force: a call would leave the loop scalar
template <>
__attribute__((always_inline)) inline Float16 store<Float16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // subnormals: adding 1/2 leaves the rounded multiple of 2^-24 in the low bits
  const uint32_t subnormal =
      bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above rounds to inf
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return {uint16_t(half | ((bits >> 16) & 0x8000u))};
}

template <typename T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};

// Asks for memory that is soon read, or with `Write` written.
template <bool Write = false, typename T>
inline void prefetch(const T* from, i64 size) {
  for (i64 j = 0; j < size; j += 64 / i64(sizeof(T))) __builtin_prefetch(from + j, Write);
}

// How many rows ahead a tile of columns is fetched: the hardware sees no sequence in their pieces.
// (Measured: 5 to 15 % less time at 512×9605 and 256×32000.)
constexpr i64 kAhead = 8;

// Long float sums lose digits: blocks are summed in float, their sums in double.
constexpr i64 kBlock = 1024;

// Σ x to the last places of a float however many are alike, whose roundings agree: of a block eight
// by eight.
template <typename Acc, typename Term>
inline double sum_over(i64 n, Term term) {
  double total = 0;
  for (i64 lo = 0; lo < n; lo += kBlock) {
    const i64 size = lo + kBlock < n ? kBlock : n - lo, each = size / 8;
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 j = lo; j < lo + each; ++j)
      sum +=
          ((term(j) + term(j + each)) + (term(j + 2 * each) + term(j + 3 * each))) +
          ((term(j + 4 * each) + term(j + 5 * each)) + (term(j + 6 * each) + term(j + 7 * each)));
    for (i64 j = lo + 8 * each; j < lo + size; ++j) sum += term(j);
    total += sum;
  }
  return total;
}
template <typename Acc>
inline double sum_of(const Acc* x, i64 n) {
  const double sum = sum_over<Acc>(n, [=](i64 j) { return x[j]; });
  if (std::isfinite(sum)) return sum;
  double wide = 0;  // two floats may be more than a float holds
  for (i64 j = 0; j < n; ++j) wide += x[j];
  return wide;
}

// Exponentials that fill a register: what is left of a row is taken as so many, those beyond its
// end masked, where there are instructions for that. (Counted at 128×100, AVX2: 4 % less. With
// AVX-512 it takes as long as one by one.)
#if defined(__AVX512F__)
constexpr int32_t kWhole = 16;
#elif defined(__AVX2__)
constexpr int32_t kWhole = 8;
#else
constexpr int32_t kWhole = 1;
#endif

// e_j = e^(z_j − shift) for a block of at most kBlock; returns Σ_{j ≠ skip} e_j.
// Not inlined: GCC 12 splits the loop over blocks around `skip` and leaves the copy scalar.
template <bool Store, bool Skip, typename Acc>
__attribute__((noinline)) Acc exp_block(const Acc* z, Acc shift, Acc* e, int32_t size,
                                        int32_t skip) {
  Acc sum = 0;
  const int32_t whole = size / kWhole * kWhole;
#pragma omp simd reduction(+ : sum)
  for (int32_t j = 0; j < whole; ++j) {
    const Acc value = exp_of(z[j] - shift);
    if (Store) e[j] = value;
    sum += Skip ? value * Acc(j != skip) : value;  // a product: a choice here becomes a branch
  }
  if (whole == size) return sum;
#pragma omp simd reduction(+ : sum)
  for (int32_t k = 0; k < kWhole; ++k) {
    const int32_t j = whole + k;
    const Acc value = exp_of((j < size ? z[j] : Acc(-INFINITY)) - shift);
    if (Store && j < size) e[j] = value;
    sum += Skip ? value * Acc(j != skip) : value;
  }
  return sum;
}

// Σ_{j ≠ skip} e^(z_j − shift) over a block of at most kBlock; `skip` outside it leaves none out.
// The exponentials go to `e`, which may be `z`, or null where nobody wants them.
template <typename Acc>
inline Acc exp_sum(const Acc* z, Acc shift, Acc* e, i64 size, i64 skip) {
  if (skip >= 0 && skip < size)
    return e ? exp_block<true, true>(z, shift, e, int32_t(size), int32_t(skip))
             : exp_block<false, true>(z, shift, e, int32_t(size), int32_t(skip));
  return e ? exp_block<true, false>(z, shift, e, int32_t(size), -1)
           : exp_block<false, false>(z, shift, e, int32_t(size), -1);
}

// A register of numbers, which of them are above others, that as bits, and the rest. A comparison's
// bits come by instructions that have no other name: of a loop compilers make ten times as many.
#if defined(__AVX512F__)
constexpr int kRegister = 64;
inline __mmask16 above(__m512 x, __m512 cut) {
  return _mm512_cmp_ps_mask(x, cut, _CMP_GT_OQ);
}
inline __mmask8 above(__m512d x, __m512d cut) {
  return _mm512_cmp_pd_mask(x, cut, _CMP_GT_OQ);
}
inline uint64_t bits_of(__mmask16 mask) {
  return mask;
}
inline uint64_t bits_of(__mmask8 mask) {
  return mask;
}
inline __m512 without(__mmask16 mask, __m512 x) {
  return _mm512_maskz_mov_ps(_mm512_knot(mask), x);
}
inline __m512d without(__mmask8 mask, __m512d x) {
  return _mm512_maskz_mov_pd(_knot_mask8(mask), x);
}
#elif defined(__AVX__)
constexpr int kRegister = 32;
inline __m256 above(__m256 x, __m256 cut) {
  return _mm256_cmp_ps(x, cut, _CMP_GT_OQ);
}
inline __m256d above(__m256d x, __m256d cut) {
  return _mm256_cmp_pd(x, cut, _CMP_GT_OQ);
}
inline uint64_t bits_of(__m256 mask) {
  return uint32_t(_mm256_movemask_ps(mask));
}
inline uint64_t bits_of(__m256d mask) {
  return uint32_t(_mm256_movemask_pd(mask));
}
inline __m256 without(__m256 mask, __m256 x) {
  return _mm256_andnot_ps(mask, x);
}
inline __m256d without(__m256d mask, __m256d x) {
  return _mm256_andnot_pd(mask, x);
}
#elif defined(__SSE2__)
constexpr int kRegister = 16;
inline __m128 above(__m128 x, __m128 cut) {
  return _mm_cmpgt_ps(x, cut);
}
inline __m128d above(__m128d x, __m128d cut) {
  return _mm_cmpgt_pd(x, cut);
}
inline uint64_t bits_of(__m128 mask) {
  return uint32_t(_mm_movemask_ps(mask));
}
inline uint64_t bits_of(__m128d mask) {
  return uint32_t(_mm_movemask_pd(mask));
}
inline __m128 without(__m128 mask, __m128 x) {
  return _mm_andnot_ps(mask, x);
}
inline __m128d without(__m128d mask, __m128d x) {
  return _mm_andnot_pd(mask, x);
}
#else
constexpr int kRegister = 16;
template <typename V>
inline auto above(V x, V cut) {
  return x > cut;
}
template <typename M>
inline uint64_t bits_of(M mask) {
  uint64_t bits = 0;
  for (size_t k = 0; k < sizeof(M) / sizeof(mask[0]); ++k) bits |= uint64_t(mask[k] != 0) << k;
  return bits;
}
template <typename M, typename V>
inline V without(M mask, V x) {
  return mask ? V{} : x;
}
#endif
template <typename Acc>
struct RegisterOf {
  typedef float type __attribute__((vector_size(kRegister)));
};
template <>
struct RegisterOf<double> {
  typedef double type __attribute__((vector_size(kRegister)));
};
template <typename Acc>
using Register = typename RegisterOf<Acc>::type;

template <typename Acc>
inline Register<Acc> load_register(const Acc* from) {
  Register<Acc> values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

// Calls visit(x, mask) with the registers of kMarked elements and what of them is above `cut`;
// returns that as bits.
constexpr i64 kMarked = 64;
template <typename Acc, typename Visit>
__attribute__((always_inline)) inline uint64_t word_above(const Acc* e, Register<Acc> cut,
                                                          Visit visit) {
  constexpr i64 kAtOnce = kRegister / sizeof(Acc);
  const auto part = [&](i64 k) __attribute__((always_inline)) {
    const Register<Acc> x = load_register(e + k);
    const auto mask = above(x, cut);
    visit(x, mask);
    return mask;
  };
#if defined(__AVX512BW__)
  if constexpr (kAtOnce == 16) {
    // put together where comparisons leave their bits: a third of the instructions less
    const auto first = part(0), second = part(16), third = part(32), fourth = part(48);
    const __mmask32 low = _mm512_kunpackw(second, first), high = _mm512_kunpackw(fourth, third);
    return _cvtmask64_u64(_mm512_kunpackd(high, low));
  }
#endif
  uint64_t word = 0;
  LPL_UNROLL
  for (i64 k = 0; k < kMarked; k += kAtOnce) word |= bits_of(part(k)) << k;
  return word;
}

// Places among the elements of a row: bit k of a word stands for the element `first` + k.
struct Marks {
  i64 first;
  uint64_t word;
};

// sums[r] += Σ q^r, r = 1..5, q = e·inverse, over the e of a row that are at most `cut`. Marks
// those above, room for size/kMarked + 1; returns how many marks there are. Few are, and nobody
// foretells where: no branch asks, for one that is mispredicted costs as much as a word.
template <typename Acc>
__attribute__((noinline)) i64 tail_sums(const Acc* e, Acc inverse, Acc cut, i64 size, double* sums,
                                        Marks* marks) {
  using V = Register<Acc>;
  const V at = V{} + cut;
  i64 count = 0;
  for (i64 lo = 0; lo < size;) {
    V first = {}, second = {}, third = {}, fourth = {}, fifth = {};
    const auto add = [&](V x, auto mask) __attribute__((always_inline)) {
      const V q = without(mask, x) * inverse, square = q * q, higher = square * square;
      first += q;
      second += square;
      third += square * q;
      fourth += higher;
      fifth += higher * q;
    };
    const i64 end = std::min(size, lo + kBlock);  // those of a block are kept in Acc
    for (; lo + kMarked <= end; lo += kMarked) {
      const uint64_t word = word_above(e + lo, at, add);
      marks[count] = {lo, word};
      count += word != 0;
    }
    if (lo < end) {
      Acc rest[kMarked] = {};
      std::copy(e + lo, e + end, rest);
      const uint64_t word = word_above(rest, at, add);
      marks[count] = {lo, word};
      count += word != 0;
      lo = end;
    }
    const V all[] = {first, second, third, fourth, fifth};
    for (int r = 0; r < 5; ++r) {
      Acc sum = 0;
      for (size_t k = 0; k < sizeof(V) / sizeof(Acc); ++k) sum += all[r][k];
      sums[r + 1] += sum;
    }
  }
  return count;
}

// Appends those of a block from `first` on whose e is above `cut` to the `count` that are there,
// room for size/kMarked + 1 more; returns how many there are then. Few are, and nobody foretells
// where: no branch asks, for one that is mispredicted costs as much as a word.
template <typename Acc>
inline i64 mark_above(const Acc* e, Acc cut, i64 first, i64 size, Marks* marks, i64 count) {
  i64 lo = 0;
  for (; lo + kMarked <= size; lo += kMarked) {
    const uint64_t word = word_above(e + lo, Register<Acc>{} + cut, [](auto, auto) {});
    marks[count] = {first + lo, word};
    count += word != 0;
  }
  marks[count] = {first + lo, 0};
  for (i64 k = 0; lo + k < size; ++k) marks[count].word |= uint64_t(e[lo + k] > cut) << k;
  return count + (marks[count].word != 0);
}

// Calls `found` with every place, the first of each word before the second of any, and so on: most
// have one, and whether there are more is asked once for all. Leaves no mark.
template <typename Found>
inline void for_each_mark(Marks* marks, i64 count, Found found) {
  while (count > 0) {
    i64 more = 0;
    for (i64 k = 0; k < count; ++k) {
      const Marks mark = marks[k];
      found(mark.first + __builtin_ctzll(mark.word));
      marks[more] = {mark.first, mark.word & (mark.word - 1)};
      more += marks[more].word != 0;
    }
    count = more;
  }
}

// Calls `found` with the place of every e above `cut`, in their order.
template <typename Acc, typename Found>
inline void for_each_above(const Acc* e, Acc cut, i64 size, Found found) {
  Marks marks[kBlock / kMarked + 1];
  for (i64 lo = 0; lo < size; lo += kBlock) {
    const i64 count = mark_above(e + lo, cut, lo, std::min(kBlock, size - lo), marks, 0);
    for (i64 k = 0; k < count; ++k)
      for (uint64_t word = marks[k].word; word; word &= word - 1)
        found(marks[k].first + __builtin_ctzll(word));
  }
}

// While it lives products that are too small are 0: as subnormal numbers they take many times as
// long.
class FlushSubnormals {
 public:
#ifdef __SSE__
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

template <typename Acc>
inline void scale_by(Acc factor, Acc* x, i64 n) {
  LPL_SIMD
  for (i64 j = 0; j < n; ++j) x[j] *= factor;
}

template <typename Acc>
inline double square_sum(const Acc* x, i64 n) {
  double total = 0;
  for (i64 lo = 0; lo < n; lo += kBlock) {
    const i64 hi = lo + kBlock < n ? lo + kBlock : n;
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 j = lo; j < hi; ++j) sum += x[j] * x[j];
    total += sum;
  }
  return total;
}

// max that ignores nan, as comparisons do; a nan reaches the row through its exponential.
template <typename T>
inline typename AccumulateOf<T>::type max_of(const T* x, i64 n) {
  typename AccumulateOf<T>::type top = -INFINITY;
#pragma omp simd reduction(max : top)
  for (i64 j = 0; j < n; ++j) top = load(x[j]) > top ? load(x[j]) : top;
  return top;
}

// The first place where x is `value`; n where it is nowhere.
template <typename T>
inline i64 first_of(const T* x, i64 n, typename AccumulateOf<T>::type value) {
  constexpr i64 kChunk = 64;
  i64 lo = 0;
  for (; lo + kChunk <= n; lo += kChunk) {
    int32_t here = 0;
#pragma omp simd reduction(| : here)
    for (i64 j = 0; j < kChunk; ++j) here |= int32_t(load(x[lo + j]) == value);
    if (here) break;
  }
  while (lo < n && load(x[lo]) != value) ++lo;
  return lo;
}

// z_j = uniform·u_j, scale_j·u_j or both (+ offset_j) (+ factor·extra_j).
template <bool Scale, bool Uniform, bool Offset, bool Extra, typename T, typename Acc>
inline void perturb_block(const T* u, const Acc* scale, Acc uniform, const Acc* offset,
                          const Acc* extra, Acc factor, Acc* z, i64 n) {
  LPL_SIMD
  for (i64 j = 0; j < n; ++j) {
    Acc value = load(u[j]);
    if (Uniform) value *= uniform;
    if (Scale) value *= scale[j];
    if (Offset) value += offset[j];
    if (Extra) value += factor * extra[j];
    z[j] = value;
  }
}

}  // namespace
}  // namespace lpl
