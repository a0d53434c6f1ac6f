"""Checkpoints: killed and resumed is never interrupted, and a bad file is a sentence."""

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

import pplvm
from pplvm import checkpoint as files
from pplvm.guides.factor_analysis import AmortisedMeanField, LinearGaussian
from pplvm.models.factor_analysis import FactorAnalysis

# A user's script: minibatches, a scheduler, Adam and validation, each step as slow as asked.
SCRIPT = """
import sys, time
import torch
import pplvm
from pplvm.guides.factor_analysis import LinearGaussian
from pplvm.models.factor_analysis import FactorAnalysis

torch.set_num_threads(1)

def run(path, pause=0.0, **options):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x = torch.randn(20, 3)

    def scheduler(optimizer):
        def rate(step):
            time.sleep(pause)
            return 0.99**step
        return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    return pplvm.fit(
        FactorAnalysis(3, 2), LinearGaussian(3, 2), x, batch_size=7, num_steps=100, lr=0.05,
        scheduler=scheduler, validation=(torch.randn(9, 3),), validate_every=4, seed=5,
        checkpoint=path, checkpoint_every=5, **options,
    )

if __name__ == "__main__":
    run(sys.argv[1], pause=0.05)
"""


def learned(fit: pplvm.Fit) -> dict[str, Tensor]:
    with fit.run.scope.parameters():
        return {name: p.detach().clone() for name, p in fit.run.parameters.items()}


def assert_same(a: pplvm.Fit, b: pplvm.Fit) -> None:
    p, q = learned(a), learned(b)
    assert p.keys() == q.keys()
    assert all(torch.equal(p[name], q[name]) for name in p)
    for name in ("bound", "lr", "validation", "validated_at"):
        assert getattr(a.history, name) == getattr(b.history, name)
    assert a.run.best_step == b.run.best_step


def test_a_fit_that_was_killed_goes_on_as_if_nothing_had_been(tmp_path):
    path, script = tmp_path / "run.ckpt", tmp_path / "story.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 60
        while not path.exists():
            assert process.poll() is None, "it should not end by itself"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < files.read(path)["run"]["step"] < 100
    spec = importlib.util.spec_from_file_location("story", script)
    story = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(story)
    assert_same(story.run(path, resume=True), story.run(tmp_path / "other.ckpt"))


# ---- resuming ----


class Normalising(nn.Module):
    """A guide with buffers that its parameters do not determine."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.BatchNorm1d(3), LinearGaussian(3, 2)

    def forward(self, x):
        self.inner(self.norm(x))


class Pyroic(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.s = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.sum(-1), self.s), obs=x[:, 0])


def by_param():
    def model(x):
        s = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.sum(-1), s), obs=x[:, 0])

    def guide(x):
        b, t = pyro.param("b", torch.zeros(3, 2)), pyro.param("t", torch.zeros(2))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ b, t.exp()).to_event(1))

    return model, guide


def by_closure():
    model, guide = FactorAnalysis(3, 2), LinearGaussian(3, 2)
    return (lambda x: pyro.module("m", model)(x)), (lambda x: pyro.module("g", guide)(x))


STORIES = {
    "modules": lambda: (FactorAnalysis(3, 2), LinearGaussian(3, 2)),
    "buffers": lambda: (FactorAnalysis(3, 2), Normalising()),
    "param": by_param,
    "closure": by_closure,
    "PyroModule": lambda: (Pyroic(), AmortisedMeanField(3, 2)),
    "auto": lambda: (FactorAnalysis(3, 2), None),
}
OPTIONS = {
    "plain": {},
    "momentum": {"optimizer": partial(torch.optim.SGD, lr=0.01, momentum=0.9)},
    "AdamW": {"optimizer": partial(torch.optim.AdamW, lr=0.01, amsgrad=True)},
    "StepLR": {"scheduler": partial(StepLR, step_size=3)},
    "MultiStepLR": {"scheduler": partial(MultiStepLR, milestones=[2, 6])},
    "OneCycleLR": {"scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=20)},
    "Cosine": {"scheduler": partial(CosineAnnealingLR, T_max=20), "clip_norm": 1.0},
    "schedule": {"kl_schedule": lambda step: min(1.0, step / 8)},
}


def resumed(model, guide, *data, path, first=4, last=10, **options) -> pplvm.Fit:
    """Steps, a new process as it were, and the other steps."""
    pplvm.fit(model, guide, *data, num_steps=first, checkpoint=path, **options)
    torch.rand(3)
    return pplvm.fit(model, guide, *data, num_steps=last, checkpoint=path, resume=True, **options)


@pytest.mark.parametrize("story", STORIES)
def test_every_story_resumes_amid_an_epoch(story, tmp_path):
    model, guide = STORIES[story]()
    size = None if story == "auto" else 7  # three batches an epoch; four steps are taken first
    options = {
        "lr": 0.05,
        "batch_size": size,
        "validation": (torch.randn(20, 3),),
        "validate_every": 3,
    }
    x = torch.randn(20, 3)
    got = resumed(model, guide, x, path=tmp_path / "f", **options)
    assert_same(got, pplvm.fit(model, guide, x, num_steps=10, **options))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_optimiser_and_scheduler_resumes(option, tmp_path):
    model, guide = STORIES["modules"]()
    x = torch.randn(20, 3)
    got = resumed(model, guide, x, path=tmp_path / "f", batch_size=7, **OPTIONS[option])
    assert_same(got, pplvm.fit(model, guide, x, num_steps=10, batch_size=7, **OPTIONS[option]))


def test_buffers_resume_bit_for_bit(tmp_path):
    model, guide = STORIES["buffers"]()
    x = torch.randn(20, 3)
    got = resumed(model, guide, x, path=tmp_path / "f", batch_size=7)
    want = pplvm.fit(model, guide, x, num_steps=10, batch_size=7)
    for a, b in zip(got.guide.buffers(), want.guide.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("generator", [False, True])
def test_a_loader_resumes_amid_an_epoch(generator, tmp_path):
    model, guide = STORIES["modules"]()
    x = torch.randn(20, 3)

    def loader():
        own = torch.Generator() if generator else None
        return DataLoader(TensorDataset(x), 7, shuffle=True, generator=own)

    got = resumed(model, guide, loader(), path=tmp_path / "f")
    assert_same(got, pplvm.fit(model, guide, loader(), num_steps=10))


def test_a_fit_that_stopped_early_stays_stopped(tmp_path):
    model, guide = STORIES["modules"]()
    x = torch.randn(20, 3) - 5.0
    with torch.no_grad():
        model.mu.fill_(1.0)
    run = partial(
        pplvm.fit, model, guide, x, num_steps=300, lr=0.1, validation=(torch.randn(20, 3) * 0.5,),
        validate_every=3, patience=2, checkpoint=tmp_path / "f",
    )  # fmt: skip
    whole = run()
    assert whole.settings["stopped"].startswith("early")
    assert_same(run(resume=True), whole)


def test_a_finished_fit_takes_no_more_steps(tmp_path):
    model, guide = STORIES["modules"]()
    run = partial(
        pplvm.fit, model, guide, torch.randn(9, 3), num_steps=5, checkpoint=tmp_path / "f"
    )
    assert_same(run(), run(resume=True))


def test_resuming_from_nothing_is_a_start(tmp_path):
    model, guide = STORIES["modules"]()
    x = torch.randn(9, 3)
    fit = pplvm.fit(model, guide, x, num_steps=3, checkpoint=tmp_path / "new" / "f", resume=True)
    assert_same(fit, pplvm.fit(model, guide, x, num_steps=3))
    assert (tmp_path / "new" / "f").is_file()


# ---- saving and loading ----


@pytest.mark.parametrize("story", STORIES)
def test_what_was_saved_draws_the_same(story, tmp_path):
    model, guide = STORIES[story]()
    x = torch.randn(12, 3)
    fit = pplvm.fit(model, guide, x, num_steps=5, lr=0.1)
    fit.save(tmp_path / "fit.safetensors")
    pyro.clear_param_store()
    other = STORIES[story]()  # networks of other values: everything comes from the file
    opened = pplvm.load(tmp_path / "fit.safetensors", *other, x)
    assert torch.equal(opened.draws(num_draws=6)["z"], fit.draws(num_draws=6)["z"])
    assert torch.equal(opened.predict(num_draws=6)["x"], fit.predict(num_draws=6)["x"])
    assert opened.history == fit.history
    assert opened.settings == fit.settings


def test_a_checkpoint_opens_as_a_fit_at_its_best_weights(tmp_path):
    model, guide = STORIES["modules"]()
    x = torch.randn(12, 3)
    fit = pplvm.fit(
        model, guide, x, num_steps=6, lr=0.1, validation=(x + 3,), validate_every=1,
        checkpoint=tmp_path / "f",
    )  # fmt: skip
    opened = pplvm.load(tmp_path / "f", model, guide, x)
    assert torch.equal(opened.draws(num_draws=6)["z"], fit.draws(num_draws=6)["z"])


def test_values_of_every_plain_kind_come_back(tmp_path):
    state = {
        "tensors": {"a": torch.randn(2, 3), "b": torch.arange(3), "none": torch.zeros(0)},
        "floats": [0.1 * i for i in range(20)], "few": [1.5, float("inf")], "pair": (1, "two"),
        "flag": True, "nothing": None, 3: {"nested": [{"deep": torch.tensor(1.0)}]},
    }  # fmt: skip
    files.write(tmp_path / "f", state)
    got = files.read(tmp_path / "f")
    assert got.keys() == state.keys()
    assert all(torch.equal(got["tensors"][k], v) for k, v in state["tensors"].items())
    assert torch.equal(got[3]["nested"][0]["deep"], torch.tensor(1.0))
    for key in ("floats", "few", "pair", "flag", "nothing"):
        assert got[key] == state[key]


def test_a_value_of_another_kind_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"state\.f of type function"):
        files.write(tmp_path / "f", {"f": lambda: None})
    assert list(tmp_path.iterdir()) == []


# ---- bad files ----


class Evil:
    """A pickle that runs code when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def saved(path: Path, seed: int = 0, latent_dim: int = 2) -> bytes:
    model, guide = FactorAnalysis(3, latent_dim), LinearGaussian(3, latent_dim)
    x = torch.ones(9, 3)
    pplvm.fit(model, guide, x, num_steps=3, checkpoint=path, seed=seed)
    return path.read_bytes()


def refused(path: Path, *words: str, load: bool = True) -> None:
    """Checks that nothing opens this file, that it is told why, and that it stays as it is."""
    before = path.read_bytes()
    model, guide, x = FactorAnalysis(3, 2), LinearGaussian(3, 2), torch.ones(9, 3)
    calls = [partial(pplvm.fit, model, guide, x, num_steps=9, checkpoint=path, resume=True)]
    calls += [partial(pplvm.load, path, model, guide, x)] if load else []
    for call in calls:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        message = str(caught.value)
        assert "\n" not in message
        assert message.endswith(".")
        assert all(word in message for word in words), message
        assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0.0, 1, 7, 8, 9, 100, 0.5, 0.9, -1])
def test_a_truncated_file_is_refused(kept, tmp_path):
    path = tmp_path / "f"
    blob = saved(path)
    path.write_bytes(blob[: int(kept * len(blob)) if isinstance(kept, float) else kept])
    refused(path, str(path), "truncated", "intact file")


def test_a_pickle_by_another_name_is_not_executed(tmp_path):
    path, touched = tmp_path / "fit.safetensors", tmp_path / "touched"
    path.write_bytes(pickle.dumps({"settings": {}, "run": Evil(touched)}))
    refused(path, str(path), "nothing in it was executed")
    torch.save({"settings": {}, "run": Evil(touched)}, path)
    refused(path, str(path), "nothing in it was executed")
    assert not touched.exists()
    pickle.loads(pickle.dumps(Evil(touched)))
    assert touched.exists()  # the trap is live


def test_a_file_of_plain_tensors_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "f")
    refused(tmp_path / "f", "not a fit", "Fit.save")


def test_a_state_that_is_no_fit_is_refused(tmp_path):
    files.write(tmp_path / "f", {"weights": torch.zeros(3)})
    refused(tmp_path / "f", "no fit", "Fit.save")


def test_another_storys_checkpoint_is_refused(tmp_path):
    saved(tmp_path / "f", latent_dim=3)
    refused(tmp_path / "f", "another story", "'model.W'", "(3, 3)", "(3, 2)")


def test_a_checkpoint_of_other_names_is_refused(tmp_path):
    pplvm.fit(*by_param(), torch.ones(9, 3), num_steps=3, checkpoint=tmp_path / "f")
    refused(tmp_path / "f", "another story", "only one of the two")


def test_a_checkpoint_of_another_seed_is_refused(tmp_path):
    saved(tmp_path / "f", seed=1)
    refused(tmp_path / "f", "seed = 1", "got 0", load=False)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"batch_size": 4}, ["batch_size = 9", "got 4"]),
        ({"objective": pplvm.objectives.iwae}, ["method = 'elbo'", "got 'iwae'"]),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1)}, ["'Adam'", "got 'SGD'"]),
        ({"clip_norm": 1.0}, ["clip_norm = None", "got 1.0"]),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(option, words, tmp_path):
    saved(tmp_path / "f")
    model, guide, x = FactorAnalysis(3, 2), LinearGaussian(3, 2), torch.ones(9, 3)
    with pytest.raises(ValueError, match="resume with the same arguments") as caught:
        pplvm.fit(model, guide, x, num_steps=9, checkpoint=tmp_path / "f", resume=True, **option)
    assert all(word in str(caught.value) for word in words)


def test_no_file_is_told_apart_from_a_bad_one(tmp_path):
    model, guide = STORIES["modules"]()
    with pytest.raises(ValueError, match="no file at"):
        pplvm.load(tmp_path / "f", model, guide, torch.ones(9, 3))


# ---- failing to write ----


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_half_way_leaves_the_former_file(step, tmp_path, monkeypatch):
    path = tmp_path / "f"
    before = saved(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    model, guide = FactorAnalysis(3, 2), LinearGaussian(3, 2)
    with pytest.raises(ValueError, match=r"cannot write .*No space left on device"):
        pplvm.fit(model, guide, torch.ones(9, 3), num_steps=9, checkpoint=path, resume=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f"]  # nor is half a file left lying about


def test_a_path_that_cannot_be_written_to_is_named(tmp_path):
    model, guide = STORIES["modules"]()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write") as caught:
        pplvm.fit(model, guide, torch.ones(9, 3), num_steps=2, checkpoint=tmp_path / "file" / "f")
    assert str(tmp_path / "file" / "f") in str(caught.value)
