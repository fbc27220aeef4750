// What compilers are told of loops and functions whose numbers shall stay in registers.
#pragma once

// Loops over terms run out flat, which GCC does not do by itself where one's end is another's
// place: counted, a step of rows side by side takes a third of the instructions.
#if defined(__CUDACC__)
#define LPL_UNROLL
#elif defined(__clang__)
#define LPL_UNROLL _Pragma("unroll")
#else
#define LPL_UNROLL _Pragma("GCC unroll 16")
#endif

// A call would take a series through memory.
#if defined(__GNUC__) && !defined(__CUDACC__)
#define LPL_INLINE inline __attribute__((always_inline))
#else
#define LPL_INLINE inline
#endif
