r"""Guides for :mod:`models.factorial_hmm`, in which the chains are independent of each other:

.. math::
    \text{MeanField} &:& q(z_{n,m,t}) = \mathrm{Cat}\big(\mathrm{softmax}(\lambda_{n,m,t})\big) \\
    \text{AmortisedMeanField} &:&
        q(z_{m,t} \mid x) = \mathrm{Cat}\big(\mathrm{softmax}(g_{\phi,m}(x_t))\big) \\
    \text{StructuredMeanField} &:& q(z_{n,m}) \propto \exp \Big(
        \sum_t \lambda_{n,m,t,z_{n,m,t}} + \sum_{t > 0} B_{m,z_{n,m,t-1},z_{n,m,t}} \Big),

with a multi-layer perceptron :math:`g_\phi` of one hidden layer that all steps share. In the last one
a chain is drawn step by step, given what its later steps have yet to say, by a backward recursion.

References:
    | Factorial hidden Markov models, sections 3.4 and 3.5 (Ghahramani & Jordan, 1997)
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
        check_whole(self, x)
        sample_states(self.logits, lengths)


class StructuredMeanField(nn.Module):
    """Creates a Markov chain for each of the M chains of N data, of T steps."""

    def __init__(self, num_data: int, num_steps: int, num_chains: int, num_states: int) -> None:
        super().__init__()
        size = num_data, num_steps, num_chains, num_states
        self.logits = nn.Parameter(0.1 * torch.randn(size))  # λ, (N, T, M, K)
        self.moves = nn.Parameter(torch.zeros(num_chains, num_states, num_states))  # B, (M, K, K)

    def forward(self, x: Tensor, lengths: Tensor) -> None:
        """Samples states given x, (N, T, D), and lengths, (N,): all the data it was made for."""
        check_whole(self, x)
        N, T, M, _ = self.logits.shape
        ahead = [torch.zeros_like(self.logits[:, 0])]  # (N, M, K), of the last step first
        for t in range(T - 1, 0, -1):
            said = (self.logits[:, t] + ahead[-1])[:, :, None] + self.moves  # (N, M, K, K)
            known = (t < lengths)[:, None, None]
            ahead.append(torch.where(known, said.logsumexp(-1), 0.0))
        weights = self.logits + torch.stack(ahead[::-1], 1)  # (N, T, M, K)
        z = [None] * M
        with pyro.plate("data", N, dim=-1):
            for t in pyro.markov(range(T)):
                with pyro.poutine.mask(mask=t < lengths):
                    for m in range(M):
                        logits = weights[:, t, m]  # (N, K)
                        logits = logits if t == 0 else logits + self.moves[m][z[m]]  # (*, K)
                        z[m] = pyro.sample(f"z{m}_{t}", dist.Categorical(logits=logits))  # (*,)


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


def check_whole(guide: MeanField | StructuredMeanField, x: Tensor) -> None:
    """Raises a ``ValueError`` for data other than those that a guide has parameters for."""
    N, T = guide.logits.shape[:2]
    if x.shape[:2] != (N, T):
        raise ValueError(
            f"'num_data' and 'num_steps' of {type(guide).__name__} are {N} and {T}, got {len(x)} data "
            f"of {x.shape[1]} steps: it has parameters for each step of each datum, so give it all of "
            "them at once, or use an amortised guide."
        )
