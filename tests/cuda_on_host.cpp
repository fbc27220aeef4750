// The CUDA backend without a GPU: the same bodies (csrc/cuda), run by fibres on host memory.
//
// A fibre is a thread of a team. One runs until it waits at a barrier, so a barrier that is missing
// shows as a result that depends on the order in which fibres take turns: `reverse` turns it round.
// Fibres that wait for different barriers, or that end while others wait, are an error.
//
// What a device leaves as it was, memory on chip and registers, holds `poison` before every row: a
// read of what nobody has written shows as a result that depends on it.
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../csrc/cuda/bindings.cpp"

// The types that the device's compiler has; loads of them are counted.
namespace lpl {
namespace {

long loads = 0;

struct BFloat16 {
  uint16_t bits;
};
using Float16 = _Float16;
inline float load(BFloat16 x) {
  ++loads;
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float load(Float16 x) {
  ++loads;
  return float(x);
}
inline void store(BFloat16& to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  // round to nearest, ties to even; a nan stays one
  to.bits = uint16_t(x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fff);
}
inline void store(Float16& to, float x) {
  to = Float16(x);
}

}  // namespace
}  // namespace lpl

#include "../csrc/cuda/binary_calls.h"
#include "../csrc/cuda/calls.h"

namespace lpl {
namespace {

long launches = 0;

struct Shape {
  int blocks = 2, places = 4;
  bool staged = true, reversed = false, bulk = true;
} shape;

// A byte, or kRandom: a nan hides from a comparison, which a number that is huge or usual does not.
constexpr int kRandom = 256;
int poison = 0xff;

void fill_with_poison(std::vector<char>& memory) {
  if (poison != kRandom) {
    std::memset(memory.data(), poison, memory.size());
    return;
  }
  static uint64_t state = 1;  // goes on, so that no two rows find the same
  for (size_t k = 0; k < memory.size(); k += sizeof(state)) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const uint64_t word = state ^ state >> 29;
    std::memcpy(memory.data() + k, &word, std::min(sizeof(word), memory.size() - k));
  }
}

constexpr int kCrew = 2;  // threads of a warp
constexpr size_t kStack = 256 << 10, kPoisonedStack = 16 << 10;

enum class Waits { no, team, crew, bulk, over };

struct Fibre {
  ucontext_t context;
  std::vector<char> stack;
  Waits waits;
  const bool* until;  // of Waits::bulk
};

// Runs body(rank) in as many fibres as a team has threads.
class Fibres {
 public:
  explicit Fibres(int threads) : fibres_(size_t(threads)) {
    for (Fibre& fibre : fibres_) fibre.stack.resize(kStack);
  }

  void run(std::function<void(int)> body) {
    body_ = std::move(body);
    for (Fibre& fibre : fibres_) {
      fill_with_poison(locals_);
      std::copy(locals_.begin(), locals_.end(), fibre.stack.end() - kPoisonedStack);
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.data();
      fibre.context.uc_stack.ss_size = kStack;
      fibre.context.uc_link = &main_;
      current_ = this;
      makecontext(&fibre.context, &Fibres::begin, 0);
      fibre.waits = Waits::no;
    }
    while (turn())
      if (!open(0, int(fibres_.size()), Waits::team) && !arrived())
        throw std::logic_error("threads of a team wait for different barriers");
  }

  // Waits for something that another fibre does.
  void wait_until(const bool& done) {
    if (done) return;
    Fibre& fibre = fibres_[size_t(running_)];
    fibre.waits = Waits::bulk;
    fibre.until = &done;
    swapcontext(&fibre.context, &main_);
  }

  void wait(Waits what) {
    Fibre& fibre = fibres_[size_t(running_)];
    fibre.waits = what;
    swapcontext(&fibre.context, &main_);
  }

 private:
  static void begin() {
    Fibres* self = current_;
    self->body_(self->running_);
    self->fibres_[size_t(self->running_)].waits = Waits::over;
  }

  // Lets every crew run until all of it waits for the team, one after the other: the first is as
  // far ahead of the last as it can be. False when all are over.
  bool turn() {
    const int crews = int(fibres_.size()) / kCrew;
    for (int k = 0; k < crews; ++k) {
      const int begin = (shape.reversed ? crews - 1 - k : k) * kCrew;
      do {
        for (int place = 0; place < kCrew; ++place) {
          running_ = begin + (shape.reversed ? kCrew - 1 - place : place);
          Fibre& fibre = fibres_[size_t(running_)];
          if (fibre.waits == Waits::bulk && *fibre.until) fibre.waits = Waits::no;
          if (fibre.waits == Waits::no) swapcontext(&main_, &fibre.context);
        }
      } while (open(begin, begin + kCrew, Waits::crew));
    }
    return !all(0, int(fibres_.size()), Waits::over);
  }

  // Whether somebody may go on because a copy was asked for.
  bool arrived() const {
    return std::any_of(fibres_.begin(), fibres_.end(), [](const Fibre& fibre) {
      return fibre.waits == Waits::bulk && *fibre.until;
    });
  }

  bool all(int begin, int end, Waits what) const {
    for (int k = begin; k < end; ++k)
      if (fibres_[size_t(k)].waits != what) return false;
    return true;
  }

  // Opens a barrier if all that it is for have arrived.
  bool open(int begin, int end, Waits what) {
    if (!all(begin, end, what)) return false;
    for (int k = begin; k < end; ++k) fibres_[size_t(k)].waits = Waits::no;
    return true;
  }

  static inline Fibres* current_ = nullptr;
  std::vector<Fibre> fibres_;
  std::vector<char> locals_ = std::vector<char>(kPoisonedStack);
  ucontext_t main_;
  std::function<void(int)> body_;
  int running_ = 0;
};

constexpr size_t kWidest = 96;  // as on the device

struct Shared {
  Fibres fibres;
  std::vector<char> slots;  // (2, 2, threads, kWidest): of the team's reductions, of crews'
  std::vector<int> counts;
  std::vector<std::vector<char>> stages, shared;  // by block
  // Bulk copies by block and part: asked for, and done by who waits for them first, so that who
  // does not wait finds what was there before.
  struct Part {
    void* to = nullptr;
    const void* from;
    size_t bytes;
    bool asked = false;
  };
  std::vector<Part> parts;
};

class Team {
 public:
  static constexpr int kParts = 4;      // as on the device
  static constexpr int kLeastPart = 1;  // so that a few columns come in all of them
  static constexpr int kLeastRows = 1;  // so that crews share the rows of small classes
  static constexpr int kWidth = kCrew;

  Team(Shared& shared, int blocks, int places, int rank)
      : shared_(shared), blocks_(blocks), places_(places), rank_(rank) {}

  int place() const { return rank_ % places_; }
  int places() const { return places_; }
  int block() const { return rank_ / places_; }
  int blocks() const { return blocks_; }
  int rank() const { return rank_; }
  int size() const { return blocks_ * places_; }
  void* stage() const {
    std::vector<char>& stage = shared_.stages[size_t(block())];
    return stage.empty() ? nullptr : stage.data();
  }
  template <typename S>
  S& shared(int block) const {
    return *reinterpret_cast<S*>(shared_.shared[size_t(block)].data());
  }
  void sync() { shared_.fibres.wait(Waits::team); }
  void sync_block() { sync(); }

  template <typename V, typename Op>
  V reduce(V value, Op op) {
    return reduce(value, op, 0, size(), Waits::team);
  }

  int place_of(int k) const { return k % places_; }

  template <typename V, typename Make>
  V of_first_crew(Make make) {
    V value{};
    if (place() < kCrew) value = make();
    const int first = block() * places_;
    return reduce(value, [](const V& a, const V&) { return a; }, first, first + 1, Waits::team);
  }

  template <typename V, typename Op>
  V reduce_crews(V value, Op op) {
    return reduce(value, op, 0, size(), Waits::team, kCrew);
  }

  int before(int count, int& total) {
    shared_.counts[size_t(rank_)] = count;
    sync();
    int lower = 0;
    total = 0;
    for (int k = 0; k < size(); ++k) {
      if (k == rank_) lower = total;
      total += shared_.counts[size_t(k)];
    }
    return lower;
  }

  static int crew() { return kCrew; }
  template <typename Acc>
  Acc crew_sum(Acc value) {
    return of_crew(value, [](Acc a, Acc b) { return a + b; });
  }
  template <typename Acc>
  Acc crew_max(Acc value) {
    return of_crew(value, [](Acc a, Acc b) { return a > b ? a : b; });
  }

  template <typename Acc, int kCount, typename Store>
  void crew_sum_each(Acc (&values)[kCount], Store store) {
    struct All {
      Acc value[kCount];
    } all;
    std::memcpy(all.value, values, sizeof(values));
    all = of_crew(all, [](All a, const All& b) {
      for (int k = 0; k < kCount; ++k) a.value[k] += b.value[k];
      return a;
    });
    for (int k = rank_ % kCrew; k < kCount; k += kCrew) store(k, all.value[k]);
  }

  template <int kBytes>
  void copy_line(void* to, const void* from) {
    copies_.push_back({to, from, kBytes});
  }
  bool begins_bulk() { return shape.bulk && !std::exchange(begun_, true); }
  void copy_bulk(void* to, const void* from, int bytes, int part) {
    if (place() != 0) throw std::logic_error("one thread of a block asks for copies");
    for (uintptr_t place : {uintptr_t(to), uintptr_t(from), uintptr_t(bytes)})
      if (place % 16) throw std::logic_error("bulk copies are of lines of 16 bytes");
    Shared::Part& asked = shared_.parts[size_t(block() * kParts + part)];
    if (asked.asked) throw std::logic_error("a part is copied once");
    asked = {to, from, size_t(bytes), true};
  }
  void wait_bulk(int part) {
    Shared::Part& asked = shared_.parts[size_t(block() * kParts + part)];
    shared_.fibres.wait_until(asked.asked);
    if (asked.to) std::memcpy(asked.to, asked.from, asked.bytes);
    asked.to = nullptr;
  }
  void wait_for_copies() {
    for (const Copy& copy : copies_) std::memcpy(copy.to, copy.from, size_t(copy.bytes));
    copies_.clear();
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    int bytes;
  };

  template <typename Acc, typename Op>
  Acc of_crew(Acc value, Op op) {
    const int first = rank_ / kCrew * kCrew;
    return reduce(value, op, first, first + kCrew, Waits::crew);
  }

  // op over the values of every so-many-th thread from `begin` to `end`.
  template <typename V, typename Op>
  V reduce(V value, Op op, int begin, int end, Waits barrier, int step = 1) {
    static_assert(sizeof(V) <= kWidest && sizeof(V) % 4 == 0, "room for it on the device");
    const bool crew = barrier == Waits::crew;
    turn_[crew] ^= 1;
    char* slots = shared_.slots.data() + size_t((2 * crew + turn_[crew]) * size()) * kWidest;
    std::memcpy(slots + size_t(rank_) * kWidest, &value, sizeof(V));
    shared_.fibres.wait(barrier);
    std::memcpy(&value, slots + size_t(begin) * kWidest, sizeof(V));
    for (int k = begin + step; k < end; k += step) {
      V other;
      std::memcpy(&other, slots + size_t(k) * kWidest, sizeof(V));
      value = op(value, other);
    }
    return value;
  }

  Shared& shared_;
  const int blocks_, places_, rank_;
  int turn_[2] = {0, 0};  // of the team's reductions, of its crew's
  bool begun_ = false;
  std::vector<Copy> copies_;
};

// Runs a body's teams, one after the other.
template <typename Body, typename Call>
void run_teams(const Call& call, i64 n, int blocks, int places, i64 stage, size_t own) {
  ++launches;
  if (spared<typename Body::Acc>(call)) return;
  const int threads = blocks * places;
  const auto of_blocks = [&](size_t bytes) {
    return std::vector<std::vector<char>>(size_t(blocks), std::vector<char>(bytes));
  };
  Shared shared{Fibres(threads),
                std::vector<char>(4 * size_t(threads) * kWidest),
                std::vector<int>(size_t(threads)),
                of_blocks(size_t(stage)),
                of_blocks(own),
                {}};
  for (i64 i = 0; i < n; ++i) {
    fill_with_poison(shared.slots);
    for (auto& place : shared.stages) fill_with_poison(place);
    for (auto& place : shared.shared) fill_with_poison(place);
    shared.parts.assign(size_t(blocks * Team::kParts), {});
    shared.fibres.run([&](int rank) {
      Team team(shared, blocks, places, rank);
      Body::run(team, call, i);
    });
  }
}

class Launcher {
 public:
  // so that tests have more, and fewer
  static constexpr i64 many_rows() { return 4; }
  static constexpr i64 most_compared() { return 40; }

  template <typename Body>
  void once(Body, const Call& call) const {
    run_teams<Body>(call, 1, 1, shape.places, 0, 0);
  }

  template <typename Body>
  void warps(Body, const Call& call, i64 n) const {
    run_teams<Body>(call, n, 1, kCrew, 0, sizeof(typename Body::Shared));
  }

  template <typename Body>
  void rows(Body, const Call& call, i64 n, i64 bytes, bool stage) const {
    const i64 staged = stage && shape.staged ? bytes + 32 : 0;
    run_teams<Body>(call, n, shape.blocks, shape.places, staged, sizeof(typename Body::Shared));
  }

  template <typename Body>
  void pieces(Body, const Call& call, i64 n, i64) const {
    run_teams<Body>(call, n, shape.blocks, shape.places, 0, 0);
  }
};

class BinaryLauncher {
 public:
  static constexpr int crew = kCrew;
  static int places() { return shape.places; }

  template <typename Body>
  void teams(Body, const BinaryCall& call, i64 count) const {
    run_teams<Body>(call, count, 1, shape.places, 0, sizeof(typename Body::Shared));
  }

  template <typename Body>
  void once(Body, const BinaryCall& call) const {
    run_teams<Body>(call, 1, 1, shape.places, 0, 0);
  }
};

}  // namespace

void run(Work work, const Call& call, uintptr_t) {
  Launcher launch;
  for_type(call.p.dtype,
           [&](auto type) { run_of<typename decltype(type)::type>(launch, work, call); });
}

void run_binary(BinaryWork work, const BinaryCall& call, uintptr_t) {
  BinaryLauncher launch;
  for_type(call.p.dtype,
           [&](auto type) { run_binary_of<typename decltype(type)::type>(launch, work, call); });
}

BinaryRoom binary_room(const BinaryProblem& p) {
  return room_of(p, shape.places);
}

int64_t group_bytes(int64_t n, int64_t c, int dtype) {
  return group_bytes(n, c, DType(dtype));
}

int64_t learned_bytes(int dtype) {
  return learned_bytes(DType(dtype));
}

int64_t most_teams() {
  return 3;
}

const char* device_kind() {
  return "cpu";
}

namespace {

// Reads what it has not written, and says who came first.
struct Careless {
  using Acc = double;
  struct Shared {
    uint64_t word;
  };

  static void run(Team& team, const Call& call, i64 row) {
    auto* seen = static_cast<uint64_t*>(call.scratch.groups) + 4 * row;
    uint64_t local;
    if (seen[3] == 0) seen[3] = uint64_t(team.rank()) + 1;
    if (team.rank() != 0) return;
    std::memcpy(&seen[0], team.stage(), sizeof(uint64_t));
    seen[1] = team.shared<Shared>(0).word;
    asm volatile("" : "=m"(local));  // as far as the compiler knows it is written
    seen[2] = local;
  }
};

}  // namespace

}  // namespace lpl

// For tests, which call these through ctypes.
#define LPL_FOR_TESTS extern "C" __attribute__((visibility("default")))

LPL_FOR_TESTS void use_shape(int blocks, int places, bool staged, bool reversed) {
  lpl::shape = {blocks, places, staged, reversed, lpl::shape.bulk};
}

// Rows are staged in bulk, or line by line.
LPL_FOR_TESTS void use_bulk(bool bulk) {
  lpl::shape.bulk = bulk;
}

// The last come first.
LPL_FOR_TESTS void turn_order() {
  lpl::shape.reversed = !lpl::shape.reversed;
}

LPL_FOR_TESTS void use_poison(int poison) {
  lpl::poison = poison;
}

// Of two rows (stage, shared memory, a local number, rank of the first fibre + 1), as `careless`
// found them.
LPL_FOR_TESTS void careless(uint64_t* seen) {
  lpl::Call call{};
  call.scratch.groups = seen;
  lpl::Launcher().rows(lpl::Careless(), call, 2, 64, true);
}

// (launches of kernels, loads of 16-bit numbers) since the last time.
LPL_FOR_TESTS void take_counts(long* counts) {
  counts[0] = lpl::launches;
  counts[1] = lpl::loads;
  lpl::launches = lpl::loads = 0;
}
