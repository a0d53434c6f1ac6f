"""Whether the densities of listed states are those of the story: held against one plain run of it.

In a plain run every latent has one value. Each factor of the graph, taken at these values, has to be
the log-density that its site has there, at every step and for every datum. That finds loops whose
later steps differ or hand more on than their latents, and stories that mix up the dims of states.
"""

from math import log
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pplvm.traces.elimination import Factor, align, pick
from pplvm.traces.factors import named, time_of
from pplvm.traces.series import Loop, Term
from pplvm.traces.sites import DATA, site_log_prob


def disagreement(
    trace: poutine.Trace,
    plain: poutine.Trace,
    factors: list[Factor],
    loops: list[Loop],
    depth: int,
) -> str | None:
    """Returns the first site that is worth something else in a plain run, if there is one.

    Args:
        trace: The run in which states are listed.
        plain: The plain run, at the same continuous latents.
        factors: Those of the first run.
        loops: Its loops over time, if they were run for all their later steps at once.
        depth: How many dims plates take.
    """
    plain.symbolize_dims(dict(trace.plate_to_symbol))
    data = trace.plate_to_symbol.get(DATA, "")
    own = {name: (loop, time_of(i)) for i, loop in enumerate(loops) for name in loop.later}
    first, later = _drawn(trace, plain, own, loops)
    for factor in factors:
        loop, time = own.get(factor.site, (None, ""))
        got, drawn = factor, later if loop else first
        for dim in factor.dims:
            got = pick(got, dim, drawn[dim]) if dim in drawn else got
        if loop is None:
            want = _worth(plain, factor.site, trace.nodes[factor.site], depth)
        else:
            names = [loop.name_at(factor.site, t) for t in loop.steps[1:]]
            rows = [_worth(plain, name, None, depth) for name in names]
            want = Factor("", torch.stack([_over(r, data) for r in rows]), time + data)
        got, want = (_over(f, time + data) for f in (got, want))
        tolerance = 1e-3 if got.dtype == torch.float32 else 1e-6
        got, want = torch.broadcast_tensors(got, want.to(got))
        if not torch.allclose(got, want, tolerance, tolerance, equal_nan=True):
            return factor.site
    return None


def _worth(plain: poutine.Trace, name: str, listed: dict | None, depth: int) -> Factor:
    """Returns the log-density of a site in a plain run, as it stands in the graph."""
    site = plain.nodes[name]
    latent = not site["is_observed"]
    term = site_log_prob(name, site, masked=not latent)
    if latent and listed is not None and "_enumerate_symbol" in listed["infer"]:
        for mask in (site["mask"], getattr(site["fn"], "_mask", None)):
            if mask is not None:
                term = torch.where(torch.as_tensor(mask), term, -log(len(listed["value"])))
    elif latent and listed is not None:
        term = site_log_prob(name, site)
    return named(name, site, Term(term, False), "", depth)


def _over(factor: Factor, kept: str) -> Tensor:
    """Sums a factor over all dims but these."""
    others = [i for i, d in enumerate(factor.dims) if d not in kept]
    term = factor.term.sum(others) if others else factor.term
    return align(Factor("", term, "".join(d for d in factor.dims if d in kept)), kept)


def _drawn(
    trace: poutine.Trace, plain: poutine.Trace, own: dict[str, Any], loops: list[Loop]
) -> tuple[dict[str, Factor], dict[str, Factor]]:
    """Returns the index of each listed latent's state in the plain run: for first steps, and later."""
    symbol = {
        n: s["infer"].get("_enumerate_symbol") for n, s in trace.nodes.items() if "infer" in s
    }
    first = {
        symbol[name]: _index(trace.nodes[name], plain.nodes[name])
        for name in symbol
        if symbol[name] is not None and name not in own
    }
    later = dict(first)
    for number, loop in enumerate(loops):
        listed = [[n for n in names if symbol[n] is not None] for names in (loop.first, loop.later)]
        for name, then in zip(*listed, strict=True):
            states = trace.nodes[name]
            sites = [name, *(loop.name_at(then, t) for t in loop.steps[1:])]
            path = [_index(states, plain.nodes[site]) for site in sites]
            dims = path[0].dims
            steps = torch.stack([align(row, dims) for row in path])
            later[symbol[name]] = Factor("", steps[:-1], time_of(number) + dims)
            later[symbol[then]] = Factor("", steps[1:], time_of(number) + dims)
    return first, later


def _index(listed: dict, drawn: dict) -> Factor:
    """Returns which of the listed states a latent has, over the plates that it is in."""
    event = len(listed["fn"].event_shape)
    states = listed["value"].reshape(-1, *listed["value"].shape[listed["value"].ndim - event :])
    value = drawn["value"]
    same = value[None] == states.reshape(
        len(states), *[1] * (value.ndim - event), *states.shape[1:]
    )
    index = same.flatten(value.ndim - event + 1).all(-1) if event else same
    index = index.long().argmax(0)
    symbols = drawn["infer"]["_dim_to_symbol"]
    wide = [d for d in range(-index.ndim, 0) if index.shape[d] > 1]
    return Factor(
        "", index.reshape([index.shape[d] for d in wide]), "".join(symbols[d] for d in wide)
    )
