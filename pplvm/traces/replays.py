"""A model run again at draws: predictions, pointwise densities, and whether it broadcasts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplvm.traces.densities import Latents, draw, weigh
from pplvm.traces.sites import (
    PARTICLES,
    Dreaming,
    Site,
    depth_of,
    in_data_plate,
    look,
    run,
    samples,
    site_log_prob,
    sites_of,
    split_terms,
)


def replay(
    model: Callable, values: dict[str, Tensor], *data: Tensor, dream: bool = False
) -> dict[str, Site]:
    """Runs a model at draws ``values[name]`` of shape (P, plates…, event…), without gradient.

    Every site's value comes back in that shape; with ``dream`` the observed are drawn anew.
    """
    prototypes = look(model, *data)

    def together() -> dict[str, Site]:
        with _under(values, prototypes, dream):
            return sites_of(trace_at(model, values, prototypes, *data), prototypes)

    def alone(p: int) -> dict[str, Site]:
        with torch.no_grad(), Dreaming() if dream else nullcontext():
            row = {name: value[p] for name, value in values.items()}
            return sites_of(trace_at(model, row, prototypes, *data))

    return _broadcast(model, values, together, alone, _stack, *data)


def pointwise(model: Callable, values: dict[str, Tensor], *data: Tensor) -> dict[str, Tensor]:
    """Returns the log-density of each observed site at draws as in :func:`replay`.

    Of shape (P, N) in the data plate, elsewhere (P, plates…).
    """
    prototypes = look(model, *data)

    def together() -> dict[str, Tensor]:
        with _under(values, prototypes):
            return _densities(trace_at(model, values, prototypes, *data), prototypes, 0)

    def alone(p: int) -> dict[str, Tensor]:
        with torch.no_grad():
            row = {name: value[p] for name, value in values.items()}
            return _densities(trace_at(model, row, prototypes, *data), prototypes, 1)

    def join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return _broadcast(model, values, together, alone, join, *data)


def _densities(
    trace: poutine.Trace, prototypes: dict[str, Site], num_particles: int
) -> dict[str, Tensor]:
    out = {}
    for name, site in samples(trace):
        if not site["is_observed"]:
            continue
        term = site_log_prob(name, site)
        if in_data_plate(site):
            out[name] = split_terms([(site, term)], num_particles).local
        else:
            out[name] = term.reshape(-1, *(size for _, size, _ in prototypes[name].plates))
    return out


def log_joint(model: Callable, values: dict[str, Tensor], *data: Tensor, per_datum: bool) -> Tensor:
    """Returns the joint log-density at latents ``values[name]`` (plates…, event…), with gradient.

    Of shape (N,) for each datum, else () for all together.
    """
    trace = trace_at(model, values, look(model, *data), *data)
    split = split_terms([(site, site_log_prob(name, site)) for name, site in samples(trace)], 1)
    return split.local[0] if per_datum else split.whole()[0]


def site_log_probs(model: Callable, values: dict[str, Tensor], *data: Tensor) -> dict[str, Tensor]:
    """Returns the log-density of each site, (), at latents as in :func:`log_joint`."""
    with torch.no_grad():
        trace = trace_at(model, values, look(model, *data), *data)
        return {name: site_log_prob(name, site).sum() for name, site in samples(trace)}


def posterior(
    model: Callable, guide: Callable, *data: Tensor, num_particles: int
) -> dict[str, Site]:
    """Draws the latents of a guide, values (P, plates…, event…)."""
    prototypes = look(guide, *data)
    if not prototypes:
        return {}
    depth = max(depth_of(sites.values()) for sites in (prototypes, look(model, *data)))

    def together() -> dict[str, Site]:
        with torch.no_grad(), pyro.plate(PARTICLES, num_particles, dim=-1 - depth):
            return sites_of(poutine.trace(guide).get_trace(*data), prototypes)

    try:
        check_particles(model, guide, *data)
        return together()
    except ValueError:  # slow, but right
        return _stack([run(guide, *data) for _ in range(num_particles)])


def check_particles(model: Callable, guide: Callable, *data: Tensor) -> None:
    """Raises a ``ValueError`` unless two particles score together as each of them does alone."""
    reason = "they score differently together and alone"
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        prototypes = run(guide, *data)
        if not prototypes:  # nothing that there could be two of
            return
        try:
            z = draw(model, guide, *data, num_particles=2, moving=False)
            together = weigh(model, guide, z, *data, per_datum=False)
            drawn, right = sites_of(z.trace, prototypes), True
        except (RuntimeError, IndexError, ValueError) as error:
            right, reason = False, str(error).splitlines()[0]
        for p in range(2 if right else 0):
            row = {name: site.value[p] for name, site in drawn.items()}
            one = Latents(trace_at(guide, row, prototypes, *data), 1, nullcontext(), moving=False)
            alone = weigh(model, guide, one, *data, per_datum=False)
            right &= all(
                torch.allclose(a[p], b[0], rtol=1e-3, atol=1e-3)
                for a, b in zip(together, alone, strict=True)
            )
    if not right:
        raise ValueError(
            f"model or guide does not broadcast over particles ({reason}): latents then have more "
            "dims on the left, so write (X * w).sum(-1) rather than X @ w, leave out dropout, or use "
            "num_particles=1."
        )


def _broadcast(
    model: Callable,
    values: dict[str, Tensor],
    together: Callable,
    alone: Callable,
    join: Callable,
    *data: Tensor,
) -> Any:
    """Runs a model under particles, or draw by draw if it does not broadcast over them.

    A story that writes ``X @ w`` where ``(X * w).sum(-1)`` would have broadcast is slow here,
    but it is right.
    """
    num_particles = len(next(iter(values.values())))
    try:
        if num_particles > 1 and _broadcasts(model, values, *data):
            return together()
    except (RuntimeError, IndexError, ValueError):
        pass
    return join([alone(p) for p in range(num_particles)])


def _broadcasts(model: Callable, values: dict[str, Tensor], *data: Tensor) -> bool:
    """Whether the first and the last draw score together as each of them does alone.

    A program that sums a latent over all its dims, or takes its first row, raises no error
    under particles: it is merely wrong.
    """
    prototypes = look(model, *data)
    ends = {name: value[[0, -1]] for name, value in values.items()}

    def outcome(row: dict[str, Tensor], under: int) -> dict[str, Tensor]:
        trace = trace_at(model, row, prototypes, *data)
        found = _densities(trace, prototypes, 1 - under)
        sites = sites_of(trace, prototypes if under else None)
        kept = {n: s.value for n, s in sites.items() if s.kind == "deterministic"}
        return found | (kept if under else {n: v[None] for n, v in kept.items()})

    with torch.random.fork_rng():
        with _under(ends, prototypes):
            both = outcome(ends, under=1)
        with torch.no_grad():
            each = [outcome({n: v[p] for n, v in ends.items()}, under=0) for p in range(2)]
    return all(
        torch.allclose(value[p].double(), each[p][name][0].double(), 1e-3, 1e-3, equal_nan=True)
        for name, value in both.items()
        for p in range(2)
    )


def _stack(parts: list[dict[str, Site]]) -> dict[str, Site]:
    return {
        name: site._replace(value=torch.stack([part[name].value for part in parts]))
        for name, site in parts[0].items()
    }


@contextmanager
def _under(
    values: dict[str, Tensor], prototypes: dict[str, Site], dream: bool = False
) -> Iterator[None]:
    """Enters the plate of the particles, outside all others."""
    depth = depth_of(prototypes.values())
    plate = pyro.plate(PARTICLES, len(next(iter(values.values()))), dim=-1 - depth)
    with torch.no_grad(), Dreaming() if dream else nullcontext(), plate:
        yield


def trace_at(
    model: Callable, values: dict[str, Tensor], prototypes: dict[str, Site], *data: Tensor
) -> poutine.Trace:
    """Returns the trace of a model at values (plates…, event…), or (P, plates…, event…)."""
    depth = depth_of(prototypes.values())
    fixed = poutine.Trace()
    for name in values.keys() & prototypes.keys():
        plates, value = prototypes[name].plates, values[name]
        sizes = {dim: size for _, size, dim in plates}
        extra = value.ndim - prototypes[name].value.ndim  # 1 under particles
        batch = [sizes.get(dim, 1) for dim in range(-depth if extra else min(sizes, default=0), 0)]
        shape = (*value.shape[:extra], *batch, *value.shape[extra + len(sizes) :])
        value = value.reshape(shape)
        infer = dict(prototypes[name].infer)  # a replay takes it over: what is auxiliary stays so
        fixed.add_node(name, name=name, type="sample", is_observed=False, value=value, infer=infer)
    return poutine.trace(poutine.replay(model, trace=fixed)).get_trace(*data)
