r"""How good the gradients of objectives are: bias, variance, signal to noise, time.

All objectives are asked at the same parameters, again and again. For one group of parameters with
gradients :math:`g_s`, of mean :math:`\bar g`, and the exact gradient g,

.. math::
    \text{bias} = \frac{\|\bar g - g\|}{\|g\|}, \qquad
    \text{noise} = \max_j \frac{|\bar g_j - g_j|}{\mathrm{se}(\bar g_j)}, \qquad
    \text{variance} = \textstyle\sum_j \mathrm{var}(g_{sj}), \qquad
    \text{SNR} = \mathrm{mean}_j \frac{|\bar g_j|}{\mathrm{sd}(g_{sj})}.

The exact gradient is that of the bound that the objective is about, by the sum over all states of the
latents, and over all P-tuples of them for a bound of P draws.

References:
    | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), on the SNR
    | https://arxiv.org/abs/1802.04537

Shapes: S draws of a gradient, J numbers of a parameter.
"""

__all__ = ["GradientReport", "GradientRow", "gradient_report"]

import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pplvm import objectives as known
from pplvm import traces
from pplvm.batches import Array, Batches, as_tensor, check_count, check_data, floating_dtype
from pplvm.contract_objectives import objective_name, objective_parts
from pplvm.training import Run
from pplvm.types import Estimate

# Whose gradient is not that of one bound in all parameters, and objectives of a bound of P draws.
_OF_NO_BOUND = (known.wake_sleep, known.reweighted_wake_sleep)
_WEIGHTED = (known.vimco, known.iwae)
MOST_TUPLES = 65_536

LEGEND = """\
bias: distance of their mean from the exact gradient, relative to its length; noise: the largest
such difference in standard errors, about 3 where there is no bias. variance: of one gradient,
summed over the group; snr: |mean| / sd, averaged over the group. seconds: not compiled."""


@dataclass(frozen=True)
class GradientRow:
    """One objective's gradient in one group of parameters; None where nothing is exact."""

    objective: str
    group: str
    variance: float  # of one gradient, summed over the group
    snr: float
    bias: float | None  # relative to the length of the exact gradient
    noise: float | None  # the largest deviation from it, in standard errors of the mean
    bound: float  # mean over data, in nats
    seconds: float  # of one gradient, eager: the median


@dataclass(frozen=True)
class GradientReport:
    """The rows, objective by objective, and what they were made of."""

    rows: tuple[GradientRow, ...]
    num_draws: int
    num_training: int

    def __str__(self) -> str:
        """Returns a table, with what its columns mean below it."""
        header = tuple(field.name for field in fields(GradientRow))
        cells = [header, *(tuple(map(_cell, astuple(row))) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        made = f"of {self.num_draws} gradients, baselines learned in {self.num_training} steps."
        return "\n".join([*lines, "", made, LEGEND])

    def plot(self) -> Any:
        """Draws variance against time, and the signal to noise ratio of each group."""
        from pplvm.plots_gradients import gradients

        return gradients(self)


def gradient_report(
    model: Callable,
    guide: Callable,
    *data: Array,
    objectives: Sequence[Callable[..., Estimate]] | Mapping[str, Callable[..., Estimate]],
    num_draws: int = 500,
    num_training: int = 200,
    lr: float = 0.01,
    seed: int = 0,
) -> GradientReport:
    """Compares the gradients of objectives at the parameters that model and guide have now.

    Args:
        model: The model.
        guide: The guide.
        data: The arguments of both, first axis N; every gradient is of all of them.
        objectives: Those to compare, by name if they are to be called something else.
        num_draws: The number of gradients S of each.
        num_training: How many steps baselines and control variates learn first, model and guide held
            fixed.
        lr: The learning rate of these steps, where an objective has none of its own.
        seed: Of all draws.
    """
    for name, value, least in (("num_draws", num_draws, 2), ("num_training", num_training, 0)):
        check_count(name, value, least)
    check_data(data)
    objectives = _named(objectives)
    convert = partial(as_tensor, dtype=floating_dtype(model, guide), device=torch.device("cpu"))
    rows: list[GradientRow] = []
    for name, objective in objectives.items():
        run = Run(
            model, guide, objective=objective, batches=Batches(data, None, seed, convert),
            optimizer=torch.optim.Adam, scheduler=None, clip_norm=None, kl_schedule=None,
            device=torch.device("cpu"), seed=seed,
        )  # fmt: skip
        with run.scope():
            rows += _rows(name, run, num_draws, num_training, lr)
    return GradientReport(tuple(rows), num_draws, num_training)


def _named(
    objectives: Sequence[Callable[..., Estimate]] | Mapping[str, Callable[..., Estimate]],
) -> dict[str, Callable[..., Estimate]]:
    """Returns objectives by name, Pyro's ELBOs among them, or raises a ``ValueError``."""
    if callable(objectives):
        raise ValueError("'objectives' should be a list, or a mapping of names: put it in a list.")
    named = isinstance(objectives, Mapping)
    pairs = list(objectives.items()) if named else [("", objective) for objective in objectives]
    if not pairs:
        raise ValueError("'objectives' is empty: give at least one.")
    found: dict[str, Callable[..., Estimate]] = {}
    for name, objective in pairs:
        if isinstance(objective, type) or not (callable(objective) or isinstance(objective, ELBO)):
            raise ValueError(
                f"'objectives' should hold functions of pplvm.objectives, NVIL() and its like, or "
                f"ELBO objects, got {objective!r}."
            )
        objective = known.from_pyro(objective) if isinstance(objective, ELBO) else objective
        name = name or objective_name(objective)
        if name in found:
            raise ValueError(f"two objectives are called '{name}': give a mapping of names.")
        found[name] = objective
    return found


def _rows(
    name: str, run: Run, num_draws: int, num_training: int, lr: float
) -> Iterator[GradientRow]:
    batch, num_learned = run.batches.first(), len(run.parameters)
    own = run.gradients.parameters[num_learned:]
    if own or run.learning is not None:  # moving averages learn too
        learner = torch.optim.Adam(own, lr=run.learning.lr or lr) if own else None
        for _ in range(num_training):
            grads = run.gradients.eager(batch, None).grads[num_learned:]
            for p, g in zip(own, grads, strict=True):
                p.grad = g
            if learner is not None:
                learner.step()
    draws: list[list[Tensor | None]] = []
    bounds, seconds = [], []
    for _ in range(num_draws):
        start = time.perf_counter()
        found = run.gradients.eager(batch, None)
        seconds.append(time.perf_counter() - start)
        draws.append(found.grads[:num_learned])
        bounds.append(found.bound)
    exact = _exact(run, batch)
    for i, (group, p) in enumerate(run.parameters.items()):
        if all(row[i] is None for row in draws):
            continue
        g = torch.stack([p.new_zeros(p.shape) if r[i] is None else r[i] for r in draws])
        g = g.reshape(num_draws, -1)
        bias, noise = (None, None) if exact is None else _bias(g, exact[i].flatten())
        g = g.double()
        sd, mean = g.std(0), g.mean(0)
        ratios = (mean.abs() / sd)[sd > 0]
        yield GradientRow(
            name,
            group,
            variance=g.var(0).sum().item(),
            snr=ratios.mean().item() if len(ratios) else math.inf,
            bias=bias,
            noise=noise,
            bound=statistics.fmean(bounds),
            seconds=statistics.median(seconds),
        )


def _bias(g: Tensor, exact: Tensor) -> tuple[float, float]:
    off, error = g.mean(0) - exact, g.std(0) / len(g) ** 0.5
    tolerance = 1e-5 * exact.abs().max() + 1e-12  # of rounding, where there is no noise at all
    noise = (off.abs() / (error + tolerance)).max().item()
    length = exact.norm().item()
    bias = off.norm().item()
    return (bias / length if length > 0 else math.inf if bias > 0 else 0.0), noise


def _exact(run: Run, batch: tuple[Tensor, ...]) -> list[Tensor] | None:
    """Returns the gradient of the bound that an objective is about, if all states can be listed."""
    function, options = objective_parts(run.objective)
    name = getattr(function, "__name__", type(function).__name__)
    ours = getattr(known, name, None) in (function, type(function))
    if not ours or function in _OF_NO_BOUND:
        return None  # nobody knows what it is about
    listed = traces.listed_states(run.guide, *batch)
    latents = [s for s in traces.look(run.guide, *batch).values() if s.kind == "latent"]
    if {s.name for s in latents if traces.in_data_plate(s)} != set(listed) or len(latents) > len(
        listed
    ):
        return None
    with torch.enable_grad():
        if function in _WEIGHTED:
            default = inspect.signature(function).parameters["num_particles"].default
            loss = _weighted(run, batch, listed, options.get("num_particles", default))
        else:
            weight = options.get("kl_weight", 1.0)
            loss = known.score_function(
                run.model, run.guide, *batch, rao_blackwell=True, kl_weight=weight
            ).loss
        if loss is None:
            return None
        grads = torch.autograd.grad(loss, list(run.parameters.values()), allow_unused=True)
    pairs = zip(grads, run.parameters.values(), strict=True)
    return [torch.zeros_like(p) if g is None else g for g, p in pairs]


def _weighted(
    run: Run, batch: tuple[Tensor, ...], listed: Mapping[str, int], num_particles: int
) -> Tensor | None:
    """Returns the bound of P draws, negative, as the sum over all P-tuples of states."""
    states = math.prod(listed.values())
    if states**num_particles > MOST_TUPLES:
        return None
    z = traces.draw_choices(run.model, run.guide, *batch, listed=listed)
    log_p, log_q = traces.weigh(run.model, run.guide, z, *batch)  # (K, N)
    places = torch.cartesian_prod(*[torch.arange(states)] * num_particles)
    places = places.reshape(-1, num_particles)  # (tuples, P)
    bound = (log_p - log_q)[places].logsumexp(1) - math.log(num_particles)
    return -(traces.own_log_q(z)[places].sum(1).exp() * bound).sum(0).mean()


def _cell(value: str | float | None) -> str:
    if value is None:
        return "—"
    return value if isinstance(value, str) else f"{value:.3g}"
