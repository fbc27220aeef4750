"""`lpl-fused inspect`: its options, and what it does with them.

Parsing needs nothing but the standard library; what the command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

JSON_NAME = "inspection.json"
PICTURE_NAME = "inspection.png"
_OF_LOGITS = (
    *("set", "steps", "step_size", "logits", "labels", "counts", "ignore_index", "batch_size"),
    *("many_above", "few_below"),
)
_DEFAULTS: dict[str, Any] = {
    "logits": "logits",
    "labels": "labels",
    "counts": None,
    "ignore_index": -100,
    "batch_size": 256,
}
_TABLE_WIDTH = 140  # where the output is no terminal whose width is known


def add(commands: Any, loss_option: Callable[[str], tuple[str, str, Any]]) -> None:
    """Add the command; `loss_option` reads LOSS.OPTION=VALUE."""
    parser = commands.add_parser(
        "inspect",
        help="which classes a loss raises or lowers, from saved logits or a record of train",
        description="Which classes does a loss raise or lower, and by how much? From logits and "
        "labels in a .npz, .pt or .safetensors file, which are read some rows at a time and may be "
        "larger than memory, or from the run.json of `lpl-fused train`. Prints tables of the mean "
        "loss without and with the perturbation, the relative loss variation of each class, and "
        "its tables or LPL's δ.",
        argument_default=argparse.SUPPRESS,  # so that what does not fit the source can be told
    )
    parser.set_defaults(run=_run, parser=parser)
    parser.add_argument("source", help="a .npz, .pt or .safetensors file, a run.json or its folder")
    what = parser.add_argument_group("what to ask")
    what.add_argument(
        "--loss",
        metavar="LOSS",
        help="a loss of `lpl-fused train --list-losses` that needs logits and labels alone "
        "(default: lpl; of a record: the last one)",
    )
    what.add_argument(
        "--set",
        nargs="+",
        type=loss_option,
        metavar="LOSS.OPTION=VALUE",
        help="keywords of the loss, e.g. la.tau=1.5 lpl.head=0.3",
    )
    what.add_argument(
        "--steps", type=int, metavar="K", help="LPL: K steps for every class, raised or lowered"
    )
    what.add_argument("--step-size", type=float, metavar="α", help="LPL: the length of a step")
    what.add_argument("--seed", type=int, help="of a record (default: the first)")
    file = parser.add_argument_group("saved logits")
    file.add_argument(
        "--logits", metavar="NAME", help="the (N, C) array of raw logits (default: logits)"
    )
    file.add_argument(
        "--labels", metavar="NAME", help="the (N,) array of classes (default: labels)"
    )
    file.add_argument(
        "--counts",
        metavar="NAME",
        help="a (C,) array of training examples per class (default: the labels are counted)",
    )
    file.add_argument(
        "--ignore-index", type=int, metavar="I", help="rows with this label are left out (-100)"
    )
    file.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="rows read at a time, in the order of the file (default: 256); LPL's δ is that of a "
        "class in a batch: that of the training",
    )
    file.add_argument("--many-above", type=int, help="many-shot: more training examples than this")
    file.add_argument("--few-below", type=int, help="few-shot: fewer training examples than this")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--top",
        type=int,
        metavar="N",
        help="list the N classes that are lowered, and raised, most (default: 10)",
    )
    output.add_argument(
        "--json", action="store_true", help="print everything, of all classes, as JSON"
    )
    output.add_argument(
        "--out", metavar="DIR", help=f"write {JSON_NAME} and {PICTURE_NAME} to this folder, too"
    )


def _run(arguments: argparse.Namespace) -> int:
    from ..extras import MissingExtraError, needs_extra

    try:
        with needs_extra("inspect"):
            from ..training import SettingsError
            from .files import InspectError

            try:
                return _inspect(vars(arguments))
            except (InspectError, SettingsError) as error:
                message = str(error)
    except MissingExtraError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("lpl-fused inspect: interrupted", file=sys.stderr)
        return 130
    print(f"lpl-fused inspect: error: {message}", file=sys.stderr)
    return 2


def _inspect(given: dict[str, Any]) -> int:
    from rich.console import Console

    from ..training.record import storable
    from . import picture
    from .files import InspectError

    top = _at_least("--top", given.get("top", 10), 1)
    folder = Path(given["out"]) if "out" in given else None
    if folder is not None:
        _check_free(folder)
    found = _found(given)
    text = json.dumps(storable(picture.as_json(found)), allow_nan=False)
    if given.get("json"):
        print(text)
    else:
        console = Console()
        wide = console if console.is_terminal else Console(width=_TABLE_WIDTH)
        wide.print(picture.groups_table(found))
        wide.print(picture.classes_table(found, top))
    if folder is not None:
        from ..atomic import replacing

        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / JSON_NAME) as temporary:
                temporary.write_text(text, "utf-8")
            picture.save_picture(found, folder / PICTURE_NAME)
        except OSError as error:
            reason = error.strerror or error
            raise InspectError(f"--out {folder}: cannot be written: {reason}") from error
        names = f"{folder / JSON_NAME}, {folder / PICTURE_NAME}"
        print(f"written: {names}", file=sys.stderr if given.get("json") else sys.stdout)
    return 0


def _found(given: dict[str, Any]) -> Any:
    from rich.console import Console

    from ..evaluation import FEW_BELOW, MANY_ABOVE, check_borders
    from ..training.progress import progress
    from ..training.record import Record
    from .classes import of_logits, of_record
    from .files import InspectError, opened

    path = Path(given["source"])
    if path.is_dir() or path.suffix == ".json":
        for name in _OF_LOGITS:
            if name in given:
                raise InspectError(f"{_option(name)}: {path} is a record, which holds no logits")
        path = path / "run.json" if path.is_dir() else path
        return of_record(str(path), Record.load(path), given.get("loss"), given.get("seed"))
    if "seed" in given:
        raise InspectError(f"--seed: {path} is no record of train")
    loss = given.get("loss", "lpl")
    options = _options(given, loss)
    how = {name: given.get(name, default) for name, default in _DEFAULTS.items()}
    batch_size = _at_least("--batch-size", how["batch_size"], 1)
    many_above, few_below = given.get("many_above", MANY_ABOVE), given.get("few_below", FEW_BELOW)
    try:
        check_borders(many_above, few_below)
    except ValueError as error:
        message = str(error)
        for name in ("few_below", "many_above"):
            message = message.replace(name, _option(name))
        raise InspectError(message) from error
    names = {name: how[name] for name in ("logits", "labels", "counts")}
    shown = progress(Console(stderr=True))
    with opened(path, **names) as saved, shown:
        shown.total(math.ceil(saved.num_rows / batch_size))
        shown.begin(f"{path.name}, {saved.num_rows:,} rows")
        return of_logits(
            saved,
            loss,
            options,
            batch_size=batch_size,
            ignore_index=how["ignore_index"],
            many_above=many_above,
            few_below=few_below,
            on_batch=shown.step,
        )


def _options(given: dict[str, Any], loss: str) -> dict[str, Any]:
    """The keywords of the loss: of --set, and what --steps and --step-size are short for."""
    from ..losses import LPLLoss
    from ..training.recipes import RECIPES
    from .files import InspectError

    options: dict[str, Any] = {}
    for name, option, value in given.get("set", ()):
        if name != loss:
            raise InspectError(f"--set {name}.{option}: {loss!r} is asked, --loss names another")
        options[option] = value
    short = [name for name in ("steps", "step_size") if name in given]
    if not short:
        return options
    if loss not in RECIPES or not issubclass(RECIPES[loss].loss, LPLLoss):
        raise InspectError(f"{_option(short[0])}: {loss!r} learns no perturbation")
    for name, keywords in (("steps", ("epsilon", "delta_epsilon")), ("step_size", ("step_size",))):
        both = [keyword for keyword in keywords if keyword in options]
        if name in given and both:
            raise InspectError(f"{_option(name)} and --set {loss}.{both[0]} say the same")
    if "step_size" in given:
        if not 0 < given["step_size"] < math.inf:
            raise InspectError(f"--step-size: expected a number > 0, got {given['step_size']}")
        options["step_size"] = given["step_size"]
    if "steps" in given:
        steps = _at_least("--steps", given["steps"], 0)
        balanced = RECIPES[loss].options.get("split", options.get("split")) == "balanced"
        step_size = options.setdefault("step_size", 0.01 if balanced else 0.15)
        options |= {"epsilon": steps * step_size, "delta_epsilon": 0.0}
    return options


def _check_free(folder: Path) -> None:
    from .files import InspectError

    if folder.exists() and not folder.is_dir():
        raise InspectError(f"--out: expected a folder, got the file {folder}")
    for name in (JSON_NAME, PICTURE_NAME):
        if (folder / name).exists():
            raise InspectError(f"--out: {folder} already holds {name}")


def _at_least(option: str, value: int, least: int) -> int:
    from .files import InspectError

    if value < least:
        raise InspectError(f"{option}: expected at least {least}, got {value}")
    return value


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
