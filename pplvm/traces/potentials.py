r"""The potential of a story: what Hamiltonian samplers move on, at latents without constraint.

.. math:: U(u) = -\log \sum_k p(x, z(u), k) - \log \left|\frac{dz}{du}\right|

Every continuous latent z is a bijection of u in R^n, by the support that it has in this run, and
discrete latents k are summed out exactly. The density is the product of the sites', masked and
scaled: a scale is a power of its site, inside the sum; where a latent is masked, a continuous one
is flat and a discrete one uniform. However a discrete site is marked, it is enumerated.
Shapes: K states.
"""

from collections.abc import Callable

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pplvm.traces.discrete import graph_of, place
from pplvm.traces.families import distribution_name
from pplvm.traces.placements import Plan
from pplvm.traces.sites import samples, site_log_prob


def unconstrained_shapes(
    model: Callable, *data: Tensor, even: bool = False
) -> dict[str, torch.Size]:
    """Returns the shape (plates…, unconstrained event…) of each continuous latent, in order.

    Discrete latents, which are summed out, are absent, as are point masses (``Delta``). A
    ``ValueError`` names a latent that has no bijection to R^n, no finite list of states, or a
    support that depends on a discrete latent. Nothing is drawn.
    """
    with torch.no_grad():
        latents = place(model, *data, even=even)
        if latents.discrete:
            graph = graph_of(model, latents, *data, even=even)
            _check_supports(graph.trace, latents)
            graph.total()
    return {name: z.u.shape for name, z in latents.continuous.items()}


def potential(model: Callable, u: dict[str, Tensor], *data: Tensor, even: bool = False) -> Tensor:
    """Returns minus the log-density of data and latents on the unconstrained scale, ().

    Differentiable in ``u``. Made of tensor operations alone, so that ``make_fx`` traces it where
    Pyro's validation is off. A model with discrete latents runs twice.

    Args:
        model: The story.
        u: Each continuous latent, of its shape in :func:`unconstrained_shapes`.
        data: The arguments of the story.
        even: Whether its loops over time may be run for all later steps at once: see
            :func:`loops_are_even`.
    """
    latents = place(model, *data, even=even, u=u)
    if latents.discrete:
        log_joint, _ = graph_of(model, latents, *data, even=even).total()
    else:
        terms = [site_log_prob(name, site).sum() for name, site in samples(latents.trace)]
        log_joint = sum(terms)
    return -(log_joint + latents.log_det)


def constrained(
    model: Callable, u: dict[str, Tensor], *data: Tensor, even: bool = False
) -> dict[str, Tensor]:
    """Returns the continuous latents on their own scale, (plates…, event…), at ``u``."""
    latents = place(model, *data, even=even, u=u).continuous
    return {n: z.value.reshape(z.plates + z.fn.event_shape) for n, z in latents.items()}


def unconstrained(model: Callable, values: dict[str, Tensor], *data: Tensor) -> dict[str, Tensor]:
    """Returns the latents on the unconstrained scale: the inverse of :func:`constrained`."""
    return {n: z.u for n, z in place(model, *data, values=values).continuous.items()}


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
