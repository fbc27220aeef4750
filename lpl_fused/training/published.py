"""How published trainings on long-tailed images went, and what errors came out.

Everything is as in the authors' code or slides; what this package does otherwise is `otherwise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_RESULTS = "LPL's slides (Li et al., AAAI 2022), whose scripts keep the best epoch by the test"


@dataclass(frozen=True)
class Schedule:
    """A published way to train.

    Args:
        source: paper and file.
        settings: fields of `RunSettings`.
        otherwise: what the source does and this package does not.
    """

    source: str
    settings: Mapping[str, Any]
    otherwise: str = ""


class Row(NamedTuple):
    """A published result: top-1 error in %, and the model."""

    error: float
    model: str


class Rows(NamedTuple):
    """Published results on one data set, by recipe, and where they stand."""

    source: str
    rows: Mapping[str, Row]


_CIFAR = {"batch_size": 128, "lr": 0.1, "backbone": "resnet32", "augment": True}
_LDAM = Schedule(
    "Cao et al. 2019, cifar_train.py of LDAM-DRW",
    {
        **_CIFAR,
        **{"epochs": 200, "weight_decay": 2e-4, "nesterov": False},
        **{"warm_up": 5, "lr_steps": (160, 180), "lr_decay": 0.01},
    },
)
# The scripts have weight decay 1e-4 in the optimiser, and in the loss once more without its half.
_LPL = {**_CIFAR, "weight_decay": 3e-4, "lr_decay": 0.1}
_LARGE = {"batch_size": 512, "lr": 0.2, "epochs": 90, "augment": True, "nesterov": False}

# The first of a data set is its default.
SCHEDULES: dict[str, dict[str, Schedule]] = {
    "cifar10-lt": {
        "ldam": _LDAM,
        "lpl": Schedule(
            "Li et al. 2022, train_lpl_cifar10.py of LPL",
            {**_LPL, "epochs": 1240, "lr_steps": (604, 824)},
        ),
    },
    "cifar100-lt": {
        "ldam": _LDAM,
        "lpl": Schedule(
            "Li et al. 2022, la_lpl_cifar100.py of LPL",
            {**_LPL, "epochs": 1419, "lr_steps": (691, 1059, 1290)},
        ),
    },
    "inat2018": {
        "decoupling": Schedule(
            "Kang et al. 2020, iNaturalist18/feat_unifrom.yaml of classifier-balancing",
            {**_LARGE, "weight_decay": 1e-4, "backbone": "resnet50"},
        ),
    },
    "imagenet-lt": {
        "decoupling": Schedule(
            "Kang et al. 2020, ImageNet_LT/feat_uniform.yaml of classifier-balancing",
            {**_LARGE, "weight_decay": 5e-4, "backbone": "resnext50_32x4d"},
            "colours are jittered in training",
        ),
    },
    "places-lt": {
        "oltr": Schedule(
            "Liu et al. 2019, Places_LT/stage_1.py of OpenLongTailRecognition",
            {
                **{"epochs": 30, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4},
                **{"lr_steps": (10, 20), "lr_decay": 0.1, "nesterov": False},
                **{"augment": True, "backbone": "resnet152"},
            },
            "features start from ImageNet's weights, learn at 0.001 and go through another layer; "
            "colours are jittered",
        ),
    },
}


def _lpl(errors: Mapping[str, float]) -> Rows:
    """Of LPL's slides; their scripts train a ResNet-32."""
    return Rows(_RESULTS, {loss: Row(error, "resnet32") for loss, error in errors.items()})


# By data set and imbalance, of the exponential profile.
ROWS: dict[tuple[str, float], Rows] = {
    ("cifar10-lt", 100.0): _lpl(
        {
            **{"cb": 27.32, "focal": 29.62, "ldam": 26.45, "ldam+drw": 21.88, "la": 22.33},
            **{"lpl": 22.05, "la+lpl": 21.46},
        }
    ),
    ("cifar10-lt", 10.0): _lpl(
        {
            **{"cb": 13.10, "focal": 13.34, "ldam": 12.68, "ldam+drw": 11.63, "la": 11.07},
            **{"lpl": 10.59},
        }
    ),
    ("cifar10-lt", 1.0): _lpl({"isda": 7.09, "lpl-balanced": 6.66}),
    ("cifar100-lt", 100.0): _lpl(
        {
            **{"cb": 61.23, "focal": 61.59, "ldam": 59.40, "ldam+drw": 57.11, "la": 56.11},
            **{"lpl": 55.75, "la+lpl": 53.89},
        }
    ),
    ("cifar100-lt", 10.0): _lpl(
        {
            **{"cb": 42.43, "focal": 44.22, "ldam": 42.71, "ldam+drw": 41.22, "la": 41.66},
            **{"lpl": 39.03},
        }
    ),
    ("cifar100-lt", 1.0): _lpl({"isda": 30.27, "lpl-balanced": 28.53}),
}

# Classes, training and test images as published; training images of CIFAR depend on the profile.
SIZES: dict[str, tuple[int, int, int]] = {
    "cifar10-lt": (10, 50_000, 10_000),
    "cifar100-lt": (100, 50_000, 10_000),
    "inat2018": (8142, 437_513, 24_426),
    "imagenet-lt": (1000, 115_846, 50_000),
    "places-lt": (365, 62_500, 36_500),
}
