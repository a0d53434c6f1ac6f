r"""Long chains in blocks of steps, side by side: about 3 √T steps one after another instead of T.

A block of L steps is a matrix, the product of its steps',

.. math:: M_b(i, j) = \log \sum_{z_{bL} = i, \dots, z_{bL+L} = j} \exp \sum_t
    \left(A_t(z_{t-1}, z_t) + b_t(z_t)\right),

whose rows are messages that start at one state each. All blocks' are computed at once; messages pass
from block to block; then, again at once, through the steps of each. That is K times the arithmetic, so
it pays for few and small chains, where a step costs what it costs to call torch.

References:
    | Temporal parallelization of Bayesian smoothers (Särkkä & García-Fernández, 2021)
    | https://doi.org/10.1109/TAC.2020.2976316

Shapes: as in :mod:`pplvm.traces.recursions`, one state a step; T here is the number of later steps.
"""

from collections.abc import Callable
from math import ceil, isqrt

import torch
from torch import Tensor

from pplvm.traces.messages import Products, Sums

Kind = type[Products] | type[Sums]

# Seconds that a step costs at least, and those of each number in the product of a block, in a matrix
# product and beside it: measured on a CPU.
_CALLS, _PRODUCT, _NUMBER = 40e-6, 0.4e-9, 25e-9


def pays(later: Tensor, moves: list[Tensor]) -> bool:
    """Whether a chain (T, B, *K) is done sooner in blocks."""
    if later.ndim > 3 or len(later) < 64:
        return False
    T, B, K = later.shape
    saved = (T - 3 * isqrt(T)) * _CALLS
    cost = T * B * K**2 * (K * _PRODUCT + _NUMBER)
    return saved > cost * (1.0 if later.device.type == "cpu" else 0.05)


def forward(
    first: Tensor, later: Tensor, known: Tensor, A: Tensor, kind: Kind, run: Callable
) -> tuple[Tensor, bool]:
    """Returns the messages alpha (T + 1, B, K), and whether no product was near underflow.

    Args:
        first: The message of the first step, (B, K).
        later: The logarithms of the others.
        known: Which of these there are.
        A: The matrices.
        kind: How to move.
        run: What passes messages step by step: (first, later, known, step) -> (alpha, safe).
    """
    T, B, _ = later.shape
    n = ceil(T / ceil(T**0.5))
    later, known, A = (_cut(x, n, B, T, back=False) for x in (later, known, A))
    inner = kind([A[:, : (n - 1) * B] if A.shape[1] > 1 else A] * 2)
    x = _each_state(later[0, : (n - 1) * B])  # ((n - 1) B, K, K)
    for s in range(len(later)):
        seen = known[s, : (n - 1) * B, None, None]
        x = inner.move(x, 1, s, None if seen.all() else seen) + later[s, : (n - 1) * B, None]
    outer, ends = kind([x.unflatten(0, (n - 1, B))]), [first]
    for b in range(n - 1):
        ends.append(outer.move(ends[-1], 0, b, None))
    alpha, safe = run(torch.cat(ends), later, known, kind([A]))
    alpha = alpha[1:].unflatten(1, (n, B)).transpose(0, 1).flatten(0, 1)[:T]
    return torch.cat((first[None], alpha)), safe and inner.safe() and outer.safe()


def backward(
    later: Tensor, known: Tensor, A: Tensor, kind: Kind, run: Callable
) -> tuple[Tensor, bool]:
    """Returns the messages beta (T + 1, B, K): see :func:`forward`, but with steps counted back."""
    T, B, K = later.shape
    n = ceil(T / ceil(T**0.5))
    later, known, A = (_cut(x, n, B, T, back=True) for x in (later, known, A))
    inner = kind([A[:, B:] if A.shape[1] > 1 else A] * 2)
    x = _each_state(later[0, B:])
    for s in reversed(range(len(later))):
        seen = known[s, B:, None, None]
        x = inner.move(later[s, B:, None] + x, 1, s, None if seen.all() else seen, back=True)
    outer, ends = kind([x.unflatten(0, (n - 1, B))]), [later.new_zeros(B, K)]
    for b in reversed(range(n - 1)):
        ends.append(outer.move(ends[-1], 0, b, None))
    beta, safe = run(later, known, kind([A]), torch.cat(ends[::-1]))
    beta = beta[:-1].unflatten(1, (n, B)).transpose(0, 1).flatten(0, 1)[-T:]
    return torch.cat((beta, ends[0][None])), safe and inner.safe() and outer.safe()


def _cut(x: Tensor, n: int, B: int, T: int, back: bool) -> Tensor:
    """Lays n blocks of steps (T or 1, B or 1, …) side by side, (L or 1, n B or 1, …).

    What is missing to whole blocks is put where no message comes from: behind, or before.
    """
    if len(x) == 1 and T > 1:  # the same at each step
        return x if x.shape[1] == 1 else x.repeat(1, n, *[1] * (x.ndim - 2))
    L = ceil(T / n)
    lost = x.new_zeros(n * L - T, *x.shape[1:])
    x = torch.cat((lost, x) if back else (x, lost)).unflatten(0, (n, L)).transpose(0, 1)
    return x.expand(L, n, B, *x.shape[3:]).flatten(1, 2)


def _each_state(like: Tensor) -> Tensor:
    """Returns for each row of (B, K) a message from each state, (B, K, K)."""
    eye = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device).log()
    return eye.expand(len(like), -1, -1)
