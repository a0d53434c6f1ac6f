r"""The draws of every sampler against posteriordb's reference draws.

Of each column x, mean, variance and three quantiles are compared, all as means of a function f:

.. math:: f(x) \in \{x, (x - m)^2, 1[x < q_{5\%}], 1[x < q_{50\%}], 1[x < q_{95\%}]\}

with m and q those of the reference draws. The share of draws below a quantile is the quantile on
the scale of probability: to first order both are off by as many standard errors, and that of a
share is a mean's. (ArviZ's ``mcse(method="quantile")`` is about as well calibrated.)

False alarm: 5 functions of 42 columns, in 7 runs each, make 1,470 comparisons at 4
standard errors of both sides: 0.09 in all, if they are standard normal. Simulated, of AR(1) chains
worth 1,300 draws and more, 5 in 72,000 exceeded 4, as normal ones would; of chains worth 200, up to
one in 40. Seeds are fixed, the first ones tried.

Shapes: C chains, S draws, D columns, F functions.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import posteriordb
import pytest
import torch
from arviz_stats.base import array_stats
from pyro.poutine.messenger import Messenger

import pplvm

pytestmark = pytest.mark.slow

FUNCTIONS = ("mean", "sd", "5 %", "50 %", "95 %")
SAMPLERS = {
    "nutpie": partial(pplvm.nuts, backend="nutpie", num_chains=4, num_warmup=500, num_samples=1000),
    # As many draws as its seconds allow, and one seed.
    "pyro": partial(pplvm.nuts, backend="pyro", num_chains=4, num_warmup=250, num_samples=500),
    # Draws enough for split-R-hat, which is about 1 + (autocorrelation time - 1) / num_samples.
    "chees": partial(
        pplvm.chees, num_chains=64, num_warmup=300, num_samples=300, compile="inductor"
    ),
}
MIXTURE = "low_dim_gauss_mix-low_dim_gauss_mix"
RUNS = [
    (name, sampler, seed)
    for name in posteriordb.POSTERIORS
    for sampler in SAMPLERS
    for seed in (1, 2, 3)
    if seed == 1 or sampler != "pyro"
]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains one after the other: the tests themselves take the cores."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")


def columns(draws: pplvm.Draws, sites: tuple[str, ...]) -> np.ndarray:
    """Returns the columns of the reference draws, of these draws: (D, C, S)."""
    values = draws.values | draws.deterministic()
    parts = [values[site].reshape(*draws.shape, -1) for site in sites]
    return torch.cat(parts, -1).movedim(-1, 0).numpy()


def discrepancies(got: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns by how many standard errors draws (D, C, S) differ from others: (F, D)."""
    centre = reference.mean((1, 2), keepdims=True)  # (D, 1, 1)
    quantiles = np.quantile(reference, (0.05, 0.5, 0.95), axis=(1, 2))[..., None, None]

    def means(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        below = [(x < q).astype(float) for q in quantiles]
        f = np.stack((x, (x - centre) ** 2, *below))  # (F, D, C, S)
        return f.mean((2, 3)), array_stats.mcse(f, method="mean")

    (have, ours), (want, theirs) = means(got), means(reference)
    return (have - want) / np.hypot(ours, theirs)


def violations(draws: pplvm.Draws, sites: tuple[str, ...], folder, name: str) -> list[str]:
    """Returns in what the draws of a posterior are not those of posteriordb, none if they are."""
    reference, names = posteriordb.reference(folder, name)
    got = columns(draws, sites)
    assert len(got) == len(names)
    z = discrepancies(got, reference.transpose(2, 0, 1))
    rhat, divergent = array_stats.rhat(got), draws.stats["diverging"].double().mean()
    worst = np.unravel_index(np.abs(z).argmax(), z.shape)
    print(
        f"{name}: z {z[worst]:.2f} ({FUNCTIONS[worst[0]]} of {names[worst[1]]}), R-hat "
        f"{rhat.max():.4f}, ESS {array_stats.ess(got).min():.0f}, {draws.seconds:.1f} s"
    )
    found = [f"{divergent:.1%} of the steps diverge"] if divergent > 0.002 else []
    found += [f"R-hat of {names[i]}: {rhat[i]:.3f}" for i in np.flatnonzero(rhat > 1.01)]
    found += [
        f"{FUNCTIONS[f]} of {names[i]}: {z[f, i]:.1f} standard errors"
        for f, i in np.argwhere(np.abs(z) > 4)
    ]
    return found


@pytest.mark.parametrize(("name", "sampler", "seed"), RUNS)
def test_samplers_agree_with_the_reference_draws(shared_data, name, sampler, seed):
    folder = shared_data / "posteriordb"
    model, data, sites = posteriordb.posterior(folder, name)
    draws = SAMPLERS[sampler](model, *data, seed=seed)
    reference, _ = posteriordb.reference(folder, name)
    # Standard errors of means below a twentieth of an sd, or agreement would say little.
    assert array_stats.ess(columns(draws, sites)).min() > 400
    assert array_stats.ess(reference.transpose(2, 0, 1)).min() > 400
    assert violations(draws, sites, folder, name) == []


# ---- the same, where it has to fail ----


class Flat(Messenger):
    """Drops the prior of a site: its density is 1 wherever its support is."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] == self.site:
            msg["fn"] = msg["fn"].mask(False)


def without_prior(model: Callable, site: str) -> Callable:
    def program(*data: torch.Tensor) -> torch.Tensor:
        with Flat(site):
            return model(*data)

    return program


# The first is far off. Of the second theta is, by 0.07 sd: a prior worth 10 data beside 1,000. (Those
# of the other models are worth less, or hold the posterior together.)
@pytest.mark.parametrize(
    ("name", "site", "num_samples"),
    [("eight_schools-eight_schools_noncentered", "tau", 1000), (MIXTURE, "theta", 6000)],
)
def test_a_prior_that_is_dropped_is_found(shared_data, name, site, num_samples):
    folder = shared_data / "posteriordb"
    model, data, sites = posteriordb.posterior(folder, name)
    broken = without_prior(model, site)
    draws = SAMPLERS["nutpie"](broken, *data, num_samples=num_samples, seed=1)
    found = violations(draws, sites, folder, name)
    assert any(f"mean of {site}: " in sentence for sentence in found)
