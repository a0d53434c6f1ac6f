"""ChEES-HMC against exact moments, quantiles and energies; its adaptation; what must not change.

With C chains that begin apart, the means of chains are independent: every law below compares
their mean with the truth in units of their spread / √C, which needs no effective sample size.
"""

import math
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from typing import NamedTuple

import pytest
import torch
from arviz_stats.base import array_stats
from scipy import stats as laws
from torch import Tensor

from pplvm.chees import Transition, chees_hmc, stack

chees = import_module("pplvm.chees")  # the attribute of that name is the face's function
QUANTILES = (0.05, 0.5, 0.95)


class Target(NamedTuple):
    """A density on R^D with its exact answers."""

    potential: Callable
    mean: Tensor  # (D,)
    sd: Tensor  # (D,)
    quantiles: Tensor  # (3, D)
    mean_potential: float


def gaussian(mean: Tensor, covariance: Tensor) -> Target:
    precision = torch.linalg.inv(covariance)

    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        gradient = (x - mean) @ precision
        return 0.5 * ((x - mean) * gradient).sum(-1), gradient

    sd = covariance.diagonal().sqrt()
    z = torch.tensor(laws.norm.ppf(QUANTILES))[:, None]
    return Target(potential, mean, sd, mean + sd * z, 0.5 * len(mean))


def diagonal(mean: Tensor, sd: Tensor) -> Target:
    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x - mean) / sd
        return 0.5 * z.square().sum(-1), z / sd

    return gaussian(mean, sd.square().diag())._replace(potential=potential)


def correlated(D: int = 10, rho: float = 0.95) -> Target:
    i = torch.arange(D)
    return gaussian(torch.zeros(D), rho ** (i[:, None] - i).abs().double())


def independent(law, potential: Callable, mean_potential: float) -> Target:
    mean, sd = torch.as_tensor(law.mean()), torch.as_tensor(law.std())
    quantiles = torch.stack([torch.as_tensor(law.ppf(q)) for q in QUANTILES])
    return Target(potential, mean, sd, quantiles, mean_potential)


def log_gamma(shape: Tensor) -> Target:
    """The logarithm of a Gamma: skewed, exponential on one side and steeper on the other."""

    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x.exp() - shape * x).sum(-1), x.exp() - shape

    mean_potential = (shape - shape * torch.digamma(shape)).sum().item()
    return independent(laws.loggamma(shape.numpy()), potential, mean_potential)


def student(nu: float, D: int) -> Target:
    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        value = 0.5 * (nu + 1) * torch.log1p(x.square() / nu).sum(-1)
        return value, (nu + 1) * x / (nu + x.square())

    half = torch.tensor([(nu + 1) / 2, nu / 2])
    mean_potential = D * (nu + 1) / 2 * -torch.digamma(half).diff().item()
    return independent(laws.t(nu, scale=torch.ones(D).numpy()), potential, mean_potential)


SCALES = torch.logspace(-3, 3, 7, dtype=torch.float64)
TARGETS = {
    "standard": lambda: diagonal(torch.zeros(5), torch.ones(5)),
    "one-dimensional": lambda: diagonal(torch.tensor([1.0]), torch.tensor([2.0])),
    "badly scaled": lambda: diagonal(3 * SCALES, SCALES),
    "correlated": correlated,
    "skewed": lambda: log_gamma(torch.tensor([0.5, 2.0, 10.0])),
    "heavy-tailed": lambda: student(10.0, 4),
}


def transitions(
    potential: Callable, initial: Tensor, *, seed: int = 0, **options
) -> list[Transition]:
    options = {"num_warmup": 300, "num_samples": 300} | options
    noise = torch.Generator().manual_seed(seed)
    return list(chees_hmc(potential, initial, generator=noise, **options))


def uniform(C: int, D: int) -> Tensor:
    return torch.rand(C, D, generator=torch.Generator().manual_seed(1)) * 4 - 2


def scores(values: Tensor, truth: Tensor | float) -> Tensor:
    """How many standard errors the mean of (C, S, …) values is from the truth."""
    means = values.double().mean(1)  # (C, …), independent
    return (means.mean(0) - truth).abs() / (means.std(0) / len(means) ** 0.5)


def assert_exact(draws: Tensor, target: Target, bound: float = 4.0) -> None:
    """Of means, variances and three quantiles, 5·D statistics."""
    assert (scores(draws, target.mean) < bound).all()
    assert (scores((draws - target.mean).square(), target.sd.square()) < bound).all()
    for level, quantile in zip(QUANTILES, target.quantiles, strict=True):
        assert (scores(draws < quantile, level) < bound).all()


def effective(draws: Tensor) -> float:
    """The least effective sample size of coordinates (C, S, D) and of their squares."""
    draws = draws.movedim(-1, 0).numpy()
    squares = (draws - draws.mean((1, 2), keepdims=True)) ** 2
    return min(array_stats.ess(x, method="mean").min() for x in (draws, squares))


@pytest.fixture(scope="module", params=TARGETS)
def sampled(request) -> tuple[Target, list[Transition]]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    target = TARGETS[request.param]()
    steps = transitions(target.potential, uniform(64, len(target.mean)), num_samples=500)
    torch.set_default_dtype(before)
    return target, steps


# ---- truth ----


def test_draws_follow_the_target(sampled):
    """False alarm: 5·30 statistics of 63 degrees of freedom at 4 standard errors, 2.5e-2."""
    target, steps = sampled
    draws, _ = stack(steps)
    errors = draws.mean(1).std(0) / len(draws) ** 0.5  # (D,)
    assert (errors < 0.02 * target.sd).all()  # or the law would say nothing
    assert_exact(draws, target)


def test_chains_mix(sampled):
    draws = stack(sampled[1])[0].movedim(-1, 0).numpy()
    assert array_stats.rhat(draws).max() < 1.01


def test_energies_are_those_of_the_target(sampled):
    """Potential and kinetic energy each have their mean; false alarm: 6 at 4 errors, 1e-3."""
    target, steps = sampled
    energy = stack(steps)[1]["energy"]
    assert scores(energy, target.mean_potential + 0.5 * len(target.mean)) < 4
    # Half of the energy is drawn anew each time.
    draws, (C, S) = stack(steps)[0], energy.shape
    kinetic = energy - target.potential(draws.flatten(0, 1))[0].view(C, S)
    assert (kinetic > 0).all()
    assert scores(kinetic, 0.5 * len(target.mean)) < 4


@pytest.mark.parametrize("name", ["standard", "badly scaled", "skewed", "heavy-tailed"])
def test_coarse_steps_are_corrected(name, monkeypatch):
    """Chains that start from the target stay in it, though every third move is rejected.

    False alarm: 5·19 statistics at 4 errors, 6e-3.
    """
    target = TARGETS[name]()
    exact = transitions(target.potential, uniform(2048, len(target.mean)), num_samples=1)
    sizes = {"standard": 1.3, "badly scaled": 1.3, "skewed": 0.9, "heavy-tailed": 1.3}
    monkeypatch.setattr(chees, "_FIRST_STEP", sizes[name])
    steps = transitions(target.potential, exact[-1].position, num_warmup=0, num_samples=40, seed=1)
    draws, stats = stack(steps)
    assert 0.4 < stats["acceptance_rate"].mean() < 0.8, stats["acceptance_rate"].mean()
    assert_exact(draws, target)
    assert scores(stats["energy"], target.mean_potential + 0.5 * len(target.mean)) < 4


@pytest.mark.parametrize(("value", "slope"), [(math.inf, math.nan), (math.nan, 1), (-math.inf, 1)])
def test_chains_never_leave_the_support(value, slope, monkeypatch):
    """Of an exponential law, in which they begin. False alarm: 5 statistics at 4 errors, 3e-4."""

    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x > 0
        return torch.where(inside, x, value).sum(-1), torch.where(inside, 1.0, slope)

    # Not adapted: no step is so short that a trajectory would not end at a wall.
    monkeypatch.setattr(chees, "_FIRST_STEP", 0.4)
    exact = torch.empty(2048, 1).exponential_(generator=torch.Generator().manual_seed(1))
    draws, stats = stack(transitions(potential, exact, num_warmup=0, num_samples=40))
    assert (draws > 0).all()
    assert_exact(draws, independent(laws.expon(scale=[1.0]), potential, 1.0))
    assert 0.1 < stats["diverging"].double().mean() < 0.7
    assert (stats["acceptance_rate"][stats["diverging"]] == 0).all()


def test_adaptation_survives_an_edge_of_the_support():
    """A Gamma law, seldom left by a leap. False alarm: 5 statistics at 4 errors, 1e-3."""

    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - 3 * x.log()).sum(-1), 1 - 3 / x  # NaN below 0

    steps = transitions(potential, torch.rand(64, 1) + 0.1)
    draws, stats = stack(steps)
    assert_exact(draws, independent(laws.gamma([4.0]), potential, 0.0))
    assert any(t.diverging.any() for t in steps)
    assert stats["step_size"].min() > 0.1
    assert len({t.trajectory_length for t in steps}) > 100  # it has gone on learning


def test_moves_of_absurd_energy_are_marked_as_divergences():
    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        beyond = (x.abs() > 2).any(-1)
        return 0.5 * x.square().sum(-1) + beyond * 1500.0, x  # x itself: returned as it came

    draws, stats = stack(transitions(potential, uniform(64, 2), num_warmup=100, num_samples=100))
    assert stats["diverging"].any()
    assert not stats["diverging"].all()
    assert (draws.abs() <= 2).all()


# ---- adaptation ----


def test_adaptation_is_over_before_the_draws(sampled):
    steps = [t for t in sampled[1] if not t.warmup]
    assert len(steps) == 500
    assert len({t.step_size for t in steps}) == len({t.trajectory_length for t in steps}) == 1
    assert all(torch.equal(t.scale, steps[0].scale) for t in steps)
    for t in steps[:-1]:
        assert t.n_steps <= math.ceil(t.trajectory_length / t.step_size)
    assert len({t.n_steps for t in steps}) > 1
    late = torch.tensor([t.trajectory_length for t in sampled[1][210:240]]).log().mean()
    assert abs(late - math.log(steps[0].trajectory_length)) < 0.04  # not just the last one


@pytest.mark.parametrize("aim", [0.5, 0.651, 0.9])
def test_acceptance_is_near_its_target(aim):
    target = diagonal(torch.zeros(200), torch.ones(200))
    steps = transitions(target.potential, uniform(64, 200), target_accept=aim)
    rate = stack(steps)[1]["acceptance_rate"]
    assert (1 / (1 / rate.clamp(min=0.1)).mean(0)).mean() == pytest.approx(aim, abs=0.04)
    assert rate.mean() > aim + 0.01  # an arithmetic mean is above a harmonic one


def test_rare_rejections_that_no_step_prevents_do_not_freeze_all_chains():
    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        holes = (x[:, 0] * 1e4).frac().abs() < 0.01  # a hundredth of all ends
        return torch.where(holes, math.nan, 0.5 * x.square().sum(-1)), x

    initial = (uniform(256, 5) * 1e4).round() / 1e4 + 0.5e-4  # beside the holes
    steps = transitions(potential, initial, num_samples=1, max_num_steps=50)
    assert steps[-1].step_size > 0.4


def test_scales_are_learned_over_six_orders_of_magnitude():
    target = TARGETS["badly scaled"]()
    steps = transitions(target.potential, uniform(64, 7), num_samples=100)
    assert (steps[-1].scale / target.sd).log().abs().max() < 0.1
    assert sum(t.n_steps for t in steps[:300]) < 1500  # also while scales were wrong
    assert sum(t.n_steps for t in steps[-100:]) < 300  # unscaled, 10⁶ each


def test_trajectories_have_the_length_that_is_known_to_be_best():
    """E sin²(hT), the criterion of a standard Gaussian, is largest at T = 2.25.

    Of a correlated one, whose widest direction decides, at that many sds of it.
    """
    wide = correlated()
    covariance = torch.linalg.inv(wide.potential(torch.eye(10))[1])
    widest = torch.linalg.eigvalsh(covariance).max().sqrt().item()
    standard = diagonal(torch.zeros(50), torch.ones(50))
    for target, best in ((standard, 2.25), (wide, 2.25 * widest)):
        steps = transitions(target.potential, uniform(256, len(target.mean)), target_accept=0.9)
        leaps = stack(steps)[1]["n_steps"][0].double().mean().item()  # T / 2, rounded up
        assert 2 * leaps * steps[-1].step_size == pytest.approx(best, rel=0.1)


def test_the_slope_is_that_of_the_criterion():
    """Which is D sin²t for exact trajectories of a Gaussian. False alarm: 3 at 4 errors, 2e-4."""
    C, mean, scale = 40_000, torch.tensor([5.0, -1.0, 0.0]), torch.tensor([0.1, 1.0, 10.0])
    spread = scale / 2**0.5
    tuning = chees._Tuning(torch.zeros(2, 3), 0.8, 100)
    for _ in range(200):
        tuning.update_scale(torch.stack([mean - spread, mean + spread]))
    z, p = torch.randn(C, 3), torch.randn(C, 3)
    for t in (0.3, 1.0, 2.0):
        end, velocity = z * math.cos(t) + p * math.sin(t), p * math.cos(t) - z * math.sin(t)
        end[:100], end[100:200] = 1e3, math.nan  # rejected moves have no say
        states = (chees._State(mean + scale * y, p[:, 0], p) for y in (z, end))
        acceptance = (torch.arange(C) >= 200).double()
        move = chees._Move(*states, velocity, 1 - acceptance, acceptance, acceptance > 0, p[:, 0])
        error = 8 / C**0.5  # 8 is above the sd of each term, found from a million of them
        assert abs(tuning._slope(move) - 3 * math.sin(2 * t)) < 4 * error


def test_learned_lengths_beat_bad_ones(monkeypatch):
    """Effective draws a gradient, of a Gaussian that no diagonal scaling helps."""
    target = correlated()

    def efficiency() -> float:
        draws, stats = stack(transitions(target.potential, uniform(64, 10)))
        return effective(draws) / (64 * stats["n_steps"][0].sum().item())

    learned = efficiency()
    assert learned > 0.015  # a sampler of independent draws every 40 gradients would have 0.025
    monkeypatch.setattr(chees._Tuning, "_slope", lambda _, move: move.error.new_zeros(()))
    for length in (0.5, 40.0):  # which stay as they are
        monkeypatch.setattr(chees, "_FIRST_LENGTH", length)
        assert learned > 2 * efficiency()


def test_chains_come_back_from_far_away():
    """False alarm: 15 statistics at 4 errors, 3e-3."""
    target = diagonal(torch.zeros(3), torch.ones(3))
    far = uniform(64, 3) + torch.tensor([1e3, -1e4, 0.0])
    assert_exact(stack(transitions(target.potential, far))[0], target)
    steps = transitions(target.potential, 1e4 * far, num_warmup=50, num_samples=1)
    assert (steps[-1].scale.log().abs() < 0.7).all()  # where they began is soon forgotten


def test_a_chain_beyond_rescue_begins_again_among_the_others():
    """Its first gradient, e⁶⁰, throws it out of the floats at any step that suits the others.

    False alarm: 10 statistics at 4 errors, 2e-3.
    """
    target, initial = log_gamma(torch.tensor([2.0, 2.0])), uniform(64, 2)
    initial[0] = 60.0
    steps = transitions(target.potential, initial)
    assert (steps[0].position[0] == 60.0).all()
    assert_exact(stack(steps)[0], target)
    assert steps[-1].step_size > 0.1


@pytest.mark.parametrize(("log_mass", "sd", "left"), [(-300.0, 1.0, 0), (0.0, 8.0, 16)])
def test_chains_leave_a_local_mode_of_no_mass_and_only_that(log_mass, sd, left):
    """A quarter of the chains begin in another mode, which a wider one of equal mass is."""

    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        near = -0.5 * x.square().sum(-1)
        far = log_mass - 0.5 * ((x - 200.0) / sd).square().sum(-1) - 6 * math.log(sd)
        value = -torch.logaddexp(near, far)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    initial = uniform(64, 6)
    initial[:16] += 200.0
    steps = transitions(potential, initial, num_warmup=100, num_samples=1)
    assert int((steps[-1].position.mean(-1) > 100.0).sum()) == left


def test_trajectories_are_jittered_alike_for_all_chains():
    fractions = [chees._jitter(i) for i in range(7)]
    assert fractions == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]
    calls = []
    target = correlated()

    def counted(x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(x))
        return target.potential(x)

    steps = transitions(counted, uniform(8, 10), num_warmup=50, num_samples=50, max_num_steps=10)
    gradients = sum(t.n_steps for t in steps)
    assert len(calls) == gradients + 1  # one to begin with
    assert set(calls) == {8}
    assert max(t.n_steps for t in steps) == 10
    for i, t in enumerate(steps):
        if i >= 10:
            leaps = math.ceil(chees._jitter(i) * t.trajectory_length / t.step_size)
            assert t.n_steps == min(leaps, 10)


# ---- few chains, little warm-up, other dtypes ----


@pytest.mark.parametrize("C", [2, 5])
def test_few_chains_will_do(C):
    """False alarm: 40 statistics at 5 Monte Carlo standard errors, 2e-5."""
    target = correlated(4, 0.8)
    draws, _ = stack(transitions(target.potential, uniform(C, 4), num_warmup=500, num_samples=2000))
    for values, truth in ((draws, 0.0), (draws.square(), 1.0)):
        x = values.movedim(-1, 0).numpy()
        error = array_stats.mcse(x, method="mean")
        assert error.max() < 0.1
        assert (abs(x.mean((1, 2)) - truth) < 5 * error).all()
    assert array_stats.rhat(draws.movedim(-1, 0).numpy()).max() < 1.01


@pytest.mark.parametrize("num_warmup", [0, 1, 4, 7])
def test_next_to_no_warmup_will_do(num_warmup):
    target = TARGETS["standard"]()
    steps = transitions(target.potential, uniform(4, 5), num_warmup=num_warmup, num_samples=3)
    assert [t.warmup for t in steps] == [True] * num_warmup + [False] * 3
    assert all(t.position.isfinite().all() for t in steps)


def test_chains_may_start_at_one_point():
    """False alarm: 25 statistics at 4 errors, 4e-3."""
    target = TARGETS["standard"]()
    assert_exact(stack(transitions(target.potential, torch.zeros(64, 5)))[0], target)


def test_single_precision_stays_so():
    """False alarm: 25 statistics at 4 errors, 4e-3."""
    target = TARGETS["standard"]()

    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.dtype == torch.float32
        return tuple(y.float() for y in target.potential(x.double()))

    draws, stats = stack(transitions(potential, uniform(64, 5).float()))
    assert draws.dtype == stats["energy"].dtype == stats["step_size"].dtype == torch.float32
    assert_exact(draws.double(), target)


def test_a_potential_may_reuse_its_memory():
    target = TARGETS["skewed"]()
    value, gradient = torch.empty(16), torch.empty(16, 3)

    def potential(x: Tensor) -> tuple[Tensor, Tensor]:
        for buffer, result in zip((value, gradient), target.potential(x), strict=True):
            buffer.copy_(result)
        return value, gradient

    options = {"initial": uniform(16, 3), "num_warmup": 50, "num_samples": 50}
    reused, fresh = (stack(transitions(p, **options)) for p in (potential, target.potential))
    assert torch.equal(reused[0], fresh[0])
    assert all(torch.equal(reused[1][name], fresh[1][name]) for name in fresh[1])


# ---- the same twice, and nothing else ----


def test_chains_follow_their_generator_alone():
    target, initial = TARGETS["standard"](), uniform(8, 5)
    before, kept = torch.get_rng_state(), initial.clone()
    options = {"num_warmup": 20, "num_samples": 10}
    one = stack(transitions(target.potential, initial, seed=1, **options))[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    same, other = (
        stack(transitions(target.potential, initial, seed=seed, **options))[0] for seed in (1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert torch.equal(initial, kept)


def test_interrupted_it_leaves_what_there_is():
    target = TARGETS["standard"]()
    options = {"num_warmup": 20, "num_samples": 100, "generator": torch.Generator()}
    steps = list(islice(chees_hmc(target.potential, uniform(8, 5), **options), 27))
    draws, stats = stack(steps)
    assert draws.shape == (8, 7, 5)
    assert set(stats) == {"diverging", "energy", "acceptance_rate", "n_steps", "step_size"}
    assert all(value.shape == (8, 7) for value in stats.values())
    assert torch.equal(draws[:, -1], steps[-1].position)
    with pytest.raises(ValueError, match="no iteration after the warm-up"):
        stack(steps[:20])


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (torch.zeros(1, 2), "two chains"),
        (torch.zeros(3), "two chains"),
        (torch.tensor([[1.0], [-1.0], [2.0]]), "1 of 3 chains start"),
    ],
)
def test_what_cannot_begin_is_refused(initial, message):
    with pytest.raises(ValueError, match=message):
        transitions(lambda x: (x.log().sum(-1), 1 / x), initial)
