r"""Naive Bayes with a class that is latent, a mixture of Bernoullis or of multinomials:

.. math:: k \sim \mathrm{Cat}(\pi), \qquad
    x_d \mid k \sim \mathrm{Bern}\big(\mathrm{sigmoid}(W_{kd})\big) \quad \text{or} \quad
    x \mid k \sim \mathrm{Mult}\big(n, \mathrm{softmax}(W_k)\big),

with as many draws n of a multinomial as the datum counts; and with priors that are conditionally
conjugate,

.. math:: \pi \sim \mathrm{Dir}(\alpha, \dots, \alpha), \qquad
    \phi_{kd} \sim \mathrm{Beta}(\beta, \beta) \quad \text{or} \quad
    \phi_k \sim \mathrm{Dir}(\beta, \dots, \beta),

for the probabilities of features or words.

References:
    | A comparison of event models for naive Bayes text classification (McCallum & Nigam, 1998)
    | https://cdn.aaai.org/Workshops/1998/WS-98-05/WS98-05-007.pdf

    | Text classification from labeled and unlabeled documents using EM (Nigam et al., 2000)
    | https://doi.org/10.1023/A:1007692713085

Shapes: N data, D features, K classes; * is (N,), (P, N), or (K, 1) where k is enumerated.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pplvm.models.counts import Multinomial


class NaiveBayes(nn.Module):
    """Creates a mixture of K classes over D features.

    Args:
        obs_dim: D.
        num_classes: K.
        likelihood: "bernoulli", of features 0 and 1, or "multinomial", of counts.

    Raises:
        ValueError: if the likelihood is another one.
    """

    def __init__(self, obs_dim: int, num_classes: int, likelihood: str = "bernoulli") -> None:
        super().__init__()
        self.likelihood = known(likelihood)
        self.log_pi = nn.Parameter(torch.zeros(num_classes))  # (K,), up to a constant
        self.W = nn.Parameter(0.1 * torch.randn(num_classes, obs_dim))  # (K, D)

    def forward(self, x: Tensor) -> Tensor:
        """Observes x, of shape (N, D), and returns it.

        Unconditioned, it returns a dream; a multinomial one has the total of each datum.
        """
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=self.log_pi))  # (*,)
            W = self.W[k]  # (*, D)
            if self.likelihood == "bernoulli":
                return pyro.sample("x", dist.Bernoulli(logits=W).to_event(1), obs=x)
            return pyro.sample("x", Multinomial(x.sum(-1), logits=W), obs=x)


class BayesianNaiveBayes(nn.Module):
    """Creates a mixture of K classes over D features, all of whose parameters have priors.

    Args:
        obs_dim: D.
        num_classes: K.
        likelihood: "bernoulli", of features 0 and 1, or "multinomial", of counts.
        concentration: α. It and the next one are arbitrary defaults: uniform priors.
        feature_concentration: β.

    Raises:
        ValueError: if the likelihood is another one.
    """

    def __init__(
        self,
        obs_dim: int,
        num_classes: int,
        likelihood: str = "bernoulli",
        *,
        concentration: float = 1.0,
        feature_concentration: float = 1.0,
    ) -> None:
        super().__init__()
        self.obs_dim, self.num_classes, self.likelihood = obs_dim, num_classes, known(likelihood)
        self.concentration, self.feature_concentration = concentration, feature_concentration

    def forward(self, x: Tensor) -> Tensor:
        """Observes x, of shape (N, D), and returns it; unconditioned, returns a dream."""
        K, beta = self.num_classes, self.feature_concentration * x.new_ones(self.obs_dim)
        pi = pyro.sample(
            "pi", dist.Dirichlet(self.concentration * x.new_ones(K))
        )  # (K,), (P, 1, K)
        with pyro.plate("classes", K, dim=-1):
            binary = self.likelihood == "bernoulli"
            prior = dist.Beta(beta, beta).to_event(1) if binary else dist.Dirichlet(beta)
            phi = pyro.sample("phi", prior)  # (K, D), (P, K, D)
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(pi))  # (*,)
            # A product where phi[k] would do, were there not a phi for each particle.
            own = torch.eye(K, dtype=x.dtype, device=x.device)[k] @ phi  # (*, D)
            if binary:
                return pyro.sample("x", dist.Bernoulli(own).to_event(1), obs=x)
            return pyro.sample("x", Multinomial(x.sum(-1), own), obs=x)


def known(likelihood: str) -> str:
    """Returns the likelihood, if there is one of this name."""
    if likelihood not in ("bernoulli", "multinomial"):
        raise ValueError(
            f"'likelihood' should be 'bernoulli' or 'multinomial', got '{likelihood}'."
        )
    return likelihood
