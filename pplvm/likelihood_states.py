r"""Whether draws of discrete latents can tell what they miss.

Where all P draws of a datum are one state :math:`z^*`, their weights tie as those of a perfect proposal
do, and say nothing of the states that the guide leaves out. All that is known is

.. math:: \log p(x) \ge \log p(x, z^*),

unless the other states can be listed, and their sum says how much that is short of.

Shapes: P particles, N data, D discrete latents of a datum, S joint states.
"""

__all__ = ["SoleStates", "log_marginal_by_listing"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pplvm import traces
from pplvm.traces import Site


class SoleStates:
    """Follows the draws of a guide, and which data have had one state of theirs only."""

    def __init__(self) -> None:
        self._first: Tensor | None = None  # (N, D)
        self._same: Tensor | None = None  # (N,)

    def see(self, values: Tensor) -> None:
        """Takes in discrete latents, (P, N, D)."""
        if self._first is None:
            self._first = values[0]
            self._same = torch.full((values.shape[1],), values.shape[2] > 0)
        self._same = self._same & (values == self._first).all(2).all(0).cpu()

    def found(self) -> Tensor:
        """Returns the data whose draws are all the same, (N,), or (1,): not where there are none."""
        assert self._same is not None, "nothing was drawn"
        return self._same


def log_marginal_by_listing(model: Callable, *data: Tensor, most: int) -> Tensor | None:
    """Returns log p(x_n), (N,), by the sum over all states; None where that is not to be had.

    Args:
        model: The model.
        data: Its arguments, first axis N.
        most: How many joint states of events, such as a vector of binary latents, are tried.
    """
    sites = [site for site in traces.look(model, *data).values() if site.kind == "latent"]
    if not sites or not all(site.fn.support.is_discrete for site in sites):
        return None
    try:
        return traces.Listed(model, *data).log_marginal()
    except ValueError:  # there is such an event, or the table of all states is too large
        states = _joint_states(sites, most)
    if states is None:
        return None
    total = None
    for row in states:
        parts = row.split([math.prod(site.fn.event_shape) for site in sites])
        values = {
            s.name: part.reshape(s.fn.event_shape).expand_as(s.value).to(s.value)
            for s, part in zip(sites, parts, strict=True)
        }
        log_p = traces.log_joint(model, values, *data, per_datum=True)  # (N,)
        total = log_p if total is None else torch.logaddexp(total, log_p)
    return total


def _joint_states(sites: list[Site], most: int) -> Tensor | None:
    """Returns the joint states of each datum's latents, (S, D), if there are so many at most."""
    dims: list[Tensor] = []
    for site in sites:
        base = site.fn
        while hasattr(base, "base_dist") and not hasattr(base, "_mask"):
            base = base.base_dist
        plates = [name for name, _, _ in site.plates]
        # A latent that a mask leaves out would be counted as often as it has states.
        if plates != [traces.DATA] or site.mask is not None or hasattr(base, "_mask"):
            return None
        if base.event_shape or not base.has_enumerate_support:
            return None
        support = base.enumerate_support(expand=False).flatten()
        dims += [support] * math.prod(site.fn.event_shape)
    if math.prod(map(len, dims)) > most:
        return None
    return torch.cartesian_prod(*dims).reshape(-1, len(dims))
