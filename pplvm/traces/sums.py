"""A model scored at the draws of a guide that leaves discrete latents out: they are summed out.

Per datum: the sum over a datum's own states is inside its own log-density, (P, N). Latents that the
data share are summed out of the density of all data, (P,).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from pyro import poutine
from torch import Tensor

from pplvm.traces.chains import collapse
from pplvm.traces.elimination import Factor, eliminate
from pplvm.traces.factors import factors_of
from pplvm.traces.placements import device_of, enumerated
from pplvm.traces.series import Loop, Series, UnevenError
from pplvm.traces.sites import (
    DATA,
    PARTICLES,
    in_data_plate,
    look,
    samples,
)


def listable(model: Callable, guide: Callable, *data: Tensor) -> frozenset[str]:
    """Returns the discrete latents of a model that the guide lacks and whose states can be listed."""
    known = getattr(model, "listed", None)
    if known is not None:
        return known
    drawn, found = look(guide, *data), set()
    for name, site in look(model, *data).items():
        if site.kind == "latent" and name not in drawn and site.fn.support.is_discrete:
            found |= {name} if site.fn.has_enumerate_support else set()
    return frozenset(found)


def scored(
    model: Callable,
    values: dict[str, Tensor],
    plate: AbstractContextManager,
    depth: int,
    *data: Tensor,
) -> tuple[dict[str, dict], list[tuple[dict, Tensor]]]:
    """Scores a model at given latents, and sums the others out.

    Args:
        model: The model.
        values: The draws, as they stand in a run.
        plate: That of the particles.
        depth: How many dims plates take, that of the particles included.
        data: The arguments of the model.

    Returns:
        The sites that have nothing to do with them, and the sum: a term with a site that stands for
        it.
    """
    if getattr(model, "even", False):
        loops = Series(device_of(data), worth=True)
        try:
            trace = enumerated(model, values, depth, *data, loops=loops, plate=plate)
            return _summed(trace, loops.loops, depth)
        except UnevenError:  # data of another length may have steps of their own
            pass
    trace = enumerated(model, values, depth, *data, plate=plate)
    return _summed(trace, [], depth)


def _summed(
    trace: poutine.Trace, loops: list[Loop], depth: int
) -> tuple[dict[str, dict], list[tuple[dict, Tensor]]]:
    factors, homes = factors_of(trace, depth, loops)
    later = {name for loop in loops for name in loop.later}
    touched = [f for f in factors if homes.keys() & set(f.dims) or f.site in later]
    names = {f.site for f in touched}
    rest = {name: site for name, site in samples(trace) if name not in names}
    if not touched:
        return rest, []
    particles, data = (trace.plate_to_symbol.get(name, "") for name in (PARTICLES, DATA))
    touched = _over_particles(touched, particles, homes)
    local = bool(data) and all(data in home for home in homes.values())
    if local:
        for f in touched:
            if not in_data_plate(trace.nodes[f.site]):
                raise ValueError(
                    f"site '{f.site}' is outside plate 'data', but depends on a discrete latent inside: "
                    "observe it inside too."
                )
    sizes = {d: n for f in touched for d, n in zip(f.dims, f.term.shape, strict=True)}
    chains, others, left = collapse(loops, trace, touched, homes)
    kept = particles + data * local
    total, _ = eliminate([*others, *(c.total() for c in chains)], left, kept=kept)
    total = total.expand([sizes.get(d, 1) for d in kept])
    frames = [trace.nodes[f.site]["cond_indep_stack"] for f in touched]
    own = next((x for x in frames if any(f.name == DATA for f in x)), ()) if local else ()
    return rest, [({"cond_indep_stack": own}, total)]


def _over_particles(
    factors: list[Factor], particles: str, homes: dict[str, frozenset[str]]
) -> list[Factor]:
    """Repeats for every particle what is the same for all, where others differ.

    Pyro gives every latent the dim of the particles, but what is observed has it only where it depends
    on a draw.
    """
    if not particles or not any(particles in home for home in homes.values()):
        return factors
    size = next(f.term.shape[f.dims.index(particles)] for f in factors if particles in f.dims)
    return [
        f
        if particles in f.dims
        else Factor(f.site, f.term[..., None].expand(*f.term.shape, size), f.dims + particles)
        for f in factors
    ]
