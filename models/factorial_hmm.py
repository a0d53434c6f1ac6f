r"""Factorial hidden Markov model: M chains move apart from each other and are seen together,

.. math:: z_{m,0} \sim \mathrm{Cat}(\pi_m), \qquad
    z_{m,t} \mid z_{m,t-1} \sim \mathrm{Cat}(A_{m,z_{m,t-1}}), \qquad
    x_t \mid z_{1,t}, \dots, z_{M,t} \sim p\Big(x \,\Big|\, \sum_m W_{m,z_{m,t}}\Big),

where the sum is the mean of a Gaussian with one diagonal covariance for all states, or the
logits of Bernoullis. Chains are numbered from 0 in the names of sites: ``z0_0``, ``z1_0``, ….

References:
    | Factorial hidden Markov models (Ghahramani & Jordan, 1997)
    | https://doi.org/10.1023/A:1007425814087

Shapes: N data, T steps, M chains, K states of each, D features; * is (N,), (P, N), or (K, 1)
with one dim or more where states are enumerated.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pplvm.models.sequences import check_lengths, whole


class FactorialHMM(nn.Module):
    """Creates a model of M chains with K states each.

    Args:
        num_chains: M.
        num_states: K.
        obs_dim: D.
        emission: "gaussian", or "bernoulli", of features 0 and 1.

    Raises:
        ValueError: if the emission is another one.
    """

    def __init__(
        self, num_chains: int, num_states: int, obs_dim: int, emission: str = "gaussian"
    ) -> None:
        super().__init__()
        if emission not in ("gaussian", "bernoulli"):
            raise ValueError(f"'emission' should be 'gaussian' or 'bernoulli', got '{emission}'.")
        M, K, D = num_chains, num_states, obs_dim
        self.num_chains = M
        self.log_pi = nn.Parameter(torch.zeros(M, K))  # (M, K), up to a constant
        self.log_A = nn.Parameter(0.1 * torch.randn(M, K, K))  # (M, K, K), row by row
        self.W = nn.Parameter(torch.randn(M, K, D) / M**0.5)  # (M, K, D)
        self.log_s = nn.Parameter(torch.zeros(D)) if emission == "gaussian" else None  # (D,)

    def emit(self, z: list[Tensor]) -> dist.TorchDistribution:
        """Returns the distribution of an observation in states z, M of shape (*,)."""
        total = sum(self.W[m][z[m]] for m in range(self.num_chains))  # (*, D)
        if self.log_s is None:
            return dist.Bernoulli(logits=total).to_event(1)
        return dist.Normal(total, self.log_s.exp()).to_event(1)

    def check_data(self, x: Tensor, lengths: Tensor) -> None:
        """Raises a ``ValueError`` for lengths that x has not."""
        check_lengths(x, lengths)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Observes x and returns it; unconditioned, returns a dream, 0 beyond the lengths.

        Args:
            x: Of shape (N, T, D).
            lengths: How many steps of each sequence count, (N,).
        """
        N, T, _ = x.shape
        dream, z = [], [None] * self.num_chains
        with pyro.plate("data", N, dim=-1):
            for t in pyro.markov(range(T)):
                seen = x[:, t]  # (N, D)
                with pyro.poutine.mask(mask=t < lengths):
                    for m in range(self.num_chains):
                        logits = self.log_pi[m] if t == 0 else self.log_A[m][z[m]]  # (K,), (*, K)
                        z[m] = pyro.sample(f"z{m}_{t}", dist.Categorical(logits=logits))  # (*,)
                    x_t = pyro.sample(f"x_{t}", self.emit(z), obs=seen)
                if x_t is not seen:  # not observed, that is, but dreamt
                    dream.append(x_t)
        return whole(dream, x, lengths) if dream else x
