"""What is found out about a pair of programs once, before they run many times."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from pplvm.traces.choices import dependencies, listed_states
from pplvm.traces.discrete import loops_are_even
from pplvm.traces.sites import Program, look
from pplvm.traces.sums import listable


def prepared(program: Program, guide: Callable, *data: Tensor) -> Program:
    """Returns a program that knows which latents it leaves to be summed out, and how.

    It also knows on which latents without a pathwise gradient each log-density depends, and which of
    these have few states.
    """
    listed = listable(program, guide, *data)
    sites = look(program, *data).values()
    all_ = {s.name for s in sites if s.kind == "latent" and s.fn.support.is_discrete}
    even = bool(listed) and listed == all_ and loops_are_even(program, *data)
    known = replace(program, listed=listed, even=even)
    chosen = any(s.kind == "latent" and not s.fn.has_rsample for s in look(guide, *data).values())
    if not chosen:
        return replace(known, depends={}, few={})
    return replace(
        known,
        depends=dependencies(known, guide, *data),
        few=listed_states(guide, *data),
    )
