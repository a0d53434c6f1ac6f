r"""The potential of a story: what Hamiltonian samplers move on, at latents without constraint.

.. math:: U(u) = -\log \sum_k p(x, z(u), k) - \log \left|\frac{dz}{du}\right|

Every continuous latent z is a bijection of u in R^n, by the support that it has in this run, and
discrete latents k are summed out exactly. The density is the product of the sites', masked and
scaled: a scale is a power of its site, inside the sum; where a latent is masked, a continuous one
is flat and a discrete one uniform. However a discrete site is marked, it is enumerated.
Shapes: K states.
"""

from collections.abc import Callable
from math import log

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pplvm.traces.elimination import Factor, eliminate
from pplvm.traces.placements import Plan, enumerated, plan
from pplvm.traces.sites import distribution_name, samples, site_log_prob


def unconstrained_shapes(model: Callable, *data: Tensor) -> dict[str, torch.Size]:
    """Returns the shape (plates…, unconstrained event…) of each continuous latent, in order.

    Discrete latents, which are summed out, are absent, as are point masses (``Delta``). A
    ``ValueError`` names a latent that has no bijection to R^n, no finite list of states, or a
    support that depends on a discrete latent. Nothing is drawn.
    """
    with torch.no_grad():
        latents = plan(model, *data)
        if latents.discrete:
            trace = enumerated(model, latents, *data)
            _check_supports(trace, latents)
            eliminate(*factors_of(trace, latents.depth))
    return {name: z.u.shape for name, z in latents.continuous.items()}


def potential(model: Callable, u: dict[str, Tensor], *data: Tensor) -> Tensor:
    """Returns minus the log-density of data and latents on the unconstrained scale, ().

    Differentiable in ``u``. Made of tensor operations alone, so that ``make_fx`` traces it where
    Pyro's validation is off. A model with discrete latents runs twice.

    Args:
        model: The story.
        u: Each continuous latent, of its shape in :func:`unconstrained_shapes`.
        data: The arguments of the story.
    """
    latents = plan(model, *data, u=u)
    if latents.discrete:
        trace = enumerated(model, latents, *data)
        log_joint, _ = eliminate(*factors_of(trace, latents.depth))
    else:
        terms = [site_log_prob(name, site).sum() for name, site in samples(latents.trace)]
        log_joint = sum(terms)
    return -(log_joint + latents.log_det)


def constrained(model: Callable, u: dict[str, Tensor], *data: Tensor) -> dict[str, Tensor]:
    """Returns the continuous latents on their own scale, (plates…, event…), at ``u``."""
    latents = plan(model, *data, u=u).continuous
    return {n: z.value.reshape(z.plates + z.fn.event_shape) for n, z in latents.items()}


def unconstrained(model: Callable, values: dict[str, Tensor], *data: Tensor) -> dict[str, Tensor]:
    """Returns the latents on the unconstrained scale: the inverse of :func:`constrained`."""
    return {n: z.u for n, z in plan(model, *data, values=values).continuous.items()}


def factors_of(trace: poutine.Trace, depth: int) -> tuple[list[Factor], dict[str, frozenset[str]]]:
    """Returns the log-density of each site, its dims named, and the plates of each discrete one.

    Dims of no plate are summed; among the latents to enumerate they are a ``ValueError``.
    """
    trace.symbolize_dims()
    plates, factors, homes = set(trace.plate_to_symbol.values()), [], {}
    for name, site in samples(trace):
        symbols, term = site["infer"]["_dim_to_symbol"], site_log_prob(name, site)
        taken = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
        loose = [
            d for d in range(-min(depth, term.ndim), 0) if d not in taken and term.shape[d] > 1
        ]
        state = site["infer"].get("_enumerate_symbol")
        if state is not None and loose:
            raise ValueError(
                f"site '{name}' ({distribution_name(site['fn'])}) has {term.shape[loose[0]]} discrete "
                "values in a dim of no plate: sample it in pyro.plate, so that each is summed out."
            )
        if state is not None:
            term = _uniform_where_masked(site, term)
        if loose:
            term = term.sum(loose, keepdim=True)
        wide = [d for d in range(-term.ndim, 0) if term.shape[d] > 1]
        if not symbols.keys() >= set(wide):
            raise ValueError(
                f"site '{name}' ({distribution_name(site['fn'])}) does not broadcast over the states "
                "of the discrete latents, which have dims on the left of all plates: index what "
                "depends on them from the right, such as x[..., 0], and use those of a pyro.markov "
                "loop within its reach."
            )
        dims = "".join(symbols[d] for d in wide)
        factors.append(Factor(name, term.squeeze(), dims))
        if state is not None and state in dims:
            homes[state] = frozenset(dims) & plates
    return factors, homes


def _uniform_where_masked(site: dict, term: Tensor) -> Tensor:
    """Lets the states of a masked latent sum to one, as if it were not there."""
    for mask in (site["mask"], getattr(site["fn"], "_mask", None)):
        if mask is not None:
            mask = torch.as_tensor(mask, device=term.device)
            term = torch.where(mask, term, -log(len(site["value"])))
    return term


def _check_supports(trace: poutine.Trace, latents: Plan) -> None:
    """Raises a ``ValueError`` for a support that differs from one discrete state to another."""
    for name, z in latents.continuous.items():
        free = biject_to(z.fn.support).inverse_shape(z.fn.batch_shape + z.fn.event_shape)
        value = biject_to(trace.nodes[name]["fn"].support)(z.u.reshape(free))
        if not torch.equal(value, z.value.expand_as(value)):
            raise ValueError(
                f"the support of site '{name}' ({distribution_name(z.fn)}) depends on a discrete "
                "latent, which cannot be summed out then: write a scale times a latent of fixed "
                "support."
            )
