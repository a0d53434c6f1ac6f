"""Traced and compiled steps against eager ones, and stories that cannot be traced."""

import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from zoo import DISCRETE, NO_PLATE, PER_DATUM, SHARED, Story, factor_analysis, learned, mixed

import pplvm
from pplvm.batches import Batches
from pplvm.compile import NotTraceableError, choose, trace
from pplvm.objectives import elbo, iwae, reweighted_wake_sleep, wake_sleep
from pplvm.training import Run

WHOLE = {"elbo": elbo, "elbo 3": partial(elbo, num_particles=3)}
WEIGHED = {
    "iwae": partial(iwae, num_particles=3),
    "iwae stl": partial(iwae, num_particles=3, gradient="stl"),
    "iwae dreg": partial(iwae, num_particles=3, gradient="dreg"),
}
ASLEEP = {
    "rws wake": partial(reweighted_wake_sleep, num_particles=3),
    "rws sleep": partial(reweighted_wake_sleep, num_particles=3, phi="sleep"),
    "rws both": partial(reweighted_wake_sleep, num_particles=3, phi="both"),
    "wake_sleep": wake_sleep,
}
DREAMLESS = ("masked", "schools")  # the sleep phase wants one data plate and no mask
CASES = [
    *((story, name) for story in PER_DATUM for name in WHOLE | WEIGHED),
    *((story, name) for story in (*NO_PLATE, *SHARED) for name in WHOLE),
    *((story, name) for story in DISCRETE | PER_DATUM for name in ASLEEP if story not in DREAMLESS),
]
OBJECTIVES = WHOLE | WEIGHED | ASLEEP
STORIES = PER_DATUM | NO_PLATE | SHARED | DISCRETE


def start(story: Story, objective: Callable, mode: str, **options) -> Run:
    options = {"clip_norm": None, "kl_schedule": None, "batch_size": None} | options
    batches = Batches(story.data, options.pop("batch_size"), 0, lambda x: x)
    return Run(
        story.model, story.guide, objective=objective, batches=batches,
        optimizer=partial(torch.optim.Adam, lr=0.01, fused=True), scheduler=None,
        device=torch.device("cpu"), seed=0, compile=mode, **options,
    )  # fmt: skip


def gradients(run: Run, seed: int = 3) -> tuple:
    """The gradient by the trace, and eagerly, by the same draws."""
    batch = run.batches.first()
    with run.scope():
        run.gradients(batch, None, lambda _: 10)  # traced here
        torch.manual_seed(seed)
        fast = run.gradients(batch, None, lambda _: 10)
        torch.manual_seed(seed)
        return fast, run.gradients.eager(batch, None)


def assert_equal(fast, eager, tolerance: float) -> None:
    assert abs(fast.loss - eager.loss) <= tolerance * max(1.0, abs(eager.loss))
    assert abs(fast.bound - eager.bound) <= tolerance * max(1.0, abs(eager.bound))
    assert any(g is not None for g in eager.grads)
    for a, b in zip(fast.grads, eager.grads, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert a.dtype == b.dtype
            scale = max(1.0, b.abs().max().item())
            assert (a - b).abs().max() <= tolerance * scale


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("story", "objective"), CASES)
def test_the_traced_gradient_is_the_eager_one(story, objective, dtype):
    torch.set_default_dtype(dtype)
    run = start(STORIES[story](), OBJECTIVES[objective], "graph")
    fast, eager = gradients(run)
    assert run.gradients.choice == "graph: as asked"
    assert_equal(fast, eager, 1e-10 if dtype == torch.float64 else 1e-5)


FEW = [("schools", "elbo"), ("vae", "iwae dreg"), ("discrete", "wake_sleep")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("story", "objective"),
    [case if case in FEW else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_the_compiled_gradient_is_the_eager_one(story, objective, dtype):
    torch.set_default_dtype(dtype)
    run = start(STORIES[story](), OBJECTIVES[objective], "inductor")
    fast, eager = gradients(run)
    assert run.gradients.choice == "inductor: as asked"
    assert_equal(fast, eager, 1e-10 if dtype == torch.float64 else 1e-5)


# ---- whole fits ----


def fitted(story: Story, mode: str, **options) -> pplvm.Fit:
    return pplvm.fit(
        story.model, story.guide, *story.data, num_steps=12, compile=mode, progress=False, **options
    )


OPTIONS = {
    "full batch": {},
    "a short last batch": {"batch_size": 4},
    "clipped": {"clip_norm": 0.1},
    "a KL schedule": {"kl_schedule": lambda step: min(1.0, 0.1 * step)},
    "validated": {"validate_every": 3},
    "plain SGD": {"optimizer": partial(torch.optim.SGD, lr=0.01)},
    "scheduled": {"scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=3)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_traced_fit_is_the_eager_one_to_rounding(options):
    torch.manual_seed(0)
    story = factor_analysis(num_data=10)
    if "validate_every" in options:
        options = options | {"validation": story.data}
    one, other = (fitted(story, mode, **options) for mode in ("graph", "off"))
    assert one.settings["compile"].startswith("graph")
    assert other.settings["compile"] == "off: as asked"
    assert np.allclose(one.history.bound, other.history.bound, rtol=1e-10, atol=1e-10)
    assert np.allclose(one.history.validation, other.history.validation, rtol=1e-10, atol=1e-10)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-9)


def test_every_shape_of_batch_has_its_own_trace():
    story = factor_analysis(num_data=10)
    run = start(story, elbo, "graph", batch_size=4)
    with run.scope():
        steps = run.steps()
        for _ in range(6):
            next(steps)
        assert sorted(key[0][0][0] for key in run.gradients._fast) == [2, 4]


def test_a_short_last_batch_does_not_speak_for_the_others(monkeypatch):
    def choose(mode, num_calls, seconds, traced=None):
        return ("graph", "many") if num_calls > 30 else ("off", "few")

    monkeypatch.setattr("pplvm.gradients.choose", choose)
    monkeypatch.setattr("pplvm.gradients._SLOWER", 1e9)
    story = factor_analysis(num_data=10)
    fit = pplvm.fit(story.model, story.guide, *story.data, batch_size=4, num_steps=60)
    assert fit.settings["compile"] == "graph: many"


def test_draws_are_fresh_and_follow_the_seed():
    story = mixed()
    one, same = (fitted(story, "graph", seed=1).history.bound for _ in range(2))
    assert one == same
    run = start(story, elbo, "graph")
    batch = run.batches.first()
    with run.scope():
        values = [run.gradients(batch, None, lambda _: 9).bound for _ in range(3)]
    assert len(set(values)) == 3


def test_networks_of_a_function_are_learned_alike():
    network = nn.Linear(1, 1)

    def model(x):
        pyro.module("network", network)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(network(z[..., None])[..., 0], 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(4))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 0.5))

    story = Story(model, guide, (torch.randn(4),))
    one, other = (fitted(story, mode) for mode in ("graph", "off"))
    assert one.settings["compile"].startswith("graph")
    assert np.allclose(one.history.bound, other.history.bound, rtol=1e-10)
    assert not np.allclose(one.history.bound, one.history.bound[0])


def test_recurrent_networks_and_dropout_are_learned_alike():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.drop = nn.GRU(1, 2, batch_first=True), nn.Dropout(0.3)

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                h = self.drop(self.rnn(x[..., None])[0]).sum(-1)
                return pyro.sample("x", dist.Normal(h + z[:, None], 1.0).to_event(1), obs=x)

    story = Story(Model(), learned(plain_guide, {"m": torch.zeros(())}), (torch.randn(4, 3),))
    one, other = (fitted(story, mode) for mode in ("graph", "off"))
    assert one.settings["compile"].startswith("graph")
    assert np.allclose(one.history.bound, other.history.bound, rtol=1e-9)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-8, atol=1e-8)


# ---- what cannot be traced runs eagerly, and says why ----


def plain_guide(phi, x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(phi["m"], 1.0))


def observe(x: Tensor, loc: Tensor | float) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z + loc, 1.0), obs=x)


def steered(x):
    return observe(x, 1.0 if x.sum() > 0 else torch.zeros(()))


def of_python(x):
    return observe(x, random.random())


def of_numpy(x):
    return observe(x, float(np.random.normal()))


class Counting:
    """Runs other operations each time."""

    def __init__(self, period: int = 1) -> None:
        self.count, self.period = 0, period

    def __deepcopy__(self, memo: dict) -> "Counting":
        return self

    def __call__(self, x):
        self.count += 1
        return observe(x, float(self.count // self.period))


class Growing(Counting):
    """Draws more sites from one run to the next, of which some are the data's own noise."""

    def __call__(self, x):
        self.count += 1
        for i in range(self.count % 2):
            pyro.sample(f"extra {i}", dist.Normal(0.0, 1.0), obs=torch.zeros(()))
        return observe(x, 0.0)


class Running(nn.Module):
    """Keeps running statistics."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x):
        return observe(x, self.norm(x[:, None])[:, 0])


UNTRACEABLE = {
    "if on a tensor": (lambda: steered, "value of a tensor"),
    "Python's random": (lambda: of_python, "Python's random"),
    "numpy.random": (lambda: of_numpy, "numpy.random"),
    "other constants": (Counting, "differs from the eager one"),
    "other sites": (Growing, "differs from the eager one"),
}


@pytest.mark.parametrize(("make", "cause"), UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_what_cannot_be_traced_runs_eagerly_with_one_warning(make, cause):
    story = Story(make(), learned(plain_guide, {"m": torch.zeros(())}), (torch.randn(5),))
    with pytest.warns(UserWarning, match=cause) as warned:
        fit = fitted(story, "graph")
    assert len(warned) == 1
    assert fit.settings["compile"].startswith("off")
    assert len(fit.history.bound) == 12
    if not isinstance(story.model, Counting) and make() not in (of_python, of_numpy):
        assert fit.history.bound == fitted(story, "off").history.bound


def test_running_statistics_are_those_of_an_eager_fit():
    story = Story(Running(), learned(plain_guide, {"m": torch.zeros(())}), (torch.randn(5),))
    one, other = fitted(story, "graph"), fitted(story, "off")
    assert one.settings["compile"].startswith("graph")
    for a, b in zip(one.model.norm.buffers(), other.model.norm.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert int(one.model.norm.num_batches_tracked) == int(other.model.norm.num_batches_tracked) > 0
    assert torch.equal(story.model.norm.running_mean, torch.zeros(1))


def test_a_story_that_changes_its_mind_later_is_found_out():
    """Not at once: at calls that are powers of two. What it says at the time of a check is right."""
    shift = [0.0]

    def model(x):
        return observe(x, shift[0])

    def schedule(step: int) -> float:
        shift[0] = float(step > 100)
        return 1.0

    scheduler = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=schedule)
    guide = learned(plain_guide, {"m": torch.zeros(())})
    with pytest.warns(UserWarning, match="no longer do what was traced") as warned:
        fit = pplvm.fit(
            model, guide, torch.randn(5), num_steps=200, compile="graph", scheduler=scheduler
        )
    assert len(warned) == 1
    assert fit.settings["compile"].startswith("off")


def test_batches_of_many_shapes_are_not_traced_one_by_one():
    class Ragged(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return torch.randn(i + 1)

    loader = torch.utils.data.DataLoader(Ragged(), batch_size=None, shuffle=False)
    story = Story(observe_all, learned(plain_guide, {"m": torch.zeros(())}), (loader,))
    with pytest.warns(UserWarning, match="more than 8 shapes"):
        pplvm.fit(story.model, story.guide, *story.data, num_epochs=3, compile="graph")


def observe_all(x):
    return observe(x, 0.0)


def test_a_wrong_trace_is_not_trusted(monkeypatch):
    from pplvm import gradients

    def wrong(function, *inputs):
        return trace(lambda *args: tuple(-g for g in function(*args)), *inputs)

    monkeypatch.setattr(gradients, "trace", wrong)
    story = mixed()
    with pytest.warns(UserWarning, match="differs from the eager one"):
        fit = fitted(story, "graph")
    assert fit.history.bound == fitted(story, "off").history.bound


# ---- compilers ----

COMPILES = """
import torch, pplvm
from pplvm.compile import trace, NotTraceableError
def f(x):
    return ((x.exp() * {factor}).sum(),)
try:
    traced = trace(f, torch.ones(9))
    print(traced.compiled()(torch.ones(9))[0].item())
except NotTraceableError as error:
    print(error)
"""


def compile_elsewhere(tmp_path, factor: float, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMPILES.format(factor=factor)],
        env={"PATH": "/usr/bin:/bin", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_compile_the_same_at_once(tmp_path):
    both = [compile_elsewhere(tmp_path, 2.0) for _ in range(2)]
    printed = [process.communicate() for process in both]
    for out, err in printed:
        assert float(out) == pytest.approx(18.0 * np.e), err


def test_no_compiler_and_no_cache_folder_are_causes(tmp_path):
    file = tmp_path / "file"
    file.touch()
    without = compile_elsewhere(tmp_path / "a", 3.0, CXX="/nowhere/g++")
    readonly = compile_elsewhere(file, 3.0)
    for process, cause in ((without, "the compiler gave up"), (readonly, "File exists")):
        out, err = process.communicate()
        assert cause in out, err


def test_without_a_compiler_the_graph_runs(monkeypatch):
    def fails(*_):
        raise NotTraceableError("the compiler gave up: there is none")

    monkeypatch.setattr("pplvm.compile.compile_graph", fails)
    with pytest.warns(UserWarning, match="there is none; the graph runs without it") as warned:
        fit = fitted(mixed(), "inductor")
    assert len(warned) == 1
    assert fit.settings["compile"].startswith("graph")


def test_operations_that_the_compiler_rejects_are_a_cause():
    traced = trace(lambda x: (x[torch.randperm(7)] * 2.0,), torch.ones(7))
    with pytest.raises(NotTraceableError, match="the compiler gave up"):
        traced.compiled()


RANDOM = {
    "normal": lambda p: torch.normal(p, 1.0),
    "uniform": lambda p: p * torch.rand(p.shape),
    "bernoulli": torch.bernoulli,
    "multinomial": lambda p: torch.multinomial(p, 1, True) * 1.0,
    "exponential": lambda p: torch.empty_like(p).exponential_() * p,
    "gamma": torch._standard_gamma,
    "poisson": lambda p: torch.poisson(9 * p),
    "dropout": lambda p: nn.functional.dropout(p, 0.5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_compiled_draws_are_torchs_own(dtype):
    """All in one graph: the order of the draws is kept too."""
    p = torch.rand(7, dtype=dtype)

    def draw(p):
        return tuple(f(p) for f in RANDOM.values())

    compiled = trace(draw, p).compiled()
    for _ in range(2):
        torch.manual_seed(5)
        want = draw(p)
        torch.manual_seed(5)
        for name, a, b in zip(RANDOM, compiled(p), want, strict=True):
            assert torch.allclose(a.to(b), b, rtol=1e-6), name


def test_what_is_computed_twice_is_computed_once():
    def function(x):
        first = (x @ x).exp() + torch.rand_like(x)
        return (first * (x @ x).exp() + torch.rand_like(x) + (x @ x.T), x.sum())

    traced = trace(function, torch.randn(3, 3))
    names = [str(node.target) for node in traced.module.graph.nodes]
    assert sum("mm" in name for name in names) == 2
    assert sum("exp" in name for name in names) == 1
    assert sum("rand" in name for name in names) == 2
    x = torch.randn(3, 3)
    torch.manual_seed(0)
    want = function(x)
    torch.manual_seed(0)
    torch.testing.assert_close(traced.interpreted()(x), want)


def test_what_changes_in_place_is_not_shared():
    def function(x):
        total = x * 2
        before = total.sum()
        total[0] += 1.0
        return (before, total.sum())

    x = torch.randn(3)
    torch.testing.assert_close(trace(function, x).interpreted()(x), function(x))


def test_data_of_one_shape_share_a_graph():
    def of(data):
        return trace(lambda x: ((x - data.log()).pow(2).sum(),), torch.ones(5))

    one, other = of(torch.rand(5)), of(torch.rand(5))
    assert one.module.code == other.module.code
    assert [c.shape for c in one.constants] == [(5,)]  # the logarithm is taken once


def test_rows_are_batched():
    data = torch.rand(5)
    traced = trace(
        lambda x, s: ((x * s - data).pow(2).sum(), x * 2.0), torch.ones(5), torch.ones(())
    )
    rows = torch.randn(3, 5)
    total, double = traced.batched(3).interpreted()(rows, torch.tensor(2.0))
    assert torch.allclose(total, (2.0 * rows - data).pow(2).sum(-1))
    assert torch.equal(double, 2.0 * rows)


# ---- the choice ----


@pytest.mark.parametrize(
    ("num_calls", "seconds", "numbers", "want"),
    [
        (100, 1e-3, None, "off"),
        (100_000, 1e-3, None, "graph"),
        (3_000, 5e-4, 10, "graph"),
        (100_000, 5e-4, 10, "inductor"),
        (3_000, 5e-3, 200_000, "inductor"),  # 20 million numbers need not go through memory
        (100, 1.0, 10, "graph"),  # large operations: little of it is Python
    ],
)
def test_auto_takes_what_is_done_first(num_calls, seconds, numbers, want):
    def hundred(x: Tensor) -> tuple[Tensor]:
        for _ in range(100):
            x = x.sin()
        return (x,)

    traced = None if numbers is None else trace(hundred, torch.zeros(numbers))
    mode, why = choose("auto", num_calls, seconds, traced)
    assert mode == want
    assert str(num_calls) in why


@pytest.mark.parametrize("mode", ["inductor", "graph", "off"])
def test_what_is_asked_for_is_taken(mode):
    assert choose(mode, 10**9, 1.0)[0] == mode


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'compile' should be one of"):
        fitted(mixed(), "fast")


def test_auto_says_what_it_chose(monkeypatch, capsys):
    monkeypatch.setattr("pplvm.gradients.choose", lambda *_: ("graph", "for the test"))
    fit = pplvm.fit(*mixed()[:2], *mixed().data, num_steps=10, progress=True)
    assert fit.settings["compile"] == "graph: for the test"
    assert capsys.readouterr().err.count("pplvm: compile = graph: for the test") == 1
    short = pplvm.fit(*mixed()[:2], *mixed().data, num_steps=2, progress=False)
    assert short.settings["compile"].startswith("auto")
