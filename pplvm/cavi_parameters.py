r"""Coordinate ascent over conditionally conjugate latents, read off the story's own log-densities.

The update of one latent needs the expectation of the joint log-density over all others,

.. math:: \log q(\theta_j) = \mathbb E_{q(\theta_{-j})\, q(z)} \log p(x, z, \theta) + c .

In a conditionally conjugate story the joint is linear in the statistics :math:`T(\theta_i)` of each
latent, so that any distribution of the same :math:`\mathbb E[T(\theta_i)]` does in place of
:math:`q(\theta_i)`: here two points of equal weight. The expectation is then an average over few runs,
and its line is read off as :mod:`pplvm.conjugate_families` says. Latents that do not meet in any
product of statistics share their points, and their update.

References:
    | Variational message passing (Winn & Bishop, 2005)
    | https://www.jmlr.org/papers/v6/winn05a.html

Shapes: \* is the plates and event dims of a site.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from pplvm.conjugate_families import FAMILIES, Factors, line, tolerance
from pplvm.traces import Site, distribution_name

Values = dict[str, Tensor]
Points = dict[str, tuple[Tensor, Tensor]]
Joint = Callable[[Values], Tensor]  # the joint log-density (), in expectation over discrete latents


class Coordinates(NamedTuple):
    """The continuous latents of a story."""

    sites: dict[str, Site]
    families: dict[str, str]
    plates: dict[str, tuple[str, ...]]
    groups: list[list[str]]  # of latents that are updated at once
    widths: dict[str, float]  # how far to go to see a slope change: a prior sd, 1 in logarithms

    def runs(self, points: Points) -> list[Values]:
        """Returns values whose average stands for the expectation over all latents."""
        return [
            {
                name: points[name][side]
                for group, side in zip(self.groups, sides, strict=True)
                for name in group
            }
            for sides in product((0, 1), repeat=len(self.groups))
        ]

    def points(self, factors: Factors) -> Points:
        """Returns the two points of each latent."""
        return {
            name: FAMILIES[self.families[name]].points(*parameters)
            for name, parameters in factors.parameters.items()
        }

    def entropy(self, factors: Factors, points: Points) -> Tensor:
        """Returns the entropy of all factors, (): their log-densities are linear in T, too."""
        sides = [{name: pair[side] for name, pair in points.items()} for side in (0, 1)]
        return -sum(factors.log_prob(side, per_datum=False) for side in sides) / 2

    def update(
        self, joint: Joint, factors: Factors, points: Points, checked: bool
    ) -> tuple[Factors, Points]:
        """Updates every group in turn.

        Args:
            joint: The joint log-density.
            factors: Their factors so far, if any.
            points: Their points.
            checked: Whether to look if what is read off is all there is.
        """
        random = torch.Generator().manual_seed(0)
        for group in self.groups:
            centre = self._centre(group, points)
            places = [self._moved(centre, side, random) for side in (-1.0, 1.0)]
            slopes = [self._slopes(joint, group, points, u) for u in places]
            found, lines = dict(factors.parameters), {}
            for name in group:
                family = FAMILIES[self.families[name]]
                t = [family.position(family.constrain(u[name])) for u in places]
                lines[name] = line(t, [g[name] for g in slopes], family.event_dim)
                found[name] = family.parameters(*lines[name])
            if checked:
                u = self._moved(centre, 0.4, random)
                self._check(lines, u, [*slopes, self._slopes(joint, group, points, u)])
            factors = Factors(self.families, found, {}, self.plates)
            improper = factors.improper()
            if improper is not None:
                raise ValueError(
                    f"site '{improper}' ({distribution_name(self.sites[improper].fn)}) has no proper "
                    "distribution given the others: check that it has a proper prior."
                )
            points = points | self.points(
                Factors(self.families, {name: found[name] for name in group}, {}, self.plates)
            )
        return factors, points

    def _centre(self, group: list[str], points: Points) -> Values:
        """Returns coordinates u in the middle of a latent's points."""
        found = {}
        for name in group:
            low, high = points[name]
            if self.families[name] == "Normal":
                found[name] = (low + high) / 2
            elif self.families[name] in ("Gamma", "InverseGamma"):
                found[name] = (low.log() + high.log()) / 2
            else:  # whose slopes are bounded: the middle serves them all
                found[name] = torch.zeros_like(low)
        return found

    def _moved(self, centre: Values, side: float, random: torch.Generator) -> Values:
        """Returns a point on one side of the centre; elements of a simplex go each its own way."""
        found = {}
        for name, u in centre.items():
            step = torch.randn(u.shape, generator=random, dtype=u.dtype)
            if FAMILIES[self.families[name]].event_dim == 0:
                step = (step.abs() + 0.3) * self.widths[name]
            found[name] = u + side * step
        return found

    def _slopes(self, joint: Joint, group: list[str], points: Points, u: Values) -> Values:
        """Returns the slopes in the coordinates of a group, on average over all other latents."""
        u = {name: x.detach().requires_grad_() for name, x in u.items()}
        others = [g for g in self.groups if g is not group]
        rest = self._replace(groups=others).runs(points)
        with torch.enable_grad():
            own = {name: FAMILIES[self.families[name]].constrain(x) for name, x in u.items()}
            total = sum(joint(values | own) for values in rest) / len(rest)
            found = torch.autograd.grad(total, list(u.values()), allow_unused=True)
        return {
            name: torch.zeros_like(x) if g is None else g
            for (name, x), g in zip(u.items(), found, strict=True)
        }

    def _check(
        self, lines: dict[str, tuple[Tensor, Tensor]], u: Values, slopes: list[Values]
    ) -> None:
        """Raises a ``ValueError`` if a latent is not on its line at another point, the last."""
        for name, (a, b) in lines.items():
            family, g = FAMILIES[self.families[name]], slopes[-1][name]
            t = family.position(family.constrain(u[name]))
            size = sum((x[name].abs() for x in slopes), a.abs() + (b * t).abs())
            if not ((g - a - b * t).abs() <= tolerance(g) * size).all():
                raise ValueError(
                    f"site '{name}' ({distribution_name(self.sites[name].fn)}) is not conditionally "
                    f"conjugate: given all else its log-density has not the form of independent "
                    f"{self.families[name]} densities, one for each element, so use nuts, or fit with "
                    "a guide."
                )


def grouped(coordinates: Coordinates, joint: Joint, values: Values) -> list[list[str]]:
    """Groups latents so that none moves the slope of another in its group.

    Rounding may tell two apart that do not meet, which costs a few runs more.
    """
    random, groups = torch.Generator().manual_seed(0), []
    families, widths = coordinates.families, coordinates.widths

    def point() -> Values:
        found = {}
        for name, x in values.items():
            noise = torch.randn(x.shape, generator=random, dtype=x.dtype)
            found[name] = x + widths[name] * noise if families[name] == "Normal" else noise
        return found

    def slope(u: Values, name: str) -> Tensor:
        u = {n: x.detach().requires_grad_(n == name) for n, x in u.items()}
        with torch.enable_grad():
            theta = {n: FAMILIES[families[n]].constrain(x) for n, x in u.items()}
            (g,) = torch.autograd.grad(joint(theta), [u[name]], allow_unused=True)
        return torch.zeros_like(u[name]) if g is None else g

    here, there = point(), point()
    before = {name: slope(here, name) for name in values}

    def meet(one: str, other: str) -> bool:
        after = slope({**here, other: there[other]}, one)
        near = tolerance(after) * (before[one].abs() + after.abs())
        return not ((after - before[one]).abs() <= near).all()

    for name in values:
        fitting = (g for g in groups if not any(meet(name, other) for other in g))
        home = next(fitting, None)
        if home is None:
            groups.append([name])
        else:
            home.append(name)
    return groups
