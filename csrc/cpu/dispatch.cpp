#include "dispatch.h"

namespace lpl {
namespace {

#define LPL_KERNELS(isa)                                          \
  {#isa,           isa::cross_entropy, isa::learned_perturbation, \
   isa::sweep,     isa::scale_rows,    isa::reduce,               \
   isa::perturbed, isa::gradient,      isa::binary_cross_entropy}

std::vector<Kernels> find_usable() {
  std::vector<Kernels> found;
#if defined(LPL_X86)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (v4) found.push_back(LPL_KERNELS(avx512));
  if (v3) found.push_back(LPL_KERNELS(avx2));
#endif
  found.push_back(LPL_KERNELS(baseline));
  return found;
}

const Kernels* chosen = nullptr;

}  // namespace

const std::vector<Kernels>& usable_kernels() {
  static const std::vector<Kernels> found = find_usable();
  return found;
}

const Kernels& kernels() {
  return chosen ? *chosen : usable_kernels().front();
}

bool use_isa(const std::string& isa) {
  for (const Kernels& candidate : usable_kernels())
    if (isa == candidate.isa) {
      chosen = &candidate;
      return true;
    }
  return false;
}

}  // namespace lpl
