"""The table of answers: its reference, its numbers, and what it worries about.

Shapes: C chains, S draws, N data.
"""

import json
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset
from zoo import factor_analysis

import pplvm
from pplvm import diagnostics
from pplvm.diagnostics import still_rising

N = 12


def story(x):
    """Its posterior is N(x / 2, 1 / 2) for each datum."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x, scale: float = 0.5**0.5):
    b = pyro.param("b", torch.tensor(0.45))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(b * x, scale))


def data() -> Tensor:
    return torch.linspace(-2.0, 2.0, N)


def posterior(chains: int = 4, draws: int = 1000) -> Tensor:
    return 0.5 * data() + 0.5**0.5 * torch.randn(chains, draws, N)


def chains(z: Tensor, diverging: int = 0, model=story, x: Tensor | None = None) -> pplvm.Draws:
    """Draws as NUTS would have made them."""
    bad = torch.zeros(z.shape[:2], dtype=torch.bool)
    bad.view(-1)[:diverging] = True
    own = (data() if x is None else x,)
    return pplvm.Draws(
        {"z": z}, {"z": ("data",)}, {"diverging": bad}, model, own, {"method": "by hand"}
    )


def fitted(q=guide, num_steps: int = 400, lr: float = 0.01, **options) -> pplvm.Fit:
    schedule = partial(CosineAnnealingLR, T_max=num_steps)
    options = {"num_steps": num_steps, "lr": lr, "scheduler": schedule} | options
    return pplvm.fit(story, q, data(), **options)


def compare(**answers) -> pplvm.Table:
    return pplvm.compare(answers, num_draws=2000, num_particles=500)


# ---- the reference ----


def test_the_exact_answer_is_the_reference():
    table = compare(nuts=chains(posterior(draws=5000)), exact=pplvm.exact(story, data()))
    assert table.reference == "exact"
    assert table["exact"].mean_error is None  # it is not held against itself
    assert table["nuts"].mean_error is not None


def test_else_the_longest_of_the_healthy_chains():
    ill = posterior(draws=5000) + torch.arange(4.0)[:, None, None]
    table = compare(
        short=chains(posterior(draws=800)), long=chains(posterior(draws=1500)), ill=chains(ill),
        fit=fitted(num_steps=3),
    )  # fmt: skip
    assert table.reference == "long"


def test_ill_chains_are_no_reference():
    table = compare(diverging=chains(posterior(), diverging=2), fit=fitted(num_steps=3))
    assert table.reference is None
    assert table["fit"].mean_error is None
    assert "No healthy reference" in str(table)


# ---- numbers ----


def test_errors_and_coverage_of_a_shift_and_a_squeeze():
    """Against a Gaussian reference; 1 % is over 5 standard errors of the coverages of 48,000."""
    z = posterior()
    mean, sd = z.flatten(0, 1).mean(0), z.flatten(0, 1).std(0)
    table = compare(
        reference=chains(z),
        shifted=chains((z + 0.7 * sd)[:, ::2]),
        squeezed=chains((mean + 0.5 * (z - mean))[:, ::2]),
    )
    assert table.reference == "reference"
    shifted, squeezed, itself = (table[n] for n in ("shifted", "squeezed", "reference"))
    own = z[:, ::2].flatten(0, 1)
    by_hand = ((own.mean(0) + 0.7 * sd - mean) / sd).square().mean().sqrt()
    assert shifted.mean_error == pytest.approx(by_hand.item())
    assert shifted.sd_error == pytest.approx((own.std(0) / sd - 1).square().mean().sqrt().item())
    squeeze = (0.5 * own.std(0) / sd - 1).square().mean().sqrt()
    assert squeezed.sd_error == pytest.approx(squeeze.item())
    inside = lambda low, high: (unit.cdf(torch.tensor(high)) - unit.cdf(torch.tensor(low))).item()  # noqa: E731
    unit, q50, q90 = Normal(0.0, 1.0), 0.6745, 1.6449
    assert itself.cover_50 is None  # it would be 50 % of itself
    assert squeezed.cover_50 == pytest.approx(inside(-q50 / 2, q50 / 2), abs=0.015)
    assert squeezed.cover_90 == pytest.approx(inside(-q90 / 2, q90 / 2), abs=0.015)
    assert shifted.cover_50 == pytest.approx(inside(0.7 - q50, 0.7 + q50), abs=0.015)
    assert shifted.cover_90 == pytest.approx(inside(0.7 - q90, 0.7 + q90), abs=0.015)


def test_log_densities_are_nats_per_datum():
    """False alarm: the fit's log p(x) at 4 standard errors, 6e-5."""
    fit = fitted()
    table = compare(fit=fit, exact=pplvm.exact(story, data()))
    want = Normal(0.0, 2.0**0.5).log_prob(data()).mean().item()
    assert table["exact"].log_marginal == pytest.approx(want)
    row = table["fit"]
    assert abs(row.log_marginal - want) < 4 * row.log_marginal_error + 1e-6
    assert row.bound < want + 0.01
    assert row.seconds == fit.seconds > 0
    assert row.method == "elbo"


def test_a_fit_is_asked_about_the_others_data():
    torch.manual_seed(3)
    fit = pplvm.fit(story, guide, torch.randn(40), num_steps=5)
    table = compare(fit=fit, exact=pplvm.exact(story, data()))
    assert table.draws["fit"]["z"].shape == (1, 2000, N)


def test_leaving_one_out_is_for_shared_latents():
    def shared(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def of(z):
        return pplvm.Draws(
            {"m": z}, {"m": ()}, {"diverging": torch.zeros(z.shape)}, shared, (data(),)
        )

    table = compare(nuts=of(torch.randn(4, 500) / (N + 1) ** 0.5))
    assert table["nuts"].loo < 0
    assert table["nuts"].khat < 0.7
    assert compare(nuts=chains(posterior())).rows[0].loo is None  # of each datum's own


# ---- worries ----


def test_healthy_answers_worry_nobody():
    fit = fitted()
    table = compare(fit=fit, nuts=chains(posterior()), exact=pplvm.exact(story, data()))
    assert [row.worries for row in table.rows] == [(), (), ()]


def slow() -> Tensor:
    """Chains that hardly move: an autocorrelation of 0.99."""
    z = [torch.randn(4, N)]
    for _ in range(999):
        z.append(0.99 * z[-1] + (1 - 0.99**2) ** 0.5 * torch.randn(4, N))
    return 0.5 * data() + 0.5**0.5 * torch.stack(z, 1)


def far(x):
    """A guide that has a long way to go."""
    b = pyro.param("b", torch.tensor(30.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(b * x, 0.7))


WORRIES = {
    "R̂": (lambda: chains(posterior() + 0.4 * torch.arange(4.0)[:, None, None]), "R̂ 1."),
    "ESS": (lambda: chains(slow()), "ESS "),
    "divergences": (lambda: chains(posterior(), diverging=3), "3 divergences"),
    "k̂": (lambda: fitted(partial(guide, scale=0.07)), "k̂ > 0.7 for 1"),
    "small sds": (lambda: fitted(partial(guide, scale=0.35)), "sds too small"),
    "large sds": (lambda: fitted(partial(guide, scale=1.4)), "sds too large"),
    "steps": (lambda: fitted(far, lr=0.05, scheduler=None), "not converged"),
}


@pytest.mark.parametrize("name", WORRIES)
def test_a_worry_is_told(name):
    build, words = WORRIES[name]
    row = compare(it=build(), exact=pplvm.exact(story, data()))["it"]
    assert any(words in worry for worry in row.worries), row.worries


def test_few_effective_draws_are_told_without_slow_mixing():
    row = compare(it=chains(posterior(draws=60)))["it"]
    assert any("ESS" in worry for worry in row.worries)


def test_a_collapsed_dim_is_told():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    x = torch.linspace(-2.0, 2.0, 40)
    free = torch.randn(4, 1000, 40, 2)
    used = 0.5 * x + 0.5**0.5 * free[..., 0]
    assert diagnostics.collapsed(chains(torch.stack([used, free[..., 1]], -1), 0, model, x)) == (
        1,
        2,
    )
    assert diagnostics.collapsed(chains(torch.stack([used, used], -1), 0, model, x)) == (0, 2)

    def q(x):
        b = pyro.param("b", torch.tensor(0.5))
        with pyro.plate("data", len(x), dim=-1):
            loc = torch.stack([b * x, torch.zeros_like(x)], -1)
            pyro.sample("z", dist.Normal(loc, torch.tensor([0.5**0.5, 1.0])).to_event(1))

    fit = pplvm.fit(model, q, x, num_steps=3)
    (row,) = pplvm.compare({"fit": fit}, num_draws=4000).rows
    assert any("posterior collapse: 1 of 2" in worry for worry in row.worries)


def test_an_interrupted_fit_is_told():
    def stop(step):
        if step == 5:
            raise KeyboardInterrupt
        return 1.0

    row = compare(fit=fitted(kl_schedule=stop))["fit"]
    assert any("interrupted after 5 steps" in worry for worry in row.worries)


@pytest.mark.parametrize("by", ["module", "param"])
def test_parameters_of_its_own_are_told(by):
    def program(x):
        s = pyro.param("s", torch.tensor(1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(s * z, 1.0).to_event(1), obs=x[:, :2])

    case = factor_analysis(num_data=N)
    model, q = (case.model, case.guide) if by == "module" else (program, None)
    first, other = (pplvm.fit(model, q, *case.data, num_steps=3, seed=seed) for seed in (0, 1))
    table = compare(first=first, other=other, exact=pplvm.exact(first.model, *case.data))
    words = "learned parameters of its own"
    assert not any(words in worry for worry in table["first"].worries)
    assert any(words in worry for worry in table["other"].worries)


def test_a_rise_is_told_apart_from_noise():
    """False alarm: 4 standard errors of 100 blocks, 6e-5."""
    noise = (3 * torch.randn(5000)).tolist()
    assert still_rising(noise) == 0.0
    rising = [value + step / 100 for step, value in enumerate(noise)]
    assert still_rising(rising) == pytest.approx(2.5, abs=1.0)  # of 500 steps, half to half
    steady = [step / 100 for step in range(400)]  # however short, a line without noise is told
    assert still_rising(steady) == pytest.approx(0.2)
    assert still_rising([1.0, 2.0, 3.0]) == 0.0  # too few to tell


# ---- the table ----


def test_the_table_is_json_without_nan():
    perfect = fitted(num_steps=2)  # of few weights, or of none that differ
    table = pplvm.compare({"fit": perfect, "exact": pplvm.exact(story, data())}, num_particles=10)
    assert math.isnan(table["fit"].khat)  # ten weights have no tail
    text = json.dumps(table.to_dict(), allow_nan=False)
    assert json.loads(text)["rows"][0]["khat"] is None
    assert json.loads(text)["reference"] == "exact"


def test_the_table_is_readable():
    table = compare(ours=fitted(num_steps=2), exact=pplvm.exact(story, data()))
    text = str(table)
    assert all(word in text for word in ("ours", "exact", "log p(x)", "Reference: exact"))
    assert "ESS" not in text.splitlines()[0]  # a column that nobody fills is left out
    assert "<table>" in table._repr_html_()
    assert "&lt;b&gt;" in compare(**{"<b>": fitted(num_steps=2)})._repr_html_()


# ---- what cannot be compared ----


def other_story(x):
    with pyro.plate("data", len(x), dim=-1):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(u, 1.0), obs=x)


REFUSED = {
    "no answers": (dict, ["'answers' is empty", "at least one"]),
    "no answer": (lambda: {"me": data()}, ["answers['me']", "Tensor", "fit, nuts or exact"]),
    "other data": (
        lambda: {"a": pplvm.exact(story, data()), "b": pplvm.exact(story, data() + 1)},
        ["'a' and 'b'", "different data"],
    ),
    "other number of data": (
        lambda: {"a": pplvm.exact(story, data()), "b": chains(posterior()[..., :5], x=data()[:5])},
        ["'a' and 'b'", "different data"],
    ),
    "other sites": (
        lambda: {"a": pplvm.exact(story, data()), "b": pplvm.exact(other_story, data())},
        ["'a' and 'b'", "different latents", "same story"],
    ),
    "no data": (
        lambda: {"a": pplvm.fit(story, guide, DataLoader(TensorDataset(data())), num_steps=1)},
        ["no answer holds data", "fit on tensors"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_is_named(name):
    build, words = REFUSED[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        pplvm.compare(build())
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ---- other exact answers ----


def counts(x: Tensor) -> Tensor:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


def labels(x: Tensor) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        return pyro.sample("x", dist.Normal(2.0 * k, 1.0), obs=x)


def test_a_conjugate_answer_is_a_reference(tmp_path):
    x = torch.tensor([3.0, 1.0, 4.0, 0.0, 2.0])
    chains = pplvm.nuts(counts, x, num_chains=2, num_warmup=200, num_samples=500, compile="graph")
    table = pplvm.compare({"NUTS": chains, "conjugate": pplvm.conjugate(counts, x)})
    assert table.reference == "conjugate"
    assert table["NUTS"].mean_error < 0.2  # six errors of some 300 effective draws, and more
    assert table["conjugate"].log_marginal < 0
    table.report(tmp_path / "report.html")


def test_an_enumerated_answer_is_a_reference(tmp_path):
    x = torch.tensor([-1.0, 0.5, 2.2, 1.0])
    exact = pplvm.exact(labels, x)
    drawn = exact.draws(2000, seed=3)
    table = pplvm.compare({"exact": exact, "draws": drawn})
    assert table.reference == "exact"
    assert table["draws"].mean_error is None  # labels have no mean
    assert table["draws"].total_variation < 0.03  # three errors of 2000 draws, and more
    assert table["exact"].log_marginal == pytest.approx(float(exact.log_marginal.mean()))
    table.report(tmp_path / "report.html")
