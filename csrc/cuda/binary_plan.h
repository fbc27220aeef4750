// How a call of multi-label losses is dealt to teams: by its shape alone.
#pragma once

#include "../binary.h"
#include "call.h"

namespace lpl {

// How logits are dealt to teams where nothing depends on their class: in spans, of rows or, where
// these follow one another, of memory.
struct Spans {
  static constexpr i64 kLongest = 16384, kShortest = 2048, kMany = 1024;

  i64 count, length;
  i64 size;                  // of all logits
  i64 stride, label_stride;  // from one span's to the next
  static Spans of(const BinaryProblem& p) {
    const i64 size = p.n * p.c;
    if (p.row_stride != p.c || p.target_stride != p.c)
      return {p.n, p.c, size, p.row_stride, p.target_stride};
    return of_memory(size);
  }
  static Spans of_memory(i64 size) {
    i64 length = kLongest;
    while (length > kShortest && size < kMany * length) length /= 2;
    return {(size + length - 1) / length, length, size, length, length};
  }
};

// … and where it does: in tiles of rows and columns, of which a thread has one, so that what
// belongs to the class stays in registers.
struct Tiles {
  static constexpr int kRows = 64, kLeastRows = 8, kMany = 1024;  // rows of a thread

  int wide, rows;  // of a tile
  int across;      // tiles
  i64 down;

  // For teams of so many threads.
  static Tiles of(const BinaryProblem& p, int places) {
    Tiles found{places, 0, 0, 0};
    while (found.wide > 1 && found.wide / 2 >= p.c) found.wide /= 2;
    found.across = int((p.c + found.wide - 1) / found.wide);
    const int beside = places / found.wide;
    int each = kRows;
    const auto down = [&] { return (p.n + each * beside - 1) / (each * beside); };
    while (each > kLeastRows && down() * found.across < kMany) each /= 2;
    found.rows = each * beside;
    found.down = down();
    return found;
  }

  i64 count() const { return across * down; }
};

constexpr int kMostRows = 1024;  // whose moments are summed at once

// How the columns of a batch are dealt to teams: to the threads of a warp each one, which its warps
// share by rows.
struct Chunks {
  static constexpr int kMany = 512, kLeastRows = 256;

  int rows;  // of a chunk
  i64 count;

  static Chunks of(const BinaryProblem& p) {
    int rows = kMostRows;
    while (rows > kLeastRows && (p.n + rows - 1) / rows * ((p.c + 31) / 32) < kMany) rows /= 2;
    return {rows, (p.n + rows - 1) / rows};
  }
};

}  // namespace lpl
