"""The step of an optimiser, without what torch does around it."""

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

    def apply(grads: list[Tensor | None]) -> None:
        if _is_plain_adam(optimizer, parameters) and all(g is not None for g in grads):
            _adam(optimizer, grads)
            return
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g
        optimizer.step()

    return apply


def _is_plain_adam(optimizer: Optimizer, parameters: list[Tensor]) -> bool:
    group, *others = optimizer.param_groups
    return (
        type(optimizer) is Adam
        and not others
        and len(group["params"]) == len(parameters)
        and all(p is q for p, q in zip(group["params"], parameters, strict=True))
        and bool(group["fused"])
        and not (group["amsgrad"] or group["maximize"] or group["decoupled_weight_decay"])
        and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
        and all(p in optimizer.state for p in group["params"])
        and not isinstance(group["lr"], Tensor)
    )


@torch.no_grad()
def _adam(optimizer: Adam, grads: list[Tensor]) -> None:
    group = optimizer.param_groups[0]
    states = [optimizer.state[p] for p in group["params"]]
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    torch._fused_adam_(
        group["params"],
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
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
