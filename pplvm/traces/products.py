r"""Log-densities of exponential families as a product of matrices, where states meet data.

.. math:: \log p(x \mid k) = \langle T(x), \eta_k \rangle - A(\eta_k) + h(x)

Data (N, D) under parameters of K states, (K, 1, D), need no tensor (K, N, D) then. Likewise what a
plate repeats, such as one transition matrix for all data, is computed once, and expanded.
"""

from math import prod
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

# Not the Gaussian: its squares cancel, and little is left of the digits where sds are small.


class _Family(NamedTuple):
    eta: Tensor  # (batch…, event…)
    log_normaliser: Tensor  # (batch…, event…): A
    carrier: Tensor | None  # (batch…, event…) of the value: h
    # Parameters and values that are impossible together, (batch…, event…) each.
    excluded: tuple[Tensor, Tensor] | None = None


def _bernoulli(fn: dist.Bernoulli, _: Tensor) -> _Family:
    return _Family(fn.logits, torch.nn.functional.softplus(fn.logits), None)


def _poisson(fn: dist.Poisson, value: Tensor) -> _Family:
    # At a rate of zero, log 0 times no event is zero.
    log_rate = fn.rate.clamp(min=torch.finfo(fn.rate.dtype).tiny).log()
    return _Family(log_rate, fn.rate, -torch.lgamma(value + 1), (fn.rate == 0, value > 0))


_FAMILIES = {dist.Bernoulli: _bernoulli, dist.Poisson: _poisson}


def log_prob(fn: dist.Distribution, value: Tensor) -> Tensor:
    """Returns the log-density of a value, of its batch shape, as ``fn.log_prob`` does."""
    base, dims = fn, 0
    while type(base) is dist.Independent:
        base, dims = base.base_dist, dims + base.reinterpreted_batch_ndims
    if type(fn) is dist.Categorical:
        return unexpanded(fn).log_prob(value).expand(_batch(fn, value))
    family = _FAMILIES.get(type(base))
    if family is None or dims == 0:
        return fn.log_prob(value)
    base = unexpanded(base)
    cut = len(base.batch_shape) - dims
    states, data = base.batch_shape[:cut], value.shape[: value.ndim - dims]
    if value.shape[value.ndim - dims :] != base.batch_shape[cut:] or states.numel() == 1:
        return fn.log_prob(value)
    eta, log_normaliser, carrier, excluded = family(base, value)
    if not _apart(states, data):  # sums, which take fewer passes over memory than fn's own
        over = tuple(range(-dims, 0))
        terms = (eta * value).sum(over) - log_normaliser.sum(over)
        if excluded is not None:
            both = (excluded[0] & excluded[1]).flatten(-dims).any(-1)
            terms = terms.masked_fill(both, -torch.inf)
        return terms if carrier is None else terms + carrier.sum(over)
    K, N, D = prod(states), prod(data), prod(base.batch_shape[cut:])
    terms = eta.reshape(K, D) @ value.to(eta.dtype).reshape(N, D).T  # (K, N)
    terms = terms - log_normaliser.reshape(K, D).sum(-1, keepdim=True)
    if excluded is not None:
        of_state, of_datum = (x.to(eta.dtype) for x in excluded)
        both = of_state.reshape(K, D) @ of_datum.reshape(N, D).T
        terms = terms.masked_fill(both > 0, -torch.inf)
    if carrier is not None:
        terms = terms + carrier.reshape(N, D).sum(-1)
    return terms.reshape(torch.broadcast_shapes(states, data))


def _batch(fn: dist.Distribution, value: Tensor) -> torch.Size:
    return torch.broadcast_shapes(fn.batch_shape, value.shape[: value.ndim - fn.event_dim])


def unexpanded(fn: dist.Distribution) -> dist.Distribution:
    """Undoes what plates do to a distribution: they repeat its parameters along their dims."""
    given = {name: vars(fn)[name] for name in fn.arg_constraints if name in vars(fn)}
    if "probs" in given and "logits" in given:  # of which one was given, and one was asked for
        del given["logits" if given["probs"] is fn._param else "probs"]
    for name, x in given.items():
        for d in range(x.ndim):
            x = x.narrow(d, 0, 1) if x.shape[d] > 1 and x.stride(d) == 0 else x
        given[name] = x
    return type(fn)(**given, validate_args=False)


def _apart(states: torch.Size, data: torch.Size) -> bool:
    """Whether both have dims, and those of the states are on the left of all those of the data."""
    wide = [[i - len(shape) for i, n in enumerate(shape) if n > 1] for shape in (states, data)]
    return all(wide) and wide[0][-1] < wide[1][0]
