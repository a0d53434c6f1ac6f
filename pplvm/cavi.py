r"""Coordinate-ascent mean field: every factor in turn is set to its best given all others.

.. math:: q(\theta, z) = \prod_j q(\theta_j) \prod_m q(z_m), \qquad
    \mathcal L = \mathbb E_q \log p(x, z, \theta) - \mathbb E_q \log q(\theta, z) \le \log p(x)

The ELBO :math:`\mathcal L` rises at every step. Beside continuous latents, which are factors of their
own (:mod:`pplvm.cavi_parameters`), the discrete ones are one factor, summed out exactly. In a story
without continuous latents each discrete one is a factor, or each chain of them along time.

References:
    | An introduction to variational methods for graphical models (Jordan et al., 1999)
    | https://doi.org/10.1023/A:1007665907178

    | Pattern Recognition and Machine Learning, section 10.1 (Bishop, 2006)
    | https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/

    | Variational algorithms for approximate Bayesian inference (Beal, 2003)
    | https://cse.buffalo.edu/faculty/mbeal/thesis/

Shapes: N data, S draws, K states.
"""

__all__ = ["CAVI", "cavi"]

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from pplvm import traces
from pplvm.batches import Array, as_tensors, check_count, check_data, check_seed, mix
from pplvm.cavi_parameters import Coordinates, grouped
from pplvm.conjugate_families import Factors, family_of
from pplvm.contract import bind
from pplvm.draws import Draws, independent
from pplvm.enumeration import moments
from pplvm.parameters import double_by_default, module_of
from pplvm.traces import Site

_TRIED = 5  # steps of each start before the better half of them goes on; arbitrary


@dataclass(frozen=True, eq=False)
class CAVI:
    """A mean field, as good as it can be near where it started."""

    elbo: tuple[float, ...]  # in nats, of all data, after each step
    posterior: Mapping[str, Any]  # a distribution of each continuous site
    marginals: Mapping[str, Tensor]  # (plates…, K) or (plates…, T, K): of each discrete latent
    states: Mapping[str, Tensor]  # (K, event…): what they are of
    mean: Mapping[str, Tensor]  # (plates…, event…) of each site
    sd: Mapping[str, Tensor]  # likewise
    factors: Factors | None
    discrete: Any  # the factors of the discrete latents
    model: Callable
    data: tuple[Tensor, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def draws(self, num_draws: int = 1000, seed: int = 0) -> Draws:
        """Returns independent draws, one chain."""
        check_count("num_draws", num_draws)
        check_seed(seed)
        dtype = torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(mix(seed, 5))
            values = self.factors.sample(num_draws) if self.factors else {}
            values |= self.discrete.draws(num_draws) if self.marginals else {}
        return independent(
            self, {n: x.to(dtype) if x.is_floating_point() else x for n, x in values.items()}
        )


def cavi(
    model: Callable,
    *data: Array,
    structured: bool = True,
    num_steps: int = 1000,
    num_starts: int = 10,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> CAVI:
    """Fits a mean field to a conditionally conjugate story, at the model's parameters.

    Args:
        model: A story whose continuous latents, given all else, are Beta, Gamma, Dirichlet, Normal or
            InverseGamma, each element independent of the others, and whose discrete ones can be
            listed. Without continuous latents, discrete ones may be observed together as a sum over
            pairs of them, as in a factorial hidden Markov model with a Gaussian emission.
        data: Its arguments, first axis N.
        structured: Whether a chain along time is one factor; otherwise each of its states is one.
            With continuous latents it always is.
        num_steps: The most steps, each of which updates every factor once.
        num_starts: From how many states at random to start; the better half goes on, time and again.
        tolerance: It ends when the ELBO rises by less, in nats per datum.
        seed: Of the starts.

    Raises:
        ValueError: if the story is not conditionally conjugate, naming the site.
    """
    start = time.perf_counter()
    check_count("num_steps", num_steps)
    check_count("num_starts", num_starts)
    check_seed(seed)
    N = check_data(data)
    given = as_tensors(data, model)
    model, _ = bind(model, None, *given)
    double = tuple(x.double() if x.is_floating_point() else x for x in given)
    doubled = copy.deepcopy(model) if module_of(model) is not None else model
    if module_of(model) is not None:  # float32 would cost half the digits
        module_of(doubled).double()
    with pyro.validation_enabled(False), torch.no_grad():
        how = num_steps, num_starts, tolerance * N, seed
        try:
            with double_by_default():
                climb = _field(doubled, structured, *double)
                history = _climb(climb, *how)
        except RuntimeError:  # it holds tensors of float32 that do not mix with others
            climb = _field(model, structured, *given)
            history = _climb(climb, *how)
        posterior, marginals, states, mean, sd = climb.result()
    apart = isinstance(climb, _Apart) and not climb.discrete.structured
    settings = {"method": "CAVI, every state apart" if apart else "CAVI"}
    done = len(history) > 1 and history[-1] - history[-2] < tolerance * N
    return CAVI(
        elbo=tuple(history),
        posterior=posterior,
        marginals=marginals,
        states=states,
        mean=mean,
        sd=sd,
        factors=climb.factors,
        discrete=climb.discrete,
        model=model,
        data=given,
        settings=settings
        | {"num_steps": len(history), "stopped": "tolerance" if done else "num_steps"},
        seconds=time.perf_counter() - start,
    )


def _field(model: Callable, structured: bool, *data: Tensor) -> "_Beside | _Apart":
    """Returns the mean field that suits the latents of a story."""
    sites = traces.look(model, *data).values()
    latents = {site.name: site for site in sites if site.kind == "latent"}
    if not latents:
        raise ValueError("the model has no latent site: there is no posterior to approximate.")
    continuous = {n: site for n, site in latents.items() if not site.fn.support.is_discrete}
    if continuous and not structured:
        raise ValueError(
            f"'structured' is False, but site '{next(iter(continuous))}' is continuous: beside such "
            "latents the discrete ones are one factor."
        )
    return _Beside(model, continuous, *data) if continuous else _Apart(model, structured, *data)


def _climb(
    climb: "_Beside | _Apart", num_steps: int, num_starts: int, least: float, seed: int
) -> list[float]:
    """Takes steps from the best start, and returns the ELBO after each."""
    random, running = torch.Generator().manual_seed(mix(seed, 6)), []
    for _ in range(num_starts if climb.many else 1):
        climb.start(random)
        running.append((climb.state(), []))
    tried = _TRIED
    while True:  # the better half goes on for twice as many steps, until one is left
        for n, (state, history) in enumerate(running):
            climb.go_back(state)
            for _ in range(min(tried, num_steps - len(history))):
                if len(history) < 2 or history[-1] - history[-2] >= least:
                    history.append(climb.step())
                if not math.isfinite(history[-1]):
                    raise ValueError(
                        f"the ELBO is {history[-1]}: a factor cannot be told from a point in float64, "
                        "as a Beta or Dirichlet of a tiny concentration, or the data are impossible; "
                        "use larger concentrations, or nuts."
                    )
            running[n] = climb.state(), history
        running.sort(key=lambda run: -run[1][-1])
        if len(running) == 1:
            break
        running, tried = running[: len(running) // 2], 2 * tried
    climb.go_back(running[0][0])
    history = running[0][1]
    while len(history) < num_steps and (len(history) < 2 or history[-1] - history[-2] >= least):
        history.append(climb.step())
        if not history[-1] >= history[-2] - 1e-8 * (1 + abs(history[-2])):
            raise ValueError(
                f"the ELBO fell from {history[-2]:.6f} to {history[-1]:.6f}, so the story is not what "
                "its densities seem to say, conditionally conjugate: use nuts, or fit with a guide."
            )
    return history


class _Beside:
    """Continuous latents, each a factor, beside discrete ones that are one factor and exact."""

    def __init__(self, model: Callable, sites: Mapping[str, Any], *data: Tensor) -> None:
        self.model, self.data = model, data
        families = {name: family_of(site) for name, site in sites.items()}
        plates = {name: tuple(n for n, _, _ in site.plates) for name, site in sites.items()}
        self.values, widths = _places(sites, families)
        self.discrete = traces.Listed(model, *data, values=self.values)
        groups = [[name] for name in sites]
        self.coordinates = Coordinates(dict(sites), families, plates, groups, widths)
        self.many = bool(self.discrete.variables)
        self.factors = None

    def start(self, random: torch.Generator) -> None:
        self.factors = Factors(self.coordinates.families, {}, {}, self.coordinates.plates)
        self.points = {name: (x, x) for name, x in self.values.items()}
        tables = self.discrete.tensors_at(self.values)
        noise = [torch.randn(x.shape, generator=random, dtype=x.dtype) for x in tables]
        _, self.weights = self.discrete.filled(noise).weights()  # states at random
        groups = grouped(self.coordinates, self._joint, self.values)
        self.coordinates = self.coordinates._replace(groups=groups)

    def step(self) -> float:
        """Updates each factor, the discrete latents last, and returns the ELBO."""
        self.factors, self.points = self.coordinates.update(
            self._joint, self.factors, self.points, checked=not self.factors.parameters
        )
        total = self._listen(self.coordinates.runs(self.points))
        return (total + self.coordinates.entropy(self.factors, self.points)).item()

    def state(self) -> tuple:
        return self.factors, self.points, self.weights, self.discrete, self.coordinates

    def go_back(self, state: tuple) -> None:
        self.factors, self.points, self.weights, self.discrete, self.coordinates = state

    def result(self) -> tuple:
        marginals = self.discrete.marginals() if self.discrete.variables else {}
        mean, sd = moments(self.discrete.variables, marginals)
        for name in self.coordinates.sites:
            mean[name], sd[name] = self.factors.moments(name)
        posterior = {name: self.factors.posterior(name) for name in self.coordinates.sites}
        states = {name: v.states for name, v in self.discrete.variables.items()}
        return posterior, marginals, states, mean, sd

    def _listen(self, runs: list[dict[str, Tensor]]) -> Tensor:
        """Updates the discrete latents given the expected log-densities: what they sum to, ()."""
        tables = zip(*(self.discrete.tensors_at(values) for values in runs), strict=True)
        self.discrete = self.discrete.filled([sum(parts) / len(parts) for parts in tables])
        total, self.weights = self.discrete.weights()
        return total

    def _joint(self, values: dict[str, Tensor]) -> Tensor:
        """Returns the joint log-density, (), in expectation over the discrete latents."""
        return traces.weighed(self.weights, self.discrete.tensors_at(values))


class _Apart:
    """Discrete latents alone, each of them or each chain a factor."""

    factors = None

    def __init__(self, model: Callable, structured: bool, *data: Tensor) -> None:
        self.discrete = traces.Blocks(model, *data, structured=structured)
        self.many = len(self.discrete.blocks) > 1 or not structured

    def start(self, random: torch.Generator) -> None:
        self.discrete.start(random)

    def step(self) -> float:
        return self.discrete.sweep().item()

    def state(self) -> list[Tensor]:
        return list(self.discrete.q)

    def go_back(self, state: list[Tensor]) -> None:
        self.discrete.q = state

    def result(self) -> tuple:
        marginals, variables = self.discrete.marginals(), self.discrete.variables
        states = {name: v.states for name, v in variables.items()}
        return {}, marginals, states, *moments(variables, marginals)


def _places(
    sites: Mapping[str, Site], families: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Returns where each continuous latent starts, its prior mean, and how wide its prior is."""
    values, widths = {}, {}
    for name, site in sites.items():
        mean, variance = (
            getattr(site.fn, part).expand(site.value.shape).to(site.value.dtype)
            for part in ("mean", "variance")
        )
        values[name] = torch.where(mean.isfinite() & (mean != 0), mean, 1.0).clone()
        widths[name] = 1.0
        if families[name] == "Normal":
            values[name] = mean.nan_to_num(0.0)
            sd = variance.sqrt().median().item()
            widths[name] = sd if math.isfinite(sd) and sd > 0 else 1.0
    return values, widths
