r"""The mean field of latent Dirichlet allocation, its assignments summed out.

With :math:`\tilde\theta = \exp \mathbb E[\log \theta]`, :math:`\tilde\beta = \exp \mathbb E[\log \beta]`
and counts c, its ELBO is

.. math:: \mathcal L = \sum_{dw} c_{dw} \log \sum_k \tilde\theta_{dk} \tilde\beta_{kw}
    - \sum_d \mathrm{KL}(q(\theta_d) \,\|\, p) - \sum_k \mathrm{KL}(q(\beta_k) \,\|\, p).

The slopes of its first term in :math:`\log \tilde\theta` and :math:`\log \tilde\beta` are expected
counts, and a Dirichlet factor is best where its concentration is that of the prior and the slope, as
in every conjugate model.

References:
    | Latent Dirichlet Allocation (Blei et al., 2003)
    | https://www.jmlr.org/papers/v3/blei03a.html

Shapes: N documents, V words, K topics; B documents of a block, T words of its longest.
"""

__all__ = ["MeanField", "one_thread", "posterior"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from pyro import distributions as dist
from scipy.sparse import csr_array
from torch import Tensor
from torch.distributions import kl_divergence

from pplvm.batches import mix
from pplvm.topics.concentrations import expected_log, most_likely, most_likely_symmetric
from pplvm.topics.documents import Block, blocks, lengths, log_coefficients

_CLOSE = 1e-3  # mean change of a document's concentrations after which it is done
_TINY = 1e-30
# While topics form, documents that follow them closely lead to worse ones: on 20 Newsgroups, held-out
# perplexity is 1393 after three epochs of 5 updates of each document, 1479 of 20.
_INNER, _SETTLED = 5, 200
_SOME, _OWN = (
    2000,
    0.03,
)  # documents to read for the common words, the share of a topic's own; arbitrary


def posterior(counts: csr_array, concentration: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Returns q(theta) of any documents at given topics, and the ELBO but for the topics' divergence.

    Args:
        counts: Their words, (N, V).
        concentration: Of q(beta), (K, V).
        alpha: The concentration of the prior, (K,).

    Returns:
        Concentrations (N, K), and bounds (N,) in nats, without the multinomial coefficient.
    """
    words = expected_log(concentration).exp().T.contiguous()  # (V, K)
    gamma = _start(counts, alpha)
    bound = torch.empty_like(gamma[:, 0])
    with one_thread():
        for block in blocks(counts, gamma.dtype):
            found = _e_step(block, words, alpha, gamma[block.rows], _SETTLED)
            gamma[block.rows], bound[block.rows] = found.gamma, found.bound
    return gamma, bound


class MeanField:
    """Creates the mean field of documents (N, V); each topic starts near a document of its own."""

    def __init__(
        self, counts: csr_array, num_topics: int, alpha: float, eta: float, seed: int
    ) -> None:
        self.counts, self.N = counts, counts.shape[0]
        dtype, random = torch.get_default_dtype(), np.random.default_rng(mix(seed, 8))
        self.concentration = torch.as_tensor(
            eta + _first_topics(counts, num_topics, random), dtype=dtype
        )
        self.alpha = torch.full((num_topics,), float(alpha), dtype=dtype)
        self.eta = torch.tensor(float(eta), dtype=dtype)
        self.gamma: Tensor | None = None  # (N, K), of the batch form
        self.s = expected_log(self.alpha)  # (K,): running mean of E[log theta]

    def sweep(self) -> float:
        """Updates all documents and then the topics; returns the ELBO in between."""
        if self.gamma is None:
            self.gamma = _start(self.counts, self.alpha)
            self.constant = log_coefficients(self.counts).mean().item()
        bound, slope, self.s = self._documents(self.counts, self.gamma)
        total = bound / self.N - self._divergence() / self.N + self.constant
        self.concentration = self.eta + slope
        return total

    def step(self, part: csr_array, rho: float) -> float:
        """Updates the documents of a minibatch, takes a step, and returns its ELBO."""
        B = part.shape[0]
        bound, slope, s = self._documents(part, _start(part, self.alpha))
        total = (bound / B) - self._divergence() / self.N + log_coefficients(part).mean().item()
        target = self.eta + self.N / B * slope
        self.concentration = torch.lerp(self.concentration, target, rho)
        self.s = torch.lerp(self.s, s, rho)
        return total

    def learn(self, alpha: bool, eta: bool) -> None:
        """Sets the priors' concentrations to the likeliest."""
        if alpha:
            self.alpha = most_likely(self.s, self.alpha)
        if eta:
            s = expected_log(self.concentration).mean()
            self.eta = most_likely_symmetric(s, self.eta, self.concentration.shape[1])

    def _documents(self, counts: csr_array, gamma: Tensor) -> tuple[float, Tensor, Tensor]:
        """Updates gamma in place: the sum of bounds, the slope (K, V), and the mean E[log theta]."""
        words = expected_log(self.concentration).exp().T.contiguous()  # (V, K)
        slope, total, s = torch.zeros_like(words), 0.0, torch.zeros_like(self.alpha)
        for block in blocks(counts, words.dtype):
            found = _e_step(block, words, self.alpha, gamma[block.rows], _INNER)
            gamma[block.rows] = found.gamma
            total += found.bound.sum(dtype=torch.float64).item()
            s += expected_log(found.gamma).sum(0)
            share = found.ratio.unsqueeze(-1) * found.theta.unsqueeze(1)  # (B, T, K)
            slope.index_add_(0, block.words.flatten(), share.flatten(0, 1))
        return total, (slope * words).T, s / counts.shape[0]

    def _divergence(self) -> float:
        prior = dist.Dirichlet(self.eta.expand_as(self.concentration), validate_args=False)
        own = dist.Dirichlet(self.concentration, validate_args=False)
        return kl_divergence(own, prior).sum().item()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch to one thread: operations on blocks are so small that several wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Found(NamedTuple):
    """Of the documents of a block."""

    gamma: Tensor  # (B, K)
    theta: Tensor  # (B, K): exp E[log theta]
    ratio: Tensor  # (B, T): counts over their expected probabilities
    bound: Tensor  # (B,), without the multinomial coefficient


def _e_step(block: Block, words: Tensor, alpha: Tensor, gamma: Tensor, inner: int) -> _Found:
    """Updates q(theta) of the documents of a block, at exp E[log beta] of all words, (V, K)."""
    beta = words[block.words]  # (B, T, K)
    gamma = _settled(beta, block.counts, alpha, gamma, inner)
    theta, p = _expected(beta, gamma)
    prior = dist.Dirichlet(alpha.expand_as(gamma), validate_args=False)
    divergence = kl_divergence(dist.Dirichlet(gamma, validate_args=False), prior)
    bound = (block.counts * p.log()).sum(-1) - divergence
    return _Found(gamma, theta, block.counts / p, bound)


def _settled(beta: Tensor, counts: Tensor, alpha: Tensor, gamma: Tensor, inner: int) -> Tensor:
    """Updates each document of a block until it is done, whatever the others do."""
    found = gamma.clone()
    rows = torch.arange(len(gamma))  # of documents that are still updated
    moving = torch.ones(len(gamma), dtype=torch.bool)
    for _ in range(inner):
        if 4 * moving.sum() < 3 * len(rows):  # a copy costs as much as an update
            rows, gamma, beta, counts = rows[moving], gamma[moving], beta[moving], counts[moving]
            moving = moving[moving]
        if not moving.any():
            break
        theta, p = _expected(beta, gamma)
        updated = alpha + theta * torch.bmm((counts / p).unsqueeze(1), beta).squeeze(1)
        updated = torch.where(moving.unsqueeze(-1), updated, gamma)
        moving &= (updated - gamma).abs().mean(-1) >= _CLOSE
        found[rows] = gamma = updated
    return found


def _expected(beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns exp E[log theta], (B, K), and what it expects of words, (B, T)."""
    theta = expected_log(gamma).exp()
    return theta, torch.bmm(beta, theta.unsqueeze(-1)).squeeze(-1) + _TINY


def _first_topics(counts: csr_array, num_topics: int, random: np.random.Generator) -> np.ndarray:
    """Returns expected counts (K, V) to start with: those of all words, and a little of a document.

    Noise in the place of documents leaves topics without any, for good, where documents are long.
    """
    N, totals = counts.shape[0], lengths(counts).numpy()
    some = counts[np.sort(random.choice(N, min(N, _SOME), replace=False))]
    common = np.asarray(some.sum(0), float).ravel() + 0.5
    filled = np.flatnonzero(totals)
    rows = random.choice(filled if len(filled) else N, num_topics, replace=len(filled) < num_topics)
    own = counts[rows].toarray().astype(float)
    own /= own.sum(1, keepdims=True).clip(min=1.0)
    shape = (1 - _OWN) * common / common.sum() + _OWN * own
    return totals.sum() / num_topics * shape


def _start(counts: csr_array, alpha: Tensor) -> Tensor:
    """Returns concentrations (N, K) of documents whose words are shared out evenly."""
    return alpha + lengths(counts).to(alpha).unsqueeze(-1) / len(alpha)
