r"""Guides for :mod:`models.lda`, with a Dirichlet for each topic and one of three families for the
proportions of a document:

.. math::
    q(\beta_k) &= \mathrm{Dir}(\lambda_k) \\
    \text{LDAGuide} &:& q(\theta \mid x) =
        \mathrm{Dir}\big(a + n\, \mathrm{softmax}(c\, g_\phi(x))\big) \\
    \text{LDALogisticNormal} &:& \theta = \mathrm{softmax}(u_1, \dots, u_{K-1}, 0), \quad
        q(u \mid x) = \mathcal N\big(c\, m_\phi(x), \mathrm{diag}(s_\phi(x)^2)\big) \\
    \text{LDAMeanField} &:& q(\theta_d) = \mathrm{Dir}(\gamma_d).

The best mean field has the form of the first: its :math:`\gamma_d` is α plus each topic's share of the n
tokens. A Dirichlet is reparameterised implicitly. Each guide serves both stories, of counts and of
tokens, whose topics z are left to be summed out.

References:
    | Autoencoding variational inference for topic models (Srivastava & Sutton, 2017)
    | https://arxiv.org/abs/1703.01488

    | Online learning for latent Dirichlet allocation (Hoffman, Blei & Bach, 2010)
    | https://papers.nips.cc/paper/3902-online-learning-for-latent-dirichlet-allocation

    | Implicit reparameterization gradients (Figurnov, Mohamed & Mnih, 2018)
    | https://arxiv.org/abs/1805.08498

Shapes as in the model.
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints, transforms
from torch import Size, Tensor, nn
from torch.nn.functional import pad

from pplvm.models.bags import Encoder, check_counts, normal_points
from pplvm.models.lda import bag, check_tokens


class Topics(nn.Module):
    """Creates the Dirichlets of topics, Dir(100) but for gamma noise that tells them apart.

    The noise is that of Hoffman et al. (2010). The concentration 100, where theirs is 1, is arbitrary:
    draws at the start are close to their means, so that documents find topics that differ.
    """

    def __init__(self, num_words: int, num_topics: int) -> None:
        super().__init__()
        self.num_words = num_words
        noise = dist.Gamma(torch.tensor(100.0), 1.0).sample((num_topics, num_words))
        self.log_lambda = nn.Parameter(noise.log())  # (K, V)

    def topics(self) -> Tensor:
        """Returns the means of the topics, (K, V)."""
        return self.log_lambda.softmax(-1)

    def sample_topics(self) -> Tensor:
        """Samples beta, (K, V) or (P, K, V)."""
        with pyro.plate("topics", len(self.log_lambda), dim=-1):
            return pyro.sample("beta", dist.Dirichlet(self.log_lambda.exp()))

    def check_data(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Raises a ``ValueError`` for what are no counts, or no tokens if there are lengths."""
        if lengths is None:
            check_counts(x, self.num_words)
        else:
            check_tokens(x, lengths, self.num_words)


class LDAGuide(Topics):
    """Creates the amortised guide of Dirichlet proportions.

    Args:
        num_words: V.
        num_topics: K; it and the next one are arbitrary defaults.
        hidden_dims: The widths of the encoder's layers.
    """

    def __init__(
        self, num_words: int, num_topics: int = 20, hidden_dims: Sequence[int] = (256, 256)
    ) -> None:
        super().__init__(num_words, num_topics)
        self.encoder = Encoder(num_words, hidden_dims, num_topics)
        self.log_gain = nn.Parameter(
            torch.zeros(())
        )  # of c: batch normalisation alone cannot say "one topic"
        self.log_a = nn.Parameter(torch.full((num_topics,), 1 / num_topics).log())  # (K,)

    def gamma(self, x: Tensor) -> Tensor:
        """Returns the concentrations (N, K) given counts x, (N, V)."""
        return self.log_a.exp() + x.sum(-1, keepdim=True) * (
            self.log_gain.exp() * self.encoder(x)
        ).softmax(-1)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Samples beta, and theta given counts (N, V), or tokens (N, T) and lengths (N,)."""
        x = x if lengths is None else bag(x, lengths, self.num_words)
        self.sample_topics()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("theta", dist.Dirichlet(self.gamma(x)))  # (*, K)

    def proportions(self, x: Tensor) -> Tensor:
        """Returns the mean proportions (N, K) of documents, counts (N, V)."""
        gamma = self.gamma(x)
        return gamma / gamma.sum(-1, keepdim=True)


class LDALogisticNormal(Topics):
    """Creates the amortised guide of logistic-normal proportions; arguments as in LDAGuide."""

    def __init__(
        self, num_words: int, num_topics: int = 20, hidden_dims: Sequence[int] = (256, 256)
    ) -> None:
        super().__init__(num_words, num_topics)
        self.encoder = Encoder(num_words, hidden_dims, 2 * (num_topics - 1))
        self.log_gain = nn.Parameter(
            torch.zeros(())
        )  # of c: batch normalisation alone cannot say "one topic"

    def logistic_normal(self, x: Tensor) -> dist.TransformedDistribution:
        """Returns the distribution of proportions, (N,), of K shares, given counts x, (N, V)."""
        m, log_s = self.encoder(x).chunk(2, dim=-1)  # (N, K - 1) each
        u = dist.Normal(self.log_gain.exp() * m, (0.5 * log_s).exp()).to_event(1)
        return dist.TransformedDistribution(u, LogRatios(cache_size=1))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Samples beta, and theta given counts (N, V), or tokens (N, T) and lengths (N,)."""
        x = x if lengths is None else bag(x, lengths, self.num_words)
        self.sample_topics()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("theta", self.logistic_normal(x))  # (*, K)

    def proportions(self, x: Tensor) -> Tensor:
        """Returns the mean proportions (N, K) of documents, counts (N, V), at fixed quantiles."""
        u = self.logistic_normal(x).base_dist.base_dist
        points = u.loc + u.scale * normal_points(u.loc.shape[-1]).to(u.loc)  # (S, N, K - 1)
        return LogRatios()(points).mean(0)


class LogRatios(transforms.Transform):
    """Log-ratios to the last share, (*, K - 1), turned into shares, (*, K).

    Their logarithms are taken where they are exact: shares that round to 0 would have densities that
    a bound could be raised with.
    """

    domain, codomain = constraints.real_vector, constraints.simplex
    bijective = True

    def _call(self, u: Tensor) -> Tensor:
        theta = pad(u, (0, 1)).softmax(-1)
        return theta.clamp(min=torch.finfo(theta.dtype).tiny)

    def _inverse(self, theta: Tensor) -> Tensor:
        return theta[..., :-1].log() - theta[..., -1:].log()

    def log_abs_det_jacobian(self, u: Tensor, theta: Tensor) -> Tensor:
        """Returns the sum of the logarithms of all K shares, (*)."""
        return pad(u, (0, 1)).log_softmax(-1).sum(-1)

    def forward_shape(self, shape: Size) -> Size:
        """Returns the shape of shares."""
        return Size([*shape[:-1], shape[-1] + 1])

    def inverse_shape(self, shape: Size) -> Size:
        """Returns the shape of log-ratios."""
        return Size([*shape[:-1], shape[-1] - 1])


class LDAMeanField(Topics):
    """Creates the guide with a Dirichlet of its own for each of N documents.

    Args:
        num_data: N.
        num_words: V.
        num_topics: K, an arbitrary default.
    """

    def __init__(self, num_data: int, num_words: int, num_topics: int = 20) -> None:
        super().__init__(num_words, num_topics)
        self.log_gamma = nn.Parameter(torch.zeros(num_data, num_topics))  # (N, K)

    def check_data(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Raises a ``ValueError`` for what :class:`Topics` refuses, or other than N documents."""
        super().check_data(x, lengths)
        if len(x) != len(self.log_gamma):
            raise ValueError(
                f"'num_data' of LDAMeanField is {len(self.log_gamma)}, got {len(x)} documents: it has "
                "parameters for each, so give it all of them at once, or use an amortised guide."
            )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Samples beta and theta: for all the documents that it has parameters for."""
        self.sample_topics()
        with pyro.plate("data", len(self.log_gamma), dim=-1):
            pyro.sample("theta", dist.Dirichlet(self.log_gamma.exp()))  # (*, K)

    def proportions(self, x: Tensor) -> Tensor:
        """Returns the mean proportions (N, K) of its documents."""
        self.check_data(x)
        return self.log_gamma.softmax(-1)
