"""Expectation maximisation of hidden Markov models, beside hmmlearn's.

Run: python benchmarks/em.py [--quick] [--rounds 3]

The same iterations from the same parameters: of Gaussian emissions with diagonal covariances, on
generated sequences, and of multi-Bernoulli ones on the JSB chorales (generated ones without
PPLVM_DATA), for which hmmlearn has no class of its own but lets one be derived. hmmlearn takes its M
step in closed form and its E step sequence by sequence, in C++; pplvm takes all sequences at once, and
its M step by L-BFGS, as the story is any story. Where hmmlearn's variances have a prior, it is left out.
"""

import os
import time
from collections.abc import Callable
from statistics import median

import common
import hmmlearn.base
import hmmlearn.hmm
import numpy as np
import torch
from torch import Tensor

import pplvm
from pplvm.datasets import jsb, small_chorales
from pplvm.models.hmm import HMM

STATES = 16


class BernoulliHMM(hmmlearn.base.BaseHMM):
    """hmmlearn's own recursions, with features 0 and 1."""

    def _compute_log_likelihood(self, X: np.ndarray) -> np.ndarray:
        p = self.p.clip(1e-12, 1 - 1e-12)
        return X @ (np.log(p) - np.log1p(-p)).T + np.log1p(-p).sum(1)

    def _initialize_sufficient_statistics(self) -> dict:
        zeros = {"count": np.zeros(self.n_components), "on": np.zeros_like(self.p)}
        return super()._initialize_sufficient_statistics() | zeros

    def _accumulate_sufficient_statistics(self, stats, X, lattice, posteriors, *messages) -> None:
        super()._accumulate_sufficient_statistics(stats, X, lattice, posteriors, *messages)
        stats["count"] += posteriors.sum(0)
        stats["on"] += posteriors.T @ X

    def _do_mstep(self, stats: dict) -> None:
        super()._do_mstep(stats)
        self.p = stats["on"] / stats["count"][:, None]

    def _init(self, X: np.ndarray, lengths: np.ndarray | None = None) -> None:
        """Starts where it was told to."""

    def _check(self) -> None:
        """Trusts that."""


def gaussian_data() -> tuple[Tensor, Tensor]:
    """Returns 200 sequences of 100 steps and 6 features, from a model of 16 states."""
    torch.manual_seed(0)
    model, lengths = HMM(STATES, 6, "gaussian"), torch.full((200,), 100)
    with torch.no_grad():
        model.W.mul_(2)
        model.log_A.mul_(20)
        return _dream(model, lengths), lengths


def _dream(model: HMM, lengths: Tensor) -> Tensor:
    z, x = torch.distributions.Categorical(logits=model.log_pi).sample((len(lengths),)), []
    for _ in range(int(lengths.max())):
        x.append(model.W[z] + model.log_s[z].exp() * torch.randn(len(z), model.W.shape[1]))
        z = torch.distributions.Categorical(logits=model.log_A[z]).sample()
    return torch.stack(x, 1)


def of_hmmlearn(model: HMM, x: Tensor, lengths: Tensor, steps: int) -> list[float]:
    """Takes steps, and returns log p(x) before each of them and at the end."""
    rows = np.concatenate([row[:n].numpy() for row, n in zip(x.double(), lengths, strict=True)])
    options = {"n_iter": steps + 1, "tol": -np.inf, "implementation": "scaling"}
    if model.emission == "gaussian":
        peer = hmmlearn.hmm.GaussianHMM(
            STATES, init_params="", covariance_type="diag", min_covar=0.0, covars_prior=0.0,
            covars_weight=1.0, **options,
        )  # fmt: skip
        peer.means_ = model.W.detach().double().numpy()
        peer.covars_ = (2 * model.log_s.detach().double()).exp().numpy()
    else:
        peer = BernoulliHMM(STATES, init_params="", **options)
        peer.p = model.W.detach().double().sigmoid().numpy()
    peer.startprob_ = model.log_pi.detach().double().softmax(-1).numpy()
    peer.transmat_ = model.log_A.detach().double().softmax(-1).numpy()
    peer.fit(rows, lengths.numpy())
    return list(peer.monitor_.history)


def of_pplvm(model: HMM, x: Tensor, lengths: Tensor, steps: int) -> list[float]:
    """Takes steps, and returns log p(x) before each of them and at the end."""
    found = pplvm.em(model, x, lengths, num_steps=steps, tolerance=-1.0)
    return list(found.log_marginal)


def start(emission: str, x: Tensor) -> HMM:
    """Returns a model near the data."""
    torch.manual_seed(1)
    model = HMM(STATES, x.shape[2], emission)
    with torch.no_grad():
        if emission == "gaussian":
            model.W.copy_(x.flatten(0, 1)[torch.randperm(len(x) * x.shape[1])[:STATES]])
        else:
            model.W.copy_(torch.logit(x.mean((0, 1)), eps=1e-3) + 0.5 * torch.randn_like(model.W))
    return model


def _timed(function: Callable[[], list[float]]) -> tuple[float, list[float]]:
    begun = time.perf_counter()
    found = function()
    return time.perf_counter() - begun, found


def main() -> None:
    options = common.parser(__doc__, rounds=3).parse_args()
    about = common.machine(options.cores)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    steps = 3 if options.quick else 10
    try:
        rolls = jsb("train")
    except ValueError:
        rolls = small_chorales("train")
    rows, raw = [], {}
    for emission, (x, lengths) in {"gaussian": gaussian_data(), "bernoulli": rolls}.items():
        model, times, ends = start(emission, x), {}, {}
        for _ in range(1 if options.quick else options.rounds):
            for name, run in {"hmmlearn": of_hmmlearn, "pplvm": of_pplvm}.items():
                # A single step beside many: what is done once is not counted.
                few, _ = _timed(lambda run=run: run(model, x, lengths, 1))  # noqa: B023
                many, ends[name] = _timed(lambda run=run: run(model, x, lengths, 1 + steps))  # noqa: B023
                times.setdefault(name, []).append((many - few) / steps)
        m = {name: median(seconds) for name, seconds in times.items()}
        row = {"emission": f"{emission} {tuple(x.shape)}"}
        row |= {f"{name}, ms a step": 1e3 * s for name, s in m.items()}
        row |= {f"{name}, log p(x)": f"{end[1 + steps]:,.1f}" for name, end in ends.items()}
        rows.append(row | {"hmmlearn / pplvm": m["hmmlearn"] / m["pplvm"]})
        raw[emission] = times
    common.keep("em", about, vars(options), {f"A step of EM, after {1 + steps}": rows}, raw)


if __name__ == "__main__":
    main()
