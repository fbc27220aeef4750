"""Random compositions of everything, compiled kernels against the reference in float64."""

from __future__ import annotations

import torch
from cases import NORMS, PENALTIES, PHIS, Draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpl_fused import Perturbation, functional, testing
from lpl_fused.backends import load
from lpl_fused.testing import TABLES, Case

FORMS = ("hard", "ignoring", "mixed", "dense")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(1, 40))
    classes = draw(st.one_of(st.integers(1, 40), st.sampled_from([255, 1023, 1025, 2049])))
    random = Draw(n, classes, seed=draw(st.integers(0, 10**6)))
    spread = draw(st.sampled_from([0.01, 1.0, 4.0, 20.0]))
    form = draw(st.sampled_from(FORMS))
    input = random.input(spread)
    if draw(st.booleans()):  # masked classes, never all of them and never class 0
        masked = random.uniform(n, classes) < 0.2
        masked[:, 0] = False
        input = input.masked_fill(masked, -torch.inf)
    target = {
        "hard": random.labels,
        "ignoring": random.ignoring,
        "mixed": random.mixed,
        "dense": random.dense,
    }[form]()
    keywords: dict[str, object] = {"reduction": draw(st.sampled_from(["none", "mean", "sum"]))}
    if draw(st.booleans()):
        keywords["weight"] = random.uniform(classes)
    if draw(st.booleans()):
        keywords["sample_weight"] = random.uniform(n)
    finite = bool(torch.isfinite(input).all())
    if draw(st.booleans()) and finite:
        keywords["label_smoothing"] = draw(st.sampled_from([0.05, 0.5, 1.0]))
    if draw(st.booleans()) and finite:
        keywords["phi"] = PHIS[draw(st.sampled_from(sorted(PHIS)))]
    if draw(st.booleans()):
        keywords["z_loss"] = 1e-3
    if draw(st.booleans()) and finite:
        keywords["softcap"] = draw(st.sampled_from([2.0, 30.0]))
    if draw(st.booleans()):
        keywords["norm"] = NORMS[draw(st.sampled_from(sorted(NORMS)))](classes)
    one_label = form in ("hard", "ignoring")
    allowed = [name for name in TABLES if one_label or name != "margin"]
    chosen = draw(st.lists(st.sampled_from(allowed), unique=True, max_size=4))
    learn = tuple(name for name in chosen if name != "temperature") if draw(st.booleans()) else ()
    if chosen:
        tables = random.tables()
        kept = {name: getattr(tables, name) for name in chosen}
        if "rows" in chosen:
            kept["row_index"] = tables.row_index
        keywords["perturbation"] = Perturbation(**kept)
    steps = None
    if one_label and draw(st.booleans()):
        steps = random.steps(draw(st.integers(0, 5)))
        keywords["step_size"] = draw(st.sampled_from([0.01, 0.3, 1.0]))
        keywords["normalize"] = draw(st.booleans())
    if steps is None and finite and draw(st.booleans()):
        kind = draw(st.sampled_from(PENALTIES))
        keywords["penalty"] = random.penalty(kind, normalize=draw(st.booleans()))
    if not finite:
        learn = ()  # 0·∞ in a table's gradient is nan however it is formed
    return Case(input, target, keywords, steps, learn)


def upstream(loss: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(loss.numel())
    return torch.randn(loss.shape, generator=generator, dtype=torch.float64)


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_any_composition(case: Case) -> None:
    """In float64, where only mistakes make differences."""
    loss = functional.cross_entropy if case.steps is None else functional.lpl_cross_entropy
    arguments = (case.input, case.target) + (() if case.steps is None else (case.steps,))
    factors = upstream(loss(*arguments, **case.keywords, backend="reference"))
    truth = testing.evaluate(case, "reference", factors)
    assert load("cpp").unavailable() is None
    found = testing.evaluate(case, "cpp", factors)
    assert testing.error(found.loss, truth.loss) < 1e-9
    hard = isinstance(case.target, torch.Tensor) and not case.target.is_floating_point()
    hard = hard and "label_smoothing" not in case.keywords and not case.learn
    for name, grad in truth.grads.items():
        worst = int((found.grads[name] - grad).abs().argmax())
        got, expected = found.grads[name].flatten()[worst], grad.flatten()[worst]
        said = f"gradient of {name} at {worst}: {got} instead of {expected}, loss {truth.loss}"
        if hard:
            assert testing.error(found.grads[name], grad) < 1e-9, said
        else:  # p − t may cancel to nothing but rounding
            torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-12, msg=said)
