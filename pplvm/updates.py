"""The step of an optimiser, without what torch does around it."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer


def update(optimizer: Optimizer, parameters: list[Tensor]) -> Callable[[list[Tensor | None]], None]:
    """Returns what takes the optimiser's step, given the gradient in each parameter.

    Fused Adam is one operation, and the hooks, checks and profiling around it take three times as
    long on small stories; from its second step on it is called directly, with the same result bit
    for bit. Every other optimiser does its own step.
    """
    plain = _PlainAdam(optimizer, parameters) if _is_plain_adam(optimizer, parameters) else None

    def apply(grads: list[Tensor | None]) -> None:
        if plain is not None and plain.ready() and all(g is not None for g in grads):
            plain.step(grads)
            return
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g
        optimizer.step()

    return apply


def check_optimizer(optimizer: Optimizer) -> None:
    """Raises a ``ValueError`` for an optimiser that asks for the loss anew within its step."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"'optimizer' makes {type(optimizer).__name__}, which evaluates the loss several times a "
            "step, where this loss is drawn anew each time: use one that takes gradients as they "
            "come, such as torch.optim.Adam."
        )


def groups(learned: list[Tensor], own: list[Tensor], lr: float | None) -> list:
    """Returns parameters for an optimiser, those of an objective in a group of their own."""
    if not own:
        return learned
    return [{"params": learned}, {"params": own} | ({} if lr is None else {"lr": lr})]


def _is_plain_adam(optimizer: Optimizer, parameters: list[Tensor]) -> bool:
    groups = optimizer.param_groups
    held = [p for group in groups for p in group["params"]]
    return (
        type(optimizer) is Adam
        and len(held) == len(parameters)
        and all(p is q for p, q in zip(held, parameters, strict=True))
        and all(_is_plain(group) for group in groups)
    )


def _is_plain(group: dict) -> bool:
    return (
        bool(group["fused"])
        and not (group["amsgrad"] or group["maximize"] or group["decoupled_weight_decay"])
        and not isinstance(group["lr"], Tensor)
    )


class _PlainAdam:
    """Fused Adam, one operation for each group of parameters."""

    def __init__(self, optimizer: Adam, parameters: list[Tensor]) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        self._moments: tuple[list[Tensor], ...] = ([], [], [])  # first, second, steps taken
        self._taken = torch.zeros(0)  # the steps again: they are views of it

    def ready(self) -> bool:
        """Whether the optimiser has its state, the one that is known here, and nobody watches."""
        optimizer = self.optimizer
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            return False
        last = optimizer.state.get(self.parameters[-1])
        if not last:
            return False
        if not self._moments[0] or self._moments[0][-1] is not last["exp_avg"]:  # or loaded anew
            states = [optimizer.state.get(p, {}) for p in self.parameters]
            if not all(states):
                return False
            # One tensor to count in, as torch's own way of counting takes longer than the step.
            self._taken = torch.stack([state["step"] for state in states])
            for state, taken in zip(states, self._taken, strict=True):
                state["step"] = taken
            self._moments = tuple(
                [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
            )
        return True

    @torch.no_grad()
    def step(self, grads: list[Tensor]) -> None:
        """Does what ``torch.optim.Adam.step`` comes to."""
        self._taken.add_(1)
        start = 0
        for group in self.optimizer.param_groups:
            stop = start + len(group["params"])
            first, second, steps = (moments[start:stop] for moments in self._moments)
            torch._fused_adam_(
                self.parameters[start:stop],
                grads[start:stop],
                first,
                second,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
            start = stop
