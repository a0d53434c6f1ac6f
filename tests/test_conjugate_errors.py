"""Stories that are not conjugate, and data that cannot be: refused in one sentence, by name."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pplvm
from pplvm.models.conjugate import beta_bernoulli, beta_binomial, gamma_poisson, normal_normal
from pplvm.models.dirichlet_multinomial import DirichletMultinomial


def in_plate(prior, likelihood):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            return pyro.sample("x", likelihood(z), obs=x)

    return model


def semi_conjugate(x):
    v = pyro.sample("v", dist.InverseGamma(2.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))  # its prior knows nothing of v
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(mu, v.sqrt()), obs=x)


def hierarchy(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(m, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def hyperprior(x):
    b = pyro.sample("b", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(2.0, b))
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def regression(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(w[..., 0] + w[..., 1] * x, 1.0), obs=x)


def two_variances(x):
    v = pyro.sample("v", dist.InverseGamma(2.0, 1.0))
    w = pyro.sample("w", dist.InverseGamma(2.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, v.sqrt()))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(mu, w.sqrt()), obs=x)


def mixture(x):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(p))
        return pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def improper(x):
    with poutine.mask(mask=False):
        pyro.sample("flat", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Poisson(1.0), obs=x)


def hidden(x):
    """The rate leaves torch: its slope is the prior's alone, which looks conjugate."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Poisson(rate.detach()), obs=x)


def without_latents(x):
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


unit = partial(dist.Normal, scale=1.0)
REFUSED = {
    "discrete": (mixture, ["'k'", "Bernoulli", "nuts"]),
    "prior of another family": (
        in_plate(dist.LogNormal(0.0, 1.0), dist.Poisson),
        ["'z'", "LogNormal", "Gamma density", "nuts"],
    ),
    "heavy-tailed prior": (in_plate(dist.StudentT(3.0), unit), ["'z'", "StudentT", "Normal"]),
    "logistic": (
        in_plate(dist.Normal(0.0, 1.0), lambda z: dist.Bernoulli(logits=z)),
        ["'x'", "Bernoulli", "Normal density in 'z'"],
    ),
    "rate squared": (
        in_plate(dist.Gamma(2.0, 1.0), lambda z: dist.Poisson(z**2)),
        ["'x'", "Poisson", "Gamma density in 'z'"],
    ),
    "proportions squared": (
        in_plate(dist.Dirichlet(torch.ones(3)), lambda z: dist.Categorical(z**2)),
        ["'x'", "Categorical", "Dirichlet density in 'z'"],
    ),
    "sd for variance": (
        in_plate(dist.InverseGamma(2.0, 1.0), lambda z: dist.Normal(0.0, z)),
        ["'x'", "Normal", "InverseGamma density in 'z'"],
    ),
    "tails": (
        in_plate(dist.Normal(0.0, 1.0), lambda z: dist.StudentT(3.0, z)),
        ["'x'", "StudentT"],
    ),
    "invalid elsewhere": (
        in_plate(dist.Normal(5.0, 0.1), lambda z: dist.Poisson(z)),
        ["'x'", "Poisson"],
    ),
    "semi-conjugate": (semi_conjugate, ["'mu'", "Normal", "normal-inverse-gamma", "'v'"]),
    "hierarchy": (hierarchy, ["'m'", "'z'", "depend on each other", "exact"]),
    "hyperprior": (hyperprior, ["'b'", "'rate'", "depend on each other", "Gamma"]),
    "two variances": (two_variances, ["'mu'", "'w'"]),
    "elements": (regression, ["'w'", "elements", "exact"]),
    "improper": (improper, ["'flat'", "proper prior"]),
    "hidden": (hidden, ["'rate'", "out of torch"]),
    "none": (without_latents, ["no latent"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_stories_are_refused_by_name(name):
    model, words = REFUSED[name]
    x = torch.tensor([1.0, 0.0, 1.0])
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        pplvm.conjugate(model, x)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("weight", [1.0, 1e5, 1e10])
@pytest.mark.parametrize("tosses", [[1.0, 0.0, 1.0], [1.0, 0.0]])
def test_a_large_sample_does_not_hide_what_is_not_conjugate(weight, tosses):
    """Near its peak a posterior of many data is Gaussian, whatever it is elsewhere."""

    def logistic(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=weight):
            return pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    with pytest.raises(ValueError, match=r"site 'x' .* Normal density in 'z'"):
        pplvm.conjugate(logistic, torch.tensor(tosses))


nan, inf = math.nan, math.inf
BAD = {
    "negative": (gamma_poisson, [torch.tensor([1.0, -2.0])], ["'x'", "-2"]),
    "not whole": (gamma_poisson, [torch.tensor([1.0, 0.5])], ["'x'", "0.5"]),
    "NaN": (gamma_poisson, [torch.tensor([1.0, nan])], ["'x'", "NaN"]),
    "infinite": (normal_normal, [torch.tensor([1.0, inf])], ["'x'", "infinite"]),
    "not 0 or 1": (beta_bernoulli, [torch.tensor([1.0, 2.0])], ["'x'", "2", "0 or 1"]),
    "more than all": (beta_binomial, [torch.tensor([4.0]), torch.tensor([3.0])], ["'x'", "4"]),
    "fractions": (DirichletMultinomial(2), [torch.tensor([[1.5, 0.5]])], ["'x'", "1.5"]),
    "negative counts": (DirichletMultinomial(2), [torch.tensor([[3, -1]])], ["'x'", "-1"]),
    "NaN counts": (DirichletMultinomial(2), [torch.tensor([[3, nan]])], ["'x'", "NaN"]),
    "lengths": (beta_binomial, [torch.ones(2), torch.ones(3)], ["first axes"]),
    "nothing": (gamma_poisson, [], ["missing"]),
    "no data for latents of data": (beta_binomial, [torch.ones(0), torch.ones(0)], ["'p'", "none"]),
}


def of_torch(x: Tensor) -> Tensor:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Multinomial(2, p), obs=x)


BAD["fractions to torch"] = (of_torch, [torch.tensor([[1.5, 0.5]])], ["'x'", "1.5"])


@pytest.mark.parametrize("name", BAD)
def test_data_that_cannot_be_are_refused_by_name(name):
    model, data, words = BAD[name]
    if isinstance(model, nn.Module):
        model = DirichletMultinomial(2)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        pplvm.conjugate(model, *data)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_bad_data_are_refused_in_an_update_too():
    answer = pplvm.conjugate(gamma_poisson, torch.tensor([1.0]))
    with pytest.raises(ValueError, match="'x'"):
        answer.update(torch.tensor([-1.0]))


def test_an_update_takes_data_of_the_same_shape():
    answer = pplvm.conjugate(gamma_poisson, torch.tensor([1.0]))
    for data in ([torch.ones(2, 3)], [torch.ones(2), torch.ones(2)]):
        with pytest.raises(ValueError, match="first axes"):
            answer.update(*data)
    assert answer.update(torch.ones(0)).log_marginal == 0
