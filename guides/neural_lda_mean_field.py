r"""Guide for :mod:`models.neural_lda` without a network: updates find each document's own Gaussian,

.. math::
    q(h \mid x) = \mathcal N\big(m, \mathrm{diag}(s^2)\big), \qquad
    m \leftarrow m + r\, \frac{g - \Lambda (m - \mu)}{\mathrm{diag}(\Lambda) + c}, \qquad
    s^2 \leftarrow \frac{1}{\mathrm{diag}(\Lambda) + c},

from the prior :math:`\mathcal N(\mu, \Lambda^{-1})` on, with slope g and curvature c of log p(x | h). A
mixture has its tokens shared out, :math:`\phi_{wk} \propto \theta_k \beta_{kw}`, and the normaliser of
its softmax bounded by means of :math:`\zeta = \mathrm{softmax}(m + s^2 / 2)`. The linear likelihood has
Laplace's approximation; p are the words' probabilities at m, and J is W less its mean over topics:

.. math::
    \text{mixture} &:& g = \textstyle\sum_w x_w \phi_w - n \zeta, \quad c = n \zeta, \quad r = 1 \\
    \text{linear} &:& g = J (x - n p), \quad c_k = n \mathrm{Var}_p(J_k), \quad r = 1/4.

However its Gaussians are found, their ELBO is one: what the formulas leave out makes it less tight, and
nothing else.

References:
    | A correlated topic model of Science (Blei & Lafferty, 2007), the mixture
    | https://doi.org/10.1214/07-AOAS114

    | Variational inference in nonconjugate models (Wang & Blei, 2013), the Laplace approximation
    | https://arxiv.org/abs/1209.4360

Shapes as in the model.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pplvm.models.bags import check_counts, mean_softmax
from pplvm.models.neural_lda import NeuralLDA

# Updates in training and afterwards. While topics form, documents that follow them closely lead to
# worse ones: a mixture's held-out perplexity on 20 Newsgroups is 1384 after 16 epochs of 8, 1425 of 20.
_FEW, _MANY = 8, 50
_FARTHEST = 2.0  # that a mean moves in an update; arbitrary
_TINY = 1e-30  # words of no topic have probabilities that round to 0


class NeuralLDAMeanField(nn.Module):
    """Creates the guide. It learns nothing of its own: its updates ask the story for topics and prior.

    Args:
        model: The story, of a mixture or linear.

    Raises:
        ValueError: if the likelihood is a product.
    """

    def __init__(self, model: NeuralLDA) -> None:
        super().__init__()
        if model.likelihood == "product":
            raise ValueError(
                "'model' has the likelihood 'product', which has no updates here: use NeuralLDAGuide."
            )
        self.model = model

    def gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean and scale of h, (N, K) each, given counts x, (N, V); without gradients."""
        with torch.no_grad():
            at = (_mixture if self.model.likelihood == "mixture" else _linear)(self.model, x)
            mu, C = self.model.prior()
            precision = torch.cholesky_inverse(C)
            own = precision.diagonal()  # (K,)
            m, s2 = mu.expand(len(x), -1), own.reciprocal().expand(len(x), -1)
            for _ in range(_FEW if self.training else _MANY):
                g, c, rate = at(m, s2)
                step = (g - (m - mu) @ precision) / (own + c)
                m = m + rate * step.clamp(-_FARTHEST, _FARTHEST)
                s2 = (s2 / (own + c)).sqrt()  # the geometric mean of both, or it swings
            return m, s2.sqrt()

    def check_data(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless x is of shape (N, V) and of counts."""
        check_counts(x, self.model.num_words)

    def forward(self, x: Tensor) -> None:
        """Samples h given counts x, of shape (N, V)."""
        m, s = self.gaussian(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("h", dist.Normal(m, s).to_event(1))  # (*, K)

    def proportions(self, x: Tensor) -> Tensor:
        """Returns the mean proportions (N, K) of documents, counts (N, V), at fixed points."""
        return mean_softmax(*self.gaussian(x))


# At a mean and variances, (N, K) each: g and c, (N, K) each, and r.
Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, float]]


def _mixture(model: NeuralLDA, x: Tensor) -> Slopes:
    beta, total = model.topics(), x.sum(-1, keepdim=True)  # (K, V), (N, 1)

    def at(m: Tensor, s2: Tensor) -> tuple[Tensor, Tensor, float]:
        theta, n = m.softmax(-1), total * (m + s2 / 2).softmax(-1)
        p = (theta @ beta).clamp(min=_TINY)  # (N, V)
        return theta * ((x / p) @ beta.T) - n, n, 1.0

    return at


def _linear(model: NeuralLDA, x: Tensor) -> Slopes:
    W, total = model.weights(), x.sum(-1, keepdim=True)
    J = W - W.mean(0)  # (K, V)
    square = J**2

    def at(m: Tensor, s2: Tensor) -> tuple[Tensor, Tensor, float]:
        p = (m @ J + model.b).softmax(-1)  # (N, V)
        return (x - total * p) @ J.T, total * (p @ square.T - (p @ J.T) ** 2), 0.25

    return at
