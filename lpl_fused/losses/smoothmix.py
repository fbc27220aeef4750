"""SmoothMix: adversarial mixing for smoothed classifiers; `certification` judges the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import functional
from ..arguments import FLAG, NOT_NEGATIVE, Integer, Maybe, live
from ..problem import accumulate_dtype
from ..validation import checked_shares
from .cross_entropy import BACKEND
from .module import LossModule


class SmoothMixLoss(LossModule):
    """SmoothMix (Jeong et al., 2021), for m noisy copies of clean and of mixed inputs:

        L = mean_ki CE(u_ki, y_i) + η·mean_ki 1[argmax F̂_i = y_i]·KL(t_i ‖ softmax(v_ki))
        F̂_i = mean_k softmax(u_ki),   t_i = (1 − λ_i)·F̂_i + λ_i/C

    Both means are over all m·N rows, masked ones included. As in the authors' code F̂ is not held
    constant: the gradient reaches the clean logits through the target too. One step of training,
    of which the authors take m, each with an m-th of the batch:

        clean, adversary = smoothmix_attack(model, x, y, noises)
        mixed, lam = smoothmix_inputs(clean, adversary)
        u, v = (torch.stack([model(z + noise) for noise in noises]) for z in (clean, mixed))
        loss(u, v, lam, y).backward()

    No state. Cost: cross-entropy of 2·m·N rows; the target's gradient takes plain PyTorch.

    Args:
        eta: η ≥ 0, default 5.0, the authors' for CIFAR-10; assigned once per epoch from
            `schedules.warm_up(5.0, epoch)`.
        detach_target: hold t constant; then all runs fused.
        backend: as in `functional.cross_entropy`, for what does not need the target's gradient.

    Shapes: clean, mixed (m, N, C); lam (N,); target (N,) class indices. A smoothed classifier is
    about raw logits: no perturbation, weights or φ.

    Raises:
        ValueError: shapes that do not fit; bad η; λ outside [0, 1] (on a GPU the loss is nan).

    Examples:
        >>> model, target = torch.nn.Linear(4, 3), torch.tensor([0, 2])
        >>> x, noises = torch.rand(2, 4), [0.25 * torch.randn(2, 4) for _ in range(2)]
        >>> clean, adversary = losses.smoothmix_attack(model, x, target, noises)
        >>> mixed, lam = losses.smoothmix_inputs(clean, adversary)
        >>> u, v = (torch.stack([model(z + noise) for noise in noises]) for z in (clean, mixed))
        >>> losses.SmoothMixLoss()(u, v, lam, target).shape
        torch.Size([])
    """

    arguments: ClassVar = {
        "eta": live(NOT_NEGATIVE),
        "detach_target": live(FLAG),
        "backend": BACKEND,
    }

    def __init__(
        self, eta: float = 5.0, *, detach_target: bool = False, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.eta, self.detach_target, self.backend = eta, detach_target, backend

    def forward(self, clean: Tensor, mixed: Tensor, lam: Tensor, target: Tensor) -> Tensor:
        if clean.dim() != 3 or clean.shape != mixed.shape:
            raise ValueError(
                "clean, mixed: expected logits of one shape (m, N, C)"
                f", got {tuple(clean.shape)} and {tuple(mixed.shape)}"
            )
        copies, n, classes = clean.shape
        if lam.shape != (n,) or target.shape != (n,):
            raise ValueError(
                f"lam, target: expected shape {(n,)}, got {tuple(lam.shape)}"
                f" and {tuple(target.shape)}"
            )
        labels = target.repeat(copies)
        clean = clean.to(accumulate_dtype(clean.dtype))  # the sum of two gradients is rounded
        rows = clean.reshape(-1, classes)
        loss = functional.cross_entropy(rows, labels, backend=self.backend)
        average = torch.softmax(clean, 2).mean(0)
        kept = (average.argmax(1) == target.long()).to(average.dtype)
        share = checked_shares("lam", lam.to(average.dtype))[:, None]
        soft = (1 - share) * average + share / classes
        # t·log t has no slope at 0, where F̂ underflowed beside λ = 0
        soft = soft.clamp(min=torch.finfo(soft.dtype).tiny)
        if self.detach_target:
            soft = soft.detach()
        cross = functional.cross_entropy(
            mixed.reshape(-1, classes),
            soft.repeat(copies, 1),
            reduction="sum",
            sample_weight=kept.repeat(copies),
            backend=self.backend if self.detach_target else "auto",
        )
        entropy = (kept * torch.special.entr(soft).sum(1)).sum()
        divergence: Tensor = (cross / copies - entropy) / n
        return loss + self.eta * divergence

    def extra_repr(self) -> str:
        return f"eta={self.eta}, detach_target={self.detach_target}"


def smoothmix_attack(
    model: nn.Module | Callable[[Tensor], Tensor],
    input: Tensor,
    target: Tensor,
    noises: Sequence[Tensor],
    *,
    steps: int = 4,
    step_size: float = 1.0,
    mix_step: int = 0,
    max_norm: float | None = None,
    mix_norm: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The two inputs that SmoothMix mixes: the clean side and the adversary of the smoothed model.

        x̃ ← clamp(x̃ + α·g/(‖g‖₂ + 1e-8), 0, 1),  g = ∇_x̃ −log mean_k softmax(f(x̃ + ε_k))_y

    The model runs in evaluation mode and is left in the mode it had; its parameters get no
    gradient.

    Args:
        input: (N, …), values in [0, 1]; target: (N,) class indices.
        noises: m tensors of the shape of `input`, those of the training step.
        steps: T, default 4; step_size: α, default 1.0; the authors' for CIFAR-10, σ = 0.5.
        mix_step: the clean side is the iterate after so many steps: 0 (default), the input itself,
            or 1, the one-step variant.
        max_norm: the adversary stays within this ℓ₂ distance of the input; None does not bound it.
        mix_norm: the same for the clean side; None is α·mix_step. The authors let it warm up.

    Returns:
        (clean side, adversary), both of the shape of `input`, without graph.

    Raises:
        ValueError: values outside [0, 1]; `mix_step` not in [0, steps); no noise.

    Examples:
        >>> model = torch.nn.Linear(4, 3)
        >>> x, noises = torch.rand(2, 4), [0.25 * torch.randn(2, 4) for _ in range(2)]
        >>> clean, adversary = losses.smoothmix_attack(model, x, torch.tensor([0, 2]), noises)
        >>> torch.equal(clean, x), adversary.shape
        (True, torch.Size([2, 4]))
    """
    if bool((input < 0).any()) or bool((input > 1).any()):
        raise ValueError("input: expected values in [0, 1]")
    steps, mix_step = Integer(least=1)("steps", steps), Integer()("mix_step", mix_step)
    step_size = NOT_NEGATIVE("step_size", step_size)
    max_norm = Maybe(NOT_NEGATIVE)("max_norm", max_norm)
    mix_norm = Maybe(NOT_NEGATIVE)("mix_norm", mix_norm)
    if not 0 <= mix_step < steps:
        raise ValueError(f"mix_step: expected 0 <= mix_step < steps={steps}, got {mix_step}")
    if not noises:
        raise ValueError("noises: expected at least one")
    input = input.detach()
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        clean, adversary = input, input
        with torch.enable_grad():
            for step in range(steps):
                if step == mix_step:
                    clean = adversary
                moving = adversary.clone().requires_grad_()
                votes = [torch.softmax(model(moving + noise), 1) for noise in noises]
                log_p = torch.log(torch.stack(votes).mean(0).clamp(min=1e-20))
                loss = -log_p.gather(1, target[:, None]).sum()
                (grad,) = torch.autograd.grad(loss, moving)
                length = torch.linalg.vector_norm(grad.flatten(1), dim=1)
                direction = grad / (length.view(-1, *[1] * (grad.dim() - 1)) + 1e-8)
                adversary = _projected(adversary + step_size * direction, input, max_norm)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    bound = step_size * mix_step if mix_norm is None else mix_norm
    return _projected(clean, input, bound), adversary


def smoothmix_inputs(clean: Tensor, adversary: Tensor) -> tuple[Tensor, Tensor]:
    """(1 − λ)·clean + λ·adversary and λ (N,), drawn from U(0, ½) for each sample.

    Examples:
        >>> mixed, lam = losses.smoothmix_inputs(torch.zeros(2, 4), torch.ones(2, 4))
        >>> torch.equal(mixed, lam[:, None].expand(2, 4)), bool((lam <= 0.5).all())
        (True, True)
    """
    lam = torch.rand(len(clean), dtype=clean.dtype, device=clean.device) / 2
    share = lam.view(-1, *[1] * (clean.dim() - 1))
    return (1 - share) * clean + share * adversary, lam


def _projected(x: Tensor, center: Tensor, radius: float | None) -> Tensor:
    if radius is not None:
        x = center + (x - center).renorm(p=2, dim=0, maxnorm=radius)
    return x.clamp(0, 1)
