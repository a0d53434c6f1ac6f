r"""Exact posteriors of conjugate stories.

A latent :math:`\theta` is conjugate if the joint log-density, as a function of it alone, is that of
an exponential family with statistics :math:`T`,

.. math:: \log p(x, \theta) = c + \eta^\top T(\theta), \qquad
    p(\theta \mid x) = \exp(\eta^\top T(\theta) - \log A(\eta)),

whatever its sites are called and however they hang together. All elements of a latent are read off
the slopes of the joint at once, at two points, as :mod:`pplvm.conjugate_families` says, and checked
at others. The evidence is

.. math:: \log p(x) = c + \log A(\eta) = \log p(x, \theta) - \log p(\theta \mid x)

at any :math:`\theta` at all: it is taken in the middle of the posterior, where it costs no digits,
and has to be the same elsewhere.

References:
    | Conjugate priors for exponential families (Diaconis & Ylvisaker, 1979)
    | https://doi.org/10.1214/aos/1176344611

    | Bayesian Data Analysis, 3rd ed., chapters 2 and 3 (Gelman et al., 2013)
    | http://www.stat.columbia.edu/~gelman/book/

    | Estimating a Dirichlet distribution (Minka, 2000), for the Dirichlet-multinomial
    | https://tminka.github.io/papers/dirichlet/

    | Marginal likelihood from the Gibbs output: the identity above (Chib, 1995)
    | https://doi.org/10.1080/01621459.1995.10476635

Shapes: N data, S draws; * is the plates and event dims of a site.
"""

__all__ = ["Conjugate", "conjugate"]

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pplvm import traces
from pplvm.batches import Array, as_tensor, check_count, check_data, check_seed, floating_dtype
from pplvm.conjugate_families import Factors
from pplvm.conjugate_reading import look, or_zeros, solve
from pplvm.contract import bind
from pplvm.draws import Draws
from pplvm.parameters import double_by_default, module_of
from pplvm.traces import distribution_name


@dataclass(frozen=True, eq=False)
class Conjugate:
    """The exact posterior of a conjugate story.

    The sites are independent of each other given the data, but for a mean and its variance, of
    which ``posterior`` has the marginals and ``draws`` the two together.
    """

    posterior: Mapping[str, Any]  # a distribution of each site, its batch shape the plates
    log_marginal: Tensor  # log p(x) in nats: (N,) if every latent belongs to a datum, else ()
    mean: Mapping[str, Tensor]  # (*) of each site
    sd: Mapping[str, Tensor]  # likewise
    factors: Factors  # the parameters, and each mean given its variance
    model: Callable
    data: tuple[Tensor, ...]  # all that were seen
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def draws(self, num_draws: int = 1000, seed: int = 0) -> Draws:
        """Returns independent draws, one chain."""
        check_count("num_draws", num_draws)
        check_seed(seed)
        x = self.data[0]
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = self.factors.sample(num_draws)
        return Draws(
            values={name: value.to(dtype)[None] for name, value in drawn.items()},
            plates=self.factors.plates,
            stats={},
            model=self.model,
            data=self.data,
            settings=self.settings,
            seconds=self.seconds,
        )

    def update(self, *more: Array) -> "Conjugate":
        """Makes today's posterior tomorrow's prior.

        Args:
            more: More of the data, first axis the number of new ones.

        Returns:
            The posterior given the old data and the new; its ``log_marginal`` is log p(new | old),
            so that those of all batches add up to that of the whole.

        Raises:
            ValueError: if a latent belongs to a datum, or an observed site does not.
        """
        start = time.perf_counter()
        given = _as_given(self.model, *more)
        if [x.shape[1:] for x in given] != [x.shape[1:] for x in self.data]:
            raise ValueError(
                f"the new data have shapes {[tuple(x.shape) for x in given]}, the old ones "
                f"{[tuple(x.shape) for x in self.data]}: only the first axes may differ."
            )
        if len(given[0]):
            _check(self.model, *given)
        for site in traces.look(self.model, *or_zeros(given)).values():
            if site.kind != "deterministic" and traces.in_data_plate(site) != (
                site.kind == "observed"
            ):
                raise ValueError(
                    f"site '{site.name}' is {site.kind} {'in' if site.kind == 'latent' else 'outside'} "
                    "plate 'data', but update needs latents that the data share and data inside that "
                    "plate: call conjugate on all the data at once."
                )
        data = tuple(torch.cat(pair) for pair in zip(self.data, given, strict=True))
        if len(given[0]) == 0:
            return replace(self, log_marginal=torch.zeros_like(self.log_marginal))
        found = _solve_in_double(self.model, *more, before=self.factors)
        return replace(found, model=self.model, data=data, seconds=time.perf_counter() - start)


def conjugate(model: Callable, *data: Array) -> Conjugate:
    r"""Computes the posterior in closed form, and the evidence, at the model's parameters.

    Latents may be Beta (or Uniform), Gamma (or Exponential), Dirichlet, Normal of known variance,
    InverseGamma, and a mean :math:`\mu \mid \sigma^2 \sim \mathcal N(m, \sigma^2/\kappa)` with
    its variance InverseGamma: shared by all the data, or one for each datum or group of a plate.

    Args:
        model: A conjugate story.
        data: Its arguments, first axis N. Latents shared by N = 0 data keep their prior.

    Raises:
        ValueError: if the story is not conjugate, naming the site that breaks it or the two that
            depend on each other; if data cannot be had under their likelihood, naming the site.
    """
    start = time.perf_counter()
    given = _as_given(model, *data)
    model = _check(model, *or_zeros(given))
    found = _solve_in_double(model, *data)
    return replace(found, model=model, data=given, seconds=time.perf_counter() - start)


def _as_given(model: Callable, *data: Array) -> tuple[Tensor, ...]:
    """Checks everything but NaN, of which the story can say more, and that there are data."""

    def outline(x: Any) -> Any:
        whole = isinstance(x, Tensor) and not x.is_floating_point()
        whole |= not isinstance(x, Tensor) and hasattr(x, "dtype") and x.dtype.kind != "f"
        return x if whole or not hasattr(x, "shape") else np.empty(x.shape, dtype=bool)

    if not data or not all(getattr(x, "shape", None) and x.shape[0] == 0 for x in data):
        check_data([outline(x) for x in data])
    return tuple(as_tensor(x, floating_dtype(model), torch.device("cpu")) for x in data)


def _check(model: Callable, *data: Tensor) -> Callable:
    """Checks a story on its data, and returns it with the parameters that it has now."""
    model, _ = bind(model, None, *data)
    for site in traces.look(model, *data).values():
        # The support of a Multinomial is content with fractions.
        if site.kind == "observed" and "Multinomial" in distribution_name(site.fn):
            wrong = site.value[site.value != site.value.round()]
            if len(wrong):
                raise ValueError(
                    f"site '{site.name}' observes {wrong[0].item():g}, which is not a count: round "
                    "the data, or choose another likelihood."
                )
    return model


def _solve_in_double(model: Callable, *data: Array, before: Factors | None = None) -> Conjugate:
    double, single = (
        tuple(as_tensor(x, dtype, torch.device("cpu")) for x in data)
        for dtype in (torch.float64, floating_dtype(model))
    )
    if module_of(model) is not None:  # float32 would cost half the digits
        model = copy.deepcopy(model)
        module_of(model).double()
    with pyro.validation_enabled(False):  # any point may be tried
        try:
            with double_by_default():
                return _solve(model, *double, before=before)
        except RuntimeError:  # it holds tensors of float32 that do not mix with others
            return _solve(model, *single, before=before)


def _solve(model: Callable, *data: Tensor, before: Factors | None) -> Conjugate:
    story = look(model, *data, before=before)
    factors, evidence = solve(story)
    moments = {name: factors.moments(name) for name in story.sites}
    return Conjugate(
        posterior={name: factors.posterior(name) for name in story.sites},
        log_marginal=evidence,
        mean={name: mean for name, (mean, _) in moments.items()},
        sd={name: sd for name, (_, sd) in moments.items()},
        factors=factors,
        model=model,
        data=data,
        settings={"method": "exact, conjugate"},
    )
