"""Some hundred of the random calls that `make fuzz` makes: fuzz.py, backends against the reference in float64."""

from __future__ import annotations

import fuzz
import pytest

SEED = 18  # not that of the report


# in parts, so that a failure names few and workers share them
@pytest.mark.parametrize("part", range(20))
def test_any_composition(isa: str, part: int) -> None:
    numbers = [
        number for number in range(part * 60, part * 60 + 60) if fuzz.ISAS[number % 3] == isa
    ]
    for number in numbers:
        trial = fuzz.draw(SEED, number)
        wrong = fuzz.check(trial, ("cpp", "auto"))
        assert not wrong, f"make fuzz ARGS='--seed {SEED} --case {number}': {wrong}, {trial}"


@pytest.mark.parametrize(("slow", "count"), [("cuda", 24), ("triton", 3)])
def test_slow_backends_take_some(slow: str, count: int) -> None:
    if slow not in fuzz.available():
        pytest.skip(f"{slow} does not run here")
    for number in range(count):
        trial = fuzz.draw(SEED, number, small=True)
        wrong = fuzz.check(trial, (slow,))
        assert not wrong, f"{wrong}, case {number} of seed {SEED}, small: {trial}"


def test_a_mistake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a thousandth of a gradient."""
    right = fuzz.run

    def wrong(trial, case, backend, upstream):  # type: ignore[no-untyped-def]
        result = right(trial, case, backend, upstream)
        if backend == "cpp" and result.grads:
            result.grads["input"] *= 1.0005
        return result

    trial = next(
        trial
        for trial in (fuzz.draw(SEED, number) for number in range(9999))
        if trial.dtype == fuzz.torch.float32
        and trial.upstream == "random"
        and not trial.said.get("special")
        and trial.said["target"] == "hard"
        and trial.said["spread"] == 1.0
        and trial.case.input.numel() > 20
    )
    assert not fuzz.check(trial, ("cpp",))
    monkeypatch.setattr(fuzz, "run", wrong)
    assert fuzz.check(trial, ("cpp",))


def test_a_row_near_0_is_as_exact_as_its_norm_lets_it_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """LogitNorm lengthens a row of 10^-38 by 5·10^7, and with it what p − t = 0 leaves; no other."""
    trial = fuzz.draw(0, 3678)
    assert not fuzz.check(trial, ("cpp",))
    assert float(trial.stretch[0]) == 1
    assert 4e7 < float(trial.stretch[1]) < 6e7
    right = fuzz.run
    for row, error in ((0, 1e-10), (1, 1e-3)):

        def wrong(trial, case, backend, upstream, row=row, error=error):  # type: ignore[no-untyped-def]
            result = right(trial, case, backend, upstream)
            if backend == "cpp" and result.grads:
                result.grads["input"][row, 3] += error
            return result

        monkeypatch.setattr(fuzz, "run", wrong)
        assert fuzz.check(trial, ("cpp",))
