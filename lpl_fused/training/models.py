"""Small models: enough for the losses to differ, small enough for two CPU cores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..arguments import FLAG, Instance
from ..data import LongTailedData
from ..linear import NormalizedLinear

_MLP_UP_TO = 24  # pixels a side; larger images go through convolutions
_STATISTICS_FROM = 4096  # images that the pixel mean and deviation are estimated from


class PixelScale(nn.Module):
    """Images `(N, channels, H, W)` uint8 to float32, standardised by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, train_images: Tensor) -> None:
        super().__init__()
        stride = max(1, len(train_images) // _STATISTICS_FROM)
        sample = train_images[::stride].float()
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


def build_model(data: LongTailedData, *, cosine_head: bool = False) -> nn.Module:
    """A model that maps `data`'s inputs to raw logits `(N, C)`, initialised from torch's RNG.

    Contexts of tokens, bags of words: embedding and one hidden layer. Images up to 24 pixels a
    side: two hidden layers; larger ones: three strided convolutions and one hidden layer.

    Args:
        data: the inputs' shape and dtype, the pixel statistics and the number of classes.
        cosine_head: the last layer is a `NormalizedLinear`, so that logits are cosines (LDAM).
    """
    Instance(LongTailedData, "data of `load`")("data", data)
    cosine_head = FLAG("cosine_head", cosine_head)
    inputs = data.train_inputs
    if data.words is not None:
        width, features = 96, 128
        body = nn.Sequential(BagEmbedding(data.words, width), *_dense(width, features))
    elif not inputs.is_floating_point() and inputs.ndim == 2:
        width, features = 48, 64
        body = nn.Sequential(
            ContextEmbedding(data.num_classes + 1, width),
            *_dense(width * inputs.shape[1], features),
        )
    elif max(inputs.shape[-2:]) <= _MLP_UP_TO:
        hidden = (256, 128)
        pixels = inputs[0].numel()
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
