"""Programs, and the sites of one run: where they are and what they are worth."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pplvm.traces.families import distribution_name, soft_log_prob
from pplvm.traces.products import log_prob

DATA, PARTICLES = "data", "particles"


@dataclass(frozen=True)
class Program:
    """A model or guide with what the layer knows of it.

    ``share`` is B/N for a minibatch of B out of N data: each minibatch then carries its share
    of the log-density of what all data share. ``nesting`` is how many plate dims there are,
    ``listed`` are the discrete latents that the guide leaves to be summed out, and ``even`` says
    whether loops over time may be run for all their later steps at once. ``depends`` says which
    latents without a pathwise gradient each log-density depends on, ``few`` which of these have
    states that can be listed.
    """

    program: Callable
    share: float = 1.0
    nesting: int | None = None
    listed: frozenset[str] | None = None
    even: bool = False
    depends: Mapping[tuple[str, str], frozenset[str]] | None = None
    few: Mapping[str, int] | None = None

    def __call__(self, *data: Tensor) -> Any:
        """Runs the program."""
        if self.share == 1.0:
            return self.program(*data)
        with _Share(self.share):
            return self.program(*data)


class Site(NamedTuple):
    """One site of a program, as it stood in one run."""

    name: str
    kind: str  # "latent", "observed" or "deterministic"
    fn: Any
    value: Tensor  # (plates…, event…), behind (P,) where there are particles
    plates: tuple[tuple[str, int, int | None], ...]  # (name, size, dim), outermost dim first
    infer: dict
    mask: Tensor | bool | None = None  # where it counts, as ``pyro.poutine.mask`` has it


def run(program: Callable, *data: Tensor, dream: bool = False) -> dict[str, Site]:
    """Runs a program once, without gradient, and returns its sites in order.

    With ``dream``, what the program observes is drawn too.
    """
    with torch.no_grad(), Dreaming() if dream else nullcontext():
        return sites_of(poutine.trace(program).get_trace(*data))


def declares_parameters(program: Callable, *data: Tensor) -> bool:
    """Whether a program calls ``pyro.param`` or ``pyro.module``; asked in a store of its own."""
    with torch.no_grad(), torch.random.fork_rng(), pyro.get_param_store().scope():
        trace = poutine.trace(program, param_only=True).get_trace(*data)
    return bool(trace.nodes.keys() - {"_INPUT", "_RETURN"})


def look(program: Callable, *data: Tensor) -> dict[str, Site]:
    """Runs a program for its sites' shapes and kinds alone: the random state stays as it was."""
    with torch.random.fork_rng():
        return run(program, *data)


def in_data_plate(site: dict | Site) -> bool:
    """Whether a site belongs to a datum rather than to all of them."""
    if isinstance(site, Site):
        return any(name == DATA for name, _, _ in site.plates)
    return any(frame.name == DATA for frame in site["cond_indep_stack"])


def factorises(*programs: Callable, data: tuple[Tensor, ...]) -> bool:
    """Whether the programs have a density for each datum alone, with nothing that data share."""
    sites = [site for program in programs for site in look(program, *data).values()]
    return all(in_data_plate(site) for site in sites if site.kind != "deterministic")


def misused_plate(program: Callable, *data: Tensor) -> tuple[str, str] | None:
    """Returns a site in the plate of the data, and how that is subsampled or looped over, if so."""
    with torch.no_grad(), torch.random.fork_rng():
        trace = poutine.trace(program).get_trace(*data)
    for name, site in samples(trace):
        for frame in site["cond_indep_stack"]:
            if frame.name == DATA and not frame.vectorized:
                return name, "a loop"
            if frame.name == DATA and frame.full_size not in (None, frame.size):
                return name, "subsampled"
    return None


def nesting(model: Callable, guide: Callable | None, *data: Tensor) -> int:
    """Returns how many dims the plates of both programs take."""
    known = [getattr(program, "nesting", None) for program in (model, guide)]
    if guide is not None and known[0] is not None:
        return known[0]
    programs = [model] if guide is None else [model, guide]
    return max(depth_of(run(program, *data).values()) for program in programs)


def continuous_part(program: Callable) -> Callable:
    """Returns a program whose discrete latents are hidden from whoever looks at it."""
    return poutine.block(program, hide_fn=_is_discrete_latent)


def _is_discrete_latent(site: dict) -> bool:
    if site["type"] != "sample" or site["is_observed"] or poutine.util.site_is_subsample(site):
        return False
    return site["fn"].support.is_discrete


class SupportError(ValueError):
    """Data that no parameters could have made."""


def check_support(name: str, fn: Any, value: Tensor) -> None:
    """Raises a ``ValueError`` if data lie outside the support of their likelihood."""
    if not torch.isfinite(value).all():
        raise SupportError(
            f"site '{name}' observes NaN or infinite data: drop them, impute them, or fill them in "
            "and mask them."
        )
    try:
        support = fn.support
        inside = support.check(value)
    except (NotImplementedError, AttributeError):
        return
    if not inside.all():
        while hasattr(support, "base_constraint"):  # which pixel it is, not which image
            support = support.base_constraint
        inside = support.check(value)
        wrong = value[~inside] if inside.shape == value.shape else value
        raise SupportError(
            f"site '{name}' observes {wrong.flatten()[0].item():g}, outside the support of "
            f"{distribution_name(fn)} ({_support_name(fn.support)}): transform the data, or choose "
            "another likelihood."
        )


def _support_name(support: Any) -> str:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    name = str(support).removesuffix("()")
    return {"Boolean": "0 or 1", "IntegerGreaterThan(lower_bound=0)": "counts 0, 1, …"}.get(
        name, name
    )


class _Share(Messenger):
    """Scales what is outside the data plate."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def _pyro_sample(self, msg: dict) -> None:
        if not any(frame.name == DATA for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.share


class Dreaming(Messenger):
    """Draws what is observed, unlike ``poutine.uncondition`` sparing what is deterministic."""

    def _pyro_sample(self, msg: dict) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False
            msg["infer"]["was_observed"] = True


def samples(trace: poutine.Trace) -> Iterator[tuple[str, dict]]:
    """Yields the sites that have a density: neither plates nor deterministic ones."""
    for name, site in trace.nodes.items():
        if (
            site["type"] == "sample"
            and not poutine.util.site_is_subsample(site)
            and not site["infer"].get("_deterministic")
        ):
            yield name, site


def site_log_prob(name: str, site: dict, masked: bool = True) -> Tensor:
    """Returns the log-density of a site, scaled and, unless told otherwise, masked.

    It has the site's batch shape.
    """
    fn, value = site["fn"], site["value"]
    if site["is_observed"] and is_validation_enabled():
        check_support(name, fn, value)
    averages = site["infer"].get("_statistics")
    average = None if averages is None else averages.log_prob(fn)
    if site["infer"].get("_soft"):
        return scale_and_mask(soft_log_prob(fn, value), site["scale"], site["mask"])
    if average is not None:  # which a mask has no part in any more
        batch = torch.broadcast_shapes(fn.batch_shape, average.shape)
        return scale_and_mask(average, site["scale"], None).expand(batch)
    term = log_prob(fn, value)
    return scale_and_mask(term, site["scale"], site["mask"] if masked else None)


class Split(NamedTuple):
    """A log-density in two parts: of each datum, and of what the data share."""

    local: Tensor | None  # (P, N)
    shared: Tensor  # (P,)

    def even(self, size: int) -> Tensor:
        """Returns (P, N) with the shared part spread evenly over N data."""
        if self.local is None:
            return (self.shared / size)[:, None].expand(-1, size)
        if self.shared is ZERO:
            return self.local
        return self.local + self.shared[:, None] / size

    def whole(self) -> Tensor:
        """Returns (P,): the sum over the data."""
        if self.local is None:
            return self.shared
        whole = self.local.sum(1)
        return whole if self.shared is ZERO else whole + self.shared  # zero is on the CPU


ZERO = torch.zeros(1)  # nothing shared yet: compared by identity, never added


def split_terms(terms: list[tuple[dict, Tensor]], num_particles: int) -> Split:
    """Sums each term over all its dims but those of the particles and the data.

    A lone draw has no particle dim in its terms yet.
    """
    local, shared = None, ZERO
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
            shared = term if shared is ZERO else shared + term  # (P,)
    return Split(local, shared)


def sites_of(trace: poutine.Trace, prototypes: dict[str, Site] | None = None) -> dict[str, Site]:
    """Returns the sites of a trace; those run under particles need prototypes from one without."""
    sites = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or poutine.util.site_is_subsample(node):
            continue
        deterministic = node["infer"].get("_deterministic")
        observed = node["is_observed"] or node["infer"].get("was_observed")
        kind = "deterministic" if deterministic else "observed" if observed else "latent"
        frames = [f for f in node["cond_indep_stack"] if f.vectorized and f.name != PARTICLES]
        frames.sort(key=lambda frame: frame.dim)
        value = node["value"]
        if prototypes is not None:
            shape = prototypes[name].value.shape
            size = next(f.size for f in node["cond_indep_stack"] if f.name == PARTICLES)
            own = value.numel() == size * shape.numel()  # else the particles share it, as data
            value = (
                value.reshape(size, *shape) if own else value.reshape(shape).expand(size, *shape)
            )
        elif not deterministic:
            cut = value.ndim - node["fn"].event_dim
            try:
                batch = torch.broadcast_shapes(value.shape[:cut], node["fn"].batch_shape)
                value = value.expand(batch + value.shape[cut:])  # data may have been broadcast
                value = value.reshape((*(f.size for f in frames), *value.shape[len(batch) :]))
            except RuntimeError:
                pass  # not what its plates say: contract.check has a sentence for that
        plates = tuple((f.name, f.size, f.dim) for f in frames)
        sites[name] = Site(name, kind, node["fn"], value, plates, node["infer"], node["mask"])
    return sites


def depth_of(sites: Iterable[Site]) -> int:
    """Returns how many dims the plates of these sites take."""
    return max((-dim for site in sites for _, _, dim in site.plates), default=0)
