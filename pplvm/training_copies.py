"""What a fit trains: copies of a model and a guide, the default guide where there is none."""

import copy
from collections.abc import Callable

from pyro.infer.autoguide import AutoGuide, AutoNormal
from torch import Tensor

from pplvm import traces
from pplvm.parameters import Scope


def copies(model: Callable, guide: Callable | None, *data: Tensor) -> tuple[Callable, Callable]:
    """Returns copies of both that share what the originals share."""
    kinds = _kinds(model, *data) if guide is None else set()
    discrete = True in kinds
    if kinds == {True}:
        guide = nothing
    memo: dict = {}
    modules_ = guide.modules() if isinstance(guide, AutoGuide) else ()
    held = [(g, g._model, g.master) for g in modules_ if isinstance(g, AutoGuide)]
    model, guide = copy.deepcopy(model, memo), copy.deepcopy(guide, memo)
    for original, its_model, master in held:  # copying makes both of them forget
        original._model, original.master = its_model, master
        memo[id(original)]._model = (copy.deepcopy(its_model[0], memo),)
    if guide is None:
        guide = AutoNormal(traces.continuous_part(model)) if discrete else AutoNormal(model)
    return model, guide


def _kinds(model: Callable, *data: Tensor) -> set[bool]:
    """Returns whether there are discrete latents in a model, and whether there are others."""
    with Scope(0)():
        sites = traces.look(model, *data).values()
    return {site.fn.support.is_discrete for site in sites if site.kind == "latent"}


def nothing(*data: Tensor) -> None:
    """The guide of a story without continuous latents."""
