"""Recipes and hooks: which losses train, what the loop gives them, what they make of it."""

from __future__ import annotations

import dataclasses
import inspect
import sysconfig
from typing import Any

import pytest
import small_library
import torch
from torch import Tensor, nn

from lpl_fused import losses
from lpl_fused.data import LabelSets, LongTailedData, load
from lpl_fused.training import RECIPES, RunSettings, hooks, loop, train
from lpl_fused.training.hooks import hold_out, shot_groups
from lpl_fused.training.recipes import LEFT_OUT
from lpl_fused.validation import MixedTarget

EPOCHS = 6

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> LongTailedData:
    return load("digits", seed=0)


@pytest.fixture(scope="module")
def tags(tmp_path_factory: pytest.TempPathFactory) -> LongTailedData:
    """The small library's functions."""
    folder = tmp_path_factory.mktemp("library")
    small_library.write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysconfig, "get_path", lambda name: str(folder))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return load("tags", seed=0, num_classes=16)


def settings(data: str = "digits", **given: Any) -> RunSettings:
    return RunSettings.for_data(data, {"epochs": EPOCHS, "threads": 1, **given})


SINGLE_LABEL = [name for name, recipe in RECIPES.items() if not recipe.multi_label]
MULTI_LABEL = [name for name, recipe in RECIPES.items() if recipe.multi_label]


class Watched:
    """`prepare`, keeping what it made and every call of the loss."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.weights: list[Tensor | None] = []
        prepare = loop.prepare

        def watched(*arguments: Any) -> loop.Prepared:
            self.prepared = prepare(*arguments)
            self.criterion.register_forward_pre_hook(self.note)
            return self.prepared

        monkeypatch.setattr(loop, "prepare", watched)

    def note(self, criterion: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.calls.append(arguments)
        weight = getattr(criterion, "weight", None)
        self.weights.append(None if weight is None else weight.clone())

    @property
    def criterion(self) -> Any:
        return self.prepared.run.criterion


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_every_loss_trains_or_says_why_not() -> None:
    every = {getattr(losses, name) for name in losses.__all__}
    every = {loss for loss in every if inspect.isclass(loss)}
    trained = {recipe.loss for recipe in RECIPES.values()}
    assert trained | LEFT_OUT.keys() == every
    assert not trained & LEFT_OUT.keys()
    assert all(LEFT_OUT.values())


# what a loss settles itself, or cannot be combined with
REFUSED = {
    *(("z-loss", "z_loss"), ("ib", "label_smoothing"), ("ib", "z_loss"), ("ib", "softcap")),
    *(("ib", "gradient"), ("db+lpl", "gradient"), ("lpl-ema", "split")),
}


@pytest.mark.parametrize("loss", RECIPES)
def test_every_option_reaches_its_loss(
    loss: str, data: LongTailedData, tags: LongTailedData
) -> None:
    """Each option alone, at the value that the loss has anyway."""
    data = tags if RECIPES[loss].multi_label else data
    for name in RECIPES[loss].known_options():
        for kind in (RECIPES[loss].loss, losses.CrossEntropyLoss):
            if name in inspect.signature(kind).parameters:
                value = inspect.signature(kind).parameters[name].default
                break
        if value is inspect.Parameter.empty:
            value = 0.125
        given = settings(data.name, loss_options={loss: {name: value}})
        if (loss, name) in REFUSED:
            with pytest.raises((TypeError, ValueError), match=name):
                loop.prepare(data, loss, 0, given)
            continue
        criterion = loop.prepare(data, loss, 0, given).run.criterion
        found = getattr(criterion, name, None)
        assert value is None or not isinstance(found, float) or found == value


def test_options_settled_by_the_comparison_are_no_options() -> None:
    for recipe in RECIPES.values():
        assert not {"cls_num_list", "base", "reduction", "group_counts", "num_samples"} & set(
            recipe.known_options()
        )


@pytest.mark.parametrize("loss", ["ce", "isda", "ib", "absgd", "cals"])
def test_cutting_the_graph_changes_no_gradient(
    loss: str, data: LongTailedData, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of the loop against one written down."""
    monkeypatch.setattr(hooks, "isda_strength", lambda epoch, epochs, strength: strength)
    options = {"ib": {"ib": {"start_epoch": 0}}}.get(loss, {})
    only = settings(epochs=1, batch_size=1000, loss_options=options)
    train(data, loss, 0, only)
    found = watched.prepared.model.state_dict()

    model, run, made = loop.prepare(data, loss, 0, only)
    for hook in made:
        hook.before_epoch(0)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=only.lr, momentum=0.9, nesterov=True, weight_decay=only.weight_decay
    )
    features = model[0](run.inputs)
    extra = {"isda": [features, model[1].weight], "ib": [features.abs().sum(1)]}.get(loss, [])
    run.criterion(model[1](features), run.targets, *extra).backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_features_get_their_gradient(data: LongTailedData, watched: Watched) -> None:
    """The strength of ISDA is 0 in its first epoch; from the second on Δ moves the classifier."""
    weights = []
    for strength in (0.0, 5.0):
        train(data, "isda", 0, settings(epochs=2, loss_options={"isda": {"strength": strength}}))
        weights.append(watched.prepared.model[1].weight.detach().clone())
    assert not torch.allclose(weights[0], weights[1], atol=1e-4)


def test_deferred_weights_come_late(data: LongTailedData, watched: Watched) -> None:
    train(data, "ldam+drw", 0, settings(epochs=10))
    steps = len(watched.weights[:-4]) // 10
    for epoch in range(10):
        weight = watched.weights[epoch * steps]
        assert weight is not None
        assert (weight.unique().numel() == 1) == (epoch < 8)


def test_held_out_samples_are_not_trained_on(data: LongTailedData, watched: Watched) -> None:
    train(data, "cals", 0, settings())
    run, criterion = watched.prepared.run, watched.criterion
    counts = data.cls_num_list
    assert torch.equal(run.cls_num_list, counts - (counts.double() * 0.1 + 1e-9).long())
    assert len(run.held_out) + len(run.targets) == len(data.train_targets)
    shown = {sample.numpy().tobytes() for sample in run.inputs}
    assert all(sample.numpy().tobytes() not in shown for sample in run.held_out)
    assert int(criterion.updates) == EPOCHS
    assert float(criterion.observed) == 0, "every epoch's observations were used"
    assert criterion.last_violation.isfinite().all()


def test_held_out_share_of_each_class() -> None:
    targets = torch.tensor([0] * 25 + [1] * 9 + [2] * 10)
    held = hold_out(targets, 0.1, seed=3)
    assert torch.bincount(targets[held], minlength=3).tolist() == [2, 0, 1]
    assert not hold_out(targets, 0.0, seed=3).any()


def test_states_evolve(data: LongTailedData, watched: Watched) -> None:
    samples = EPOCHS * len(data.train_targets)
    evaluated = len(data.train_targets)  # the loss variation is measured in training mode
    train(data, "seesaw", 0, settings())
    assert int(watched.criterion.seen.sum()) == samples + evaluated
    train(data, "isda", 0, settings())
    assert int(watched.criterion.seen.sum()) == samples + evaluated
    assert watched.criterion.strength == pytest.approx(0.5 * (EPOCHS - 1) / EPOCHS)
    train(data, "ib", 0, settings())
    assert (watched.criterion.epoch, watched.criterion.start_epoch) == (EPOCHS - 1, EPOCHS // 2)
    train(data, "absgd-late", 0, settings())
    assert watched.criterion.started and watched.criterion.start_epoch == int(0.8 * EPOCHS)
    assert watched.criterion.log_u.isfinite()
    train(data, "truncated-gce", 0, settings())
    assert 0 < int(watched.criterion.kept.sum()) < len(data.train_targets)
    train(data, "group-dro", 0, settings())
    assert watched.criterion.groups == 3
    assert watched.criterion.q.unique().numel() == 3
    train(data, "group-dro-class", 0, settings())
    assert watched.criterion.groups == 10
    assert watched.criterion.q.unique().numel() == 10


def test_extra_arguments_belong_to_their_samples(data: LongTailedData, watched: Watched) -> None:
    train(data, "truncated-gce", 0, settings())
    for _, target, index in watched.calls:
        assert torch.equal(watched.prepared.run.targets[index], target)
    watched.calls.clear()
    train(data, "group-dro", 0, settings())
    shots = shot_groups(data.cls_num_list, 5, 20)
    assert watched.calls
    for _, target, group in watched.calls:
        assert torch.equal(shots[target], group)


def test_shot_groups_have_no_gaps() -> None:
    counts = torch.tensor([100, 50, 1, 2])
    assert shot_groups(counts, 5, 20).tolist() == [1, 1, 0, 0]
    assert shot_groups(counts, 60, 60).tolist() == [1, 0, 0, 0]
    assert shot_groups(counts, 1, 60).tolist() == [1, 0, 0, 0]


def test_mixed_batches(data: LongTailedData, watched: Watched) -> None:
    train(data, "bayias+unimix", 0, settings())
    mixed = [target for _, target in watched.calls if isinstance(target, MixedTarget)]
    assert len(mixed) == EPOCHS * loop.steps_per_epoch(data, settings())
    assert any((target.target != target.other).any() for target in mixed)
    tokens = load("tokens", num_classes=100, train_samples=2000)
    with pytest.raises(ValueError, match="images"):
        loop.prepare(tokens, "bayias+unimix", 0, settings())


def test_difficult_classes_weigh_more_and_are_drawn_more_often(
    data: LongTailedData, watched: Watched
) -> None:
    train(data, "cdb-w", 0, settings())
    first, difficulty = watched.weights[0], watched.criterion.difficulty
    assert first is not None and torch.equal(first, torch.ones_like(first))
    assert watched.criterion.weight.argmax() == difficulty.argmax()
    torch.testing.assert_close(difficulty, 1 - watched.prepared.run.class_accuracy())

    watched.calls.clear()
    train(data, "cdb-s", 0, settings())
    steps = loop.steps_per_epoch(data, settings())
    labels = torch.cat([target for _, target in watched.calls[:steps]])
    drawn = torch.bincount(labels, minlength=10)
    assert len(labels) == len(data.train_targets)
    # before any accuracy is known all classes are drawn alike, whatever their counts
    assert (drawn > 8).all() and (drawn < 50).all()


def test_one_vs_rest_starts_at_uniform_probabilities(data: LongTailedData) -> None:
    head = loop.prepare(data, "eql-v2", 0, settings()).model[1]
    torch.testing.assert_close(torch.sigmoid(head.bias), torch.full((10,), 0.1))


# several labels


def test_multi_label_batches_are_multi_hot(tags: LongTailedData, watched: Watched) -> None:
    train(tags, "bce", 0, settings("tags", epochs=1, batch_size=50))
    assert isinstance(tags.train_targets, LabelSets)
    assert sum(len(target) for _, target in watched.calls[:-1]) >= len(tags.train_targets)
    steps = loop.steps_per_epoch(tags, settings("tags", batch_size=50))
    shown = torch.cat([target for _, target in watched.calls[:steps]])
    order = torch.randperm(len(tags.train_targets), generator=torch.Generator().manual_seed(0))
    assert torch.equal(shown, tags.train_targets[order])


@pytest.mark.parametrize("loss", MULTI_LABEL)
def test_counts_and_samples_reach_multi_label_losses(loss: str, tags: LongTailedData) -> None:
    criterion = loop.prepare(tags, loss, 0, settings("tags")).run.criterion
    criterion = getattr(criterion, "base", criterion)
    counts, samples = tags.cls_num_list.double(), len(tags.train_targets)
    if isinstance(criterion, losses.DistributionBalancedLoss):
        bias = -0.05 * torch.log(samples / counts - 1)
        torch.testing.assert_close(
            criterion.table("bias", torch.empty(0)).double(), bias, rtol=1e-6, atol=0
        )
    elif isinstance(criterion, losses.MultiLabelLDAMLoss):
        margin = 0.5 * (counts / counts.min()) ** -0.25
        torch.testing.assert_close(
            criterion.table("margin", torch.empty(0)).double(), margin, rtol=1e-6, atol=0
        )
    else:
        assert type(criterion) in (losses.MultiLabelLoss, losses.AsymmetricLoss)  # know no counts


def test_options_of_the_distribution_balanced_family() -> None:
    """Its names in the literature, by the parts that its docstring lists."""
    parts = {
        name: tuple(
            RECIPES[name].options.get(part, default)
            for part, default in (("weighting", "rebalance"), ("ntr", True), ("focal", True))
        )
        for name in MULTI_LABEL
        if RECIPES[name].loss is losses.DistributionBalancedLoss
    }
    assert parts == {
        "focal-bce": (None, False, True),
        "cb-bce": ("class-balanced", False, False),
        "r-bce": ("rebalance", False, False),
        "ntr": (None, True, False),
        "ntr-focal": (None, True, True),
        "cb-ntr": ("class-balanced", True, True),
        "db": ("rebalance", True, True),
        "db-0fl": ("rebalance", True, False),
    }


def test_lpl_stands_on_the_distribution_balanced_loss(tags: LongTailedData) -> None:
    criterion = loop.prepare(tags, "db+lpl", 0, settings("tags")).run.criterion
    assert isinstance(criterion.base, losses.DistributionBalancedLoss)
    assert criterion.base.backend == "auto"
    named = loop.prepare(tags, "db+lpl", 0, settings("tags", backend="reference")).run.criterion
    assert named.base.backend == "reference"


def test_biases_start_at_the_share_of_positives(tags: LongTailedData) -> None:
    head = loop.prepare(tags, "bce", 0, settings("tags")).model[1]
    assert isinstance(tags.train_targets, LabelSets)
    share = tags.train_targets.dense().mean()
    torch.testing.assert_close(torch.sigmoid(head.bias), share.expand(16))  # type: ignore[operator]


def test_filler_words_count_nothing(tags: LongTailedData) -> None:
    model = loop.prepare(tags, "bce", 0, settings("tags")).model.eval()
    bags = tags.test_inputs[:9]
    longer = torch.cat([torch.zeros(9, 5, dtype=torch.int64), bags], dim=1)
    torch.testing.assert_close(model(longer), model(bags))
    assert model[0][0].embedding.num_embeddings == tags.words + 1  # type: ignore[operator,index]


def test_variation_is_that_of_the_positives(tags: LongTailedData) -> None:
    """BCE varies nothing; LDAM's margin raises every positive's loss; LPL raises the rare."""
    found = {
        loss: train(tags, loss, 0, settings("tags")).loss_variation
        for loss in ("bce", "ml-ldam", "ml-lpl")
    }
    torch.testing.assert_close(found["bce"], torch.zeros(16).double(), atol=1e-4, rtol=0)
    assert (found["ml-ldam"] > 0.01).all()
    assert (found["ml-lpl"][:3] < 0).all()
    assert (found["ml-lpl"][-3:] > 0).all()


def test_a_multi_label_loss_alone_learns_and_is_judged(tags: LongTailedData) -> None:
    scores = train(tags, "bce", 0, settings("tags", epochs=40)).scores
    assert isinstance(tags.test_targets, LabelSets)
    judged = tags.test_targets.counts() > 0
    assert torch.equal(scores.per_class.isfinite(), judged)
    assert scores.overall == pytest.approx(float(scores.per_class[judged].mean()))
    chance = float(tags.test_targets.dense()[:, judged].mean())
    assert scores.overall > 3 * chance


def test_a_loss_that_holds_samples_out_needs_some(data: LongTailedData) -> None:
    few = torch.cat([(data.train_targets == label).nonzero()[:1, 0] for label in range(10)])
    small = dataclasses.replace(
        data, train_inputs=data.train_inputs[few], train_targets=data.train_targets[few]
    )
    with pytest.raises(ValueError, match="held out, and no class has enough"):
        loop.prepare(small, "cals", 0, settings())
