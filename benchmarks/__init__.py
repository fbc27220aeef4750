"""Microbenchmarks: `python -m benchmarks.run`, or `pytest benchmarks --benchmark-enable`.

Reading order: `cases` says what is timed, `selections` which of it, `baselines` how it is written
without this library, `providers` and `peers` who takes part, `correctness` who is let in, `steps`
what runs in each mode, `timing` how the clock runs, `memory` what is held, `measure` one case,
`records` what is kept, `report` what is shown, `run` the command. `instructions` counts what no
noise can move, `end_to_end` times whole training steps. `python -m benchmarks.report` redraws what
is shown from records.
"""
