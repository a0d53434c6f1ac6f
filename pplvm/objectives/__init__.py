"""Objectives: functions of a model, a guide and data that return an :class:`~pplvm.types.Estimate`.

Each also serves as the ``loss`` of ``pyro.infer.SVI``, and every Pyro ELBO as an objective.
"""

from pplvm.objectives.elbo import elbo
from pplvm.objectives.iwae import iwae
from pplvm.objectives.pyro_elbo import from_pyro
from pplvm.objectives.wake_sleep import reweighted_wake_sleep, wake_sleep

__all__ = ["elbo", "from_pyro", "iwae", "reweighted_wake_sleep", "wake_sleep"]
