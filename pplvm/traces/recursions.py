r"""Chains of discrete states summed out along their time axis: the forward–backward algorithm.

.. math::
    \alpha_0 = b_0, \qquad
    \alpha_t(j) = b_t(j) + \log \sum_i \exp\left(\alpha_{t-1}(i) + A_t(i, j)\right), \qquad
    \log Z = \log \sum_j \exp \alpha_{T-1}(j)

A state may be M states side by side, i = (i_1, …, i_M), each of which moves by a matrix of its own.
The sum over i is then M products with one matrix each, O(M K^(M+1)) instead of O(K^(2M)).

Products of exponentials are shifted by the largest summand of each row. Where even so one comes near
underflow, which is looked for, all is done again by log-sum-exp: slower, and exact. The gradient is
the backward recursion, of the same cost, without a graph of steps. A few long chains are cut into
blocks (:mod:`pplvm.traces.blockwise`).

References:
    | A tutorial on hidden Markov models (Rabiner, 1989) https://doi.org/10.1109/5.18626
    | Factorial hidden Markov models (Ghahramani & Jordan, 1997), appendix B
    | https://doi.org/10.1023/A:1007425814087

Shapes: B independent chains, T steps, M states side by side, K the number of each: \*K is
K_1, …, K_M. All logarithms are natural; -inf is impossible.
"""

from collections.abc import Sequence
from functools import partial
from math import log, prod

import torch
from torch import Tensor

from pplvm.traces import blockwise
from pplvm.traces.messages import Products, Sums, at, last, spread, unlast


def log_normaliser(
    first: Tensor, moves: Sequence[Tensor], later: Tensor, known: Tensor | None = None
) -> Tensor:
    """Sums a chain over all its paths: log Z (B,), differentiable once in all arguments but the last.

    Args:
        first: The logarithms b_0 of the first step, (B, *K).
        moves: A matrix A for each of the M states, (T - 1 or 1, B or 1, K, K), from row to column.
        later: The logarithms b_t of the other steps, (T - 1, B, *K).
        known: Which of these steps there are, (T - 1, B); at others the states are uniform.
    """
    known = _all_known(later) if known is None else known
    return _forward(first, list(moves), later, known)[0]


def marginals(
    first: Tensor, moves: Sequence[Tensor], later: Tensor, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the log-probabilities of each step's states, and log Z: (T, B, *K), (B,)."""
    known = _all_known(later) if known is None else known
    log_z, alpha = _forward(first, list(moves), later, known)
    both = alpha + _backward(list(moves), later, known)
    return both.flatten(2).log_softmax(-1).reshape(both.shape), log_z


def log_maximum(
    first: Tensor, moves: Sequence[Tensor], later: Tensor, known: Tensor | None = None
) -> Tensor:
    """Returns the log-density of the most probable path, (B,)."""
    return _best_so_far(first, moves, later, known)[-1].flatten(1).amax(1)


def most_probable(
    first: Tensor, moves: Sequence[Tensor], later: Tensor, known: Tensor | None = None
) -> Tensor:
    """Returns the most probable path (T, B, M), by the algorithm of Viterbi."""
    known = _all_known(later) if known is None else known
    best = _best_so_far(first, moves, later, known)
    return _trace_back(best, moves, known, lambda logits: logits.argmax(-1))


def _best_so_far(
    first: Tensor, moves: Sequence[Tensor], later: Tensor, known: Tensor | None
) -> Tensor:
    known = _all_known(later) if known is None else known
    best = [first]
    for t in range(len(later)):
        moved = best[-1]
        for m, A in enumerate(moves):
            moved = (last(moved, m)[..., None] + at(A, t)[:, None]).amax(-2)
            moved = unlast(moved, m, first.shape)
        still = best[-1].flatten(1).amax(1) - log(prod(first.shape[1:]))
        moved = torch.where(spread(known[t], first.ndim), moved, spread(still, first.ndim))
        best.append(moved + later[t])
    return torch.stack(best)  # (T, B, *K)


def sample(
    first: Tensor,
    moves: Sequence[Tensor],
    later: Tensor,
    known: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws a path (T, B, M) from the posterior: forward filtering, backward sampling."""
    known = _all_known(later) if known is None else known
    _, alpha = _forward(first, list(moves), later, known)

    def draw(logits: Tensor) -> Tensor:  # the largest of logits with Gumbel noise is a draw
        noise = torch.rand(
            logits.shape, dtype=logits.dtype, device=logits.device, generator=generator
        )
        return (logits - noise.log().neg().log()).argmax(-1)

    return _trace_back(alpha, moves, known, draw)


def _trace_back(alpha: Tensor, moves: Sequence[Tensor], known: Tensor, pick) -> Tensor:
    """Picks the last state by ``alpha`` (T, B, *K), and every other one given the one after it."""
    shape = alpha.shape[2:]
    paths = [pick(alpha[-1].flatten(1))]
    rows = torch.arange(alpha.shape[1], device=alpha.device)
    for t in range(len(alpha) - 2, -1, -1):
        logits, to = alpha[t], torch.unravel_index(paths[-1], shape)
        for m, A in enumerate(moves):
            A = at(A, t).expand(len(rows), -1, -1)
            column = A[rows, :, to[m]]  # (B, K) log-densities of the move that was made
            column = torch.where(known[t][:, None], column, 0.0)
            logits = logits + column.view(-1, *(K if i == m else 1 for i, K in enumerate(shape)))
        paths.append(pick(logits.flatten(1)))
    return torch.stack(torch.unravel_index(torch.stack(paths[::-1]), shape), -1)


# ---- the recursions, each of them one operation to torch ----


@torch.library.custom_op("pplvm::forward", mutates_args=())
def _forward(
    first: Tensor, moves: list[Tensor], later: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns log Z (B,) and the messages alpha (T, B, *K), up to a constant for each step."""
    (first, later), tops = zip(*map(_lowered, (first[None], later)), strict=True)
    parts, cut = (first[0], later, known), blockwise.pays(later, moves)
    for kind in (Products, Sums):
        how = partial(blockwise.forward, A=moves[0], kind=kind, run=_filter)
        alpha, safe = how(*parts) if cut else _filter(*parts, kind(moves))
        if safe:
            break
    return alpha[-1].flatten(1).logsumexp(1) + torch.cat(tops).sum(0), alpha


@torch.library.custom_op("pplvm::backward", mutates_args=())
def _backward(moves: list[Tensor], later: Tensor, known: Tensor) -> Tensor:
    """Returns the messages beta (T, B, *K): the log-density of all later steps."""
    cut = blockwise.pays(later, moves)
    for kind in (Products, Sums):
        how = partial(blockwise.backward, A=moves[0], kind=kind, run=_smooth)
        beta, safe = how(later, known) if cut else _smooth(later, known, kind(moves))
        if safe:
            break
    return beta


@torch.library.custom_op("pplvm::gradient", mutates_args=())
def _gradient(
    grad: Tensor, log_z: Tensor, alpha: Tensor, moves: list[Tensor], later: Tensor, known: Tensor
) -> list[Tensor]:
    """Returns the gradients of ``grad`` (B,) · log Z by b_0, by b_1, b_2, …, and by each matrix."""
    later, _ = _lowered(later)
    beta = _backward(moves, later, known)
    # Normalised step by step: in float32 the messages of a long chain add up to no exact log Z.
    both = (alpha + beta).flatten(2)  # (T, B, K)
    possible = ~log_z.isneginf()
    weight = torch.where(possible, grad, 0.0)
    states = both.softmax(-1).nan_to_num() * weight[:, None]
    totals = both.logsumexp(-1)[:-1].masked_fill(~possible, torch.inf)
    ahead = later + beta[1:]
    for kind in (Products, Sums):
        step = kind(_rows(moves, known))
        counts, safe = _counts(weight, totals, alpha[:-1], ahead, moves, known, step)
        if safe and all(count.isfinite().all() for count in counts):
            break
    states = states.reshape(alpha.shape)
    return [states[0].clone(), states[1:].clone(), *counts]


def _lowered(x: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the largest logarithm of each step (T, B) out of all of its (T, B, *K)."""
    top = x.flatten(2).amax(2).nan_to_num(neginf=0.0)
    return x - top.reshape(*top.shape, *[1] * (x.ndim - 2)), top


def _rows(moves: list[Tensor], known: Tensor) -> list[Tensor]:
    """Lays the matrices of all steps and chains in one row, (1, 1 or T B, K, K)."""
    T, B = known.shape
    return [
        A if len(A[0]) * len(A) == 1 else A.expand(T, B, -1, -1).flatten(0, 1)[None] for A in moves
    ]


def _filter(
    first: Tensor, later: Tensor, known: Tensor, step: "Products | Sums"
) -> tuple[Tensor, bool]:
    alpha = first.new_empty(len(later) + 1, *first.shape)
    alpha[0] = first
    for t, seen in enumerate(_where_any(known)):
        moved = alpha[t]
        for m in range(len(step.moves)):
            moved = step.move(moved, m, t, seen)
        torch.add(moved, later[t], out=alpha[t + 1])
    return alpha, step.safe()


def _smooth(
    later: Tensor, known: Tensor, step: "Products | Sums", end: Tensor | None = None
) -> tuple[Tensor, bool]:
    beta = later.new_zeros(len(later) + 1, *later.shape[1:])
    if end is not None:
        beta[-1] = end
    for t, seen in reversed(list(enumerate(_where_any(known)))):
        moved = later[t] + beta[t + 1]
        for m in reversed(range(len(step.moves))):
            moved = step.move(moved, m, t, seen, back=True)
        beta[t] = moved
    return beta, step.safe()


def _where_any(known: Tensor) -> list[Tensor | None]:
    """Returns each row of ``known`` (T - 1, B) that is not all true, as (B, 1, 1)."""
    whole = known.all(1).tolist()
    return [None if all_ else row[:, None, None] for all_, row in zip(whole, known, strict=True)]


def _counts(
    grad: Tensor,
    totals: Tensor,  # (T - 1, B): what each step's messages add up to
    alpha: Tensor,  # (T - 1, B, *K)
    ahead: Tensor,  # (T - 1, B, *K)
    moves: list[Tensor],
    known: Tensor,
    step: Products | Sums,
) -> tuple[list[Tensor], bool]:
    """Returns the expected number of moves from each state to each, all steps at once."""
    T, B = known.shape
    if T == 0:
        return [torch.zeros_like(A) for A in moves], True
    rights = [ahead.flatten(0, 1)]
    for m in reversed(range(1, len(moves))):
        rights.insert(0, step.move(rights[0], m, 0, None, back=True))
    left, counts = alpha.flatten(0, 1), []
    shift = torch.where(known, -totals, -torch.inf).flatten()  # (T B)
    weight = grad.expand(T, B).reshape(-1, 1, 1)
    for m, right in enumerate(rights):
        pairs = step.pairs(last(left, m), last(right, m), shift, weight, m)
        if len(pairs) > 1 or T * B == 1:
            pairs = pairs.unflatten(0, (T, B)).sum_to_size(moves[m].shape)
        else:
            pairs = pairs[None]
        counts.append(pairs.contiguous())
        left = step.move(left, m, 0, None) if m + 1 < len(moves) else left
    return counts, step.safe()


# ---- for autograd, vmap and compilers ----


def _save(ctx, inputs: tuple, output: tuple) -> None:
    _, moves, later, known = inputs
    ctx.save_for_backward(*output, later, known, *moves)


def _differentiate(ctx, grad: Tensor, _: Tensor) -> tuple:
    log_z, alpha, later, known, *moves = ctx.saved_tensors
    by_first, by_later, *by_moves = _gradient(grad, log_z, alpha, moves, later, known)
    return by_first, by_moves, by_later, None


torch.library.register_autograd(_forward, _differentiate, setup_context=_save)


@_forward.register_fake
def _(first: Tensor, moves: list[Tensor], later: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    return first.new_empty(len(first)), first.new_empty(len(later) + 1, *first.shape)


@_backward.register_fake
def _(moves: list[Tensor], later: Tensor, known: Tensor) -> Tensor:
    return later.new_empty(len(later) + 1, *later.shape[1:])


@_gradient.register_fake
def _(grad, log_z, alpha, moves, later, known) -> list[Tensor]:
    likes = (alpha[0], later, *moves)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in likes]


@_forward.register_vmap
def _(info, in_dims, first, moves, later, known):
    C, B = info.batch_size, first.shape[0 if in_dims[0] != 0 else 1]
    first, later, known = (
        _fold(C, in_dims[0], first, 0),
        *(_fold(C, d, x, 1) for d, x in zip(in_dims[2:], (later, known), strict=True)),
    )
    moves = _fold_moves(C, B, in_dims[1], moves)
    log_z, alpha = _forward(first, moves, later, known)
    return (log_z.unflatten(0, (C, B)), alpha.unflatten(1, (C, B))), (0, 1)


@_gradient.register_vmap
def _(info, in_dims, grad, log_z, alpha, moves, later, known):
    C = info.batch_size
    B = grad.shape[0 if in_dims[0] != 0 else 1]
    given = [
        _fold(C, d, x, at)
        for d, x, at in zip(
            (*in_dims[:3], *in_dims[4:]), (grad, log_z, alpha, later, known), (0, 0, 1, 1, 1),
            strict=True,
        )
    ]  # fmt: skip
    widths = [
        A.movedim(d, 0)[0].shape[1] if d is not None else A.shape[1]
        for d, A in zip(in_dims[3], moves, strict=True)
    ]
    folded = [
        A.expand(-1, C * B, -1, -1).contiguous() for A in _fold_moves(C, B, in_dims[3], moves)
    ]
    by_first, by_later, *by_moves = _gradient(*given[:3], folded, *given[3:])
    by_moves = [g.unflatten(1, (C, B)) for g in by_moves]
    by_moves = [
        g.sum(2, keepdim=True) if width == 1 else g
        for g, width in zip(by_moves, widths, strict=True)
    ]
    by_first, by_later = by_first.unflatten(0, (C, B)), by_later.unflatten(1, (C, B))
    return [by_first, by_later, *by_moves], [0, 1, *[1] * len(by_moves)]


def _fold(C: int, dim: int | None, x: Tensor, at: int) -> Tensor:
    """Lays the rows of a vmap side by side with the chains, which are dim ``at``."""
    x = x.expand(C, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.movedim(0, at).flatten(at, at + 1)


def _fold_moves(C: int, B: int, dims: Sequence[int | None], moves: list[Tensor]) -> list[Tensor]:
    folded = []
    for dim, A in zip(dims, moves, strict=True):
        if dim is None and A.shape[1] == 1:
            folded.append(A)
            continue
        A = A.expand(C, *A.shape) if dim is None else A.movedim(dim, 0)  # (C, T - 1 or 1, …)
        folded.append(A.expand(-1, -1, B, -1, -1).movedim(0, 1).flatten(1, 2))
    return folded


def _all_known(later: Tensor) -> Tensor:
    return later.new_ones(later.shape[:2], dtype=torch.bool)
