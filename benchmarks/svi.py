"""One step of SVI by Pyro, NumPyro, pplvm and a plain PyTorch loop, on the same stories.

Run: python benchmarks/svi.py [--quick] [--rounds 15] [--seconds 0.2]

One draw of the latents, Adam with learning rate 0.001, float32, all cores; medians over rounds in
which everybody has a block of steps. A library has a process of its own. Each has its best setting:

- Pyro: ``SVI.step``, validation off, whichever is fastest of ``Trace_ELBO`` and
  ``TraceMeanField_ELBO`` (closed-form divergences, as pplvm's ``elbo`` has); in a column of its
  own, of their ``Jit`` forms.
- NumPyro: ``jax.jit(svi.update)``, called from Python as a loop that sees each step would, with the
  faster of the same two losses; in a column of its own, 100 steps in one ``lax.scan``, as
  ``svi.run`` without a bar has them: nothing can then happen between two steps.
- by hand: ``vae_torch.py``'s loop, with the faster of plain and fused Adam.
- pplvm: the steps of ``pplvm.fit`` with the objective ``elbo`` and its default optimiser, the bound
  recorded and checked each step; compiled, and eager.
"""

from collections.abc import Callable

import common
import turns

NAMES = (
    "eight schools",
    "regression, 1000 × 10",
    "factor analysis, 1797 × 61",
    "VAE 784-400-20, 128 images",
)
SCANNED = 100  # steps


# ---- contenders: each in a process of its own, which imports what it needs ----


def by_pyro(name: str) -> Callable[[str, float], float]:
    """Returns a function that maps a loss's name and a budget to the seconds of a step."""
    import pyro
    import stories
    import torch
    from pyro.infer import (
        SVI,
        JitTrace_ELBO,
        JitTraceMeanField_ELBO,
        Trace_ELBO,
        TraceMeanField_ELBO,
    )

    pyro.enable_validation(False)
    losses = {
        "Pyro sampled": Trace_ELBO(),
        "Pyro mean field": TraceMeanField_ELBO(),
        "Pyro's jit sampled": JitTrace_ELBO(ignore_jit_warnings=True),
        "Pyro's jit mean field": JitTraceMeanField_ELBO(ignore_jit_warnings=True),
    }
    torch.manual_seed(0)
    model, guide, data = stories.STORIES[name]()
    model, guide = stories.registered(model, "model"), stories.registered(guide, "guide")
    steps = {}
    for loss, elbo in losses.items():
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
        steps[loss] = turns.Step(lambda svi=svi: svi.step(*data))
    return lambda loss, budget: steps[loss].seconds(budget)


def by_numpyro(name: str) -> Callable[[str, float], float]:
    """Returns the same for NumPyro."""
    import jax
    import numpyro
    import peers_numpyro
    import stories
    from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

    data = [jax.numpy.asarray(x.numpy()) for x in stories.STORIES[name]()[2]]
    steps = {}
    for loss, elbo in {"sampled": Trace_ELBO(), "mean field": TraceMeanField_ELBO()}.items():
        svi = SVI(*peers_numpyro.STORIES[name], numpyro.optim.Adam(1e-3), elbo)

        def scanned(state, *data, svi=svi):
            return jax.lax.scan(lambda s, _: svi.update(s, *data), state, length=SCANNED)

        for kind, update, count in (("", svi.update, 1), ("'s scan", scanned, SCANNED)):
            call = _carrying(jax.jit(update), svi.init(jax.random.key(0), *data), data)
            steps[f"NumPyro{kind} {loss}"] = turns.Step(call, count, jax.block_until_ready)
    return lambda loss, budget: steps[loss].seconds(budget)


def _carrying(update: Callable, state, data: list) -> Callable:
    def call():
        nonlocal state
        state, loss = update(state, *data)
        return state, loss

    return call


def by_hand(name: str) -> Callable[[str, float], float]:
    """Returns the same for the plain loop, of the VAE alone."""
    import stories
    import torch
    import vae_torch

    _, _, (images,) = stories.STORIES[name]()
    x = images.flatten(1)
    steps = {}
    for kind, options in {"plain": {}, "fused": {"fused": True}}.items():
        torch.manual_seed(0)
        encoder, decoder = vae_torch.build(x.shape[1], 20, 400)
        parameters = [*encoder.parameters(), *decoder.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=1e-3, **options)

        def step(encoder=encoder, decoder=decoder, optimiser=optimiser) -> None:
            log_lik, kl = vae_torch.elbo_terms(encoder, decoder, x)
            loss = (kl - log_lik).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        steps[f"by hand {kind}"] = turns.Step(step)
    return lambda kind, budget: steps[kind].seconds(budget)


def by_pplvm(name: str) -> Callable[[str, float], float]:
    """Returns the same for pplvm's two ways."""
    import stories

    runs = {
        "pplvm compiled": stories.run(name, "inductor"),
        "pplvm eager": stories.run(name, "off"),
    }
    steps = {kind: run.steps() for kind, run in runs.items()}

    def seconds(kind: str, budget: float) -> float:
        with runs[kind].scope():
            return turns.Step(lambda: next(steps[kind])).seconds(budget)

    return seconds


CONTENDERS = {
    by_pyro: (
        "Pyro sampled", "Pyro mean field", "Pyro's jit sampled", "Pyro's jit mean field",
    ),
    by_numpyro: (
        "NumPyro sampled", "NumPyro mean field", "NumPyro's scan sampled", "NumPyro's scan mean field",
    ),
    by_hand: ("by hand plain", "by hand fused"),
    by_pplvm: ("pplvm compiled", "pplvm eager"),
}  # fmt: skip


# ---- tables ----


def row(name: str, times: dict[str, list[float]]) -> common.Row:
    """Returns medians in µs; of a library that has several ways, the least."""
    columns = {
        "Pyro": "Pyro ",
        "Pyro's jit": "Pyro's jit",
        "NumPyro": "NumPyro ",
        "NumPyro's scan": "NumPyro's scan",
        "by hand": "by hand",
        "pplvm eager": "pplvm eager",
        "pplvm": "pplvm compiled",
    }
    found = {title: common.best(times, beginning) for title, beginning in columns.items()}
    return {"story": name} | {title: s and 1e6 * s for title, s in found.items()}


def over(row: common.Row) -> common.Row:
    """Returns how many times as long as pplvm, compiled, the others take."""
    peers = ("Pyro", "Pyro's jit", "NumPyro", "NumPyro's scan", "by hand", "pplvm eager")
    return {"story": row["story"]} | {
        f"{peer} / pplvm": row[peer] and row[peer] / row["pplvm"] for peer in peers
    }


def main() -> None:
    parser = common.parser(__doc__, rounds=15)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a turn, about")
    options = parser.parse_args()
    names = (NAMES[0], NAMES[-1]) if options.quick else NAMES
    rounds = 3 if options.quick else options.rounds
    about = common.machine(options.cores)
    found = {}
    for name in names:
        there = {k: v for k, v in CONTENDERS.items() if k is not by_hand or name.startswith("VAE")}
        found[name] = turns.measure(there, name, rounds, options.seconds)
    rows = [row(name, times) for name, times in found.items()]
    tables = {
        f"µs a step of SVI, medians of {rounds} rounds": rows,
        "Times as long as pplvm, compiled": common.with_means([over(r) for r in rows], " / "),
    }
    common.keep("svi", about, vars(options), tables, found)


if __name__ == "__main__":
    main()
