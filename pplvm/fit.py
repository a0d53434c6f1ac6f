"""Stochastic variational inference: one call that trains, and what it returns."""

__all__ = ["Fit", "fit", "load"]

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from pplvm import checkpoint as files
from pplvm import objectives, traces
from pplvm.batches import (
    Array,
    Batches,
    as_tensor,
    check_count,
    check_data,
    check_seed,
    floating_dtype,
    resolve_device,
)
from pplvm.compile import MODES
from pplvm.contract import (
    check,
    check_default_guide,
    check_schedule,
)
from pplvm.contract_objectives import objective_name, objective_parts
from pplvm.draws import Draws
from pplvm.likelihood import LogMarginal, log_marginal
from pplvm.loop import HeldOut, Saver, read_fit, train
from pplvm.objectives import elbo, from_pyro
from pplvm.parameters import Scope
from pplvm.training import History, Run
from pplvm.types import Estimate


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model and guide, and how they came about.

    Both are callables at the learned parameters, copies of what was given. ``data`` is what the
    fit saw, unless that came from a ``DataLoader``.
    """

    model: Callable
    guide: Callable
    objective: Callable[..., Estimate]
    history: History
    data: tuple[Array, ...]
    settings: Mapping[str, Any]
    run: Run = field(repr=False)

    @property
    def seconds(self) -> float:
        """How long its steps took."""
        return self.history.seconds

    def draws(self, *data: Array, num_draws: int = 1000, seed: int = 0) -> Draws:
        """Draws the latents of the guide given data, by default those of the fit.

        Args:
            data: The arguments of the guide, first axis N.
            num_draws: The number of draws S.
            seed: Of the draws.
        """
        data = self._data(data)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sites = traces.posterior(self.model, self.guide, *data, num_particles=num_draws)
            known = traces.look(self.model, *data)
            values = {
                n: s.value for n, s in sites.items() if n in known and known[n].kind == "latent"
            }
            values |= traces.rest(self.model, self.guide, values, num_draws, *data)
        return Draws(
            values={name: value[None] for name, value in values.items()},
            plates={name: tuple(n for n, _, _ in known[name].plates) for name in values},
            stats={},
            model=self.model,
            data=data,
            settings=self.settings,
            seconds=self.seconds,
        )

    def predict(self, *data: Array, num_draws: int = 100, seed: int = 0) -> dict[str, Tensor]:
        """Draws what is observed anew, (S, N, …), at draws of the guide given data."""
        drawn = self.draws(*data, num_draws=num_draws, seed=seed).predict(seed=seed)
        return {name: value[0] for name, value in drawn.items()}

    def bound(self, *data: Array, num_repeats: int = 10, seed: int = 0) -> Tensor:
        """Returns the objective's bound of each datum, (R, N), at repeated draws."""
        data = self._data(data)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            repeats = [self.objective(self.model, self.guide, *data) for _ in range(num_repeats)]
        return torch.stack([estimate.bound for estimate in repeats])

    def log_marginal(self, *data: Array, num_particles: int = 1000, seed: int = 0) -> LogMarginal:
        """Estimates log p(x_n) by importance sampling from the guide: see its type."""
        data = self._data(data)
        return log_marginal(self.model, self.guide, *data, num_particles=num_particles, seed=seed)

    def save(self, path: str | Path) -> None:
        """Writes parameters, history and settings, for :func:`load`."""
        with self.run.scope():
            state = self.run.state()
        files.write(path, {"settings": dict(self.settings), "run": state})

    def _data(self, data: tuple[Array, ...]) -> tuple[Tensor, ...]:
        other, data = bool(data), data or self.data
        if not data:
            raise ValueError("this fit keeps no data of its own: give the data as arguments.")
        check_data(data)
        data = tuple(self.run.batches.convert(x) for x in data)
        if other:  # of which a guide with parameters for each datum knows nothing
            check(self.model, self.guide, *data)
        return data


def fit(
    model: Callable,
    guide: Callable | None,
    *data: Array | DataLoader,
    objective: Callable[..., Estimate] | ELBO = elbo,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    batch_size: int | None = None,
    lr: float = 0.01,
    optimizer: Callable[[list[Tensor]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], Any] | None = None,
    clip_norm: float | None = None,
    kl_schedule: Callable[[int], float] | None = None,
    validation: tuple[Array, ...] | None = None,
    validate_every: int | None = None,
    patience: int | None = None,
    device: str = "auto",
    compile: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    resume: bool = False,
) -> Fit:
    """Learns the parameters of a model and a guide by stochastic gradient steps.

    The same arguments give the same result on one machine, whatever runs before or beside it:
    bit for bit, or to rounding where ``compile`` is "auto" and so depends on the time that steps
    take. Interrupted by Ctrl-C, it returns what it has.

    Args:
        model: The story, a function or module; what it learns is learned in a copy.
        guide: The guide, likewise; None for Pyro's ``AutoNormal``. Discrete latents that it lacks
            are summed out, each datum's own inside its own density.
        data: The arguments of both: tensors, arrays or SciPy's sparse rows that share their first
            axis, memory maps among them, or one ``DataLoader``. Floating data take the dtype of
            the parameters; so do sparse ones, which become dense by the batch.
        objective: One of :mod:`pplvm.objectives`, or a Pyro ELBO object.
        num_steps: The number of steps in all; by default 1000.
        num_epochs: The number of passes over the data, instead.
        batch_size: The size of minibatches; by default all data at once.
        lr: The learning rate of the default optimiser, Adam.
        optimizer: Maps the list of parameters to a torch optimiser, such as
            ``partial(torch.optim.SGD, lr=0.1)``.
        scheduler: Maps the optimiser to a torch scheduler, which is stepped after every step.
        clip_norm: The largest Euclidean norm of the gradient.
        kl_schedule: Maps the number of steps taken to the weight of the divergence in the loss;
            for objectives with a ``kl_weight``.
        validation: Held-out data. The parameters with their best bound are kept.
        validate_every: The number of steps between validations; by default an epoch, or a
            fiftieth of all steps without minibatches.
        patience: Stop after so many validations without improvement.
        device: "auto", "cpu", "cuda" or "cuda:1".
        compile: How to run the steps after the first epoch. "inductor" compiles what they do to
            tensors, "graph" does without a compiler, "off" runs model and guide each time;
            "auto" takes what will be done first. What cannot be compiled runs as if "off", with
            a warning that says why.
        seed: Of the order of batches and of all draws.
        progress: Whether to show a bar; by default on a terminal.
        checkpoint: A file that the whole state goes to every so often, and at the end.
        checkpoint_every: The number of steps between.
        resume: Whether to go on from ``checkpoint`` if it exists. The other arguments should
            be those of the first call; only ``num_steps`` or ``num_epochs`` may grow.
    """
    counts = {
        "num_steps": num_steps, "num_epochs": num_epochs, "batch_size": batch_size,
        "validate_every": validate_every, "patience": patience,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    _check_numbers(counts, {"lr": lr, "clip_norm": clip_norm}, seed)
    if resume and checkpoint is None:
        raise ValueError("'resume' needs to know from where: give 'checkpoint' too.")
    if patience is not None and validation is None:
        raise ValueError(
            "'patience' waits for a better bound of held-out data: give 'validation' too."
        )
    place = resolve_device(device)
    pyros = isinstance(objective, ELBO)
    objective = from_pyro(objective) if pyros else objective
    _check_callable("model", model, "a function or a module")
    _check_callable("objective", objective, "a function of pplvm.objectives or an ELBO object")
    if guide is not None:
        _check_callable("guide", guide, "a function, a module or None")
    check_schedule(objective, kl_schedule)
    if compile not in MODES:
        raise ValueError(f"'compile' should be one of {MODES}, got {compile!r}.")
    convert = partial(as_tensor, dtype=floating_dtype(model, guide), device=place)
    loaded = len(data) == 1 and isinstance(data[0], DataLoader)
    if not loaded:
        check_data(data)
    batches = Batches(data[0] if loaded else data, batch_size, seed, convert)
    last = _num_steps(num_steps, num_epochs, batches)
    if guide is None:
        with Scope(0)():
            check_default_guide(model, batches.per_epoch > 1, *batches.first())
    run = Run(
        model, guide, objective=objective, batches=batches,
        optimizer=optimizer or partial(_adam, lr=lr),
        scheduler=scheduler, clip_norm=clip_norm, kl_schedule=kl_schedule, device=place, seed=seed,
        compile=compile, num_steps=last,
    )  # fmt: skip
    if run.listed and pyros:
        raise ValueError(
            f"site '{min(run.listed)}' is left to be summed out, which {objective_name(objective)} does "
            "not do here: use pplvm.objectives.elbo, or sample it in the guide."
        )
    settings = {
        "method": objective_name(objective), "objective": _description(objective),
        "seed": seed, "num_data": batches.size,
        "batch_size": batches.batch_size, "optimizer": type(run.optimizer).__name__,
        "lr": run.optimizer.param_groups[0]["lr"], "clip_norm": clip_norm, "device": str(place),
    }  # fmt: skip
    held_out = None
    if validation is not None:
        validation = validation if isinstance(validation, (tuple, list)) else (validation,)
        check_data(validation, "validation")
        default = batches.per_epoch if batches.per_epoch > 1 else max(1, last // 50)
        held_out = HeldOut(
            Batches(validation, batch_size, seed, convert), validate_every or default, patience
        )
    saver = Saver(checkpoint, checkpoint_every, settings)
    if checkpoint is not None:
        files.check_writable(checkpoint)
    with run.scope():
        if held_out is not None:
            check(run.model, run.guide, *held_out.batches.first())
        if resume:
            saver.resume(run)
        stopped = train(run, last, held_out, saver, progress)
        run.restore_best()
    run.evaluation_mode()
    settings |= {"num_steps": run.step_count, "stopped": stopped, "compile": run.gradients.choice}
    model, guide = run.bound()
    return Fit(model, guide, run.objective, run.history, () if loaded else data, settings, run)


def load(
    path: str | Path,
    model: Callable,
    guide: Callable | None,
    *data: Array,
    objective: Callable[..., Estimate] | None = None,
) -> Fit:
    """Opens what :meth:`Fit.save` or a checkpoint wrote; no pickled code is run.

    Args:
        path: The file. One that is truncated, of another story or no fit is a ``ValueError``.
        model: The model that made it, at any parameters.
        guide: The guide likewise.
        data: Their arguments, first axis N.
        objective: The objective whose bound the fit is to report; by default the one that made
            it, if that is one of :mod:`pplvm.objectives`.
    """
    state = read_fit(path)
    check_data(data)
    objective = objective or _remembered(state["settings"])
    convert = partial(as_tensor, dtype=floating_dtype(model, guide), device=torch.device("cpu"))
    batches = Batches(data, None, 0, convert)
    run = Run(
        model, guide, objective=objective, batches=batches, optimizer=torch.optim.Adam, scheduler=None,
        clip_norm=None, kl_schedule=None, device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    with run.scope():
        run.load_parameters(state["run"])
        run.restore_best()
    run.evaluation_mode()
    model, guide = run.bound()
    return Fit(model, guide, run.objective, run.history, data, state["settings"], run)


def _remembered(settings: Mapping[str, Any]) -> Callable[..., Estimate]:
    """Returns the objective that made a saved fit, or one that says why it cannot be had."""
    made = settings["objective"]
    if made is not None:
        return partial(getattr(objectives, made["name"]), **made["options"])

    def unknown(*_: Any) -> Estimate:
        raise ValueError(
            f"this fit was made with the objective '{settings['method']}', of which a file keeps only "
            "the name: load it with objective=."
        )

    return unknown


def _description(objective: Callable) -> dict[str, Any] | None:
    """Returns the name and options of one of the shipped objectives, None for any other."""
    function, options = objective_parts(objective)
    name = getattr(function, "__name__", "")
    return {"name": name, "options": options} if getattr(objectives, name, 0) is function else None


def _check_callable(name: str, value: Any, what: str) -> None:
    if isinstance(value, type) or not callable(value):
        raise ValueError(f"'{name}' should be {what}, got {value!r}.")


def _check_numbers(
    counts: dict[str, int | None], rates: dict[str, float | None], seed: int
) -> None:
    check_seed(seed)
    for name, value in counts.items():
        if value is not None:
            check_count(name, value)
    for name, value in rates.items():
        number = value is None or isinstance(value, (int, float))
        if not number or (value is not None and not 0 < value < math.inf):
            raise ValueError(f"'{name}' should be above 0 and finite, got {value}.")


def _adam(parameters: list[Tensor], lr: float) -> Optimizer:
    # Bounds fall by orders of magnitude within the first hundred steps; a second moment that
    # remembers a thousand of them keeps the steps tiny long after.
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), fused=True)


def _num_steps(num_steps: int | None, num_epochs: int | None, batches: Batches) -> int:
    if num_steps is not None and num_epochs is not None:
        raise ValueError("'num_steps' and 'num_epochs' say the same thing twice: give one of them.")
    return num_epochs * batches.per_epoch if num_epochs else num_steps or 1000
