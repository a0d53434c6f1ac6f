r"""What stories and guides of documents have in common: counts that are none, and a network for them.

Batch normalisation is over data, within each particle,

.. math:: \hat a_{nd} = c_d \frac{a_{nd} - m_d}{\sqrt{v_d + \epsilon}} + b_d,

with the mean and variance of the minibatch in training and running averages of both afterwards, when
a document is encoded as if it were alone. Its scales c are learned or 1.

References:
    | Batch normalization (Ioffe & Szegedy, 2015)
    | https://arxiv.org/abs/1502.03167

Shapes: N data, V words, D features; * is () or (P,).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class BatchNorm(nn.Module):
    """Normalises features (*, N, D) over data; that of torch would mix particles.

    Args:
        num_features: D.
        momentum: The weight of a minibatch in the running averages.
        scaled: Whether to learn c.
    """

    def __init__(self, num_features: int, momentum: float = 0.1, *, scaled: bool = False) -> None:
        super().__init__()
        self.momentum = momentum
        if scaled:
            self.scale = nn.Parameter(torch.ones(num_features))  # (D,): c
        self.bias = nn.Parameter(torch.zeros(num_features))  # (D,)
        self.register_buffer("mean", torch.zeros(num_features))  # (D,)
        self.register_buffer("variance", torch.ones(num_features))  # (D,)

    def forward(self, a: Tensor) -> Tensor:
        """Returns the normalised features."""
        if not self.training:
            return self._scaled(a, self.mean, self.variance)
        mean = a.mean(-2, keepdim=True)  # (*, 1, D)
        variance = a.var(-2, correction=0, keepdim=True)
        with torch.no_grad():  # not in place, so that a step can be traced
            D = len(self.mean)
            self.mean = self.mean.lerp(mean.reshape(-1, D).mean(0), self.momentum)
            self.variance = self.variance.lerp(variance.reshape(-1, D).mean(0), self.momentum)
        return self._scaled(a, mean, variance)

    def _scaled(self, a: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        a = (a - mean) * (variance + 1e-5).rsqrt()
        return (self.scale * a if hasattr(self, "scale") else a) + self.bias


class Encoder(nn.Module):
    """Creates a network from counts (N, V) to outputs (N, D): softplus layers of log(1 + x).

    The outputs are normalised over data: without, topics die at the start of training, when all
    documents look alike to it.

    Args:
        num_words: V.
        hidden_dims: The widths of its layers.
        num_outputs: D.
        dropout: The share of the last layer's units that is left out in training.
    """

    def __init__(
        self, num_words: int, hidden_dims: Sequence[int], num_outputs: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths, layers = (num_words, *hidden_dims), []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.Softplus()]
        self.layers = nn.Sequential(
            *layers, nn.Dropout(dropout), nn.Linear(widths[-1], num_outputs), BatchNorm(num_outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs; the logarithm keeps counts of any size in reach."""
        return self.layers(x.to(self.layers[0].weight.dtype).log1p())


def normal_points(num_dims: int, num_points: int = 128) -> Tensor:
    """Returns points (S, 1, L) spread like a standard Gaussian, the same at every call."""
    u = torch.quasirandom.SobolEngine(num_dims, scramble=True, seed=0).draw(num_points)
    return torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))[:, None]


def mean_softmax(m: Tensor, s: Tensor) -> Tensor:
    """Returns the mean of softmax(h), (N, K), at fixed points of h ~ N(m, diag(s²)), (N, K) each."""
    return (m + s * normal_points(m.shape[-1]).to(m)).softmax(-1).mean(0)


def check_counts(x: Tensor, num_words: int) -> None:
    """Raises a ``ValueError`` unless x is of shape (N, V) and of counts."""
    if x.ndim != 2 or x.shape[1] != num_words:
        raise ValueError(
            f"'x' has shape {tuple(x.shape)}: give the counts of {num_words} words, of shape "
            f"(N, {num_words})."
        )
    wrong = ~((x >= 0) & (x == x.round()) & (x < torch.inf))  # NaN among them
    if wrong.any():
        row, word = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"'x' is {x[row, word].item():g} in row {row}, column {word}: counts are 0, 1, 2 and so on."
        )
