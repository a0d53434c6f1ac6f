"""The shipped stories, each with its guides, its data and what can be asked of it."""

__all__ = ["STORIES", "Story"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.sparse import issparse
from torch import nn

from pplvm.batches import Array, as_tensors
from pplvm.guides import factor_analysis as fa_guides
from pplvm.guides import factorial_hmm as fhmm_guides
from pplvm.guides import lda as lda_guides
from pplvm.guides.document_model import DocumentModelGuide
from pplvm.guides.latent_factor_words import LatentFactorWordsGuide
from pplvm.guides.naive_bayes import NaiveBayesGuide
from pplvm.guides.neural_lda import NeuralLDAGuide
from pplvm.guides.neural_lda_mean_field import NeuralLDAMeanField
from pplvm.guides.rationale import RationaleGuide
from pplvm.guides.sigmoid_belief_network import SigmoidBeliefNetworkGuide
from pplvm.guides.vae import VAEGuide
from pplvm.models.document_model import DocumentModel
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.models.factorial_hmm import FactorialHMM
from pplvm.models.gaussian_mixture import GaussianMixture
from pplvm.models.hmm import HMM
from pplvm.models.latent_factor_words import LatentFactorWords
from pplvm.models.lda import LDA
from pplvm.models.naive_bayes import NaiveBayes
from pplvm.models.neural_lda import NeuralLDA
from pplvm.models.rationale import Rationale
from pplvm.models.sigmoid_belief_network import SigmoidBeliefNetwork
from pplvm.models.vae import VAE

Data = tuple[Array, ...]
# Builds a model for the arrays that a story takes, and a size: L latent dims or K states.
Builder = Callable[[Data, int], nn.Module]
GuideBuilder = Callable[[Data, int, nn.Module], nn.Module]  # for that model

NUM_CHAINS = 2  # M of the factorial story: more have no mean field in closed form for binary data


# ---- what a story takes, from what a file or a data set holds; or one sentence ----


def table(data: Data) -> Data:
    """Returns one array of shape (N, …)."""
    if len(data) != 1 or data[0].ndim < 2:
        raise ValueError(f"takes one array of shape (N, …), got {_shapes(data)}")
    return (_measured(data[0]),)


def flat(data: Data) -> Data:
    """Returns one array of shape (N, D): images become rows of pixels, and sparse rows stay so."""
    (x,) = table(data)
    return (x if issparse(x) else x.reshape(len(x), -1),)


def sequences(data: Data) -> Data:
    """Returns sequences (N, T, D) and their lengths (N,), which are all T where there are none."""
    if not 1 <= len(data) <= 2 or data[0].ndim != 3 or any(x.ndim != 1 for x in data[1:]):
        raise ValueError(f"takes sequences (N, T, D) and lengths (N,), got {_shapes(data)}")
    x = _measured(data[0])
    N, T, _ = x.shape
    lengths = torch.as_tensor(data[1]) if len(data) > 1 else torch.full((N,), T)
    same = torch.equal(lengths.double(), lengths.double().round())  # else the story will say so
    return x, lengths.long() if same else lengths


def spelt(data: Data) -> Data:
    """Returns words as whole numbers (N, T) and their lengths (N,)."""
    if len(data) != 2 or data[0].ndim != 2 or data[1].ndim != 1:
        raise ValueError(f"takes words (N, T) and lengths (N,), got {_shapes(data)}")
    x, lengths = (torch.as_tensor(part) for part in data)
    if x.is_floating_point() or lengths.is_floating_point():
        raise ValueError(
            f"takes the numbers of characters, whole ones, and lengths, got {x.dtype}, {lengths.dtype}"
        )
    return x.long(), lengths.long()


def classed(data: Data) -> Data:
    """Returns classes (N,), words as whole numbers (N, T), and lengths (N,), as they are given."""
    if len(data) != 3 or data[0].ndim != 1 or data[1].ndim != 2 or data[2].ndim != 1:
        raise ValueError(f"takes classes (N,), words (N, T) and lengths (N,), got {_shapes(data)}")
    parts = tuple(torch.as_tensor(part) for part in data)
    if any(part.is_floating_point() for part in parts):
        kinds = ", ".join(str(part.dtype) for part in parts)
        raise ValueError(f"takes classes, words and lengths as whole numbers, got {kinds}")
    return tuple(part.long() for part in parts)


def _measured(x: Array) -> Array:
    """Returns numbers of any kind, as counts in a table, as measurements."""
    return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype.kind != "f" else x


def _shapes(data: Data) -> str:
    return ", ".join(str(tuple(x.shape)) for x in data)


# ---- the stories ----


def _near(data: Data, model: HMM | FactorialHMM, num_chains: int = 1) -> HMM | FactorialHMM:
    """Moves the logits of all states to where the data are; states that start far away stay empty."""
    x, lengths = (torch.as_tensor(part) for part in data)
    counted = torch.arange(x.shape[1]) < lengths[:, None]  # (N, T)
    mean = x[counted].float().mean(0).clamp(0.01, 0.99)  # (D,); arbitrary ends
    with torch.no_grad():
        model.W += mean.logit() / num_chains
    return model


def _mean(data: Data) -> torch.Tensor:
    """Returns the mean image; a memory map is read through, not into memory."""
    return torch.as_tensor(np.asarray(data[0].mean(0)))


def near_documents(data: Data, model: NeuralLDA) -> NeuralLDA:
    """Has topics start near random documents, and words as frequent as in a few thousand."""
    rows = torch.randperm(data[0].shape[0])[:2000].numpy()
    model.start_near(*as_tensors((data[0][rows],), model))
    return model


@dataclass(frozen=True)
class Story:
    """A shipped story. The first of its guides is the default one, if it needs any."""

    summary: str
    data: str  # the name of its default data set
    latent_dim: int  # a default: L, or K states
    model: Builder
    methods: tuple[str, ...]  # what `pplvm compare` runs
    num_steps: int  # of a fit on the default data
    lr: float
    guides: Mapping[str, GuideBuilder] = field(default_factory=dict)
    batch_size: int | None = None
    clip_norm: float | None = None  # of topics that are learnt from the command line
    summed_out: bool = False  # whether its latents are all discrete, so that no guide is needed
    takes: Callable[[Data], Data] = table


_FACTOR_GUIDES: dict[str, GuideBuilder] = {
    "linear-gaussian": lambda data, L, _: fa_guides.LinearGaussian(data[0].shape[1], L),
    "amortised-mean-field": lambda data, L, _: fa_guides.AmortisedMeanField(data[0].shape[1], L),
    "mean-field": lambda data, L, _: fa_guides.MeanField(data[0].shape[0], L),
}

_FACTOR_ANALYSIS = Story(
    summary="z ~ N(0, I), x ~ N(Wz + mu, Psi) with Psi diagonal",
    data="digits",
    latent_dim=10,
    model=lambda data, L: FactorAnalysis(data[0].shape[1], L),
    guides=_FACTOR_GUIDES,
    methods=("svi", "iwae", "wake-sleep", "reweighted-wake-sleep", "nuts", "exact"),
    num_steps=2500,
    lr=0.02,
)

_PPCA = replace(
    _FACTOR_ANALYSIS,
    summary="probabilistic PCA: factor analysis with one noise variance for all features",
    model=lambda data, L: FactorAnalysis(data[0].shape[1], L, isotropic=True),
)

_VAE = Story(
    summary="z ~ N(0, I), x ~ Bernoulli(decoder(z)): binary images",
    data="binary-digits",
    latent_dim=10,
    model=lambda data, L: VAE(data[0].shape[1:], L),
    guides={"encoder": lambda data, L, _: VAEGuide(data[0].shape[1:], L)},
    methods=("svi", "iwae", "reweighted-wake-sleep"),
    num_steps=3000,
    batch_size=128,
    lr=0.001,
)

_GAUSSIAN_MIXTURE = Story(
    summary="k ~ Cat(pi), x ~ N(mu_k, diag(sigma_k^2)): clusters",
    data="iris",
    latent_dim=3,
    model=lambda data, K: GaussianMixture(data[0].shape[1], K),
    methods=("cavi", "exact"),
    num_steps=1000,
    lr=0.02,
    summed_out=True,
    takes=flat,
)

_NAIVE_BAYES = Story(
    summary="k ~ Cat(pi), x_d ~ Bernoulli(p_kd): clusters of binary features",
    data="binary-digits",
    latent_dim=10,
    model=lambda data, K: NaiveBayes(data[0].shape[1], K),
    guides={"classifier": lambda data, K, _: NaiveBayesGuide(data[0].shape[1], K)},
    methods=("wake-sleep", "reweighted-wake-sleep", "exact"),
    num_steps=1500,
    lr=0.02,
    summed_out=True,
    takes=flat,
)

_HMM = Story(
    summary="z_t ~ Cat(A[z_t-1]), x_t ~ Bernoulli(p[z_t]): binary sequences",
    data="small-chorales",
    latent_dim=8,
    model=lambda data, K: _near(data, HMM(K, data[0].shape[2], "bernoulli")),
    methods=("cavi-apart", "exact"),
    num_steps=1000,
    lr=0.05,
    summed_out=True,
    takes=sequences,
)

_FACTORIAL_GUIDES: dict[str, GuideBuilder] = {
    "amortised-mean-field": lambda data, K, _: fhmm_guides.AmortisedMeanField(
        data[0].shape[2], NUM_CHAINS, K
    ),
    "mean-field": lambda data, K, _: fhmm_guides.MeanField(*data[0].shape[:2], NUM_CHAINS, K),
}

_FACTORIAL_HMM = replace(
    _HMM,
    summary=f"{NUM_CHAINS} hidden Markov chains apart, x_t ~ Bernoulli of the sum of their logits",
    latent_dim=6,
    model=lambda data, K: _near(
        data, FactorialHMM(NUM_CHAINS, K, data[0].shape[2], "bernoulli"), NUM_CHAINS
    ),
    guides=_FACTORIAL_GUIDES,
    methods=("cavi", "cavi-apart", "exact"),
)

_SIGMOID_BELIEF_NETWORK = Story(
    summary="z_l ~ Bernoulli(sigmoid(f_l(z_l+1))), x likewise of z_1: binary images",
    data="binary-digits",
    latent_dim=20,
    model=lambda data, L: SigmoidBeliefNetwork(data[0].shape[1:], (L,), mean=_mean(data)),
    guides={
        "recognition": lambda data, L, _: SigmoidBeliefNetworkGuide(
            data[0].shape[1:], (L,), mean=_mean(data)
        )
    },
    methods=("wake-sleep", "reweighted-wake-sleep", "disarm"),
    num_steps=3000,
    batch_size=128,
    lr=0.005,
)

_DOCUMENT_MODEL = Story(
    summary="z_k ~ Bernoulli(pi_k), words ~ Cat(softmax(W z + b)): counts of words",
    data="small-corpus",
    latent_dim=5,
    model=lambda data, K: DocumentModel(data[0].shape[1], K),
    guides={"mean-embedding": lambda data, K, _: DocumentModelGuide(data[0].shape[1], K)},
    methods=("wake-sleep", "reweighted-wake-sleep", "disarm"),
    num_steps=2000,
    lr=0.01,
    takes=flat,
)

_LDA = Story(
    summary="theta ~ Dir(alpha), beta_k ~ Dir(eta), words ~ Cat(theta beta): topics of texts",
    data="small-corpus",
    latent_dim=5,
    model=lambda data, K: LDA(data[0].shape[1], K),
    guides={
        "amortised-dirichlet": lambda data, K, _: lda_guides.LDAGuide(data[0].shape[1], K),
        "logistic-normal": lambda data, K, _: lda_guides.LDALogisticNormal(data[0].shape[1], K),
        "mean-field": lambda data, K, _: lda_guides.LDAMeanField(*data[0].shape, K),
    },
    methods=("svi",),
    num_steps=2000,
    lr=0.01,
    takes=flat,
)

# ProdLDA; its numbers are those of the best NPMI among a few, on 20 Newsgroups.
_NEURAL_PRIOR = {"alpha": 0.25, "dropout": 0.2}

_NEURAL_LDA = replace(
    _LDA,
    summary="h ~ N(0, s^2 I), words ~ Cat(softmax(norm(softmax(h) W))), encoded: topics of texts",
    model=lambda data, K: NeuralLDA(data[0].shape[1], K, likelihood="product", **_NEURAL_PRIOR),
    guides={
        "encoder": lambda data, K, _: NeuralLDAGuide(
            data[0].shape[1], K, (100, 100), **_NEURAL_PRIOR
        )
    },
    num_steps=3000,
    batch_size=200,
    lr=0.002,
    clip_norm=10.0,  # long documents of one word over and over would lead the rest
)

_AVI_LDA = replace(
    _NEURAL_LDA,
    summary="h ~ N(mu, C C'), words ~ Cat(softmax(h) beta): topics of texts, some of which go together",
    model=lambda data, K: near_documents(
        data, NeuralLDA(data[0].shape[1], K, alpha=0.25, learn_prior=True)
    ),
    guides={"mean-field": lambda data, K, model: NeuralLDAMeanField(model)},
    num_steps=400,
    batch_size=256,
    lr=0.005,
    clip_norm=None,
)

_WORD_SIZES = 16, 32  # E and H: more of them learn 400 words by heart

_LATENT_FACTOR_WORDS = Story(
    summary="z_k ~ Bernoulli(pi_k), characters ~ a recurrent network given z: words",
    data="small-words",
    latent_dim=4,
    model=lambda data, K: LatentFactorWords(int(data[0].max()), K, *_WORD_SIZES),
    guides={
        "two-way": lambda data, K, _: LatentFactorWordsGuide(int(data[0].max()), K, *_WORD_SIZES)
    },
    methods=("wake-sleep", "reweighted-wake-sleep"),
    num_steps=400,
    batch_size=100,
    lr=0.01,
    takes=spelt,
)

_RATIONALE = Story(
    summary="z_i ~ Bernoulli(p), y ~ Cat(network of the words with z_i = 1): reasons for classes",
    data="small-reviews",
    latent_dim=20,
    model=lambda data, E: Rationale(int(data[1].max()) + 1, int(data[0].max()) + 1, E, E),
    guides={"two-way": lambda data, E, _: RationaleGuide(int(data[1].max()) + 1, E, E)},
    methods=("score-function", "nvil", "disarm", "reweighted-wake-sleep"),
    num_steps=500,
    batch_size=100,
    lr=0.01,
    takes=classed,
)

STORIES = {
    "factor-analysis": _FACTOR_ANALYSIS,
    "ppca": _PPCA,
    "vae": _VAE,
    "gaussian-mixture": _GAUSSIAN_MIXTURE,
    "naive-bayes": _NAIVE_BAYES,
    "hmm": _HMM,
    "factorial-hmm": _FACTORIAL_HMM,
    "sigmoid-belief-network": _SIGMOID_BELIEF_NETWORK,
    "document-model": _DOCUMENT_MODEL,
    "lda": _LDA,
    "neural-lda": _NEURAL_LDA,
    "avi-lda": _AVI_LDA,
    "latent-factor-words": _LATENT_FACTOR_WORDS,
    "rationale": _RATIONALE,
}
