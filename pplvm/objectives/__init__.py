"""Objectives: functions of a model, a guide and data that return an :class:`~pplvm.types.Estimate`.

Those that learn something by themselves are modules. Each also serves as the ``loss`` of
``pyro.infer.SVI``, and every Pyro ELBO as an objective.
"""

from pplvm.objectives.disarm import arm, disarm
from pplvm.objectives.elbo import elbo
from pplvm.objectives.iwae import iwae
from pplvm.objectives.muprop import muprop
from pplvm.objectives.nvil import NVIL
from pplvm.objectives.pyro_elbo import from_pyro
from pplvm.objectives.rebar import REBAR, RELAX
from pplvm.objectives.relaxations import concrete, straight_through
from pplvm.objectives.score_function import score_function
from pplvm.objectives.vimco import vimco
from pplvm.objectives.wake_sleep import reweighted_wake_sleep, wake_sleep

__all__ = [
    "NVIL",
    "REBAR",
    "RELAX",
    "arm",
    "concrete",
    "disarm",
    "elbo",
    "from_pyro",
    "iwae",
    "muprop",
    "reweighted_wake_sleep",
    "score_function",
    "straight_through",
    "vimco",
    "wake_sleep",
]
