r"""Models and guides run together: the only importer of ``poutine``.

A model takes the data, samples each datum's latents in ``plate("data", N, dim=-1)`` and what
all data share outside it, observes the data and returns them. A guide takes the same
arguments and samples the same latents. Objectives see the tensors made here, and nothing of
Pyro. Shapes: N data, P particles.
"""

from pplvm.traces.blocks import Blocks
from pplvm.traces.decoding import decode
from pplvm.traces.densities import (
    Latents,
    Scores,
    draw,
    dream,
    elbo_terms,
    first_non_finite,
    mismatch,
    weigh,
)
from pplvm.traces.discrete import loops_are_even
from pplvm.traces.enumeration import Listed, rest, weighed
from pplvm.traces.likelihoods import discrete_latents, summed_pointwise
from pplvm.traces.potentials import constrained, potential, unconstrained, unconstrained_shapes
from pplvm.traces.replays import (
    check_particles,
    log_joint,
    pointwise,
    posterior,
    replay,
    site_log_probs,
)
from pplvm.traces.sites import (
    DATA,
    PARTICLES,
    Program,
    Site,
    SupportError,
    check_support,
    closed_kl,
    continuous_part,
    declares_parameters,
    distribution_name,
    factorises,
    in_data_plate,
    look,
    misused_plate,
    nesting,
    run,
)
from pplvm.traces.sums import listable, prepared

__all__ = [
    "DATA",
    "PARTICLES",
    "Blocks",
    "Latents",
    "Listed",
    "Program",
    "Scores",
    "Site",
    "SupportError",
    "check_particles",
    "check_support",
    "closed_kl",
    "constrained",
    "continuous_part",
    "declares_parameters",
    "decode",
    "discrete_latents",
    "distribution_name",
    "draw",
    "dream",
    "elbo_terms",
    "factorises",
    "first_non_finite",
    "in_data_plate",
    "listable",
    "log_joint",
    "look",
    "loops_are_even",
    "mismatch",
    "misused_plate",
    "nesting",
    "pointwise",
    "posterior",
    "potential",
    "prepared",
    "replay",
    "rest",
    "run",
    "site_log_probs",
    "summed_pointwise",
    "unconstrained",
    "unconstrained_shapes",
    "weigh",
    "weighed",
]
