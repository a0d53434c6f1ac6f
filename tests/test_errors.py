"""Bad input is one sentence: the argument, site or plate, what was got, and what to do."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.utils.data import DataLoader, TensorDataset
from zoo import discrete, mixed, of_oracle, regression

import pplvm
from pplvm import checkpoint as files
from pplvm.guides.factor_analysis import LinearGaussian, MeanField
from pplvm.guides.vae import VAEGuide
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.models.vae import VAE
from pplvm.objectives import elbo, iwae, reweighted_wake_sleep, wake_sleep


def x(num_data: int = 6) -> torch.Tensor:
    return torch.randn(num_data, 3)


def at(row: int, value: float) -> torch.Tensor:
    data = x()
    data[row, 1] = value
    return data


def fit(*data, **options):
    options = {"num_steps": 3} | options
    return pplvm.fit(FactorAnalysis(3, 2), LinearGaussian(3, 2), *data, **options)


def of(model: Callable, guide: Callable | None, *data, **options):
    return pplvm.fit(model, guide, *data, **({"num_steps": 3} | options))


def story(
    size: int | None = None, dim: int = -1, plate: bool = True, site: str = "z", wide: bool = False,
    likelihood: Callable = lambda z: dist.Normal(z, 1.0), prior: dist.Distribution | None = None,
) -> Callable:  # fmt: skip
    """A story of one latent per datum, with whatever is wrong about it."""
    prior = prior or dist.Normal(0.0, 1.0)

    def model(x):
        if not plate:
            z = pyro.sample(site, prior.expand([len(x)]))
            return pyro.sample("x", likelihood(z), obs=x)
        with pyro.plate("data", size or len(x), dim=dim):
            z = pyro.sample(site, prior.expand([2]).to_event(1) if wide else prior)
            return pyro.sample("x", likelihood(z.sum(-1) if wide else z), obs=x)

    return model


def guide(size: int | None = None, dim: int = -1, site: str | None = "z") -> Callable:
    def q(x):
        b = pyro.param("b", torch.tensor(0.1))
        with pyro.plate("data", size or len(x), dim=dim):
            if site is not None:
                pyro.sample(site, dist.Normal(b, 1.0))

    return q


def extra(x):
    guide()(x)
    with pyro.plate("more", len(x), dim=-1):
        pyro.sample("u", dist.Normal(0.0, 1.0))


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("school", 8, dim=-1):
        return pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def shared_in_the_guide(x):
    pyro.sample("z", dist.Normal(pyro.param("b", torch.tensor(0.1)), 1.0))


def positive_elsewhere(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(pyro.param("b", torch.tensor(-9.0)), 0.1))


def not_broadcasting(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=x[:, 0])


def weights(x):
    pyro.sample("w", dist.Normal(pyro.param("b", torch.zeros(3)), 1.0).to_event(1))


def without_parameters(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def without_latents(x):
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def pixels(value: float) -> torch.Tensor:
    images = torch.zeros(4, 2, 2)
    images[2, 1, 0] = value
    return images


counts = torch.tensor([3.0, 0.0, 1.0, 2.0, -4.0, 1.0])
poisson = partial(story, likelihood=lambda z: dist.Poisson(z.exp()))
nuts = partial(pplvm.nuts, num_chains=1, num_warmup=2, num_samples=2)
X1 = torch.randn(6)

CASES: dict[str, tuple[Callable, list[str]]] = {
    # ---- data ----
    "NaN": (lambda: fit(at(4, math.nan)), ["data[0]", "1 NaN", "row 4", "impute"]),
    "infinite": (lambda: fit(at(2, math.inf)), ["data[0]", "infinite", "row 2", "drop"]),
    "NaN in an array": (lambda: fit(at(5, math.nan).numpy()), ["data[0]", "NaN", "row 5"]),
    "NaN for nuts": (lambda: nuts(FactorAnalysis(3, 1), at(1, math.nan)), ["data[0]", "row 1"]),
    "NaN for exact": (lambda: pplvm.exact(story(), at(1, math.nan)), ["data[0]", "row 1"]),
    "NaN to validate": (
        lambda: fit(x(), validation=(at(3, math.nan),)), ["validation[0]", "NaN", "row 3"],
    ),
    "NaN from a loader": (
        lambda: fit(DataLoader(TensorDataset(at(5, math.nan)), 2)),
        ["batch 2 of the DataLoader", "NaN", "row 1", "impute"],
    ),
    "first axes": (
        lambda: fit(x(6), x(5)), ["first axes", "data[0] has 6", "data[1] 5", "one row a datum"],
    ),
    "negative counts": (
        lambda: of(poisson(), guide(), counts), ["'x'", "-4", "Poisson", "counts 0, 1", "likelihood"],
    ),
    "negative counts in a late batch": (
        lambda: of(poisson(), guide(), counts, batch_size=1, num_steps=6), ["'x'", "-4", "Poisson"],
    ),
    "negative counts for nuts": (lambda: nuts(poisson(), counts), ["'x'", "-4", "Poisson"]),
    "grey pixels": (
        lambda: of(VAE((2, 2), 1, 3), VAEGuide((2, 2), 1, 3), pixels(0.5)),
        ["'x'", "observes 0.5", "Bernoulli", "0 or 1", "transform"],
    ),
    "empty": (lambda: fit(x(0)), ["data[0]", "empty", "(0, 3)", "at least one datum"]),
    "empty loader": (
        lambda: fit(DataLoader(TensorDataset(x(0)))), ["DataLoader", "empty", "at least one"],
    ),
    "no data": (lambda: fit(), ["'data'", "missing", "at least one tensor"]),
    "a list": (lambda: fit([1.0, 2.0]), ["data[0]", "list", "torch.as_tensor"]),
    "other features for the guide": (
        lambda: of(without_latents, LinearGaussian(3, 2), X1), ["guide", "(6,)", "cannot run"],
    ),
    "words": (lambda: fit(np.array(["a", "b"])), ["data[0]", "numeric", "<U1", "encode"]),
    "other features": (
        lambda: fit(torch.randn(6, 4)), ["'x'", "(4,)", "Normal", "(3,)", "build the model"],
    ),
    # ---- sites ----
    "guide has more": (lambda: of(story(), extra, X1), ["guide samples", "'u'", "lacks", "['z']"]),
    "guide has less": (
        lambda: of(story(), guide(site=None), X1), ["model samples", "'z'", "guide lacks", "observe"],
    ),
    "shape": (
        lambda: of(story(wide=True), guide(), X1), ["'z'", "(6, 2)", "(6,)", "event dims agree"],
    ),
    "support": (
        lambda: of(story(prior=dist.LogNormal(0.0, 1.0)), positive_elsewhere, X1),
        ["'z'", "Normal", "outside", "LogNormal", "choose a family"],
    ),
    "shared latent for iwae": (
        lambda: of(*mixed()[:2], X1, objective=iwae), ["'m'", "shared", "plate('data'", "'elbo'"],
    ),
    "shared latent for wake-sleep": (
        lambda: of(*regression()[:2], *regression().data, objective=wake_sleep), ["'w'", "shared"],
    ),
    "other plates in the guide": (
        lambda: of(story(), shared_in_the_guide, X1), ["'z'", "['data']", "[]", "same plates"],
    ),
    "discrete for elbo": (
        lambda: of(*of_oracle(discrete)[:2], torch.ones(4)),
        ["'k'", "Categorical", "pathwise", "'score_function'"],
    ),
    "endless without guide": (
        lambda: of(story(prior=dist.Poisson(2.0)), None, X1),
        ["'z'", "Poisson", "cannot be listed", "'guide'"],
    ),
    "minibatches without guide": (
        lambda: of(story(), None, X1, batch_size=2), ["'z'", "each datum", "'batch_size'"],
    ),
    "minibatches for a guide of each datum": (
        lambda: of(FactorAnalysis(3, 2), MeanField(6, 2), x(), batch_size=4),
        ["'num_data'", "6", "4", "amortised"],
    ),
    "does not broadcast": (
        lambda: of(not_broadcasting, weights, x(), objective=partial(elbo, num_particles=2)),
        ["broadcast", "(X * w).sum(-1)", "num_particles=1"],
    ),
    "no parameters": (
        lambda: of(story(), without_parameters, X1), ["parameter to learn", "nn.Parameter"],
    ),
    # ---- plates ----
    "no plate": (
        lambda: of(story(plate=False), guide(), X1),
        ["'z'", "(6,)", "dim -1", "no plate", "plate('data', N, dim=-1)"],
    ),
    "wrong dim": (
        lambda: of(story(dim=-2), guide(dim=-2), X1), ["plate 'data'", "dim -2", "'z'", "dim=-1"],
    ),
    "wrong dim in the guide": (
        lambda: of(story(), guide(dim=-2), X1), ["plate 'data'", "guide", "dim -2", "'z'", "dim=-1"],
    ),
    "wrong size": (
        lambda: of(story(size=10), guide(size=10), X1),
        ["plate 'data'", "size 10", "6 rows", "len(x)"],
    ),
    "wrong size in the guide": (
        lambda: of(story(), guide(size=10), X1), ["plate 'data'", "guide", "size 10", "6 rows"],
    ),
    "wrong size for exact": (
        lambda: pplvm.exact(story(size=10), X1), ["plate 'data'", "size 10", "6 rows"],
    ),
    "wrong size of another plate": (
        lambda: nuts(schools, torch.randn(6)), ["'y'", "(6,)", "('school', 8)", "size of the data"],
    ),
    "wrong size against a tensor": (
        lambda: nuts(story(size=10, likelihood=lambda z: dist.Normal(X1, 1.0)), X1),
        ["plate", "'data'", "10", "6", "len(x)"],
    ),
    # ---- NUTS ----
    "discrete for nuts": (
        lambda: nuts(of_oracle(discrete).model, torch.ones(4)),
        ["'k'", "all discrete", "'reweighted_wake_sleep'"],
    ),
    "nothing for nuts": (
        lambda: nuts(without_latents, X1), ["no latent site", "nothing for a chain to move"],
    ),
    "a poor backend": (lambda: nuts(story(), X1, backend="stan"), ["'backend'", "nutpie", "'stan'"]),
    "a poor compile": (lambda: nuts(story(), X1, compile="fast"), ["'compile'", "auto", "'fast'"]),
    "a lone chain": (
        lambda: pplvm.chees(story(), X1, num_chains=1), ["'num_chains'", "at least 2", "got 1"],
    ),
    "no chains": (lambda: nuts(story(), X1, num_chains=0), ["'num_chains'", "at least 1", "got 0"]),
    "no draws": (lambda: nuts(story(), X1, num_samples=0), ["'num_samples'", "at least 1"]),
    "warmup": (lambda: nuts(story(), X1, num_warmup=-1), ["'num_warmup'", "at least 0", "-1"]),
    # ---- options ----
    "one weight": (
        lambda: fit(x(), objective=partial(reweighted_wake_sleep, num_particles=1)),
        ["'num_particles'", "at least 2", "got 1", "'wake_sleep'"],
    ),
    "no particles": (
        lambda: fit(x(), objective=partial(elbo, num_particles=0)),
        ["'num_particles'", "at least 1", "got 0"],
    ),
    "few weights": (
        lambda: fit(x()).log_marginal(num_particles=1), ["'num_particles'", "at least 2", "got 1"],
    ),
    "device": (lambda: fit(x(), device="gpu"), ["'device'", "'gpu'", "'cuda'"]),
    "batch_size 0": (lambda: fit(x(), batch_size=0), ["'batch_size'", "at least 1", "got 0"]),
    "batch_size -2": (lambda: fit(x(), batch_size=-2), ["'batch_size'", "at least 1", "got -2"]),
    "batch_size 2.5": (lambda: fit(x(), batch_size=2.5), ["'batch_size'", "whole", "got 2.5"]),
    "batch_size of a loader": (
        lambda: fit(DataLoader(TensorDataset(x())), batch_size=2), ["'batch_size'", "DataLoader"],
    ),
    "lr 0": (lambda: fit(x(), lr=0.0), ["'lr'", "above 0", "got 0"]),
    "lr < 0": (lambda: fit(x(), lr=-1.0), ["'lr'", "above 0", "got -1"]),
    "lr NaN": (lambda: fit(x(), lr=math.nan), ["'lr'", "finite", "got nan"]),
    "clip_norm": (lambda: fit(x(), clip_norm=0.0), ["'clip_norm'", "above 0", "got 0"]),
    "num_steps 0": (lambda: fit(x(), num_steps=0), ["'num_steps'", "at least 1", "got 0"]),
    "num_steps 2.5": (lambda: fit(x(), num_steps=2.5), ["'num_steps'", "whole", "got 2.5"]),
    "num_steps True": (lambda: fit(x(), num_steps=True), ["'num_steps'", "got True"]),
    "num_epochs 0": (
        lambda: fit(x(), num_steps=None, num_epochs=0), ["'num_epochs'", "at least 1", "got 0"],
    ),
    "both": (lambda: fit(x(), num_epochs=1), ["'num_steps'", "'num_epochs'", "one of them"]),
    "seed": (lambda: fit(x(), seed=-1), ["'seed'", "at least 0", "got -1"]),
    "huge seed": (lambda: fit(x(), seed=2**63), ["'seed'", "below 2**63", "got 9223372036854775808"]),
    "validate_every": (
        lambda: fit(x(), validation=(x(),), validate_every=0), ["'validate_every'", "at least 1"],
    ),
    "patience alone": (lambda: fit(x(), patience=2), ["'patience'", "'validation'"]),
    "patience 0": (
        lambda: fit(x(), validation=(x(),), patience=0), ["'patience'", "at least 1", "got 0"],
    ),
    "checkpoint_every": (
        lambda: fit(x(), checkpoint_every=0), ["'checkpoint_every'", "at least 1", "got 0"],
    ),
    "resume alone": (lambda: fit(x(), resume=True), ["'resume'", "'checkpoint'"]),
    "kl_schedule": (
        lambda: fit(x(), kl_schedule=lambda _: 1.0, objective=partial(iwae, num_particles=2)),
        ["'kl_schedule'", "'kl_weight'", "iwae", "'elbo'"],
    ),
    "kl_schedule for Pyro": (
        lambda: fit(x(), kl_schedule=lambda _: 1.0, objective=Trace_ELBO()),
        ["'kl_schedule'", "Trace_ELBO", "'elbo'"],
    ),
    "no data kept": (
        lambda: fit(DataLoader(TensorDataset(x()))).draws(), ["keeps no data", "as arguments"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence(name):
    call, words = CASES[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"'device' is 'cuda', .* use 'cpu' or 'auto'"):
        fit(x(), device="cuda")


def test_a_failed_fit_leaves_no_trace():
    before = torch.get_rng_state()
    for name in ("wrong size", "shared latent for iwae", "negative counts in a late batch"):
        with pytest.raises(ValueError):  # noqa: PT011
            CASES[name][0]()
    assert list(pyro.get_param_store()) == []
    assert pyro.settings.get("validate_poutine")
    assert torch.is_grad_enabled()
    torch.set_rng_state(before)  # the cases draw data of their own
    with pytest.raises(ValueError, match="'w'"):
        of(without_latents, weights, X1)
    assert torch.equal(torch.get_rng_state(), before)


# ---- a loss that turns NaN amid a fit ----


def falling(x):
    """A scale that gradient ascent drives to 0 and below, where it has no density."""
    s = pyro.param("s", torch.tensor(0.3))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(0.0 * z, s), obs=0.0 * x)


def root(x):
    """A finite density whose gradient, of a root at 0, is not."""
    a = pyro.param("a", torch.tensor(0.5))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z + (a * (a > 0)).sqrt(), 1.0), obs=x - 9.0)


def test_a_loss_that_is_no_number_is_told_with_the_way_back(tmp_path):
    path = tmp_path / "f"
    run = partial(of, falling, guide(), torch.randn(6), lr=0.05, num_steps=100)
    with pytest.raises(ValueError, match=r"at step \d+") as caught:
        run(checkpoint=path, checkpoint_every=2)
    message = str(caught.value)
    assert all(word in message for word in ("'x'", "nan", "lower 'lr'", f"'{path}'")), message
    step = files.read(path)["run"]["step"]
    assert f"the last good checkpoint is '{path}', step {step}." in message
    opened = pplvm.load(path, falling, guide(), torch.randn(6))
    assert torch.isfinite(opened.draws(num_draws=3)["z"]).all()
    assert opened.run.step_count == step > 0


def test_without_a_checkpoint_it_is_told_that_there_is_none():
    with pytest.raises(ValueError, match=r"no checkpoint to go back to \(give 'checkpoint'\)\."):
        of(falling, guide(), torch.randn(6), lr=0.05, num_steps=100)


def test_parameters_that_are_no_numbers_are_never_a_checkpoint(tmp_path):
    """The step that ruins them has a finite loss, and is the very one to be saved."""
    path = tmp_path / "f"
    with pytest.raises(ValueError, match="'a'") as caught:
        of(
            root,
            guide(),
            torch.randn(6),
            lr=0.1,
            num_steps=100,
            checkpoint=path,
            checkpoint_every=1,
        )
    saved = files.read(path)["run"]
    assert all(torch.isfinite(p).all() for p in saved["parameters"].values())
    assert f"step {saved['step']}." in str(caught.value)


def test_a_last_step_that_ruins_the_parameters_is_told():
    steps = 1
    while True:  # the first number of steps that reaches the root
        try:
            a = of(root, guide(), torch.randn(6), lr=0.1, num_steps=steps)
        except ValueError as error:
            assert "'a'" in str(error)  # noqa: PT017
            break
        with a.run.scope.parameters():
            assert torch.isfinite(a.run.parameters["a"])
        steps += 1
        assert steps < 50


def test_an_optimiser_that_wants_the_loss_anew_is_refused():
    with pytest.raises(ValueError, match="'optimizer' makes LBFGS") as caught:
        fit(x(), optimizer=partial(torch.optim.LBFGS, lr=0.1))
    assert "\n" not in str(caught.value)


# ---- Ctrl-C ----


def interrupting(at: int) -> Callable:
    """A scheduler during whose so-many-th step somebody loses patience."""

    def make(optimizer):
        def rate(step):
            if step == at:
                raise KeyboardInterrupt
            return 1.0

        return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    return make


def learned(fit: pplvm.Fit) -> list[torch.Tensor]:
    with fit.run.scope.parameters():
        return [p.detach().clone() for p in fit.run.parameters.values()]


def same(a: pplvm.Fit, b: pplvm.Fit) -> bool:
    return all(torch.equal(p, q) for p, q in zip(learned(a), learned(b), strict=True))


def test_ctrl_c_in_a_scheduler_returns_the_weights_of_that_step(capsys):
    model, q, data = FactorAnalysis(3, 2), LinearGaussian(3, 2), x()
    got = of(model, q, data, num_steps=50, scheduler=interrupting(7))
    assert got.settings["stopped"] == "interrupted"
    assert got.settings["num_steps"] == 7
    assert len(got.history.bound) == len(got.history.lr) == 7
    assert same(got, of(model, q, data, num_steps=7))
    told = capsys.readouterr().err
    assert "interrupted at step 7; kept the weights of step 7" in told


def test_ctrl_c_in_an_objective_returns_the_weights_of_the_step_before(capsys):
    calls = []

    def impatient(model, guide, x):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return elbo(model, guide, x)

    model, q, data = FactorAnalysis(3, 2), LinearGaussian(3, 2), x()
    got = of(model, q, data, num_steps=50, objective=impatient)
    assert same(got, of(model, q, data, num_steps=5))
    assert len(got.history.bound) == len(got.history.lr) == 5
    assert "kept the weights of step 5" in capsys.readouterr().err
    assert got.draws(num_draws=2)["z"].shape == (1, 2, 6, 2)


def test_ctrl_c_with_validation_returns_the_best_weights(capsys):
    model, q, data = FactorAnalysis(3, 2), LinearGaussian(3, 2), x() - 5.0
    with torch.no_grad():
        model.mu.fill_(1.0)  # training leads away from the held-out data, after a while
    options = {"lr": 0.1, "validation": (0.5 * torch.randn(20, 3),), "validate_every": 2}
    got = of(model, q, data, num_steps=500, scheduler=interrupting(60), **options)
    best = got.run.best_step
    assert 2 < best < 59
    assert same(got, of(model, q, data, num_steps=best, lr=0.1))
    assert (
        f"interrupted at step 60; kept the best weights, of step {best}" in capsys.readouterr().err
    )
