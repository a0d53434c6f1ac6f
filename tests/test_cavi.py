"""Coordinate ascent: updates by hand or by listing everything, bounds by Monte Carlo, what is refused.

Monte Carlo tests compare means of S independent draws at 4 standard errors: a false alarm in 16,000
runs, and seeds are fixed.
"""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pplvm
from pplvm import traces
from pplvm.conjugate_families import FAMILIES
from pplvm.models import conjugate as conjugates
from pplvm.models.factorial_hmm import FactorialHMM
from pplvm.models.gaussian_mixture import BayesianGaussianMixture
from pplvm.models.hmm import HMM
from pplvm.models.naive_bayes import BayesianNaiveBayes
from pplvm.traces.blocks import taken_apart
from pplvm.traces.pairs import Reader

torch.manual_seed(0)
LENGTHS = torch.tensor([3, 1, 2])
X = torch.randn(3, 3, 2, dtype=torch.float64)  # (N, T, D)
CLUSTERS = torch.cat([
    torch.randn(20, 2) * 0.5 + torch.tensor([2.0, 0.0]),
    torch.randn(12, 2) * 0.3 - 1,
    torch.randn(8, 2) * 0.6 + torch.tensor([-1.0, 2.0]),
]).double()  # fmt: skip
BINARY = (torch.rand(30, 6) < torch.where(torch.arange(30)[:, None] < 15, 0.8, 0.2)).double()
COUNTS = torch.poisson(torch.where(torch.arange(25)[:, None] < 12, 3.0, 0.5).expand(25, 4)).double()


def normal_gamma(x, kappa=0.5):
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(0.3, (kappa * tau).rsqrt()))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x)


def bayesian_hmm(x):  # (N, T)
    with pyro.plate("states", 2, dim=-1):
        A = pyro.sample("A", dist.Dirichlet(torch.ones(2)))  # (2, 2)
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 2.0))
    z = None
    with pyro.plate("data", len(x), dim=-1):
        for t in pyro.markov(range(x.shape[1])):
            p = torch.full((2,), 0.5, dtype=x.dtype) if t == 0 else A[z]
            z = pyro.sample(f"z_{t}", dist.Categorical(p))
            pyro.sample(f"x_{t}", dist.Normal(mu[z], 1.0), obs=x[:, t])
    return x


def factors(x, scale=0.7):  # M binary latents of a datum, seen as a sum
    W = torch.tensor([[1.0, -0.5], [0.4, 0.8], [-0.6, 0.3]], dtype=x.dtype)
    with pyro.plate("data", len(x), dim=-1):
        z = [pyro.sample(f"b{m}", dist.Bernoulli(torch.tensor(0.3 + 0.1 * m))) for m in range(3)]
        mean = sum(z[m][..., None] * W[m] for m in range(3))
        return pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


def factorial(num_chains=2):
    torch.manual_seed(1)
    model = FactorialHMM(num_chains, 2, 2)
    model.log_A.data.mul_(10)
    model.log_s.data.fill_(-0.2)
    return model


# ---- expectations by two points ----


@pytest.mark.parametrize("family", list(FAMILIES))
def test_two_points_have_the_expected_statistics(family):
    torch.manual_seed(0)
    for scale in (0.3, 1.0, 300.0):
        p = (torch.rand(5, dtype=torch.float64) + 0.5) * scale
        q = (torch.rand(5, dtype=torch.float64) + 0.5) * scale
        if family == "Dirichlet":
            points, expected = FAMILIES[family].points(p), p.digamma() - p.sum().digamma()
            got = sum(x.log() for x in points) / 2
            assert torch.allclose(got, expected, rtol=1e-9)
            assert all(torch.allclose(x.sum(), torch.ones(()).double()) for x in points)
            continue
        family_of = FAMILIES[family]
        sides = [family_of.statistics(x) for x in family_of.points(p, q)]
        for low, high, want in zip(*sides, expected_statistics(family, p, q), strict=True):
            assert torch.allclose((low + high) / 2, want, rtol=1e-8), (family, scale)


def expected_statistics(family, p, q):
    if family == "Beta":
        return [p.digamma() - (p + q).digamma(), q.digamma() - (p + q).digamma()]
    if family == "Gamma":
        return [p.digamma() - q.log(), p / q]
    if family == "InverseGamma":
        return [q.log() - p.digamma(), p / q]
    return [p, p**2 + q**2]


# ---- against updates by hand ----


def test_mean_and_precision_follow_the_updates_by_hand():
    x, kappa = 1.5 + 0.7 * torch.randn(12, dtype=torch.float64), 0.5
    found = pplvm.cavi(normal_gamma, x, tolerance=1e-14)
    a, b = torch.tensor(2.0 + 13 / 2), torch.tensor(1.0)
    for _ in range(200):  # Bishop (2006), 10.26 to 10.30, for this prior
        loc, variance = (kappa * 0.3 + x.sum()) / (kappa + 12), 1 / ((kappa + 12) * a / b)
        squares = kappa * ((loc - 0.3) ** 2 + variance) + ((x - loc) ** 2 + variance).sum()
        b = 1.0 + squares / 2
    q = found.posterior
    assert torch.allclose(q["mu"].loc, loc)
    assert torch.allclose(q["mu"].scale, variance.sqrt())
    assert torch.allclose(q["tau"].concentration, a.double())
    assert torch.allclose(q["tau"].rate, b)
    want = 0.0  # 10.3, with expectations known for each term
    elog, e = a.digamma() - b.log(), a / b
    want += 12 / 2 * (elog - math.log(2 * math.pi)) - e / 2 * ((x - loc) ** 2 + variance).sum()
    want += (elog + math.log(kappa / (2 * math.pi)) - kappa * e * ((loc - 0.3) ** 2 + variance)) / 2
    want += dist.Gamma(2.0, 1.0).log_prob(torch.tensor(1.0)) + 1.0 + elog - e
    want += q["mu"].entropy() + q["tau"].entropy()
    assert found.elbo[-1] == pytest.approx(want.item(), abs=1e-6)


@pytest.mark.parametrize("name", ["beta_bernoulli", "gamma_poisson", "normal_normal"])
def test_of_a_single_latent_it_is_the_exact_posterior(name):
    model = getattr(conjugates, name)
    x = {"beta_bernoulli": BINARY[:, 0], "gamma_poisson": COUNTS[:, 0]}.get(name, CLUSTERS[:, 0])
    found, truth = pplvm.cavi(model, x), pplvm.conjugate(model, x)
    assert found.elbo[-1] == pytest.approx(truth.log_marginal.item(), rel=1e-9)
    for site in truth.mean:
        assert torch.allclose(found.mean[site], truth.mean[site].double(), rtol=1e-6)
        assert torch.allclose(found.sd[site], truth.sd[site].double(), rtol=1e-6)


def by_listing(model, data, structured, start, num_sweeps):
    """Sweeps over blocks whose distributions are tables of all their paths; ELBO after each."""
    N, T = data[0].shape[:2]
    M = model.num_chains
    names = [[f"z{m}_{t}" for t in range(T)] for m in range(M)]
    paths = list(itertools.product(range(2), repeat=T))
    joint = torch.empty(*[len(paths)] * M, N, dtype=torch.float64)
    for index in itertools.product(range(len(paths)), repeat=M):
        values = {
            names[m][t]: torch.full((N,), paths[index[m]][t]) for m in range(M) for t in range(T)
        }
        joint[index] = traces.log_joint(model, values, *data, per_datum=True)
    # A masked state has log-density 0 in Pyro; here it is uniform, whatever it is.
    masked = (T - data[1].double()) * math.log(2)
    joint = joint - M * masked
    at = torch.tensor(paths)  # (2^T, T)
    q = [torch.stack([s[t, :, at[:, t]] for t in range(T)]).prod(0).T for s in start]  # (2^T, N)
    elbos = []
    for _ in range(num_sweeps):
        for m in range(M):
            blocks = (
                [list(range(T))] if structured else [list(range(0, T, 2)), list(range(1, T, 2))]
            )
            for block in blocks:
                expected = expectation(joint, q, m)  # (2^T, N)
                q[m] = updated(expected, q[m], at, block if not structured else None)
        entropy = sum(-torch.xlogy(x, x).sum() for x in q)
        elbos.append(
            (torch.xlogy(q[0], torch.ones(())) + q[0] * expectation(joint, q, 0)).sum() + entropy
        )
    return torch.stack(elbos), [
        torch.stack([(x * at[:, t, None]).sum(0) for t in range(T)], 1) for x in q
    ]


def expectation(joint, q, m):
    """Returns the expectation of the joint over all blocks but one, (2^T, N)."""
    total = joint
    for other in reversed(range(len(q))):
        if other != m:
            shape = [1] * other + [len(q[other])] + [1] * (len(q) - other - 1) + [q[other].shape[1]]
            total = (total * q[other].reshape(shape)).sum(other, keepdim=True)
    return total.reshape(len(q[m]), -1)


def updated(expected, q, at, block):
    """Updates a whole path, or the steps of a block of it that are independent given the others."""
    if block is None:
        return expected.softmax(0)
    T = at.shape[1]
    marginals = [
        torch.stack([(q * (at[:, t] == k)[:, None]).sum(0) for k in (0, 1)]) for t in range(T)
    ]
    new = list(marginals)
    for t in block:
        others = math.prod(marginals[s][at[:, s]] for s in range(T) if s != t)  # (2^T, N)
        logits = torch.stack(
            [((at[:, t] == k)[:, None] * others * expected).sum(0) for k in (0, 1)]
        )
        new[t] = logits.softmax(0)
    return math.prod(new[t][at[:, t]] for t in range(T))


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("num_chains", [1, 2, 3])
def test_chains_follow_the_updates_by_listing_all_paths(num_chains, structured):
    model = factorial(num_chains).double()
    blocks = traces.Blocks(model, X, LENGTHS, structured=structured)
    blocks.start(torch.Generator().manual_seed(3))
    if not structured:  # masked states are their own factors, and uniform from the first update on
        for q in blocks.q:
            q[(torch.arange(3)[:, None] >= LENGTHS)] = 0.5
    start = [q.clone() for q in blocks.q]
    got = torch.stack([blocks.sweep() for _ in range(4)])
    with torch.no_grad():
        want, means = by_listing(model, (X, LENGTHS), structured, start, 4)
    assert torch.allclose(got, want, rtol=1e-9)
    marginals = blocks.marginals()
    for m in range(num_chains):
        assert torch.allclose(marginals[f"z{m}"][..., 1], means[m], atol=1e-8)


def uneven_noise(x, scale):
    """What a pair of latents adds differs from datum to datum, as their noise does."""
    with pyro.plate("data", len(x), dim=-1):
        z = [pyro.sample(f"b{m}", dist.Bernoulli(torch.tensor(0.4))) for m in range(3)]
        mean = z[0] + 2 * z[1] - z[2]
        return pyro.sample("x", dist.Normal(mean, scale), obs=x)


@pytest.mark.parametrize("same", [True, False])
def test_pairs_of_a_few_data_are_those_of_all(same):
    if same:
        model, lengths = factorial(3).double(), torch.tensor([4, 0, 1, 4, 3, 2, 4, 1, 4])
        data, even = (torch.randn(9, 4, 2, dtype=torch.float64), lengths), True
    else:
        x = torch.randn(9, dtype=torch.float64)
        model, data, even = uneven_noise, (x, 0.5 + torch.rand(9, dtype=torch.float64)), False
    found = []
    for blocks in (taken_apart(model, *data, even=even)[0], Reader(model, data, even).blocks):
        field = traces.Blocks(model, *data, structured=True)
        field.blocks = blocks
        assert all(
            (pair.rows is not None) == same
            for block in blocks
            for pairs in block.pairs.values()
            for pair in pairs.values()
        )
        field.start(torch.Generator().manual_seed(0))
        found.append(torch.stack([field.sweep() for _ in range(3)]))
    assert torch.allclose(*found, rtol=1e-12)


def test_latents_of_a_datum_are_apart():
    x = torch.randn(4, 2, dtype=torch.float64)
    blocks = traces.Blocks(factors, x, structured=True)
    blocks.start(torch.Generator().manual_seed(0))
    q = [b[0, :, 1].clone() for b in blocks.q]  # (N,) probabilities of 1
    states = list(itertools.product((0.0, 1.0), repeat=3))
    joint = {
        s: traces.log_joint(
            factors,
            {f"b{m}": torch.full((4,), s[m], dtype=x.dtype) for m in range(3)},
            x,
            per_datum=True,
        )
        for s in states
    }
    got = blocks.sweep()
    for m in range(3):
        logits = sum(
            (2 * s[m] - 1)
            * joint[s]
            * math.prod(q[o] if s[o] else 1 - q[o] for o in range(3) if o != m)
            for s in states
        )
        q[m] = logits.sigmoid()
    weights = {s: math.prod(q[o] if s[o] else 1 - q[o] for o in range(3)) for s in states}
    want = sum((w * (joint[s] - w.log())).sum() for s, w in weights.items())
    assert got.item() == pytest.approx(want.item(), rel=1e-9)
    assert torch.allclose(blocks.marginals()["b1"][:, 1], q[1])


# ---- bounds ----

STORIES = {
    "mixture": (lambda: BayesianGaussianMixture(2, 3), (CLUSTERS,)),
    "naive_bayes": (lambda: BayesianNaiveBayes(6, 2), (BINARY,)),
    "multinomial": (lambda: BayesianNaiveBayes(4, 2, "multinomial"), (COUNTS,)),
    "normal_gamma": (lambda: normal_gamma, (CLUSTERS[:, 0],)),
    "bayesian_hmm": (lambda: bayesian_hmm, (2 * X[..., 0].repeat(2, 2),)),
    "factorial_hmm": (factorial, (X, LENGTHS)),
    "factors": (lambda: factors, (CLUSTERS,)),
}


@pytest.mark.parametrize("name", list(STORIES))
def test_the_bound_rises_at_every_step(name):
    story, data = STORIES[name]
    elbo = torch.tensor(pplvm.cavi(story(), *data, num_starts=2, tolerance=1e-9).elbo)
    assert len(elbo) >= 2
    assert (elbo.diff() >= -1e-8 * elbo.abs().max()).all()


@pytest.mark.parametrize("name", ["mixture", "naive_bayes", "multinomial", "bayesian_hmm"])
def test_the_bound_is_what_draws_say(name):
    story, data = STORIES[name]
    model = story()
    found = pplvm.cavi(model, *data, num_steps=3, num_starts=1)  # anywhere, not only at the end
    draws = found.draws(4000, seed=1)
    values = {
        name: v[0].double() if v.is_floating_point() else v[0] for name, v in draws.values.items()
    }
    log_q = sum(
        found.posterior[n].log_prob(values[n]).reshape(4000, -1).sum(1) for n in found.posterior
    )
    rows = [{name: v[s] for name, v in values.items()} for s in range(1000)]
    with torch.no_grad():
        terms = [traces.log_joint(model, row, *data, per_datum=False).reshape(()) for row in rows]
    log_p = torch.stack(terms)
    # log q(z) = E log p(x, z, θ) - log Z, the expectation being over θ alone: by the same two points.
    (total, weights), tables = found.discrete.weights(), found.discrete.graph.tensors()
    entropy = total - traces.weighed(weights, tables).detach()
    estimate = log_p - log_q[:1000]
    mean, error = estimate.mean() + entropy, estimate.std() / len(estimate) ** 0.5
    assert abs(mean - found.elbo[-1]) < 4 * error


def test_the_bound_is_below_the_evidence_and_structure_helps():
    model = factorial(3)
    truth = pplvm.exact(model, X, LENGTHS).log_marginal.sum().item()
    chains, apart = (
        pplvm.cavi(model, X, LENGTHS, structured=s, tolerance=1e-10).elbo[-1] for s in (True, False)
    )
    assert apart < chains < truth
    hmm = HMM(3, 2, "gaussian")  # a single chain: the mean field is the posterior
    truth = pplvm.exact(hmm, X, LENGTHS)
    found = pplvm.cavi(hmm, X, LENGTHS)
    assert found.elbo[-1] == pytest.approx(truth.log_marginal.sum().item(), rel=1e-9)
    assert torch.allclose(found.marginals["z"], truth.marginals["z"])


def test_seeds_and_shapes():
    model = BayesianGaussianMixture(2, 3)
    one, two = (pplvm.cavi(model, CLUSTERS, seed=1) for _ in range(2))
    assert one.elbo == two.elbo
    draws = one.draws(7, seed=2)
    assert {n: tuple(v.shape) for n, v in draws.values.items()} == {
        "pi": (1, 7, 3), "tau": (1, 7, 3, 2), "mu": (1, 7, 3, 2), "k": (1, 7, 40),
    }  # fmt: skip
    assert one.marginals["k"].shape == (40, 3)
    few = {"num_chains": 2, "num_warmup": 50, "num_samples": 50, "compile": "graph"}
    table = pplvm.compare({"CAVI": one, "NUTS": pplvm.nuts(model, CLUSTERS, **few)})
    assert table["CAVI"].bound == pytest.approx(one.elbo[-1] / 40)


def test_constants_of_float32_are_no_hindrance():
    W = torch.tensor([[1.0, 0.5], [-0.3, 0.8]])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.OneHotCategorical(torch.tensor([0.4, 0.6])))
            return pyro.sample("x", dist.Normal(k @ W, 1.0).to_event(1), obs=x)

    x = torch.randn(5, 2)
    truth = pplvm.exact(model, x).log_marginal.sum().item()
    assert pplvm.cavi(model, x).elbo[-1] == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e5])
def test_units_do_not_matter(unit):
    """Two latents that are seen as a sum: their mean field in closed form."""

    def model(x):
        a = pyro.sample("a", dist.Normal(torch.tensor(0.0), unit))
        b = pyro.sample("b", dist.Normal(torch.tensor(0.0), unit))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(a + b, unit), obs=x)

    x = unit * (2 + torch.randn(20, dtype=torch.float64))
    found = pplvm.cavi(model, x, tolerance=1e-12)
    for name in ("a", "b"):
        assert found.sd[name].item() == pytest.approx(unit / 21**0.5, rel=1e-5)
    # Two Gaussians of correlation -20/21 under independent ones: KL is half of -log(1 - r^2).
    truth = pplvm.exact(model, x).log_marginal.item()
    assert truth - found.elbo[-1] == pytest.approx(-0.5 * math.log(1 - (20 / 21) ** 2), rel=1e-3)


@pytest.mark.parametrize("unit", [1.0, 1e4])
def test_elements_that_meet_are_refused_in_any_units(unit):
    def model(y, X):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), unit).to_event(1))
        with pyro.plate("data", len(y), dim=-1):
            return pyro.sample("y", dist.Normal((X * w).sum(-1), unit), obs=y)

    with pytest.raises(ValueError, match="one for each element"):
        pplvm.cavi(model, unit * CLUSTERS[:, 0], CLUSTERS)


@pytest.mark.parametrize("concentration", [1e-3, 0.5, 1e4])
def test_vague_priors(concentration):
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(concentration), concentration))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([3.0, 4.0, 5.0])
    found, truth = pplvm.cavi(model, x), pplvm.conjugate(model, x)
    assert found.elbo[-1] == pytest.approx(truth.log_marginal.item(), rel=1e-6)


def test_what_float64_cannot_hold_is_an_error():
    def model(x):
        p = pyro.sample("p", dist.Beta(torch.tensor(1e-3), 1e-3))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Bernoulli(p), obs=x)

    with pytest.raises(ValueError, match="the ELBO is nan"):
        pplvm.cavi(model, torch.ones(20))


def test_a_chain_that_is_run_step_by_step_says_that_it_is_taken_apart():
    weights = [0.1, 0.2, 0.3, 0.4]
    A = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)

    def model(x):
        z = 0
        with pyro.plate("data", len(x), dim=-1):
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(A[z]))
                pyro.sample(f"x_{t}", dist.Normal(z * weights[t], 0.1), obs=x[:, t])
        return x

    x = 0.2 * torch.randn(2, 4, dtype=torch.float64)
    found = pplvm.cavi(model, x)
    assert found.settings["method"] == "CAVI, every state apart"
    assert found.elbo[-1] < pplvm.exact(model, x).log_marginal.sum()


# ---- what is refused ----


def nested(x):
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3)))
        with pyro.plate("d", 2, dim=-2):
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x.T)
    return x


def logistic(y, X):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y), dim=-1):
        return pyro.sample("y", dist.Bernoulli(logits=(X * w).sum(-1)), obs=y)


def regression(y, X):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y), dim=-1):
        return pyro.sample("y", dist.Normal((X * w).sum(-1), 1.0), obs=y)


def poisson_latent(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Poisson(torch.tensor(2.0)))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def coupled(x):
    z = w = 0
    A = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=x.dtype)
    with pyro.plate("data", len(x), dim=-1):
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(A[z]))
            w = pyro.sample(f"w_{t}", dist.Categorical(A[(w + z) % 2]))
            pyro.sample(f"x_{t}", dist.Normal((z + w).to(x.dtype), 1.0), obs=x[:, t])
    return x


def no_latent(x):
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0), obs=x)


REFUSED = {
    "site 'w' .Normal. is not conditionally conjugate": (logistic, (BINARY[:, 0], CLUSTERS[:30])),
    "one for each element": (regression, (CLUSTERS[:, 0], CLUSTERS)),
    "site 'z' .Poisson.": (poisson_latent, (CLUSTERS[:, 0],)),
    "'z_0', 'w_0' move together": (coupled, (X[..., 0],)),
    "'a' and 'b' are in different": (nested, (CLUSTERS,)),
    "no latent site": (no_latent, (CLUSTERS[:, 0],)),
}


@pytest.mark.parametrize("said", list(REFUSED))
def test_what_it_cannot_do_is_one_clear_error(said):
    model, data = REFUSED[said]
    with pytest.raises(ValueError, match=said):
        pplvm.cavi(model, *data)


def test_three_chains_of_bernoullis_have_no_closed_form():
    model, x = FactorialHMM(3, 2, 2, "bernoulli"), (X > 0).double()
    with pytest.raises(ValueError, match=r"site 'x_.*sum over pairs"):
        pplvm.cavi(model, x, LENGTHS)
    two = FactorialHMM(2, 2, 2, "bernoulli")  # pairs are all there is
    truth = pplvm.exact(two, x, LENGTHS).log_marginal.sum().item()
    assert pplvm.cavi(two, x, LENGTHS).elbo[-1] < truth


def test_options_that_do_not_go_together():
    with pytest.raises(ValueError, match="'structured' is False, but site 'pi'"):
        pplvm.cavi(BayesianGaussianMixture(2, 2), CLUSTERS, structured=False)
    with pytest.raises(ValueError, match="num_starts"):
        pplvm.cavi(normal_gamma, CLUSTERS[:, 0], num_starts=0)
