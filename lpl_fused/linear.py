"""Classifier layers that some losses need."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .arguments import Integer
from .problem import accumulate_dtype

_SIZE = Integer(least=1)


class NormalizedLinear(nn.Module):
    """Cosine logits: u_j = ⟨x/‖x‖₂, w_j/‖w_j‖₂⟩, each in [−1, 1] (LDAM's last layer).

    Margins and scales of LDAM, CosFace and their kin are meant for these.

    The weights start with norm 1. Cosines do not see their norms, but training does: a step turns a
    w_j of norm r by 1/r² of what it turns one of norm 1.

    With sub-centres (Deng et al., 2020) a class has K directions, and its cosine is the largest of
    theirs: those of noisy labels find a direction of their own. Under `losses.ArcFaceLoss` it is
    the paper's sub-centre ArcFace; any other loss of cosines goes as well. The gradient goes to the
    largest, to all of them where they tie.

    Args:
        in_features, out_features: as in `nn.Linear`; there is no bias.
        sub_centers: K, default 1; the paper's is 3. `weight` is (out_features·K, in_features),
            those of a class beside each other.

    Shapes: (…, in_features) → (…, out_features). A zero vector gives zeros (‖·‖ is bounded below by
    1e-12, as in `torch.nn.functional.normalize`).

    Examples:
        >>> layer = lpl_fused.linear.NormalizedLinear(16, 5)
        >>> cosines = layer(torch.randn(8, 16))
        >>> cosines.shape, bool((cosines.abs() <= 1).all())
        (torch.Size([8, 5]), True)
    """

    def __init__(self, in_features: int, out_features: int, sub_centers: int = 1) -> None:
        super().__init__()
        self.in_features = _SIZE("in_features", in_features)
        self.out_features = _SIZE("out_features", out_features)
        self.sub_centers = _SIZE("sub_centers", sub_centers)
        directions = self.out_features * self.sub_centers
        self.weight = nn.Parameter(torch.empty(directions, self.in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)  # directions uniform on the sphere
        with torch.no_grad():
            self.weight.copy_(_direction(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        cosines = nn.functional.linear(_direction(input), _direction(self.weight))
        if self.sub_centers > 1:
            of_class: Tensor = cosines.unflatten(-1, (self.out_features, self.sub_centers))
            cosines = of_class.amax(-1)
        return cosines

    def factors(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """The directions whose products the cosines are: what a loss's `linear` takes.

        Raises:
            NotImplementedError: there are sub-centres, whose largest cosine is no product.

        Examples:
            >>> layer = lpl_fused.linear.NormalizedLinear(16, 5)
            >>> cosines = layer.factors(torch.randn(8, 16))
            >>> losses.CosFaceLoss(16.0, 0.2).linear(*cosines, torch.randint(5, (8,))).shape
            torch.Size([])
        """
        if self.sub_centers > 1:
            raise NotImplementedError(
                f"sub_centers={self.sub_centers}: the largest cosine of a class is no product; call"
                " the layer"
            )
        return _direction(input), _direction(self.weight)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return sizes if self.sub_centers == 1 else f"{sizes}, sub_centers={self.sub_centers}"


def _direction(x: Tensor) -> Tensor:
    """x/‖x‖₂ in the dtype of x: of 16 bits by a norm in float32, where no square overflows."""
    full = x.to(accumulate_dtype(x.dtype))
    return nn.functional.normalize(full, dim=-1).to(x.dtype)


class WeightScaling(nn.Module):
    """Learnable weight scaling (LWS; Kang et al., 2020): z_c = s_c·u_c, s learned, starts at 1.

    For a second stage over a frozen classifier; part of the model, at test time too. In training
    the fused loss can take it as a table: `Perturbation(scale=layer.scale)`.

    Args:
        num_classes: C.

    Shapes: (N, C) → (N, C).

    Examples:
        >>> layer = lpl_fused.linear.WeightScaling(3)
        >>> layer(torch.tensor([[2.0, 1.0, 0.0]])).detach()
        tensor([[2., 1., 0.]])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(_SIZE("num_classes", num_classes)))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale

    def extra_repr(self) -> str:
        return f"num_classes={len(self.scale)}"
