r"""A conjugate posterior read off the slopes of a story's joint log-density, or why there is none.

Shapes: N data; * is the plates and event dims of a site.
"""

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from pplvm import traces
from pplvm.conjugate_families import FAMILIES, Factors, family_of, line, spread, tolerance
from pplvm.traces import Program, Site, distribution_name

Values = dict[str, Tensor]


class Story(NamedTuple):
    """What is to be read off: a joint log-density, and where its latents are."""

    model: Callable
    data: tuple[Tensor, ...]
    sites: dict[str, Site]  # the latents
    families: dict[str, str]
    plates: dict[str, tuple[str, ...]]
    joint: Callable[[Values], Tensor]  # (N,) for each datum, else ()
    per_datum: bool

    def constrain(self, u: Values) -> Values:
        """Maps coordinates to latents."""
        return {name: FAMILIES[self.families[name]].constrain(x) for name, x in u.items()}

    def slopes(self, u: Values) -> tuple[Values, Tensor]:
        """Returns the slope of the joint in each coordinate, and the joint, (N,) or ().

        In a conjugate story the slope in an element depends on that element alone.
        """
        u = {name: x.detach().requires_grad_() for name, x in u.items()}
        joint = self.joint(self.constrain(u))
        if not joint.requires_grad:
            return {name: torch.zeros_like(x) for name, x in u.items()}, joint
        found = torch.autograd.grad(joint.sum(), list(u.values()), allow_unused=True)
        slopes = {
            name: torch.zeros_like(x) if g is None else g
            for (name, x), g in zip(u.items(), found, strict=True)
        }
        return slopes, joint.detach()


def or_zeros(data: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns one row of zeros for no data at all: Pyro has no plates of size 0."""
    return data if len(data[0]) else tuple(x.new_zeros(1, *x.shape[1:]) for x in data)


def look(model: Callable, *data: Tensor, before: Factors | None = None) -> Story:
    """Finds the latents of a story and their families; ``before`` takes the place of its prior."""
    rows = or_zeros(data)
    sites = {n: s for n, s in traces.look(model, *rows).items() if s.kind == "latent"}
    if not sites:
        raise ValueError("the model has no latent site: there is no posterior to compute.")
    families = {name: family_of(site) for name, site in sites.items()}
    per_datum = traces.factorises(model, data=rows)

    def joint(values: Values) -> Tensor:
        if before is not None:  # which the data see through a likelihood alone
            rest = traces.log_joint(Program(model, share=0.0), values, *rows, per_datum=False)
            return rest + before.log_prob(values, per_datum=False)
        once = traces.log_joint(model, values, *rows, per_datum=per_datum)
        if rows is data:
            return once
        return traces.log_joint(Program(model, share=2.0), values, *rows, per_datum=False) - once

    for name, site in sites.items():
        if rows is not data and traces.in_data_plate(site):
            raise ValueError(
                f"site '{name}' belongs to a datum, but there are none: give at least one datum."
            )
    plates = {name: tuple(plate for plate, _, _ in site.plates) for name, site in sites.items()}
    return Story(model, rows, sites, families, plates, joint, per_datum)


def solve(story: Story) -> tuple[Factors, Tensor]:
    """Returns the posterior and the log evidence, (N,) for each datum, else ()."""
    random = torch.Generator().manual_seed(0)
    given = _couplings(story, random)
    dtype = torch.get_default_dtype()
    centre = {n: torch.zeros(site.value.shape, dtype=dtype) for n, site in story.sites.items()}
    width = {name: torch.ones_like(u) for name, u in centre.items()}
    for _ in range(_passes(story, given)):
        factors, lines = _read_off(story, given, _two_points(story, centre, width, random))
        centre, width = factors.middle()
    near = [_jitter(centre, width, random) for _ in range(2)]
    wide = {name: w + _reach(story.families[name], centre[name]) for name, w in width.items()}
    joints = []
    for u in (*near, _jitter(centre, wide, random)):
        slopes, joint = story.slopes(u)
        joints.append(joint)
        if not _on_lines(story, factors, lines, story.constrain(u), slopes):
            _blame(story, given)
    improper = factors.improper()
    if improper is not None:
        raise ValueError(
            f"site '{improper}' ({distribution_name(story.sites[improper].fn)}) has no proper "
            "posterior: check that it has a proper prior, neither masked nor scaled away."
        )
    evidence, again = (
        joint - factors.log_prob(story.constrain(u), story.per_datum)
        for u, joint in zip(near, joints[:2], strict=True)
    )
    # The same at any point, unless what the slopes say is not what the values say.
    if not ((again - evidence).abs() <= tolerance(evidence) * (1 + joints[0].abs())).all():
        _blame(story, given)
    return factors, evidence


def _passes(story: Story, given: dict[str, str]) -> int:
    """Returns how often to read off: again where the posterior is, and then given its mean."""
    if set(story.families.values()) <= {"Beta", "Dirichlet"}:
        return 1  # slopes are bounded, and the same two points serve any posterior
    return 3 if given else 2


def _jitter(centre: Values, width: Values, random: torch.Generator) -> Values:
    return {
        name: u + width[name] * torch.randn(u.shape, generator=random, dtype=u.dtype)
        for name, u in centre.items()
    }


def _reach(family: str, centre: Tensor) -> Tensor:
    """Returns how far to go to see what a line does elsewhere: arbitrary, but far."""
    return 0.3 * (1 + centre.abs()) if family == "Normal" else torch.full_like(centre, 0.7)


def _two_points(
    story: Story, centre: Values, width: Values, random: torch.Generator
) -> list[Values]:
    """Returns two points that tell intercepts and slopes apart."""
    points: list[Values] = [{}, {}]
    for name, u in centre.items():
        family = story.families[name]
        for point, step in zip(points, (-0.6, 0.6), strict=True):
            if family == "Dirichlet":  # whose slopes are bounded: the middle serves them all
                point[name] = torch.randn(u.shape, generator=random, dtype=u.dtype)
            elif family == "Beta":
                point[name] = torch.full_like(u, step)
            else:
                point[name] = u + step * (width[name] if family == "Normal" else 1.0)
    return points


def _read_off(
    story: Story, given: dict[str, str], points: list[Values]
) -> tuple[Factors, dict[str, tuple[Tensor, Tensor]]]:
    """Returns the posterior and the lines (a, b) through two points, each (*)."""
    slopes = [story.slopes(u)[0] for u in points]
    values = [story.constrain(u) for u in points]
    factors, lines = Factors(story.families, {}, given, story.plates), {}
    for name in sorted(story.families, key=lambda name: name not in given):  # a mean first
        family = FAMILIES[story.families[name]]
        t = [family.position(v[name]) for v in values]
        g = [_own_slope(story, factors, name, v, s)[0] for v, s in zip(values, slopes, strict=True)]
        lines[name] = line(t, g, family.event_dim)
        factors.parameters[name] = family.parameters(*lines[name])
    return factors, lines


def _own_slope(
    story: Story, factors: Factors, name: str, values: Values, slopes: Values
) -> tuple[Tensor, Tensor]:
    """Returns the slope (*) of one site that is to be a line, and the size of what it is made of."""
    g = slopes[name]
    size = g.abs()
    for mean, variance in factors.given.items():
        if name not in (mean, variance):
            continue
        v = _laid_out(story, mean, variance, values[variance])
        if name == mean:
            return g * v, (g * v).abs()
        loc, scale = factors.parameters[mean]  # the mean's own density falls to its variance
        square = ((values[mean] - loc) / scale) ** 2 / v
        g = g - (0.5 * square - 0.5).sum_to_size(v.shape).reshape(g.shape)
        size = size + square.sum_to_size(v.shape).reshape(g.shape)
    return g, size


def _on_lines(
    story: Story,
    factors: Factors,
    lines: dict[str, tuple[Tensor, Tensor]],
    values: Values,
    slopes: Values,
) -> bool:
    """Whether every element is on its line at another point."""
    for name, (a, b) in lines.items():
        t = FAMILIES[story.families[name]].position(values[name])
        g, size = _own_slope(story, factors, name, values, slopes)
        size = 1 + size + a.abs() + (b * t).abs()
        if not ((g - a - b * t).abs() <= tolerance(g) * size).all():
            return False
    return True


def _laid_out(story: Story, mean: str, variance: str, v: Tensor) -> Tensor:
    ndim = story.sites[mean].value.ndim
    return v.reshape(spread(v.shape, story.plates[variance], story.plates[mean], ndim))


def _couplings(story: Story, random: torch.Generator) -> dict[str, str]:
    """Returns the variance of each mean that has one, among sites that move each other's slopes."""
    given: dict[str, str] = {}
    if len(story.sites) == 1:
        return given

    def point() -> Values:
        shapes = {name: site.value.shape for name, site in story.sites.items()}
        dtype = torch.get_default_dtype()
        return {n: torch.randn(s, generator=random, dtype=dtype) for n, s in shapes.items()}

    here, there = point(), point()
    before, _ = story.slopes(here)
    if not all(g.isfinite().all() for g in before.values()):
        _blame(story, given)
    moved = {name: story.slopes({**here, name: there[name]})[0] for name in here}
    for one, other in permutations(here, 2):
        a, b = before[other], moved[one][other]
        if ((a - b).abs() <= tolerance(a) * (1 + a.abs() + b.abs())).all():
            continue
        mean, variance = sorted((one, other), key=lambda name: story.families[name] != "Normal")
        if not _is_mean_of(story, mean, variance) or given.setdefault(mean, variance) != variance:
            raise ValueError(
                f"sites '{one}' ({distribution_name(story.sites[one].fn)}) and '{other}' "
                f"({distribution_name(story.sites[other].fn)}) depend on each other given the data, "
                "so neither is conjugate alone: use exact if both are Gaussian, else nuts or a guide."
            )
    return given


def _is_mean_of(story: Story, mean: str, variance: str) -> bool:
    if (story.families[mean], story.families[variance]) != ("Normal", "InverseGamma"):
        return False
    one, other = story.sites[mean].value, story.sites[variance].value
    shape = spread(other.shape, story.plates[variance], story.plates[mean], one.ndim)
    return shape is not None and all(i in (1, j) for i, j in zip(shape, one.shape, strict=True))


def _blame(story: Story, given: dict[str, str]) -> None:
    """Raises a ``ValueError`` that names the first site whose density is of another form.

    All elements of a latent move together, so that a site's density is that of a single element.
    """
    for name in story.sites:
        if name in given.values():
            continue
        names = [name, given[name]] if name in given else [name]
        T, densities = _along(story, names)
        design = torch.cat([T, torch.ones_like(T[:, :1])], 1)  # (points, statistics + 1)
        for site, f in densities.items():
            y = f.to(design.dtype)
            left = y - design @ torch.linalg.lstsq(design, y[:, None].nan_to_num()).solution[:, 0]
            if not (left.abs() <= tolerance(f) * (1 + y.abs().amax())).all():
                fn = traces.look(story.model, *story.data)[site].fn
                latent = " and ".join(f"'{n}'" for n in names)
                form = "normal-inverse-gamma" if len(names) == 2 else story.families[name]
                raise ValueError(
                    f"the log-density of site '{site}' ({distribution_name(fn)}) has not the form of "
                    f"a {form} density in {latent}: the story is not conjugate, so use nuts, or fit "
                    "with a guide."
                )
    fns = ", ".join(f"'{n}' ({distribution_name(s.fn)})" for n, s in story.sites.items())
    raise ValueError(
        f"the latents {fns} are not conjugate: elements of one depend on each other given the data, "
        "or the story takes them out of torch; use exact if all are Gaussian, else nuts or a guide."
    )


def _along(story: Story, names: list[str]) -> tuple[Tensor, Values]:
    """Returns statistics (points, …) of a latent, or of a mean and its variance, and densities.

    The densities are those of all sites, (points,) each, while the other latents rest.
    """
    random, dtype = torch.Generator().manual_seed(1), torch.get_default_dtype()
    shapes = {name: site.value.shape for name, site in story.sites.items()}
    rest = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    events = {n: shapes[n][len(shapes[n]) - FAMILIES[story.families[n]].event_dim :] for n in names}
    rows, densities = [], []
    for _ in range(12 + events[names[0]].numel()):
        one = {n: 1.5 * torch.randn(e, generator=random, dtype=dtype) for n, e in events.items()}
        u = rest | {name: x.expand(shapes[name]) for name, x in one.items()}
        densities.append(traces.site_log_probs(story.model, story.constrain(u), *story.data))
        theta = story.constrain(one)
        if len(names) == 2:
            mean, v = (theta[name] for name in names)
            rows.append(torch.stack([v.log(), 1 / v, mean / v, mean**2 / v]))
        else:
            rows.append(torch.stack(FAMILIES[story.families[names[0]]].statistics(theta[names[0]])))
    found = {name: torch.stack([row[name] for row in densities]) for name in densities[0]}
    return torch.stack(rows), found
