"""Draws the pictures of these pages: `python -m docs.pictures`, all or those that are named."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor, nn

from benchmarks.style import NUMBER
from lpl_fused import class_stats, losses
from lpl_fused import functional as LF

HERE = Path(__file__).parent
RECORD = HERE.parent / "benchmarks" / "results" / "training" / "glyphs.json"

# of Okabe and Ito, as in benchmarks/style.py; black is always plain cross-entropy
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#0072B2", "#D55E00", "#CC79A7"),
)


def canvas(panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side."""
    figure = Figure(figsize=(7.4, 4) if panels == 1 else (11, 4), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def finish(figure: Figure, name: str) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / f"{name}.png", dpi=110)


def accuracy(name: str = "accuracy") -> None:
    """What `make train` found: accuracy by class frequency, of three of its losses."""
    record = json.loads(RECORD.read_text())
    shown = {
        "la+lpl": ("LPLLoss(counts, tau=1.0)", PINK, "D"),
        "la": ("LogitAdjustedLoss(counts)", BLUE, "s"),
        "ce": ("plain cross-entropy", BLACK, "o"),
    }
    figure, (axes,) = canvas()
    for loss, (label, colour, marker) in shown.items():
        runs = [run for run in record["results"] if run["loss"] == loss]
        size = torch.tensor([record["class_counts"][str(run["seed"])] for run in runs]).double()
        right = torch.tensor([run["class_accuracy"] for run in runs]).double()
        edges = torch.logspace(*(float(size[0].log10().aminmax()[i]) for i in (0, 1)), 11).double()
        place = torch.bucketize(size[0], edges[1:-1], right=True)
        full = [bin for bin in range(10) if bool((place == bin).any())]
        axes.plot(
            [float(size[0][place == bin].log().mean().exp()) for bin in full],
            [100 * float(right[:, place == bin].mean()) for bin in full],
            color=colour,
            marker=marker,
            markersize=5,
            label=label,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(NUMBER)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="training images of the class", ylabel="accuracy on new images (%)")
    axes.set_ylim(0, 100)
    axes.set_title("500 classes of letter shapes, 200 to 2 training images each", fontsize=11)
    axes.legend(loc="lower right", frameon=False)
    finish(figure, name)


COUNTS = torch.logspace(math.log10(1000), math.log10(5), 50).round().double()
NUMBER_OF = "training examples of the class"


def curve(axes: Axes, x: Tensor, y: Tensor, label: str, colour: str, style: str = "-") -> None:
    axes.plot(x, y, color=colour, linestyle=style, linewidth=1.8, label=label)


def by_count(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(NUMBER)
    axes.set_xlabel(NUMBER_OF)


def pull(criterion: nn.Module, lead: float = 3.0) -> Tensor:
    """(C,) how hard a sample of each class pulls its own logit up, where that leads all others."""
    logits = (lead * torch.eye(len(COUNTS)).double()).requires_grad_()
    criterion(logits, torch.arange(len(COUNTS))).backward()
    assert logits.grad is not None
    return -logits.grad.diagonal()


def pulls(axes: Axes, shown: list[tuple[str, nn.Module, str]]) -> None:
    for label, criterion, colour in shown:
        curve(axes, COUNTS, pull(criterion), label, colour, "--" if colour == BLACK else "-")
    by_count(axes)
    axes.set_ylabel("pull on the label's own logit")
    axes.set_title("Gradient where the label leads by 3, 50 classes", fontsize=11)
    axes.legend(frameon=False)


def plain(name: str) -> None:
    """φ and its slope, by the probability of the label."""
    figure, (left, right) = canvas(2)
    p = torch.linspace(0.002, 1, 400).double()
    for label, criterion, colour in (
        ("cross-entropy", losses.CrossEntropyLoss(reduction="none"), BLACK),
        ("focal, γ = 2", losses.FocalLoss(reduction="none"), BLUE),
        ("GCE, q = 0.7", losses.GCELoss(reduction="none"), ORANGE),
        ("α-loss, α = 2", losses.AlphaLoss(reduction="none"), RED),
        ("poly-1, ε = 2", losses.Poly1Loss(reduction="none"), GREEN),
    ):
        logits = torch.stack([p.logit(1e-12), torch.zeros_like(p)], 1).requires_grad_()
        loss = criterion(logits, torch.zeros(len(p), dtype=torch.long))
        (slope,) = torch.autograd.grad(loss.sum(), logits)
        curve(left, p, loss.detach(), label, colour)
        curve(right, p, -slope[:, 0], label, colour)
    for axes, y, title in (
        (left, "loss", "Loss"),
        (right, "pull on the label's logit", "Gradient"),
    ):
        axes.set(xlabel="probability of the label", ylabel=y)
        axes.set_title(title, fontsize=11)
    left.set_ylim(0, 5)
    right.set_ylim(0, 1.6)
    left.legend(frameon=False)
    finish(figure, name)


def tables(name: str) -> None:
    """What is added to logits by class frequency, and what becomes of the gradient."""
    figure, (left, right) = canvas(2)
    offset = losses.LogitAdjustedLoss(COUNTS).perturbation(COUNTS).offset
    margin = losses.LDAMLoss(COUNTS, max_m=2.0, s=1.0).perturbation(COUNTS).margin
    scale = losses.CDTLoss(COUNTS, gamma=0.3).perturbation(COUNTS).scale
    assert offset is not None and margin is not None and scale is not None
    curve(left, COUNTS, offset - offset.max(), "offset of logit adjustment, τ = 1", BLUE)
    curve(left, COUNTS, -margin, "minus the margin of LDAM, largest 2", ORANGE)
    curve(left, COUNTS, scale, "scale of CDT, γ = 0.3", GREEN)
    by_count(left)
    left.set_ylabel("table's entry of the class")
    left.set_title("Tables", fontsize=11)
    left.legend(frameon=False)
    pulls(
        right,
        [
            ("cross-entropy", losses.CrossEntropyLoss(reduction="sum"), BLACK),
            ("logit adjustment", losses.LogitAdjustedLoss(COUNTS, reduction="sum"), BLUE),
            ("LDAM, largest margin 2", losses.LDAMLoss(COUNTS, 2.0, 1.0, reduction="sum"), ORANGE),
            ("CDT, γ = 0.3", losses.CDTLoss(COUNTS, reduction="sum"), GREEN),
            ("VS, γ = 0.3, τ = 1", losses.VSLoss(COUNTS, reduction="sum"), RED),
        ],
    )
    finish(figure, name)


def lpl(name: str) -> None:
    """How far δ moves a row, and what becomes of the gradient by class frequency."""
    figure, (left, right) = canvas(2)
    steps = range(51)
    row = torch.tensor([[2.0, 1.0, 0.0]]).double()
    for sign, label, colour in ((1, "raised", RED), (-1, "lowered", BLUE)):
        p = []
        for k in steps:
            _, delta = LF.lpl_perturbation(
                row,
                torch.tensor([0]),
                torch.tensor([sign * k, 0, 0]),
                step_size=0.05,
                normalize=True,
            )
            p.append((row + delta).softmax(1)[0])
        moved = torch.stack(p)
        curve(left, torch.tensor(steps), moved[:, 0], f"label, {label}", colour)
        curve(left, torch.tensor(steps), moved[:, 1], f"first rival, {label}", colour, ":")
    left.set(xlabel="K, steps of length 0.05", ylabel="probability", ylim=(0, 1.25))
    left.set_title("One row, logits 2, 1, 0", fontsize=11)
    left.legend(frameon=False, ncols=2, loc="upper center")
    common = {"epsilon": 0.5, "step_size": 0.05, "reduction": "sum"}
    pulls(
        right,
        [
            ("cross-entropy", losses.CrossEntropyLoss(reduction="sum"), BLACK),
            ("LPL, ε = 0.5", losses.LPLLoss(COUNTS, **common), RED),
            ("logit adjustment", losses.LogitAdjustedLoss(COUNTS, reduction="sum"), BLUE),
            ("LPL on top of it", losses.LPLLoss(COUNTS, tau=1.0, **common), PINK),
        ],
    )
    finish(figure, name)


def angular(name: str) -> None:
    """What margins do to the label's cosine, and the loss by angle."""
    figure, (left, right) = canvas(2)
    theta = torch.linspace(0, math.pi, 361).double()
    degrees = theta.rad2deg()
    rivals = torch.zeros(len(theta), 999).double()
    label = torch.zeros(len(theta), dtype=torch.long)
    for text, criterion, colour in (
        ("no margin", losses.CosFaceLoss(s=30.0, m=0.0, reduction="none"), BLACK),
        ("CosFace, m = 0.4", losses.CosFaceLoss(s=30.0, m=0.4, reduction="none"), BLUE),
        ("ArcFace, m = 0.5", losses.ArcFaceLoss(s=30.0, m=0.5, reduction="none"), RED),
    ):
        cosine = theta.cos().requires_grad_()
        loss = criterion(torch.cat([cosine[:, None], rivals], 1), label)
        (slope,) = torch.autograd.grad(loss.sum(), cosine)
        curve(left, degrees, loss.detach(), text, colour)
        curve(right, degrees, -slope / 30, text, colour)
    left.set(xlabel="angle between features and the label's direction (°)", ylabel="loss")
    left.set_title("Loss, 999 rivals at 90°, s = 30", fontsize=11)
    right.set(xlabel="angle (°)", ylabel="pull on the label's cosine, over s")
    right.set_title("Gradient", fontsize=11)
    left.legend(frameon=False)
    finish(figure, name)


def noise(name: str) -> None:
    """What is drawn for a logit, by the frequency of its class."""
    figure, panels = canvas(2)
    for axes, title, criterion, colour in (
        (panels[0], "GCL: rare classes are lowered", losses.GCLLoss(COUNTS, s=1.0), BLUE),
        (panels[1], "BLV, σ = 0.5: rare classes are raised", losses.BLVLoss(COUNTS, 0.5), RED),
    ):
        torch.manual_seed(0)
        strength = criterion.table("strength", COUNTS)
        drawn = (torch.randn(4000, len(COUNTS)) * criterion.sigma).abs().clamp(max=1) * strength
        low, middle, high = torch.quantile(drawn, torch.tensor([0.1, 0.5, 0.9]).double(), 0)
        axes.fill_between(COUNTS, low, high, color=colour, alpha=0.25, label="8 of 10 draws")
        curve(axes, COUNTS, middle, "median", colour)
        by_count(axes)
        axes.set_ylabel("added to the class's logit")
        axes.set_title(title, fontsize=11)
        axes.legend(frameon=False)
    finish(figure, name)


def robust(name: str) -> None:
    """Loss and gradient of a wrong label by the length of the row."""
    figure, (left, right) = canvas(2)
    length = torch.linspace(0.05, 12, 300).double()
    direction = torch.tensor([1.0, *[0.0] * 9]).double()
    for label, criterion, colour in (
        ("cross-entropy", losses.CrossEntropyLoss(reduction="none"), BLACK),
        ("LogitClip, τ = 1", losses.LogitClipLoss(reduction="none"), BLUE),
        ("LogitClip, τ = 3", losses.LogitClipLoss(tau=3.0, reduction="none"), SKY),
        ("LogitNorm, τ = 0.5", losses.LogitNormLoss(tau=0.5, reduction="none"), RED),
        ("GCE, q = 0.7", losses.GCELoss(reduction="none"), ORANGE),
    ):
        rows = (length[:, None] * direction).requires_grad_()
        loss = criterion(rows, torch.ones(len(length), dtype=torch.long))
        (slope,) = torch.autograd.grad(loss.sum(), rows)
        curve(left, length, loss.detach(), label, colour)
        curve(right, length, slope.norm(dim=1), label, colour)
    left.set(xlabel="logit of the class that the model prefers", ylabel="loss", ylim=(0, 8))
    left.set_title("Loss of a wrong label, 10 classes", fontsize=11)
    right.set(
        xlabel="logit of the class that the model prefers",
        ylabel="length of the gradient",
        ylim=(0, 3),
    )
    right.set_title("Gradient", fontsize=11)
    left.legend(frameon=False)
    finish(figure, name)


def calibration(name: str) -> None:
    """Where training stops pulling: loss by the lead of the label."""
    figure, (left, right) = canvas(2)
    lead = torch.linspace(0, 20, 401).double()
    direction = torch.tensor([1.0, *[0.0] * 9]).double()
    for label, criterion, colour in (
        ("cross-entropy", losses.CrossEntropyLoss(reduction="none"), BLACK),
        ("smoothing, ε = 0.1", losses.CrossEntropyLoss(label_smoothing=0.1, reduction="none"), SKY),
        (
            "MbLS, margin 6",
            losses.MbLSLoss(margin=6.0, base=losses.CrossEntropyLoss(reduction="none")),
            RED,
        ),
    ):
        rows = (lead[:, None] * direction).requires_grad_()
        loss = criterion(rows, torch.zeros(len(lead), dtype=torch.long))
        (slope,) = torch.autograd.grad(loss.sum(), rows)
        curve(left, lead, loss.detach(), label, colour)
        curve(right, lead, -slope[:, 0], label, colour)
    right.axhline(0, color="0.3", linewidth=0.8)
    left.set(xlabel="lead of the label's logit, 10 classes", ylabel="loss", ylim=(0, 3))
    left.set_title("Loss", fontsize=11)
    right.set(xlabel="lead of the label's logit", ylabel="pull on it", ylim=(-0.15, 0.4))
    right.set_title("Gradient: 0 is where training rests", fontsize=11)
    left.legend(frameon=False)
    finish(figure, name)


def reweighting(name: str) -> None:
    """Weights of classes by frequency, and of rows by their loss."""
    figure, (left, right) = canvas(2)
    for label, beta, colour in (
        ("β = 0: all alike", 0.0, BLACK),
        ("β = 0.99", 0.99, SKY),
        ("β = 0.999", 0.999, BLUE),
        ("β = 0.9999, nearly 1/n", 0.9999, RED),
    ):
        weights = class_stats.effective_number_weights(COUNTS, beta)
        curve(left, COUNTS, weights, label, colour)
    by_count(left)
    left.set_yscale("log")
    left.yaxis.set_major_formatter(NUMBER)
    left.set_ylabel("weight of the class")
    left.set_title("Effective number of samples", fontsize=11)
    left.legend(frameon=False)
    loss = torch.linspace(0, 6, 61).double()
    logits = torch.stack([-(loss.expm1().log()), torch.zeros_like(loss)], 1)
    logits[0, 0] = 50.0
    for label, lam, colour in (
        ("plain mean", None, BLACK),
        ("λ = 5", 5.0, SKY),
        ("λ = 2", 2.0, BLUE),
        ("λ = −2: wrong labels", -2.0, RED),
    ):
        rows = losses.CrossEntropyLoss(reduction="none")
        criterion = losses.ABSGDLoss(lam, rows, gamma=1.0)
        moving = logits.clone().requires_grad_()
        labels = torch.zeros(len(loss), dtype=torch.long)
        (got,) = torch.autograd.grad(criterion(moving, labels), moving)
        (own,) = torch.autograd.grad(rows(moving, labels).sum(), moving)
        curve(right, loss[1:], len(loss) * (got / own)[1:, 0], label, colour)
    right.set(xlabel="loss of the row (one row at each)", ylabel="weight of the row")
    right.set_title("ABSGD", fontsize=11)
    right.legend(frameon=False)
    finish(figure, name)


def multi_label(name: str) -> None:
    """Loss of a positive and of a negative label by its logit."""
    figure, panels = canvas(2)
    u = torch.linspace(-6, 6, 241).double()
    balanced = losses.DistributionBalancedLoss(
        [500, 5], 1000, weighting=None, reduction="none", focal=False, init_bias=0.5
    )
    for axes, y, title in ((panels[0], 1.0, "Positive"), (panels[1], 0.0, "Negative")):
        for label, criterion, column, colour in (
            ("binary cross-entropy", losses.MultiLabelLoss(reduction="none"), 0, BLACK),
            ("NTR, 500 of 1,000 positive", balanced, 0, BLUE),
            ("NTR, 5 of 1,000 positive", balanced, 1, RED),
        ):
            logits = u[:, None].repeat(1, 2).requires_grad_()
            loss = criterion(logits, torch.full((len(u), 2), y).double())
            (slope,) = torch.autograd.grad(loss.sum(), logits)
            curve(axes, u, -slope[:, column], label, colour)
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.set(xlabel="logit", ylabel="pull on the logit")
        axes.set_title(f"{title} label (κ = 0.5)", fontsize=11)
    panels[0].legend(frameon=False)
    finish(figure, name)


def detection(name: str) -> None:
    """How hard samples of a frequent class press the logits of others down."""
    figure, (left, right) = canvas(2)
    ratio = torch.logspace(-3, 1, 200).double()
    for label, p, colour in (("p = 0", 0.0, BLACK), ("p = 0.4", 0.4, SKY), ("p = 0.8", 0.8, BLUE)):
        curve(left, ratio, ratio.clamp(max=1) ** p, label, colour)
    left.set_xscale("log")
    left.xaxis.set_major_formatter(NUMBER)
    left.set(xlabel="samples of the rival over samples of the label", ylabel="factor of e^u")
    left.set_title("Seesaw: mitigation by counts", fontsize=11)
    left.legend(frameon=False)
    rows = 2000
    for label, criterion, colour in (
        ("cross-entropy", losses.CrossEntropyLoss(reduction="sum"), BLACK),
        ("Seesaw", losses.SeesawLoss(len(COUNTS), reduction="sum"), BLUE),
        ("softmax EQL, λ = 0.01", losses.SoftmaxEQLLoss(COUNTS, 0.01, reduction="sum"), RED),
    ):
        if isinstance(criterion, losses.SeesawLoss):
            criterion.seen.copy_(COUNTS)
        torch.manual_seed(0)
        logits = torch.zeros(rows, len(COUNTS)).double().requires_grad_()
        criterion(logits, torch.zeros(rows, dtype=torch.long)).backward()
        assert logits.grad is not None
        style = "--" if colour == BLACK else "-"
        curve(right, COUNTS[1:], logits.grad.mean(0)[1:], label, colour, style)
    by_count(right)
    right.set_ylabel("push on the class's logit")
    right.set_title("From samples of the most frequent class, all logits 0", fontsize=11)
    right.legend(frameon=False)
    finish(figure, name)


PICTURES: dict[str, Callable[[str], None]] = {
    "accuracy": accuracy,
    "losses/plain": plain,
    "losses/tables": tables,
    "losses/lpl": lpl,
    "losses/angular": angular,
    "losses/noise": noise,
    "losses/robust": robust,
    "losses/calibration": calibration,
    "losses/reweighting": reweighting,
    "losses/multi-label": multi_label,
    "losses/detection": detection,
}


def main(names: list[str]) -> None:
    for name in names or PICTURES:
        PICTURES[name](name)


if __name__ == "__main__":
    main(sys.argv[1:])
