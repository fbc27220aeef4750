"""The fixed perturbation of the logits: the tables of one small algebra."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Perturbation:
    """Class-level perturbation of logits u of shape (N, C):

        z[i, j] = (scale[j]·u[i, j] + offset[j] − margin[y_i]·1[j = y_i] + rows[r_i, j])
                  / temperature

    Every table is optional; none at all leaves the logits as they are. Tables may require grad
    (learnable temperature, learnable offsets): they then receive theirs.

    Args:
        scale: (C,), multiplies the logits of class j (CDT, VS loss).
        offset: (C,), added to the logits of class j (logit adjustment, balanced softmax).
        margin: (C,), taken from the logit of the target class alone (LDAM, CosFace). Needs class
            indices as the target.
        rows: (R, C), one row of additive logits per sample (ISDA, any fixed δ_y).
        row_index: which row a sample takes, an integer tensor of the target's shape, values in
            [0, R). Left out, a sample takes the row of its target class, and R must be C.
        temperature: number or 0-dim tensor, > 0; a scale s (LDAM's 30, CosFace's 64) is the
            temperature 1/s.

    Tables are kept in float32 (float64 beside float64 logits) whatever the dtype of the logits;
    shapes and dtypes are checked when the perturbation meets its logits.
    """

    scale: Tensor | None = None
    offset: Tensor | None = None
    margin: Tensor | None = None
    rows: Tensor | None = None
    row_index: Tensor | None = None
    temperature: float | Tensor = 1.0
