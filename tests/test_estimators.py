r"""Gradients of discrete latents against the sum over all their states, and their errors.

As in ``test_objectives``: means over independent draws, within 4 standard errors. For a right
estimator each number would then fail with probability 6e-5 at a new seed; a story has 10 to 20.
"""

from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_objectives import agree, exact
from zoo import bernoulli
from zoo_choices import CHOICES, exact_loss, masked

from pplvm import traces
from pplvm.objectives import (
    NVIL,
    REBAR,
    RELAX,
    arm,
    concrete,
    disarm,
    muprop,
    score_function,
    straight_through,
    vimco,
)
from pplvm.traces import Program, choices

DRAWS = 20_000
BINARY = ["belief", "parts", "masked", "mixed"]
SOFT = [*BINARY, "one_hot"]
DISCRETE = [name for name in CHOICES if name != "mixed"]


# ---- the two sides of every comparison ----


def sample(objective, oracle, num_draws=DRAWS):
    """Independent gradients (S, J) and bounds (S,): each datum has its own parameters."""
    theta, phi = (
        {n: v.expand(num_draws, *v.shape).clone().requires_grad_() for n, v in params.items()}
        for params in (oracle.theta, oracle.phi)
    )
    model, guide = partial(oracle.model, theta), partial(oracle.guide, phi)
    estimate = objective(model, guide, oracle.x.expand(num_draws))
    params = [*theta.values(), *phi.values()]
    grads = torch.autograd.grad(estimate.loss, params, allow_unused=True)
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
    return torch.cat([num_draws * g.reshape(num_draws, -1) for g in grads], 1), estimate.bound


def unbiased(objective, name, num_particles=1):
    oracle = CHOICES[name]()
    grads, bound = sample(objective, oracle)
    loss = partial(exact_loss, num_particles=num_particles)
    truth = exact(loss, oracle)
    assert torch.isfinite(grads).all()
    assert agree(grads, truth).all()
    assert agree(bound, -loss(oracle, oracle.theta, oracle.phi))
    return grads


def prepared(objective, name):
    """The objective after a few batches, what it learns set to something that is not zero."""
    oracle = CHOICES[name]()
    for _ in range(3):
        sample(objective, oracle, num_draws=50)
    with torch.no_grad():
        for p in objective.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return objective


# ---- unbiased estimators of the ELBO's gradient ----

PLAIN = {
    "score_function": score_function,
    "several": partial(score_function, num_particles=2),
    "constant": partial(score_function, baseline=-1.5),
    "leave_one_out": partial(score_function, baseline="leave_one_out", num_particles=3),
    "rao_blackwell": partial(score_function, rao_blackwell=True),
    "rao_blackwell, leave_one_out": partial(
        score_function, baseline="leave_one_out", num_particles=2, rao_blackwell=True
    ),
}
LEARNED = {
    "NVIL": partial(NVIL, normalise=False),
    "NVIL, average": partial(NVIL, "moving_average", normalise=False),
    "NVIL, several": partial(NVIL, normalise=False, num_particles=2),
    "NVIL, rao_blackwell": partial(NVIL, normalise=False, rao_blackwell=True),
}
LAYERED = {"muprop": muprop, "muprop, several": partial(muprop, num_particles=2)}
TRAINED = {
    "REBAR": REBAR,
    "REBAR, several": partial(REBAR, num_particles=2),
    "RELAX": RELAX,
    "RELAX, several": partial(RELAX, num_particles=2),
}
PAIRED = {
    "arm": arm,
    "disarm": disarm,
    "disarm, several": partial(disarm, num_particles=2),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("estimator", PLAIN)
def test_score_functions_are_unbiased(estimator, name):
    """False alarms: 1e-3 for up to 20 numbers."""
    unbiased(PLAIN[estimator], name)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("estimator", LEARNED)
def test_learned_baselines_are_unbiased(estimator, name):
    """False alarms: 1e-3 for up to 20 numbers."""
    unbiased(prepared(LEARNED[estimator](), name), name)


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("estimator", LAYERED)
def test_expansions_are_unbiased(estimator, name):
    """False alarms: 1e-3 for up to 20 numbers."""
    unbiased(LAYERED[estimator], name)


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("estimator", TRAINED)
def test_control_variates_are_unbiased(estimator, name):
    """False alarms: 1e-3 for up to 20 numbers."""
    unbiased(prepared(TRAINED[estimator](), name), name)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("estimator", PAIRED)
def test_mirrored_pairs_are_unbiased(estimator, name):
    """False alarms: 1e-3 for up to 20 numbers."""
    unbiased(PAIRED[estimator], name)


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("num_particles", [2, 3])
@pytest.mark.parametrize("name", DISCRETE)
def test_vimco_is_unbiased(name, num_particles, mean):
    """Of the bound of P particles: Pyro's RenyiELBO(alpha=0) has no gradient in φ here.

    False alarms: 1e-3 for up to 20 numbers.
    """
    objective = partial(vimco, num_particles=num_particles, mean=mean)
    grads = unbiased(objective, name, num_particles)
    oracle = CHOICES[name]()
    num_theta = sum(p.numel() for p in oracle.theta.values())
    assert (grads[:, num_theta:].mean(0).abs() > 1e-3).any()


# ---- the sum over states instead of draws ----


def test_states_that_are_all_listed_leave_no_noise():
    oracle = CHOICES["belief"]()
    grads, bound = sample(partial(score_function, rao_blackwell=True), oracle, num_draws=3)
    truth = exact(exact_loss, oracle)
    torch.testing.assert_close(grads, truth.expand_as(grads))
    loss = exact_loss(oracle, oracle.theta, oracle.phi)
    torch.testing.assert_close(bound, -loss.expand_as(bound))


@pytest.mark.parametrize("name", ["index", "one_hot", "belief", "parts"])
def test_some_latents_are_listed_and_the_rest_drawn(name, monkeypatch):
    """The smaller latent first: those above it and below it are drawn. False alarms: 1e-3."""
    monkeypatch.setattr(choices, "MOST_STATES", 4)
    some = unbiased(partial(score_function, rao_blackwell=True), name)
    none, _ = sample(score_function, CHOICES[name]())
    assert some.var(0).sum() < none.var(0).sum()


# ---- a latent that the data share ----


def shared_model(theta, x):
    m = pyro.sample("m", dist.Bernoulli(logits=theta["r"]))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(logits=theta["c"] + theta["w"] * m))
        return pyro.sample("x", dist.Bernoulli(logits=theta["v"] * z + theta["u"] * m), obs=x)


def shared_guide(phi, x):
    m = pyro.sample("m", dist.Bernoulli(logits=phi["a"]))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Bernoulli(logits=phi["b"] * x + phi["h"] * m))


def shared_loss(theta, phi, x, share=1.0):
    """-ELBO / N of N data by hand, what they share weighed by its share."""
    total = 0.0
    for m in torch.tensor([0.0, 1.0]):
        log_q = bernoulli(m, phi["a"])
        inner = share * (bernoulli(m, theta["r"]) - log_q)
        for z in torch.tensor([0.0, 1.0]):
            log_qz = bernoulli(z, phi["b"] * x + phi["h"] * m)
            log_p = bernoulli(z, theta["c"] + theta["w"] * m)
            log_p = log_p + bernoulli(x, theta["v"] * z + theta["u"] * m)
            inner = inner + (log_qz.exp() * (log_p - log_qz)).sum()
        total = total + log_q.exp() * inner
    return -total / len(x)


SHARED = {
    "score_function": score_function,
    "leave_one_out": partial(score_function, baseline="leave_one_out", num_particles=3),
    "rao_blackwell": partial(score_function, rao_blackwell=True),
    "NVIL": NVIL(normalise=False),
}


@pytest.mark.parametrize("name", SHARED)
def test_latents_that_the_data_share(name):
    """In a minibatch of a quarter of all data. False alarms: 5e-4 for 8 numbers."""
    x, share = torch.tensor([1.0, 0.0, 1.0]), 0.25
    theta = {"r": 0.3, "c": -0.4, "w": 0.9, "v": 1.1, "u": -0.6}
    phi = {"a": -0.2, "b": 0.5, "h": 0.7}
    theta, phi = (
        {n: torch.tensor(v, requires_grad=True) for n, v in values.items()}
        for values in (theta, phi)
    )
    params = [*theta.values(), *phi.values()]
    programs = partial(shared_model, theta), partial(shared_guide, phi)
    known = traces.prepared(Program(programs[0], nesting=1), programs[1], x)
    model, guide = (replace(known, program=program, share=share) for program in programs)
    objective, rows, bounds = SHARED[name], [], []
    for _ in range(1 if name == "rao_blackwell" else 1500):
        estimate = objective(model, guide, x)
        rows.append(torch.stack(torch.autograd.grad(estimate.loss, params)))
        bounds.append(estimate.bound.mean())
    loss = shared_loss(theta, phi, x, share)
    truth = torch.stack(torch.autograd.grad(loss, params))
    if name == "rao_blackwell":
        torch.testing.assert_close(rows[0], truth)
        torch.testing.assert_close(bounds[0], -loss.detach())
    else:
        assert agree(torch.stack(rows), truth).all()
        assert agree(torch.stack(bounds), -loss.detach())


# ---- what the others claim ----


def test_nvil_divides_the_guides_gradient_by_the_noise_alone():
    """False alarms: 5e-4 for 8 numbers."""
    oracle = CHOICES["masked"]()
    objective = NVIL("moving_average")
    objective.prepare(partial(oracle.model, oracle.theta), partial(oracle.guide, oracle.phi),
                      oracle.x.expand(2))  # fmt: skip
    objective.variance += 9.0
    objective.taken += 1000
    objective.eval()
    grads, _ = sample(objective, oracle)
    truth = exact(exact_loss, oracle)
    num_theta = sum(p.numel() for p in oracle.theta.values())
    assert agree(grads[:, :num_theta], truth[:num_theta]).all()
    assert agree(grads[:, num_theta:], truth[num_theta:] / 3.0).all()
    assert not agree(grads[:, num_theta:], truth[num_theta:], sigmas=8.0).all()


def test_the_concrete_gradient_is_that_of_its_own_function():
    """By quadrature over the uniform number. False alarms: 5e-4 for 8 numbers."""
    oracle, temperature = masked(), 0.7

    def relaxed_loss(oracle, theta, phi):
        u = (torch.arange(200_000.0) + 0.5) / 200_000
        logits = phi["b"][0] + phi["g"][0] * oracle.x
        s = ((logits + u.logit()) / temperature).sigmoid()
        lik = bernoulli(oracle.x, theta["v"][0] * s).mean()
        q, p = dist.Bernoulli(logits=logits), dist.Bernoulli(logits=theta["r"][0])
        return torch.distributions.kl_divergence(q, p) - lik

    grads, bound = sample(partial(concrete, temperature=temperature), oracle)
    assert agree(grads, exact(relaxed_loss, oracle)).all()
    assert agree(bound, -exact_loss(oracle, oracle.theta, oracle.phi))
    assert not agree(grads, exact(exact_loss, oracle), sigmas=8.0).all()


def test_straight_through_takes_the_slope_at_the_draw_for_the_difference():
    """False alarms: 5e-4 for 8 numbers."""
    oracle = masked()

    def defined(oracle, theta, phi):
        logits = phi["b"][0] + phi["g"][0] * oracle.x
        q = dist.Bernoulli(logits=logits)
        lik = 0.0
        for b in torch.tensor([0.0, 1.0]):
            value = b + q.probs - q.probs.detach()
            lik = lik + q.log_prob(b).exp().detach() * bernoulli(oracle.x, theta["v"][0] * value)
        return torch.distributions.kl_divergence(q, dist.Bernoulli(logits=theta["r"][0])) - lik

    grads, bound = sample(straight_through, oracle)
    assert agree(grads, exact(defined, oracle)).all()
    assert agree(bound, -exact_loss(oracle, oracle.theta, oracle.phi))


# ---- less noise ----


def noise_of(objective, name):
    oracle = CHOICES[name]()
    grads, _ = sample(objective, oracle)
    num_theta = sum(p.numel() for p in oracle.theta.values())
    return grads[:, num_theta:].var(0).sum()


def test_disarm_has_less_noise_than_arm_and_arm_less_than_the_score_function():
    noises = [noise_of(objective, "parts") for objective in (disarm, arm, score_function)]
    assert noises[0] < noises[1] < noises[2]


def test_leave_one_out_has_less_noise_than_no_baseline():
    with_, without = (
        noise_of(partial(score_function, num_particles=3, baseline=b), "belief")
        for b in ("leave_one_out", 0.0)
    )
    assert with_ < without


@pytest.mark.parametrize("make", [REBAR, RELAX])
def test_control_variates_learn_to_have_less_noise(make):
    objective, oracle = make(temperature=2.0, scale=-0.5), CHOICES["parts"]()
    before = noise_of(objective, "parts")
    learner = torch.optim.Adam(objective.parameters(), lr=0.05)
    model, guide = partial(oracle.model, oracle.theta), partial(oracle.guide, oracle.phi)
    # Parameters of one datum for all: each batch is as many draws.
    for _ in range(150):
        learner.zero_grad()
        objective(
            lambda x: oracle.model(_wide(oracle.theta, len(x)), x),
            lambda x: oracle.guide(_wide(oracle.phi, len(x)), x),
            oracle.x.expand(200),
        ).loss.backward()
        learner.step()
    assert noise_of(objective, "parts") < 0.8 * before
    assert model is not guide


def _wide(params, size):
    return {n: v.expand(size, *v.shape) for n, v in params.items()}
