"""Things by name, with the nearest name suggested for one that is unknown."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def nearest(name: str, known: Mapping[str, T], what: str) -> T:
    """Returns what a name stands for, or raises a ``ValueError`` that suggests the nearest name."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}."
    raise ValueError(f"there is no {what} named '{name}': {advice}")
