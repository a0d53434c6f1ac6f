r"""What topics found: how much of the text each has, where, and what looks wrong with them.

The prevalence of topic k is its share of all tokens, with n_d the length of document d,

.. math:: \pi_k = \sum_d n_d \theta_{dk} / \sum_d n_d,

and the relevance of word w to it, at a weight \lambda from 0 to 1,

.. math:: r(w, k) = \lambda \log p(w \mid k) + (1 - \lambda) \log (p(w \mid k) / p(w)).

References:
    | LDAvis: A Method for Visualizing and Interpreting Topics (Sievert & Shirley, 2014)
    | https://nlp.stanford.edu/events/illvi2014/papers/sievert-illvi2014.pdf

    | Sampling Techniques, 3rd ed., section 6.4: the standard error of a ratio (Cochran, 1977)

Shapes: N documents, V words of the vocabulary, K topics, G groups.
"""

__all__ = [
    "GroupPrevalence",
    "lengths",
    "nearest_documents",
    "periods",
    "prevalence",
    "prevalence_by",
    "relevance",
    "typical_documents",
    "warnings",
    "word_shares",
]

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from pplvm.topics.documents import lengths, word_totals

# What counts as nearly the same: total variation, the share of probability that differs. Arbitrary.
SAME = 0.15
ALIKE = 0.05  # the mean total variation of documents from their mean: as good as none. Arbitrary.
NAMED = 4  # how many topics or pairs a warning names


def word_shares(counts: csr_array) -> Tensor:
    """Returns each word's share of all tokens: (V,), float64; zeros where there are none."""
    total = word_totals(counts)
    return total / total.sum().clamp(min=1.0)


def prevalence(theta: Tensor, n: Tensor) -> Tensor:
    """Returns each topic's share of all tokens: (K,), which sum to 1.

    Args:
        theta: The proportions of documents, (N, K).
        n: Their numbers of tokens, (N,).
    """
    _check_documents(theta, n)
    return (n.double() @ theta.double()) / n.sum().clamp(min=1)


def typical_documents(theta: Tensor, n: Tensor, num: int = 3) -> Tensor:
    """Returns the documents that have most of each topic, those without tokens last: (K, num)."""
    _check_documents(theta, n)
    share = torch.where(n[:, None] > 0, theta.double(), -1.0)
    return share.topk(min(num, len(theta)), dim=0).indices.T


def nearest_documents(theta: Tensor, query: Tensor, num: int = 10) -> tuple[Tensor, Tensor]:
    """Returns the documents nearest to each of M proportions, and their Hellinger distances.

    The distance of p and q is sqrt(1 - sum_k sqrt(p_k q_k)): 0 if they are the same, and 1 if they
    have no topic in common.

    Args:
        theta: The proportions of the documents to choose from, (N, K).
        query: Those that are asked about, (M, K) or (K,).
        num: How many documents to return.

    Returns:
        Their rows and distances, nearest first, (M, num) each or (num,).
    """
    near = theta.double().sqrt() @ torch.atleast_2d(query).double().sqrt().T  # (N, M)
    found = (1 - near).clamp(min=0).sqrt().topk(min(num, len(theta)), dim=0, largest=False)
    rows, distances = found.indices.T, found.values.T
    return (rows[0], distances[0]) if query.ndim == 1 else (rows, distances)


def relevance(topics: Tensor, shares: Tensor, weight: float = 0.6) -> Tensor:
    """Returns how relevant words are to topics (K, V), as of Sievert & Shirley (2014).

    Args:
        topics: The probabilities of words, (K, V).
        shares: Their shares of all tokens, (V,). A word that never occurs is of relevance -inf.
        weight: The weight lambda: 1 ranks by probability, 0 by how much more probable a word is
            than in the whole corpus. 0.6 is the value that their study of users found best.

    Raises:
        ValueError: if the weight is not within 0 and 1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"'weight' should be from 0 to 1, got {weight}.")
    log_p = topics.double().clamp(min=torch.finfo(torch.double).tiny).log()
    return torch.where(shares > 0, log_p - (1 - weight) * shares.double().log(), -torch.inf)


# ---- groups ----


class GroupPrevalence(NamedTuple):
    """The prevalence of topics within groups of documents, such as years."""

    values: np.ndarray  # (G,): numbers in their order, names as they first come
    mean: Tensor  # (G, K)
    error: Tensor  # (G, K): standard errors; NaN where a group has but one document
    tokens: Tensor  # (G,)


def prevalence_by(theta: Tensor, n: Tensor, group: np.ndarray) -> GroupPrevalence:
    """Returns the prevalence of topics in each group: means of proportions, weighed by tokens.

    The standard errors are those of a ratio of means over documents, taken for a sample of
    independent ones; they know nothing of the uncertainty of the proportions themselves.

    Args:
        theta: The proportions of documents, (N, K).
        n: Their numbers of tokens, (N,).
        group: Which group each belongs to, (N,): numbers, such as years, or names.

    Raises:
        ValueError: if the lengths differ. Groups without any tokens are left out.
    """
    _check_documents(theta, n)
    group = np.asarray(group)
    if group.shape != (len(theta),):
        raise ValueError(
            f"'group' has shape {group.shape}, but there are {len(theta)} documents: give the group "
            "of each."
        )
    written = n.numpy() > 0
    values, which = _distinct(group[written])
    index, w, theta = torch.from_numpy(which), n[written].double(), theta[written].double()
    G, K = len(values), theta.shape[1]

    def total(x: Tensor) -> Tensor:
        return torch.zeros(G, *x.shape[1:], dtype=torch.double).index_add_(0, index, x)

    tokens, documents = total(w), total(torch.ones_like(w))
    mean = total(w[:, None] * theta) / tokens[:, None]  # (G, K)
    squares = total((w[:, None] * (theta - mean[index])) ** 2)
    error = (squares * (documents / (documents - 1))[:, None]).sqrt() / tokens[:, None]
    alone = (documents == 1)[:, None].expand(G, K)
    return GroupPrevalence(values, mean, torch.where(alone, torch.nan, error), tokens)


def periods(group: np.ndarray, most: int = 50) -> tuple[np.ndarray, float]:
    """Returns numbers such as years brought down to starts of periods, and how long those are.

    Args:
        group: The numbers, (N,).
        most: How many periods there may be; they are 1, 2, 5, 10, 20, 50, … long, or 0 if there are
            no more different numbers than that, which then stay. An arbitrary default.
    """
    if len(np.unique(group)) <= most:
        return group, 0.0
    span = float(group.max() - group.min())
    size = 10.0 ** np.floor(np.log10(span / most))
    length = next(size * step for step in (1, 2, 5, 10) if span / (size * step) < most - 1)
    return np.floor(group / length) * length, length


def _distinct(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different values and which of them each is."""
    values, first, which = np.unique(group, return_index=True, return_inverse=True)
    if group.dtype.kind in "iuf":
        return values, which
    order = first.argsort()
    return values[order], order.argsort()[which]


# ---- what looks wrong ----


def warnings(topics: Tensor, theta: Tensor, counts: csr_array) -> list[str]:
    """Returns a sentence for each thing that looks wrong with topics, of documents (N, V).

    Where each begins to look wrong is arbitrary: a total variation below 0.15 for topics that are
    nearly the same, or nearly the corpus, or nearly uniform; a prevalence below 1/(10 K); documents
    whose mean total variation from their mean proportions is below 0.05.
    """
    n = lengths(counts)
    topics, theta = topics.double(), theta.double()
    found = [_duplicates(topics), _unused(prevalence(theta, n))]
    if len(topics) > 1:  # a single topic is the corpus, and its documents are all alike
        found += [*_nothing(topics, word_shares(counts)), _collapse(theta, n)]
    empty = int((n == 0).sum())
    if empty:
        has = "document has" if empty == 1 else "documents have"
        found.append(f"{empty} {has} no word of the vocabulary.")
    return [sentence for sentence in found if sentence]


def _duplicates(topics: Tensor) -> str:
    apart = torch.cdist(topics, topics, p=1) / 2  # (K, K)
    pairs = [(i, j) for i, j in (apart < SAME).nonzero().tolist() if i < j]
    pairs.sort(key=lambda pair: float(apart[pair]))
    if not pairs:
        return ""
    named = [f"{i} and {j} ({apart[i, j]:.2f})" for i, j in pairs[:NAMED]]
    more = f" and {len(pairs) - NAMED} more pairs" if len(pairs) > NAMED else ""
    return (
        f"Topics {', '.join(named)}{more} are nearly the same (in brackets, the share of probability "
        "that differs): fewer topics may do."
    )


def _unused(shares: Tensor) -> str:
    least = 1 / (10 * len(shares))
    dead = (shares < least).nonzero().flatten().tolist()
    if not dead:
        return ""
    return (
        f"{_topics(dead)} hardly used: less than {100 * least:.2g} % of the tokens each, a tenth of an "
        "equal share."
    )


def _nothing(topics: Tensor, shares: Tensor) -> list[str]:
    same = (topics - shares).abs().sum(1) / 2 < SAME  # (K,)
    flat = (topics - 1 / topics.shape[1]).abs().sum(1) / 2 < SAME
    return [
        f"{_topics(where.nonzero().flatten().tolist())} nearly {what}: nothing was learnt there."
        for where, what in ((same, "the words of the whole corpus"), (flat & ~same, "uniform"))
        if where.any()
    ]


def _collapse(theta: Tensor, n: Tensor) -> str:
    mean = prevalence(theta, n)
    apart = prevalence((theta - mean).abs().sum(1, keepdim=True) / 2, n).item()
    if apart >= ALIKE:
        return ""
    return (
        "All documents have nearly the same proportions (the share that differs from their mean is "
        f"{apart:.3f}): the topics collapsed."
    )


def _topics(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"Topic {numbers[0]} is"
    named = ", ".join(map(str, numbers[: 3 * NAMED]))
    more = f" and {len(numbers) - 3 * NAMED} more" if len(numbers) > 3 * NAMED else ""
    return f"Topics {named}{more} are"


def _check_documents(theta: Tensor, n: Tensor) -> None:
    if theta.ndim != 2 or n.shape != theta.shape[:1]:
        raise ValueError(
            f"'theta' has shape {tuple(theta.shape)} and 'n' {tuple(n.shape)}: give the proportions "
            "(N, K) and the numbers of tokens (N,) of the same documents."
        )
