"""Distributions without what is wrapped around them: names, masks, divergences, soft values."""

from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor
from torch.distributions import kl_divergence

_WRAPPERS = ("Independent", "ExpandedDistribution", "MaskedDistribution")


def elementary(fn: Any) -> Any:
    """Returns the distribution inside the wrappers around it."""
    while type(fn).__name__ in _WRAPPERS:
        fn = fn.base_dist
    return fn


def mask_of(fn: Any) -> Tensor | bool | None:
    """Returns the mask among the wrappers of a distribution, for each of its numbers, or None."""
    while type(fn).__name__ in _WRAPPERS:
        if type(fn).__name__ == "MaskedDistribution":
            mask = fn._mask
            return mask[(..., *[None] * fn.event_dim)] if isinstance(mask, Tensor) else mask
        fn = fn.base_dist
    return None


def distribution_name(fn: Any) -> str:
    """Returns the name of a distribution, without the wrappers around it."""
    return type(elementary(fn)).__name__


def closed_kl(q: Any, p: Any) -> Tensor | None:
    """Returns the divergence of two distributions if Pyro has it in closed form, else None."""
    if distribution_name(q) == Delta.__name__:
        return None  # Pyro's divergence of a Delta forgets its log_density
    if q.batch_shape != p.batch_shape:  # as where particles make a difference to one of the two
        batch = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
        q, p = q.expand(batch), p.expand(batch)
    try:
        return _kl_bernoulli(q, p) if distribution_name(q) == "Bernoulli" else kl_divergence(q, p)
    except NotImplementedError:
        return None


def _kl_bernoulli(q: Any, p: Any) -> Tensor:
    """Returns the divergence from logits alone: torch's is infinite where a probability rounds to 1."""
    kinds = type(q).__name__, type(p).__name__
    if kinds == ("Bernoulli", "Bernoulli"):
        softplus = torch.nn.functional.softplus
        return q.probs * (q.logits - p.logits) + softplus(p.logits) - softplus(q.logits)
    if kinds == ("Independent", "Independent"):
        dims = q.reinterpreted_batch_ndims
        if dims == p.reinterpreted_batch_ndims:
            return sum_rightmost(_kl_bernoulli(q.base_dist, p.base_dist), dims)
    return kl_divergence(q, p)


def soft_log_prob(fn: Any, value: Tensor) -> Tensor:
    """Returns the log-probability of Bernoulli or one-hot values, linear in them.

    So it has a value, and a gradient, at numbers between the states.
    """
    kind = type(fn).__name__
    if kind == "Independent":
        return sum_rightmost(soft_log_prob(fn.base_dist, value), fn.reinterpreted_batch_ndims)
    if kind == "MaskedDistribution":
        return scale_and_mask(soft_log_prob(fn.base_dist, value), 1.0, fn._mask)
    if kind == "ExpandedDistribution":
        return soft_log_prob(fn.base_dist, value)
    if kind == "Bernoulli":
        return value * fn.logits - torch.nn.functional.softplus(fn.logits)
    return (value * fn.logits).sum(-1)
