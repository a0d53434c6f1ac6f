r"""Label switching undone: the same component has the same number in every draw.

The posterior of a mixture is the same however its components are numbered, and so is that of the
states of a hidden Markov model; chains number them as they please. Each draw s is renumbered by the
permutation that brings it closest to a pivot,

.. math:: \sigma_s = \arg\min_\sigma \sum_{k, f}
    \left( \theta_{s, \sigma(k), f} - \bar\theta_{kf} \right)^2 / s_f^2,

an assignment problem, solved by scipy. The pivot is first a draw and then, until nothing changes, the
mean of the draws as renumbered; :math:`s_f` is first the spread of all components together and then
that within them, so that what tells components apart counts most.

References:
    | Dealing with label switching in mixture models (Stephens, 2000), section 4
    | https://doi.org/10.1111/1467-9868.00265

    | The Hungarian method for the assignment problem (Kuhn, 1955)
    | https://doi.org/10.1002/nav.3800020109

Shapes: C chains, S draws, R = C S, K components.
"""

__all__ = ["align"]

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pplvm.draws import Draws

_MOST_ROUNDS = 50


def align(
    draws: Draws,
    axes: Mapping[str, int | Sequence[int]],
    labels: Sequence[str] = (),
    reference: Draws | None = None,
) -> Draws:
    """Returns the draws with their components renumbered alike.

    Args:
        draws: Draws of a story that is the same however its components are numbered.
        axes: By the name of each site that has a row for each component, which of its axes that is,
            behind those of chains and draws: ``{"pi": 0, "mu": 0}``, or ``{"A": (0, 1)}`` for a
            matrix of moves from state to state.
        labels: The names of discrete sites whose values are the numbers of components.
        reference: Draws by whose mean components are numbered, say of another method, aligned
            themselves; by default the draws' own.

    Raises:
        ValueError: if a site or an axis does not exist, sites have different numbers of components,
            or values are no such numbers.
    """
    axes = {name: _as_tuple(axis) for name, axis in axes.items()}
    K = _num_components(draws, axes, labels)
    flat = {name: draws[name].flatten(0, 1) for name in (*axes, *labels)}  # (R, …)
    features = _features(flat, axes)  # (R, K, F)
    spread = least = features.flatten(0, 1).std(0).clamp(min=1e-12)
    if reference is None:
        pivot, rounds = features[len(features) // 2], _MOST_ROUNDS
    else:
        _num_components(reference, axes, ())
        theirs = _features({name: reference[name].flatten(0, 1) for name in axes}, axes)
        pivot, spread, rounds = theirs.mean(0), _within(theirs, least), 1
    order = torch.arange(K).expand(len(features), K)
    for _ in range(rounds):
        found = _closest(features / spread, pivot / spread)  # (R, K)
        if torch.equal(found, order) and spread is not least and reference is None:
            break
        order = found
        renumbered = features.gather(1, order[..., None].expand_as(features))
        pivot, spread = renumbered.mean(0), _within(renumbered, least)
    values = dict(draws.values)
    for name, where in axes.items():
        values[name] = _permuted(flat[name], order, where).unflatten(0, draws.shape)
    number = order.argsort(1)  # of each old component
    for name in labels:
        old = flat[name].reshape(len(order), -1).long()
        new = number.gather(1, old).reshape(flat[name].shape).to(flat[name].dtype)
        values[name] = new.unflatten(0, draws.shape)
    return replace(draws, values=values)


def _as_tuple(axis: int | Sequence[int]) -> tuple[int, ...]:
    return (axis,) if isinstance(axis, int) else tuple(axis)


def _num_components(
    draws: Draws, axes: Mapping[str, tuple[int, ...]], labels: Sequence[str]
) -> int:
    """Returns K, or raises a ``ValueError`` that names what is at fault."""
    sizes = {}
    for name, where in axes.items():
        shape = draws[name].shape[2:]
        for axis in where:
            if not -len(shape) <= axis < len(shape):
                raise ValueError(
                    f"axes['{name}'] is {axis}, but site '{name}' has shape {tuple(shape)}: give one of "
                    "its axes, the first being 0."
                )
            sizes[name] = shape[axis]
    if not sizes:
        raise ValueError("'axes' is empty: give a site that has a row for each component.")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"'axes' have different numbers of components: {sizes}.")
    (K,) = set(sizes.values())
    for name in labels:
        value = draws[name]
        if value.min() < 0 or value.max() >= K or not torch.equal(value, value.round()):
            raise ValueError(
                f"site '{name}' has values from {value.min().item():g} to {value.max().item():g}, which "
                f"are not the numbers of {K} components, 0 to {K - 1}."
            )
    return K


def _features(flat: Mapping[str, Tensor], axes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Returns what can be compared of each component, (R, K, F).

    Of a matrix from component to component that is its diagonal, which moves with it.
    """
    rows = []
    for name, where in axes.items():
        x = flat[name].double()
        places = [axis % (x.ndim - 1) + 1 for axis in where]
        if len(places) == 1:
            x = x.movedim(places[0], 1)
        else:
            x = x.diagonal(dim1=places[0], dim2=places[1]).movedim(-1, 1)
        rows.append(x.reshape(*x.shape[:2], -1))
    return torch.cat(rows, -1)


def _within(features: Tensor, pooled: Tensor) -> Tensor:
    """Returns the spread within components, (F,), of which a point has none to speak of."""
    if len(features) == 1:
        return pooled
    within = features.var(0).mean(0).sqrt()
    return torch.where(within > 1e-6 * pooled, within, pooled)


def _closest(features: Tensor, pivot: Tensor) -> Tensor:
    """Returns for each draw which of its components takes the place of each of the pivot's."""
    cost = torch.cdist(pivot.expand_as(features), features).square().numpy()  # (R, K, K)
    return torch.stack([torch.as_tensor(linear_sum_assignment(row)[1]) for row in cost])


def _permuted(x: Tensor, order: Tensor, where: tuple[int, ...]) -> Tensor:
    for axis in where:
        place = axis % (x.ndim - 1) + 1
        shape = [1] * x.ndim
        shape[0], shape[place] = order.shape
        x = x.gather(place, order.reshape(shape).expand_as(x))
    return x
