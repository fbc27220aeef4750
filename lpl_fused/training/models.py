"""Models: small ones, enough for losses to differ on two CPU cores, and residual networks."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ..arguments import FLAG, Choice, Instance
from ..data import ImageFiles, LongTailedData
from ..extras import needs_extra
from ..linear import NormalizedLinear

_MLP_UP_TO = 24  # pixels a side; larger images go through convolutions
_STATISTICS_FROM = 4096  # images that the pixel mean and deviation are estimated from
_STATISTICS_FROM_FILES = 256  # which are read anew for every model

SMALL = "small"
RESNET32 = "resnet32"
# classes of torchvision.models
TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d"),
)
BACKBONES = (SMALL, RESNET32, *TORCHVISION)


class PixelScale(nn.Module):
    """Images `(N, channels, H, W)` uint8 to float32, standardised by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, train_images: Tensor | ImageFiles) -> None:
        super().__init__()
        most = _STATISTICS_FROM
        if isinstance(train_images, ImageFiles):
            most = _STATISTICS_FROM_FILES
        stride = max(1, len(train_images) // most)
        sample = train_images[torch.arange(0, len(train_images), stride)].float()
        std, mean = torch.std_mean(sample, dim=(0, 2, 3), keepdim=True)  # (1, channels, 1, 1)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp(min=1.0))  # a constant channel stays finite

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


class ContextEmbedding(nn.Module):
    """Contexts `(N, length)` int64 to the embeddings of their tokens side by side."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        # Batch normalisation follows, so only directions matter, and a rare token's few gradients
        # turn a short vector faster.
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, contexts: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(contexts)  # (N, length, width)
        return embedded.flatten(1)


class BagEmbedding(nn.Module):
    """Bags of words `(N, length)` int64 to the mean `(N, width)` of their words' embeddings.

    Words are numbered from 1; 0 fills up and counts nothing.
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(words + 1, width, mode="mean", padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.1)  # as in ContextEmbedding

    def forward(self, bags: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(bags)
        return embedded


class _Block(nn.Module):
    """Two convolutions beside the way past them, which is padded with zeros where it widens."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride = 1 if channels == out_channels else 2
        self.more = out_channels - channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, self.stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        past = inputs[:, :, :: self.stride, :: self.stride]
        half = self.more // 2
        past = nn.functional.pad(past, (0, 0, 0, 0, half, self.more - half))
        return torch.relu(self.convolutions(inputs) + past)


def resnet32(channels: int) -> nn.Sequential:
    """ResNet-32 of CIFAR (He et al. 2016, shortcuts of kind A) without its classifier.

    Images (N, channels, H, W) to 64 features.
    """
    widths = (16, *(16,) * 5, *(32,) * 5, *(64,) * 5)
    layers = [
        nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        *(_Block(before, after) for before, after in itertools.pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    for layer in nn.Sequential(*layers).modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers)


def _of_torchvision(name: str) -> tuple[nn.Module, int]:
    """A residual network of torchvision's from random weights, and how many features it has."""
    with needs_extra():
        from torchvision import models

    network = models.get_model(name, weights=None)
    features = network.fc.in_features
    network.fc = nn.Identity()
    return network, features


def build_model(
    data: LongTailedData, *, cosine_head: bool = False, backbone: str = SMALL
) -> nn.Module:
    """A model that maps `data`'s inputs to raw logits `(N, C)`, initialised from torch's RNG.

    Contexts of tokens, bags of words: embedding and one hidden layer. Images up to 24 pixels a
    side: two hidden layers; larger ones: three strided convolutions and one hidden layer.

    Args:
        data: the inputs' shape and dtype, the pixel statistics and the number of classes.
        cosine_head: the last layer is a `NormalizedLinear`, so that logits are cosines (LDAM).
        backbone: "small", "resnet32", or a name in `TORCHVISION`, which wants images of three
            channels and torchvision.

    Raises:
        ValueError: a backbone that does not take these inputs.
        MissingExtraError: torchvision is missing.
    """
    Instance(LongTailedData, "data of `load`")("data", data)
    cosine_head = FLAG("cosine_head", cosine_head)
    inputs = data.train_inputs
    Choice(*BACKBONES)("backbone", backbone)
    if backbone != SMALL:
        coloured = backbone in TORCHVISION
        if inputs.ndim != 4 or (coloured and inputs.shape[1] != 3):
            raise ValueError(
                f"backbone: {backbone} takes images{' of 3 channels' if coloured else ''}, got "
                f"inputs of shape {tuple(inputs.shape)}"
            )
        network: nn.Module
        if coloured:
            network, features = _of_torchvision(backbone)
        else:
            network, features = resnet32(inputs.shape[1]), 64
        body = nn.Sequential(PixelScale(inputs), network)
    elif data.words is not None:
        width, features = 96, 128
        body = nn.Sequential(BagEmbedding(data.words, width), *_dense(width, features))
    elif isinstance(inputs, Tensor) and not inputs.is_floating_point() and inputs.ndim == 2:
        width, features = 48, 64
        body = nn.Sequential(
            ContextEmbedding(data.num_classes + 1, width),
            *_dense(width * inputs.shape[1], features),
        )
    elif max(inputs.shape[-2:]) <= _MLP_UP_TO:
        hidden = (256, 128)
        pixels = math.prod(inputs.shape[1:])
        body = nn.Sequential(
            PixelScale(inputs), nn.Flatten(), *_dense(pixels, hidden[0]), *_dense(*hidden)
        )
        features = hidden[-1]
    else:
        channels, features = (32, 64, 128), 256
        body = nn.Sequential(
            PixelScale(inputs),
            *_convolution(inputs.shape[1], channels[0]),
            *_convolution(channels[0], channels[1]),
            *_convolution(channels[1], channels[2]),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            *_dense(channels[-1] * 16, features),
        )
    head = (NormalizedLinear if cosine_head else nn.Linear)(features, data.num_classes)
    return nn.Sequential(body, head)


def _dense(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
