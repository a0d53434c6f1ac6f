"""Things by name: the nearest to one that is unknown, and those that only differ in a number."""

import difflib
import re
from collections.abc import Hashable, Mapping
from typing import TypeVar

T = TypeVar("T")


def nearest(name: str, known: Mapping[str, T], what: str) -> T:
    """Returns what a name stands for, or raises a ``ValueError`` that suggests the nearest name."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}."
    raise ValueError(f"there is no {what} named '{name}': {advice}")


def runs(kinds: Mapping[str, Hashable], least: int = 4) -> dict[str, list[str]]:
    """Groups names of one kind that only differ in a number at the end, such as those of a loop.

    Args:
        kinds: What each name stands for, in order.
        least: From how many names on they are a group; an arbitrary default.

    Returns:
        The names of each group under its label, such as ``z_0 … z_31``, or the name of a lone one.
    """
    stems: dict[tuple, list[str]] = {}
    for name, kind in kinds.items():
        stems.setdefault((re.sub(r"[_.\[]?\d+\]?$", "", name), kind), []).append(name)
    groups = {}
    for names in stems.values():
        alone = len(names) < least
        for run in [[name] for name in names] if alone else [names]:
            groups[run[0]] = run
    ordered = [groups[name] for name in kinds if name in groups]
    return {run[0] if len(run) == 1 else f"{run[0]} … {run[-1]}": run for run in ordered}
