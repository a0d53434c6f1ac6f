r"""One step of a message along a chain, by products of exponentials or by sums of logarithms.

Shapes: B independent chains, K states, \*K those of the M states side by side.
"""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

# Products that are smaller may have lost summands to underflow, which is exact zero or few digits.
_SAFE = {torch.float64: 1e-250, torch.float32: 1e-25}


class Products:
    """Moves logarithms by products of their exponentials, and remembers the smallest."""

    def __init__(self, moves: Sequence[Tensor]) -> None:
        self.moves = moves
        # A state that nothing leads to, or that leads nowhere, is no reason to shift by infinity.
        self.shifts = [_finite(A.amax((-2, -1), keepdim=True)) for A in moves]
        self.factors = [(A - s).exp() for A, s in zip(moves, self.shifts, strict=True)]
        self.least: list[Tensor] = []

    def move(self, x: Tensor, m: int, t: int, known: Tensor | None, back: bool = False) -> Tensor:
        """Moves state m of x (B, *K) from one step to the next, or back, where that is known."""
        factor, shift = at(self.factors[m], t), at(self.shifts[m], t)
        rows = last(x, m)  # (B, rest, K)
        top = _finite(rows.amax(-1, keepdim=True))
        rows = (rows - top).exp_()
        product = _matmul(rows, factor.mT if back else factor)
        if product.numel():
            self.least.append(product.amin())
        moved = product.log_().add_(shift)
        if known is not None:
            moved = torch.where(known, moved, rows.mean(-1, keepdim=True).log_())
        return unlast(moved.add_(top), m, x.shape)

    def pairs(self, left: Tensor, right: Tensor, shift: Tensor, weight: Tensor, m: int) -> Tensor:
        """Returns exp(left_i + A_ij + right_j + shift) · weight, summed: (T B or 1, K, K)."""
        tops = [_finite(x.amax(-1, keepdim=True)) for x in (left, right)]
        factor, own = self.factors[m][0], self.shifts[m][0]
        weight = weight * (tops[0] + tops[1] + shift[:, None, None] + own).exp()  # (T B, rest, 1)
        left, right = (left - tops[0]).exp() * weight, (right - tops[1]).exp()
        if len(factor) == 1:
            left, right = left.flatten(0, 1)[None], right.flatten(0, 1)[None]
        return factor * (left.mT @ right)

    def safe(self) -> bool:
        """Whether no product was near underflow."""
        return not self.least or bool(torch.stack(self.least).amin() > _SAFE[self.least[0].dtype])


class Sums:
    """Moves logarithms by log-sum-exp."""

    def __init__(self, moves: Sequence[Tensor]) -> None:
        self.moves = moves

    def move(self, x: Tensor, m: int, t: int, known: Tensor | None, back: bool = False) -> Tensor:
        """Moves state m of x (B, *K) from one step to the next, or back, where that is known."""
        A, rows = at(self.moves[m], t)[:, None], last(x, m)  # (B or 1, 1, K, K), (B, rest, K)
        moved = (rows[..., None, :] + (A if back else A.mT)).logsumexp(-1)
        if known is not None:
            still = rows.logsumexp(-1, keepdim=True) - log(rows.shape[-1])
            moved = torch.where(known, moved, still)
        return unlast(moved, m, x.shape)

    def pairs(self, left: Tensor, right: Tensor, shift: Tensor, weight: Tensor, m: int) -> Tensor:
        """Returns exp(left_i + A_ij + right_j + shift) · weight, summed: (T B or 1, K, K)."""
        A, total = self.moves[m][0], 0.0
        for r in range(left.shape[1]):
            terms = left[:, r, :, None] + right[:, r, None, :] + A + shift[:, None, None]
            total = total + terms.exp() * weight
        return total.sum(0, keepdim=True) if len(A) == 1 else total

    def safe(self) -> bool:
        """Whether no product was near underflow: there is none."""
        return True


# ---- shapes ----


def _finite(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).min)


def spread(row: Tensor, ndim: int) -> Tensor:
    """Gives a row (B,) as many dims as a message has, (B, 1, …)."""
    return row.view(-1, *[1] * (ndim - 1))


def at(A: Tensor, t: int) -> Tensor:
    """Returns the matrices of a step, of (T - 1 or 1, …)."""
    return A[t if len(A) > 1 else 0]


def last(x: Tensor, m: int) -> Tensor:
    """Puts state m last: (B, *K) becomes (B, rest, K)."""
    return x[:, None] if x.ndim == 2 else x.movedim(m + 1, -1).flatten(1, -2)


def unlast(x: Tensor, m: int, shape: torch.Size) -> Tensor:
    """Undoes :func:`last`."""
    if len(shape) == 2:
        return x[:, 0]
    others = [K for i, K in enumerate(shape[1:]) if i != m]
    return x.unflatten(1, others).movedim(-1, m + 1)


def _matmul(rows: Tensor, factor: Tensor) -> Tensor:  # (B, rest, K), (B or 1, K, K)
    if len(factor) != 1:
        return rows @ factor
    return (rows.flatten(0, 1) @ factor[0]).unflatten(0, rows.shape[:2])
