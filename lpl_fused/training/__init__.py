"""Train small models with several losses and seeds on long-tailed data, and compare them.

The command line's `lpl-fused train` is made of these parts; they need the `train` extra.
"""

from .loop import DivergedError, Trained, steps_per_epoch, train
from .models import build_model
from .recipes import RECIPES, Recipe
from .record import Record
from .settings import RunSettings, SettingsError

__all__ = [
    "RECIPES",
    "DivergedError",
    "Recipe",
    "Record",
    "RunSettings",
    "SettingsError",
    "Trained",
    "build_model",
    "steps_per_epoch",
    "train",
]
