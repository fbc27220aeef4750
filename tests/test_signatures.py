"""Every public function beside the losses: a wrong value of any argument is refused by name.

The losses and `functional` are walked in test_arguments.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lpl_fused
from lpl_fused import (
    average_precision,
    certification,
    class_stats,
    data,
    evaluation,
    ladc,
    linear,
    metrics,
    sampling,
    schedules,
    susceptibility,
    training,
)

WRONG = ["x", [[0.5]], {}, object(), math.nan, 1j, None]
SCORES, CLASSES = torch.rand(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
COUNTS = [50, 20, 3]
MODEL = nn.Linear(4, 3)


def smoothed() -> certification.SmoothedClassifier:
    return certification.SmoothedClassifier(MODEL, 0.5, 3, batch_size=10)


def long_tailed() -> data.LongTailedData:
    images = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
    return data.LongTailedData("made", images, CLASSES, images, CLASSES, ("a", "b", "c"))


def probed() -> susceptibility.Susceptibility:
    return susceptibility.Susceptibility(3)


DATA = long_tailed()
SETTINGS = training.RunSettings.for_data("digits", {"epochs": 1})
# with what each can be called
CALLS: dict[Callable[..., Any], dict[str, Any]] = {
    average_precision.mean_average_precision: {
        "scores": SCORES,
        "target": (SCORES > 0.5).long(),
        "cls_num_list": COUNTS,
    },
    certification.SmoothedClassifier: {"model": MODEL, "sigma": 0.5, "num_classes": 3},
    certification.binomial_tail: {"successes": 3, "trials": 5, "p": 0.5},
    certification.certified: {"votes": 90, "total": 100, "sigma": 0.5},
    certification.clopper_pearson_lower: {"successes": 3, "trials": 5, "alpha": 0.1},
    certification.voted: {"counts": torch.tensor([5, 3])},
    smoothed().certify: {"x": torch.zeros(4), "n0": 10, "n": 20},
    smoothed().predict: {"x": torch.zeros(4), "n": 20},
    smoothed().votes: {"x": torch.zeros(4), "num": 5},
    class_stats.class_counts: {"labels": CLASSES},
    class_stats.difficulty_weights: {"difficulty": SCORES[0]},
    class_stats.effective_number_weights: {"cls_num_list": COUNTS},
    class_stats.frequency_margins: {"cls_num_list": COUNTS},
    class_stats.label_aware_smoothing: {"cls_num_list": COUNTS},
    data.LabelSets: {
        "offsets": torch.tensor([0, 1, 2]),
        "classes": torch.tensor([0, 1]),
        "num_classes": 2,
    },
    data.LongTailedData: {
        "name": "made",
        "train_inputs": DATA.train_inputs,
        "train_targets": CLASSES,
        "test_inputs": DATA.test_inputs,
        "test_targets": CLASSES,
        "class_names": ("a", "b", "c"),
    },
    data.long_tail_counts: {"num_classes": 3, "largest": 9, "imbalance": 3},
    evaluation.accuracy: {"input": SCORES, "target": CLASSES, "cls_num_list": COUNTS},
    evaluation.average_k_accuracy: {"scores": SCORES, "target": CLASSES, "threshold": 0.5},
    evaluation.average_k_sets: {"scores": SCORES, "threshold": 0.5},
    evaluation.average_k_threshold: {"scores": SCORES, "k": 1},
    evaluation.relative_loss_variation: {
        "loss": SCORES[:, 0],
        "perturbed_loss": SCORES[:, 1],
        "target": CLASSES,
        "num_classes": 3,
    },
    ladc.calibrated_features: {"features": SCORES, "target": CLASSES, "num_head": 2},
    ladc.tukey: {"features": SCORES},
    linear.NormalizedLinear: {"in_features": 4, "out_features": 3},
    linear.WeightScaling: {"num_classes": 3},
    metrics.AverageKAccuracy: {"threshold": 0.5},
    metrics.AverageKAccuracy(0.5).update: {"input": SCORES, "target": CLASSES},
    metrics.AverageKThreshold: {"k": 1},
    metrics.AverageKThreshold(1).update: {"input": SCORES, "target": CLASSES},
    metrics.ClassReport: {"cls_num_list": COUNTS},
    metrics.ClassReport(COUNTS).update: {"input": SCORES, "target": CLASSES},
    metrics.ClasswiseCalibrationError: {"num_classes": 3},
    metrics.ClasswiseCalibrationError(3).update: {"input": SCORES, "target": CLASSES},
    metrics.LongTailedAccuracy: {"cls_num_list": COUNTS},
    metrics.LongTailedAccuracy(COUNTS).update: {"input": SCORES, "target": CLASSES},
    metrics.LossVariation: {"num_classes": 3},
    metrics.LossVariation(3).update: {
        "loss": SCORES[:, 0],
        "perturbed_loss": SCORES[:, 1],
        "target": CLASSES,
    },
    metrics.Susceptibility: {"num_classes": 3},
    metrics.probabilities: {"input": SCORES},
    sampling.UniMix: {"cls_num_list": COUNTS},
    sampling.UniMix(COUNTS).draw: {"target": CLASSES},
    sampling.UniMix(COUNTS).forward: {"input": SCORES, "target": CLASSES},
    sampling.difficulty_sampling_weights: {"target": CLASSES, "difficulty": SCORES[0]},
    schedules.drw_weights: {"cls_num_list": COUNTS, "epoch": 1, "start_epoch": 2},
    schedules.geometric: {"first": 1.0, "last": 2.0, "ratio": 0.5},
    schedules.isda_strength: {"epoch": 1, "epochs": 2},
    schedules.lp_exponent: {"ratio": 0.5},
    schedules.progress: {"epoch": 1, "start": 0, "end": 2},
    schedules.smooth_ramp: {"value": 1.0, "ratio": 0.5},
    schedules.warm_up: {"value": 1.0, "epoch": 1},
    susceptibility.Susceptibility: {"num_classes": 3},
    probed().add: {"r": 0.5},
    probed().probe: {
        "model": MODEL,
        "optimizer": torch.optim.SGD(MODEL.parameters(), 0.1),
        "input": torch.zeros(2, 4),
    },
    training.RunSettings: {
        "data": "digits",
        "data_options": {"largest": 9, "imbalance": 3},
        "epochs": 1,
        "batch_size": 8,
        "lr": 0.1,
    },
    training.build_model: {"data": DATA},
    training.steps_per_epoch: {"data": DATA, "settings": SETTINGS},
    training.train: {"data": DATA, "loss": "ce", "seed": 0, "settings": SETTINGS},
}
# what is taken all the same, or is another's to judge
TAKEN: dict[tuple[str, str], tuple[Any, ...]] = {
    ("LongTailedData", "name"): ("x",),
    ("RunSettings", "data_options"): ({},),
    ("RunSettings", "loss_options"): ({},),
    ("RunSettings", "device"): ("x",),  # looked for where it is used
    ("RunSettings", "backend"): ("x",),
    ("class_counts", "labels"): ("x",),  # a path
}
UNKNOWN = {("probe", "input")}  # what the model takes
NONE_TAKEN = {  # options of data
    *(("glyphs", "num_classes"), ("folder", "test_share")),
    *(("cifar10-lt", "largest"), ("cifar100-lt", "largest")),
}

ARGUMENTS = [(call, name) for call in CALLS for name in inspect.signature(call).parameters]


def named(call: Callable[..., Any]) -> str:
    return getattr(call, "__name__", type(call).__name__)


@pytest.mark.parametrize(
    ("call", "name"), ARGUMENTS, ids=[f"{named(call)}-{name}" for call, name in ARGUMENTS]
)
def test_a_wrong_value_is_refused_by_name(call: Callable[..., Any], name: str) -> None:
    if (named(call), name) in UNKNOWN:
        return
    default = inspect.signature(call).parameters[name].default
    for wrong in WRONG:
        if (wrong is None and default is None) or wrong in TAKEN.get((named(call), name), ()):
            continue
        with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
            call(**{**CALLS[call], name: wrong})


@pytest.mark.parametrize("call", CALLS, ids=named)
def test_the_right_values_are_taken(call: Callable[..., Any]) -> None:
    if call is not training.train:
        call(**CALLS[call])


@pytest.mark.parametrize("name", data.NAMES)
def test_a_wrong_option_of_data_is_refused_by_name(name: str) -> None:
    has_path = "path" in data.OPTIONS[name]
    for option in (*data.OPTIONS[name], "seed"):
        for wrong in WRONG:
            taken = wrong is None and (name, option) in NONE_TAKEN
            if taken or (option == "path" and wrong == "x"):
                continue
            with pytest.raises((TypeError, ValueError), match=rf"\b{option}\b"):
                data.load(name, **({"path": "absent"} if has_path else {}) | {option: wrong})
    with pytest.raises(TypeError, match="no option 'colour'"):
        data.load(name, colour="red")
    if has_path:
        with pytest.raises(TypeError, match=f"data '{name}' needs a path"):
            data.load(name)


def test_every_public_name_is_walked() -> None:
    """But those that losses call in every step, and what only holds values."""
    modules = (
        *(average_precision, certification, class_stats, evaluation, ladc, linear),
        *(metrics, sampling, schedules, susceptibility),
    )
    held = {"Accuracy", "AverageK", "Certificate", "MeanAveragePrecision"}
    inner = {
        "checked_counts",
        "count_tensor",
        "real_tensor",
        "on_cpu",
        "effective_number",
        "checked_tau",
    }
    inner |= {"class_mean", "present_classes", "check_borders", "check_highest"}
    inner |= {"accuracy_of_counts", "answers", "average_k_rank", "in_sets", "largest_scores"}
    inner |= {"check_labels", "threshold_below", "variation_sums"}
    for module in modules:
        public = {
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__
            and callable(value)
            and not name.startswith("_")
        }
        assert public <= {named(call) for call in CALLS} | held | inner, module


@pytest.mark.parametrize("name", ["LPLLoss", "cross_entropy"])
def test_who_looks_in_the_wrong_place_is_told_the_right_one(name: str) -> None:
    where = "losses" if name == "LPLLoss" else "functional"
    with pytest.raises(AttributeError, match=rf"see lpl_fused\.{where}\.{name}$"):
        getattr(lpl_fused, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'$"):
        _ = lpl_fused.nothing
    assert set(lpl_fused.__all__) < set(dir(lpl_fused))
