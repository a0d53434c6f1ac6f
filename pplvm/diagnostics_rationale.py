r"""What a rationale comes to: how many words it has, and how well they tell the class.

.. math:: p(y \mid x) \approx \tfrac{1}{P} \textstyle\sum_p p(y \mid x, z_p),
    \qquad z_p \sim q(z \mid x),

beside a classifier that reads the whole sentence. The guide is not to see the class, or it would
tell the model what that is to predict.

Shapes: N sentences, T words, C classes, P particles.
"""

__all__ = ["Rationales", "accuracy", "class_log_probs", "num_classes", "rationale_summary"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pplvm import traces
from pplvm.batches import as_tensors, check_count, check_data
from pplvm.traces import Site


class Rationales(NamedTuple):
    """Which words a guide selects, and what a model predicts from them.

    Accuracies are shares of the sentences whose most probable class is y.
    """

    share: float  # of all words, that is selected, expected under the guide
    accuracy: float  # at p(y | x), averaged over draws of the rationale
    majority: float  # of the class that is the most probable one at most draws
    full: float | None  # of the classifier that reads whole sentences
    selected: Tensor  # (N, T): q(z = 1 | x), 0 beyond the end
    predicted: Tensor  # (N, C): p(y | x)
    y: Tensor  # (N,)
    lengths: Tensor  # (N,)

    def __str__(self) -> str:
        """Returns the numbers in one line."""
        full = "" if self.full is None else f", of whole sentences {self.full:.3f}"
        return (
            f"{100 * self.share:.1f} % of the words selected, accuracy {self.accuracy:.3f} "
            f"(majority of draws {self.majority:.3f}{full})"
        )


def rationale_summary(
    model: Callable,
    guide: Callable,
    y: Tensor,
    x: Tensor,
    lengths: Tensor,
    *,
    full: Callable | None = None,
    num_draws: int = 50,
    seed: int = 0,
) -> Rationales:
    """Summarises the rationales that a guide selects, and what the model makes of them.

    Args:
        model: A story with a latent "z" of events (T,) that observes a categorical "y", such as
            that of :mod:`pplvm.models.rationale`; or that of a fit.
        guide: Its guide, which should not look at y.
        y: The class of each sentence, (N,).
        x: Words, (N, T).
        lengths: How many words each sentence has, (N,).
        full: A story of the same arguments without latents, such as
            :class:`pplvm.models.rationale.Classifier`, once it is learned.
        num_draws: The number of draws P of each rationale; an arbitrary default.
        seed: Of the draws.

    Raises:
        ValueError: if the programs have other sites, or the data are not what they take.
    """
    check_count("num_draws", num_draws)
    check_data((y, x, lengths))
    y, x, lengths = as_tensors((y, x, lengths), model, guide)
    with torch.no_grad():
        C = num_classes(model, y, x, lengths)
        drawn = traces.look(guide, y, x, lengths)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            z = traces.posterior(model, guide, y, x, lengths, num_particles=num_draws)["z"].value
        log_p = class_log_probs(model, z, y, x, lengths)  # (P, N, C)
        predicted = log_p.exp().mean(0)
        votes = one_hot(log_p.argmax(-1), C).sum(0)  # (N, C)
        accuracy_of_full = None
        if full is not None:
            every = [torch.full_like(y, c) for c in range(C)]
            whole = [traces.log_joint(full, {}, c, x, lengths, per_datum=True) for c in every]
            accuracy_of_full = accuracy(torch.stack(whole, -1), y)
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        selected = _selected(drawn["z"], z) * inside
    return Rationales(
        share=float(selected.sum() / lengths.sum()),
        accuracy=accuracy(predicted, y),
        majority=accuracy(votes, y),
        full=accuracy_of_full,
        selected=selected,
        predicted=predicted,
        y=y,
        lengths=lengths,
    )


def class_log_probs(model: Callable, z: Tensor, y: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
    """Returns log p(y | x, z) of each class, (P, N, C), at rationales z, (P, N, T)."""
    every = [torch.full_like(y, c) for c in range(num_classes(model, y, x, lengths))]
    log_p = [traces.pointwise(model, {"z": z}, y_c, x, lengths)["y"] for y_c in every]
    return torch.stack(log_p, -1)


def num_classes(model: Callable, *data: Tensor) -> int:
    """Returns C, or raises a ``ValueError`` for a story of other sites."""
    sites = traces.look(model, *data)
    kinds = {name: sites[name].kind for name in ("z", "y") if name in sites}
    if kinds != {"z": "latent", "y": "observed"}:
        raise ValueError(
            f"'model' should have a latent 'z' and observe 'y', got the sites {sorted(sites)}: "
            "give a story such as pplvm.models.rationale.Rationale."
        )
    kind = traces.distribution_name(sites["y"].fn)
    if kind != "Categorical":
        raise ValueError(
            f"site 'y' is {kind}, of which there are no classes to count: let it be Categorical."
        )
    return sites["y"].fn.probs.shape[-1]


def _selected(site: Site, z: Tensor) -> Tensor:
    """Returns E[z], (N, T), in closed form where the guide's distribution has it."""
    try:
        return site.fn.mean.expand(z.shape[1:])
    except NotImplementedError:
        return z.mean(0)


def accuracy(scores: Tensor, y: Tensor) -> float:
    """Returns the share of data whose highest score, (N, C), is of class y, (N,)."""
    return float((scores.argmax(-1) == y).double().mean())
