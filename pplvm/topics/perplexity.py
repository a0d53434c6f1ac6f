r"""How well topics predict words that they have not seen: perplexity, by two ways.

Document completion finds proportions in one half of each document's tokens and predicts the other,

.. math:: \exp\Big(-\frac{1}{\sum_d n_d} \sum_d \sum_w c_{dw} \log p(w \mid \hat\theta_d)\Big),

with the counts c of the other half. It asks all models the same, whatever their bounds are worth. The
bound asks for all tokens at once, :math:`\exp(-\sum_d \log p(x_d) / \sum_d n_d)` without the multinomial
coefficient, and importance weights make it tight.

References:
    | Evaluation methods for topic models (Wallach et al., 2009)
    | https://doi.org/10.1145/1553374.1553515

    | Importance weighted autoencoders (Burda et al., 2016)
    | https://arxiv.org/abs/1509.00519

Shapes: N documents, V words of the vocabulary, K topics.
"""

__all__ = ["bound_perplexity", "completion_perplexity"]

import math

import torch
from scipy.sparse import csr_array

from pplvm.fit import Fit
from pplvm.topics.documents import check_counts, log_coefficients
from pplvm.topics.types import TopicModel

_READ = 1000  # documents at a time, whose (1000, V) probabilities fit into memory


def completion_perplexity(model: TopicModel, observed: csr_array, held_out: csr_array) -> float:
    """Returns the perplexity per token of the other half of documents.

    Documents of which nothing is held out do not count; those of which nothing is observed are
    predicted as the model has it for documents without words.

    Args:
        model: The topics.
        observed: The tokens that proportions are found in, (N, V): see
            :func:`pplvm.text.document_halves`.
        held_out: The tokens that are predicted, (N, V).

    Raises:
        ValueError: if the halves are no counts of the model's words, of the same documents, or if
            nothing is held out.
    """
    V = model.topics.shape[1]
    observed, held_out = (check_counts(x, V) for x in (observed, held_out))
    if observed.shape != held_out.shape:
        raise ValueError(
            f"'observed' has {observed.shape[0]} documents, 'held_out' {held_out.shape[0]}: give two "
            "halves of the same ones."
        )
    total = float(held_out.sum())
    if total == 0:
        raise ValueError("'held_out' has no tokens: there is nothing to predict.")
    log_p = 0.0
    for start in range(0, held_out.shape[0], _READ):
        part = held_out[start : start + _READ].tocoo()
        theta = model.proportions(observed[start : start + _READ])
        p = model.word_probs(theta).detach().cpu().double()  # (B, V)
        log_p += (torch.from_numpy(part.data).double() * p[part.row, part.col].log()).sum().item()
    return math.exp(-log_p / total)


def bound_perplexity(
    fit: Fit, counts: csr_array, *, num_particles: int = 100, batch_size: int = 200, seed: int = 0
) -> float:
    """Returns the perplexity per token by the importance-weighted bound of a fit's guide.

    It is an upper bound on average, and the tighter the more particles. Topics that the documents
    share have to be parameters, as in ``models.neural_lda``.

    Args:
        fit: The fit, of counts.
        counts: The documents, (N, V).
        num_particles: Of each document; an arbitrary default.
        batch_size: How many documents are made dense at a time.
        seed: Of the draws.

    Raises:
        ValueError: if topics are latents, or if counts are none.
    """
    counts, log_p = check_counts(counts), 0.0
    for start in range(0, counts.shape[0], batch_size):
        part = counts[start : start + batch_size]
        found = fit.log_marginal(part, num_particles=num_particles, seed=seed).value
        if len(found) != part.shape[0]:
            raise ValueError(
                "'fit' has latents that its documents share, so that there is no log p(x) of each: use "
                "completion_perplexity."
            )
        log_p += (found.cpu() - log_coefficients(part)).sum().item()
    return math.exp(-log_p / float(counts.sum()))
