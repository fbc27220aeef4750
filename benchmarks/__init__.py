"""Microbenchmarks: `python -m benchmarks.run`, or `pytest benchmarks --benchmark-enable`.

Reading order: `cases` says what is timed, `baselines` how it is written without this library,
`providers` who takes part, `correctness` who is let in, `timing` how the clock runs, `records` what
is kept, `report` what is shown, `run` the command.
"""
