r"""Sums over discrete variables, one at a time: variable elimination in log space, with plates.

.. math:: \log \sum_{z_1} \cdots \sum_{z_M} \prod_f \exp f(z_f)

A step sums one variable out of the factors that mention it, those of the deepest plates first;
once all variables of a plate are summed out, its rows are multiplied. Backwards over the steps,
each variable is drawn given those that were summed out after it.

A sum of logarithms before one log-sum-exp cannot underflow, unlike the product of
exponentials in Pyro's own contractions, whose factors may peak at different states.

References:
    | Tensor Variable Elimination for Plated Factor Graphs (Obermeyer et al., 2019)
    | https://proceedings.mlr.press/v97/obermeyer19a.html
"""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers that a table of joint states may have: 2 GiB in float64.
MOST_NUMBERS = 2**28


class Factor(NamedTuple):
    """A log-density, whose dims have names: one symbol for each plate or discrete variable."""

    site: str
    term: Tensor
    dims: str  # "a" or "abz": the name of each dim of ``term``


class Step(NamedTuple):
    """One variable and the factors that it was summed out of."""

    dim: str
    factors: list[Factor]


class PlateError(ValueError):
    """Factors that no order of sums and products over the plates can do."""


def check_size(size: int, names: list[str]) -> None:
    """Raises a ``ValueError`` for a table of joint states that is too large, before it is made."""
    if size > MOST_NUMBERS:
        shown = ", ".join(f"'{name}'" for name in names[:3]) + (", …" if len(names) > 3 else "")
        raise ValueError(
            f"summing out the discrete latents {shown} together takes a table of {size:.2g} numbers "
            f"({8 * size / 2**30:.2g} GiB), of which {MOST_NUMBERS:.2g} are allowed: sample them in "
            "the guide, or let fewer of them depend on each other or be observed together."
        )


def eliminate(
    factors: list[Factor], homes: dict[str, frozenset[str]], best: bool = False, kept: str = ""
) -> tuple[Tensor, list[Step]]:
    """Sums every variable out, then multiplies over all plates.

    Args:
        factors: The factors; each plate and variable has one size throughout.
        homes: The plates of each variable, all other dims being plates.
        best: Whether the maximum takes the place of the sum.
        kept: Plates that are not multiplied over.

    Returns:
        The total, over the plates that are kept, and the steps, for :func:`backtrack`.
    """
    sizes = {d: n for f in factors for d, n in zip(f.dims, f.term.shape, strict=True)}
    touched = {dim: [f for f in factors if dim in f.dims] for dim in homes}
    free = [f for f in factors if not homes.keys() & set(f.dims)]
    check_homes(touched, homes)

    def cost(dim: str) -> tuple[int, int, str]:
        return -len(homes[dim]), prod(sizes[d] for d in union(touched[dim])), dim

    costs, steps = {dim: cost(dim) for dim in touched}, []
    while costs:
        dim = min(costs, key=costs.__getitem__)
        check_size(costs[dim][1], [f.site for f in touched[dim]])
        del costs[dim]
        ready = [multiply(f, homes[dim], homes) for f in touched[dim]]
        dims = union(ready).replace(dim, "") + dim
        term = _combine(ready, dims)
        rest = Factor(ready[0].site, term.amax(-1) if best else _logsumexp(term), dims[:-1])
        others = {d for f in touched.pop(dim) for d in f.dims} & costs.keys()
        for other in others:
            touched[other] = [f for f in touched[other] if dim not in f.dims] + [rest]
            costs[other] = cost(other)
        if not others:
            free.append(rest)
        steps.append(Step(dim, ready))
    return _combine([multiply(f, frozenset(kept), homes) for f in free], kept), steps


def check_homes(touched: dict[str, list[Factor]], homes: dict[str, frozenset[str]]) -> None:
    """Raises an error unless the factors of each variable are in all of its plates."""
    for dim, factors in touched.items():
        for factor in factors:
            if not homes[dim] <= set(factor.dims):
                raise PlateError(
                    f"site '{factor.site}' depends on a discrete latent whose plate it is not in: "
                    "sample it in that plate too, or the latent outside it."
                )


def backtrack(steps: list[Step], best: bool = False) -> dict[str, Factor]:
    """Draws the variables given all else, or with ``best`` returns their most probable states.

    Each comes as the index of its state, over the plates that it is in.
    """
    drawn: dict[str, Factor] = {}
    for dim, factors in reversed(steps):
        for other in sorted(set(union(factors)) & drawn.keys()):
            factors = [pick(f, other, drawn[other]) for f in factors]
        dims = union(factors).replace(dim, "")
        logits = _combine(factors, dims + dim)
        if not best:  # the largest of logits with Gumbel noise is a draw
            logits = logits - torch.rand_like(logits).log().neg().log()
        drawn[dim] = Factor(factors[0].site, logits.argmax(-1), dims)
    return drawn


def align(factor: Factor, dims: str) -> Tensor:
    """Returns the term of a factor with its dims in this order, and size 1 where it has none."""
    term = factor.term.permute([factor.dims.index(d) for d in dims if d in factor.dims])
    return term[tuple(slice(None) if d in factor.dims else None for d in dims)]


def multiply(factor: Factor, kept: frozenset[str], homes: dict[str, frozenset[str]]) -> Factor:
    """Sums a log-density over the plates that are not kept."""
    plates = "".join(d for d in factor.dims if d not in homes and d not in kept)
    if not plates:
        return factor
    if any(homes[d] & set(plates) for d in homes.keys() & set(factor.dims)):
        raise PlateError(
            f"site '{factor.site}' depends on discrete latents of two plates that cross, so that no "
            "order of sums is exact: loop over one of the plates, or observe the latents of one."
        )
    term = factor.term.sum([factor.dims.index(d) for d in plates])
    return Factor(factor.site, term, "".join(d for d in factor.dims if d not in plates))


def pick(factor: Factor, dim: str, index: Factor) -> Factor:
    """Takes a factor at the drawn state of one of its variables."""
    if dim not in factor.dims:
        return factor
    dims = union([factor, index]).replace(dim, "")
    term, at = align(factor, dims + dim), align(index, dims)[..., None]
    shape = torch.broadcast_shapes(term.shape[:-1], at.shape[:-1])
    term = term.expand(*shape, term.shape[-1]).gather(-1, at.expand(*shape, 1)).squeeze(-1)
    return Factor(factor.site, term, dims)


def union(factors: list[Factor]) -> str:
    """Returns the dims of all factors, each once, in order."""
    return "".join(sorted({d for f in factors for d in f.dims}))


def _combine(factors: list[Factor], dims: str) -> Tensor:
    total, *rest = (align(f, dims) for f in factors)
    for term in rest:
        total = total + term
    return total


def _logsumexp(term: Tensor) -> Tensor:
    """Sums over the last dim; where nothing is possible, the gradient is zero and not NaN."""
    impossible = (term == -torch.inf).all(-1)
    total = term.masked_fill(impossible[..., None], 0.0).logsumexp(-1)
    return total.masked_fill(impossible, -torch.inf)
