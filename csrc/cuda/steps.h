// The columns of a row that one thread has, whatever their row.
#pragma once

#include "rows.h"

namespace lpl {

// Every so-many-th: a column is the work of one thread, in every row.
template <typename Team, typename T>
class Strided {
 public:
  using Acc = typename AccumulateOf<T>::type;
  static constexpr int kSize = 1;

  LPL_DEVICE Strided(const Team& team, const T* row, int c)
      : first_(team.rank()), step_(team.size()), c_(c), row_(row) {}

  template <typename F>
  LPL_DEVICE void visit(F f) const {
    for (int j = first_; j < c_; j += step_) {
      const Acc u = load(row_[j]);
      f(j, &u, Whole());
    }
  }
  template <typename F>
  LPL_DEVICE void visit_arriving(F f) const {
    visit(f);
  }
  LPL_DEVICE static bool inside(int) { return true; }

 private:
  const int first_, step_, c_;
  const T* row_;
};

}  // namespace lpl
