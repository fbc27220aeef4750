// Moments of a class's steps between which its tail is interpolated: see group_solver.h.
#pragma once

#include <algorithm>

#include "../bend.h"
#include "simd.h"

namespace lpl {
namespace {

constexpr int kMostNodes = 24;

// Some moments of the walk, the first of which is its start. Rows of N numbers follow each other.
struct Nodes {
  int count = 0;  // beyond the start
  double at[kMostNodes + 1], ratio[kMostNodes + 1];
  Bend bend[kMostNodes + 1];
  Vector<double> way;    // W
  Vector<double> shape;  // 1/Z over the gradient's entry at the target, if steps are normalised
  Vector<double> gains;  // of the tail's mass, as soon as they are known

  // Lobatto's points, of which the start is one.
  static double place(int m, int nodes) {
    const double sine = std::sin(1.5707963267948966 * m / nodes);
    return sine * sine;
  }

  // To be called once all nodes are there.
  void settle() {
    for (int m = 0; m <= count; ++m) {
      pull[m] = 1;
      for (int other = 0; other <= count; ++other)
        if (other != m) pull[m] *= at[count] / (at[m] - at[other]);
    }
  }

  // Weights of the nodes in a polynomial through them, at `where` or not far beyond the end: the
  // barycentric formula.
  void interpolate(double where, double* weights) const {
    where = std::min(where, 1.125 * at[count]);
    double total = 0;
    for (int m = 0; m <= count; ++m) {
      const double off = where - at[m];
      if (off == 0) {
        std::fill(weights, weights + count + 1, 0.0);
        weights[m] = 1;
        return;
      }
      total += weights[m] = pull[m] / off;
    }
    for (int m = 0; m <= count; ++m) weights[m] /= total;
  }

 private:
  double pull[kMostNodes + 1];  // of the barycentric formula
};

}  // namespace
}  // namespace lpl
