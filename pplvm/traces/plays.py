r"""A guide whose binary and one-hot latents are chosen by a rule, and the model at these choices.

The rule sees the logits of each latent and returns its value: a draw, its mirror image, its mean, or a
soft value between the states. Log-probabilities are linear in values, and so defined there too.

Shapes: N data, P particles.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pplvm.traces.choices import dependencies
from pplvm.traces.densities import Latents, particles, terms_of
from pplvm.traces.families import distribution_name, elementary, mask_of
from pplvm.traces.sites import in_data_plate, samples, split_terms
from pplvm.traces.sums import listable


class Layer(NamedTuple):
    """A latent of the guide whose values are binary, or one-hot along the last dim."""

    name: str
    logits: Tensor  # (plates…, N, event…), behind (P,) where there are particles
    value: Tensor  # likewise
    binary: bool
    event_dim: int
    num_particles: int
    masks: tuple[Tensor | bool | None, ...]
    earlier: Mapping[str, Tensor]  # draws of the reparameterisable latents before it

    def spread(self, f: Tensor) -> Tensor:
        """Returns (P, N) in a shape that broadcasts with the logits."""
        batch = self.logits.ndim - self.event_dim
        lead = f.shape[:1] if self.num_particles > 1 else ()
        plates = (1,) * (batch - 1 - len(lead))
        return f.reshape(*lead, *plates, f.shape[1], *[1] * self.event_dim)

    def gather(self, value: Tensor) -> Tensor:
        """Returns numbers like the logits as those of each datum, (P, N, features)."""
        value = value if self.num_particles > 1 else value[None]
        data = value.ndim - 1 - self.event_dim
        return value.movedim(data, 1).reshape(value.shape[0], value.shape[data], -1)

    def counted(self, value: Tensor) -> Tensor:
        """Returns numbers like the logits, 0 where the site is masked."""
        own, outer = self.masks
        value = scale_and_mask(value, 1.0, own)
        if isinstance(outer, Tensor):
            outer = outer[(..., *[None] * self.event_dim)]
        return scale_and_mask(value, 1.0, outer)


class Play(NamedTuple):
    """Log-likelihood and divergence at the chosen values, and the layers in order."""

    log_lik: Tensor  # (P, N)
    kl: Tensor  # (P, N)
    layers: tuple[Layer, ...]


Rule = Callable[[int, Layer], Tensor]  # the place of a layer, and the layer but for its value


def play(
    model: Callable,
    guide: Callable,
    rule: Rule,
    *data: Tensor,
    num_particles: int = 1,
    held: bool = False,
    fixed: Mapping[str, Tensor] | None = None,
    kinds: Sequence[str] = ("Bernoulli", "OneHotCategorical"),
) -> Play:
    """Runs both programs at what a rule chooses.

    Args:
        model: The model.
        guide: The guide; reparameterisable latents are drawn as ever.
        rule: Chooses the values of all other latents.
        data: The arguments of both, first axis N.
        num_particles: The number of draws P.
        held: Whether the guide's log-probability of a choice is held fixed: at its own draws, the
            mean of its gradient is zero.
        fixed: Values of reparameterisable latents that are not to be drawn.
        kinds: The distributions that the rule knows.

    Raises:
        ValueError: if a latent is of another kind, or shared by the data, or summed out, or if there
            is none to choose.
    """
    plate = particles(model, guide, *data, num_particles=num_particles)
    choosing = _Choosing(rule, num_particles, fixed or {}, tuple(kinds))
    with choosing, plate:
        trace = poutine.trace(guide).get_trace(*data)
    if choosing.unfit is not None:
        raise ValueError(choosing.unfit)
    if not choosing.layers:
        names = [name for name, _ in samples(trace)]
        raise ValueError(
            f"the guide has no site of {' or '.join(kinds)} (it has {names}): use 'elbo' for sites with "
            "a pathwise gradient."
        )
    summed = listable(model, guide, *data)
    if summed:
        raise ValueError(
            f"site '{min(summed)}' is left to be summed out, which does not go with latents that are "
            "chosen softly or in pairs: sample it in the guide, or use 'score_function'."
        )
    z = Latents(trace, num_particles, plate, moving=True)
    lik, kl = terms_of(model, guide, z, *data)
    if held:
        names = {layer.name for layer in choosing.layers}
        known = dependencies(model, guide, *data)
        for t in (*lik, *kl):
            mixed = names & known.get(t.key, names)
            if mixed and not in_data_plate(t.site):
                raise ValueError(
                    f"site '{t.key[1]}' is outside plate 'data', but depends on '{min(mixed)}' inside, "
                    "while this objective takes each datum alone: observe it inside too, or use "
                    "'score_function'."
                )
        kl = [
            t._replace(value=t.value.detach()) if t.key[0] == "q" and t.key[1] in names else t
            for t in kl
        ]
    parts = [split_terms([(t.site, t.value) for t in terms], num_particles) for terms in (lik, kl)]
    size = len(data[0])
    return Play(parts[0].even(size), parts[1].even(size), tuple(choosing.layers))


class _Choosing(Messenger):
    def __init__(
        self, rule: Rule, num_particles: int, fixed: Mapping[str, Tensor], kinds: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.rule, self.num_particles, self.fixed, self.kinds = rule, num_particles, fixed, kinds
        self.layers: list[Layer] = []
        self.drawn: dict[str, Tensor] = {}
        self.unfit: str | None = None

    def _pyro_post_sample(self, msg: dict) -> None:
        if _is_latent(msg) and msg["fn"].has_rsample:
            self.drawn[msg["name"]] = msg["value"].detach()

    def _pyro_sample(self, msg: dict) -> None:
        if not _is_latent(msg):
            return
        if msg["fn"].has_rsample:
            if msg["name"] in self.fixed:
                msg["value"], msg["done"] = self.fixed[msg["name"]], True
            return
        name, fn, base = msg["name"], msg["fn"], elementary(msg["fn"])
        self.unfit = self.unfit or _unfit(msg, self.kinds)
        if self.unfit is not None:  # raised later: Pyro would add to the sentence here
            return
        logits = base.logits.expand(fn.batch_shape + fn.event_shape)
        masks = (mask_of(fn), msg["mask"])
        binary = distribution_name(fn) == "Bernoulli"
        layer = Layer(
            name, logits, logits, binary, len(fn.event_shape), self.num_particles, masks,
            dict(self.drawn),
        )  # fmt: skip
        value = self.rule(len(self.layers), layer)
        self.layers.append(layer._replace(value=value))
        msg["value"], msg["done"] = value, True
        msg["infer"] = {**msg["infer"], "_soft": True}


def _is_latent(msg: dict) -> bool:
    known = msg["is_observed"] or msg["infer"].get("_deterministic")
    return not (known or poutine.util.site_is_subsample(msg))


def _unfit(msg: dict, kinds: tuple[str, ...]) -> str | None:
    """Says why a latent cannot be chosen, if it cannot."""
    name, kind = msg["name"], distribution_name(msg["fn"])
    if kind not in kinds:
        more = ", or make it OneHotCategorical" if "OneHotCategorical" in kinds else ""
        return (
            f"site '{name}' is {kind}, but this objective serves sites of {' and '.join(kinds)} alone: "
            f"use 'score_function', 'NVIL' or 'vimco'{more}."
        )
    if not in_data_plate(msg):
        return (
            f"site '{name}' is shared by the data, but this objective takes each datum alone: sample it "
            "inside plate('data', N, dim=-1), or use 'score_function'."
        )
    return None
