r"""The concentrations of Dirichlet priors that make expected log-probabilities most likely.

Of n draws, of whose distributions only the mean statistics :math:`s = \mathbb E[\log p]` are known, the
log-density per draw is concave in :math:`\alpha`,

.. math:: F(\alpha) = \log\Gamma\big(\textstyle\sum_k \alpha_k\big) - \sum_k \log\Gamma(\alpha_k)
    + \sum_k (\alpha_k - 1)\, s_k,

and its Hessian is a diagonal plus a constant, so that a step of Newton's method takes linear time.

References:
    | Estimating a Dirichlet distribution (Minka, 2000), equations 14 to 18
    | https://tminka.github.io/papers/dirichlet/

    | Latent Dirichlet Allocation (Blei et al., 2003), appendix A.4.2
    | https://www.jmlr.org/papers/v3/blei03a.html

Shapes: K kinds.
"""

__all__ = ["expected_log", "most_likely", "most_likely_symmetric"]

import torch
from torch import Tensor

_MOST_STEPS, _SMALLEST = 50, 1e-6  # below which a kind is as good as gone; arbitrary


def expected_log(alpha: Tensor) -> Tensor:
    """Returns E[log p] of Dirichlet distributions with concentrations (*, K)."""
    return alpha.digamma() - alpha.sum(-1, keepdim=True).digamma()


def most_likely(s: Tensor, alpha: Tensor) -> Tensor:
    """Returns the concentrations (K,) that are most likely given mean statistics s, (K,).

    Args:
        s: The mean of E[log p], all below 0.
        alpha: Where to start, (K,).
    """
    return _climb(s.double(), alpha.double(), _step).to(alpha.dtype)


def most_likely_symmetric(s: Tensor, eta: Tensor, num_kinds: int) -> Tensor:
    """Returns the one concentration (), shared by all kinds, likely given the mean of s, ().

    Args:
        s: The mean of E[log p] over all kinds, too.
        eta: Where to start, ().
        num_kinds: K.
    """

    def step(s: Tensor, eta: Tensor) -> Tensor:
        K = num_kinds
        g = K * ((K * eta).digamma() - eta.digamma() + s)
        h = K * (K * torch.polygamma(1, K * eta) - torch.polygamma(1, eta))
        return -g / h

    return _climb(s.double(), eta.double(), step).to(eta.dtype)


def _step(s: Tensor, alpha: Tensor) -> Tensor:
    """Returns the step of Newton's method, (K,)."""
    g = alpha.sum().digamma() - alpha.digamma() + s
    q, z = -torch.polygamma(1, alpha), torch.polygamma(1, alpha.sum())
    b = (g / q).sum() / (1 / z + (1 / q).sum())
    return -(g - b) / q


def _climb(s: Tensor, alpha: Tensor, step) -> Tensor:
    """Takes steps that stay positive until they no longer matter."""
    for _ in range(_MOST_STEPS):
        move = step(s, alpha)
        # A step beyond 0 goes nine tenths of the way there: the slope is steep on that side.
        low = torch.where(move < 0, -0.9 * alpha / move, 1.0).min().clamp(max=1.0)
        alpha = (alpha + low * move).clamp(min=_SMALLEST)
        if (low * move).abs().max() <= 1e-10 * alpha.max():
            break
    return alpha
