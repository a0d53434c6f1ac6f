"""A corpus whose topics are known, and how far others are from them.

Shapes: N documents, V words, K topics.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.distributions import Dirichlet

from pplvm.models.counts import Multinomial


def corpus(
    num_data: int = 1000,
    num_words: int = 80,
    num_topics: int = 5,
    *,
    length: float = 80.0,
    alpha: float = 0.2,
    eta: float = 0.1,
    seed: int = 0,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns counts x (N, V), drawn from LDA, their topics (K, V) and their proportions (N, K).

    Those topics may be given.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = Dirichlet(torch.full((num_topics, num_words), eta)).sample()
        beta = drawn if beta is None else beta
        theta = Dirichlet(torch.full((num_data, num_topics), alpha)).sample()
        n = torch.poisson(torch.full((num_data,), length))
        return Multinomial(n, theta @ beta).sample(), beta, theta


def matched(found: Tensor, true: Tensor) -> Tensor:
    """Returns for each true topic (K, V) the number of the one found that stands for it, (K,)."""
    return torch.as_tensor(linear_sum_assignment(torch.cdist(true, found, p=1))[1])


def matched_total_variation(found: Tensor, true: Tensor) -> Tensor:
    """Returns the total variation between each true topic and the one found for it, (K,)."""
    return 0.5 * (found[matched(found, true)] - true).abs().sum(-1)
