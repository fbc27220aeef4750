// The kernels of multi-label losses, one per body, and what launches them.
#include "binary_calls.h"
#include "launch.cuh"
#include "machine.cuh"
#include "team.h"

namespace lpl {
namespace {

constexpr int kThreads = 256, kBatchThreads = 1024;

// Blocks that must find room on a multiprocessor, see kernels.cu: one less where the compiler for
// an architecture wants more registers than that leaves.
#if defined(__CUDA_ARCH__)
constexpr int kOfSpans = __CUDA_ARCH__ >= 1000 ? 3 : 4, kOfMoments = __CUDA_ARCH__ < 900 ? 2 : 3;
#else
constexpr int kOfSpans = 4, kOfMoments = 3;
#endif
template <typename Body>
struct BinaryBlocksOf : std::integral_constant<int, 2> {};
template <typename T, typename Label>
struct BinaryBlocksOf<BinarySpanBody<T, Label>> : std::integral_constant<int, kOfSpans> {};
template <typename T, typename Label>
struct BinaryBlocksOf<BinaryTileBody<T, Label, false>> : std::integral_constant<int, 3> {};
template <typename T, typename Label>
struct BinaryBlocksOf<BinaryMomentsBody<T, Label>> : std::integral_constant<int, kOfMoments> {};

template <typename Body>
constexpr int binary_blocks() {
  return sizeof(typename Body::Acc) == 8 ? 1 : BinaryBlocksOf<Body>::value;
}

template <typename Body>
__global__ void __launch_bounds__(kThreads, binary_blocks<Body>())
    team_kernel(const __grid_constant__ BinaryCall call) {
  if (spared<typename Body::Acc>(call)) return;
  __shared__ Exchange exchange;
  __shared__ typename Body::Shared shared;
  Team team(&exchange, &shared, nullptr, nullptr, 1);
  Body::run(team, call, blockIdx.x);
}

template <typename Body>
__global__ void __launch_bounds__(kBatchThreads)
    binary_batch_kernel(const __grid_constant__ BinaryCall call) {
  if (spared<typename Body::Acc>(call)) return;
  using Team = TeamOf<kBatchThreads / kWarp>;
  __shared__ typename Team::Exchange exchange;
  Team team(&exchange, nullptr, nullptr, nullptr, 1);
  Body::run(team, call, 0);
}

class BinaryLauncher {
 public:
  static constexpr int crew = kWarp;
  static constexpr int places() { return kThreads; }

  explicit BinaryLauncher(uintptr_t stream) : stream_(reinterpret_cast<cudaStream_t>(stream)) {}

  template <typename Body>
  void teams(Body, const BinaryCall& call, i64 count) const {
    if (count == 0) return;
    if (count > (i64(1) << 31) - 1) throw std::runtime_error("more teams than a grid has");
    team_kernel<Body><<<unsigned(count), kThreads, 0, stream_>>>(call);
    check(cudaGetLastError(), "a kernel of multi-label losses");
  }

  template <typename Body>
  void once(Body, const BinaryCall& call) const {
    binary_batch_kernel<Body><<<1, kBatchThreads, 0, stream_>>>(call);
    check(cudaGetLastError(), "to sum over a batch");
  }

 private:
  cudaStream_t stream_;
};

}  // namespace

// The kernels of one element type.
template <typename T>
void run_binary_as(BinaryWork work, const BinaryCall& call, uintptr_t stream) {
  BinaryLauncher launch(stream);
  run_binary_of<T>(launch, work, call);
}

// As in kernels.cu.
#if defined(LPL_TYPE)
template void run_binary_as<LPL_TYPE>(BinaryWork, const BinaryCall&, uintptr_t);
#else
#if defined(LPL_SPLIT)
extern template void run_binary_as<double>(BinaryWork, const BinaryCall&, uintptr_t);
extern template void run_binary_as<float>(BinaryWork, const BinaryCall&, uintptr_t);
extern template void run_binary_as<BFloat16>(BinaryWork, const BinaryCall&, uintptr_t);
extern template void run_binary_as<Float16>(BinaryWork, const BinaryCall&, uintptr_t);
#endif

void run_binary(BinaryWork work, const BinaryCall& call, uintptr_t stream) {
  for_type(call.p.dtype,
           [&](auto type) { run_binary_as<typename decltype(type)::type>(work, call, stream); });
}

BinaryRoom binary_room(const BinaryProblem& p) {
  return room_of(p, BinaryLauncher::places());
}
#endif

}  // namespace lpl
