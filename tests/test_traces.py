"""The tensors that objectives see, against log-densities added up by hand."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import kl_divergence
from zoo import (
    CONTINUOUS,
    DISCRETE,
    NO_PLATE,
    ORACLES,
    PER_DATUM,
    SHARED,
    ZOO,
    factor_analysis,
    masked,
    mixed,
    nested,
    normal,
    of_oracle,
    regression,
    schools,
    vae,
)

from pplvm.objectives import elbo, iwae, reweighted_wake_sleep, wake_sleep
from pplvm.traces import Program, draw, dream, elbo_terms, weigh


def drawn(story, num_particles=3, moving=False):
    z = draw(story.model, story.guide, *story.data, num_particles=num_particles, moving=moving)
    values = {n: s["value"] for n, s in z.trace.nodes.items() if s["type"] == "sample"}
    return z, values


def scores(story, z, **options):
    return weigh(story.model, story.guide, z, *story.data, **options)


# ---- log-densities ----


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("name", ORACLES)
def test_scores_are_those_written_by_hand(name, num_particles):
    oracle, x = ORACLES[name](), torch.arange(4) % 2.0
    model, guide = partial(oracle.model, oracle.theta), partial(oracle.guide, oracle.phi)
    z = draw(model, guide, x, num_particles=num_particles, moving=False)
    log_p, log_q = weigh(model, guide, z, x)
    sites = sorted(n for n, s in z.trace.nodes.items() if s["type"] == "sample" and n != "data")
    order = ["k", "b"] if "k" in sites else [n for n in sites if n != "particles"]
    values = torch.stack([z.trace.nodes[n]["value"].double() for n in order], -1)
    values = values.reshape(num_particles, 4, -1)
    torch.testing.assert_close(log_p, oracle.log_p(oracle.theta, x, values))
    torch.testing.assert_close(log_q, oracle.log_q(oracle.phi, x, values))


@pytest.mark.parametrize("num_particles", [1, 3])
def test_inner_plates_are_summed_within_a_datum(num_particles):
    story = nested()
    z, value = drawn(story, num_particles)
    log_p, log_q = scores(story, z)
    x = story.data[0]
    zs = value["z"].reshape(num_particles, 1, 4)
    w = value["w"].reshape(num_particles, 3, 4)
    p = normal(zs, 0.0).squeeze(1) + (normal(w, zs) + normal(x.T, w)).sum(1)
    mean, log_scale = 0.3 * x.T + 0.3 * zs, math.log(0.9)
    q = normal(zs, 0.4 * x.mean(1), math.log(0.8)).squeeze(1) + normal(w, mean, log_scale).sum(1)
    torch.testing.assert_close(log_p, p)
    torch.testing.assert_close(log_q, q)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_mask_and_scale_are_honoured(num_particles):
    story = masked()
    z, value = drawn(story, num_particles)
    log_p, log_q = scores(story, z)
    (x, seen), zs = story.data, value["z"].reshape(num_particles, 4)
    p = 0.5 * normal(zs, 0.2) + seen * normal(x, zs, math.log(0.7))
    torch.testing.assert_close(log_p, p)
    torch.testing.assert_close(log_q, 0.5 * normal(zs, 0.5 * x, math.log(0.6)))


def test_divergence_in_closed_form_is_scaled_but_masked_data_add_nothing():
    story = masked()
    z, value = drawn(story, 3, moving=True)
    log_lik, kl = elbo_terms(story.model, story.guide, z, *story.data)
    (x, seen), zs = story.data, value["z"]
    exact = 0.5 * kl_divergence(dist.Normal(0.5 * x, 0.6), dist.Normal(0.2, 1.0))
    torch.testing.assert_close(kl, exact.expand(3, 4))
    torch.testing.assert_close(log_lik, seen * normal(x, zs, math.log(0.7)))


@pytest.mark.parametrize(
    ("handler", "factor"),
    [
        (partial(pyro.poutine.scale, scale=0.5), 0.5),
        (partial(pyro.poutine.mask, mask=torch.tensor([True, False, True, True])), None),
    ],
)
def test_there_is_no_closed_form_where_programs_weigh_a_site_differently(handler, factor):
    story = of_oracle(ORACLES["gaussian"])
    story = story._replace(model=handler(story.model))  # its guide stays as it is
    z, value = drawn(story, 3, moving=True)
    _, kl = elbo_terms(story.model, story.guide, z, *story.data)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0]) if factor is None else factor
    log_q = normal(value["z"], 0.2 * story.data[0] - 0.3, 0.1)
    torch.testing.assert_close(kl, log_q - weight * normal(value["z"], 0.3))


@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_story_without_a_data_plate_is_one_datum(num_particles):
    story = schools()
    z, value = drawn(story, num_particles)
    log_p, log_q = scores(story, z)
    (y, sigma), shape = story.data, (num_particles, -1)
    mu, tau, theta = (value[n].reshape(shape) for n in ("mu", "tau", "theta"))
    shared = normal(mu, 0.0, math.log(5.0)) + dist.HalfCauchy(5.0).log_prob(tau)
    p = shared.sum(1) + (normal(theta, mu, tau.log()) + normal(y, theta, sigma.log())).sum(1)
    q_shared = normal(mu, 4.0, math.log(2.0)) + dist.LogNormal(1.0, 0.5).log_prob(tau)
    q = q_shared.sum(1) + normal(theta, 0.3 * y, tau.log()).sum(1)
    torch.testing.assert_close(log_p, p[:, None])
    torch.testing.assert_close(log_q, q[:, None])


@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_data_set_as_a_whole_has_one_weight(num_particles):
    story = regression()
    z, value = drawn(story, num_particles)
    log_p, log_q = scores(story, z, per_datum=False)
    (features, y), w = story.data, value["w"].reshape(num_particles, 2)
    p = normal(w, 0.0).sum(1) + normal(y, w @ features.T, -0.3).sum(1)
    q = normal(w, torch.tensor([0.3, -0.2]), torch.tensor([-0.5, -0.4])).sum(1)
    torch.testing.assert_close(log_p, p[:, None])
    torch.testing.assert_close(log_q, q[:, None])


@pytest.mark.parametrize("name", PER_DATUM | DISCRETE)
def test_the_weight_of_the_data_set_is_the_product_of_those_of_the_data(name):
    story = (PER_DATUM | DISCRETE)[name]()
    z, _ = drawn(story)
    for whole, part in zip(scores(story, z, per_datum=False), scores(story, z), strict=True):
        torch.testing.assert_close(whole, part.sum(1, keepdim=True))


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("name", SHARED)
def test_what_data_share_is_spread_evenly(name, num_particles):
    # The terms of the ELBO are per datum, but only their sum over the data is defined.
    story = SHARED[name]()
    z, _ = drawn(story, num_particles, moving=True)
    log_lik, kl = elbo_terms(story.model, story.guide, z, *story.data)
    assert log_lik.shape == kl.shape == (num_particles, 6)
    if name == "regression":
        q = dist.Normal(torch.tensor([0.3, -0.2]), torch.tensor([-0.5, -0.4]).exp())
        exact = kl_divergence(q, dist.Normal(torch.zeros(2), 1.0)).sum()
        torch.testing.assert_close(kl, (exact / 6).expand(num_particles, 6))


def alone(z, n):
    """The draws of datum n, as if it were the only one."""
    z = z.detach()
    for site in z.trace.nodes.values():
        dim = site["value"].ndim - 1 - site["fn"].event_dim
        site["value"] = site["value"].narrow(dim, n, 1)
    return z


@pytest.mark.parametrize("name", PER_DATUM | DISCRETE)
def test_the_weight_of_a_datum_is_its_own(name):
    story = (PER_DATUM | DISCRETE)[name]()
    z, _ = drawn(story)
    together = scores(story, z)
    for n in range(4):
        single = story._replace(data=tuple(part[n : n + 1] for part in story.data))
        for column, part in zip(scores(single, alone(z, n)), together, strict=True):
            torch.testing.assert_close(column, part[:, n : n + 1])


# ---- gradients through draws ----


@pytest.mark.parametrize("name", CONTINUOUS)
def test_moving_draws_carry_the_whole_derivative(name):
    oracle, x = CONTINUOUS[name](), torch.tensor([0.4, -1.0])
    phi = {n: v.clone().requires_grad_() for n, v in oracle.phi.items()}
    model = Program(partial(oracle.model, oracle.theta), nesting=1)  # no run uses up noise
    guide = partial(oracle.guide, phi)
    pyro.set_rng_seed(1)
    log_p, log_q = weigh(model, guide, draw(model, guide, x, num_particles=3), x)
    pyro.set_rng_seed(1)
    noise = [torch.normal(torch.zeros(3, 2), torch.ones(3, 2)) for _ in range(oracle.latents)]
    z = oracle.move(phi, x, torch.stack(noise, -1))
    log_w = oracle.log_p(oracle.theta, x, z) - oracle.log_q(phi, x, z)
    torch.testing.assert_close(log_p - log_q, log_w)
    got = torch.autograd.grad((log_p - log_q).sum(), list(phi.values()))
    torch.testing.assert_close(got, torch.autograd.grad(log_w.sum(), list(phi.values())))


@pytest.mark.parametrize("name", PER_DATUM | DISCRETE)
def test_nothing_flows_through_draws_that_do_not_move(name):
    story = (PER_DATUM | DISCRETE)[name]()
    z, values = drawn(story)
    assert not any(value.requires_grad for value in values.values())
    assert not any(s["value"].requires_grad for s in z.detach().trace.nodes.values())
    log_p, log_q = scores(story, z)
    theta, phi = learned_by(story.model, story), learned_by(story.guide, story)
    assert all(g is None for g in torch.autograd.grad(log_p.sum(), phi, allow_unused=True))
    assert all(g is None for g in torch.autograd.grad(log_q.sum(), theta, allow_unused=True))


def learned_by(program, story):
    with pyro.poutine.trace(param_only=True) as trace:
        program(*story.data)
    params = [s["value"] for s in trace.trace.nodes.values() if s["type"] == "param"]
    return params + (list(program.parameters()) if hasattr(program, "parameters") else [])


def test_a_latent_does_not_lead_to_the_parameters_of_the_one_above():
    # d log q(z1, z2) / d b1 at fixed draws is that of log q(z1) alone, though z1 moves z2.
    oracle, x = ORACLES["hierarchical"](), torch.tensor([0.4, -1.0])
    phi = {n: v.clone().requires_grad_() for n, v in oracle.phi.items()}
    model, guide = partial(oracle.model, oracle.theta), partial(oracle.guide, phi)
    z = draw(model, guide, x, moving=True).detach()
    (got,) = torch.autograd.grad(weigh(model, guide, z, x).log_q.sum(), phi["b1"])
    z1 = z.trace.nodes["z1"]["value"]
    (expected,) = torch.autograd.grad(normal(z1, phi["b1"] * x, phi["log_t1"]).sum(), phi["b1"])
    torch.testing.assert_close(got, expected)


# ---- dreams ----


@pytest.mark.parametrize("name", ["gaussian", "hierarchical", "nested", "factor_analysis", "vae"])
def test_a_dream_is_one_draw_per_datum(name):
    story = PER_DATUM[name]()
    log_q = dream(story.model, story.guide, *story.data)
    assert log_q.shape == (4,)
    assert log_q.unique().numel() == 4
    theta = learned_by(story.model, story)
    assert all(g is None for g in torch.autograd.grad(log_q.sum(), theta, allow_unused=True))


def test_a_dream_keeps_the_arguments_that_the_model_does_not_return():
    story = masked()
    assert dream(story.model, story.guide, *story.data).shape == (4,)


def test_a_model_that_returns_nothing_cannot_dream():
    story = factor_analysis()

    def model(x):
        story.model(x)

    with pytest.raises(ValueError, match=r"returned NoneType.*return x"):
        dream(model, story.guide, *story.data)


# ---- shares of a minibatch ----


@pytest.mark.parametrize("num_particles", [1, 3])
def test_only_what_data_share_is_scaled(num_particles):
    story = mixed()
    z, value = drawn(story, num_particles)
    model, guide = Program(story.model, share=0.25), Program(story.guide, share=0.25)
    log_p, log_q = weigh(model, guide, z, *story.data, per_datum=False)
    m = value["m"].reshape(num_particles, 1)
    zs, x = value["z"].reshape(num_particles, 6), story.data[0]
    p = 0.25 * normal(m, 0.1) + (normal(zs, m) + normal(x, zs, math.log(0.7))).sum(1, True)
    q = 0.25 * normal(m, 0.2, math.log(0.5)) + normal(zs, 0.5 * x, math.log(0.6)).sum(1, True)
    torch.testing.assert_close(log_p, p)
    torch.testing.assert_close(log_q, q)


def test_known_nesting_spares_a_run():
    # Runs made only to learn how deep plates nest use up random numbers.
    story = nested()
    pyro.set_rng_seed(1)
    _, value = drawn(
        story._replace(model=Program(story.model, nesting=2), guide=Program(story.guide, nesting=2))
    )
    pyro.set_rng_seed(1)
    with pyro.plate("particles", 3, dim=-3):
        trace = pyro.poutine.trace(story.guide).get_trace(*story.data)
    torch.testing.assert_close(value["w"], trace.nodes["w"]["value"])


@pytest.mark.parametrize("num_particles", [1, 3])
def test_data_may_be_broadcast_over_a_plate(num_particles):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    story = factor_analysis()._replace(model=model, guide=guide)
    z, value = drawn(story, num_particles)
    zs = value["z"].reshape(num_particles, 4)
    torch.testing.assert_close(scores(story, z).log_p, normal(zs, 0.0) + normal(zs, 0.3))


# ---- shapes ----

SIZE = st.integers(1, 5)


def shapes_hold(story, num_data, num_particles):
    for objective in (
        partial(elbo, num_particles=num_particles),
        partial(iwae, num_particles=num_particles),
        partial(iwae, num_particles=num_particles, gradient="dreg"),
        partial(reweighted_wake_sleep, num_particles=num_particles + 1, phi="both"),
        wake_sleep,
    ):
        estimate = objective(story.model, story.guide, *story.data)
        assert estimate.loss.shape == ()
        assert estimate.loss.requires_grad
        assert estimate.bound.shape == (num_data,)
        assert not estimate.bound.requires_grad
        assert estimate.bound.isfinite().all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(num_data=SIZE, obs_dim=SIZE, latent_dim=SIZE, num_particles=SIZE)
def test_shapes_of_factor_analysis(num_data, obs_dim, latent_dim, num_particles):
    shapes_hold(factor_analysis(num_data, obs_dim, latent_dim), num_data, num_particles)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(num_data=SIZE, height=SIZE, latent_dim=st.sampled_from([1, 3]), num_particles=SIZE)
def test_shapes_of_vae(num_data, height, latent_dim, num_particles):
    shapes_hold(vae(num_data, height, latent_dim), num_data, num_particles)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(num_data=SIZE, num_parts=SIZE, num_particles=SIZE)
def test_shapes_of_nested_plates(num_data, num_parts, num_particles):
    pyro.clear_param_store()
    shapes_hold(nested(num_data, num_parts), num_data, num_particles)


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("name", ZOO)
def test_scores_have_a_row_for_each_particle(name, num_particles):
    story = ZOO[name]()
    per_datum = name not in SHARED
    z, _ = drawn(story, num_particles)
    log_p, log_q = scores(story, z, per_datum=per_datum)
    columns = len(story.data[0]) if per_datum and name not in NO_PLATE else 1
    assert log_p.shape == log_q.shape == (num_particles, columns)


# ---- errors: one sentence that names the site, what was got and what to do ----


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_latent_cannot_be_weighed_per_datum(name):
    story = SHARED[name]()
    z, _ = drawn(story)
    site = {"regression": "w", "mixed": "m"}[name]
    with pytest.raises(ValueError, match=rf"site '{site}' is shared.*'elbo'") as caught:
        scores(story, z)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_site_that_the_model_lacks_is_named():
    story = factor_analysis()

    def guide(x):
        story.guide(x)
        pyro.sample("extra", dist.Normal(0.0, 1.0))

    z = draw(story.model, guide, *story.data)
    with pytest.raises(ValueError, match=r"guide samples site 'extra'.*\['z'\].*is_auxiliary"):
        weigh(story.model, guide, z, *story.data)


def test_a_site_that_the_guide_lacks_is_named():
    story = factor_analysis()

    def model(x):
        pyro.sample("extra", dist.Normal(0.0, 1.0))
        return story.model(x)

    z = draw(model, story.guide, *story.data)
    with pytest.raises(ValueError, match=r"model samples site 'extra'.*\['z'\].*observe it"):
        weigh(model, story.guide, z, *story.data)


def test_an_auxiliary_site_of_the_guide_is_scored_with_it():
    story = regression()

    def guide(features, y):
        pyro.sample("aux", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        story.guide(features, y)

    z = draw(story.model, guide, *story.data)
    with_aux = weigh(story.model, guide, z, *story.data, per_datum=False)
    z_only = weigh(story.model, story.guide, z.detach(), *story.data, per_datum=False)
    aux = normal(z.trace.nodes["aux"]["value"], 0.0)
    torch.testing.assert_close(with_aux.log_q - z_only.log_q, aux.reshape(1, 1))
    _, kl = elbo_terms(story.model, guide, z, *story.data)
    _, kl_only = elbo_terms(story.model, story.guide, z.detach(), *story.data)
    torch.testing.assert_close((kl - kl_only).sum(), aux)


@pytest.mark.parametrize(
    ("fn", "bad", "message"),
    [
        (dist.Normal(0.0, 1.0), math.nan, r"site 'x' observes NaN"),
        (dist.Bernoulli(0.5), 2.0, r"site 'x' observes 2, outside the support of Bernoulli"),
        (dist.Poisson(1.0), -1.0, r"site 'x' observes -1, outside the support of Poisson"),
        (dist.LogNormal(0.0, 1.0), -1.0, r"site 'x' observes -1, outside the support"),
    ],
)
def test_data_outside_the_support_are_named(fn, bad, message):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", fn, obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.tensor([1.0, bad])
    with pytest.raises(ValueError, match=message):
        elbo(model, guide, x)
