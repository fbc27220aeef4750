// Counts the exponentials of one call: every function is compiled to report that it is entered
// (-finstrument-functions), and those that are exponentials are counted.
//
//     count_exponentials ROWS CLASSES ROWS_PER_CLASS STEPS NORMALIZE SWEEP
//
// Float32 logits of standard deviation 2, half of the classes raised by STEPS, half lowered, steps
// of 0.1; STEPS 0 is plain cross-entropy, SWEEP 1 takes plain steps where 0 solves. Prints what
// loss and gradient cost in exponentials per logit, and how many rows were solved. Instructions,
// of a build with the flags of setup.py, are those of valgrind --tool=callgrind
// --toggle-collect=measured.
#include <cstdio>
#include <random>

#include "kernels.cpp"

namespace {
long exponentials = 0;
}

extern "C" __attribute__((no_instrument_function)) void __cyg_profile_func_enter(void* entered,
                                                                                 void*) {
  const auto is = [=](auto* function) __attribute__((no_instrument_function)) {
    return entered == reinterpret_cast<void*>(function);
  };
  exponentials += is(static_cast<float (*)(float)>(lpl::exp_of));
  exponentials += is(static_cast<double (*)(double)>(lpl::exp_of));
  // of rows side by side: their targets', and their heads' where steps are brief, or many and short
  using OfPack = lpl::Pack (*)(lpl::Pack);
  exponentials += lpl::kPack * is(static_cast<OfPack>(lpl::exp_of<false>));
  exponentials += lpl::kPack * is(static_cast<OfPack>(lpl::exp_near_zero<7, 0>));
  exponentials += lpl::kPack * is(static_cast<OfPack>(lpl::exp_near_zero<4, 0>));
  exponentials += lpl::kPack * is(static_cast<OfPack>(lpl::soon_exp_of));
}
extern "C" __attribute__((no_instrument_function)) void __cyg_profile_func_exit(void*, void*) {}

// Loss and gradient by the solver, or by plain steps alone.
extern "C" __attribute__((noinline)) lpl::Status measured(const lpl::Problem& p,
                                                          const lpl::Outputs& out, bool plain) {
  if (!plain) return lpl::LPL_ISA::cross_entropy(p, out);
  const lpl::Call<float> call(p);
  const lpl::Learned<float> learned(call);
  const lpl::Grouping grouping(p);
  const lpl::RowLoss<float> row_loss(call, out, 1);
  auto workspace = row_loss.workspace();
  lpl::Vector<float> delta(p.c);
  for (const lpl::Group& group : grouping.groups) {
    learned.run(group, delta.data(), 1);
    for (int64_t r = 0; r < group.size; ++r) row_loss.run(group.rows[r], delta.data(), workspace);
  }
  return {};
}

int main(int count, char** arguments) {
  if (count != 7) return 2;
  long given[6];
  for (int k = 0; k < 6; ++k) given[k] = std::atol(arguments[k + 1]);
  const auto [n, c, size, steps, normalize, plain] = given;

  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(n * c), grad(n * c);
  for (float& logit : logits) logit = normal(random);
  std::vector<int64_t> target(n);
  for (long i = 0; i < n; ++i) target[i] = i / size * 7919 % c;
  std::vector<int32_t> signed_steps(c);
  for (long j = 0; j < c; ++j) signed_steps[j] = int32_t(j % 2 ? steps : -steps);

  lpl::Problem p{};
  p.input = logits.data();
  p.n = n;
  p.c = p.row_stride = c;
  p.dtype = lpl::DType::f32;
  p.target = target.data();
  p.steps = steps ? signed_steps.data() : nullptr;
  p.reduction = lpl::Reduction::sum;
  p.normalize = normalize;
  p.ignore_index = -100;
  p.inverse_temperature = 1;
  p.step_size = 0.1;
  p.threads = 1;
  float loss = 0;
  lpl::Outputs out{};
  out.loss = &loss;
  out.grad = grad.data();

  exponentials = 0;
  const lpl::Status status = measured(p, out, plain);
  std::printf("%.6f %ld\n", double(exponentials) / double(n * c), long(status.solved));
}
