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
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn


class Multinomial(TorchDistribution):
    """Counts (*, V) of given totals (*), which may differ from row to row.

    That of torch has one total for all rows.
    """

    arg_constraints = {"probs": constraints.simplex}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, total: Tensor, probs: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(total.shape, probs.shape[:-1])
        self.total = total.expand(batch)
        self.probs = probs.expand(batch + probs.shape[-1:])
        super().__init__(batch, probs.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "Multinomial":
        """Returns the same distribution for more rows."""
        shape = torch.Size(batch_shape)
        return Multinomial(
            self.total.expand(shape), self.probs.expand(shape + self.event_shape), False
        )

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws one kind after the other: each is binomial given those before it."""
        left = self.total.to(self.probs.dtype).expand(torch.Size(sample_shape) + self.batch_shape)
        rest = self.probs.flip(-1).cumsum(-1).flip(-1)  # (*, V): what is not drawn yet
        share = torch.where(rest > 0, self.probs / rest, 0.0).clamp(0.0, 1.0)
        counts = []
        for v in range(self.probs.shape[-1] - 1):
            counts.append(torch.binomial(left, share[..., v].expand_as(left).contiguous()))
            left = left - counts[-1]
        return torch.stack([*counts, left], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns (*): the log-probability of counts that add up to the totals."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.to(self.probs.dtype)
        ways = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
        return ways + torch.xlogy(value, self.probs).sum(-1)


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
