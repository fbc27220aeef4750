"""The batches of a pass over inputs: of a tensor, or of files, which are read a batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..data import ImageFiles
from ..data.files import DRAWS

PADDING = 4  # pixels that a random crop of an image in memory may be beside it

_MOST = 1024
_PIXELS = 1 << 22  # of a batch that is only looked at


def batches(
    inputs: Tensor | ImageFiles,
    numbers: Iterable[Tensor],
    crops: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The inputs of every batch of `numbers`, with these on the inputs' device.

    Args:
        inputs: (N, …).
        numbers: (n,) int64 of each batch, on the CPU.
        crops: draws random crops and mirrors them at random: of images in memory shifted by up to
            `PADDING` pixels, with black beside them, of files as `images.random_box` has it. None:
            inputs as they are.
    """
    # one batch is asked for before the one in front of it is handed out
    ahead = ((index, _asked(inputs, index, crops)) for index in numbers)
    due = next(ahead, None)
    while due is not None:
        following = next(ahead, None)
        yield due[0].to(inputs.device), due[1]()
        due = following


def all_batches(inputs: Tensor | ImageFiles) -> Iterator[Tensor]:
    """All inputs in their order, in batches as large as memory has room for anywhere."""
    size = _MOST
    if inputs.ndim == 4:
        size = max(1, min(_MOST, _PIXELS // (inputs.shape[2] * inputs.shape[3])))
    for _, part in batches(inputs, torch.arange(len(inputs)).split(size)):
        yield part


def subset(inputs: Tensor | ImageFiles, chosen: Tensor) -> Tensor | ImageFiles:
    """The inputs that a bool for each chooses, or those of the numbers."""
    return inputs.select(chosen) if isinstance(inputs, ImageFiles) else inputs[chosen]


def _asked(
    inputs: Tensor | ImageFiles, index: Tensor, crops: torch.Generator | None
) -> Callable[[], Tensor]:
    if isinstance(inputs, ImageFiles):
        draws = None if crops is None else torch.rand(len(index), DRAWS, generator=crops)
        return inputs.reading(index, draws)
    if crops is None:
        return lambda: inputs[index.to(inputs.device)]
    corners = torch.randint(2 * PADDING + 1, (2, len(index)), generator=crops)
    mirrored = torch.rand(len(index), generator=crops) < 0.5
    return lambda: _shifted(inputs[index.to(inputs.device)], corners, mirrored)


def _shifted(images: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
    """Images (n, c, h, w) cut at the corners (2, n) out of themselves with a black border."""
    device = images.device
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    across = torch.arange(width).expand(count, width)
    across = torch.where(mirrored[:, None], across.flip(1), across)
    rows = (corners[0][:, None] + torch.arange(height)).to(device)[:, None, :, None]
    columns = (corners[1][:, None] + across).to(device)[:, None, None, :]
    image = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[image, channel, rows, columns]
