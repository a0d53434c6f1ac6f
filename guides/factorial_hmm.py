r"""Guides for :mod:`models.factorial_hmm`, in which all states are independent of each other:

.. math::
    \text{MeanField} &:& q(z_{n,m,t}) = \mathrm{Cat}\big(\mathrm{softmax}(\lambda_{n,m,t})\big) \\
    \text{AmortisedMeanField} &:&
        q(z_{m,t} \mid x) = \mathrm{Cat}\big(\mathrm{softmax}(g_{\phi,m}(x_t))\big),

with a multi-layer perceptron :math:`g_\phi` of one hidden layer that all steps share.

References:
    | Factorial hidden Markov models, section 3.4 (Ghahramani & Jordan, 1997)
    | https://doi.org/10.1023/A:1007425814087

Shapes as in the model, H hidden units.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class MeanField(nn.Module):
    """Creates an independent Categorical for each of the M chains at each of T steps of N data."""

    def __init__(self, num_data: int, num_steps: int, num_chains: int, num_states: int) -> None:
        super().__init__()
        size = num_data, num_steps, num_chains, num_states
        # Not 0: chains that start alike have gradients that are alike where the model's do.
        self.logits = nn.Parameter(0.1 * torch.randn(size))  # (N, T, M, K)

    def forward(self, x: Tensor, lengths: Tensor) -> None:
        """Samples states given x, (N, T, D), and lengths, (N,): all the data it was made for."""
        if x.shape[:2] != self.logits.shape[:2]:
            N, T = self.logits.shape[:2]
            raise ValueError(
                f"'num_data' and 'num_steps' of MeanField are {N} and {T}, got {len(x)} data of "
                f"{x.shape[1]} steps: it has parameters for each step of each datum, so give it all "
                "of them at once, or use an amortised guide."
            )
        sample_states(self.logits, lengths)


class AmortisedMeanField(nn.Module):
    """Creates independent Categoricals from a network of x_t; H is an arbitrary default."""

    def __init__(
        self, obs_dim: int, num_chains: int, num_states: int, hidden_dim: int = 64
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(obs_dim, hidden_dim),
            nn.Tanh(),
            nn.Linear(hidden_dim, num_chains * num_states),
            nn.Unflatten(-1, (num_chains, num_states)),
        )

    def forward(self, x: Tensor, lengths: Tensor) -> None:
        """Samples states given x, of shape (N, T, D), and lengths, (N,)."""
        sample_states(self.encoder(x), lengths)


def sample_states(logits: Tensor, lengths: Tensor) -> None:
    """Samples the state of every chain at every step, given logits (N, T, M, K)."""
    N, T, M, _ = logits.shape
    with pyro.plate("data", N, dim=-1):
        for t in pyro.markov(range(T)):
            with pyro.poutine.mask(mask=t < lengths):
                for m in range(M):
                    pyro.sample(f"z{m}_{t}", dist.Categorical(logits=logits[:, t, m]))  # (*,)
