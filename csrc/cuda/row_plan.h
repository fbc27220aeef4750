// How a launch of rows is dealt to blocks, by numbers alone, so that tests can ask without a
// device.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "call.h"

namespace lpl {

// What a launch depends on beside its rows.
struct Chip {
  i64 shared;     // bytes of shared memory that one block may have
  bool clusters;  // blocks can share a row
};

// What a kernel has for itself.
struct RowKernel {
  i64 shared;        // bytes of static shared memory
  int most_threads;  // of a block
};

struct RowPlan {
  int blocks;   // of a row
  int threads;  // of a block
  i64 stage;    // bytes on chip of a block; 0: none

  static constexpr int kWarp = 32, kMostBlocks = 8;
  static constexpr int kThreads = 256;         // of a block at most
  static constexpr int kClusterThreads = 128;  // of one that shares a row: fewer wait at barriers
  static constexpr int kPiecesOfThread = 16;   // before a block gets more threads
  static constexpr int kRowsBeside = 2;        // on a multiprocessor, before a row is cut
  static constexpr i64 kManyRows = 256;        // keep all of a device busy, a block each
  static constexpr i64 kMostCompared = 32768;  // to order rows by class, each with all others
  // Batches whose rows are ordered beside their statistics. By the model a logit of a row that
  // shares its class takes 0.15 ps more where that is not known, with a second pass 0.6: of so many
  // half as long as the launch that is saved, or twice. So many labels take L2 as long as comparing
  // them by themselves.
  static constexpr i64 kFewRows = 8192, kFewLogits = i64(1) << 23;
  static constexpr i64 kFewLosses = 512;  // whose rows find room at once: the last sums them
  static constexpr i64 kKept = 1024;      // bytes of a multiprocessor that each block costs
  static constexpr i64 kAlign = 128;      // of the stage

  // Bytes of a stage at most, whatever the row: what a kernel is allowed once for all.
  static i64 most_stage(const Chip& chip, const RowKernel& kernel) {
    return (chip.shared - kernel.shared - kAlign) / 16 * 16;
  }

  // A team for each of n rows of so many bytes, on chip if they find room and `staged`.
  static RowPlan of(const Chip& chip, const RowKernel& kernel, i64 n, i64 bytes, bool staged) {
    const i64 lines = lines_of(bytes);
    RowPlan plan{1, 0, 0};
    if (staged) {
      // as many blocks as leave room for two rows on a multiprocessor: they hide each other's
      // phases
      const i64 wanted = (chip.shared + kKept) / kRowsBeside - kKept - kernel.shared - kAlign;
      while (chip.clusters && plan.blocks < kMostBlocks && slice(lines, plan.blocks) > wanted)
        plan.blocks *= 2;
      plan.stage = slice(lines, plan.blocks);
      if (plan.stage > most_stage(chip, kernel)) plan = {1, 0, 0};
    }
    expect_grid(n, plan.blocks);
    const int most = std::min(plan.blocks > 1 ? kClusterThreads : kThreads, kernel.most_threads);
    plan.threads =
        std::min(threads_for((lines + plan.blocks - 1) / plan.blocks, n * plan.blocks), most);
    return plan;
  }

  // The same for teams whose threads need nothing of each other: few rows are cut.
  static RowPlan of_pieces(i64 n, i64 bytes) {
    const i64 lines = lines_of(bytes);
    i64 blocks = 1;
    while (n * blocks < kManyRows && lines > 2 * blocks * kThreads) blocks *= 2;
    expect_grid(n, blocks);
    return {int(blocks), threads_for((lines + blocks - 1) / blocks, n * blocks), 0};
  }

 private:
  // Of 16 bytes, of a row that begins anywhere.
  static i64 lines_of(i64 bytes) { return (bytes + 15) / 16 + 1; }
  // Bytes of a block's share of a row.
  static i64 slice(i64 lines, int blocks) { return (lines + blocks - 1) / blocks * 16; }

  // Many blocks hide each other's waiting, few have to be quick.
  static int threads_for(i64 lines, i64 blocks) {
    const int most = blocks < 4 * kManyRows ? kPiecesOfThread / 4 : kPiecesOfThread;
    int threads = kWarp;
    while (threads < kThreads && threads * most < lines) threads *= 2;
    return threads;
  }

  static void expect_grid(i64 n, i64 blocks) {
    if (n > (i64(1) << 31) / blocks - 1) throw std::runtime_error("more rows than a grid has");
  }
};

}  // namespace lpl
