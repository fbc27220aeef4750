"""Triton kernels, launched by lpl_fused/backends/triton: @triton.jit functions and their tuples.

elementary  exp in one instruction; expm1, log1p, tanh with all their digits, none of which the
            language has
arguments   what a kernel is told: the tensors and numbers of a problem
launch      launch parameters for a problem
norms       the norm of a row of logits, and its gradient
penalties   the penalty on logit distances, and its gradient
algebra     φ, the perturbed logits of some columns, the target of a row
rows        from the columns of a row to its sums, its loss, its terms and its gradient
batch       kernels: what losses add up to and are divided by
reductions  kernels: the sums of a row for parts that join, and the perturbed logits
forward     kernels: loss of a row, with its terms and its gradient if wanted
gradient    kernels: gradients of logits and tables from terms; another upstream for a finished one
lpl         kernels: the learned perturbation of a class, step by step
series      the power series that all steps of a small rival make
binary      kernels: multi-label loss and gradient, and the learned perturbation of a class
solver      kernels: rows with a learned perturbation that have their class for themselves: their
            statistics, their steps, and what is made of these
stats       kernels: statistics of such rows, as `return_stats` asks for them
group_rows  kernels: classes with several rows, made ready for the solver
group_solver  kernels: their learned perturbation, all steps in a fixed number of sweeps
grouping    kernels: rows by class
beside      kernel: the gradients of all of these in one launch
"""
