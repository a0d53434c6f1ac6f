r"""Models and guides run together: the only importer of ``poutine``.

A model takes the data, samples each datum's latents in ``plate("data", N, dim=-1)`` and what
all data share outside it, observes the data and returns them. A guide takes the same
arguments and samples the same latents. Objectives see the tensors made here, and nothing of
Pyro. Shapes: N data, P particles.
"""

from pplvm.traces.blocks import Blocks
from pplvm.traces.choices import (
    Choice,
    Integrand,
    dependencies,
    draw_choices,
    integrand,
    listed_states,
    own_log_q,
)
from pplvm.traces.decoding import decode
from pplvm.traces.densities import (
    Latents,
    Scores,
    discrete_values,
    draw,
    dream,
    elbo_terms,
    first_non_finite,
    mismatch,
    pathwise_site,
    weigh,
)
from pplvm.traces.discrete import loops_are_even
from pplvm.traces.enumeration import Listed, rest, weighed
from pplvm.traces.families import closed_kl, distribution_name
from pplvm.traces.likelihoods import discrete_latents, summed_pointwise
from pplvm.traces.plays import Layer, Play, Rule, play
from pplvm.traces.potentials import constrained, potential, unconstrained, unconstrained_shapes
from pplvm.traces.preparing import prepared
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
    continuous_part,
    declares_parameters,
    factorises,
    in_data_plate,
    look,
    misused_plate,
    nesting,
    run,
)
from pplvm.traces.sums import listable

__all__ = [
    "DATA",
    "PARTICLES",
    "Blocks",
    "Choice",
    "Integrand",
    "Latents",
    "Layer",
    "Listed",
    "Play",
    "Program",
    "Rule",
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
    "dependencies",
    "discrete_latents",
    "discrete_values",
    "distribution_name",
    "draw",
    "draw_choices",
    "dream",
    "elbo_terms",
    "factorises",
    "first_non_finite",
    "in_data_plate",
    "integrand",
    "listable",
    "listed_states",
    "log_joint",
    "look",
    "loops_are_even",
    "mismatch",
    "misused_plate",
    "nesting",
    "own_log_q",
    "pathwise_site",
    "play",
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
