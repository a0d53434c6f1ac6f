"""The command line, called as the script calls it; once in a process of its own, which takes seconds."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch

from pplvm import cli

STORY = """
import pyro, pyro.distributions as dist, torch

def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(mu, 1.0).expand([len(x)]), obs=x)

def guide(x):
    m = pyro.param("m", torch.tensor(0.0))
    s = pyro.param("s", torch.tensor(0.0))
    pyro.sample("mu", dist.Normal(m, s.exp()))

def stray(x):
    pyro.sample("nu", dist.Normal(0.0, 1.0))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "story.py").write_text(STORY)
    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.normal(3.0, 1.0, 50))
    np.savez(tmp_path / "table.npz", x=random.normal(size=(60, 5)))
    np.savez(tmp_path / "long.npz", x=np.ones((2, 4, 3)), lengths=np.array([4, 5]))
    header = "a,b,c\n"
    rows = "\n".join(",".join(f"{v:.3f}" for v in row) for row in random.normal(size=(40, 3)))
    (tmp_path / "table.csv").write_text(header + rows + "\n")
    return tmp_path


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def pplvm(folder: Path, *words: str) -> Done:
    """Runs a command in a folder, in the precision that a user has."""
    out, err = io.StringIO(), io.StringIO()
    double = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", ["pplvm", *words]),
            pytest.raises(SystemExit) as stopped,
        ):
            cli.main()
    finally:
        torch.set_default_dtype(double)
    return Done(stopped.value.code or 0, out.getvalue(), err.getvalue())


def fine(folder: Path, *words: str) -> str:
    done = pplvm(folder, *words)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr  # quiet in a pipe
    return done.stdout


def test_list_names_what_there_is(folder):
    assert "factor-analysis" in fine(folder, "list")
    held = json.loads(fine(folder, "list", "--json"))
    assert held["stories"]["vae"]["guides"] == ["encoder"]
    assert held["stories"]["hmm"]["summed_out"]


def test_it_is_a_program(folder):
    command = [sys.executable, "-W", "error", "-m", "pplvm.cli", "list"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == fine(folder, "list")


def test_explain_shows_every_site(folder):
    out = fine(folder, "explain", "story.py:model", "--guide", "story.py:guide", "--data", "x.npy")
    assert "mu" in out
    assert "data 50" in out
    assert "KL in closed form" in out
    assert "MultivariateNormal" in fine(folder, "explain", "factor-analysis")


def test_sites_of_a_loop_are_one_line(folder):
    lines = fine(folder, "explain", "hmm").splitlines()
    assert [line.split("  ")[0] for line in lines] == ["site", "z_0 … z_31", "x_0 … x_31"]


def test_a_fit_is_saved_sampled_and_reported(folder):
    story = ("factor-analysis", "--data", "table.csv", "--columns", "a:c", "--latent-dim", "1")
    out = fine(folder, "fit", *story, "--num-steps", "200", "--save", "fit.st", "--json")
    assert json.loads(out)["num_steps"] == 200
    out = fine(folder, "sample", *story, "--fit", "fit.st", "--num-samples", "20", "--out", "z.npz")
    assert "(1, 20, 40, 1)" in out
    assert np.load(folder / "z.npz")["z"].shape == (1, 20, 40, 1)
    fine(folder, "report", *story, "--fit", "fit.st", "--out", "r.html")
    assert "<html" in (folder / "r.html").read_text()[:200]


def test_a_fit_is_resumed(folder):
    words = ("fit", "vae", "--seed", "3", "--checkpoint", "c.st", "--save")
    fine(folder, *words, "whole.st", "--num-steps", "40")
    (folder / "c.st").unlink()
    fine(folder, *words, "half.st", "--num-steps", "20")
    fine(folder, *words, "resumed.st", "--num-steps", "40", "--resume")
    from safetensors.torch import load_file

    whole, resumed = (load_file(folder / name) for name in ("whole.st", "resumed.st"))
    parameters = [key for key in whole if ".parameters." in key]
    assert parameters
    assert all((whole[key] == resumed[key]).all() for key in parameters)


def test_a_story_of_ones_own_is_compared(folder):
    words = ("compare", "story.py:model", "--guide", "story.py:guide", "--data", "x.npy", "--json")
    sizes = ("--num-steps", "2000", "--num-warmup", "100", "--num-samples", "200")
    out = fine(folder, *words, *sizes, "--methods", "svi,nuts,exact")
    table = json.loads(out)
    assert table["reference"] == "exact"
    rows = {row["name"]: row for row in table["rows"]}
    # The posterior of mu has an sd of about 1/√50; SVI's family contains it.
    assert rows["SVI, story.py:guide"]["mean_error"] < 0.5
    assert rows["NUTS"]["mean_error"] < 0.3
    assert rows["exact"]["log_marginal"] == pytest.approx(-1.4, abs=0.5)


def test_a_table_of_a_shipped_story_is_printed(folder):
    story = ("compare", "ppca", "--data", "table.npz", "--latent-dim", "1", "--num-steps", "300")
    out = fine(folder, *story, "--methods", "svi,exact", "--report", "r.html")
    assert "Reference: exact." in out
    assert "SVI, mean-field" in out
    assert "wrote r.html" in out


SIZES = ("--num-compared", "8", "--num-steps", "20")
DISCRETE = {  # what to ask, and what the table and the report must have
    "gaussian-mixture": ((), "CAVI", "Responsibilities"),
    "naive-bayes": (("--methods", "reweighted-wake-sleep,exact"), "reweighted-wake-sleep", "Means"),
    "hmm": (("--data", "rolls.npz"), "CAVI, every state apart", "States along time"),
    "factorial-hmm": (("--data", "rolls.npz", "--latent-dim", "2"), "CAVI", "States along time"),
}


@pytest.mark.parametrize("story", DISCRETE)
def test_discrete_stories_are_compared_by_their_probabilities(folder, story):
    options, answer, title = DISCRETE[story]
    random = np.random.default_rng(1)
    rolls = random.integers(0, 2, (9, 5, 6))
    np.savez(folder / "rolls.npz", x=rolls, lengths=random.integers(2, 6, 9))
    out = fine(folder, "compare", story, *SIZES, *options, "--report", "r.html", "--json")
    table = json.loads(out)
    rows = {row["name"]: row for row in table["rows"]}
    assert table["reference"] == "exact"
    assert 0 <= rows[answer]["total_variation"] <= 1
    assert rows[answer]["mean_error"] is None
    html = (folder / "r.html").read_text()
    assert f'alt="{title}"' in html
    assert "failed" not in html


_ASLEEP = {"wake-sleep", "reweighted-wake-sleep"}
DRAWN = {
    "sigmoid-belief-network": {*_ASLEEP, "disarm"},
    "document-model": {*_ASLEEP, "disarm"},
    "latent-factor-words": _ASLEEP,
    "rationale": {"score-function", "nvil", "disarm", "reweighted-wake-sleep"},
}


_SLOW = ("latent-factor-words", "rationale")


@pytest.mark.parametrize(
    "story", [pytest.param(s, marks=pytest.mark.slow) if s in _SLOW else s for s in DRAWN]
)
def test_stories_whose_latents_cannot_be_listed_are_compared(folder, story):
    out = fine(folder, "compare", story, *SIZES, "--report", "r.html", "--json")
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert set(rows) == DRAWN[story]
    assert all(row["log_marginal"] < 0 for row in rows.values())
    assert "failed" not in (folder / "r.html").read_text()


@pytest.mark.slow
def test_sequences_without_lengths_are_whole(folder):
    np.save(folder / "rolls.npy", np.random.default_rng(1).integers(0, 2, (9, 5, 6)))
    story = ("hmm", "--data", "rolls.npy", "--latent-dim", "2")
    out = fine(folder, "sample", *story, "--num-samples", "7", "--out", "z.npz")
    assert "z_0 … z_4: (1, 7, 9) = (chains, draws, …)" in out
    assert np.load(folder / "z.npz")["z_4"].shape == (1, 7, 9)
    assert "20 steps" in fine(folder, "fit", *story, "--num-steps", "20", "--save", "fit.st")
    assert "total variation" in fine(folder, "report", *story, "--fit", "fit.st", "--out", "r.html")


BAD = {
    "unknown command": (("frobnicate",), "frobnicate"),
    "unknown story": (("fit", "factor-analysys"), "did you mean 'factor-analysis'"),
    "unknown objective": (("fit", "vae", "--objective", "ivae"), "did you mean 'iwae'"),
    "unknown method": (("compare", "vae", "--methods", "nutz"), "did you mean 'nuts'"),
    "unknown guide": (("fit", "vae", "--guide", "encoders"), "did you mean 'encoder'"),
    "unknown data set": (("fit", "vae", "--data", "digit"), "did you mean 'digits'"),
    "missing data": (("fit", "story.py:model"), "--data"),
    "missing file": (("fit", "vae", "--data", "no.csv"), "no.csv"),
    "missing story file": (("fit", "no.py:model", "--data", "x.npy"), "no.py"),
    "unknown name in file": (("fit", "story.py:modle", "--data", "x.npy"), "did you mean 'model'"),
    "guide of another story": (
        ("fit", "story.py:model", "--guide", "story.py:stray", "--data", "x.npy"),
        "'nu'",
    ),
    "pixels that are not binary": (("fit", "vae", "--data", "table.npz"), "Bernoulli"),
    "words that are none": (
        ("fit", "latent-factor-words", "--data", "table.npz"),
        "words (N, T) and lengths (N,)",
    ),
    "classes that are none": (
        ("fit", "rationale", "--data", "table.npz"),
        "classes (N,), words (N, T) and lengths (N,)",
    ),
    "a gradient that there is not": (("fit", "document-model"), "no pathwise gradient"),
    "sequences that are none": (("fit", "hmm", "--data", "table.npz"), "sequences (N, T, D)"),
    "lengths that are none": (
        ("fit", "hmm", "--data", "long.npz"),
        "'lengths' is 5 in row 1: give whole numbers from 0 to 4",
    ),
    "a guide that is missing": (("compare", "hmm", "--methods", "iwae"), "'iwae' needs a guide"),
    "a guide with its model": (("compare", "avi-lda"), "'mean-field' holds the model"),
    "steps": (("fit", "vae", "--num-steps", "0"), "--num-steps"),
    "no such option": (("fit", "vae", "--frob"), "--frob"),
    "no cuda": (("fit", "vae", "--device", "cuda"), "cuda"),
    "missing fit": (("report", "vae", "--fit", "no.st"), "no.st"),
    "no exact answer": (
        ("compare", "vae", "--methods", "exact", "--num-steps", "5"),
        "linear-Gaussian",
    ),
    "unwritable": (("sample", "vae", "--fit", "no.st", "--out", "/proc/z.npz"), "/proc/z.npz"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(folder, case):
    if case == "no cuda" and torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    words, expected = BAD[case]
    done = pplvm(folder, *words)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert expected in done.stderr


def test_pickled_code_in_disguise_is_never_run(folder):
    class Bomb:
        def __reduce__(self):
            return (open, (str(folder / "boom"), "w"))

    for name, words in {
        "bomb.st": ("report", "vae", "--fit", "bomb.st"),
        "bomb.pt": ("fit", "vae", "--data", "bomb.pt"),
        "bomb.npy": ("fit", "vae", "--data", "bomb.npy"),
    }.items():
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        done = pplvm(folder, *words)
        assert done.returncode == 2
        assert name in done.stderr
        assert not (folder / "boom").exists()
