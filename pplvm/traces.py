r"""Log-densities of a model and a guide at shared latents; the only importer of ``poutine``.

A model takes the data, samples each datum's latents in ``plate("data", N, dim=-1)`` and what
all data share outside it, observes the data and returns them. A guide takes the same
arguments and samples the same latents. Objectives see the tensors made here, and nothing of
Pyro. Shapes: N data, P particles.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

DATA, PARTICLES = "data", "particles"


class Scores(NamedTuple):
    r"""Log-densities at draws :math:`z_{pn} \sim q(z \mid x_n)`."""

    log_p: Tensor  # (P, N): log p(x_n, z_pn)
    log_q: Tensor  # (P, N): log q(z_pn | x_n)


class Latents(NamedTuple):
    """Draws of a guide, opaque to objectives."""

    trace: poutine.Trace
    num_particles: int
    plate: AbstractContextManager  # of the particles, outside every plate of the programs
    moving: bool  # whether gradients flow through the draws

    def detach(self) -> "Latents":
        """Returns the same draws, cut off from what made them."""
        trace = poutine.Trace()
        for name, site in _samples(self.trace):
            trace.add_node(name, **{**site, "value": site["value"].detach()})
        return self._replace(trace=trace, moving=False)


@dataclass(frozen=True)
class Program:
    """A model or guide with what the layer knows of it.

    ``share`` is B/N for a minibatch of B out of N data: each minibatch then carries its share
    of the log-density of what all data share. ``nesting`` is how many plate dims there are.
    """

    program: Callable
    share: float = 1.0
    nesting: int | None = None

    def __call__(self, *data: Tensor) -> Any:
        """Runs the program."""
        if self.share == 1.0:
            return self.program(*data)
        with _Share(self.share):
            return self.program(*data)


class _Share(Messenger):
    """Scales what is outside the data plate."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def _pyro_sample(self, msg: dict) -> None:
        if not any(frame.name == DATA for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.share


# ---- draws and their log-densities ----


def draw(
    model: Callable, guide: Callable, *data: Tensor, num_particles: int = 1, moving: bool = True
) -> Latents:
    """Draws the latents of the guide.

    Args:
        model: The model, asked only how deep its plates nest.
        guide: The guide.
        data: The arguments of both, first axis N.
        num_particles: The number of draws P for each datum.
        moving: Whether gradients flow through the draws; every site must then be
            reparameterisable, otherwise a ``ValueError`` names it. A draw that does not move
            may be discrete.
    """
    if num_particles < 1:
        raise ValueError(f"'num_particles' should be at least 1, got {num_particles}.")
    plate = _particles(model, guide, *data, num_particles=num_particles)
    with torch.set_grad_enabled(moving and torch.is_grad_enabled()), plate:
        trace = poutine.trace(guide).get_trace(*data)
    if moving:
        for name, site in _samples(trace):
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"site '{name}' ({distribution_name(site['fn'])}) has no pathwise gradient: use "
                    "'reweighted_wake_sleep', or a Pyro objective such as TraceGraph_ELBO()."
                )
    return Latents(trace, num_particles, plate, moving)


def weigh(
    model: Callable, guide: Callable, z: Latents, *data: Tensor, per_datum: bool = True
) -> Scores:
    """Scores both programs at the draws of the guide.

    Args:
        model: The model.
        guide: The guide.
        z: The draws.
        data: The arguments of both, first axis N.
        per_datum: One weight for each datum, (P, N), for which a latent outside the data
            plate is a ``ValueError``; else one for the data set as a whole, (P, 1). A story
            without a data plate is one datum.
    """
    p_trace, q_trace = _score_traces(model, guide, z, *data)
    log_p, log_q = (
        _split([(site, _log_prob(name, site)) for name, site in _samples(trace)], z.num_particles)
        for trace in (p_trace, q_trace)
    )
    if log_p.local is None and log_q.local is None or not per_datum:
        return Scores(*(part.whole()[:, None] for part in (log_p, log_q)))
    for name, site in _samples(q_trace):
        if not in_data_plate(site):
            raise ValueError(
                f"site '{name}' is shared by the data, but this objective weighs each datum alone: "
                "sample it inside plate('data', N, dim=-1), or use the objective 'elbo'."
            )
    size = max(part.local.shape[-1] for part in (log_p, log_q) if part.local is not None)
    return Scores(log_p.even(size), log_q.even(size))


def elbo_terms(model: Callable, guide: Callable, z: Latents, *data: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns :math:`\log p(x \mid z)` and the KL divergence of guide from prior, each (P, N).

    The divergence of a site is in closed form where Pyro has one and both programs sample it
    after the same sites; elsewhere it is :math:`\log q(z) - \log p(z)` at the draws. What the
    data share is spread evenly over them.
    """
    p_trace, q_trace = _score_traces(model, guide, z, *data)
    p_sites, q_sites = dict(_samples(p_trace)), dict(_samples(q_trace))
    lik = [(s, _log_prob(n, s)) for n, s in p_sites.items() if s["is_observed"]]
    kl, before, order = [], set(), list(q_sites)
    for name, p in p_sites.items():
        if p["is_observed"]:
            continue
        q = q_sites.pop(name)
        closed = _kl(q, p) if before <= set(order[: order.index(name)]) else None
        if closed is not None:
            kl.append((q, closed))
        else:
            kl += [(q, _log_prob(name, q)), (p, -_log_prob(name, p))]
        before.add(name)
    kl += [(q, _log_prob(name, q)) for name, q in q_sites.items()]  # auxiliary to the guide
    parts = [_split(terms, z.num_particles) for terms in (lik, kl)]
    size = max((part.local.shape[-1] for part in parts if part.local is not None), default=1)
    return parts[0].even(size), parts[1].even(size)


def dream(model: Callable, guide: Callable, *data: Tensor) -> Tensor:
    r"""Returns :math:`\log q(z \mid x)` at one dream :math:`(x, z) \sim p` per datum, (N,).

    What the model returns takes the place of as many of its first arguments.
    """
    with torch.no_grad():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*data)
    x = trace.nodes["_RETURN"]["value"]
    x = x if isinstance(x, tuple) else (x,)
    if not all(isinstance(value, Tensor) for value in x):
        raise ValueError(
            f"the model returned {type(x[0]).__name__}, not the tensors it observes: a dream "
            "takes the place of the data, so end the model with 'return x'."
        )
    z = Latents(trace, 1, nullcontext(), moving=False)
    return weigh(model, guide, z, *x, *data[len(x) :]).log_q.squeeze(0)


# ---- values, for draws and predictions ----


class Site(NamedTuple):
    """One site of a program, as it stood in one run."""

    name: str
    kind: str  # "latent", "observed" or "deterministic"
    fn: Any
    value: Tensor  # (plates…, event…), behind (P,) where there are particles
    plates: tuple[tuple[str, int, int | None], ...]  # (name, size, dim), outermost dim first
    infer: dict


def run(program: Callable, *data: Tensor, dream: bool = False) -> dict[str, Site]:
    """Runs a program once, without gradient, and returns its sites in order.

    With ``dream``, what the program observes is drawn too.
    """
    with torch.no_grad():
        program = poutine.uncondition(program) if dream else program
        return _sites(poutine.trace(program).get_trace(*data))


def replay(
    model: Callable, values: dict[str, Tensor], *data: Tensor, dream: bool = False
) -> dict[str, Site]:
    """Runs a model at draws ``values[name]`` of shape (P, plates…, event…), without gradient.

    Every site's value comes back in that shape; with ``dream`` the observed are drawn anew.
    """
    trace, prototypes = _replay(model, values, *data, dream=dream)
    return _sites(trace, prototypes)


def pointwise(model: Callable, values: dict[str, Tensor], *data: Tensor) -> dict[str, Tensor]:
    """Returns the log-density of each observed site at draws as in :func:`replay`.

    Of shape (P, N) in the data plate, elsewhere (P, plates…).
    """
    trace, prototypes = _replay(model, values, *data)
    out = {}
    for name, site in _samples(trace):
        if not site["is_observed"]:
            continue
        term = _log_prob(name, site)
        if in_data_plate(site):
            out[name] = _split([(site, term)], num_particles=0).local
        else:
            out[name] = term.reshape(len(term), *(size for _, size, _ in prototypes[name].plates))
    return out


def log_joint(
    model: Callable, values: dict[str, Tensor], *data: Tensor, per_datum: bool
) -> Tensor:
    """Returns the joint log-density at latents ``values[name]`` (plates…, event…), with gradient.

    Of shape (N,) for each datum, else () for all together.
    """
    trace, _ = _replay(model, {n: v[None] for n, v in values.items()}, *data, grad=True)
    split = _split([(site, _log_prob(name, site)) for name, site in _samples(trace)], 0)
    return split.local[0] if per_datum else split.whole()[0]


def posterior(
    model: Callable, guide: Callable, *data: Tensor, num_particles: int
) -> dict[str, Site]:
    """Draws the latents of a guide, values (P, plates…, event…)."""
    prototypes = run(guide, *data)
    depth = max(_depth(sites.values()) for sites in (prototypes, run(model, *data)))
    with torch.no_grad(), pyro.plate(PARTICLES, num_particles, dim=-1 - depth):
        return _sites(poutine.trace(guide).get_trace(*data), prototypes)


def in_data_plate(site: dict | Site) -> bool:
    """Whether a site belongs to a datum rather than to all of them."""
    if isinstance(site, Site):
        return any(name == DATA for name, _, _ in site.plates)
    return any(frame.name == DATA for frame in site["cond_indep_stack"])


def distribution_name(fn: Any) -> str:
    """Returns the name of a distribution, without the wrappers around it."""
    while hasattr(fn, "base_dist"):
        if type(fn).__name__ == "TransformedDistribution":
            break
        fn = fn.base_dist
    return type(fn).__name__


def closed_kl(q: Any, p: Any) -> Tensor | None:
    """Returns the divergence of two distributions if Pyro has it in closed form, else None."""
    if distribution_name(q) == Delta.__name__:
        return None  # Pyro's divergence of a Delta forgets its log_density
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def nesting(model: Callable, guide: Callable | None, *data: Tensor) -> int:
    """Returns how many dims the plates of both programs take."""
    known = [getattr(program, "nesting", None) for program in (model, guide)]
    if guide is not None and known[0] is not None:
        return known[0]
    programs = [model] if guide is None else [model, guide]
    return max(_depth(run(program, *data).values()) for program in programs)


def first_non_finite(model: Callable, guide: Callable, *data: Tensor) -> str | None:
    """Returns the first site whose value or log-density is NaN or infinite, if any."""
    with torch.no_grad(), pyro.validation_enabled(False):
        q = poutine.trace(guide).get_trace(*data)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*data)
        for trace in (q, p):
            for name, site in _samples(trace):
                if not all(torch.isfinite(t).all() for t in (site["value"], _log_prob(name, site))):
                    return name
    return None


# ---- within ----


def _particles(
    model: Callable, guide: Callable, *data: Tensor, num_particles: int
) -> AbstractContextManager:
    if num_particles == 1:
        return nullcontext()
    return pyro.plate(PARTICLES, num_particles, dim=-1 - nesting(model, guide, *data))


def _samples(trace: poutine.Trace) -> Iterator[tuple[str, dict]]:
    """Yields the sites that have a density: neither plates nor deterministic ones."""
    for name, site in trace.nodes.items():
        if (
            site["type"] == "sample"
            and not poutine.util.site_is_subsample(site)
            and not site["infer"].get("_deterministic")
        ):
            yield name, site


def _score_traces(
    model: Callable, guide: Callable, z: Latents, *data: Tensor
) -> tuple[poutine.Trace, poutine.Trace]:
    with z.plate:
        p = poutine.trace(poutine.replay(model, trace=z.trace)).get_trace(*data)
        # Draws that move carry their own density; at fixed ones the guide is run again, lest a
        # gradient flow from one latent to the parameters of the next.
        q = z.trace if z.moving else poutine.trace(poutine.replay(guide, trace=z.trace)).get_trace(*data)
    latents = {name for name, site in _samples(p) if not site["is_observed"]}
    drawn = {n for n, site in _samples(q) if not site["infer"].get("is_auxiliary")}
    if latents != drawn:
        raise ValueError(mismatch(latents, drawn))
    return p, q


def mismatch(latents: set[str], drawn: set[str]) -> str:
    """Returns the sentence about sites that one program has and the other lacks."""
    if drawn - latents:
        name = min(drawn - latents)
        return (
            f"the guide samples site '{name}', which the model lacks (its latents: "
            f"{sorted(latents)}): rename it, or mark it infer={{'is_auxiliary': True}}."
        )
    name = min(latents - drawn)
    return (
        f"the model samples site '{name}', which the guide lacks (it has {sorted(drawn)}): "
        "sample it in the guide too, or observe it."
    )


def _log_prob(name: str, site: dict) -> Tensor:
    """Returns the log-density of a site, masked and scaled, of its batch shape."""
    fn, value = site["fn"], site["value"]
    if site["is_observed"] and is_validation_enabled():
        check_support(name, fn, value)
    return scale_and_mask(
        fn.log_prob(value, *site["args"], **site["kwargs"]), site["scale"], site["mask"]
    )


def check_support(name: str, fn: Any, value: Tensor) -> None:
    """Raises a ``ValueError`` if data lie outside the support of their likelihood."""
    if not torch.isfinite(value).all():
        raise ValueError(f"site '{name}' observes NaN or infinite data: drop, impute or mask them.")
    try:
        inside = fn.support.check(value)
    except (NotImplementedError, AttributeError):
        return
    if not inside.all():
        wrong = value[~inside] if inside.shape == value.shape else value
        raise ValueError(
            f"site '{name}' observes {wrong.flatten()[0].item():g}, outside the support of "
            f"{distribution_name(fn)} ({_support_name(fn.support)}): transform the data, or choose "
            "another likelihood."
        )


def _support_name(support: Any) -> str:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    name = str(support).removesuffix("()")
    return {"Boolean": "0 or 1", "IntegerGreaterThan(lower_bound=0)": "counts 0, 1, …"}.get(name, name)


def _kl(q: dict, p: dict) -> Tensor | None:
    """Returns the closed form of a site's divergence, or None if there is none."""
    same_mask = q["mask"] is p["mask"]
    same_scale = q["scale"] is p["scale"] or not (
        isinstance(q["scale"], Tensor) or isinstance(p["scale"], Tensor) or q["scale"] != p["scale"]
    )
    if not (same_mask and same_scale):
        return None
    kl = closed_kl(q["fn"], p["fn"])
    return None if kl is None else scale_and_mask(kl, q["scale"], q["mask"])


class _Split(NamedTuple):
    local: Tensor | None  # (P, N)
    shared: Tensor  # (P,)

    def even(self, size: int) -> Tensor:
        """Returns (P, N) with the shared part spread evenly over N data."""
        if self.local is None:
            return (self.shared / size)[:, None].expand(-1, size)
        if self.shared is _ZERO:
            return self.local
        return self.local + self.shared[:, None] / size

    def whole(self) -> Tensor:
        """Returns (P,): the sum over the data."""
        return self.shared if self.local is None else self.shared + self.local.sum(1)


_ZERO = torch.zeros(1)


def _split(terms: list[tuple[dict, Tensor]], num_particles: int) -> _Split:
    """Sums each term over all its dims but those of the particles and the data.

    A lone draw has no particle dim in its terms yet.
    """
    local, shared = None, _ZERO
    for site, term in terms:
        if num_particles == 1:
            term = term[None]
        if in_data_plate(site):
            if term.ndim > 2:
                term = term.sum(tuple(range(1, term.ndim - 1)))
            local = term if local is None else local + term  # (P, N)
        else:
            if term.ndim > 1:
                term = term.sum(tuple(range(1, term.ndim)))
            shared = term if shared is _ZERO else shared + term  # (P,)
    return _Split(local, shared)


def _sites(trace: poutine.Trace, prototypes: dict[str, Site] | None = None) -> dict[str, Site]:
    """Returns the sites of a trace; those run under particles need prototypes from one without."""
    sites = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or poutine.util.site_is_subsample(node):
            continue
        deterministic = node["infer"].get("_deterministic")
        kind = "deterministic" if deterministic else "observed" if node["is_observed"] else "latent"
        frames = [f for f in node["cond_indep_stack"] if f.vectorized and f.name != PARTICLES]
        frames.sort(key=lambda frame: frame.dim)
        value = node["value"]
        if prototypes is not None:
            shape = prototypes[name].value.shape
            size = next(f.size for f in node["cond_indep_stack"] if f.name == PARTICLES)
            own = value.numel() == size * shape.numel()  # else the particles share it, as data
            value = value.reshape(size, *shape) if own else value.reshape(shape).expand(size, *shape)
        elif not deterministic:
            event = value.shape[value.ndim - node["fn"].event_dim :]
            value = value.reshape((*(f.size for f in frames), *event))
        plates = tuple((f.name, f.size, f.dim) for f in frames)
        sites[name] = Site(name, kind, node["fn"], value, plates, node["infer"])
    return sites


def _replay(
    model: Callable,
    values: dict[str, Tensor],
    *data: Tensor,
    dream: bool = False,
    grad: bool = False,
) -> tuple[poutine.Trace, dict[str, Site]]:
    """Returns the trace of a model at draws, under particles, and one without them."""
    prototypes = run(model, *data, dream=dream)
    depth = _depth(prototypes.values())
    fixed = poutine.Trace()
    for name in values.keys() & prototypes.keys():
        sizes = {dim: size for _, size, dim in prototypes[name].plates}
        batch = tuple(sizes.get(dim, 1) for dim in range(-depth, 0))
        value = values[name]
        value = value.reshape(len(value), *batch, *value.shape[1 + len(sizes) :])
        fixed.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    model = poutine.uncondition(model) if dream else model
    num_particles = len(next(iter(values.values())))
    with torch.set_grad_enabled(grad), pyro.plate(PARTICLES, num_particles, dim=-1 - depth):
        return poutine.trace(poutine.replay(model, trace=fixed)).get_trace(*data), prototypes


def _depth(sites: Iterable[Site]) -> int:
    """Returns how many dims the plates of these sites take."""
    return max((-dim for site in sites for _, _, dim in site.plates), default=0)
