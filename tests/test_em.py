"""EM: it never falls, its gradient is that of log p(x), and it ends where its peers do."""

import warnings

import hmmlearn.hmm
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.mixture import GaussianMixture as Peer
from torch import Tensor, nn
from zoo_discrete import MODELS, data_of, story

import pplvm
from pplvm import traces
from pplvm.models.gaussian_mixture import GaussianMixture
from pplvm.models.hmm import HMM
from pplvm.traces.statistics import Averaged, statistics_of


def clusters() -> Tensor:
    random = torch.Generator().manual_seed(0)
    parts = [torch.randn(60, 2, generator=random) + c for c in (-4.0, 0.0, 5.0)]
    return torch.cat(parts).double()


def mixture(x: Tensor) -> GaussianMixture:
    model = GaussianMixture(2, 3).double()
    with torch.no_grad():
        model.mu.copy_(x[[0, 70, 130]])
    return model


def test_it_ends_where_scikit_learn_does():
    x = clusters()
    found = pplvm.em(mixture(x), x, tolerance=1e-9)
    peer = Peer(
        3, covariance_type="diag", means_init=x[[0, 70, 130]].numpy(), tol=1e-10, reg_covar=0.0
    )
    peer.fit(x.numpy())
    assert found.log_marginal[-1] / len(x) == pytest.approx(peer.score(x.numpy()), abs=1e-5)
    assert torch.allclose(found.model.mu, torch.as_tensor(peer.means_), atol=1e-2)
    assert found.settings["stopped"] == "tolerance"


def test_it_ends_where_hmmlearn_does():
    x = torch.cat([clusters()[torch.randperm(60)], clusters()[60:120], clusters()[120:]])
    x = x.reshape(6, 30, 2)
    lengths = torch.tensor([30, 20, 30, 25, 30, 30])
    model = HMM(3, 2, "gaussian").double()
    with torch.no_grad():
        model.W.copy_(torch.tensor([[-4.0, -4.0], [0.0, 0.0], [5.0, 5.0]]))
    found = pplvm.em(model, x, lengths, tolerance=1e-8)
    peer = hmmlearn.hmm.GaussianHMM(
        3, "diag", n_iter=200, tol=1e-8, init_params="", params="stmc",
        startprob_prior=1.0, transmat_prior=1.0, means_weight=0.0, covars_prior=0.0, covars_weight=0.0,
        min_covar=0.0,
    )  # fmt: skip
    peer.startprob_ = model.log_pi.softmax(-1).detach().numpy()
    peer.transmat_ = model.log_A.softmax(-1).detach().numpy()
    peer.means_, peer.covars_ = model.W.detach().numpy().copy(), torch.ones(3, 2).numpy()
    rows = torch.cat([row[:n] for row, n in zip(x, lengths, strict=True)]).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.fit(rows, lengths.numpy())
    assert found.log_marginal[-1] == pytest.approx(peer.score(rows, lengths.numpy()), abs=0.5)


@pytest.mark.parametrize("name", ["mixture", "hmm"])
def test_log_p_never_falls(name):
    x = clusters()
    if name == "mixture":
        found = pplvm.em(mixture(x), x, num_steps=30, num_inner=3, tolerance=0.0)
    else:
        model = HMM(2, 2, "gaussian").double()
        found = pplvm.em(
            model,
            x.reshape(6, 30, 2),
            torch.tensor([30, 1, 7, 30, 30, 12]),
            num_steps=15,
            num_inner=3,
        )
    steps = torch.tensor(found.log_marginal).diff()
    assert len(steps) >= 5
    assert (steps > -1e-8).all()
    assert steps.sum() > 1.0


def test_the_gradient_of_the_expectation_is_that_of_log_p():
    x = clusters().reshape(6, 30, 2)[:, :5]
    model = HMM(3, 2, "gaussian").double()
    data = x, torch.tensor([5, 2, 1, 5, 3, 4])
    _, weights = traces.Listed(model, *data).weights()
    learned = list(model.parameters())
    got = torch.autograd.grad(
        traces.weighed(weights, traces.Listed(model, *data).graph.tensors()), learned
    )
    want = torch.autograd.grad(traces.Listed(model, *data).log_marginal().sum(), learned)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("name", [n for n in MODELS if "bayesian" not in n])
def test_averages_are_all_that_an_expectation_needs(name):
    """Its gradient by expected sufficient statistics is that by every datum; masks, chains and all."""
    model, data = story(name).double(), data_of(name)
    _, weights = traces.Listed(model, *data).weights()
    learned = list(model.parameters())
    with torch.no_grad():
        for p in learned:  # elsewhere than where the weights are from
            p.add_(0.3 * torch.randn_like(p))
    listed = traces.Listed(model, *data)
    got = torch.autograd.grad(listed.averaged(weights)(), learned)
    want = torch.autograd.grad(traces.weighed(weights, listed.graph.tensors()), learned)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


class Weighed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.m = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))

    def forward(self, x, weight):
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.scale(scale=weight):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(2).to(x)))
            pyro.sample("x", dist.Normal(self.m[z], 1.0), obs=x)
        return x


def test_data_that_weigh_differently():
    x = torch.cat([torch.randn(10) - 2, torch.randn(10) + 2]).double()
    data = x, torch.cat([torch.full((5,), 20.0), torch.full((15,), 0.1)]).double()
    model = Weighed().double()
    _, weights = traces.Listed(model, *data).weights()
    with torch.no_grad():
        model.m += 0.3
    listed = traces.Listed(model, *data)
    (got,) = torch.autograd.grad(listed.averaged(weights)(), [model.m])
    (want,) = torch.autograd.grad(traces.weighed(weights, listed.graph.tensors()), [model.m])
    assert torch.allclose(got, want)
    steps = torch.tensor(pplvm.em(Weighed(), *data).log_marginal).diff()
    assert (steps > -1e-8).all()


def test_modules_of_pyro_learn_and_leave_no_store_behind():
    class Module(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.m = pyro.nn.PyroParam(torch.tensor([-1.0, 1.0]))

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Categorical(torch.ones(2).to(x) / 2))
                pyro.sample("x", dist.Normal(self.m[z], 1.0), obs=x)
            return x

    pyro.clear_param_store()
    x = torch.cat([torch.randn(6) - 3, torch.randn(6) + 3])
    found = pplvm.em(Module(), x)
    assert not list(pyro.get_param_store().keys())
    assert found.log_marginal[-1] > found.log_marginal[0] + 5
    assert (found.model.m.detach().abs() > 1.5).all()


@pytest.mark.parametrize("emission", ["gaussian", "poisson", "categorical"])
def test_one_long_sequence(emission):
    x = torch.randint(3, (1, 20)) if emission == "categorical" else torch.rand(1, 20, 2).round()
    found = pplvm.em(HMM(3, 2 if x.ndim == 3 else 3, emission), x, torch.tensor([20]), num_steps=5)
    assert found.log_marginal[-1] > found.log_marginal[0]


def test_averages_are_taken_where_they_can_be():
    found = {}
    for name in ("gaussian_hmm", "poisson_hmm", "bernoulli_hmm", "factorial_hmm", "neural_hmm"):
        model, data = story(name).double(), data_of(name)
        listed = traces.Listed(model, *data)
        statistics = statistics_of(listed.graph, listed.weights()[1])
        with torch.no_grad(), Averaged(statistics):
            later = listed.again().graph.chains[0].later
        found[name] = later.stride(0) == 0  # one number for all steps
    assert found == {
        "gaussian_hmm": True, "poisson_hmm": True, "bernoulli_hmm": True, "factorial_hmm": True,
        "neural_hmm": False,
    }  # fmt: skip


def test_the_story_that_it_is_given_stays_as_it_was():
    x = clusters()
    model = mixture(x)
    before = [p.clone() for p in model.parameters()]
    found = pplvm.em(model, x, num_steps=2)
    assert all(map(torch.equal, model.parameters(), before))
    assert not torch.equal(found.model.mu, model.mu)
    assert found.log_marginal[-1] == pytest.approx(
        pplvm.exact(found.model, x).log_marginal.sum().item()
    )


class Continuous(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.m, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: pplvm.em(Continuous(), x[:, 0]), "site 'z' .Normal. is continuous"),
        (lambda x: pplvm.em(lambda x: x, x), "'model' should be a module"),
        (lambda x: pplvm.em(mixture(x), x, num_steps=0), "'num_steps' should be at least 1"),
        (lambda x: pplvm.em(mixture(x).requires_grad_(False), x), "no parameter to learn"),
    ],
)
def test_what_em_cannot_learn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(clusters())
