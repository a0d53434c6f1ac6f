"""Any of Pyro's own ELBOs as an objective."""

__all__ = ["from_pyro"]

from collections.abc import Callable

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pplvm.parameters import leaves, module_of
from pplvm.types import Estimate


def from_pyro(loss: ELBO) -> Callable[..., Estimate]:
    """Returns an objective that gives the gradient and the bound of a Pyro ELBO.

    Pyro reports one number for the whole batch, so every datum gets an equal share of it.

    Args:
        loss: The ELBO object, such as ``pyro.infer.TraceGraph_ELBO()``.
    """

    def objective(model: Callable, guide: Callable, *data: Tensor) -> Estimate:
        size = len(data[0])
        if hasattr(loss, "differentiable_loss") and torch.is_grad_enabled():
            surrogate = loss.differentiable_loss(model, guide, *data)
            value = surrogate.detach()
        else:
            surrogate, value = _surrogate(loss, model, guide, *data)
        return Estimate(loss=surrogate / size, bound=(-value / size).expand(size))

    objective.__name__ = type(loss).__name__
    return objective


def _surrogate(
    loss: ELBO, model: Callable, guide: Callable, *data: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns a scalar with the gradient that the ELBO accumulates by itself, and its value."""
    if not torch.is_grad_enabled():
        value = loss.loss(model, guide, *data)
        value = torch.as_tensor(value[0] if isinstance(value, tuple) else value)
        return value, value
    held = {id(p): p.grad for p in leaves(model, guide).values()}
    for p in leaves(model, guide).values():
        p.grad = None
    value = loss.loss_and_grads(_named(model, "model"), _named(guide, "guide"), *data)
    learned = [p for p in leaves(model, guide).values() if p.grad is not None]  # some are new
    surrogate = sum((p * p.grad).sum() for p in learned)
    for p in learned:
        p.grad = held.get(id(p))
    return surrogate, torch.as_tensor(value[0] if isinstance(value, tuple) else value)


def _named(program: Callable, name: str) -> Callable:
    """Returns the program with its module in Pyro's view: some ELBOs skip what is not."""
    module = module_of(program)
    if module is None:
        return program

    def named(*data: Tensor) -> Tensor:
        pyro.module(name, module)
        return program(*data)

    return named
