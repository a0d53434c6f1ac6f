r"""The Dirichlet-multinomial: counts of V kinds whose proportions differ from datum to datum,

.. math:: p_n \sim \mathrm{Dirichlet}(\alpha), \qquad
    x_n \mid p_n \sim \mathrm{Multinomial}(t_n, p_n), \qquad t_n = \sum_v x_{nv},

and the same story with the proportions integrated out,

.. math:: p(x_n) = \frac{t_n!\, \Gamma(A)}{\Gamma(t_n + A)}
    \prod_v \frac{\Gamma(x_{nv} + \alpha_v)}{x_{nv}!\, \Gamma(\alpha_v)}, \qquad A = \sum_v \alpha_v.

The totals are given, not modelled: a dream has those of the data.

References:
    | On the compound multinomial distribution, the multivariate β-distribution, and correlations
    | among proportions (Mosimann, 1962)
    | https://doi.org/10.1093/biomet/49.1-2.65

    | Estimating a Dirichlet distribution (Minka, 2000)
    | https://tminka.github.io/papers/dirichlet/

Shapes: N data, V kinds; * is (N,) or (P, N).
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pplvm.models.counts import Multinomial


class DirichletMultinomial(nn.Module):
    """Creates a model of counts of V kinds, each datum with proportions of its own."""

    def __init__(self, num_kinds: int) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.zeros(num_kinds))  # (V,)

    def forward(self, x: Tensor) -> Tensor:
        """Observes counts x, of shape (N, V), and returns them; unconditioned, returns a dream."""
        with pyro.plate("data", len(x), dim=-1):
            p = pyro.sample("p", dist.Dirichlet(self.log_alpha.exp()))  # (*, V)
            return pyro.sample("x", Multinomial(x.sum(-1), p), obs=x)


class CollapsedDirichletMultinomial(DirichletMultinomial):
    """The same story without its latents: its log-density is the evidence."""

    def forward(self, x: Tensor) -> Tensor:
        """Observes counts x, of shape (N, V), and returns them; unconditioned, returns a dream."""
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", Collapsed(self.log_alpha.exp(), x.sum(-1)), obs=x)


class Collapsed(dist.DirichletMultinomial):
    """Pyro's distribution, which cannot draw where totals differ."""

    arg_constraints = {"concentration": constraints.independent(constraints.positive, 1)}  # noqa: RUF012
    support = Multinomial.support

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws proportions, then counts."""
        probs = dist.Dirichlet(self.concentration).sample(sample_shape)
        return Multinomial(self.total_count, probs).sample()
