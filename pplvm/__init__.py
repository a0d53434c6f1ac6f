"""Latent variable models on Pyro: one generative story, every inference method, one report."""

from pplvm.align import align
from pplvm.cavi import CAVI, cavi
from pplvm.compare import compare
from pplvm.conjugate import conjugate
from pplvm.contract import explain
from pplvm.draws import Draws
from pplvm.em import EM, em
from pplvm.exact import Exact, exact
from pplvm.fit import Fit, fit, load
from pplvm.gradient_report import GradientReport, gradient_report
from pplvm.likelihood import LogMarginal, log_marginal
from pplvm.mcmc import chees, nuts
from pplvm.table import Row, Table
from pplvm.types import Estimate

__version__ = "0.1.0"
__all__ = [
    "CAVI",
    "EM",
    "Draws",
    "Estimate",
    "Exact",
    "Fit",
    "GradientReport",
    "LogMarginal",
    "Row",
    "Table",
    "align",
    "cavi",
    "chees",
    "compare",
    "conjugate",
    "em",
    "exact",
    "explain",
    "fit",
    "gradient_report",
    "load",
    "log_marginal",
    "nuts",
]
