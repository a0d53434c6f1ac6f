r"""Binary latents of documents in words: what each does to the words, and where it is on.

With :math:`p_k` the probabilities of words where latent k alone is on, and :math:`p_0` those where none
is, words are in the order of

.. math:: p_k(v) \log \frac{p_k(v)}{p_0(v)}, \qquad p_0(v) \log \frac{p_0(v)}{p_k(v)},

the terms of the divergences between the two: a ratio alone is largest for words that hardly ever come.

Shapes: N documents, V words, K latents.
"""

__all__ = ["Factors", "factors"]

from typing import NamedTuple

import torch
from torch import Tensor

from pplvm import traces
from pplvm.plots_text import spelt, vocabulary
from pplvm.table import Table

_FACTORS, _WORDS, _DOCUMENTS = 20, 10, 3  # at most; arbitrary


class Changed(NamedTuple):
    """A word, and how many times as likely it is where a latent is on."""

    text: str
    times: float


class Counted(NamedTuple):
    """A word of a document."""

    text: str
    count: int


class Document(NamedTuple):
    """A document that a latent explains much of."""

    row: int
    num_tokens: int
    p: float  # of its being on
    gain: float  # log p(x | on, others) - log p(x | off, others), in nats
    words: list[Counted]


class Factor(NamedTuple):
    """One latent."""

    index: int
    shares: dict[str, float]  # of the documents in which it is on, by each answer
    likelier: list[Changed]
    less_likely: list[Changed]
    typical: list[Document]


class Factors(NamedTuple):
    """The binary latents of a story of documents."""

    site: str
    factors: list[Factor]
    num_factors: int
    known: bool  # whether the words are


def factors(table: Table) -> Factors | None:
    """Returns the latents of a table in words, if its story has one vector of them and counts words.

    Words are shown as the model's attribute ``vocabulary``, of V texts, has them; else as numbers.
    They are those of the model of the first answer.
    """
    first = next(iter(table.draws.values()))
    sites = traces.look(first.model, *table.data)
    latents, seen = (
        [site for site in sites.values() if site.kind == kind] for kind in ("latent", "observed")
    )
    if len(latents) != 1 or len(seen) != 1 or not all(map(_of_a_datum, (*latents, *seen))):
        return None
    (z,), (x,) = latents, seen
    if traces.distribution_name(z.fn) != "Bernoulli" or z.value.ndim != 2 or x.value.ndim != 2:
        return None
    if "Multinomial" not in traces.distribution_name(x.fn):
        return None
    q = {  # (N, K)
        name: draws[z.name].double().mean((0, 1)).cpu() for name, draws in table.draws.items()
    }
    counts, best = x.value.detach().cpu().double(), next(iter(q.values()))
    log_p = _log_words(first.model, z.name, x, *table.data)  # (K + 1, V)
    texts, K = vocabulary(first.model), best.shape[1]
    order = best.mean(0).argsort(descending=True, stable=True)[:_FACTORS]
    gains = {k: _gain(first.model, z.name, x.name, best, k, *table.data) for k in order.tolist()}
    return Factors(
        z.name,
        [
            Factor(
                k,
                {name: float(p[:, k].mean()) for name, p in q.items()},
                _changed(log_p[k + 1], log_p[0], log_p[k + 1] - log_p[0], texts),
                _changed(log_p[0], log_p[k + 1], log_p[k + 1] - log_p[0], texts),
                _typical(counts, best[:, k], gains[k], log_p[k + 1] - log_p[0], texts),
            )
            for k in sorted(gains)
        ],
        K,
        texts is not None,
    )


def _of_a_datum(site: traces.Site) -> bool:
    return [name for name, _, _ in site.plates] == [traces.DATA]


def _log_words(model, latent: str, x: traces.Site, *data: Tensor) -> Tensor:
    """Returns the logarithms of the words' probabilities where no latent is on, and each alone."""
    one = tuple(part[:1] for part in data)
    K = traces.look(model, *one)[latent].value.shape[-1]
    rows = []
    for z in torch.cat([torch.zeros(1, K), torch.eye(K)]).to(x.value):
        site = traces.replay(model, {latent: z[None, None]}, *one)[x.name]
        rows.append(site.fn.logits.reshape(-1).detach().cpu().double())
    return torch.stack(rows).log_softmax(-1).clamp(min=-100.0)  # of words that cannot come


def _gain(model, latent: str, x: str, q: Tensor, k: int, *data: Tensor) -> Tensor:
    """Returns by how much latent k, on, raises the log-density of each document, (N,)."""
    z = (q > 0.5).to(torch.get_default_dtype()).to(data[0].device).repeat(2, 1, 1)  # (2, N, K)
    z[0, :, k], z[1, :, k] = 1.0, 0.0
    with torch.no_grad():
        on, off = traces.pointwise(model, {latent: z}, *data)[x]
    return (on - off).double().cpu()


def _changed(
    log_p: Tensor, other: Tensor, log_ratio: Tensor, texts: list[str] | None
) -> list[Changed]:
    terms = log_p.exp() * (log_p - other)  # (V,)
    top = [v for v in terms.argsort(descending=True)[:_WORDS].tolist() if terms[v] > 1e-9]
    return [Changed(spelt(texts, v), float(log_ratio[v].exp())) for v in top]


def _typical(
    counts: Tensor, p: Tensor, gain: Tensor, log_ratio: Tensor, texts: list[str] | None
) -> list[Document]:
    rows = [n for n in gain.argsort(descending=True).tolist() if p[n] > 0.5][:_DOCUMENTS]
    found = []
    for n in rows:
        terms = counts[n] * log_ratio
        top = [v for v in terms.argsort(descending=True)[:_WORDS].tolist() if terms[v] > 0]
        words = [Counted(spelt(texts, v), int(counts[n, v])) for v in top]
        found.append(Document(n, int(counts[n].sum()), float(p[n]), float(gain[n]), words))
    return found
