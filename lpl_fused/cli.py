"""The `lpl-fused` command: compare losses on long-tailed data, and explain the installation.

Parsing needs nothing but the standard library; what a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from .inspection import command as inspection
from .version import __version__

# Options that are fields of RunSettings, and those that are keywords of `data.load`.
_SETTINGS = (
    "data",
    "epochs",
    "batch_size",
    "lr",
    "weight_decay",
    "device",
    "threads",
    "backend",
    "many_above",
    "few_below",
    "linear",
    "shard_classes",
    "schedule",
    "backbone",
    "lr_steps",
    "lr_decay",
    "warm_up",
    "nesterov",
    "augment",
)
_DATA_OPTIONS = {
    "path": "path",
    "image_size": "image_size",
    "test_share": "test_share",
    "skip_broken": "skip_broken",
    "classes": "num_classes",
    "imbalance": "imbalance",
    "profile": "profile",
    "largest": "largest",
    "train_samples": "train_samples",
}


_DATA = (
    *("glyphs", "digits", "tokens", "tags", "folder"),
    *("inat2018", "imagenet-lt", "places-lt", "cifar10-lt", "cifar100-lt"),
)
_MOST_SEEDS = 10_000
# What messages call by its keyword, and the command line by an option.
_WORDS = {
    **{keyword: f"--{name.replace('_', '-')}" for name, keyword in _DATA_OPTIONS.items()},
    **{name: f"--{name.replace('_', '-')}" for name in (*_SETTINGS, "loss", "seeds", "output")},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (2 for bad input, 130 after Ctrl-C)."""
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    status: int = arguments.run(arguments)
    return status


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, without the usage's forty."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lpl-fused",
        description="Losses for very many, very unequal classes: compare them on data, see what "
        "they do to each class, and what runs them here.",
    )
    parser.add_argument("--version", action="version", version=f"lpl_fused {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    explain = commands.add_parser("explain", help="versions, and which backend runs and why")
    explain.set_defaults(run=_explain, parser=explain)

    train = commands.add_parser(
        "train",
        help="train a small model with several losses and seeds, and compare them",
        description="Train a small model on long-tailed data with several losses and seeds. "
        "Prints a table of overall, many-, medium- and few-shot accuracy (of multi-label data "
        "mean average precision) and step time; writes "
        "run.json and plot.png to the output folder. Ctrl-C keeps what was finished; a loss that "
        "fails or diverges does not stop the others.",
        argument_default=argparse.SUPPRESS,  # so that --resume can tell given from default
    )
    train.set_defaults(run=_train, parser=train)
    what = train.add_argument_group("what to compare")
    what.add_argument(
        "--loss",
        nargs="+",
        metavar="LOSS",
        help="losses, see --list-losses (default: ce la ldam+drw vs lpl la+lpl; multi-label: "
        "bce focal-bce db ml-lpl)",
    )
    what.add_argument("--list-losses", action="store_true", help="list the losses and exit")
    what.add_argument(
        "--set",
        nargs="+",
        type=_loss_option,
        metavar="LOSS.OPTION=VALUE",
        help="keywords of single losses, e.g. la.tau=1.5 lpl.head=0.3",
    )
    what.add_argument(
        "--seeds",
        nargs="+",
        type=_seeds,
        metavar="SEED",
        help="seeds or ranges of seeds, e.g. 0 1 2 or 0-7 (default: 0-2)",
    )
    data = train.add_argument_group("data")
    data.add_argument(
        "--data",
        choices=_DATA,
        metavar="DATA",
        help="made here: glyphs (default), digits, tokens, tags (multi-label); folder: your "
        "images; published, as their authors hand them out: inat2018, imagenet-lt, places-lt, "
        "cifar10-lt, cifar100-lt",
    )
    data.add_argument(
        "--path",
        help="the folder of the data. folder: PATH/CLASS/… or PATH/train/CLASS/…, "
        "PATH/test/CLASS/…; inat2018: with train2018.json, val2018.json and train_val2018; "
        "imagenet-lt, places-lt: that the lists' paths begin in, with the lists in it; cifar10-lt, "
        "cifar100-lt: what the archive unpacks to, or where that is",
    )
    data.add_argument(
        "--image-size",
        type=int,
        help="side of images that are files (default: folder 32, else 224)",
    )
    data.add_argument(
        "--test-share",
        type=float,
        metavar="SHARE",
        help="folder without a test split: from every class as many images as this share of the "
        "smallest class are drawn for the test and kept out of training, at least one (default: "
        "0.2)",
    )
    data.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out images that cannot be read, and classes left without any (published data: "
        "all images are read to find them)",
    )
    data.add_argument(
        "--classes",
        type=_classes,
        help="glyphs: up to 5113, or all (default: 500); tokens: default 10000; tags: default 1000",
    )
    data.add_argument(
        "--imbalance",
        type=float,
        help="glyphs, digits, cifar…: largest by smallest class in training (default: 100)",
    )
    data.add_argument(
        "--profile",
        choices=("exp", "zipf", "step"),
        help="glyphs, digits, cifar…: of the class counts (default: exp)",
    )
    data.add_argument(
        "--largest", type=int, help="glyphs, digits, cifar…: size of the largest class"
    )
    data.add_argument("--train-samples", type=int, help="tokens: training examples")
    data.add_argument("--many-above", type=int, help="many-shot: more training examples than this")
    data.add_argument("--few-below", type=int, help="few-shot: fewer training examples than this")
    training = train.add_argument_group("training (defaults depend on the data)")
    training.add_argument("--epochs", type=int)
    training.add_argument("--batch-size", type=int)
    training.add_argument(
        "--schedule",
        help="published data: where the defaults come from: ldam or lpl (CIFAR), decoupling "
        "(inat2018, imagenet-lt), oltr (places-lt), or own (default: the first)",
    )
    training.add_argument(
        "--backbone",
        help='small; resnet32, that of CIFAR; with pip install "lpl_fused[vision]" resnet18, '
        "resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, resnext101_32x8d (default: "
        "small, or the schedule's)",
    )
    training.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="crop and mirror training images at random",
    )
    training.add_argument("--lr", type=float, help="first learning rate")
    training.add_argument(
        "--lr-steps",
        nargs="*",
        type=int,
        metavar="EPOCH",
        help="epochs from which on the learning rate is --lr-decay times what it was before; none: "
        "it falls as a cosine",
    )
    training.add_argument("--lr-decay", type=float, help="see --lr-steps (default: 0.1)")
    training.add_argument(
        "--warm-up", type=int, metavar="EPOCHS", help="in which the learning rate rises"
    )
    training.add_argument(
        "--nesterov", action=argparse.BooleanOptionalAction, help="Nesterov's momentum"
    )
    training.add_argument("--weight-decay", type=float)
    training.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda if there is one)")
    training.add_argument("--threads", type=int, help="CPU threads")
    training.add_argument("--backend", help="of the losses, see `lpl-fused explain`")
    training.add_argument(
        "--linear",
        action="store_true",
        help="no logits in memory: losses that can take the last layer itself, others are refused",
    )
    training.add_argument(
        "--shard-classes",
        action="store_true",
        help="with --linear, and each process of torchrun has some of the classes: torchrun "
        "--nproc-per-node 2 -m lpl_fused train --shard-classes …; the first writes and speaks",
    )
    output = train.add_argument_group("output")
    output.add_argument(
        "--output", metavar="DIR", help="new folder for the results (default: runs/DATA-TIME)"
    )
    output.add_argument(
        "--resume",
        metavar="RUN_JSON",
        help="continue a run, named by its run.json or folder: its settings, without the losses "
        "and seeds that are done (one interrupted in the middle, or failed, is trained from its "
        "beginning)",
    )
    inspection.add(commands, _loss_option)
    return parser


def _seeds(text: str) -> range:
    """`"3"` or `"0-7"`."""
    first, _, last = text.partition("-")
    try:
        seeds = range(int(first), int(last or first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a seed or FIRST-LAST, got {text!r}") from None
    if not seeds:
        raise argparse.ArgumentTypeError(f"the range {text!r} is empty")
    if seeds.stop > 1 << 63 or seeds.stop - seeds.start > _MOST_SEEDS:
        raise argparse.ArgumentTypeError(
            f"expected at most {_MOST_SEEDS} seeds below 2**63, got {text!r}"
        )
    return seeds


def _classes(text: str) -> int | None:
    """`"500"`, or `"all"`, which is None."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or all, got {text!r}") from None


def _loss_option(text: str) -> tuple[str, str, Any]:
    """`"la.tau=1.5"` to `("la", "tau", 1.5)`; what is no Python literal is a string."""
    target, equals, value = text.partition("=")
    loss, dot, option = target.rpartition(".")
    if not (equals and dot and loss and option):
        raise argparse.ArgumentTypeError(f"expected LOSS.OPTION=VALUE, got {text!r}")
    try:
        found = ast.literal_eval(value)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        found = value
    try:
        json.dumps(found)
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"expected a number, a word or a tuple of them, got {text!r}"
        ) from None
    return loss, option, found


def _explain(arguments: argparse.Namespace) -> int:
    import platform

    import torch

    from . import explain

    print(f"lpl_fused {__version__}")
    print(f"python    {platform.python_version()} on {platform.platform()}")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    print(f"torch     {torch.__version__} ({cuda}, {torch.get_num_threads()} CPU threads)")
    for index in range(torch.cuda.device_count()):
        print(f"gpu {index}     {torch.cuda.get_device_name(index)}")
    print()
    print(explain())
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from .data import DataError, MissingExtraError, needs_extra
    from .training import SettingsError

    given = vars(arguments)
    try:
        with needs_extra():
            from .training import compare
        if "list_losses" in given:
            print("\n".join(f"{name:<17} {text}" for name, text in compare.list_losses()))
            return 0
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return compare.run(
                _settings(given),
                losses=given.get("loss"),
                seeds=[s for part in given["seeds"] for s in part] if "seeds" in given else None,
                output=given.get("output"),
                resume=given.get("resume"),
            )
    except (DataError, MissingExtraError, SettingsError) as error:
        print(f"lpl-fused train: error: {_in_options(str(error))}", file=sys.stderr)
        return 2


def _in_options(message: str) -> str:
    """A message about a keyword as one about the option that gives it."""
    message = re.sub(r"\bloss_options\.(?=\w)", "--set ", message)
    message = message.replace("data_options.", "")
    unknown = re.fullmatch(r"(data '[\w-]+' has no option )'(\w+)'; it has (.*)", message)
    if unknown:
        options = [_WORDS[name] for name in unknown[3].split(", ") if name in _WORDS]
        return f"{unknown[1]}{_WORDS.get(unknown[2], unknown[2])}; it has {', '.join(options)}"
    # a word by itself may be anything: it is a keyword where a message begins with it, or has its
    # value after it, and if it has an underscore
    message = re.sub(
        r"(?:^|(?<=: ))\w+(?=: )|(?<=has )\w+(?= .*, now )|\b(?:device|backend)(?= ')"
        r"|\b[a-z]+_[a-z]+\b",
        lambda found: _WORDS.get(found[0], found[0]),
        message,
    )
    # None is what an option that is left out stands for, and `--classes all`
    return message.replace(" or None, got", " or all, got" if "--classes:" in message else ", got")


def _warn(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning in one line, without that of the source."""
    print(f"lpl-fused train: warning: {message}", file=sys.stderr)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The options given, as fields of `RunSettings`."""
    settings = {name: given[name] for name in _SETTINGS if name in given}
    settings["data_options"] = {
        keyword: given[name] for name, keyword in _DATA_OPTIONS.items() if name in given
    }
    settings["loss_options"] = {}
    for loss, option, value in given.get("set", ()):
        settings["loss_options"].setdefault(loss, {})[option] = value
    return settings
