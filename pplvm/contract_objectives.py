"""Objectives as they are given: what they are called, what options are bound, what they may hold."""

import inspect
from collections.abc import Callable
from typing import Any

from pplvm.parameters import closed_over, module_of


def check_objective(objective: Callable) -> None:
    """Raises a ``ValueError`` if a function holds an objective that learns, which then would not."""
    for name, module in closed_over(objective).items():
        if hasattr(module, "prepare"):
            raise ValueError(
                f"the objective is a function that uses '{name}', which would not be learned in this "
                f"fit alone: give '{name}' itself."
            )


def objective_parts(objective: Callable) -> tuple[Callable, dict[str, Any]]:
    """Returns the function of an objective and the options that ``partial`` has bound."""
    return getattr(objective, "func", objective), getattr(objective, "keywords", {})


def objective_option(objective: Callable, name: str, default: Any) -> Any:
    """Returns an option of an objective, be it a function, a module or bound by partial."""
    module = module_of(objective)
    if module is not None:
        return getattr(module, name, default)
    option = inspect.signature(objective).parameters.get(name)
    return default if option is None else option.default


def objective_name(objective: Callable) -> str:
    """Returns what an objective is called, options that were bound included."""
    function, options = objective_parts(objective)
    name = getattr(function, "__name__", type(function).__name__)
    return name + ("(" + ", ".join(f"{k}={v}" for k, v in options.items()) + ")" if options else "")
