"""What made the answers of a table: story, guides, settings, versions."""

__all__ = ["guides", "plain", "settings", "source", "story_name", "versions"]

import inspect
import platform
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from pyro.infer.autoguide import AutoGuide

from pplvm.contract import grouped, site_table
from pplvm.fit import Fit
from pplvm.parameters import module_of
from pplvm.table import Table

_PACKAGES = (
    "pplvm", "torch", "pyro-ppl", "arviz-base", "arviz-stats", "arviz-plots", "numpy", "scipy",
    "xarray", "matplotlib",
)  # fmt: skip


def story_name(model: Callable) -> str:
    """Returns what a story is called: its class or its function."""
    module = module_of(model)
    program = _unwrapped(model)
    if module is not None:
        return type(module).__name__
    return getattr(program, "__name__", type(program).__name__)


def source(model: Callable) -> str:
    """Returns the code of a story, or nothing where it is not to be had."""
    module, program = module_of(model), _unwrapped(model)
    try:
        return textwrap.dedent(inspect.getsource(program if module is None else type(module)))
    except (OSError, TypeError):  # typed into a shell, or compiled
        return ""


def _unwrapped(program: Callable) -> Callable:
    while hasattr(program, "program") or hasattr(program, "func"):
        program = program.program if hasattr(program, "program") else program.func
    return inspect.unwrap(program)


def guides(table: Table) -> list[tuple[str, str, str, str]]:
    """Returns answer, site, guide's distribution and gradient, for each latent of each fit."""
    rows = []
    for name, fit in table.answers.items():
        if isinstance(fit, Fit):
            sites = site_table(fit.model, fit.guide, *table.data, objective=fit.objective)
            auto = module_of(fit.guide)
            if isinstance(auto, AutoGuide):  # whose own sites are Deltas at transformed draws
                sites = [(*site[:5], type(auto).__name__, site[6]) for site in sites]
            latents = [site for site in sites if site[1] == "latent"]
            rows += [(name, site[0], *site[5:]) for site in grouped(latents)]
    return rows


def settings(table: Table) -> list[list[str]]:
    """Returns a header of answers and a row for each setting that any of them has."""
    given = {
        name: {
            "kind": type(answer).__name__.lower(),
            **{k: v for k, v in answer.settings.items() if k != "objective"},  # says "method"
            "seconds": f"{answer.seconds:.1f}",
            "draws compared": " × ".join(map(str, table.draws[name].shape)),
        }
        for name, answer in table.answers.items()
    }
    keys = list(dict.fromkeys(key for chosen in given.values() for key in chosen))
    keys.sort(key=lambda key: key in ("draws compared", "seconds"))  # which all of them have
    rows = [[key, *(plain(chosen.get(key)) for chosen in given.values())] for key in keys]
    return [["setting", *given], *rows]


def plain(value: object) -> str:
    """Returns a setting as it is to be read."""
    if value is None:
        return "—"
    return f"{value:g}" if isinstance(value, float) else str(value)


def versions(packages: Sequence[str] = _PACKAGES) -> Mapping[str, str]:
    """Returns the versions of what computed."""
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
