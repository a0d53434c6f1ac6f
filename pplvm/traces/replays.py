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
    prototypes = run(model, *data, dream=dream)

    def together() -> dict[str, Site]:
        with _under(values, prototypes, dream):
            return sites_of(trace_at(model, values, prototypes, *data), prototypes)

    def alone(p: int) -> dict[str, Site]:
        with torch.no_grad(), Dreaming() if dream else nullcontext():
            row = {name: value[p] for name, value in values.items()}
            return sites_of(trace_at(model, row, prototypes, *data))

    return _broadcast(together, alone, len(next(iter(values.values()))), _stack)


def pointwise(model: Callable, values: dict[str, Tensor], *data: Tensor) -> dict[str, Tensor]:
    """Returns the log-density of each observed site at draws as in :func:`replay`.

    Of shape (P, N) in the data plate, elsewhere (P, plates…).
    """
    prototypes = run(model, *data)

    def densities(trace: poutine.Trace, num_particles: int) -> dict[str, Tensor]:
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

    def together() -> dict[str, Tensor]:
        with _under(values, prototypes):
            return densities(trace_at(model, values, prototypes, *data), 0)

    def alone(p: int) -> dict[str, Tensor]:
        with torch.no_grad():
            row = {name: value[p] for name, value in values.items()}
            return densities(trace_at(model, row, prototypes, *data), 1)

    def join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return _broadcast(together, alone, len(next(iter(values.values()))), join)


def log_joint(model: Callable, values: dict[str, Tensor], *data: Tensor, per_datum: bool) -> Tensor:
    """Returns the joint log-density at latents ``values[name]`` (plates…, event…), with gradient.

    Of shape (N,) for each datum, else () for all together.
    """
    trace = trace_at(model, values, run(model, *data), *data)
    split = split_terms([(site, site_log_prob(name, site)) for name, site in samples(trace)], 1)
    return split.local[0] if per_datum else split.whole()[0]


def posterior(
    model: Callable, guide: Callable, *data: Tensor, num_particles: int
) -> dict[str, Site]:
    """Draws the latents of a guide, values (P, plates…, event…)."""
    prototypes = run(guide, *data)
    depth = max(depth_of(sites.values()) for sites in (prototypes, run(model, *data)))

    def together() -> dict[str, Site]:
        with torch.no_grad(), pyro.plate(PARTICLES, num_particles, dim=-1 - depth):
            return sites_of(poutine.trace(guide).get_trace(*data), prototypes)

    return _broadcast(together, lambda _: run(guide, *data), num_particles, _stack)


def check_particles(model: Callable, guide: Callable, *data: Tensor) -> None:
    """Raises a ``ValueError`` unless two particles score together as each of them does alone."""
    reason = "they score differently together and alone"
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        prototypes = run(guide, *data)
        try:
            z = draw(model, guide, *data, num_particles=2, moving=False)
            together = weigh(model, guide, z, *data, per_datum=False)
            drawn, right = sites_of(z.trace, prototypes), True
        except (RuntimeError, IndexError) as error:
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
            "dims on the left, so write (X * w).sum(-1) rather than X @ w, or use num_particles=1."
        )


def _broadcast(together: Callable, alone: Callable, num_particles: int, join: Callable) -> Any:
    """Runs a program under particles, or draw by draw if it does not broadcast over them.

    A story that writes ``X @ w`` where ``(X * w).sum(-1)`` would have broadcast is slow here,
    but it is right.
    """
    try:
        return together()
    except (RuntimeError, IndexError):
        return join([alone(p) for p in range(num_particles)])


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
        fixed.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    return poutine.trace(poutine.replay(model, trace=fixed)).get_trace(*data)
