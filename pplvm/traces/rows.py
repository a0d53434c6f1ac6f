"""Transitions whose rows do not sum to one: torch normalises them, and nobody hears of it.

That may be meant of the weights of a mixture. Of the moves of a chain it is a mistake, such as a matrix
that was transposed, and its answers are silently wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Categorical

from pplvm.traces.elimination import Factor
from pplvm.traces.families import distribution_name
from pplvm.traces.series import Loop

_NEAR = 1e-3  # of a sum to 1, as probabilities that were rounded have it


class RowError(ValueError):
    """Probabilities that do not sum to one."""


Listing = tuple[poutine.Trace, list[Factor], Sequence[Loop]]


def check_rows(listed: Callable[[], Listing]) -> None:
    """Raises a :class:`RowError` that names the first latent of a loop over time with a wrong row.

    Args:
        listed: Runs the story with the states of its latents listed.
    """
    with _exposed():
        trace, factors, loops = listed()
    lost = [f.site for f in factors if f.term.isnan().any() and _moves(trace, f.site)]
    if not lost:
        return
    sound = {f.site for f in listed()[1] if not f.term.isnan().any()}
    for name in lost:
        if name in sound:
            later = [loop for loop in loops if name in loop.later]
            shown = later[0].name_at(name, later[0].steps[1]) if later else name
            raise RowError(
                f"site '{shown}' ({distribution_name(trace.nodes[name]['fn'])}) has probabilities, in a "
                "row of its transitions, that do not sum to 1: normalise each row over the last dim, or "
                "give logits."
            )


def _moves(trace: poutine.Trace, name: str) -> bool:
    infer = trace.nodes[name]["infer"]
    return "_markov_depth" in infer and "_enumerate_symbol" in infer


@contextmanager
def _exposed() -> Iterator[None]:
    """Lets probabilities that do not sum to one be NaN, which shows in all that they touch."""
    former = Categorical.__init__

    def init(
        self, probs: Tensor | None = None, logits: Tensor | None = None, validate_args=None
    ) -> None:
        if probs is not None:
            total = probs.sum(-1, keepdim=True)
            probs = torch.where((total - 1).abs() < _NEAR, probs, torch.nan)
        former(self, probs, logits, validate_args=False)

    Categorical.__init__ = init
    try:
        yield
    finally:
        Categorical.__init__ = former
