r"""Hidden Markov model of sequences that differ in length:

.. math:: z_0 \sim \mathrm{Cat}(\pi), \qquad z_t \mid z_{t-1} \sim \mathrm{Cat}(A_{z_{t-1}}), \qquad
    x_t \mid z_t \sim p(x \mid W_{z_t}),

with an emission that is categorical, Gaussian, Poisson or Bernoulli; and a neural one, whose
states and observations see the observation before, :math:`x_{-1} = 0`:

.. math:: z_t \mid z_{t-1}, x_{t-1} \sim \mathrm{Cat}\big(f_\theta(z_{t-1}, x_{t-1})\big), \qquad
    x_t \mid z_t, x_{t-1} \sim \mathrm{Bern}\big(h_\theta(z_t, x_{t-1})\big).

References:
    | A tutorial on hidden Markov models and selected applications in speech recognition
      (Rabiner, 1989)
    | https://doi.org/10.1109/5.18626

    | Unsupervised neural hidden Markov models (Tran et al., 2016)
    | https://arxiv.org/abs/1609.09007

    | Autoregressive observations: Pyro's example of hidden Markov models
    | https://pyro.ai/examples/hmm.html

Shapes: N data, T steps, K states, D features, H hidden units; * is (N,), (P, N), or (K, 1) with
one dim or more where states are enumerated.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pplvm.models.sequences import check_lengths, whole

EMISSIONS = ("categorical", "gaussian", "poisson", "bernoulli")


class HMM(nn.Module):
    """Creates a model of sequences with K states.

    Args:
        num_states: K.
        obs_dim: D: features, or symbols of the categorical emission.
        emission: "categorical", of symbols 0 to D - 1; "gaussian" with a scale for each state
            and feature; "poisson", of counts; or "bernoulli", of features 0 and 1.

    Raises:
        ValueError: if the emission is another one.
    """

    def __init__(self, num_states: int, obs_dim: int, emission: str = "categorical") -> None:
        super().__init__()
        if emission not in EMISSIONS:
            raise ValueError(f"'emission' should be one of {EMISSIONS}, got '{emission}'.")
        self.emission = emission
        self.log_pi = nn.Parameter(torch.zeros(num_states))  # (K,), up to a constant
        self.log_A = nn.Parameter(0.1 * torch.randn(num_states, num_states))  # (K, K), row by row
        self.W = nn.Parameter(torch.randn(num_states, obs_dim))  # (K, D)
        if emission == "gaussian":
            self.log_s = nn.Parameter(torch.zeros(num_states, obs_dim))  # (K, D)

    def emit(self, z: Tensor) -> dist.TorchDistribution:
        """Returns the distribution of an observation in states z, of shape (*,)."""
        W = self.W[z]  # (*, D): logits, means or logarithms of rates
        if self.emission == "categorical":
            return dist.Categorical(logits=W)
        if self.emission == "gaussian":
            return dist.Normal(W, self.log_s[z].exp()).to_event(1)
        if self.emission == "poisson":
            return dist.Poisson(W.exp()).to_event(1)
        return dist.Bernoulli(logits=W).to_event(1)

    def check_data(self, x: Tensor, lengths: Tensor) -> None:
        """Raises a ``ValueError`` for lengths that x has not."""
        check_lengths(x, lengths)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Observes x and returns it; unconditioned, returns a dream, 0 beyond the lengths.

        Args:
            x: Of shape (N, T, D), or (N, T) with the categorical emission.
            lengths: How many steps of each sequence count, (N,).
        """
        dream, z = [], None
        with pyro.plate("data", len(x), dim=-1):
            for t in pyro.markov(range(x.shape[1])):
                seen = x[:, t]  # (N, D) or (N,)
                with pyro.poutine.mask(mask=t < lengths):
                    logits = self.log_pi if t == 0 else self.log_A[z]  # (K,) or (*, K)
                    z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))  # (*,)
                    x_t = pyro.sample(f"x_{t}", self.emit(z), obs=seen)
                if x_t is not seen:  # not observed, that is, but dreamt
                    dream.append(x_t)
        return whole(dream, x, lengths) if dream else x


class NeuralHMM(nn.Module):
    """Creates a model of binary sequences with K states; H is an arbitrary default.

    An embedding of the state and one of the observation before are added, and go through one
    hidden layer to the logits: of the next state, and of this observation.
    """

    def __init__(self, num_states: int, obs_dim: int, hidden_dim: int = 32) -> None:
        super().__init__()
        K, D, H = num_states, obs_dim, hidden_dim
        self.log_pi = nn.Parameter(torch.zeros(K))  # (K,), up to a constant
        self.moving = nn.Parameter(torch.randn(K, H))  # of a state, for what comes next
        self.emitting = nn.Parameter(torch.randn(K, H))  # of a state, for what it emits
        self.before = nn.Linear(D, 2 * H)
        self.transition = nn.Sequential(nn.Tanh(), nn.Linear(H, K))
        self.emission = nn.Sequential(nn.Tanh(), nn.Linear(H, D))

    def check_data(self, x: Tensor, lengths: Tensor) -> None:
        """Raises a ``ValueError`` for lengths that x has not."""
        check_lengths(x, lengths)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Observes x and returns it; unconditioned, returns a dream, 0 beyond the lengths.

        Args:
            x: Of shape (N, T, D).
            lengths: How many steps of each sequence count, (N,).
        """
        dream, z = [], None
        with pyro.plate("data", len(x), dim=-1):
            for t in pyro.markov(range(x.shape[1])):
                seen = x[:, t]  # (N, D)
                before = x[:, t - 1] if t > 0 else torch.zeros_like(seen)
                if dream:  # which is to follow on what was dreamt, not on the data
                    before = dream[-1]
                to_z, to_x = self.before(before).chunk(2, dim=-1)  # (N, H) each
                with pyro.poutine.mask(mask=t < lengths):
                    logits = self.log_pi if t == 0 else self.transition(self.moving[z] + to_z)
                    z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))  # (*,)
                    notes = dist.Bernoulli(logits=self.emission(self.emitting[z] + to_x))  # (*, D)
                    x_t = pyro.sample(f"x_{t}", notes.to_event(1), obs=seen)
                if x_t is not seen:  # not observed, that is, but dreamt
                    dream.append(x_t)
        return whole(dream, x, lengths) if dream else x
