"""What explain says of a story, site by site."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceGraph_ELBO

import pplvm
from pplvm.objectives import elbo, from_pyro, iwae, reweighted_wake_sleep, wake_sleep


def model(x):
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        loc = pyro.deterministic("loc", z + k)
        return pyro.sample("x", dist.Normal(loc, tau), obs=x)


def guide(x):
    m = pyro.param("m", torch.zeros(len(x)))
    pyro.sample("tau", dist.LogNormal(pyro.param("t", torch.tensor(0.0)), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(m, 1.0))
        pyro.sample("k", dist.Bernoulli(0.5))


def rows(capsys, **options) -> dict[str, str]:
    pplvm.explain(model, guide, torch.randn(4), **options)
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line for line in lines[1:]}


def test_every_site_is_named_with_its_plates(capsys):
    found = rows(capsys)
    assert list(found) == ["tau", "z", "k", "loc", "x"]
    assert "data 4" in found["z"]
    assert "data 4" not in found["tau"]
    assert "deterministic" in found["loc"]
    assert "LogNormal" in found["tau"]
    assert len(pyro.get_param_store()) == 0  # nothing is left behind


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (elbo, {"tau": "pathwise", "z": "KL in closed form", "k": "none: not reparameterisable"}),
        (partial(iwae, gradient="dreg"), {"z": "pathwise", "k": "none: not reparameterisable"}),
        (wake_sleep, {"z": "score of fixed draws", "k": "score of fixed draws"}),
        (reweighted_wake_sleep, {"k": "score of fixed draws"}),
        (from_pyro(TraceGraph_ELBO()), {"k": "as TraceGraph_ELBO has it"}),
    ],
)
def test_the_estimator_is_that_of_the_objective(capsys, objective, said):
    found = rows(capsys, objective=objective)
    for site, words in said.items():
        assert words in found[site]
    assert "closed" not in found["tau"]  # Pyro has none of LogNormal from Gamma


def test_latents_that_are_summed_out_are_told(capsys):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(k, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    pplvm.explain(model, guide, torch.zeros(3))
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["k"].endswith("summed out")
    assert rows["z"].endswith("pathwise, KL in closed form")
