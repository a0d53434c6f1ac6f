"""The potential against Pyro's own, brute force, closed forms and quadrature; and decoding."""

import itertools
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.mcmc.util import initialize_model
from scipy.stats import chi2
from torch.distributions import biject_to
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from zoo_potentials import CONTINUOUS, DISCRETE, STORIES, Row, Y, hidden_markov, ragged

from pplvm import traces
from pplvm.traces import constrained, decode, potential, unconstrained, unconstrained_shapes

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def points(row, *batch):
    """A random point on the unconstrained scale."""
    shapes = unconstrained_shapes(row.model, *row.data)
    return {name: torch.randn((*batch, *shape)) for name, shape in shapes.items()}


def with_gradient(function, u):
    u = {name: value.detach().requires_grad_() for name, value in u.items()}
    out = function(u)
    return out.detach(), torch.autograd.grad(out, list(u.values()))


# ---- without discrete latents ----


@pytest.mark.parametrize("name", CONTINUOUS)
def test_it_is_the_potential_of_pyro(name):
    row = CONTINUOUS[name]()
    _, reference, transforms, trace = initialize_model(row.model, row.data)
    raw = {n: t(trace.nodes[n]["value"]).shape for n, t in transforms.items()}
    assert list(unconstrained_shapes(row.model, *row.data)) == list(raw)
    for _ in range(2):
        u = points(row)
        got = with_gradient(lambda u: potential(row.model, u, *row.data), u)
        close(got, with_gradient(lambda u: reference({n: u[n].reshape(raw[n]) for n in u}), u))


def test_improper_priors_are_flat_on_their_own_scale():
    row, u = STORIES["improper"](), {"mu": torch.tensor(0.3), "s": torch.tensor([-0.5, 0.2])}
    log_lik = dist.Normal(0.3, u["s"].exp().sum()).log_prob(Y).sum()
    close(potential(row.model, u, Y), -(log_lik + u["s"].sum()))


def test_factors_point_masses_and_rewritten_sites_count_as_pyro_has_them():
    row = STORIES["trimmings"]()
    assert list(unconstrained_shapes(row.model, Y)) == [
        "mu", "theta_decentered", "s_base", "y_unobserved"
    ]  # fmt: skip
    u = points(row)
    mu, eps, base, gap = u.values()
    theta = mu + 0.5 * eps
    data = dist.Normal(theta, 2 * base.exp())
    normal = dist.Normal(0.0, 1.0)
    log_p = dist.Normal(0.0, 2.0).log_prob(mu) + normal.log_prob(eps) + normal.log_prob(base)
    log_p = log_p - mu**2 * theta + data.log_prob(Y)[[0, 2, 3]].sum() + data.log_prob(gap)[1]
    close(potential(row.model, u, Y), -log_p)


def test_a_support_may_depend_on_another_latent():
    # Pyro's own potential freezes the support of 'b' at the first draw of 'a'.
    def model(y):
        a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
        b = pyro.sample("b", dist.Uniform(-a, 2 * a))
        pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    for _ in range(3):
        u = {"a": torch.randn(()), "b": torch.randn(())}
        a, p = u["a"].exp(), u["b"].sigmoid()
        b = 3 * a * p - a
        log_p = dist.Normal(0.0, 1.0).log_prob(u["a"]) + dist.Normal(b, 1.0).log_prob(Y).sum()
        close(potential(model, u, Y), -(log_p + (p * (1 - p)).log()))  # 1 / 3a cancels 3a
        close(constrained(model, u, Y), {"a": a, "b": b})
        close(unconstrained(model, {"a": a, "b": b}, Y), u)


# ---- with discrete latents, summed out ----


def assignments(row):
    """Every assignment to the discrete latents, {name: (plates…)}, by conditioning."""
    trace = poutine.trace(row.model).get_trace(*row.data)
    choices = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or poutine.util.site_is_subsample(site):
            continue
        if site["fn"].has_enumerate_support:
            states = site["fn"].enumerate_support(expand=False).reshape(-1, *site["fn"].event_shape)
            batch = site["fn"].batch_shape
            choices[name] = [
                torch.stack(pick).reshape(site["value"].shape)
                for pick in itertools.product(states, repeat=batch.numel())
            ]
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def raw(row, values):
    """Values (plates…, event…) in the shapes that Pyro gives them."""
    trace = poutine.trace(row.model).get_trace(*row.data)
    return {name: value.reshape(trace.nodes[name]["value"].shape) for name, value in values.items()}


def brute_force(row, z):
    """The joint log-density of every assignment and the data, (number of assignments,)."""
    terms = []
    for k in assignments(row):
        trace = poutine.trace(poutine.condition(row.model, {**z, **k})).get_trace(*row.data)
        terms.append(trace.log_prob_sum())
    return torch.stack(terms)


def by_brute_force(row, u):
    trace = poutine.trace(row.model).get_trace(*row.data)
    z, log_det = {}, 0.0
    for name, value in u.items():
        transform = biject_to(trace.nodes[name]["fn"].support)
        value = value.reshape(transform.inv(trace.nodes[name]["value"]).shape)
        z[name] = transform(value)
        log_det = log_det + transform.log_abs_det_jacobian(value, z[name]).sum()
    return -(brute_force(row, z).logsumexp(0) + log_det) + row.masked * torch.tensor(2.0).log()


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_latents_are_summed_out(name):
    row = DISCRETE[name]()
    u = points(row)
    got = with_gradient(lambda u: potential(row.model, u, *row.data), u)
    close(got, with_gradient(lambda u: by_brute_force(row, u), u))


def forward_algorithm(u, y):
    A, loc = biject_to(dist.Dirichlet(torch.ones(2)).support)(u["A"]), u["loc"]
    alpha = A[0].log() + dist.Normal(loc, 1.5).log_prob(y[0])
    for value in y[1:]:
        step = (alpha[:, None] + A.log()).logsumexp(0)
        alpha = step + dist.Normal(loc, 1.5).log_prob(value)
    return alpha.logsumexp(0)


def prior_of_chain(u):
    transform = biject_to(dist.Dirichlet(torch.ones(2)).support)
    log_det = transform.log_abs_det_jacobian(u["A"], transform(u["A"])).sum()
    return dist.Normal(0.0, 1.0).log_prob(u["loc"]).sum() + log_det  # Dirichlet(1, 1) is flat


def test_a_hidden_markov_model_is_filtered():
    y = torch.randn(40)
    u = points(Row(hidden_markov, (y,)))
    got = with_gradient(lambda u: potential(hidden_markov, u, y), u)
    close(got, with_gradient(lambda u: -(forward_algorithm(u, y) + prior_of_chain(u)), u))


def test_steps_after_the_end_of_a_series_add_nothing():
    row = DISCRETE["ragged"]()
    u = points(row)
    total = sum(forward_algorithm(u, y[:n]) for y, n in zip(*row.data, strict=True))
    close(potential(ragged, u, *row.data), -(total + prior_of_chain(u)))


def test_factors_that_peak_at_different_states_do_not_underflow():
    # exp(-2000) is zero: a product of exponentials would sum to nothing, or to NaN.
    def model(gap):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2, dim=-1):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.factor("first", -gap * k + mu)
            pyro.factor("second", -gap * (1 - k))

    u, gap = {"mu": torch.tensor(0.3)}, torch.tensor(2000.0)
    got = with_gradient(lambda u: potential(model, u, gap), u)
    log_p = dist.Normal(0.0, 1.0).log_prob(u["mu"]) + 2 * (u["mu"] - gap)
    close(got, (-log_p, (torch.tensor(0.3 - 2),)))


def test_impossible_states_have_no_gradient():
    # States begin at 2 and never fall: nothing leads to the others, whose sums are of nothing.
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        z = 0
        for t in pyro.markov(range(3)):
            previous, z = z, pyro.sample(f"z{t}", dist.Categorical(torch.ones(3)))
            pyro.factor(f"step{t}", torch.where(z < previous, -torch.inf, mu * (1 + z)))
            if t == 0:
                pyro.factor("begin", torch.where(z < 2, -torch.inf, 0.0))

    got = with_gradient(lambda u: potential(model, u, Y), {"mu": torch.tensor(0.3)})
    log_p = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.3)) + 2.7 - 3 * torch.tensor(3.0).log()
    close(got, (-log_p, (torch.tensor(0.3 - 9),)))


# ---- scales ----


@pytest.mark.parametrize("name", STORIES)
def test_latents_go_to_their_own_scale_and_back(name):
    row = STORIES[name]()
    u = points(row)
    z = constrained(row.model, u, *row.data)
    close(unconstrained(row.model, z, *row.data), u)
    if name != "improper":  # which cannot be drawn
        sites = traces.look(row.model, *row.data)
        for n, value in z.items():
            assert value.shape == sites[n].value.shape
            assert sites[n].fn.support.check(value.reshape(sites[n].fn.shape())).all()


@pytest.mark.parametrize("name", STORIES)
def test_nothing_is_drawn(name):
    row = STORIES[name]()
    u, state = points(row), torch.get_rng_state()
    potential(row.model, u, *row.data)
    unconstrained(row.model, constrained(row.model, u, *row.data), *row.data)
    unconstrained_shapes(row.model, *row.data)
    assert torch.equal(torch.get_rng_state(), state)


# ---- traced ----


@pytest.mark.parametrize("name", sorted(STORIES.keys() - {"loops"}))
def test_it_can_be_traced_and_then_vectorised(name):
    row = STORIES[name]()
    function = partial(with_gradient, lambda u: potential(row.model, u, *row.data))
    with pyro.validation_enabled(False):
        graph = make_fx(function)(points(row))
    u = points(row, 3)
    each = [function({n: v[c] for n, v in u.items()}) for c in range(3)]
    close(graph({n: v[0] for n, v in u.items()}), each[0])
    value, gradient = vmap(graph)(u)
    close(value, torch.stack([e[0] for e in each]))
    close(gradient, tuple(map(torch.stack, zip(*(e[1] for e in each), strict=True))))


def test_a_prior_made_while_values_were_checked_checks_them_still():
    row = CONTINUOUS["network"]()
    u, prior = points(row), row.model.linear._pyro_samples["weight"]
    with pyro.validation_enabled(False):
        potential(row.model, u, *row.data)
    with pytest.raises(ValueError, match="within the support"):
        prior.log_prob(torch.full((1, 2), torch.nan))


def test_a_loop_over_a_plate_cannot_be_traced_and_says_so():
    row = CONTINUOUS["loops"]()  # Pyro reads the indices of such a plate with .item()
    with pyro.validation_enabled(False), pytest.raises(RuntimeError, match="tracing tensor"):
        make_fx(lambda u: potential(row.model, u, Y))(points(row))


# ---- evidence ----


def normal_normal(y):
    mu = pyro.sample("mu", dist.Normal(0.5, 2.0))
    with pyro.plate("data", len(y), dim=-1):
        pyro.sample("y", dist.Normal(mu, 0.7), obs=y)
    return dist.MultivariateNormal(torch.full((4,), 0.5), 4.0 + 0.49 * torch.eye(4)).log_prob(y)


def gamma_poisson(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.5))
    pyro.sample("y", dist.Poisson(rate), obs=y.abs().round()[3])
    return dist.GammaPoisson(2.0, 1.5).log_prob(y.abs().round()[3])


def beta_binomial(y):
    p = pyro.sample("p", dist.Beta(2.0, 1.5))
    pyro.sample("y", dist.Binomial(6, p), obs=torch.tensor(4.0))
    return dist.BetaBinomial(2.0, 1.5, 6).log_prob(torch.tensor(4.0))


def normal_mixture(y):
    mu = pyro.sample("mu", dist.Normal(0.5, 2.0))
    k = pyro.sample("k", dist.Bernoulli(0.3))
    pyro.sample("y", dist.Normal(mu + 3 * k, 0.7), obs=y[0])
    loc, weight = torch.tensor([0.5, 3.5]), torch.tensor([0.7, 0.3])
    return (dist.Normal(loc, 4.49**0.5).log_prob(y[0]) + weight.log()).logsumexp(0)


@pytest.mark.parametrize("model", [normal_normal, gamma_poisson, beta_binomial, normal_mixture])
def test_it_integrates_to_the_evidence(model):
    (name,) = unconstrained_shapes(model, Y)
    with pyro.validation_enabled(False):
        graph = make_fx(lambda u: potential(model, u, Y))({name: torch.zeros(())})
    u = torch.linspace(-40.0, 40.0, 8001)
    evidence = torch.trapezoid((-vmap(graph)({name: u})).exp(), u)
    exact = poutine.trace(model).get_trace(Y).nodes["_RETURN"]["value"]
    torch.testing.assert_close(evidence.log(), exact, rtol=1e-6, atol=1e-6)


# ---- discrete latents, decoded ----


def stubborn(model):
    """The same story, with a number that no trace can follow."""

    def program(*data):
        model(*data)
        pyro.deterministic(
            "number", torch.tensor(pyro.sample("extra", dist.Normal(0.0, 1.0)).item())
        )

    return program


SMALL = {
    "mixture": Y[:2],
    "dependent": Y[:2],
    "shared": Y[:2],
    "parts": Y.reshape(2, 2),
    "half_seen": Y,
    "hidden_markov": Y,
    "second_order": Y[:3],
    "cycle": Y,
    "lonely": Y,
}


def posterior(row, z):
    """The exact posterior of each assignment, and a code for each draw: which it is."""
    every = list(assignments(row))
    table = torch.stack([torch.cat([v.flatten().double() for v in k.values()]) for k in every])

    def code(draws):
        flat = torch.cat(
            [draws[n].reshape(len(draws[n]), -1).double() for n in every[0]], 1
        )  # (S, numbers)
        same = (flat[:, None] == table).all(-1)
        assert (same.sum(1) == 1).all()
        return same.long().argmax(1)

    return brute_force(row, z).softmax(0), code


def surprise(counts, p):
    """The p-value of Pearson's test, rare cells pooled."""
    order = p.argsort()
    expected, counts = p[order] * counts.sum(), counts[order]
    rare = (expected.cumsum(0) < 5).sum()
    expected = torch.cat([expected[: rare + 1].sum()[None], expected[rare + 1 :]])
    counts = torch.cat([counts[: rare + 1].sum()[None], counts[rare + 1 :]])
    assert len(counts) > 2  # else there is nothing to see
    statistic = ((counts - expected) ** 2 / expected).sum()
    return chi2.sf(statistic.item(), len(counts) - 1)


@pytest.mark.parametrize("way", ["together", "one by one"])
@pytest.mark.parametrize("name", SMALL)
def test_draws_are_from_the_joint_posterior(name, way):
    # Two rows of continuous latents, alternating; false alarms: one in 10,000 for each row.
    row = Row(DISCRETE[name]().model, (SMALL[name],))
    num_draws = 3000 if way == "together" else 150
    z = [constrained(row.model, points(row), *row.data) for _ in range(2)]
    values = {n: torch.stack([z[0][n], z[1][n]] * num_draws) for n in z[0]}
    model = row.model
    if way == "one by one":
        model, values["extra"] = stubborn(row.model), torch.zeros(2 * num_draws)
    draws = decode(model, values, *row.data)
    best = decode(model, {n: v[:2] for n, v in values.items()}, *row.data, most_probable=True)
    for c in range(2):
        p, code = posterior(row, raw(row, z[c]))
        counts = code({n: v[c::2] for n, v in draws.items()}).bincount(minlength=len(p))
        assert surprise(counts.double(), p) > 1e-4
        found = p[code({n: v[[c]] for n, v in best.items()})]
        close(found, p.max()[None])


def test_states_are_of_the_shape_of_their_sites():
    row = DISCRETE["ragged"]()
    u = points(row)
    values = {n: v.expand(5, *v.shape) for n, v in constrained(row.model, u, *row.data).items()}
    sites = traces.look(row.model, *row.data)
    draws = decode(row.model, values, *row.data)
    assert list(draws) == ["z0", "z1", "z2"]
    assert all(value.shape == (5, *sites[name].value.shape) for name, value in draws.items())


def test_large_draws_are_decoded_in_batches(monkeypatch):
    row = DISCRETE["mixture"]()
    z = [constrained(row.model, points(row), Y) for _ in range(7)]
    values = {n: torch.stack([part[n] for part in z]) for n in z[0]}
    whole = decode(row.model, values, Y, most_probable=True)
    monkeypatch.setattr("pplvm.traces.decoding._BATCH", 100)
    close(decode(row.model, values, Y, most_probable=True), whole)
    assert decode(row.model, values, Y)["k"].shape == (7, 4)


def test_a_story_is_not_run_once_for_each_draw():
    runs = []

    def model(y):
        runs.append(y)
        hidden_markov(y)  # whose A[z] does not broadcast over draws

    z = constrained(model, points(Row(model)), Y)
    runs.clear()
    decode(model, {n: v.expand(50, *v.shape) for n, v in z.items()}, Y)
    assert len(runs) < 20


def test_a_story_without_discrete_latents_has_none_to_decode():
    row = CONTINUOUS["schools"]()
    z = constrained(row.model, points(row), *row.data)
    assert decode(row.model, {n: v[None] for n, v in z.items()}, *row.data) == {}


def test_numbers_that_leave_for_numpy_are_not_frozen():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(float(mu.detach().numpy() > 0))))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y[0])

    draws = decode(model, {"mu": torch.tensor([-1.0, 1.0, -2.0, 1.0])}, Y)
    assert draws["k"].tolist() == [0.0, 1.0, 0.0, 1.0]


# ---- errors: one sentence that names the site, what was got and what to do ----


def sites(*pairs):
    def model(y):
        for name, fn in pairs:
            pyro.sample(name, fn())

    return model


def crossing(y):
    a, b = pyro.plate("a", 2, dim=-1), pyro.plate("b", 3, dim=-2)
    with a:
        j = pyro.sample("j", dist.Bernoulli(0.5))
    with b:
        k = pyro.sample("k", dist.Bernoulli(0.5))
    with a, b:
        pyro.sample("y", dist.Normal(j + k, 1.0), obs=torch.zeros(3, 2))


def escaping(y):
    with pyro.plate("data", 4, dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(k, 1.0), obs=y)


def shifted(y):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(k[..., None], 1.0), obs=y)


def subsampled(y):
    with pyro.plate("data", 4, subsample_size=2, dim=-1) as n:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y[n])


def crowded(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for n in range(80):
        k = pyro.sample(f"k{n}", dist.Bernoulli(0.5))
        pyro.sample(f"y{n}", dist.Normal(mu * k, 1.0), obs=y[0])


def moving_support(y):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("z", dist.Uniform(0.0, 1.0 + k))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (sites(("k", lambda: dist.Poisson(3.0))), r"site 'k' \(Poisson\).*observe it, truncate"),
        (
            sites(("k", lambda: dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))),
            r"site 'k' \(Bernoulli\).*plate rather than to_event",
        ),
        (
            sites(("R", lambda: dist.Wishart(torch.tensor(4.0), torch.eye(3)))),
            r"site 'R' \(Wishart\) has no bijection.*LKJCholesky",
        ),
        (
            sites(("L", lambda: dist.ImproperUniform(constraints.lower_cholesky, (), (2, 2)))),
            r"site 'L' \(ImproperUniform\) has no bijection.*Jacobian",
        ),
        (
            sites(("z", lambda: dist.ProjectedNormal(torch.ones(3)))),
            r"site 'z' \(ProjectedNormal\) has no bijection.*write it as",
        ),
        (
            sites(("k", lambda: dist.Bernoulli(torch.full((3,), 0.5)))),
            r"site 'k' \(Bernoulli\) has 3 discrete values.*pyro.plate",
        ),
        (crossing, r"site 'y' depends on discrete latents of two plates that cross.*loop over"),
        (escaping, r"site 'y' depends on a discrete latent whose plate it is not in: sample"),
        (shifted, r"site 'y' \(Normal\) does not broadcast over the states.*from the right"),
        (crowded, r"up to site '[ky]\d\d' take more than the 64 dims.*pyro.markov"),
        (subsampled, r"plate 'data' takes 2 of 4 data.*without subsample_size"),
        (moving_support, r"support of site 'z' \(Uniform\) depends on a discrete latent.*scale"),
    ],
)
def test_what_cannot_be_done_is_named(model, message):
    with pytest.raises(ValueError, match=message) as caught:
        unconstrained_shapes(model, Y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("u", "message"),
    [
        ({}, r"site 'mu' is given no value \(there are \[\]\): give one of shape \(\)"),
        ({"mu": torch.zeros(2)}, r"site 'mu' is given a value of shape \(2,\).*of shape \(\)"),
    ],
)
def test_values_that_do_not_fit_are_named(u, message):
    for function in (potential, constrained, unconstrained):
        with pytest.raises(ValueError, match=message):
            function(normal_normal, u, Y)
    if u:
        with pytest.raises(ValueError, match=message):
            decode(normal_normal, {"mu": torch.zeros(5, 2)}, Y)
    else:
        with pytest.raises(ValueError, match="'values' is empty"):
            decode(normal_normal, {}, Y)
