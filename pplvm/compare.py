"""Answers side by side: how far each is from the exact or the MCMC one, and what to worry about."""

__all__ = ["compare"]

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor

from pplvm import diagnostics, diagnostics_discrete, traces
from pplvm.cavi import CAVI
from pplvm.diagnostics import LEAST_ESS, MOST_KHAT, MOST_RHAT
from pplvm.diagnostics_discrete import probabilities, total_variation
from pplvm.draws import Draws
from pplvm.fit import Fit
from pplvm.likelihood import LogMarginal
from pplvm.parameters import Bound, module_of
from pplvm.table import Answer, Row, Table, Truth

_DRAWN = 500  # where marginals are known, draws are for figures alone; arbitrary


def compare(
    answers: Mapping[str, Answer],
    *,
    num_draws: int = 4000,
    num_particles: int = 1000,
    seed: int = 0,
) -> Table:
    """Compares answers about the same data.

    The reference is the exact answer if there is one, else the longest run of NUTS whose chains
    are healthy. A fit is asked about the data of the other answers, whatever it was trained on.
    Latents that are numbers are compared by means, sds and intervals; discrete ones, whose values
    are labels, by the total variation between the probabilities of their states.

    Args:
        answers: Fits, draws and exact posteriors, by the names that the table is to show.
        num_draws: The number of draws taken of fits and of exact posteriors; fewer where the
            probabilities of discrete latents are known without them.
        num_particles: The number of particles behind each fit's log p(x) and k̂.
        seed: Of these.
    """
    if not answers:
        raise ValueError("'answers' is empty: give at least one fit, draws or exact posterior.")
    for name, answer in answers.items():
        if not isinstance(answer, Answer):
            raise ValueError(
                f"answers['{name}'] should come from fit, nuts or exact, got {type(answer).__name__}."
            )
    data = _common_data(answers)
    draws = {name: _draws(answer, data, num_draws, seed) for name, answer in answers.items()}
    _check_same_sites(draws)
    weights = {
        name: answer.log_marginal(*data, num_particles=num_particles, seed=seed)
        for name, answer in answers.items()
        if isinstance(answer, Fit)
    }
    rows = {n: _row(a, n, draws[n], weights.get(n), seed) for n, a in answers.items()}
    reference = _reference(answers, rows)
    if reference is not None:
        rows |= _against(rows, reference, answers, draws)
    return Table(tuple(rows.values()), reference, dict(answers), draws, weights, data)


# ---- one row for each kind of answer ----


@singledispatch
def _row(answer: Fit, name: str, draws: Draws, weights: LogMarginal, seed: int) -> Row:
    worries = []
    rise = diagnostics.still_rising(answer.history.bound)
    if rise:
        worries.append(f"not converged: bound still rising (+{rise:.2g})")
    if answer.settings.get("stopped") == "interrupted":
        worries.append(f"interrupted after {answer.settings['num_steps']} steps")
    known = weights.khat[~weights.sole]
    bad = int((~(known <= MOST_KHAT)).sum())  # NaN is as bad
    if bad:
        worries.append(f"k̂ > {MOST_KHAT} for {bad} of {len(weights.khat)}: distrust log p(x)")
    if weights.sole.any():
        worries.append(
            f"the guide draws one state only for {int(weights.sole.sum())} of {len(weights.khat)}: "
            "importance weights cannot tell what it misses"
        )
    sites = traces.look(draws.model, *draws.data)
    numbers = [name for name in draws.values if not sites[name].fn.support.is_discrete]
    dead, total = diagnostics.collapsed(draws)
    if dead:
        worries.append(f"posterior collapse: {dead} of {total} latent dims ignore the data")
    point = bool(numbers) and bool((diagnostics.flatten(draws, numbers).double().std(1) == 0).any())
    if point:
        worries.append("point estimate: no spread, so no log p(x)")
    units = _units(draws)
    return Row(
        name,
        method=answer.settings["method"],
        bound=float(answer.bound(*draws.data, seed=seed).double().mean()),
        log_marginal=None if point else float(weights.value.sum()) / units,
        log_marginal_error=None if point else float(weights.error.square().sum().sqrt()) / units,
        khat=None if point else float(known.max()) if len(known) else math.nan,
        seconds=answer.seconds,
        worries=tuple(worries),
    )


@_row.register
def _(answer: Draws, name: str, draws: Draws, weights: None, seed: int) -> Row:
    loo = diagnostics.psis_loo(answer)
    worries, mixing = [], None
    if not answer.independent:
        mixing = diagnostics.mixing(answer)
        if answer.shape[0] == 1:
            worries.append("one chain: R̂ needs two")
        elif not mixing.rhat <= MOST_RHAT:
            worries.append(
                f"R̂ {mixing.rhat:.3f} > {MOST_RHAT} at {mixing.rhat_at}: run longer chains"
            )
        if min(mixing.ess_bulk, mixing.ess_tail) < LEAST_ESS:
            worries.append(f"ESS {min(mixing.ess_bulk, mixing.ess_tail):.0f} < {LEAST_ESS}")
        if mixing.divergences:
            worries.append(f"{mixing.divergences} divergences: reparameterise, or adapt longer")
    if loo is not None and (loo.khat > MOST_KHAT).any():
        bad = int((loo.khat > MOST_KHAT).sum())
        worries.append(f"k̂ > {MOST_KHAT} for {bad} of {len(loo.khat)} data: distrust LOO")
    return Row(
        name,
        method=answer.settings.get("method", "draws"),
        khat=float(loo.khat.max()) if loo else None,
        rhat=mixing.rhat if mixing else None,
        ess_bulk=mixing.ess_bulk if mixing else None,
        ess_tail=mixing.ess_tail if mixing else None,
        loo=loo.elpd if loo else None,
        loo_error=loo.error if loo else None,
        seconds=answer.seconds,
        worries=tuple(worries),
    )


@_row.register
def _(answer: Truth, name: str, draws: Draws, weights: None, seed: int) -> Row:
    total = float(answer.log_marginal.sum()) / _units(draws)
    return Row(
        name,
        method=answer.settings["method"],
        log_marginal=total,
        log_marginal_error=0.0,
        seconds=answer.seconds,
    )


@_row.register
def _(answer: CAVI, name: str, draws: Draws, weights: None, seed: int) -> Row:
    worries = []
    if answer.settings["stopped"] == "num_steps":
        worries.append(f"not converged after {answer.settings['num_steps']} steps")
    return Row(
        name,
        method=answer.settings["method"],
        bound=answer.elbo[-1] / _units(draws),
        seconds=answer.seconds,
        worries=tuple(worries),
    )


# ---- against the reference ----


def _reference(answers: Mapping[str, Answer], rows: Mapping[str, Row]) -> str | None:
    for name, answer in answers.items():
        if isinstance(answer, Truth):
            return name
    healthy = [
        name
        for name, answer in answers.items()
        if isinstance(answer, Draws) and not answer.independent and not _ill(rows[name])
    ]
    return max(healthy, key=lambda name: math.prod(answers[name].shape), default=None)


def _ill(row: Row) -> bool:
    return any(not worry.startswith("k̂") for worry in row.worries)


def _against(
    rows: Mapping[str, Row],
    reference: str,
    answers: Mapping[str, Answer],
    draws: Mapping[str, Draws],
) -> dict[str, Row]:
    """Returns the rows of the others with how far they are from the reference: labels by TV."""
    truth, true = answers[reference], draws[reference]
    states = diagnostics_discrete.states(answers, draws)
    numbers = sorted(true.values.keys() - states.keys())
    p, counted = probabilities(truth, true, states), diagnostics_discrete.counts(true, states)
    found = {}
    for name, row in rows.items():
        if draws[name] is true:
            continue
        if numbers:
            row = _numbers_apart(row, numbers, draws[name], true, truth)
        if states:
            q = probabilities(answers[name], draws[name], states)
            row = replace(row, total_variation=total_variation(q, p, counted))
        if not _same_parameters(draws[name].model, true.model):
            words = "learned parameters of its own: not the posterior of the reference"
            row = replace(row, worries=(*row.worries, words))
        found[name] = row
    return found


def _numbers_apart(
    row: Row, names: list[str], draws: Draws, reference: Draws, truth: Answer
) -> Row:
    """Adds to a row how far its draws of these sites, which are numbers, are from the reference's."""
    own, true = (diagnostics.flatten(d, names).flatten(0, 1).double() for d in (draws, reference))
    low, high = (_quantiles(own, at) for at in ((0.25, 0.05), (0.75, 0.95)))  # (2, D)
    cover = ((true[:, None] >= low) & (true[:, None] <= high)).double().mean((0, 2))
    if isinstance(truth, Truth):
        mean, sd = (
            torch.cat([part[n].double().flatten() for n in names])
            for part in (truth.mean, truth.sd)
        )
    else:
        mean, sd = true.mean(0), true.std(0)
    ratio, worries = own.std(0) / sd, list(row.worries)
    typical = float(ratio.median())
    if not 0.8 <= typical <= 1.25:
        what = "small" if typical < 1 else "large"
        worries.append(f"sds too {what}: typically {typical:.0%} of the reference's")
    return replace(
        row,
        mean_error=float(((own.mean(0) - mean) / sd).square().mean().sqrt()),
        sd_error=float((ratio - 1).square().mean().sqrt()),
        cover_50=float(cover[0]),
        cover_90=float(cover[1]),
        worries=tuple(worries),
    )


def _quantiles(values: Tensor, at: tuple[float, ...]) -> Tensor:
    # torch.quantile takes no more than sixteen million numbers.
    return torch.as_tensor(np.quantile(values.numpy(), at, axis=0))


# ---- within ----


def _common_data(answers: Mapping[str, Answer]) -> tuple[Tensor, ...]:
    fixed = {name: answer.data for name, answer in answers.items() if not isinstance(answer, Fit)}
    if not fixed:
        fits = {name: answer for name, answer in answers.items() if answer.data}
        if not fits:
            raise ValueError(
                "no answer holds data: fit on tensors, or add draws or an exact posterior."
            )
        fixed = {name: answer._data(()) for name, answer in fits.items()}
    first, *others = fixed
    for name in others:
        pairs = zip(fixed[first], fixed[name], strict=False)
        if len(fixed[first]) != len(fixed[name]) or not all(_equal(a, b) for a, b in pairs):
            raise ValueError(
                f"answers '{first}' and '{name}' are about different data: compare answers about the "
                "same."
            )
    return fixed[first]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b), b)


def _draws(answer: Answer, data: tuple[Tensor, ...], num_draws: int, seed: int) -> Draws:
    if isinstance(answer, Fit):
        return answer.draws(*data, num_draws=num_draws, seed=seed)
    if isinstance(answer, Draws):
        return answer
    if getattr(answer, "marginals", None) and not getattr(answer, "posterior", None):
        num_draws = min(num_draws, _DRAWN)
    return answer.draws(num_draws=num_draws, seed=seed)


def _check_same_sites(draws: Mapping[str, Draws]) -> None:
    shapes = {
        n: {site: tuple(v.shape[2:]) for site, v in d.values.items()} for n, d in draws.items()
    }
    first, *others = shapes
    for name in others:
        if shapes[name] != shapes[first]:
            raise ValueError(
                f"answers '{first}' and '{name}' are about different latents: {shapes[first]} and "
                f"{shapes[name]}; compare answers about the same story."
            )


def _units(draws: Draws) -> int:
    """Returns what log-densities are divided by: the data, or 1 for a story without their plate."""
    sites = traces.look(draws.model, *draws.data).values()
    return len(draws.data[0]) if any(map(traces.in_data_plate, sites)) else 1


def _same_parameters(a, b) -> bool:
    a, b = _parameters(a), _parameters(b)
    return all(torch.equal(a[name].to(b[name]), b[name]) for name in a.keys() & b.keys())


def _parameters(program) -> dict[str, Tensor]:
    """Returns what is known of a program's parameters: those in Pyro's global store are not."""
    module = module_of(program)
    named = dict(module.named_parameters()) if module is not None else {}
    return named | (program.scope.named if isinstance(program, Bound) else {})
