"""Stories of sequences on the JSB chorales: test nats per time step, beside published ones.

Run: python benchmarks/jsb.py [--quick]

Protocol: each story is learned on the training chorales by maximum likelihood, its discrete latents
summed out; the parameters with the best bound on the validation chorales are kept. The figure is
-log p(x) of the test chorales, exact, over all 88 notes, divided by the number of time steps; steps
beyond a chorale's length count nothing. PPLVM_DATA names the data; without it, generated chorales
take their place, of which nothing is published.

Published: an RNN 8.9, an LSTM 8.45, a deep Markov model 6.9, the last a bound.
"""

import math
import os
import time
from collections.abc import Callable

import common
import torch
from torch import Tensor, nn

import pplvm
from pplvm.datasets import jsb, small_chorales
from pplvm.models.factorial_hmm import FactorialHMM
from pplvm.models.hmm import HMM, NeuralHMM

PUBLISHED = {"RNN": 8.9, "LSTM": 8.45, "deep Markov model": 6.9}


def stories(x: Tensor) -> dict[str, tuple[Callable[[], nn.Module], dict]]:
    """Returns what makes each story, near the frequencies of the notes, and how it is learned."""
    D, mean = x.shape[2], torch.logit(x.mean((0, 1)), eps=1e-3)

    def hmm(K: int) -> HMM:
        model = HMM(K, D, "bernoulli")
        model.W.data.mul_(0.5).add_(mean)
        return model

    def factorial(M: int, K: int) -> FactorialHMM:
        model = FactorialHMM(M, K, D, "bernoulli")
        model.W.data.mul_(0.5).add_(mean / M)
        return model

    def neural(K: int) -> NeuralHMM:
        model = NeuralHMM(K, D, hidden_dim=64)
        model.emission[-1].bias.data.copy_(mean)
        return model

    full = {"num_steps": 1500, "lr": 0.03}
    return {
        "HMM, K = 16": (lambda: hmm(16), full),
        "HMM, K = 64": (lambda: hmm(64), full),
        "factorial HMM, M = 2, K = 10": (lambda: factorial(2, 10), full | {"num_steps": 800}),
        "neural HMM, K = 16": (
            lambda: neural(16),
            {"num_steps": 1500, "lr": 0.005, "batch_size": 20},
        ),
    }


def main() -> None:
    options = common.parser(__doc__).parse_args()
    about = common.machine(options.cores)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    load = jsb
    try:
        load("train")
    except ValueError:
        load = small_chorales
    train, valid, test = (load(split) for split in ("train", "valid", "test"))
    steps, rows, raw = int(test[1].sum()), [], {}
    for name, (make, how) in stories(train[0]).items():
        torch.manual_seed(0)
        start = time.perf_counter()
        how = how | ({"num_steps": 30} if options.quick else {})
        fit = pplvm.fit(make(), None, *train, validation=valid, validate_every=50, **how)
        seconds = time.perf_counter() - start
        assert all(math.isfinite(bound) for bound in fit.history.bound)
        nats = [-float(pplvm.exact(fit.model, *data).log_marginal.sum()) for data in (train, test)]
        rows.append({
            "story": name,
            "parameters": sum(p.numel() for p in fit.model.parameters()),
            "nats a step, training": nats[0] / int(train[1].sum()),
            "nats a step, test": nats[1] / steps,
            "steps": fit.settings["num_steps"],
            "ms a step": 1e3 * fit.history.seconds / len(fit.history.bound),
            "seconds": seconds,
        })  # fmt: skip
        raw[name] = {"bound": fit.history.bound, "validation": fit.history.validation}
        print(rows[-1], flush=True)
    empty = dict.fromkeys(rows[0])
    if load is jsb:
        rows += [
            empty | {"story": f"{k}, published", "nats a step, test": v}
            for k, v in PUBLISHED.items()
        ]
    common.keep(
        "jsb", about, vars(options), {f"{steps} steps of {len(test[0])} chorales": rows}, raw
    )


if __name__ == "__main__":
    main()
