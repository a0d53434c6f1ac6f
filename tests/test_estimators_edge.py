"""Unusual stories and uses of the estimators of discrete latents, each once a silent wrong answer."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_objectives import agree
from zoo import bernoulli

import pplvm
from pplvm.objectives import NVIL, REBAR, arm, disarm, muprop, score_function, vimco
from pplvm.objectives.muprop import _of_others
from pplvm.traces import dependencies

MU = torch.tensor([0.5, -0.3, 1.2])
X = torch.tensor([0.4, 1.0, -0.2, 0.7])


def gradients(objective, model, guide, parameter, num_draws, *data):
    rows = [
        torch.autograd.grad(objective(model, guide, *data).loss, parameter)[0]
        for _ in range(num_draws)
    ]
    return torch.stack(rows)


WAYS = {
    "int": lambda k: MU[int(k)],
    "if": lambda k: MU[0] if k == 0 else MU[1],
    "range": lambda k: sum(MU[i] for i in range(int(k) + 1)),
    "numpy": lambda k: torch.as_tensor(MU.numpy()[k.numpy()]),
    "list": lambda k: MU[k.tolist()],
    "vmap": lambda k: torch.vmap(lambda i: MU[i] * 1.0)(k[None])[0],
    "detached": lambda k: MU[k.detach()],
}


@pytest.mark.parametrize("way", WAYS)
def test_latents_that_leave_torch_are_followed(way):
    def model(x):
        k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(WAYS[way](k), 1.0), obs=x)

    def guide(x):
        pyro.sample("k", dist.Categorical(torch.ones(3) / 3))

    for _ in range(3):  # whatever is drawn
        found = dependencies(model, guide, X)
        assert "k" in found.get(("p", "x"), {"k"})


@pytest.mark.parametrize("name", ["plain", "leave_one_out", "NVIL"])
def test_shared_draws_beside_listed_states_count_once(name):
    """200 means of 8 draws. False alarms: 9e-5."""
    a = torch.tensor(0.3, requires_grad=True)
    objective = {
        "plain": partial(score_function, rao_blackwell=True, num_particles=8),
        "leave_one_out": partial(
            score_function, rao_blackwell=True, num_particles=8, baseline="leave_one_out"
        ),
        "NVIL": NVIL(rao_blackwell=True, normalise=False, num_particles=8),
    }[name]

    def model(x):
        s = pyro.sample("s", dist.Binomial(3, probs=torch.tensor(0.4)))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(0.5 * s + z, 1.0), obs=x)

    def guide(x):
        pyro.sample("s", dist.Binomial(3, logits=a))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(0.3))

    states = torch.arange(4.0)
    log_q = dist.Binomial(3, logits=a).log_prob(states)
    log_p = dist.Binomial(3, probs=torch.tensor(0.4)).log_prob(states)
    inner = 0.0
    for z, q in ((0.0, 0.7), (1.0, 0.3)):
        lik = dist.Normal(0.5 * states[:, None] + z, 1.0).log_prob(X).sum(1)
        inner = inner + q * (lik + len(X) * (torch.tensor(0.5 / q).log()))
    loss = -(log_q.exp() * (log_p - log_q + inner)).sum() / len(X)
    (truth,) = torch.autograd.grad(loss, a)
    assert agree(gradients(objective, model, guide, a, 200, X), truth)


@pytest.mark.parametrize(
    "objective",
    [partial(score_function, num_particles=10), NVIL(normalise=False, num_particles=10)],
    ids=["score_function", "NVIL"],
)
def test_shared_latents_may_depend_on_local_ones_in_the_guide(objective):
    """A datum's latent then has a part in the terms of all.

    200 means of 10 draws. False alarms: 9e-5.
    """
    a = torch.tensor(0.2, requires_grad=True)
    x = X[:2]

    def model(x):
        s = pyro.sample("s", dist.Bernoulli(0.4))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.3 + 0.4 * s))
            pyro.sample("x", dist.Normal(z + s, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=a))
        total = z.sum(-1, keepdim=z.ndim > 1)
        pyro.sample("s", dist.Bernoulli(logits=1.5 * total - 1.0))

    loss = 0.0
    for z in torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0)):
        for s in torch.tensor([0.0, 1.0]):
            log_q = bernoulli(z, a).sum() + bernoulli(s, 1.5 * z.sum() - 1.0)
            log_p = (
                dist.Bernoulli(0.4).log_prob(s) + dist.Bernoulli(0.3 + 0.4 * s).log_prob(z).sum()
            )
            log_p = log_p + dist.Normal(z + s, 1.0).log_prob(x).sum()
            loss = loss - log_q.exp() * (log_p - log_q) / len(x)
    (truth,) = torch.autograd.grad(loss, a)
    assert agree(gradients(objective, model, guide, a, 200, x), truth)


def local(a):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=a))

    return guide


def summing(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    total = z.sum(-1, keepdim=z.ndim > 1)
    pyro.sample("total", dist.Normal(total, 0.5), obs=torch.tensor(3.0))


@pytest.mark.parametrize("objective", [disarm, arm, muprop, REBAR()])
def test_objectives_of_each_datum_alone_refuse_what_data_share(objective):
    with pytest.raises(ValueError, match=r"site 'total' is outside plate 'data'.*'z'"):
        objective(summing, local(torch.tensor(0.1, requires_grad=True)), X)


def test_listed_states_are_particles_over_which_stories_must_broadcast():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("inner", 2, dim=-2):
                y = pyro.sample("y", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(y.sum(0) + z, 1.0), obs=x)

    def guide(x):
        b = pyro.param("b", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("inner", 2, dim=-2):
                pyro.sample("y", dist.Normal(b, 1.0))
            pyro.sample("z", dist.Bernoulli(0.5))

    for objective in (partial(score_function, rao_blackwell=True), NVIL(rao_blackwell=True)):
        with pytest.raises(ValueError, match="does not broadcast over particles"):
            pplvm.fit(model, guide, X, objective=objective, num_steps=2)


def test_scales_weigh_costs_and_not_the_score():
    """Two draws; the sum over all pairs of states. False alarms: 6e-5.

    Each datum has its own parameter, and so is one draw of the gradient.
    """
    a = torch.full((3000,), 0.3, requires_grad=True)
    r, w, x = torch.tensor(-0.4), torch.tensor(1.5), torch.ones(3000)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Bernoulli(logits=r))
            pyro.sample("x", dist.Normal(w * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.scale(scale=0.3):
            pyro.sample("z", dist.Bernoulli(logits=a))

    z = torch.tensor([0.0, 1.0])
    one = a.detach()[0].requires_grad_()
    log_q = bernoulli(z, one)
    log_w = 0.3 * (bernoulli(z, r) - log_q) + dist.Normal(w * z, 1.0).log_prob(x[0])
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    bound = log_w[pairs].logsumexp(1) - torch.tensor(2.0).log()
    (truth,) = torch.autograd.grad(-(log_q[pairs].sum(1).exp() * bound).sum(), one)
    (draws,) = torch.autograd.grad(vimco(model, guide, x, num_particles=2).loss, a)
    assert agree(len(x) * draws, truth)


def test_objectives_inside_functions_are_refused():
    nvil = NVIL()

    def wrapped(model, guide, *data):
        return nvil(model, guide, *data)

    def guide(x):
        local(pyro.param("a", torch.tensor(0.0)))(x)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"a function that uses 'nvil'.*give 'nvil' itself"):
        pplvm.fit(model, guide, X, objective=wrapped, num_steps=2)
    for objective in (partial(score_function, num_particles=1.5), partial(disarm, num_particles=0)):
        with pytest.raises(ValueError, match="'num_particles' should be at least 1 and whole"):
            pplvm.fit(model, guide, X, objective=objective, num_steps=2)
    with pytest.raises(ValueError, match="two objectives are called 'NVIL'"):
        pplvm.gradient_report(model, guide, X, objectives=[NVIL(), NVIL(normalise=False)])
    with pytest.raises(ValueError, match="put it in a list"):
        pplvm.gradient_report(model, guide, X, objectives=disarm)
    with pytest.raises(ValueError, match="'objectives' should hold"):
        pplvm.gradient_report(model, guide, X, objectives=[NVIL])


def test_muprop_centres_by_the_others_and_never_by_a_draw_itself():
    """With thousands of draws the tests of the mean gradient cannot tell: one in N is too little."""
    signal = torch.tensor([[1.0, 2.0], [6.0, -3.0]])
    expected = torch.tensor([[5 / 3, 4 / 3], [0.0, 3.0]])
    assert torch.allclose(_of_others(signal), expected)
    assert _of_others(torch.tensor([[7.0]])).item() == 0.0
