"""Libraries of topic models as contenders of ``topics.py``: a neural model is one more entry."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gensim.matutils import Sparse2Corpus
from gensim.models import LdaModel, LdaMulticore
from scipy.sparse import csr_array
from sklearn.decomposition import LatentDirichletAllocation
from torch import Tensor

import pplvm
from pplvm.catalog import STORIES, Story, near_documents
from pplvm.models.neural_lda import NeuralLDA
from pplvm.topics import FittedTopics, TopicModel, variational_em

GIBBS_INFERENCE = 100  # sweeps over a new document
PRIORS = 0.1, 0.5  # concentrations of proportions and topics that all may have alike


@dataclass(frozen=True, eq=False)
class Known:
    """Topics, and what infers proportions under them."""

    topics: Tensor  # (K, V)
    infer: Callable[[csr_array], np.ndarray]  # (N, V) -> concentrations or proportions (N, K)

    def proportions(self, counts: csr_array) -> Tensor:
        """Returns the mean proportions, (N, K)."""
        gamma = torch.as_tensor(np.asarray(self.infer(counts), np.float32))
        return gamma / gamma.sum(1, keepdim=True)

    def word_probs(self, theta: Tensor) -> Tensor:
        """Returns the probabilities of words, (N, V)."""
        return theta @ self.topics


class Contender(NamedTuple):
    """How a library fits topics, and for how long."""

    prepare: Callable[[csr_array], Any]  # counts to the library's own form of a corpus
    fit: Callable[[Any, int, int, int], TopicModel]  # of a corpus, K, a seed and an amount
    amounts: tuple[int, ...]  # passes over the documents, each a fit of its own


def _same(counts: csr_array) -> csr_array:
    return counts


def _normalised(scores: np.ndarray) -> Tensor:
    return torch.as_tensor((scores / scores.sum(1, keepdims=True)).astype(np.float32))


# ---- pplvm and scikit-learn ----


def _pplvm(counts: csr_array, K: int, seed: int, amount: int, **options) -> TopicModel:
    return variational_em(
        counts, K, seed=seed, num_epochs=amount, tolerance=0.0, progress=False, **options
    )


def _neural(counts: csr_array, K: int, seed: int, amount: int, entry: Story) -> TopicModel:
    torch.manual_seed(seed)
    model = entry.model((counts,), K)
    (build,) = entry.guides.values()
    fit = pplvm.fit(
        model, build((counts,), K, model), counts, num_epochs=amount, batch_size=entry.batch_size,
        lr=entry.lr, clip_norm=entry.clip_norm, compile="graph", seed=seed, progress=False,
    )  # fmt: skip
    return FittedTopics(fit)


NVDM = replace(
    STORIES["avi-lda"],
    model=lambda data, K: near_documents(data, NeuralLDA(data[0].shape[1], K, likelihood="linear")),
)


def _scikit_learn(
    counts: csr_array,
    K: int,
    seed: int,
    amount: int,
    method: str,
    priors: tuple[float | None, float | None] = (None, None),
) -> TopicModel:
    alpha, eta = priors
    peer = LatentDirichletAllocation(
        K, doc_topic_prior=alpha, topic_word_prior=eta, learning_method=method, max_iter=amount,
        batch_size=1024, random_state=seed,
    ).fit(counts)  # fmt: skip
    return Known(_normalised(peer.components_), peer.transform)


# ---- gensim ----


def _bags(counts: csr_array) -> Sparse2Corpus:
    return Sparse2Corpus(counts, documents_columns=False)


def _gensim(
    corpus: Sparse2Corpus, K: int, seed: int, amount: int, several: bool, alpha, eta
) -> TopicModel:
    words = {w: str(w) for w in range(corpus.sparse.shape[0])}
    options = {"num_topics": K, "id2word": words, "passes": amount, "random_state": seed}
    options |= {"alpha": alpha, "eta": eta, "eval_every": None}
    peer = LdaMulticore(corpus, workers=2, **options) if several else LdaModel(corpus, **options)

    def infer(counts: csr_array) -> np.ndarray:
        return peer.inference(list(_bags(counts)))[0]

    return Known(_normalised(peer.get_topics()), infer)


# ---- tomotopy ----


def _tokens(counts: csr_array) -> tuple[list[list[str]], int]:
    rows = []
    for start, end in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        rows.append(
            list(map(str, np.repeat(counts.indices[start:end], counts.data[start:end]).tolist()))
        )
    return rows, counts.shape[1]


def _tomotopy(
    corpus: tuple[list[list[str]], int], K: int, seed: int, amount: int, eta: float
) -> TopicModel:
    import tomotopy

    texts, V = corpus
    peer = tomotopy.LDAModel(k=K, alpha=0.1, eta=eta, seed=seed + 1)
    for text in filter(None, texts):
        peer.add_doc(text)
    peer.optim_interval, peer.burn_in = 10, min(50, amount // 2)
    peer.train(amount, workers=2)
    known = np.array([int(w) for w in peer.used_vocabs])
    found = np.array([peer.get_topic_word_dist(k) for k in range(K)])
    # A word that it has not seen is worth as much as one it has not seen in the topic.
    topics = np.repeat(found.min(1, keepdims=True), V, axis=1)
    topics[:, known] = found

    def infer(counts: csr_array) -> np.ndarray:
        seen = set(map(str, known))
        theta = np.tile(peer.alpha / peer.alpha.sum(), (counts.shape[0], 1))
        rows = [n for n, text in enumerate(_tokens(counts)[0]) if seen.intersection(text)]
        texts = _tokens(counts[rows])[0]
        documents = [peer.make_doc(text) for text in texts]
        peer.infer(documents, iterations=GIBBS_INFERENCE, workers=2)
        theta[rows] = [document.get_topic_dist() for document in documents]
        return theta

    return Known(_normalised(topics), infer)


CONTENDERS: dict[str, Contender] = {
    "pplvm, online": Contender(_same, partial(_pplvm, batch_size=1024), (1, 3, 10, 20)),
    "pplvm, batch": Contender(_same, partial(_pplvm, batch_size=None), (10, 30, 100)),
    "pplvm, batch, four starts": Contender(
        _same, partial(_pplvm, batch_size=None, num_starts=4), (100,)
    ),
    "pplvm, online, priors": Contender(
        _same, partial(_pplvm, batch_size=1024, alpha=PRIORS[0], eta=PRIORS[1]), (1, 3, 10, 20)
    ),
    "pplvm, batch, priors": Contender(
        _same, partial(_pplvm, batch_size=None, alpha=PRIORS[0], eta=PRIORS[1]), (10, 30, 100)
    ),
    "pplvm, AVI-LDA": Contender(_same, partial(_neural, entry=STORIES["avi-lda"]), (4, 16)),
    "pplvm, ProdLDA": Contender(_same, partial(_neural, entry=STORIES["neural-lda"]), (10, 50)),
    "pplvm, NVDM": Contender(_same, partial(_neural, entry=NVDM), (4, 8, 16)),
    "scikit-learn, online": Contender(_same, partial(_scikit_learn, method="online"), (1, 3, 10)),
    "scikit-learn, batch": Contender(_same, partial(_scikit_learn, method="batch"), (3, 10, 30)),
    "scikit-learn, online, priors": Contender(
        _same, partial(_scikit_learn, method="online", priors=PRIORS), (1, 3, 10)
    ),
    "scikit-learn, batch, priors": Contender(
        _same, partial(_scikit_learn, method="batch", priors=PRIORS), (3, 10, 30)
    ),
    "gensim": Contender(
        _bags, partial(_gensim, several=False, alpha="auto", eta="auto"), (1, 3, 10)
    ),
    "gensim, priors": Contender(
        _bags, partial(_gensim, several=False, alpha=PRIORS[0], eta=PRIORS[1]), (1, 3, 10)
    ),
    "gensim, two processes": Contender(
        _bags, partial(_gensim, several=True, alpha="symmetric", eta="auto"), (1, 3, 10)
    ),
    "tomotopy": Contender(_tokens, partial(_tomotopy, eta=0.01), (50, 200, 500)),
    "tomotopy, eta 0.1": Contender(_tokens, partial(_tomotopy, eta=0.1), (50, 200, 500)),
    "tomotopy, eta 0.5": Contender(_tokens, partial(_tomotopy, eta=PRIORS[1]), (50, 200, 500)),
}
