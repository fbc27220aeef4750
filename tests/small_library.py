"""A standard library of a few small modules, whose functions' docstrings tell what they use."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = tuple(f"{a}{b}" for a in ("ba", "do", "fi", "ku") for b in ("r", "n", "s", "l", "m"))
MODULES, FUNCTIONS = 25, 16


def write(folder: Path) -> None:
    """400 functions of one to four words each; a word's identifier is used where the word stands.

    Word k is drawn in proportion to 1/(k + 1).
    """
    draw = random.Random(0)
    weights = [1 / (k + 1) for k in range(len(WORDS))]
    for module in range(MODULES):
        text = []
        for number in range(FUNCTIONS):
            words = list(dict.fromkeys(draw.choices(WORDS, weights, k=draw.randint(1, 4))))
            name = f"{draw.choice(WORDS)}_{draw.choice(WORDS)}_{draw.choice(WORDS)}{number}"
            uses = ", ".join(f"{word}_used" for word in words)
            text.append(
                f'def {name}(x):\n    """Use {" and ".join(words)}."""\n    return {uses}\n'
            )
        (folder / f"m{module:02}.py").write_text("\n".join(text))
