"""Learned parameters: where they live, and one scope per fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn


def module_of(program: Callable) -> nn.Module | None:
    """Returns the module that a program is, wraps or is a method of."""
    program = getattr(program, "program", program)
    program = getattr(program, "__self__", program)
    return program if isinstance(program, nn.Module) else None


def modules(model: Callable, guide: Callable) -> dict[str, nn.Module]:
    """Returns the modules among two programs by role, one that both share as the model's."""
    found = {"model": module_of(model), "guide": module_of(guide)}
    if found["guide"] is found["model"]:
        del found["guide"]
    return {role: module for role, module in found.items() if module is not None}


def leaves(model: Callable, guide: Callable) -> dict[str, Tensor]:
    """Returns the unconstrained parameters of both programs that are to be learned, by name.

    Those of modules come first, as ``model.…`` and ``guide.…``, then what ``pyro.param`` and
    ``pyro.module`` have put into the active parameter store under their own names.
    """
    named: list[tuple[str, Tensor]] = []
    for role, module in modules(model, guide).items():
        named += [(f"{role}.{name}", p) for name, p in module.named_parameters()]
    named += pyro.get_param_store().named_parameters()
    found: dict[int, tuple[str, Tensor]] = {}
    for name, p in named:
        if p.requires_grad:
            found.setdefault(id(p), (name, p))
    return dict(found.values())


class Scope:
    """A parameter store and a random state of its own: two scopes never meet.

    A tensor that a function closes over and hands to ``pyro.param`` or ``pyro.module`` is the
    user's own. Once :meth:`adopt` has seen it, it holds this scope's value inside the scope
    and the user's outside.
    """

    def __init__(self, seed: int) -> None:
        self._store: dict = {"params": {}, "constraints": {}}
        self._adopted: list[list[Tensor]] = []  # [tensor, its value on the other side]
        self.random = _seeded(seed)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Enters the scope, its parameters and its random state."""
        with _forked(), self.parameters():
            _set_random(self.random)
            try:
                yield
            finally:
                self.random = _get_random()

    @contextmanager
    def parameters(self) -> Iterator[None]:
        """Enters the scope's parameters alone."""
        with pyro.get_param_store().scope(self._store):
            self._swap()
            try:
                yield
            finally:
                self._swap()

    def bind(self, program: Callable) -> Callable:
        """Returns a program that finds this scope's parameters wherever it is called."""
        owned = module_of(program)
        known = {id(p) for p in owned.parameters()} if owned is not None else set()
        if all(id(p) in known for p in self._store["params"].values()):
            return program
        return Bound(program, self)

    def state(self) -> list[Tensor]:
        """Returns the random state; to be called inside the scope."""
        return _get_random()

    def resume(self, state: list[Tensor]) -> None:
        """Takes over a random state; to be called inside the scope."""
        _set_random(state)

    def adopt(self, owned: dict[str, nn.Module]) -> None:
        """Gives every tensor of the active store that no owned module holds a value within."""
        known = {id(p) for module in owned.values() for p in module.parameters()}
        known.update(id(tensor) for tensor, _ in self._adopted)
        for _, tensor in pyro.get_param_store().named_parameters():
            if id(tensor) not in known:
                self._adopted.append([tensor, tensor.data])
                tensor.data = tensor.data.clone()

    def _swap(self) -> None:
        for pair in self._adopted:
            pair[0].data, pair[1] = pair[1], pair[0].data


class Bound:
    """A program that runs in a scope's parameters."""

    def __init__(self, program: Callable, scope: Scope) -> None:
        self.program, self.scope = program, scope

    def __call__(self, *data: Tensor) -> Any:
        """Runs the program."""
        with self.scope.parameters():
            return self.program(*data)


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count()))


def _forked():
    return torch.random.fork_rng(devices=_devices())


def _seeded(seed: int) -> list[Tensor]:
    with _forked():
        torch.manual_seed(seed)
        return _get_random()


def _get_random() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in _devices())]


def _set_random(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for i, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, i)
