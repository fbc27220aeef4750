// The kernels as the bindings see them: one set per instruction set, the best chosen at run time.
#pragma once

#include <string>
#include <vector>

#include "../binary.h"
#include "../parts.h"
#include "../row.h"

namespace lpl {

#define LPL_DECLARE(isa)                                                                     \
  namespace isa {                                                                            \
  Status cross_entropy(const Problem& problem, const Outputs& out);                          \
  Status learned_perturbation(const Problem& problem, const Outputs& out);                   \
  Status sweep(const Problem& problem, const Outputs& out);                                  \
  Status scale_rows(const Problem& problem, const Outputs& out);                             \
  Status reduce(const Problem& problem, const Known& known, Kind kind, const Sums& out);     \
  Status perturbed(const Problem& problem, const Known& known, int64_t begin, int64_t end,   \
                   void* out);                                                               \
  Status gradient(const Problem& problem, const Known& known, const Outputs& out);           \
  BinaryStatus binary_cross_entropy(const BinaryProblem& problem, const BinaryOutputs& out); \
  }
LPL_DECLARE(baseline)
#if defined(LPL_X86)
LPL_DECLARE(avx2)
LPL_DECLARE(avx512)
#endif
#undef LPL_DECLARE

struct Kernels {
  const char* isa;
  Status (*cross_entropy)(const Problem&, const Outputs&);
  Status (*learned_perturbation)(const Problem&, const Outputs&);
  Status (*sweep)(const Problem&, const Outputs&);
  Status (*scale_rows)(const Problem&, const Outputs&);
  Status (*reduce)(const Problem&, const Known&, Kind, const Sums&);
  Status (*perturbed)(const Problem&, const Known&, int64_t, int64_t, void*);
  Status (*gradient)(const Problem&, const Known&, const Outputs&);
  BinaryStatus (*binary_cross_entropy)(const BinaryProblem&, const BinaryOutputs&);
};

// Those that this processor runs, the best first.
const std::vector<Kernels>& usable_kernels();

// The ones in use: the best, unless `use_isa` chose others.
const Kernels& kernels();

// Chooses by name, for tests and measurements; false if this processor does not run it.
bool use_isa(const std::string& isa);

}  // namespace lpl
