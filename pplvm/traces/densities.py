r"""Log-densities of a model and a guide at shared latents, for objectives.

Shapes: N data, P particles.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pplvm.traces.families import closed_kl, distribution_name
from pplvm.traces.sites import (
    PARTICLES,
    Dreaming,
    in_data_plate,
    nesting,
    samples,
    site_log_prob,
    split_terms,
)
from pplvm.traces.sums import listable, scored


class Scores(NamedTuple):
    r"""Log-densities at draws :math:`z_{pn} \sim q(z \mid x_n)`."""

    log_p: Tensor  # (P, N): log p(x_n, z_pn)
    log_q: Tensor  # (P, N): log q(z_pn | x_n)


class Latents(NamedTuple):
    """Draws of a guide, opaque to objectives."""

    trace: poutine.Trace
    num_particles: int
    plate: AbstractContextManager  # of the particles, outside every plate of the programs
    moving: bool  # whether gradients flow through the draws
    listed: frozenset[str] = frozenset()  # latents whose states take turns along the particles,
    num_states: int = 1  # and how many joint ones there are

    def detach(self) -> "Latents":
        """Returns the same draws, cut off from what made them."""
        trace = poutine.Trace()
        for name, site in samples(self.trace):
            trace.add_node(name, **{**site, "value": site["value"].detach()})
        return self._replace(trace=trace, moving=False)


def draw(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 1,
    moving: bool = True,
    scored: bool = False,
    within: AbstractContextManager | None = None,
) -> Latents:
    """Draws the latents of the guide.

    Args:
        model: The model, asked only how deep its plates nest.
        guide: The guide.
        data: The arguments of both, first axis N.
        num_particles: The number of draws P for each datum.
        moving: Whether gradients flow through the draws; every site must then be
            reparameterisable, otherwise a ``ValueError`` names it. A draw that does not move
            may be discrete.
        scored: Whether sites that are not reparameterisable may be among those that move: the
            objective then accounts for them by their density.
        within: A handler that the guide runs in, outside the plate of the particles.
    """
    if guide is None:
        raise ValueError("'guide' is None, from which nothing can be drawn: give a guide.")
    plate = particles(model, guide, *data, num_particles=num_particles)
    with torch.set_grad_enabled(moving and torch.is_grad_enabled()), within or nullcontext(), plate:
        trace = poutine.trace(guide).get_trace(*data)
    if moving and not scored:
        for name, site in samples(trace):
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"site '{name}' ({distribution_name(site['fn'])}) has no pathwise gradient: use "
                    "'score_function', 'NVIL' or, for bounds of several particles, 'vimco'."
                )
    return Latents(trace, num_particles, plate, moving)


def discrete_values(z: Latents, per_datum: bool) -> Tensor:
    """Returns the discrete latents side by side: (P, N, D), or (P, 1, D) of all data together."""
    parts = []
    for _, site in samples(z.trace):
        if site["fn"].support.is_discrete:
            value, event_dim = site["value"].detach().double(), site["fn"].event_dim
            value = value.reshape(*value.shape[: value.ndim - event_dim], -1)  # (P, plates…, event)
            value = value[None] if z.num_particles == 1 else value
            rows = value.movedim(-2, 1) if per_datum else value[:, None]
            parts.append(rows.reshape(*rows.shape[:2], -1))
    return torch.cat(parts, -1) if parts else torch.zeros(z.num_particles, 1, 0)


def pathwise_site(z: Latents) -> str | None:
    """Returns the first site of the guide that has a pathwise gradient, if any."""
    return next((name for name, site in samples(z.trace) if site["fn"].has_rsample), None)


def weigh(
    model: Callable, guide: Callable, z: Latents, *data: Tensor, per_datum: bool = True
) -> Scores:
    """Scores both programs at the draws of the guide.

    Args:
        model: The model.
        guide: The guide.
        z: The draws.
        data: The arguments of both, first axis N.
        per_datum: One weight for each datum, (P, N), for which a latent outside the data
            plate is a ``ValueError``; else one for the data set as a whole, (P, 1). A story
            without a data plate is one datum.
    """
    p_sites, sums, q_sites = _scored(model, guide, z, *data)
    log_p, log_q = (
        split_terms(
            [*((site, site_log_prob(n, site)) for n, site in sites.items()), *more], z.num_particles
        )
        for sites, more in ((p_sites, sums), (q_sites, []))
    )
    if (log_p.local is None and log_q.local is None) or not per_datum:
        return Scores(*(part.whole()[:, None] for part in (log_p, log_q)))
    for name, site in (*q_sites.items(), *p_sites.items(), *(("", site) for site, _ in sums)):
        if not in_data_plate(site):
            raise ValueError(
                f"site '{name}' is shared by the data, but this objective weighs each datum alone: "
                "sample it inside plate('data', N, dim=-1), or use the objective 'elbo'."
            )
    size = max(part.local.shape[-1] for part in (log_p, log_q) if part.local is not None)
    return Scores(log_p.even(size), log_q.even(size))


def elbo_terms(
    model: Callable, guide: Callable, z: Latents, *data: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Returns :math:`\log p(x \mid z)` and the KL divergence of guide from prior, each (P, N).

    The divergence of a site is in closed form where Pyro has one and both programs sample it
    after the same sites; elsewhere it is :math:`\log q(z) - \log p(z)` at the draws. What the
    data share is spread evenly over them.
    """
    parts = [
        split_terms([(t.site, t.value) for t in terms], z.num_particles)
        for terms in terms_of(model, guide, z, *data)
    ]
    size = max((part.local.shape[-1] for part in parts if part.local is not None), default=1)
    return parts[0].even(size), parts[1].even(size)


class Term(NamedTuple):
    """A summand of the log-likelihood or of the divergence."""

    key: tuple[str, str]  # "p", "q", "kl" or "sum", and the site
    site: dict
    value: Tensor  # of the site's batch shape


def terms_of(
    model: Callable, guide: Callable, z: Latents, *data: Tensor, closed: bool = True
) -> tuple[list[Term], list[Term]]:
    """Returns the summands of what :func:`elbo_terms` returns, in closed form if so asked."""
    p_sites, sums, q_sites = _scored(model, guide, z, *data)
    lik = [Term(("p", n), s, site_log_prob(n, s)) for n, s in p_sites.items() if s["is_observed"]]
    lik += [Term(("sum", ""), *part) for part in sums]
    kl, before, order = [], set(), list(q_sites)
    for name, p in p_sites.items():
        if p["is_observed"]:
            continue
        q = q_sites.pop(name)
        same = closed and before <= set(order[: order.index(name)])
        divergence = _kl(q, p) if same else None
        if divergence is not None:
            kl.append(Term(("kl", name), q, divergence))
        else:
            kl.append(Term(("q", name), q, site_log_prob(name, q)))
            kl.append(Term(("p", name), p, -site_log_prob(name, p)))
        before.add(name)
    # What is auxiliary to the guide, or in the model has a prior that depends on what is summed out.
    kl += [Term(("q", name), q, site_log_prob(name, q)) for name, q in q_sites.items()]
    return lik, kl


def dream(model: Callable, guide: Callable, *data: Tensor) -> Tensor:
    r"""Returns :math:`\log q(z \mid x)` at one dream :math:`(x, z) \sim p` per datum, (N,).

    What the model returns takes the place of as many of its first arguments.
    """
    with torch.no_grad(), Dreaming():
        trace = poutine.trace(model).get_trace(*data)
    x = trace.nodes["_RETURN"]["value"]
    x = x if isinstance(x, tuple) else (x,)
    if not all(isinstance(value, Tensor) for value in x):
        raise ValueError(
            f"the model returned {type(x[0]).__name__}, not the tensors it observes: a dream "
            "takes the place of the data, so end the model with 'return x'."
        )
    if is_validation_enabled():
        _check_dream(model, guide, *data)
    z = Latents(trace, 1, nullcontext(), moving=False)
    return weigh(model, guide, z, *x, *data[len(x) :]).log_q.squeeze(0)


def _check_dream(model: Callable, guide: Callable, *data: Tensor) -> None:
    """Raises a ``ValueError`` unless the model returns its data and the guide has a density."""
    with torch.no_grad(), torch.random.fork_rng():
        x = poutine.trace(model).get_trace(*data).nodes["_RETURN"]["value"]
        drawn = poutine.trace(guide).get_trace(*data)
    x = x if isinstance(x, tuple) else (x,)
    for i, value in enumerate(x):
        if i >= len(data) or value.shape != data[i].shape or not torch.equal(value, data[i]):
            raise ValueError(
                f"the model returns something other than its argument {i}, whose place a dream is to "
                "take: end the model with 'return x', what it observes, and let that come first."
            )
    for name, site in samples(drawn):
        if site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"site '{name}' of the guide is auxiliary, but the sleep phase needs log q(z | x): "
                "write a guide that samples the latents themselves, or use phi='wake'."
            )


def first_non_finite(model: Callable, guide: Callable, *data: Tensor) -> str | None:
    """Returns the first site whose value or log-density is NaN or infinite, if any."""
    with torch.no_grad(), pyro.validation_enabled(False):
        q = poutine.trace(guide).get_trace(*data)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*data)
        for trace in (q, p):
            for name, site in samples(trace):
                if not all(
                    torch.isfinite(t).all() for t in (site["value"], site_log_prob(name, site))
                ):
                    return name
    return None


def mismatch(latents: set[str], drawn: set[str]) -> str:
    """Returns the sentence about sites that one program has and the other lacks."""
    if drawn - latents:
        name = min(drawn - latents)
        return (
            f"the guide samples site '{name}', which the model lacks (its latents: "
            f"{sorted(latents)}): rename it, or mark it infer={{'is_auxiliary': True}}."
        )
    name = min(latents - drawn)
    return (
        f"the model samples site '{name}', which the guide lacks (it has {sorted(drawn)}): "
        "sample it in the guide too, or observe it."
    )


def particles(
    model: Callable, guide: Callable, *data: Tensor, num_particles: int
) -> AbstractContextManager:
    """Returns the plate of the particles, outside every plate of both programs."""
    if not isinstance(num_particles, int) or num_particles < 1:
        raise ValueError(f"'num_particles' should be at least 1 and whole, got {num_particles}.")
    if num_particles == 1:
        return nullcontext()
    return pyro.plate(PARTICLES, num_particles, dim=-1 - nesting(model, guide, *data))


def _scored(
    model: Callable, guide: Callable, z: Latents, *data: Tensor
) -> tuple[dict[str, dict], list[tuple[dict, Tensor]], dict[str, dict]]:
    """Returns the sites of the model, sums over those that the guide lacks, and the guide's sites."""
    with z.plate:
        # Draws that move carry their own density; at fixed ones the guide is run again, lest a
        # gradient flow from one latent to the parameters of the next.
        q = (
            z.trace
            if z.moving
            else poutine.trace(poutine.replay(guide, trace=z.trace)).get_trace(*data)
        )
    drawn = {n for n, site in samples(q) if not site["infer"].get("is_auxiliary")}
    listed = getattr(model, "listed", None)
    if not listed:
        with z.plate:
            p = poutine.trace(poutine.replay(model, trace=z.trace)).get_trace(*data)
        sites, sums = dict(samples(p)), []
        latents = {name for name, site in sites.items() if not site["is_observed"]}
        if latents > drawn and listed is None:  # a bare program
            listed = listable(model, guide, *data)
    if listed:
        depth = nesting(model, guide, *data) + (z.num_particles > 1)
        values = {name: site["value"] for name, site in samples(z.trace)}
        sites, sums = scored(model, values, z.plate, depth, *data)
        latents = drawn
    if latents != drawn:
        raise ValueError(mismatch(latents, drawn))
    return sites, sums, dict(samples(q))


def _kl(q: dict, p: dict) -> Tensor | None:
    """Returns the closed form of a site's divergence, or None if there is none."""
    same_mask = q["mask"] is p["mask"]
    same_scale = q["scale"] is p["scale"] or not (
        isinstance(q["scale"], Tensor) or isinstance(p["scale"], Tensor) or q["scale"] != p["scale"]
    )
    if not (same_mask and same_scale):
        return None
    kl = closed_kl(q["fn"], p["fn"])
    return None if kl is None else scale_and_mask(kl, q["scale"], q["mask"])
