// Structures whose fields are written once, as a list: LPL_PARTS(X) and its like in row.h, binary.h
// and cuda/call.h call X(type, name, off) for each field, in Python's order; `off` is the value
// that switches it off. Made from a list are the structure, what reads it and what Python compares
// when it loads a module (bindings.h), and sets of fields, by which code says what it can do.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define LPL_HOST_DEVICE __host__ __device__
#else
#define LPL_HOST_DEVICE
#endif

#define LPL_FIELD(type, name, off) type name = off;
#define LPL_MEMBER(type, name, off) name,
#define LPL_NAME(type, name, off) #name,
// Adds a field of `of` that is on to `found`, a set of `Members`.
#define LPL_ADD_IF_ON(type, name, off) \
  if (of.name != off) found |= set_of(Members::name);

// Nameless, because files of several instruction sets include this.
namespace lpl {
namespace {

// A set of members of an enum: as bits.
template <typename... Member>
constexpr uint64_t set_of(Member... members) {
  return (uint64_t(0) | ... | (uint64_t(1) << int(members)));
}

// Code that serves some calls: those with nothing on and nothing wanted but what it names, so that
// it refuses what it has never heard of.
struct Path {
  const char* name;
  uint64_t features, outputs;  // of the problem's and the outputs' enum

  constexpr bool serves(uint64_t on, uint64_t wanted) const {
    return (on & ~features) == 0 && (wanted & ~outputs) == 0;
  }
};

}  // namespace
}  // namespace lpl
