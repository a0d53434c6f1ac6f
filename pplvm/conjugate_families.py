r"""Families of conjugate posteriors, each read off a line.

In a coordinate :math:`u` of each family the slope of a log-density :math:`\eta^\top T(\theta) + c`
is a line, whose two coefficients are the parameters:

.. math:: \partial_u \log p = a + b\, t

=============  =============  =======  =======================================
Beta           logit θ = u    t = θ    concentrations a + 1 and 1 - a - b
Gamma          log θ = u      t = θ    concentration a + 1, rate -b
InverseGamma   log θ = u      t = 1/θ  concentration -a - 1, scale b
Dirichlet      θ = softmax u  t = θ    concentrations a + 1, b common to all
Normal         θ = u          t = θ    mean -a/b, variance -1/b
=============  =============  =======  =======================================

A mean :math:`\mu \mid v \sim \mathcal N(m, v/\kappa)` has its line in :math:`v\, \partial_\mu \log p`,
and its variance :math:`v` in what is left of the slope without the mean's own density: together they
are normal-inverse-gamma.

References:
    | Conjugate priors for exponential families (Diaconis & Ylvisaker, 1979)
    | https://doi.org/10.1214/aos/1176344611

Shapes: S draws, K categories; * is the plates and event dims of a site.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pplvm.traces import DATA, Site, distribution_name


class Family(NamedTuple):
    """What there is to know of a family; its parameters are (*) each."""

    event_dim: int  # of one element
    constrain: Callable[[Tensor], Tensor]  # u -> θ
    position: Callable[[Tensor], Tensor]  # θ -> t
    parameters: Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # (a, b) -> parameters
    positive: int  # how many of the parameters, counted from the last, are to be positive
    middle: Callable[..., tuple[Tensor, Tensor]]  # parameters -> centre and rough sd of u
    distribution: Callable[..., Any]
    moments: Callable[[Any], tuple[Tensor, Tensor]]  # of one distribution: mean, variance
    statistics: Callable[[Tensor], list[Tensor]]  # T(θ), each ()
    points: Callable[..., tuple[Tensor, Tensor]]  # parameters -> two θ whose T average to E[T(θ)]


def _moments(q: Any) -> tuple[Tensor, Tensor]:
    return q.mean, q.variance


def _inverse_gamma_moments(q: Any) -> tuple[Tensor, Tensor]:
    """Infinite where the concentration is too small for them."""
    shape, scale = q.concentration, q.rate
    mean = torch.where(shape > 1, scale / (shape - 1), math.inf)
    variance = scale**2 / ((shape - 1) ** 2 * (shape - 2))
    return mean, torch.where(shape > 2, variance, math.inf)


def _gamma_points(shape: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Has the expectations of log θ and θ."""
    centre = shape.digamma() - rate.log()
    reach = _arccosh_1p(torch.expm1(shape.log() - shape.digamma()))  # E[θ] = e^centre cosh reach
    return (centre - reach).exp(), (centre + reach).exp()


def _inverse_gamma_points(shape: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    low, high = _gamma_points(shape, scale)
    return 1 / low, 1 / high


def _dirichlet_points(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Has the expectations e of all log θ, which are e ± d at the largest and e elsewhere, normalised.

    Their normalisers cancel if ``(a exp(d) + r) (a exp(-d) + r) = 1``, where a is exp(e) at the
    largest and r the sum of the others.
    """
    e = alpha.digamma() - alpha.sum(-1, keepdim=True).digamma()
    largest = torch.nn.functional.one_hot(e.argmax(-1), e.shape[-1]).to(e.dtype)
    a = (e * largest).sum(-1, keepdim=True).exp()
    r = (e.exp() * (1 - largest)).sum(-1, keepdim=True)
    d = torch.where(r > 0, _arccosh_1p((1 - (a + r)) * (1 + (a + r)) / (2 * a * r)), 0.0)
    return (e - d * largest).softmax(-1), (e + d * largest).softmax(-1)


def _beta_points(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    low, high = _dirichlet_points(torch.stack((p, q), -1))
    return low[..., 0], high[..., 0]


def _arccosh_1p(x: Tensor) -> Tensor:
    """Returns arccosh(1 + x) with all digits of a small x."""
    return (x + (x * (2 + x)).sqrt()).log1p()


def _same(x: Tensor) -> Tensor:
    return x


FAMILIES = {
    "Beta": Family(
        event_dim=0,
        constrain=torch.sigmoid,
        position=_same,
        parameters=lambda a, b: (a + 1, 1 - a - b),
        positive=2,
        middle=lambda p, q: (p.log() - q.log(), (1 / p + 1 / q).sqrt()),
        distribution=dist.Beta,
        moments=_moments,
        statistics=lambda x: [x.log(), (-x).log1p()],
        points=_beta_points,
    ),
    "Gamma": Family(
        event_dim=0,
        constrain=torch.exp,
        position=_same,
        parameters=lambda a, b: (a + 1, -b),
        positive=2,
        middle=lambda shape, rate: (shape.log() - rate.log(), shape.rsqrt()),
        distribution=dist.Gamma,
        moments=_moments,
        statistics=lambda x: [x.log(), x],
        points=_gamma_points,
    ),
    "InverseGamma": Family(
        event_dim=0,
        constrain=torch.exp,
        position=torch.reciprocal,
        parameters=lambda a, b: (-a - 1, b),
        positive=2,
        middle=lambda shape, scale: (scale.log() - (shape + 1).log(), shape.rsqrt()),
        distribution=dist.InverseGamma,
        moments=_inverse_gamma_moments,
        statistics=lambda x: [x.log(), 1 / x],
        points=_inverse_gamma_points,
    ),
    "Dirichlet": Family(
        event_dim=1,
        constrain=lambda u: u.softmax(-1),
        position=_same,
        parameters=lambda a, b: (a + 1,),
        positive=1,
        middle=lambda p: (p.log(), p.rsqrt()),
        distribution=dist.Dirichlet,
        moments=_moments,
        statistics=lambda x: list(x.log()),
        points=_dirichlet_points,
    ),
    "Normal": Family(
        event_dim=0,
        constrain=_same,
        position=_same,
        parameters=lambda a, b: (-a / b, (-b).rsqrt()),  # given a variance v, its scale is in √v
        positive=1,
        middle=lambda loc, scale: (loc, scale),
        distribution=dist.Normal,
        moments=_moments,
        statistics=lambda x: [x, x**2],
        points=lambda loc, scale: (loc - scale, loc + scale),
    ),
}


def family_of(site: Site) -> str:
    """Returns the family on the support of a latent, or raises a ``ValueError`` that names it."""
    support = site.fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    bounds = [
        torch.as_tensor(getattr(support, f"{end}_bound", math.nan)) for end in ("lower", "upper")
    ]
    if support in (constraints.real, constraints.real_vector):
        return "Normal"
    if support is constraints.simplex:
        return "Dirichlet"
    if (bounds[0] == 0).all() and (bounds[1] == 1).all() and not support.is_discrete:
        return "Beta"
    if (bounds[0] == 0).all() and bounds[1].isnan().all() and not support.is_discrete:
        return "InverseGamma" if distribution_name(site.fn) == "InverseGamma" else "Gamma"
    raise ValueError(
        f"site '{site.name}' is {distribution_name(site.fn)}, but conjugate needs every latent to be "
        "Beta, Gamma, Dirichlet, Normal or InverseGamma: use nuts, or fit with a guide."
    )


def line(t: list[Tensor], g: list[Tensor], event_dim: int) -> tuple[Tensor, Tensor]:
    """Returns intercept and slope (*) of the line through two points; an event shares its slope."""
    dt, dg = t[1] - t[0], g[1] - g[0]
    across, along = dt * dt, dg * dt
    if event_dim:
        across, along = across.sum(-1, keepdim=True), along.sum(-1, keepdim=True)
    # A simplex of one category is a point, and has no slope.
    b = torch.where(across > 0, along / across, 0.0).expand_as(dt)
    return (g[0] + g[1] - b * (t[0] + t[1])) / 2, b


def tolerance(x: Tensor) -> float:
    """Returns the relative error that two ways to the same slope may differ by."""
    return 1e-6 if x.dtype == torch.float64 else 1e-3


def spread(
    shape: Sequence[int], own: tuple[str, ...], among: tuple[str, ...], ndim: int
) -> list[int] | None:
    """Returns the shape of a variance laid out as the means, of ndim dims, that it belongs to.

    None where the means are not in all of its plates, or the events of the two differ in dims.
    """
    if not set(own) <= set(among):
        return None
    sizes = iter(shape)
    plates = [next(sizes) if name in own else 1 for name in among]
    laid_out = plates + (list(sizes) or [1] * (ndim - len(among)))
    return laid_out if len(laid_out) == ndim else None


@dataclass(frozen=True, eq=False)
class Factors:
    """Independent posteriors of the sites, and of a mean given its variance."""

    families: Mapping[str, str]  # of each site
    parameters: Mapping[str, tuple[Tensor, ...]]  # (*) each, in the order of the distribution
    given: Mapping[str, str]  # the variance that a mean is conditional on
    plates: Mapping[str, tuple[str, ...]]

    def of_variance(self, name: str, v: Tensor) -> Tensor:
        """Lays a variance (…*) out as the means of a site; what leads it are draws."""
        own, variance = self.parameters[name][0], self.given[name]
        one = self.parameters[variance][0]
        shape = spread(one.shape, self.plates[variance], self.plates[name], own.ndim)
        return v.reshape(v.shape[: v.ndim - one.ndim] + tuple(shape))

    def conditional(self, name: str, values: Mapping[str, Tensor]) -> Any:
        """Returns the posterior of a site given the values of its variance, if it has one."""
        parameters = self.parameters[name]
        if name in self.given:
            v = self.of_variance(name, values[self.given[name]])
            parameters = (parameters[0], parameters[1] * v.sqrt())
        return FAMILIES[self.families[name]].distribution(*parameters, validate_args=False)

    def marginal(self, name: str) -> Any:
        """Returns the posterior of a site alone: a mean of unknown variance is Student's t."""
        if name not in self.given:
            return self.conditional(name, {})
        loc, scale = self.parameters[name]
        shape, rate = (self.of_variance(name, x) for x in self.parameters[self.given[name]])
        df, scale = (2 * shape).expand_as(loc), scale * (rate / shape).sqrt()
        return dist.StudentT(df, loc, scale, validate_args=False)

    def posterior(self, name: str) -> Any:
        """Returns the posterior of a site alone, all dims that are in no plate one event."""
        q = self.marginal(name)
        return q.to_event(len(q.batch_shape) - len(self.plates[name]))

    def moments(self, name: str) -> tuple[Tensor, Tensor]:
        """Returns mean and sd (*) of a site."""
        known = FAMILIES[self.families[name]].moments if name not in self.given else _moments
        mean, variance = known(self.marginal(name))
        return mean, variance.sqrt()

    def log_probs(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the posterior log-density of each site, (*) but for the dims of its elements."""
        return {name: self.conditional(name, values).log_prob(values[name]) for name in values}

    def log_prob(self, values: Mapping[str, Tensor], per_datum: bool) -> Tensor:
        """Returns the posterior log-density of all sites: (N,) for each datum, else ()."""
        return sum(
            total(term, self.plates[name].index(DATA) if per_datum else None)
            for name, term in self.log_probs(values).items()
        )

    def sample(self, num_draws: int) -> dict[str, Tensor]:
        """Returns draws (S, *) of each site, from the ambient random state."""
        drawn: dict[str, Tensor] = {}
        for name in variances_first(self.families, self.given):
            q = self.conditional(name, drawn)
            lead = () if name in self.given else (num_draws,)
            drawn[name] = q.sample(lead)
        return {name: drawn[name] for name in self.families}

    def middle(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns a point u (*) of high density for each site, and how wide the posterior is there.

        Parameters that are out of range count as some that are not.
        """
        centre, width = {}, {}
        for name in variances_first(self.families, self.given):
            *free, p = self._split(name)
            p = [x.nan_to_num(1.0, 1.0, 1.0).clamp(min=1e-100) for x in p]
            free = [x.nan_to_num(0.0, 0.0, 0.0) for x in free]
            centre[name], width[name] = FAMILIES[self.families[name]].middle(*free, *p)
            if name in self.given:
                v = FAMILIES["InverseGamma"].constrain(centre[self.given[name]])
                width[name] = width[name] * self.of_variance(name, v).sqrt()
            elif self.families[name] != "Normal":
                width[name] = width[name].clamp(max=0.5)  # of tiny concentrations, logs are endless
        return centre, width

    def improper(self) -> str | None:
        """Returns the first site whose parameters are out of range, if there is one."""
        for name, parameters in self.parameters.items():
            *_, positive = self._split(name)
            finite = all(p.isfinite().all() for p in parameters)
            if not (finite and all((p > 0).all() for p in positive)):
                return name
        return None

    def _split(self, name: str) -> list:
        """Returns the parameters of a site: those that may be negative, then a list of the others."""
        parameters = self.parameters[name]
        cut = len(parameters) - FAMILIES[self.families[name]].positive
        return [*parameters[:cut], list(parameters[cut:])]


def variances_first(names: Iterable[str], given: Mapping[str, str]) -> list[str]:
    """Sorts the sites so that a mean comes after its variance."""
    return sorted(names, key=lambda name: name in given)


def total(x: Tensor, keep: int | None) -> Tensor:
    """Sums over all dims but one, or over all."""
    if keep is None:
        return x.sum()
    return x.movedim(keep, 0).reshape(x.shape[keep], -1).sum(1)
