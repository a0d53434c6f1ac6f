r"""Expected sufficient statistics: all that an M step has to know of the data.

Where an observation's distribution depends on a state alone, and its log-density is linear in
statistics T(x), the expected joint log-density depends on the data only by the averages

.. math:: \bar T_k = \frac{\sum_n w_{nk} T(x_n)}{\sum_n w_{nk}}, \qquad
    \sum_n w_{nk} \log p(x_n \mid k) = \sum_n w_{nk} \,\big(\text{the density that has } \bar T_k\big),

w being posterior probabilities. So each datum's density may be replaced by that average, which costs
K × D numbers and not N × K × D.

References:
    | Maximum likelihood from incomplete data via the EM algorithm (Dempster, Laird & Rubin, 1977)
    | https://doi.org/10.1111/j.2517-6161.1977.tb01600.x

Shapes: as in a run, states in dims on the left of all plates; E event dims of an observation.
"""

from math import log, pi
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch._C import _functorch as functorch

from pplvm.traces.discrete import Graph
from pplvm.traces.elimination import Factor, align
from pplvm.traces.factors import time_of
from pplvm.traces.products import unexpanded
from pplvm.traces.series import Term


class Statistics(NamedTuple):
    """Averages over what each state is responsible for, as far as it is seen."""

    mean: Tensor  # (states…, 1…, event…)
    square: Tensor  # likewise, about the mean
    share: Tensor  # (states…, 1…): of the weights, those of what is seen

    def log_prob(self, fn: dist.Distribution) -> Tensor | None:
        """Returns the average log-density of each state, but for a constant; None if it has none."""
        base, dims = fn, 0
        while type(base) is dist.Independent:
            base, dims = base.base_dist, dims + base.reinterpreted_batch_ndims
        if type(base) not in _AVERAGES:
            return None
        base = unexpanded(base)
        given = [x for x in vars(base).values() if isinstance(x, Tensor)]
        if any(functorch.is_batchedtensor(x) for x in given):  # another at each step
            return None
        terms = _AVERAGES[type(base)](base, self)
        if terms.shape[: terms.ndim - dims] != self.share.shape:  # another for each datum
            return None
        return (terms.sum(tuple(range(-dims, 0))) if dims else terms) * self.share


def _normal(fn: dist.Normal, x: Statistics) -> Tensor:
    squares = (x.square + (x.mean - fn.loc).square()) / fn.scale.square()
    return -squares / 2 - fn.scale.log() - log(2 * pi) / 2


def _bernoulli(fn: dist.Bernoulli, x: Statistics) -> Tensor:
    return x.mean * fn.logits - torch.nn.functional.softplus(fn.logits)


def _poisson(fn: dist.Poisson, x: Statistics) -> Tensor:
    return x.mean * fn.rate.clamp(min=torch.finfo(fn.rate.dtype).tiny).log() - fn.rate


_AVERAGES = {dist.Normal: _normal, dist.Bernoulli: _bernoulli, dist.Poisson: _poisson}


class Averaged(Messenger):
    """Lets observations have the average log-density of their state."""

    def __init__(self, statistics: dict[str, Statistics]) -> None:
        super().__init__()
        self.statistics = statistics

    def _pyro_post_sample(self, msg: dict) -> None:
        if msg["is_observed"] and msg["name"] in self.statistics:
            msg["infer"]["_statistics"] = self.statistics[msg["name"]]


def statistics_of(graph: Graph, weights: list[Tensor]) -> dict[str, Statistics]:
    """Returns the statistics of each observed site that has them, given the weights of a graph."""
    shared = dict(zip((f.site for f in graph.factors), weights, strict=False))
    rest = iter(weights[len(graph.factors) :])
    responsible: list[list[Factor]] = []
    for chain in graph.chains:
        first, _, later = next(rest), [next(rest) for _ in chain.moves], next(rest)
        order = [i for group in chain.groups for i in group]
        states = [chain.states[i] for i in order]
        names = [chain.names[i] for i in order]
        loop = next(x for x in graph.loops if names[0] in x.first)
        listed = [n for n in loop.first if n in chain.names]
        twins = dict(zip(listed, (n for n in loop.later if _symbol(graph, n)), strict=True))
        own = "".join(_symbol(graph, n) for n in names)
        then = "".join(_symbol(graph, twins[n]) for n in names)
        responsible.append([
            Factor("", first.reshape(*chain.sizes, *states), chain.dims + own),
            Factor("", later.reshape(len(later), *chain.sizes, *states), chain.time + chain.dims + then),
        ])  # fmt: skip
    found = {}
    for name, dims in graph.dims.items():
        if not graph.trace.nodes[name]["is_observed"]:
            continue
        if name in shared:
            weight = Factor("", shared[name], dims)
        else:
            fitting = (w for pair in responsible for w in pair if set(dims) <= set(w.dims))
            weight = next(fitting, None)
        if weight is not None:
            found[name] = _averages(graph, name, weight)
    return {name: x for name, x in found.items() if x is not None}


def _symbol(graph: Graph, name: str) -> str:
    return graph.trace.nodes[name]["infer"].get("_enumerate_symbol") or ""


def _averages(graph: Graph, name: str, weight: Factor) -> Statistics | None:
    """Averages what a site observes by weights of its states."""
    site = graph.trace.nodes[name]
    fn, of_dim = site["fn"], site["infer"]["_dim_to_symbol"]
    scale = site["scale"]
    if isinstance(scale, Tensor) and (scale.numel() > 1 or functorch.is_batchedtensor(scale)):
        return None  # which weighs data each in its own way
    times = [time_of(i) for i in range(len(graph.loops))]
    known = torch.as_tensor(True if site["mask"] is None else site["mask"])
    value, mask = Term(site["value"], False), Term(known, False)
    for time, loop in zip(times, graph.loops, strict=True):
        if name in loop.seen:
            (value, mask), times = loop.seen[name], [time]
    event = len(fn.event_shape)
    x = value.tensor.flatten(value.tensor.ndim - event) if event else value.tensor[..., None]
    x = _with_dims(Term(x, value.timed), of_dim, times[0] if times else "", 1)
    known = _with_dims(mask, of_dim, times[0] if times else "", 0)
    states = "".join(
        s for _, s in sorted(of_dim.items()) if s in graph.dims[name] and s in _states(graph)
    )
    over = [i for i, d in enumerate(weight.dims) if d not in graph.dims[name]]
    w = weight.term.sum(over) if over else weight.term
    dims = "".join(d for d in weight.dims if d in graph.dims[name])
    if not states or not set(x.dims) <= set(dims) or not set(known.dims) <= set(dims):
        return None
    seen = w * align(known, dims).to(w.dtype)
    centre = x.term.reshape(-1, x.term.shape[-1]).to(w.dtype).mean(0)
    rows = x.term.to(w.dtype) - centre
    all_, total = _summed(w, dims, states), _summed(seen, dims, states)
    least = torch.finfo(w.dtype).tiny
    first, second = (
        _summed(seen, dims, states, y, x.dims) / total[..., None].clamp(min=least)
        for y in (rows, rows.square())
    )
    deep = -min(of_dim, default=0)
    sizes = dict(zip(states, total.shape, strict=True))
    size = [sizes.get(of_dim.get(d, ""), 1) for d in range(-deep, 0)]
    return Statistics(
        (first + centre).reshape(*size, *fn.event_shape),
        (second - first.square()).clamp(min=0).reshape(*size, *fn.event_shape),
        (total / all_.clamp(min=least)).reshape(size),
    )


def _states(graph: Graph) -> set[str]:
    return {
        s
        for name in graph.trace.nodes
        if "infer" in graph.trace.nodes[name]
        for s in [_symbol(graph, name)]
    }


def _with_dims(x: Term, of_dim: dict[int, str], time: str, event: int) -> Factor:
    """Names the wide dims of a tensor, all but those of its event."""
    lead, batch = int(x.timed), x.tensor.ndim - event
    wide = [d for d in range(lead - batch, 0) if x.tensor.shape[batch + d] > 1]
    shape = [*x.tensor.shape[:lead], *(x.tensor.shape[batch + d] for d in wide)]
    return Factor(
        "",
        x.tensor.reshape(shape + list(x.tensor.shape[batch:])),
        time * lead + "".join(of_dim[d] for d in wide),
    )


def _summed(w: Tensor, dims: str, kept: str, x: Tensor | None = None, own: str = "") -> Tensor:
    """Sums weights, times values (…, E) if there are any, over all dims but those of the states."""
    letter = {d: chr(ord("a") + i) for i, d in enumerate(dims)}
    sides = ["".join(letter[d] for d in side) for side in (dims, own, kept)]
    if x is None:
        return torch.einsum(f"{sides[0]}->{sides[2]}", w)
    return torch.einsum(f"{sides[0]},{sides[1]}Z->{sides[2]}Z", w, x)
