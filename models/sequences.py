"""What the stories of sequences have in common: lengths, and what lies beyond them.

Shapes: N data, T steps.
"""

import torch
from torch import Tensor


def check_lengths(x: Tensor, lengths: Tensor) -> None:
    """Raises a ``ValueError`` unless there is a length from 0 to T for each of x, (N, T, …)."""
    N, T = x.shape[:2]
    if lengths.shape != (N,):
        raise ValueError(f"'lengths' has shape {tuple(lengths.shape)}, but x has {N} sequences.")
    lengths = lengths.double()
    wrong = (lengths < 0) | (lengths > T) | (lengths != lengths.round())
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"'lengths' is {lengths[row].item():g} in row {row}: give whole numbers from 0 to {T}, the "
            "steps of x."
        )


def whole(dream: list[Tensor], x: Tensor, lengths: Tensor) -> Tensor:
    """Returns the T steps of a dream in the shape of x, 0 beyond the lengths."""
    counted = torch.arange(len(dream), device=x.device) < lengths[:, None]  # (N, T)
    counted = counted.reshape(counted.shape + (1,) * (x.ndim - 2))  # (N, T, 1) or (N, T)
    return torch.stack(dream, 1 - x.ndim) * counted
