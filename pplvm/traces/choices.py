r"""Latents of a guide without a pathwise gradient, and what each of them has a part in.

With :math:`f = \log p(x, z) - \log q(z \mid x)` a sum of terms, the gradient of the ELBO by way of
the draws of such a latent :math:`z_i` is

.. math:: \mathbb{E}\,\Big[\nabla_\phi \log q(z_i \mid \cdot)
    \textstyle\sum_{j \,:\, f_j \text{ depends on } z_i} f_j\Big],

its *signal*: the other terms have no part in it. A few of these latents may be listed instead, all
their states in turn, each with its probability as its weight.

References:
    | Gradient Estimation Using Stochastic Computation Graphs (Schulman et al., 2015)
    | https://arxiv.org/abs/1506.05254

    | Black Box Variational Inference (Ranganath et al., 2014), on Rao-Blackwellization
    | https://arxiv.org/abs/1401.0118

Shapes: N data, P particles, K joint states of the listed latents, S = PK.
"""

import itertools
import operator
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pplvm.traces.densities import Latents, draw, terms_of
from pplvm.traces.families import elementary, mask_of
from pplvm.traces.following import Following, MarkingDraws
from pplvm.traces.products import log_prob
from pplvm.traces.sites import (
    DATA,
    ZERO,
    Split,
    in_data_plate,
    look,
    samples,
    site_log_prob,
    split_terms,
)

# Joint states of the listed latents, each of which is one more particle; and units of one latent.
MOST_STATES, MOST_UNITS = 256, 16
_REDRAWN = 3  # times that a latent is drawn anew to see what changes
LISTABLE = ("Bernoulli", "Categorical", "OneHotCategorical")


class Choice(NamedTuple):
    """A latent of the guide without a pathwise gradient."""

    name: str
    log_q: Tensor  # (S, N), or (S, 1) where the data share it: its own log-density
    signal: Tensor  # in that shape: the terms that depend on it, weighted where states are listed
    value: Tensor  # (S, N, features) or (S, 1, features)


class Integrand(NamedTuple):
    """What the ELBO is the mean of, and the latents that are accounted for by their densities."""

    log_lik: Tensor  # (S, N)
    kl: Tensor  # (S, N)
    weight: Tensor | None  # (S, N) or (S, 1): of the listed states, differentiable
    choices: tuple[Choice, ...]


def listed_states(guide: Callable, *data: Tensor) -> Mapping[str, int]:
    """Returns the latents that can be listed, smallest first, with their numbers of states.

    The product of these numbers is at most :data:`MOST_STATES`. Latents in plates other than that of
    the data, and those that a mask leaves out for some data, are not listed.
    """
    known = getattr(guide, "few", None)
    if known is not None:
        return known
    sizes = {}
    for name, site in look(guide, *data).items():
        if site.kind != "latent" or any(plate != DATA for plate, _, _ in site.plates):
            continue
        if site.mask is None and mask_of(site.fn) is None:
            size = _num_states(site.fn)
            if size is not None and size > 1:
                sizes[name] = size
    found: dict[str, int] = {}
    for name, size in sorted(sizes.items(), key=lambda item: item[1]):
        if prod(found.values()) * size <= MOST_STATES:
            found[name] = size
    return found


def draw_choices(
    model: Callable,
    guide: Callable,
    *data: Tensor,
    num_particles: int = 1,
    listed: Mapping[str, int] | None = None,
) -> Latents:
    """Draws the latents of the guide, pathwise or not, and lists those that are to be listed.

    Particle pK + k then has draw p of the others and joint state k. Latents that come before any
    listed one are the same for all states.
    """
    if not listed:
        return draw(model, guide, *data, num_particles=num_particles, scored=True)
    K = prod(listed.values())
    turns = _Turns(listed, num_particles)
    z = draw(model, guide, *data, num_particles=num_particles * K, scored=True, within=turns)
    return z._replace(listed=frozenset(listed), num_states=K)


def integrand(
    model: Callable,
    guide: Callable,
    z: Latents,
    *data: Tensor,
    kl_weight: float = 1.0,
    closed: bool = True,
) -> Integrand:
    """Scores both programs at draws of :func:`draw_choices`.

    Args:
        model: The model.
        guide: The guide.
        z: The draws.
        data: The arguments of both, first axis N.
        kl_weight: The weight of the divergence in the signals; what is returned of it has none.
        closed: Whether divergences that have a closed form have no part in the signals.
    """
    S, known = z.num_particles, dependencies(model, guide, *data)
    lik, kl = terms_of(model, guide, z, *data, closed=closed)
    found = {n: site for n, site in samples(z.trace) if not site["fn"].has_rsample}
    for t in (*lik, *kl):
        blend = [n for n in z.listed if in_data_plate(found[n]) and n in known.get(t.key, {n})]
        if blend and not in_data_plate(t.site):
            raise ValueError(
                f"site '{t.key[1]}' is outside plate 'data', but depends on '{min(blend)}' inside, "
                "which cannot be enumerated then: leave 'rao_blackwell' off, or observe it inside too."
            )
    log_q = {name: _score(site, S) for name, site in found.items()}
    # At its own draws, the gradient of log q by itself has mean zero.
    kl = [
        t._replace(value=t.value.detach()) if t.key[0] == "q" and t.key[1] in found else t
        for t in kl
    ]
    weight = sum(log_q[name] for name in z.listed).exp() if z.listed else None
    signed = [*lik, *(t._replace(value=-kl_weight * t.value) for t in kl)]
    # What all data share may depend on one datum's latent: then the terms of all data do.
    crossing = frozenset().union(
        *(
            known.get(("own", name), found.keys())
            for name, site in samples(z.trace)
            if not in_data_plate(site)
        )
    )
    choices = []
    for name, site in found.items():
        if name in z.listed:
            continue
        mine = [t for t in signed if name in known.get(t.key, {name})]
        split = split_terms([(t.site, t.value) for t in mine], S)
        local = in_data_plate(site)
        signal = _signal(split, local and name not in crossing, weight, len(data[0])).detach()
        signal = signal.expand(-1, len(data[0])) if local else signal
        choices.append(Choice(name, log_q[name], signal, _features(site, S)))
    parts = [split_terms([(t.site, t.value) for t in terms], S) for terms in (lik, kl)]
    size = max((part.local.shape[-1] for part in parts if part.local is not None), default=1)
    return Integrand(parts[0].even(size), parts[1].even(size), weight, tuple(choices))


def dependencies(
    model: Callable, guide: Callable, *data: Tensor
) -> Mapping[tuple[str, str], frozenset[str]]:
    """Returns the latents without a pathwise gradient that each term depends on, by its key.

    By way of later latents too. ("own", name) is what the density of a latent of the guide depends
    on besides itself. What is not there depends on all.
    """
    known = getattr(model, "depends", None)
    if known is not None:
        return known
    following = Following()
    quiet = pyro.validation_enabled(False)  # checks of values look at them too
    with torch.no_grad(), torch.random.fork_rng(), quiet, following, MarkingDraws(following):
        z = draw(model, guide, *data, scored=True)
        terms = [
            t
            for closed in (True, False)
            for part in terms_of(model, guide, z, *data, closed=closed)
            for t in part
        ]
        own = {n: following.of(site_log_prob(n, site)) for n, site in samples(z.trace)}
    found = {t.key: following.of(t.value) for t in terms if t.key[0] != "sum"}
    found |= {("own", name): names - {name} for name, names in own.items()}

    def grown(names: frozenset[str]) -> frozenset[str]:
        more = names.union(*(own.get(name, ()) for name in names))
        return names if more == names else grown(more)

    depends = {key: grown(names | following.seen) for key, names in found.items()}
    return {} if _hidden(model, guide, z, depends, *data) else depends


def _hidden(model: Callable, guide: Callable, z: Latents, depends: Mapping, *data: Tensor) -> bool:
    """Whether a term changes with a latent that it was not seen to depend on.

    As by way of ``torch.jit`` or ``torch.vmap``, which tensors cannot be followed through.
    """
    z = z.detach()
    with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
        state = torch.random.get_rng_state()

        def values(at: Latents) -> dict[tuple[str, str], Tensor]:
            with torch.random.fork_rng():
                torch.random.set_rng_state(state)
                lik, kl = terms_of(model, guide, at, *data, closed=False)
            return {t.key: t.value for t in (*lik, *kl)}

        known = values(z)
        for name, site in samples(z.trace):
            if site["fn"].has_rsample:
                continue
            for _ in range(_REDRAWN):
                other = z.trace.copy()
                other.nodes[name] = {**other.nodes[name], "value": site["fn"].sample()}
                for key, value in values(z._replace(trace=other)).items():
                    unseen = name not in depends.get(key, {name}) and key != ("q", name)
                    if unseen and not torch.equal(value, known[key]):
                        return True
    return False


def own_log_q(z: Latents) -> Tensor:
    """Returns the log-density of the draws without a pathwise gradient by themselves, (P, N)."""
    found = [site for _, site in samples(z.trace) if not site["fn"].has_rsample]
    return sum(_score(site, z.num_particles) for site in found)


class _Turns(Messenger):
    """Lets the joint states of some latents take turns along the particles."""

    def __init__(self, listed: Mapping[str, int], num_particles: int) -> None:
        super().__init__()
        self.listed, self.num_particles = listed, num_particles
        self.num_states, self.begun = prod(listed.values()), False
        passed = itertools.accumulate(listed.values(), operator.mul, initial=1)
        self.stride = dict(zip(listed, passed, strict=False))

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] not in self.listed:
            return
        self.begun, fn = True, msg["fn"]
        states = _states(fn)
        turn = torch.arange(self.num_particles * self.num_states, device=states.device)
        values = states[turn // self.stride[msg["name"]] % len(states)]  # (S, event…)
        batch = (len(values), *[1] * (len(fn.batch_shape) - 1))
        values = values.reshape(batch + fn.event_shape)
        msg["value"], msg["done"] = values.expand(fn.batch_shape + fn.event_shape), True

    def _pyro_post_sample(self, msg: dict) -> None:
        fixed = msg["is_observed"] or msg["infer"].get("_deterministic")
        if self.begun or fixed or poutine.util.site_is_subsample(msg):
            return
        alike = msg["value"].unflatten(0, (self.num_particles, self.num_states))
        msg["value"] = alike[:, :1].expand_as(alike).flatten(0, 1)


def _num_states(fn: Any) -> int | None:
    """Returns how many values a distribution has for one datum, None if they cannot be listed."""
    base = elementary(fn)
    if type(base).__name__ not in LISTABLE:
        return None
    each = 2 if type(base).__name__ == "Bernoulli" else base.logits.shape[-1]
    units = fn.event_shape.numel() // base.event_shape.numel()
    if units > 1 and base.event_shape:
        return None
    return each**units if units <= MOST_UNITS else None


def _states(fn: Any) -> Tensor:
    """Returns the values of a distribution for one datum, (K, event…)."""
    base = elementary(fn)
    each = base.enumerate_support(expand=False).reshape(-1, *base.event_shape)
    units = fn.event_shape.numel() // base.event_shape.numel()
    joint = torch.cartesian_prod(*[each] * units) if units > 1 else each
    return joint.reshape(-1, *fn.event_shape)


def _score(site: dict, num_particles: int) -> Tensor:
    """Returns a site's own log-density: masked, but not scaled, for a scale weighs costs alone."""
    term = scale_and_mask(log_prob(site["fn"], site["value"]), 1.0, site["mask"])
    split = split_terms([(site, term)], num_particles)
    return split.shared[:, None] if split.local is None else split.local


def _signal(split: Split, local: bool, weight: Tensor | None, size: int) -> Tensor:
    """Returns the sum of terms for each datum, what the data share included, or for all of them."""
    if not local:
        each = split.even(size)
        return (each if weight is None else weight * each).sum(1, keepdim=True)
    shared = split.shared[:, None]
    total = shared if split.local is None else split.local
    if split.local is not None and split.shared is not ZERO:
        total = total + shared
    return total if weight is None else weight * total


def _features(site: dict, num_particles: int) -> Tensor:
    """Returns the value of a site as numbers of each datum, (P, N, features)."""
    fn, value = site["fn"], site["value"].detach()
    value = value.expand(fn.batch_shape + fn.event_shape)
    value = (value if num_particles > 1 else value[None]).to(torch.get_default_dtype())
    if not in_data_plate(site):
        return value.reshape(num_particles, 1, -1)
    last = value.ndim - 1 - len(fn.event_shape)  # that of the data
    return value.movedim(last, 1).flatten(2) if value.ndim > 2 else value[..., None]
