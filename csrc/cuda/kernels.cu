// The kernels, one per body, and what launches them.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "calls.h"
#include "kernels.h"
#include "launch.cuh"
#include "machine.cuh"
#include "row_plan.h"
#include "team.h"

namespace lpl {
namespace {

constexpr int kThreads = RowPlan::kThreads;  // of a block at most
constexpr int kBatchThreads = 1024;          // of the one that sums over a batch
static_assert(RowPlan::kWarp == kWarp && RowPlan::kMostBlocks == kMostBlocks, "the device's");

// How rows come on chip: not, line by line as their threads ask for them, or in bulk.
enum class Fill : int { none, lines, bulk };

// Blocks that must find room on a multiprocessor: their share of its registers is the budget that
// tests/test_cuda_compile.py holds every kernel to.
template <typename Body>
struct BlocksOf : std::integral_constant<int, 2> {};
template <template <typename, Set> class Body, typename T, Set kSet>
struct BlocksOf<Body<T, kSet>> : std::integral_constant<int, (kSet & kRest) != 0              ? 2
                                                             : kSet == kBare || kSet == kMove ? 4
                                                                                              : 3> {
};

// sums that a row without statistics has not
template <typename T, Set kSet>
struct BlocksOf<StatsRowBody<T, kSet>> : std::integral_constant<int, (kSet & kRest) != 0 ? 2 : 3> {
};
template <typename T, Set kSet>
struct BlocksOf<StatsStepsBody<T, kSet>>
    : std::integral_constant<int, (kSet & kRest) != 0 ? 2 : 3> {};
// columns of several rows in hand: what runs beside has no more blocks either
template <template <typename, Set> class Body, typename T, Set kSet, typename Left>
struct BlocksOf<InTurnsAndLeft<Body<T, kSet>, Left>>
    : std::integral_constant<int, (kSet & kRest) != 0 ? 2 : 3> {};
// several rows in hand
template <typename T, Set kSet>
struct BlocksOf<StatisticsBody<T, kSet>> : std::integral_constant<int, 2> {};
template <typename T, Set kSet>
struct BlocksOf<GradientsBody<T, kSet>> : std::integral_constant<int, 2> {};

// Threads of a block at most. Where a row is much work that is the same for all of its warps, few
// of them do it.
template <typename Body>
struct ThreadsOf : std::integral_constant<int, kThreads> {};
template <typename T, Set kSet>
struct ThreadsOf<LearnedStatisticsBody<T, kSet>> : std::integral_constant<int, kThreads / 2> {};

template <typename Body>
struct BlocksOf<AndLoss<Body>> : BlocksOf<Body> {};
template <typename T, Set kSet>
struct BlocksOf<LearnedStatisticsBody<T, kSet>> : std::integral_constant<int, 2> {};
// each step waits for the one before
template <>
struct BlocksOf<RowStepsBody<float>> : std::integral_constant<int, 3> {};

// Whether rows are never on chip, so that no blocks share one: what they would need of each other
// is left out.
template <typename Body>
struct IsAlone : std::false_type {};
template <typename Body>
struct IsAlone<InTurns<Body>> : std::true_type {};
template <typename Body, typename Left>
struct IsAlone<InTurnsAndLeft<Body, Left>> : std::true_type {};
template <typename T, Set kSet>
struct IsAlone<StatisticsBody<T, kSet>> : std::true_type {};

template <typename Body>
constexpr int blocks_beside() {
  return sizeof(typename Body::Acc) == 8 ? 1 : BlocksOf<Body>::value;
}

// What a block has for itself that is a team of one body or the other.
template <typename Body, typename Other>
union EitherShared {
  typename Body::Shared of_row;
  typename Other::Shared of_team;
};

template <typename Body>
__global__ void __launch_bounds__(ThreadsOf<Body>::value,
                                  blocks_beside<Body>() * kThreads / ThreadsOf<Body>::value)
    row_kernel(const __grid_constant__ Call call, int blocks, Fill fill) {
  if (spared<typename Body::Acc>(call)) return;
  __shared__ Exchange exchange;
  __shared__ Arrivals arrivals;
  __shared__ typename Body::Shared shared;
  extern __shared__ __align__(128) char stage[];
  if constexpr (IsAlone<Body>::value) {
    blocks = 1;
    fill = Fill::none;
  }
  Team team(&exchange, &shared, fill == Fill::none ? nullptr : stage,
            fill == Fill::bulk ? &arrivals : nullptr, blocks);
  run_row<Body>(team, call, i64(blockIdx.x / unsigned(blocks)));
}

// The same, beside blocks that are teams of another body and are the first to begin: as many as
// make whole clusters where rows have some.
template <typename Body, typename Other>
__global__ void __launch_bounds__(ThreadsOf<Body>::value,
                                  blocks_beside<Body>() * kThreads / ThreadsOf<Body>::value)
    rows_beside_kernel(const __grid_constant__ Call call, int teams, int blocks, Fill fill) {
  if (spared<typename Body::Acc>(call)) return;
  __shared__ Exchange exchange;
  __shared__ Arrivals arrivals;
  __shared__ EitherShared<Body, Other> shared;
  extern __shared__ __align__(128) char stage[];
  if (blockIdx.x < unsigned(teams)) {
    Team team(&exchange, &shared.of_team, nullptr, nullptr, 1);
    return Other::run(team, call, blockIdx.x);
  }
  Team team(&exchange, &shared.of_row, fill == Fill::none ? nullptr : stage,
            fill == Fill::bulk ? &arrivals : nullptr, blocks);
  run_row<Body>(team, call, i64((blockIdx.x - unsigned(teams)) / unsigned(blocks)));
}

// Teams whose threads need nothing of each other.
template <typename Body>
__global__ void __launch_bounds__(kThreads, blocks_beside<Body>())
    piece_kernel(const __grid_constant__ Call call, int blocks) {
  if (spared<typename Body::Acc>(call)) return;
  Team team(nullptr, nullptr, nullptr, nullptr, blocks);
  Body::run(team, call, i64(blockIdx.x / unsigned(blocks)));
}

// The same, some rows a block, beside blocks that are teams of another body and are the first to
// begin. `blocks`: the squads that share a row.
template <typename Body, typename Other>
__global__ void __launch_bounds__(kThreads, blocks_beside<Other>())
    pieces_beside_kernel(const __grid_constant__ Call call, int teams, int places, int blocks) {
  if (spared<typename Body::Acc>(call)) return;
  __shared__ Exchange exchange;
  __shared__ typename Other::Shared shared;
  if (blockIdx.x < unsigned(teams)) {
    Team team(&exchange, &shared, nullptr, nullptr, 1);
    return Other::run(team, call, blockIdx.x);
  }
  Squad squad(blockIdx.x - unsigned(teams), places, blocks);
  Body::run(squad, call, squad.row());
}

// Warps of a block, whose own memory finds room in 48 KiB.
template <typename Body>
constexpr int kWarpsOfBlock = sizeof(typename Body::Acc) == 8 ? 4 : kThreads / kWarp;

template <typename Body>
__global__ void __launch_bounds__(kThreads, blocks_beside<Body>())
    warp_kernel(const __grid_constant__ Call call, i64 n) {
  if (spared<typename Body::Acc>(call)) return;
  constexpr int kWarps = kWarpsOfBlock<Body>;
  __shared__ typename Body::Shared shared[kWarps];
  const int warp = int(threadIdx.x) / kWarp;
  const i64 i = i64(blockIdx.x) * kWarps + warp;
  if (i >= n) return;
  Crew crew(&shared[warp]);
  Body::run(crew, call, i);
}

// The same, beside blocks that are teams of another body and are the first to begin. A block is one
// or the other, so that they share memory.
template <typename Body, typename Other>
__global__ void __launch_bounds__(kThreads, blocks_beside<Body>())
    beside_kernel(const __grid_constant__ Call call, i64 n, int teams) {
  if (spared<typename Body::Acc>(call)) return;
  constexpr int kWarps = kWarpsOfBlock<Body>;
  __shared__ Exchange exchange;
  __shared__ union {
    typename Body::Shared of_warps[kWarps];
    typename Other::Shared of_team;
  } shared;
  if (blockIdx.x < unsigned(teams)) {
    Team team(&exchange, &shared.of_team, nullptr, nullptr, 1);
    return Other::run(team, call, blockIdx.x);
  }
  const int warp = int(threadIdx.x) / kWarp;
  const i64 i = i64(blockIdx.x - unsigned(teams)) * kWarps + warp;
  if (i >= n) return;
  Crew crew(&shared.of_warps[warp]);
  Body::run(crew, call, i);
}

template <typename Body>
__global__ void __launch_bounds__(kBatchThreads) batch_kernel(const __grid_constant__ Call call) {
  if (spared<typename Body::Acc>(call)) return;
  using Team = TeamOf<kBatchThreads / kWarp>;
  __shared__ typename Team::Exchange exchange;
  __shared__ typename SharedOf<Body>::type shared;
  Team team(&exchange, &shared, nullptr, nullptr, 1);
  Body::run(team, call, blockIdx.x);
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "to describe the device");
  return value;
}

Chip chip_of(int device) {
  const int capability = 100 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                         10 * attribute(cudaDevAttrComputeCapabilityMinor, device);
  // code of an older architecture, which this device may have been given, knows no clusters
  bool clusters = false;
#if defined(__CUDA_ARCH_LIST__)
  for (const int arch : {__CUDA_ARCH_LIST__}) clusters |= arch >= 900 && arch <= capability;
#endif
  return {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device), clusters};
}

// Of the current device; a thread asks for the same one again and again.
Chip this_chip() {
  thread_local int known = -1;
  thread_local Chip chip{};
  int device = 0;
  check(cudaGetDevice(&device), "to name the device");
  if (device != known) chip = chip_of(device);
  known = device;
  return chip;
}

// LPL_FUSED_CUDA_COPY=lines: as before compute capability 9.0.
bool copies_in_bulk() {
  static const bool bulk = [] {
    const char* chosen = std::getenv("LPL_FUSED_CUDA_COPY");
    if (!chosen || !*chosen || std::strcmp(chosen, "bulk") == 0) return true;
    if (std::strcmp(chosen, "lines") == 0) return false;
    throw std::runtime_error(std::string("LPL_FUSED_CUDA_COPY: expected bulk or lines, got ") +
                             chosen);
  }();
  return bulk;
}

class Launcher {
 public:
  explicit Launcher(uintptr_t stream) : stream_(reinterpret_cast<cudaStream_t>(stream)) {}

  static constexpr i64 many_rows() { return RowPlan::kManyRows; }
  static constexpr i64 most_compared() { return RowPlan::kMostCompared; }
  static constexpr i64 few_rows() { return RowPlan::kFewRows; }
  static constexpr i64 few_logits() { return RowPlan::kFewLogits; }
  static constexpr i64 few_losses() { return RowPlan::kFewLosses; }

  static constexpr int crew = kWarp;
  static constexpr int batch_places() { return kBatchThreads; }

  template <typename Body>
  void batches(Body, const Call& call, i64 count) const {
    batch_kernel<Body><<<unsigned(count), kBatchThreads, 0, stream_>>>(call);
    check(cudaGetLastError(), "to sum over a batch");
  }

  template <typename Body>
  void once(Body, const Call& call) const {
    batches(Body(), call, 1);
  }

  template <typename Body>
  void warps(Body, const Call& call, i64 n) const {
    if (n == 0) return;
    constexpr int kWarps = kWarpsOfBlock<Body>;
    const i64 blocks = (n + kWarps - 1) / kWarps;
    warp_kernel<Body><<<unsigned(blocks), kWarps * kWarp, 0, stream_>>>(call, n);
    check(cudaGetLastError(), "a kernel of warps");
  }

  template <typename Body, typename Other>
  void warps_beside(Body, i64 n, Other, i64 teams, const Call& call) const {
    if (n == 0) return;
    constexpr int kWarps = kWarpsOfBlock<Body>;
    const i64 blocks = teams + (n + kWarps - 1) / kWarps;
    if (blocks >= i64(1) << 31) throw std::runtime_error("more rows than a grid has");
    beside_kernel<Body, Other>
        <<<unsigned(blocks), kWarps * kWarp, 0, stream_>>>(call, n, int(teams));
    check(cudaGetLastError(), "a kernel of warps and teams");
  }

  template <typename Body>
  void rows(Body, const Call& call, i64 n, i64 bytes, bool stage) const {
    if (n == 0) return;
    if (IsAlone<Body>::value && stage) throw std::logic_error("a row that is never on chip");
    const RowKernel own = own_of<Body, typename Body::Shared>();
    const RowPlan plan = RowPlan::of(this_chip(), own, n, bytes, stage);
    launch(row_kernel<Body>, own, plan, n * plan.blocks, call, plan.blocks, fill_of(plan));
  }

  template <typename Body, typename Other, typename Teams>
  void rows_beside(Body, const Call& call, i64 n, i64 bytes, Other, Teams teams_of) const {
    if (n == 0) return;
    const RowKernel own = own_of<Body, EitherShared<Body, Other>>();
    const RowPlan plan = RowPlan::of(this_chip(), own, n, bytes, true);
    const i64 teams = (teams_of(plan.threads) + plan.blocks - 1) / plan.blocks * plan.blocks;
    launch(rows_beside_kernel<Body, Other>, own, plan, teams + n * plan.blocks, call, int(teams),
           plan.blocks, fill_of(plan));
  }

  template <typename Body>
  void pieces(Body, const Call& call, i64 n, i64 bytes) const {
    if (n == 0) return;
    const RowPlan plan = RowPlan::of_pieces(n, bytes);
    piece_kernel<Body>
        <<<unsigned(n * plan.blocks), unsigned(plan.threads), 0, stream_>>>(call, plan.blocks);
    check(cudaGetLastError(), "a kernel of pieces");
  }

  template <typename Body, typename Other>
  void pieces_beside(Body, const Call& call, i64 n, i64 bytes, Other, i64 teams, i64 work) const {
    if (n == 0) return;
    const RowPlan plan = RowPlan::of_pieces(n, bytes);
    const RowPlan beside = RowPlan::of({}, {0, kThreads}, teams, work, false);
    const int threads = std::max(plan.threads, beside.threads), squads = threads / plan.threads;
    const i64 blocks = teams + (n * plan.blocks + squads - 1) / squads;
    if (blocks >= i64(1) << 31) throw std::runtime_error("more rows than a grid has");
    pieces_beside_kernel<Body, Other><<<unsigned(blocks), unsigned(threads), 0, stream_>>>(
        call, int(teams), plan.threads, plan.blocks);
    check(cudaGetLastError(), "a kernel of pieces and teams");
  }

 private:
  // What a kernel has for itself whose blocks have so much of a body's own.
  template <typename Body, typename Shared>
  static RowKernel own_of() {
    return {i64(sizeof(Exchange) + sizeof(Arrivals) + sizeof(Shared)), ThreadsOf<Body>::value};
  }

  static Fill fill_of(const RowPlan& plan) {
    if (plan.stage == 0) return Fill::none;
    return this_chip().clusters && copies_in_bulk() ? Fill::bulk : Fill::lines;
  }

  template <typename... Arguments>
  void launch(void (*kernel)(Arguments...), const RowKernel& own, const RowPlan& plan, i64 blocks,
              const Arguments&... arguments) const {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = dim3(unsigned(plan.threads));
    config.dynamicSmemBytes = size_t(plan.stage);
    config.stream = stream_;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = unsigned(plan.blocks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.attrs = &cluster;
    config.numAttrs = plan.blocks > 1;
    // always the same, as another thread may be about to launch it for other rows
    if (plan.stage > 0)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(RowPlan::most_stage(this_chip(), own))),
            "shared memory for a row");
    check(cudaLaunchKernelEx(&config, kernel, arguments...), "a kernel of rows");
  }

  cudaStream_t stream_;
};

}  // namespace

// The kernels of one element type.
template <typename T>
void run_as(Work work, const Call& call, uintptr_t stream) {
  Launcher launch(stream);
  run_of<T>(launch, work, call);
}

// With LPL_TYPE the file has the kernels of that type alone, with LPL_SPLIT none: so setup.py
// compiles them side by side.
#if defined(LPL_TYPE)
template void run_as<LPL_TYPE>(Work, const Call&, uintptr_t);
#else
#if defined(LPL_SPLIT)
extern template void run_as<double>(Work, const Call&, uintptr_t);
extern template void run_as<float>(Work, const Call&, uintptr_t);
extern template void run_as<BFloat16>(Work, const Call&, uintptr_t);
extern template void run_as<Float16>(Work, const Call&, uintptr_t);
#endif

void run(Work work, const Call& call, uintptr_t stream) {
  for_type(call.p.dtype,
           [&](auto type) { run_as<typename decltype(type)::type>(work, call, stream); });
}

int64_t group_bytes(int64_t n, int64_t c, int dtype) {
  return group_bytes(n, c, DType(dtype));
}

int64_t learned_bytes(int dtype) {
  return learned_bytes(DType(dtype));
}

int64_t most_teams(int device) {
  return 2 * attribute(cudaDevAttrMultiProcessorCount, device);
}

const char* device_kind() {
  return "cuda";
}
#endif

}  // namespace lpl
