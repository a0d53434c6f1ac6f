"""Fits: the right answer, the same answer twice, and nobody else's business touched.

Shapes as in the alphabet: N data, D features, L latents.
"""

import copy
import math
from functools import partial
from itertools import chain

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal
from sklearn.decomposition import FactorAnalysis as ScikitFactorAnalysis
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torch.utils.data import DataLoader, TensorDataset
from zoo import PER_DATUM, factor_analysis, mixed, regression

import pplvm
from pplvm.batches import Batches
from pplvm.datasets import digits
from pplvm.guides.factor_analysis import LinearGaussian, MeanField
from pplvm.guides.neural_lda import NeuralLDAGuide
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.models.neural_lda import NeuralLDA
from pplvm.objectives import elbo, iwae, reweighted_wake_sleep, wake_sleep
from pplvm.training import Run
from pplvm.types import Estimate


def learned(answer: pplvm.Fit | Run) -> dict[str, Tensor]:
    """The parameters of a fit, copied."""
    run = getattr(answer, "run", answer)
    with run.scope.parameters():
        return {name: p.detach().clone() for name, p in run.parameters.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- stories of three kinds, of the same names ----


def by_module(num_data: int = 20):
    return FactorAnalysis(3, 2), LinearGaussian(3, 2), torch.randn(num_data, 3)


def by_param(num_data: int = 20):
    def model(x):
        a = pyro.param("a", torch.tensor(0.5))
        s = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(a * z, s), obs=x)

    def guide(x):
        b = pyro.param("b", torch.tensor(0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(b * x, pyro.param("t", torch.tensor(0.9))))

    return model, guide, torch.randn(num_data)


# One pair of networks for all stories made of it, as at the top of a notebook.
NETWORKS = FactorAnalysis(3, 2).double(), LinearGaussian(3, 2).double()


def by_closure(num_data: int = 20):
    model, guide = NETWORKS
    return (
        lambda x: pyro.module("model", model)(x),
        lambda x: pyro.module("guide", guide)(x),
        torch.randn(num_data, 3),
    )


class Story:
    """A model and a guide as methods, in the way of Pyro's tutorials."""

    def __init__(self) -> None:
        self.decoder, self.encoder = FactorAnalysis(3, 2), LinearGaussian(3, 2)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        return self.decoder(x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        self.encoder(x)


def by_method(num_data: int = 20):
    story = Story()
    return story.model, story.guide, torch.randn(num_data, 3)


KINDS = {"module": by_module, "param": by_param, "closure": by_closure, "method": by_method}


# ---- truth ----


@pytest.fixture(scope="module")
def fitted() -> pplvm.Fit:
    """Ten factors of the digits, by gradient steps to maximum likelihood."""
    torch.manual_seed(0)
    x, steps = digits(), 2000
    return pplvm.fit(
        FactorAnalysis(x.shape[1], 10),
        LinearGaussian(x.shape[1], 10),
        x,
        num_steps=steps,
        lr=0.05,
        scheduler=partial(CosineAnnealingLR, T_max=steps),
    )


def test_maximum_likelihood_is_scikit_learns(fitted):
    x = fitted.data[0]
    peer = ScikitFactorAnalysis(10, tol=1e-8, max_iter=5000, svd_method="lapack")
    score = peer.fit(x.double().numpy()).score(x.double().numpy())
    ours = pplvm.exact(fitted.model, x).log_marginal.mean().item()
    assert score - 0.05 < ours < score + 0.01  # nobody is above the maximum
    assert ours - 0.05 < fitted.bound().mean().item() < ours + 0.01


def test_the_gap_of_mean_field_is_its_divergence(fitted):
    """False alarm: 4.5 standard errors of the bound, 7e-6."""
    x, R = fitted.data[0], 100
    model = copy.deepcopy(fitted.model).requires_grad_(False)
    guide = MeanField(len(x), 10).float()
    fit = pplvm.fit(model, guide, x, num_steps=200, lr=0.05)
    assert same(dict(fit.model.named_parameters()), dict(model.named_parameters()))
    truth = pplvm.exact(model, x)
    m, s = fit.guide.m.detach().double(), fit.guide.log_s.detach().double().exp()
    q = MultivariateNormal(m, scale_tril=torch.diag_embed(s))
    p = MultivariateNormal(truth.location, scale_tril=truth.scale_tril)
    divergence = kl_divergence(q, p).mean()
    bounds = fit.bound(num_repeats=R).double().mean(1)  # (R,)
    gap, error = truth.log_marginal.mean() - bounds.mean(), bounds.std() / R**0.5
    assert divergence > 100 * error  # or the law would say nothing
    assert abs(gap - divergence) < 4.5 * error


# ---- the same twice, and nothing else ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_fit_bit_for_bit(kind):
    model, guide, x = KINDS[kind]()
    run = partial(pplvm.fit, model, guide, x, num_steps=8, batch_size=7, seed=3)
    first = run()
    torch.rand(5)  # what others draw in between is nothing to it
    second = run()
    assert same(learned(first), learned(second))
    assert first.history.bound == second.history.bound


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_another_fit(kind):
    model, guide, x = KINDS[kind]()
    one, other = (pplvm.fit(model, guide, x, num_steps=4, seed=seed) for seed in (0, 1))
    assert not same(learned(one), learned(other))


@pytest.mark.parametrize("kind", ["module", "closure", "method"])
def test_the_callers_modules_are_untouched(kind):
    model, guide, x = KINDS[kind]()
    owned = {
        "module": (model, guide),
        "closure": NETWORKS,
        "method": (
            getattr(getattr(model, "__self__", None), n, None) for n in ("decoder", "encoder")
        ),
    }[kind]
    owned = list(owned)
    owned[1].eval()
    before = [copy.deepcopy(module.state_dict()) for module in owned]
    fit = pplvm.fit(model, guide, x, num_steps=3)
    fit.draws(num_draws=3)
    for module, state in zip(owned, before, strict=True):
        assert same(dict(module.state_dict()), dict(state))
        assert all(p.requires_grad for p in module.parameters())
    assert owned[0].training
    assert not owned[1].training


@pytest.mark.parametrize("guided", [True, False])
def test_random_state_and_parameter_store_are_as_they_were(guided):
    model, guide, x = by_param()
    pyro.param("a", torch.tensor(42.0))  # of the same name as the story's
    before = torch.get_rng_state()
    fit = pplvm.fit(model, guide if guided else None, x, num_steps=3)
    fit.draws(num_draws=3).to_arviz()
    fit.log_marginal(num_particles=30)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(pyro.get_param_store()) == ["a"]
    assert pyro.param("a").item() == 42.0


def run_of(model, guide, x, seed: int, batch_size: int | None = 7) -> Run:
    batches = Batches((x,), batch_size, seed, lambda t: t)
    return Run(
        model, guide, objective=elbo, batches=batches, optimizer=partial(torch.optim.Adam, lr=0.1),
        scheduler=None, clip_norm=None, kl_schedule=None, device=torch.device("cpu"), seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
def test_interleaved_runs_are_those_alone(kind):
    def alone(seed: int) -> dict[str, Tensor]:
        run = run_of(*stories[seed], seed)
        with run.scope():
            steps = run.steps()
            for _ in range(9):
                next(steps)
        return learned(run)

    make = auto if kind == "auto" else KINDS[kind]
    stories = [make(), make()]  # of the same parameter names, or of the very same networks
    want = [alone(0), alone(1)]
    runs = [run_of(*story, seed) for seed, story in enumerate(stories)]
    generators = [run.steps() for run in runs]
    for _ in range(9):
        for run, steps in zip(runs, generators, strict=True):
            with run.scope():
                next(steps)
    assert same(learned(runs[0]), want[0])
    assert same(learned(runs[1]), want[1])
    assert not same(*want)


def auto():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    return model, None, torch.randn(20)


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
def test_finished_fits_keep_their_own_parameters(kind):
    make = auto if kind == "auto" else KINDS[kind]
    model, guide, x = make()
    one = pplvm.fit(model, guide, x, num_steps=3, lr=0.1)
    before = one.draws(num_draws=4)["m" if kind == "auto" else "z"]
    other = pplvm.fit(model, guide, x + 5.0, num_steps=30, lr=0.1)
    name = "m" if kind == "auto" else "z"
    other.draws(num_draws=4)  # whose parameters must not go to a store that the first one reads
    assert torch.equal(one.draws(num_draws=4)[name], before)
    assert not torch.equal(other.draws(x, num_draws=4)[name], before)


def test_a_bound_program_can_be_copied_and_still_shows_its_module():
    fit = pplvm.fit(*by_module()[:1], None, torch.randn(6, 3), num_steps=2)
    twin = copy.deepcopy(fit.guide)
    assert torch.equal(twin.median()["z"], fit.guide.median()["z"])


# ---- data ----


def test_arrays_and_memory_maps_are_tensors(tmp_path):
    model, guide, x = by_module()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for size in (None, 7):
        fits = [
            learned(pplvm.fit(model, guide, data, num_steps=5, batch_size=size))
            for data in (x, x.numpy(), mapped)
        ]
        assert same(fits[0], fits[1])
        assert same(fits[0], fits[2])


def test_data_take_the_dtype_of_the_parameters():
    model, guide, x = by_module()
    fit = pplvm.fit(model.float(), guide.float(), x.numpy(), num_steps=2)
    assert all(p.dtype == torch.float32 for p in learned(fit).values())
    assert fit.draws(num_draws=3)["z"].dtype == torch.float32


@pytest.mark.parametrize("batch_size", [None, 4])
def test_several_tensors_stay_in_step(batch_size):
    seen = []

    def spying(model, guide, features, y):
        seen.append(torch.equal(features[:, 0], y))
        return elbo(model, guide, features, y)

    story = regression(num_data=10)
    features = story.data[0]
    pplvm.fit(
        story.model, story.guide, features, features[:, 0], num_steps=5,
        batch_size=batch_size, objective=spying,
    )  # fmt: skip
    assert seen == [True] * 5


def rows_seen(data, batch_size=None, num_steps=6, seed=0) -> list[list[int]]:
    """The rows of each minibatch."""
    seen = []

    def spying(model, guide, x):
        seen.append(x[:, 0].long().tolist())
        return elbo(model, guide, x)

    pplvm.fit(
        FactorAnalysis(3, 1), LinearGaussian(3, 1), data, objective=spying,
        batch_size=batch_size, num_steps=num_steps, seed=seed,
    )  # fmt: skip
    return seen


def numbered(num_data: int = 10) -> Tensor:
    return torch.arange(num_data, dtype=torch.float64)[:, None].expand(-1, 3) / 1.0


def test_an_epoch_sees_every_datum_once_in_a_new_order():
    seen = rows_seen(numbered(), batch_size=4)
    assert [len(rows) for rows in seen] == [4, 4, 2] * 2  # the last one is short
    assert sorted(chain(*seen[:3])) == sorted(chain(*seen[3:])) == list(range(10))
    assert seen[:3] != seen[3:]


def test_the_order_of_batches_follows_the_seed():
    runs = [rows_seen(numbered(), batch_size=4, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("generator", [False, True])
def test_a_loader_is_reproducible_and_complete(generator):
    def seen(seed: int) -> list[list[int]]:
        own = torch.Generator().manual_seed(int(torch.randint(1000, ()))) if generator else None
        loader = DataLoader(TensorDataset(numbered()), 4, shuffle=True, generator=own)
        return rows_seen(loader, seed=seed)

    runs = [seen(seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert [len(rows) for rows in runs[0]] == [4, 4, 2] * 2
    assert sorted(chain(*runs[0][:3])) == list(range(10))
    assert runs[0][:3] != runs[0][3:]


def test_a_loader_of_bare_tensors_will_do():
    seen = rows_seen(DataLoader(numbered(), batch_size=5), num_steps=2)
    assert seen == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_loader_in_order_is_the_tensor_itself():
    model, guide, x = by_module()
    whole = pplvm.fit(model, guide, x, num_steps=5)
    loaded = pplvm.fit(model, guide, DataLoader(TensorDataset(x), len(x)), num_steps=5)
    assert same(learned(whole), learned(loaded))
    assert loaded.data == ()


def test_epochs_are_counted_in_batches():
    model, guide, x = by_module(20)
    fit = pplvm.fit(model, guide, x, num_epochs=3, batch_size=7)
    assert fit.run.step_count == fit.settings["num_steps"] == 9


# ---- options ----


def test_history_has_an_entry_a_step_and_the_scheduler_moves_the_rate():
    model, guide, x = by_module()
    fit = pplvm.fit(
        model, guide, x, num_steps=6, lr=0.4,
        scheduler=partial(StepLR, step_size=2, gamma=0.5),
        validation=(x,), validate_every=2,
    )  # fmt: skip
    assert fit.history.lr == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1, 0.1])
    assert len(fit.history.bound) == 6
    assert fit.history.validated_at == [2, 4, 6]
    assert len(fit.history.validation) == 3
    assert fit.seconds > 0
    assert all(map(math.isfinite, fit.history.bound))


def moved(before: nn.Module, after: nn.Module) -> Tensor:
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return torch.cat([(q - p).detach().flatten() for p, q in pairs])


def test_clipping_bounds_the_step_of_plain_gradient_descent():
    model, guide, x = by_module()
    options = {"num_steps": 1, "optimizer": partial(torch.optim.SGD, lr=1.0)}
    free = pplvm.fit(model, guide, 10 * x, **options)
    clipped = pplvm.fit(model, guide, 10 * x, clip_norm=0.25, **options)
    steps = [torch.cat([moved(model, f.model), moved(guide, f.guide)]) for f in (free, clipped)]
    assert steps[0].norm() > 0.25
    assert steps[1].norm() == pytest.approx(0.25, rel=1e-4)
    assert torch.cosine_similarity(*steps, dim=0) == pytest.approx(1.0)


def test_gradient_descent_steps_down_the_gradient():
    model, guide, x = by_module()
    fit = pplvm.fit(model, guide, x, num_steps=1, optimizer=partial(torch.optim.SGD, lr=0.1))
    replica = run_of(
        model, guide, x, seed=0, batch_size=None
    )  # the same seed, hence the same draws
    with replica.scope():
        gradients = torch.autograd.grad(
            elbo(replica.model, replica.guide, x).loss, [replica.model.W]
        )
    torch.testing.assert_close(fit.model.W - model.W, -0.1 * gradients[0])


def test_the_schedule_of_the_divergence_reaches_the_loss_but_not_validation():
    weights = []

    def spying(model, guide, x, kl_weight=1.0):
        weights.append((kl_weight, torch.is_grad_enabled()))
        return elbo(model, guide, x, kl_weight=kl_weight)

    model, guide, x = by_module()
    pplvm.fit(
        model, guide, x, num_steps=4, kl_schedule=lambda step: step / 10, objective=spying,
        validation=(x,), validate_every=4,
    )  # fmt: skip
    assert weights == [(0.0, True), (0.1, True), (0.2, True), (0.3, True), (1.0, False)]


def test_a_divergence_that_weighs_nothing_leaves_the_guide_to_the_likelihood():
    model, guide, x = by_module()
    model.requires_grad_(False)
    free = pplvm.fit(model, guide, x, num_steps=200, lr=0.05, kl_schedule=lambda _: 0.0)
    held = pplvm.fit(model, guide, x, num_steps=200, lr=0.05)
    spread = [f.guide.L.detach().diagonal().exp().prod() for f in (free, held)]
    assert spread[0] < 0.1 * spread[1]  # nothing keeps it from shrinking to a point


def drifting() -> dict:
    """Held-out data that training leaves behind: their bound is best early on."""
    model, guide, x = by_module()
    with torch.no_grad():
        model.mu.fill_(1.0)
    return {"args": (model, guide, x - 5.0), "validation": (torch.randn(20, 3) * 0.5,)}


def test_the_best_weights_of_validation_are_kept():
    case = drifting()
    fit = pplvm.fit(
        *case["args"], num_steps=40, lr=0.1, validation=case["validation"], validate_every=3
    )
    best = max(range(len(fit.history.validation)), key=fit.history.validation.__getitem__)
    assert 3 < fit.run.best_step == fit.history.validated_at[best] < 39
    # Validation draws of its own: without it, the same steps lead to the same weights.
    short = pplvm.fit(*case["args"], num_steps=fit.run.best_step, lr=0.1)
    assert same(learned(fit), learned(short))


def test_the_averages_of_batch_normalisation_are_kept_with_the_best_weights(tmp_path):
    """Held-out data have their best bound again, here and from the file."""
    x = torch.randint(0, 4, (20, 10)).double()
    model, guide = NeuralLDA(10, 3), NeuralLDAGuide(10, 3, (8,))
    fit = pplvm.fit(
        model, guide, x[:10], validation=(x[10:],), validate_every=1, num_steps=100, lr=0.05,
        compile="off",
    )  # fmt: skip
    assert 3 < fit.run.best_step < 97
    fit.save(tmp_path / "f")
    for found in (fit, pplvm.load(tmp_path / "f", model, guide, x[:10])):
        held_out = Batches((x[10:],), None, 0, lambda data: data)
        with found.run.scope():
            again = found.run.validate(held_out)
        assert again == pytest.approx(max(fit.history.validation), rel=1e-12)


def test_patience_ends_the_fit():
    case = drifting()
    fit = pplvm.fit(
        *case["args"], num_steps=500, lr=0.1, validation=case["validation"], validate_every=3,
        patience=2,
    )  # fmt: skip
    assert fit.settings["stopped"].startswith("early")
    assert fit.settings["num_steps"] == fit.run.best_step + 6 < 500


def test_a_bound_that_is_no_number_is_never_the_best():
    def blind(model, guide, x):
        estimate = elbo(model, guide, x)
        seen = torch.is_grad_enabled()
        return estimate if seen else Estimate(estimate.loss, estimate.bound * math.nan)

    model, guide, x = by_module()
    options = {"num_steps": 4, "objective": blind}
    fit = pplvm.fit(model, guide, x, validation=(x,), validate_every=1, **options)
    assert fit.run.best is None
    assert same(learned(fit), learned(pplvm.fit(model, guide, x, **options)))


def test_validation_turns_training_off_and_on_again():
    modes = []

    class Watched(LinearGaussian):
        def forward(self, x):
            modes.append((self.training, torch.is_grad_enabled()))
            super().forward(x)

    def steps_only(model, guide, x):
        modes.clear()
        return elbo(model, guide, x)

    fit = pplvm.fit(
        FactorAnalysis(3, 2), Watched(3, 2), torch.randn(6, 3), num_steps=1,
        validation=(torch.randn(4, 3),), objective=steps_only,
    )  # fmt: skip
    assert modes == [(False, False)]
    assert not fit.guide.training


def lone(y: Tensor) -> Tensor:
    """A story without a data plate, whose guide below draws nothing at random."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    return pyro.sample("y", dist.Normal(mu, 1.0).expand(y.shape).to_event(1), obs=y)


def pointed(y: Tensor) -> None:
    pyro.sample("mu", dist.Delta(pyro.param("at", torch.tensor(0.3))))


@pytest.mark.parametrize("num_held_out", [4, 8, 16])
def test_validation_without_a_data_plate_is_the_bound_of_all_held_out_data(num_held_out):
    y = torch.randn(8)
    held_out = torch.randn(num_held_out)
    fit = pplvm.fit(lone, pointed, y, num_steps=1, lr=1e-9, validation=(held_out,))
    for found, data in ((fit.history.bound, y), (fit.history.validation, held_out)):
        want = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.3))
        want = want + dist.Normal(0.3, 1.0).log_prob(data).sum()
        assert found == pytest.approx([want.item()], abs=1e-6)


def test_validation_in_batches_is_the_mean_over_held_out_data():
    model, guide, x = by_module()
    held_out = torch.randn(7, x.shape[1])
    fit = pplvm.fit(model, guide, x, num_steps=1, batch_size=3, lr=1e-9, validation=(held_out,),
                    validate_every=1)  # fmt: skip
    other = fit.bound(held_out, num_repeats=2000).mean(1)  # (R,)
    assert abs(fit.history.validation[0] - other.mean()) < 5 * other.std()


# ---- guides that are left out ----


def cosine(num_steps: int) -> dict:
    return {
        "num_steps": num_steps,
        "lr": 0.05,
        "scheduler": partial(CosineAnnealingLR, T_max=num_steps),
    }


def test_a_guide_left_out_is_a_mean_field():
    """The optimum of a Gaussian mean field is known: the mean, and 1 / sqrt of the precision."""
    story = regression(num_data=30)
    X, y = story.data
    noise = math.exp(-0.3) ** 2

    def model(X, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(X), dim=-1):
            return pyro.sample("y", dist.Normal((X * w).sum(-1), noise**0.5), obs=y)

    fit = pplvm.fit(model, None, X, y, objective=partial(elbo, num_particles=16), **cosine(400))
    q = fit.guide._get_loc_and_scale("w")
    truth, precision = pplvm.exact(model, X, y), torch.eye(2) + X.T @ X / noise
    assert ((q[0] - truth.mean["w"]).abs() / truth.sd["w"]).max() < 0.05
    torch.testing.assert_close(q[1].detach(), precision.diagonal().rsqrt(), rtol=0.05, atol=0.0)


def test_an_automatic_guide_of_the_users_learns_the_correlations():
    """5 % on sds of 0.1: the noise that is left by 600 steps is about 1 %."""
    story = regression(num_data=30)
    X, y = story.data[0] @ torch.tensor([[1.0, 0.8], [0.0, 0.6]]), story.data[1]

    def model(X, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(X), dim=-1):
            return pyro.sample("y", dist.Normal((X * w).sum(-1), 0.7), obs=y)

    guide = AutoMultivariateNormal(model)
    fit = pplvm.fit(model, guide, X, y, objective=partial(elbo, num_particles=16), **cosine(600))
    truth = pplvm.exact(model, X, y)
    posterior = fit.guide.get_posterior()
    want = truth.scale_tril[0] @ truth.scale_tril[0].T
    assert ((posterior.mean - truth.location[0]).abs() / want.diagonal().sqrt()).max() < 0.05
    torch.testing.assert_close(posterior.covariance_matrix.detach(), want, rtol=0.1, atol=1e-4)
    assert list(guide.parameters()) == []  # the user's own has not even been set up


def test_a_point_estimate_is_a_guide_too():
    story = mixed(num_data=8)
    fit = pplvm.fit(story.model, AutoDelta(story.model), *story.data, num_steps=3)
    assert all(map(math.isfinite, fit.history.bound))


# ---- objectives ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "objective",
    [
        elbo,
        partial(iwae, num_particles=3),
        partial(iwae, num_particles=3, gradient="dreg"),
        wake_sleep,
        partial(reweighted_wake_sleep, num_particles=3),
        Trace_ELBO(),
        TraceGraph_ELBO(),
        TraceMeanField_ELBO(),
        RenyiELBO(alpha=0.0, num_particles=3),
    ],
    ids=lambda o: getattr(getattr(o, "func", o), "__name__", type(o).__name__),
)
def test_every_objective_learns_every_kind_of_story(objective, kind):
    model, guide, x = KINDS[kind](40)
    fit = pplvm.fit(model, guide, 2 * x + 1, objective=objective, num_steps=60, lr=0.05)
    bound = fit.history.bound
    assert sum(bound[-10:]) > sum(bound[:10])


@pytest.mark.parametrize("batch_size", [None, 6])
@pytest.mark.parametrize("name", ["factor_analysis", "gaussian", "nested"])
def test_elbo_is_pyros_step_by_step(name, batch_size):
    story = PER_DATUM[name](num_data=8)
    fits = [
        pplvm.fit(
            story.model, story.guide, *story.data, objective=objective, num_steps=6, lr=0.05,
            batch_size=batch_size,
        )
        for objective in (elbo, TraceMeanField_ELBO())
    ]  # fmt: skip
    ours, pyros = map(learned, fits)
    for key in ours:
        torch.testing.assert_close(ours[key], pyros[key], rtol=1e-6, atol=1e-8)
    assert fits[0].history.bound == pytest.approx(fits[1].history.bound)


def test_minibatches_share_what_the_data_share():
    """The bounds of an epoch's batches, weighed by size, average to that of all the data."""
    story = mixed(num_data=9)
    fit = pplvm.fit(
        story.model, story.guide, *story.data, num_steps=300, batch_size=4, lr=1e-300,
        objective=partial(elbo, num_particles=50),
    )  # fmt: skip
    whole = fit.bound(num_repeats=300).mean().item()
    sizes = torch.tensor([4, 4, 1]).repeat(100)
    mean = (torch.tensor(fit.history.bound) * sizes).sum() / sizes.sum()
    assert mean.item() == pytest.approx(whole, abs=0.02)


def test_predictions_and_bounds_are_of_the_data_asked_about():
    story = factor_analysis(num_data=6)
    fit = pplvm.fit(story.model, story.guide, *story.data, num_steps=2)
    other = torch.randn(4, 3)
    assert fit.predict(other, num_draws=5)["x"].shape == (5, 4, 3)
    assert fit.bound(other, num_repeats=2).shape == (2, 4)
    assert fit.draws(other, num_draws=5)["z"].shape == (1, 5, 4, 2)
    assert fit.log_marginal(other, num_particles=30).value.shape == (4,)
