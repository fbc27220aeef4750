"""What is known of the CUDA kernels by their names, and what forms of call launch: to be amended
where a kernel is added."""

from __future__ import annotations

ROWS, CLASSES = 8192, 32000  # of the predicted times
DTYPES = {"bf16": "__nv_bfloat16", "fp16": "__half", "fp32": "float", "fp64": "double"}
SIZES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}

# Threads that share a row where they are not 256, and rows of which they make one: the first
# pattern that a kernel's name has.
THREADS: tuple[tuple[str, int], ...] = (
    ("batch_kernel", 1024),
    (r"\b(warp|beside)_kernel", 32),
    ("LearnedStatisticsBody", 128),
    ("", 256),
)

# Logits of a thread where they are not its share of a row.
LOGITS: tuple[tuple[str, float], ...] = (
    (r"\b(Statistics|Gradients)Body\b", 4 * CLASSES / 256),  # of four rows
    (r"\bBinary(Span|Tile|Sided|Scale)Body\b", 64),
    (r"\bBinaryMomentsBody\b", 128),
    (r"\bBinaryGuessBody\b", 32),
)

# Those whose threads do a number for a row, or for a class, not for a logit.
OF_ROWS = (
    r"^(?!rows_beside_kernel).*\b(LossBody|NormBody|RanksBody|SortBody|RowStepsBody|list_groups|group_rows|count_rows"
    r"|BinaryLossBody|BinaryNormBody|BinaryStepsBody)\b"
)

# Those that read some rows only, and how many.
SOME_ROWS: tuple[tuple[str, int], ...] = ((r"\bBinaryGuessBody\b", 256),)

# What a kernel writes that is as large as the logits, by the first pattern that its name has: T of
# their type, A of the type that sums are of. More it does not write, whatever ways its code has:
# of those that exclude each other one is taken, and a list or a number of a row is not of logits.
WRITES: tuple[tuple[str, str], ...] = (
    (r"\b((Stats)?Row|Gradient)Body<\w+, 63u>|\bBinaryTileBody<\w+, \w+, true>", "TA"),
    (r"\b(Swept|BinarySided)Body\b", "TA"),
    (r"\b((Stats)?Row|Gradients?|LearnedGradient|GroupGradient|Scale)Body\b", "T"),
    (r"\bBinary(Span|Tile|Scale)Body\b", "T"),
    (r"\b(LearnedDelta|GroupDelta|Perturbed)Body\b", "A"),
    (r"Body\b", ""),
)

# Those that walk down columns, logit by logit.
COLUMNS = r"\bBinary(Guess|Moments)Body\b"
# Those that do so beside labels of whatever size, and logits of a turn (`kBatch`).
SINGLY: tuple[tuple[str, int], ...] = (
    (r"\bBinaryTileBody<\w+, Any, true>|\bBinarySidedBody\b", 4),
)

# Kernels that a form launches, forward and backward, T the element type: patterns of their names.
# "16:" and "32:" stand before what only logits of so many bits have; "sums:" before a kernel that
# here leaves out what writes. Sets of a problem's features (csrc/cuda/algebra.h) are numbers.
ALONE = "LPL, 10 steps, a class a row"  # a form's name


def _rows(set: int, sweep: str = "RowBody") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Loss and gradient in one sweep; another upstream makes 16 bits anew, and scales others."""
    again = f"16:GradientBody<T, {set}u>", "32:ScaleBody<T>"
    return (f"row_kernel<{sweep}<T, {set}u>", "NormBody", "batch_kernel<LossBody"), again


def _labelled(
    sweep: str, labels: str, moments: str = ""
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The same of multi-label losses, with moments under a learned perturbation."""
    again = f"Binary{sweep}Body<{', '.join(('T', labels) if labels else 'T')}>"
    forward: tuple[str, ...] = again, "BinaryLossBody"
    if moments:
        learns = "BinaryGuessBody<T>", f"BinaryMomentsBody<T, {moments}>", "BinaryStepsBody<T>"
        forward = (*learns, *forward)
    return forward, ("BinaryScaleBody<T>", f"16:{again}")


def _learned(set: int, groups: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """LPL of rows; kernels of classes with several rows, of which there are none, end at once. Rows
    of so many logits are ordered by class in a launch of its own."""
    tail = (f"GroupTailBody<T, {groups}u>",) * 2
    forward = (
        "batch_kernel<RanksBody",
        f"row_kernel<LearnedStatisticsBody<T, {set}u>",
        "beside_kernel<RowStepsBody",
        *(f"FirstTailBody<T, {groups}u>", f"GroupGatherBody<T, {groups}u>", *tail),
        "row_kernel<SweptBody<T, 63u>",
    )
    gradient: tuple[str, ...] = (f"piece_kernel<LearnedGradientBody<T, {set}u>",)
    if groups:  # without tables one kernel for all three
        gradient += (f"InTurnsAndLeft<GroupGradientBody<T, {groups}u>",)
    return forward, gradient


def _with_stats(
    form: tuple[tuple[str, ...], tuple[str, ...]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The same with statistics of rows: of classes with several rows under their δ."""
    others = "GroupDeltaBody<T, 0u>", "row_kernel<SweptBody<T, 63u>", "StatsRowBody<T, 63u>"
    return (*form[0], "StatsStepsBody<T, 0u>", *others), form[1]


CUDA: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain, a margin, φ": _rows(0),
    "plain, by statistics": (("sums:row_kernel<RowBody<T, 0u>",), ("GradientBody<T, 0u>",)),
    "plain, with stats": _rows(0, "StatsRowBody"),
    "plain, with stats, by statistics": (("sums:StatsRowBody<T, 0u>",), ("GradientBody<T, 0u>",)),
    "tables": _rows(1),
    "tables, by statistics": (("StatisticsBody<T, 1u>",), ("GradientsBody<T, 1u>",)),
    "smoothing": _rows(2),
    "norm": _rows(4),
    "norm, with tables": _rows(5),
    "penalty": _rows(8),
    "everything": _rows(63),
    "everything, with stats": _rows(63, "StatsRowBody"),
    "BCE": _labelled("Span", "T"),
    "BCE, bool labels": _labelled("Span", "Bool"),
    "BCE, everything": _labelled("Tile", "Any, true"),
    "BCE, asymmetric": _labelled("Sided", ""),
    "BCE, LPL, 10 steps": _labelled("Tile", "T, false", "T"),
    "BCE, LPL, 10 steps, bool labels": _labelled("Tile", "Bool, false", "Bool"),
    ALONE: _learned(0, 0),
    f"{ALONE}, tables": _learned(1, 63),
    f"{ALONE}, with stats": _with_stats(_learned(0, 0)),
}
# Instructions a logit that kernels for bf16 are to keep to: (what, kernels, reach, stretch).
BUDGETS: tuple[tuple[str, tuple[str, ...], int, int], ...] = (
    ("loss and gradient, plain", ("row_kernel<RowBody<T, 0u>",), 16, 12),
    ("tables, by statistics", ("StatisticsBody<T, 1u>", "GradientsBody<T, 1u>"), 22, 16),
    ("smoothing", ("RowBody<T, 2u>",), 22, 16),
    ("norm", ("RowBody<T, 4u>",), 40, 30),
    ("penalty", ("RowBody<T, 8u>",), 40, 30),
    ("LPL, statistics", ("row_kernel<LearnedStatisticsBody<T, 0u>",), 16, 11),
    ("LPL, gradient", ("piece_kernel<LearnedGradientBody<T, 0u>",), 16, 11),
    ("BCE", ("BinarySpanBody<T, T>",), 30, 22),
)

# Kernels that are also compiled for the way that most threads take (LPL_USUALLY in
# csrc/cuda/call.h): no label and no head among a thread's logits, rows of whole pieces, the row's
# own numbers made by another warp; a 2-norm of numbers that need no scaling, ReLU's penalty.
USUAL = "(usual way)"
USUAL_OBJECT = "usual.o"

# Kernels by themselves that nobody launches so, as their teams are blocks of one kernel with those
# of others: which of them there is most to do for a call decides, not the code. What they do is
# counted of these; their registers, and the room that they find, are of the one that is launched.
_GRADIENT, _STATISTICS = "LearnedGradientBody<T, 0u>", "LearnedStatisticsBody"
APART: dict[str, str] = {
    f"piece_kernel<{_GRADIENT}": f"pieces_beside_kernel<{_GRADIENT}",
    "row_kernel<InTurns<GroupGradientBody<T, 0u>": f"pieces_beside_kernel<{_GRADIENT}",
    f"row_kernel<{_STATISTICS}<T, 0u>": f"rows_beside_kernel<{_STATISTICS}<T, 0u>",
    f"row_kernel<{_STATISTICS}<T, 1u>": f"rows_beside_kernel<{_STATISTICS}<T, 1u>",
}
APART_OBJECT = "apart.o"


# What is launched lest the host waits for the device, and ends at once: where a gradient of 16 bits
# is made anew, what would scale it; where every row has a class of its own, what is of groups.
IDLE_ANEW = r".*\bBinaryScaleBody<(__half|__nv_bfloat16)>"
IDLE_ALONE = (
    r"^(list_groups|split_columns|move_tail|move_groups|plain_steps|forward"
    r"|.*Group\w*Body.*|.*FirstTailBody.*|.*SweptBody.*|.*StatsRowBody.*)$"
)
# Triton's multi-label steps are taken in legs, of which ten of 0.1 need the first alone: of all
# others, and of what reads all rows once a step, nothing is left.
WALKED = ("binary_moments", "binary_walk", "binary_rest")
