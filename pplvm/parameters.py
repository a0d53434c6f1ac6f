"""Learned parameters: where they live, and one scope per fit."""

import copy
import functools
import gc
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

# What pyro.module puts between the names of a module and of its parameter.
_OF_MODULE = "$$$"
# Where a Program or Bound, a method and a functools.partial keep what they call.
_INNER = ("program", "__self__", "func")


def module_of(program: Callable) -> nn.Module | None:
    """Returns the module that a program is, wraps or is a method of."""
    while not isinstance(program, nn.Module):
        inner = next((getattr(program, name) for name in _INNER if hasattr(program, name)), None)
        if inner is None:
            return None
        program = inner
    return program


def modules(model: Callable, guide: Callable | None) -> dict[str, nn.Module]:
    """Returns the modules among two programs by role, one that both share as the model's."""
    found = {"model": module_of(model), "guide": module_of(guide)}
    if found["guide"] is found["model"]:
        del found["guide"]
    return {role: module for role, module in found.items() if module is not None}


def closed_over(program: Callable) -> dict[str, nn.Module]:
    """Returns the modules that a function holds in its closure or binds as arguments, by name."""
    if module_of(program) is not None or isinstance(program, Bound):
        return {}
    held: dict[str, Any] = {}
    if isinstance(program, functools.partial):
        held |= {f"argument {i}": value for i, value in enumerate(program.args)} | program.keywords
        program = program.func
    if inspect.isfunction(program):
        held |= inspect.getclosurevars(program).nonlocals
        held |= {k: v.default for k, v in inspect.signature(program).parameters.items()}
    return {name: value for name, value in held.items() if isinstance(value, nn.Module)}


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
    user's own. :meth:`adopt` gives the scope a twin of it, which takes its place in the store
    and, inside the scope, in the modules that hold it.
    """

    def __init__(self, seed: int, store: dict | None = None) -> None:
        self._store: dict = store or {"params": {}, "constraints": {}}
        self._twins: list[tuple[dict, str, Tensor]] = []  # (parameters of a module, name, twin)
        self._former: list[tuple[dict, str, Tensor]] = []  # what they were outside
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
        further_out = self._former
        with pyro.get_param_store().scope(self._store):
            self._former = [(held, name, held[name]) for held, name, _ in self._twins]
            for held, name, twin in self._twins:
                held[name] = twin
            try:
                yield
            finally:
                for held, name, theirs in self._former:
                    held[name] = theirs
                self._former = further_out

    def adopt(self, owned: dict[str, nn.Module]) -> None:
        """Gives a twin to every tensor of the active store that no owned module holds."""
        known = {id(p) for module in owned.values() for p in module.parameters()}
        store = pyro.get_param_store()
        for full_name, theirs in list(store.named_parameters()):
            if id(theirs) in known:
                continue
            # Only the modules know who they are: pyro.module keeps their tensors alone.
            holders = [held for held in gc.get_referrers(theirs) if type(held) is dict]
            store[full_name] = store[full_name].detach().clone()
            twin = dict(store.named_parameters())[full_name]
            for held in holders if _OF_MODULE in full_name else ():
                for name in [name for name, value in held.items() if value is theirs]:
                    self._twins.append((held, name, twin))
                    self._former.append((held, name, theirs))
                    held[name] = twin

    def places(self, owned: dict[str, nn.Module]) -> list[dict | list]:
        """Returns what holds parameters where programs look for them; inside the scope."""
        parts = [part for module in owned.values() for part in module.modules()]
        found: list[dict | list] = [part._parameters for part in parts]
        found += [part._flat_weights for part in parts if isinstance(part, nn.RNNBase)]
        return [*found, pyro.get_param_store()._params, *(held for held, _, _ in self._twins)]

    @property
    def portable(self) -> bool:
        """Whether it can go to another process, where the modules of a function are others."""
        return not any(_OF_MODULE in name for name in self._store["params"])

    def __deepcopy__(self, memo: dict) -> "Scope":
        if not self.portable:  # the modules of a function cannot be copied along
            return self
        twin = memo[id(self)] = object.__new__(Scope)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def thaw(self, program: Callable) -> Callable:
        """Takes over the parameters that a program is bound to, so as to learn them further."""
        while isinstance(program, Bound) and not program.frozen and program.scope.portable:
            for part in ("params", "constraints"):
                self._store[part].update(program.scope._store[part])
            program = program.program
        if isinstance(program, Bound) and not program.frozen:
            raise ValueError(
                "a fit of a function over modules of its own cannot be learned further: fit the "
                "function itself, or hold it fixed with pplvm.study.freeze(fit)."
            )
        return program

    def bind(self, program: Callable, owned: dict[str, nn.Module]) -> Callable:
        """Returns a program that finds this scope's parameters wherever it is called.

        A plain module is returned as it is, if the store holds nothing but what modules own. A
        ``PyroModule`` is not: wherever it runs, it takes its values from the active store.
        """
        module = module_of(program)
        plain = module is None or not any(isinstance(m, PyroModule) for m in module.modules())
        known = {id(p) for owner in owned.values() for p in owner.parameters()}
        if plain and all(id(p) in known for p in self._store["params"].values()):
            return program
        return Bound(program, self)

    @property
    def named(self) -> dict[str, Tensor]:
        """The unconstrained parameters of its store, by name."""
        return dict(self._store["params"])

    def state(self) -> list[Tensor]:
        """Returns the random state; to be called inside the scope."""
        return _get_random()

    def resume(self, state: list[Tensor]) -> None:
        """Takes over a random state; to be called inside the scope."""
        _set_random(state)


class Bound:
    """A program that runs in a scope's parameters."""

    def __init__(self, program: Callable, scope: Scope) -> None:
        self.program, self.scope, self.frozen = program, scope, False

    def __call__(self, *data: Tensor) -> Any:
        """Runs the program."""
        with self.scope.parameters():
            return self.program(*data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "program":  # asked for while it is being copied
            raise AttributeError(name)
        return getattr(self.program, name)


def is_portable(program: Callable) -> bool:
    """Whether a program is the same in another process."""
    return not isinstance(program, Bound) or program.scope.portable


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


@contextmanager
def moved(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Moves parameters a little: what they are at first may hide what they can do."""
    held = {p: p.detach().clone() for p in parameters}
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p, value in held.items():
            noise = 0.1 * torch.randn(value.shape, generator=random, dtype=value.dtype)
            noise = noise.to(value.device)
            p.copy_(torch.where(value == 0, noise, value * noise.exp()))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in held.items():
                p.copy_(value)


@contextmanager
def double_by_default() -> Iterator[None]:
    """Makes what a story creates by itself, such as ``torch.zeros``, of float64."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(former)
