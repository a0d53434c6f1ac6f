r"""Exact posteriors: of discrete latents by summing them out, and of linear-Gaussian stories.

A story is linear-Gaussian if its joint log-density is quadratic in its latents,

.. math:: \log p(x, z) = c + h^\top z - \tfrac12 z^\top \Lambda z,

whatever its sites are called and however they hang together. Then

.. math:: p(z \mid x) = \mathcal N(\Lambda^{-1} h, \Lambda^{-1}), \qquad
    \log p(x) = c + \tfrac12 h^\top \Lambda^{-1} h + \tfrac L2 \log 2\pi
    - \tfrac12 \log\lvert\Lambda\rvert.

The three coefficients are read off the story by differentiation, and checked at other points.

References:
    | A Unifying Review of Linear Gaussian Models (Roweis & Ghahramani, 1999)
    | https://doi.org/10.1162/089976699300016674
"""

__all__ = ["Exact", "exact"]

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from pplvm import traces
from pplvm.batches import as_tensor, check_data, floating_dtype
from pplvm.contract import bind
from pplvm.draws import Draws
from pplvm.enumeration import Enumerated, enumerated
from pplvm.parameters import double_by_default, module_of
from pplvm.traces import Site, distribution_name

# A dense precision matrix of more unknowns than this is refused.
_MOST = 4000


@dataclass(frozen=True, eq=False)
class Exact:
    """The exact posterior of a linear-Gaussian story.

    With latents of each datum alone, N Gaussians of L dims; otherwise a single one, N = 1.
    """

    log_marginal: Tensor  # (N,): log p(x_n), in nats
    mean: Mapping[str, Tensor]  # (plates…, event…) of each site
    sd: Mapping[str, Tensor]  # likewise
    location: Tensor  # (N, L): all sites together
    scale_tril: Tensor  # (N, L, L): Cholesky factor of the covariance
    model: Callable
    data: tuple[Tensor, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def draws(self, num_draws: int = 1000, seed: int = 0) -> Draws:
        """Returns independent draws, one chain."""
        sites = _latents(self.model, *self.data)
        random = torch.Generator().manual_seed(seed)
        eps = torch.randn(num_draws, *self.location.shape, generator=random, dtype=torch.float64)
        u = self.location + (self.scale_tril @ eps[..., None]).squeeze(-1)  # (S, N, L)
        dtype = (
            self.data[0].dtype if self.data[0].is_floating_point() else torch.get_default_dtype()
        )
        per_datum = traces.factorises(self.model, data=self.data)
        parts = [_unflatten(row, sites, per_datum) for row in u.to(dtype)]
        return Draws(
            values={name: torch.stack([part[name] for part in parts])[None] for name in sites},
            plates={name: tuple(n for n, _, _ in site.plates) for name, site in sites.items()},
            stats={},
            model=self.model,
            data=self.data,
            settings=self.settings,
            seconds=self.seconds,
        )


def exact(model: Callable, *data: Tensor) -> Exact | Enumerated:
    """Computes the exact posterior and log marginal likelihood at the model's parameters.

    Args:
        model: A linear-Gaussian story, or one whose latents are all discrete with finitely many
            states; any other is a ``ValueError`` that says which site or density is at fault.
        data: Its arguments, first axis N.
    """
    start = time.perf_counter()
    check_data(data)
    given = tuple(as_tensor(x, floating_dtype(model), torch.device("cpu")) for x in data)
    model, _ = bind(model, None, *given)
    double = tuple(as_tensor(x, torch.float64, torch.device("cpu")) for x in data)
    if module_of(model) is not None:  # float32 would cost half the digits
        doubled = copy.deepcopy(model)
        module_of(doubled).double()
        with double_by_default():
            found = _solve(doubled, *double)
    else:
        try:
            with double_by_default():
                found = _solve(model, *double)
        except RuntimeError:  # it holds tensors of float32 that do not mix with others
            found = _solve(model, *given)
    return replace(found, model=model, data=given, seconds=time.perf_counter() - start)


def _solve(model: Callable, *data: Tensor) -> Exact | Enumerated:
    kinds = {s.fn.support.is_discrete for s in _latent_sites(model, *data).values()}
    if True in kinds:
        return enumerated(model, *data)
    sites = _latents(model, *data)
    per_datum = traces.factorises(model, data=data)

    def log_joint(u: Tensor) -> Tensor:  # (N, L) -> (N,)
        values = _unflatten(u, sites, per_datum)
        return traces.log_joint(model, values, *data, per_datum=per_datum).reshape(-1)

    zero = _flatten(
        {name: torch.zeros_like(site.value) for name, site in sites.items()}, sites, per_datum
    )
    if zero.shape[1] > _MOST:
        raise ValueError(
            f"the latents have {zero.shape[1]} dims together, and exact is dense in them (at most "
            f"{_MOST}): put what belongs to a datum inside plate('data', N, dim=-1), or use nuts."
        )
    c, h, precision = _coefficients(log_joint, zero)
    factor, failed = torch.linalg.cholesky_ex(precision)
    if failed.any():
        _blame(model, zero, sites, per_datum, *data)
        raise ValueError(
            f"the latents {sorted(sites)} have no Gaussian posterior: their precision is singular, so "
            "check that every one of them has a proper prior."
        )
    mean = torch.cholesky_solve(h[..., None], factor).squeeze(-1)  # (N, L)
    covariance = torch.cholesky_inverse(factor)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()  # (N, L)
    if not _is_quadratic(log_joint, c, h, precision, mean, sd):
        _blame(model, mean, sites, per_datum, *data)
        raise ValueError(
            "the joint log-density is not quadratic in the latents, or float32 is too coarse to "
            "tell: use float64, or nuts."
        )
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    L = mean.shape[1]
    return Exact(
        log_marginal=c + 0.5 * (h * mean).sum(-1) + 0.5 * L * math.log(2 * math.pi) - half_log_det,
        mean=_unflatten(mean, sites, per_datum),
        sd=_unflatten(sd, sites, per_datum),
        location=mean.double(),
        scale_tril=torch.linalg.cholesky(covariance.double()),
        model=model,
        data=data,
        settings={"method": "exact, linear-Gaussian"},
    )


def _latent_sites(model: Callable, *data: Tensor) -> dict[str, Site]:
    sites = {n: s for n, s in traces.look(model, *data).items() if s.kind == "latent"}
    if not sites:
        raise ValueError("the model has no latent site: there is no posterior to compute.")
    return sites


def _latents(model: Callable, *data: Tensor) -> dict[str, Site]:
    sites = _latent_sites(model, *data)
    for name, site in sites.items():
        support = site.fn.support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        if support not in (constraints.real, constraints.real_vector):
            raise ValueError(
                f"site '{name}' is {distribution_name(site.fn)}, but exact needs every latent to be "
                "Gaussian: use nuts, or fit with a guide."
            )
    return sites


def _data_axis(site: Site) -> int:
    return [name for name, _, _ in site.plates].index(traces.DATA)


def _flatten(values: dict[str, Tensor], sites: dict[str, Site], per_datum: bool) -> Tensor:
    """Lays the values of all sites side by side, (N, L), or (1, L) for the data as a whole."""
    if not per_datum:
        return torch.cat([values[name].reshape(1, -1) for name in sites], dim=1)
    rows = (values[name].movedim(_data_axis(sites[name]), 0) for name in sites)  # (N, …)
    return torch.cat([row.reshape(len(row), -1) for row in rows], dim=1)


def _unflatten(u: Tensor, sites: dict[str, Site], per_datum: bool) -> dict[str, Tensor]:
    """Undoes :func:`_flatten`."""
    if not per_datum:
        shapes = {name: site.value.shape for name, site in sites.items()}
        parts = u.split([shape.numel() for shape in shapes.values()], dim=1)
        return {n: part.reshape(shapes[n]) for n, part in zip(sites, parts, strict=True)}
    shapes = {n: site.value.movedim(_data_axis(site), 0).shape for n, site in sites.items()}
    parts = u.split([math.prod(shape[1:]) for shape in shapes.values()], dim=1)
    return {
        n: part.reshape(shapes[n]).movedim(0, _data_axis(sites[n]))
        for n, part in zip(sites, parts, strict=True)
    }


def _coefficients(log_joint: Callable, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns c (N,), h (N, L) and Λ (N, L, L): a datum's density depends on its own row alone."""
    u = zero.detach().requires_grad_()
    value = log_joint(u)
    if not value.requires_grad:
        return value, u * 0.0, torch.zeros(*u.shape, u.shape[1], dtype=u.dtype)
    (h,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    if not h.requires_grad:  # linear, or not a function of u at all
        return value.detach(), h, torch.zeros(*u.shape, u.shape[1], dtype=u.dtype)
    rows = [
        torch.autograd.grad(h[:, i].sum(), u, retain_graph=True, allow_unused=True)[0]
        for i in range(u.shape[1])
    ]
    hessian = torch.stack([torch.zeros_like(u) if r is None else r for r in rows], dim=1)
    return value.detach(), h.detach(), -hessian


def _is_quadratic(log_joint: Callable, c, h, precision, mean, sd) -> bool:
    random = torch.Generator().manual_seed(0)
    tolerance = 1e-6 if mean.dtype == torch.float64 else 1e-3
    for spread in (1.0, 3.0):
        eps = torch.randn(mean.shape, generator=random, dtype=mean.dtype)
        u = mean + spread * sd * eps
        with torch.no_grad():
            got = log_joint(u)
        square = torch.einsum("nl,nlm,nm->n", u, precision, u)
        want = c + (h * u).sum(-1) - 0.5 * square
        gap = (got - want).abs().max().item()
        if not gap <= tolerance * (1 + max(want.abs().max().item(), square.abs().max().item())):
            return False
    return True


def _blame(
    model: Callable, start: Tensor, sites: dict[str, Site], per_datum: bool, *data: Tensor
) -> None:
    """Raises a ``ValueError`` that names the first site whose own density is not quadratic."""
    random = torch.Generator().manual_seed(0)
    step = torch.randn(start.shape, generator=random, dtype=start.dtype)
    line = [
        traces.site_log_probs(
            model, _unflatten(start.nan_to_num() + t * step, sites, per_datum), *data
        )
        for t in (0.0, 1.0, 2.0, 3.0)
    ]
    tolerance = 1e-6 if start.dtype == torch.float64 else 1e-3
    for name in line[0]:
        a, b, c, d = (float(densities[name]) for densities in line)
        third = d - 3 * c + 3 * b - a  # of a parabola it is zero
        if not abs(third) <= tolerance * (1 + max(map(abs, (a, b, c, d)))):
            fn = traces.look(model, *data)[name].fn
            raise ValueError(
                f"the log-density of site '{name}' ({distribution_name(fn)}) is not quadratic in the "
                "latents: the story is not linear-Gaussian, so use nuts, or fit with a guide."
            )
