// The CUDA backend without a GPU: the same bodies and the same teams (csrc/cuda), run by fibres on
// host memory.
//
// A fibre is a thread of a block. One runs until it waits for its warp, its block or its cluster; a
// warp runs until all of it waits for more than that, and a block likewise, so that the first is as
// far ahead of the last as it can be. A barrier that is missing, or is of too few, shows as a
// result that depends on the order in which they take turns: `order` turns it round, or mixes it.
// Fibres that wait for different things, or that end while others wait, are an error.
//
// What a device leaves as it was, memory on chip and registers, holds `poison` before every row: a
// read of what nobody has written shows as a result that depends on it. So does the memory of a
// block that has not begun, or has ended, in the eyes of the others. Beside it there are guards.
#include <dlfcn.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
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

#include "../csrc/cuda/bulk.h"

namespace lpl {
namespace {

long launches = 0;

struct Shape {
  int blocks = 2, places = 4;
  bool staged = true, reversed = false, bulk = true, mixed = false, replayed = false;
  bool beside = true;
} shape;

// A byte, kRandom or kCodes: a nan hides from a comparison, which a number that is huge or usual
// does not; and none of them is a code, as words may be that another call has left.
constexpr int kRandom = 256, kCodes = 257;
constexpr uint64_t kMostCodes = 0x0000000700000007;
int poison = 0xff;

uint64_t drawn() {
  static uint64_t state = 1;  // goes on, so that no two rows find the same
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state ^ state >> 29;
}

void fill_with_poison(char* memory, size_t size) {
  if (poison < kRandom) {
    std::memset(memory, poison, size);
    return;
  }
  for (size_t k = 0; k < size; k += sizeof(uint64_t)) {
    const uint64_t word = poison == kCodes ? drawn() >> 8 & kMostCodes : drawn();
    std::memcpy(memory + k, &word, std::min(sizeof(word), size - k));
  }
}

// Memory on chip between guards.
class OnChip {
 public:
  explicit OnChip(size_t size)
      : size_(size), memory_(size + 2 * kGuard + kAlign, kMark), begin_(first()) {}

  char* begin() const { return begin_; }
  bool has(const void* place) const {
    const char* at = static_cast<const char*>(place);
    return at >= begin_ && at < begin_ + size_;
  }
  void spoil() { fill_with_poison(begin_, size_); }
  void check() const {
    for (size_t k = 0; k < kGuard; ++k)
      if (begin_[-1 - ptrdiff_t(k)] != kMark || begin_[size_ + k] != kMark)
        throw std::logic_error("a body has written beside its memory on chip");
  }

 private:
  static constexpr size_t kGuard = 64, kAlign = 128;
  static constexpr char kMark = char(0xA5);

  char* first() {
    const uintptr_t place = uintptr_t(memory_.data()) + kGuard;
    return reinterpret_cast<char*>((place + kAlign - 1) / kAlign * kAlign);
  }

  size_t size_;
  std::vector<char> memory_;
  char* begin_;
};

constexpr int kCrew = 2;  // threads of a warp
constexpr size_t kStack = 256 << 10, kPoisonedStack = 16 << 10;
constexpr size_t kSlot = 96;  // bytes of the widest value that lanes exchange

enum class Waits { no, crew, block, cluster, bulk, over };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Fibre {
  ucontext_t context;
  std::vector<char> stack;
  Waits waits;
  const void* site;   // where it waits
  const bool* until;  // of Waits::bulk
  std::vector<Copy> copies;
  char slots[2][kSlot];  // what it gives to lanes of its warp, by turns
  int turn;
};

// A block of a cluster: what it has on chip.
struct Block {
  OnChip own, stage;
  struct Part {
    void* to = nullptr;
    const void* from;
    size_t bytes;
    bool asked = false;
  };
  // Bulk copies: asked for, and done by who waits for them first, so that who does not wait finds
  // what was there before.
  Part parts[kBulkParts];
  bool begun, ended;
};

#define LPL_SEEN __attribute__((noinline, noclone))

// Runs a body in as many fibres as a team has threads.
class Fibres {
 public:
  Fibres(int blocks, int places, size_t own, size_t stage, bool cluster)
      : places_(places), cluster_(cluster), fibres_(size_t(blocks * places)) {
    for (Fibre& fibre : fibres_) fibre.stack.resize(kStack);
    for (int k = 0; k < blocks; ++k)
      blocks_.push_back({OnChip(own), OnChip(stage), {}, false, false});
  }

  void run(i64 first_block, std::function<void()> body) {
    body_ = std::move(body);
    first_block_ = first_block;
    current = this;
    for (Block& block : blocks_) {
      block.begun = block.ended = false;
      for (Block::Part& part : block.parts) part = {};
    }
    for (Fibre& fibre : fibres_) {
      fill_with_poison(locals_.data(), locals_.size());
      std::copy(locals_.begin(), locals_.end(), fibre.stack.end() - kPoisonedStack);
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.data();
      fibre.context.uc_stack.ss_size = kStack;
      fibre.context.uc_link = &main_;
      makecontext(&fibre.context, &Fibres::begin, 0);
      fibre.waits = Waits::no;
      fibre.copies.clear();
      fibre.turn = 0;
    }
    while (turn())
      if (fault_)
        std::rethrow_exception(fault_);
      else if (!open(0, int(fibres_.size()), Waits::cluster) && !arrived())
        throw std::logic_error("threads of a team wait for different barriers");
    if (fault_) std::rethrow_exception(fault_);
    for (const Fibre& fibre : fibres_)
      if (!fibre.copies.empty()) throw std::logic_error("a copy was not waited for");
    for (const Block& block : blocks_) {
      block.own.check();
      block.stage.check();
    }
  }

  // Waits for something that another fibre does.
  void wait_until(const bool& done) {
    if (done) return;
    running().until = &done;
    wait_at(Waits::bulk, nullptr);
  }

  // Not inlined: where they are called from is where a fibre waits.
  LPL_SEEN void wait(Waits what) { wait_at(what, __builtin_return_address(0)); }

  // A value of another lane of the warp, which all of its threads ask for.
  LPL_SEEN const char* exchanged(const void* value, size_t size, int partner) {
    Fibre& fibre = running();
    const int lane = running_ % kCrew, first = running_ - lane;
    if (partner < 0 || partner >= kCrew) throw std::logic_error("a warp has no such lane");
    fibre.turn ^= 1;
    std::memcpy(fibre.slots[fibre.turn], value, size);
    wait_at(Waits::crew, __builtin_return_address(0));
    return fibres_[size_t(first + partner)].slots[fibre.turn];
  }

  Fibre& running() { return fibres_[size_t(running_)]; }
  int place() const { return running_ % places_; }
  int places() const { return places_; }
  int block() const { return running_ / places_; }
  unsigned grid_block() const { return unsigned(first_block_ + block()); }
  bool cluster() const { return cluster_; }
  Block& block(int k) { return blocks_[size_t(k)]; }
  int blocks() const { return int(blocks_.size()); }

  static inline Fibres* current = nullptr;

 private:
  static void begin() {
    Fibres* self = current;
    try {
      self->body_();
    } catch (...) {
      self->fault_ = std::current_exception();
    }
    self->running().waits = Waits::over;
  }

  void wait_at(Waits what, const void* site) {
    Fibre& fibre = running();
    fibre.waits = what;
    fibre.site = site;
    swapcontext(&fibre.context, &main_);
  }

  // Lets every block run until all of it waits for the cluster, one after the other, and of a block
  // every crew until all of it waits for the block. False when all are over.
  bool turn() {
    const int count = int(blocks_.size()), crews = places_ / kCrew;
    for_each(count, [&](int b) {
      Block& block = blocks_[size_t(b)];
      if (!block.begun) {
        block.own.spoil();
        block.stage.spoil();
        block.begun = true;
      }
      const int from = b * places_;
      do {
        for_each(crews, [&](int crew) {
          const int begin = from + crew * kCrew;
          do {
            for_each(kCrew, [&](int lane) {
              running_ = begin + lane;
              Fibre& fibre = running();
              if (fibre.waits == Waits::bulk && *fibre.until) fibre.waits = Waits::no;
              if (fibre.waits == Waits::no) swapcontext(&main_, &fibre.context);
            });
          } while (open(begin, begin + kCrew, Waits::crew));
        });
      } while (open(from, from + places_, Waits::block));
      if (!block.ended && all(from, from + places_, Waits::over)) {
        block.own.spoil();
        block.ended = true;
      }
    });
    return !all(0, int(fibres_.size()), Waits::over);
  }

  template <typename F>
  void for_each(int count, F f) {
    const int first = shape.mixed ? int(drawn() >> 40) % count : 0;
    for (int k = 0; k < count; ++k) {
      const int at = (k + first) % count;
      f(shape.reversed ? count - 1 - at : at);
    }
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

  // For addr2line.
  static std::string where(const void* site) {
    Dl_info module{};
    dladdr(site, &module);
    std::ostringstream text;
    text << "at " << site << " of a module at " << module.dli_fbase;
    return text.str();
  }

  // Opens a barrier if all that it is for have arrived.
  bool open(int begin, int end, Waits what) {
    if (!all(begin, end, what)) return false;
    for (int k = begin; k < end; ++k) {
      const void *one = fibres_[size_t(begin)].site, *other = fibres_[size_t(k)].site;
      if (one != other)
        throw std::logic_error("threads wait for each other, one " + where(one) + ", one " +
                               where(other));
      fibres_[size_t(k)].waits = Waits::no;
    }
    return true;
  }

  const int places_;
  const bool cluster_;
  std::vector<Fibre> fibres_;
  std::vector<Block> blocks_;
  std::vector<char> locals_ = std::vector<char>(kPoisonedStack);
  ucontext_t main_;
  std::function<void()> body_;
  std::exception_ptr fault_;
  i64 first_block_ = 0;
  int running_ = 0;
};

// machine.cuh of fibres.
struct Machine {
  static constexpr int kWarp = kCrew, kMostWarps = 32, kMostBlocks = 8;
  static constexpr int kLeastPart = 1;  // so that a few columns come in all parts
  static constexpr int kLeastRows = 1;  // so that crews share the rows of small classes

  static Fibres& here() { return *Fibres::current; }
  static int thread() { return here().place(); }
  static int threads() { return here().places(); }
  static unsigned block() { return here().grid_block(); }

  static void sync_warp() { here().wait(Waits::crew); }
  static void sync_block() { here().wait(Waits::block); }
  static void sync_cluster() {
    if (!here().cluster()) throw std::logic_error("these blocks are no cluster");
    here().wait(Waits::cluster);
  }
  template <typename V>
  static V* of_block(V* own, int block) {
    Fibres& all = here();
    if (!all.cluster()) throw std::logic_error("these blocks are no cluster");
    Block& mine = all.block(all.block());
    if (!mine.own.has(own)) throw std::logic_error("what others ask for is memory on chip");
    char* there = all.block(block).own.begin() + (reinterpret_cast<char*>(own) - mine.own.begin());
    return reinterpret_cast<V*>(there);
  }

  static bool is_last(int32_t* arrived, int count) {
    if (*arrived < 0 || *arrived >= count)
      throw std::logic_error("more arrive than are waited for");
    const bool last = ++*arrived == count;
    if (last) *arrived = 0;
    return last;
  }

  template <typename V>
  static V across(const V& value, int bits) {
    return of_lane(value, thread() % kWarp ^ bits);
  }
  template <typename V>
  static V of_first_lane(const V& value) {
    return of_lane(value, 0);
  }
  static int from_below(int value, int lanes) {
    const int lane = thread() % kWarp;
    return of_lane(value, lane < lanes ? lane : lane - lanes);
  }

  template <int kBytes>
  static void copy_line(void* to, const void* from) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "what cp.async has");
    for (const uintptr_t place : {uintptr_t(to), uintptr_t(from)})
      if (place % kBytes) throw std::logic_error("copies are of lines of memory");
    here().running().copies.push_back({to, from, kBytes});
  }
  static void wait_for_copies() {
    for (const Copy& copy : here().running().copies)
      std::memcpy(copy.to, copy.from, size_t(copy.bytes));
    here().running().copies.clear();
  }

  static bool begins_bulk(Arrivals*) {
    sync_block();
    return true;
  }
  static void copy_bulk(Arrivals*, int part, void* to, const void* from, int bytes) {
    if (thread() != 0) throw std::logic_error("one thread of a block asks for copies");
    for (const uintptr_t place : {uintptr_t(to), uintptr_t(from), uintptr_t(bytes)})
      if (place % 16) throw std::logic_error("bulk copies are of lines of 16 bytes");
    Block::Part& asked = here().block(here().block()).parts[part];
    if (asked.asked) throw std::logic_error("a part is copied once");
    asked = {to, from, size_t(bytes), true};
  }
  static void wait_bulk(Arrivals*, int part) {
    Block::Part& asked = here().block(here().block()).parts[part];
    here().wait_until(asked.asked);
    if (asked.to) std::memcpy(asked.to, asked.from, asked.bytes);
    asked.to = nullptr;
  }

 private:
  template <typename V>
  static V of_lane(const V& value, int lane) {
    static_assert(sizeof(V) <= kSlot && sizeof(V) % 4 == 0, "words");
    V other;
    std::memcpy(&other, here().exchanged(&value, sizeof(V), lane), sizeof(V));
    return other;
  }
};

}  // namespace
}  // namespace lpl

#include "../csrc/cuda/binary_calls.h"
#include "../csrc/cuda/calls.h"
#include "../csrc/cuda/row_plan.h"
#include "../csrc/cuda/team.h"

namespace lpl {
namespace {

// What a kernel's threads share: its teams' own, and its body's.
template <typename Body>
struct alignas(16) Own {
  Exchange exchange;
  Arrivals arrivals;
  typename SharedOf<Body>::type shared;
};

// Runs a body's teams, one after the other: run(own, stage, i) of each. Where LPL_IDLE is defined
// nothing runs: what is left is the host's work before a launch (benchmarks/host_time.py).
template <typename Body, typename Call, typename Run>
void run_teams(const Call& call, i64 n, int blocks, int places, i64 stage, bool cluster, Run run) {
  if (n == 0) return;  // what there is of an upstream gradient of no rows nobody may read
  ++launches;
#if defined(LPL_IDLE)
  return;
#else
  if (spared<typename Body::Acc>(call)) return;
  Fibres fibres(blocks, places, sizeof(Own<Body>), size_t(stage), cluster);
  for (i64 k = 0; k < n; ++k) {
    const i64 i = shape.reversed ? n - 1 - k : k;  // no team may count on an earlier one
    fibres.run(i * blocks, [&] {
      Block& block = fibres.block(fibres.block());
      run(reinterpret_cast<Own<Body>*>(block.own.begin()), stage ? block.stage.begin() : nullptr,
          i);
    });
  }
#endif
}

class Launcher {
 public:
#if defined(LPL_IDLE)
  static constexpr i64 many_rows() { return RowPlan::kManyRows; }
  static constexpr i64 most_compared() { return RowPlan::kMostCompared; }
  static constexpr i64 few_rows() { return RowPlan::kFewRows; }
  static constexpr i64 few_logits() { return RowPlan::kFewLogits; }
  static constexpr i64 few_losses() { return RowPlan::kFewLosses; }
#else
  // so that tests have more, and fewer
  static constexpr i64 many_rows() { return 4; }
  static constexpr i64 most_compared() { return 40; }
  static i64 few_rows() { return shape.beside ? most_compared() : 0; }
  static constexpr i64 few_logits() { return i64(1) << 40; }
  static constexpr i64 few_losses() { return 6; }
#endif

  static constexpr int crew = kCrew;
  static int batch_places() { return shape.places; }

  template <typename Body>
  void batches(Body, const Call& call, i64 count) const {
    run_teams<Body>(call, count, 1, shape.places, 0, false, [&](Own<Body>* own, char*, i64 i) {
      Team team(&own->exchange, &own->shared, nullptr, nullptr, 1);
      Body::run(team, call, i);
    });
  }

  template <typename Body>
  void once(Body, const Call& call) const {
    batches(Body(), call, 1);
  }

  template <typename Body, typename Other>
  void warps_beside(Body, i64 n, Other, i64 teams, const Call& call) const {
    beside([&] { rows(Other(), call, teams, 0, false); }, [&] { warps(Body(), call, n); });
  }

  template <typename Body>
  void warps(Body, const Call& call, i64 n) const {
    run_teams<Body>(call, n, 1, kCrew, 0, false, [&](Own<Body>* own, char*, i64 i) {
      Crew crew(&own->shared);
      Body::run(crew, call, i);
    });
  }

  // Teams are as large as a block of a row's; one more may have nothing to do.
  template <typename Body, typename Other, typename Teams>
  void rows_beside(Body, const Call& call, i64 n, i64 bytes, Other, Teams teams_of) const {
    const int places = places_of(shape.staged ? shape.blocks : 1);
    const i64 teams = teams_of(places);
    const auto run = [&](Own<Other>* own, char*, i64 i) {
      Team team(&own->exchange, &own->shared, nullptr, nullptr, 1);
      Other::run(team, call, i);
    };
    const auto others = [&] { run_teams<Other>(call, teams + 1, 1, places, 0, false, run); };
    const auto rows_of = [&] { rows(Body(), call, n, bytes, true); };
    if (n == 0) return;
    if (teams == 0) return rows_of();
    beside(others, rows_of);
  }

  template <typename Body>
  void rows(Body, const Call& call, i64 n, i64 bytes, bool stage) const {
    // as on a device blocks share a row where it is staged; else one has as many threads
    const i64 staged = stage && shape.staged ? bytes + 32 : 0;
    const int blocks = staged ? shape.blocks : 1;
    const int places = places_of(blocks);
    const auto run = [&](Own<Body>* own, char* place, i64 i) {
      Arrivals* arrivals = staged && shape.bulk ? &own->arrivals : nullptr;
      Team team(&own->exchange, &own->shared, place, arrivals, blocks);
      run_row<Body>(team, call, i);
    };
    run_teams<Body>(call, n, blocks, places, staged, blocks > 1, run);
  }

  template <typename Body>
  void pieces(Body, const Call& call, i64 n, i64) const {
    run_teams<Body>(call, n, shape.blocks, shape.places, 0, false, [&](Own<Body>*, char*, i64 i) {
      Team team(nullptr, nullptr, nullptr, nullptr, shape.blocks);
      Body::run(team, call, i);
    });
  }

  // Two rows, or parts of one, a block: one more of them than there are rows may have a place.
  template <typename Body, typename Other>
  void pieces_beside(Body, const Call& call, i64 n, i64, Other, i64 teams, i64) const {
    constexpr int kSquads = 2;
    const i64 blocks = (n * shape.blocks + kSquads - 1) / kSquads;
    const auto squads = [&] {
      run_teams<Body>(call, blocks, 1, kSquads * shape.places, 0, false,
                      [&](Own<Body>*, char*, i64 block) {
                        Squad squad(unsigned(block), shape.places, shape.blocks);
                        Body::run(squad, call, squad.row());
                      });
    };
    beside([&] { rows(Other(), call, teams, 0, false); }, squads);
  }

 private:
  // Threads of a block, where so many share a row.
  static int places_of(int blocks) {
    int places = shape.places;
    while (places < shape.places * shape.blocks / blocks) places *= 2;
    return places;
  }

  // Two kinds of blocks of one launch, of which neither may count on the other.
  template <typename One, typename Other>
  static void beside(One one, Other other) {
    if (shape.reversed) {
      other();
      one();
    } else {
      one();
      other();
    }
    --launches;
  }
};

class BinaryLauncher {
 public:
  static constexpr int crew = kCrew;
  static int places() { return shape.places; }

  template <typename Body>
  void teams(Body, const BinaryCall& call, i64 count) const {
    run_teams<Body>(call, count, 1, shape.places, 0, false, [&](Own<Body>* own, char*, i64 i) {
      Team team(&own->exchange, &own->shared, nullptr, nullptr, 1);
      Body::run(team, call, i);
    });
  }

  template <typename Body>
  void once(Body, const BinaryCall& call) const {
    teams(Body(), call, 1);
  }
};

// A CUDA graph that is launched again finds what it has left; a gradient that is scaled where it
// is would be scaled twice.
template <typename Work, typename Run>
void replayed(Work work, Work in_place, Run run) {
  run();
  if (shape.replayed && work != in_place) run();
}

}  // namespace

void run(Work work, const Call& call, uintptr_t) {
  Launcher launch;
  replayed(work, Work::rescale, [&] {
    for_type(call.p.dtype,
             [&](auto type) { run_of<typename decltype(type)::type>(launch, work, call); });
  });
}

void run_binary(BinaryWork work, const BinaryCall& call, uintptr_t) {
  BinaryLauncher launch;
  replayed(work, BinaryWork::binary_rescale, [&] {
    for_type(call.p.dtype,
             [&](auto type) { run_binary_of<typename decltype(type)::type>(launch, work, call); });
  });
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

int64_t most_teams(int) {
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

// What a device would not say, each by itself: `kind` numbers them.
enum class Fault {
  none,
  lanes,     // lanes tell each other through memory on chip, without a barrier
  crews,     // a barrier of the warp where the block's is wanted
  blocks,    // a barrier of the block where the cluster's is wanted
  ended,     // reads of a block that may have ended
  returned,  // one thread returns where others wait
  diverged,  // lanes exchange values with lanes that do something else
  beside,    // a store beside memory on chip
  waits,     // a copy is not waited for
};

template <Fault kFault>
struct Faulty {
  using Acc = double;
  struct Shared {
    int of[64];
  };

  static void run(Team& team, const Call& call, i64) {
    constexpr bool in_block = kFault == Fault::lanes || kFault == Fault::crews;
    auto* seen = static_cast<int*>(call.scratch.groups);
    Shared& mine = team.template shared<Shared>(team.block());
    if (kFault != Fault::lanes) mine.of[team.place()] = team.rank();
    if (kFault == Fault::beside) (&mine.of[0])[64 + team.place()] = 0;
    if (kFault == Fault::returned && team.rank() == 1) return;
    if (kFault == Fault::diverged && team.rank() % 2) Machine::sync_warp();
    seen[team.rank()] = Team::crew_sum(1);
    if (kFault == Fault::lanes) mine.of[team.place()] = team.rank();
    if (kFault == Fault::crews) Machine::sync_warp();
    if (kFault == Fault::blocks) team.sync_block();
    if (kFault == Fault::waits) team.template copy_line<4>(&mine.of[team.place()], seen);
    if (!in_block && kFault != Fault::blocks) team.sync();
    const int other = in_block ? team.block() : team.blocks() - 1 - team.block();
    const int place = kFault == Fault::lanes ? team.place() ^ 1 : team.places() - 1 - team.place();
    seen[team.rank()] = team.template shared<Shared>(other).of[place];
    // … of those who are right all wait for each other before they end
    if (kFault != Fault::ended) team.sync();
  }
};

template <int kFault>
void run_faulty(int fault, const Call& call) {
  if constexpr (kFault <= int(Fault::waits)) {
    if (fault != kFault) return run_faulty<kFault + 1>(fault, call);
    using Body = Faulty<Fault(kFault)>;
    run_teams<Body>(call, 1, 2, 8, 0, true, [&](Own<Body>* own, char*, i64) {
      Team team(&own->exchange, &own->shared, nullptr, nullptr, 2);
      Body::run(team, call, 0);
    });
  }
}

}  // namespace

}  // namespace lpl

// For tests, which call these through ctypes.
#define LPL_FOR_TESTS extern "C" __attribute__((visibility("default")))

LPL_FOR_TESTS void use_shape(int blocks, int places, bool staged, bool reversed) {
  const bool beside = lpl::shape.beside;
  lpl::shape = {blocks, places, staged, reversed, lpl::shape.bulk};
  lpl::shape.beside = beside;
}

// Rows are staged in bulk, or line by line.
LPL_FOR_TESTS void use_bulk(bool bulk) {
  lpl::shape.bulk = bulk;
}

// Rows are ordered by class beside their statistics, if they are not too many, or before these.
LPL_FOR_TESTS void use_beside(bool beside) {
  lpl::shape.beside = beside;
}

// The last come first; or every second time whoever it may be.
LPL_FOR_TESTS void turn_order() {
  static int turns = 0;
  lpl::shape.reversed = !lpl::shape.reversed;
  lpl::shape.mixed = lpl::shape.reversed && ++turns % 2 == 0;
}

// All kernels of a call are launched twice.
LPL_FOR_TESTS void use_replay(bool replayed) {
  lpl::shape.replayed = replayed;
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

// What 16 threads of two blocks tell each other in spite of a fault, or why that is none.
LPL_FOR_TESTS const char* faulty(int fault, int* seen) {
  static std::string said;
  lpl::Call call{};
  call.scratch.groups = seen;
  try {
    lpl::run_faulty<0>(fault, call);
    said.clear();
  } catch (const std::logic_error& error) {
    said = error.what();
  }
  return said.c_str();
}

// How a launch of rows is dealt: (blocks, threads, bytes of the stage), or false where a grid has
// not so many; on a chip of so much shared memory, for a kernel that has so much for itself.
LPL_FOR_TESTS bool row_plan(int64_t chip, bool clusters, int64_t own, int most_threads, int64_t n,
                            int64_t bytes, bool staged, int64_t* plan) {
  try {
    const auto found = lpl::RowPlan::of({chip, clusters}, {own, most_threads}, n, bytes, staged);
    plan[0] = found.blocks;
    plan[1] = found.threads;
    plan[2] = found.stage;
    plan[3] = lpl::RowPlan::most_stage({chip, clusters}, {own, most_threads});
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

// (launches of kernels, loads of 16-bit numbers) since the last time.
LPL_FOR_TESTS void take_counts(long* counts) {
  counts[0] = lpl::launches;
  counts[1] = lpl::loads;
  lpl::launches = lpl::loads = 0;
}
