"""The shipped stories, each with its guides, its data and what can be asked of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from pplvm.batches import Array
from pplvm.guides import factor_analysis as fa_guides
from pplvm.guides.vae import VAEGuide
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.models.vae import VAE

# Builds a model or guide for data x of shape (N, …) with L latent dims.
Builder = Callable[[Array, int], nn.Module]


@dataclass(frozen=True)
class Story:
    """A shipped story. The first of its guides is the default one."""

    summary: str
    data: str  # the name of its default data set
    latent_dim: int  # a default
    model: Builder
    guides: Mapping[str, Builder]
    methods: tuple[str, ...]  # what `pplvm compare` runs
    num_steps: int  # of a fit on the default data
    batch_size: int | None
    lr: float


_FACTOR_GUIDES: dict[str, Builder] = {
    "linear-gaussian": lambda x, L: fa_guides.LinearGaussian(x.shape[1], L),
    "amortised-mean-field": lambda x, L: fa_guides.AmortisedMeanField(x.shape[1], L),
    "mean-field": lambda x, L: fa_guides.MeanField(len(x), L),
}

_FACTOR_ANALYSIS = Story(
    summary="z ~ N(0, I), x ~ N(Wz + mu, Psi) with Psi diagonal",
    data="digits",
    latent_dim=10,
    model=lambda x, L: FactorAnalysis(x.shape[1], L),
    guides=_FACTOR_GUIDES,
    methods=("svi", "iwae", "wake-sleep", "reweighted-wake-sleep", "nuts", "exact"),
    num_steps=2500,
    batch_size=None,
    lr=0.02,
)

STORIES = {
    "factor-analysis": _FACTOR_ANALYSIS,
    "ppca": replace(
        _FACTOR_ANALYSIS,
        summary="probabilistic PCA: factor analysis with one noise variance for all features",
        model=lambda x, L: FactorAnalysis(x.shape[1], L, isotropic=True),
    ),
    "vae": Story(
        summary="z ~ N(0, I), x ~ Bernoulli(decoder(z)): binary images",
        data="binary-digits",
        latent_dim=10,
        model=lambda x, L: VAE(x.shape[1:], L),
        guides={"encoder": lambda x, L: VAEGuide(x.shape[1:], L)},
        methods=("svi", "iwae", "reweighted-wake-sleep"),
        num_steps=3000,
        batch_size=128,
        lr=0.001,
    ),
}
