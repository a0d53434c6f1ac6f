"""One story, every method: the parameters are learned once, then each method is asked about z."""

__all__ = ["METHODS", "study"]

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from pplvm import traces
from pplvm.batches import Array, as_tensors
from pplvm.exact import exact
from pplvm.fit import Fit, fit
from pplvm.mcmc import nuts
from pplvm.naming import nearest
from pplvm.objectives import elbo, iwae, reweighted_wake_sleep, wake_sleep
from pplvm.parameters import Bound, module_of
from pplvm.table import Answer

OBJECTIVES = {
    "svi": elbo,
    "iwae": partial(iwae, num_particles=16, gradient="dreg"),
    "wake-sleep": wake_sleep,
    "reweighted-wake-sleep": partial(reweighted_wake_sleep, num_particles=16),
}
METHODS = (*OBJECTIVES, "nuts", "exact")


def study(
    model: Callable,
    guides: Mapping[str, Callable[[tuple[Array, ...]], Callable | None]],
    *data: Array,
    methods: Sequence[str] = METHODS,
    num_compared: int = 100,
    num_steps: int = 2000,
    batch_size: int | None = None,
    lr: float = 0.05,
    num_warmup: int = 500,
    num_samples: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, Answer]:
    """Answers one question by every method: what are the latents, at the same parameters?

    A latent variable model is identified only up to symmetries of its latents (factors rotate),
    so answers with parameters of their own could not be compared. They are therefore learned
    first, by SVI with the first guide on all data, and held fixed from there on. SVI is then
    asked with every guide, other objectives with the first.

    Args:
        model: The story.
        guides: By name, each a function from the data to a guide, or to None for AutoNormal.
        data: The arguments of the story, first axis N; memory maps are read by minibatch.
        methods: Some of "svi", "iwae", "wake-sleep", "reweighted-wake-sleep", "nuts", "exact".
        num_compared: The methods are asked about so many of the first data, where each has
            latents of its own.
        num_steps: The number of steps of each fit.
        batch_size: The size of minibatches when the parameters are learned.
        lr: The learning rate, which falls to nothing along a cosine.
        num_warmup: Of each of four chains.
        num_samples: Of each of four chains.
        seed: Of everything.
        progress: Whether to show bars; by default on a terminal.
        announce: Called with a line before each method.
    """
    for method in methods:
        nearest(method, dict.fromkeys(METHODS), "method")
    run = partial(
        fit, num_steps=num_steps, lr=lr, scheduler=_cosine(num_steps), seed=seed, progress=progress
    )
    default, few = next(iter(guides)), as_tensors([x[:num_compared] for x in data], model)
    if _learns(model, *few):
        announce(f"parameters: SVI, {default} guide, {len(data[0])} data")
        learned = run(model, guides[default](data), *data, batch_size=batch_size)
        model = freeze(learned)
    sites = traces.look(model, *few).values()
    local = any(traces.in_data_plate(site) for site in sites if site.kind == "latent")
    data = few if local else as_tensors(data, model)
    answers: dict[str, Answer] = {}
    for method in methods:
        if method == "nuts":
            announce("NUTS")
            answers["NUTS"] = nuts(
                model,
                *data,
                num_warmup=num_warmup,
                num_samples=num_samples,
                seed=seed,
                progress=progress,
            )
        elif method == "exact":
            announce("exact")
            answers["exact"] = exact(model, *data)
        else:
            for name in guides if method == "svi" else [default]:
                label = f"SVI, {name}" if method == "svi" else method
                announce(label)
                answers[label] = run(model, guides[name](data), *data, objective=OBJECTIVES[method])
    return answers


def freeze(learned: Fit) -> Callable:
    """Returns a copy of the model of a fit whose parameters another fit will leave alone."""
    model = copy.deepcopy(learned.model)
    module = module_of(model)
    if module is not None:
        module.requires_grad_(False)
    if isinstance(model, Bound):
        model.frozen = True
    return model


def _learns(model: Callable, *data: Tensor) -> bool:
    module = module_of(model)
    if module is not None:
        return any(p.requires_grad for p in module.parameters())
    return traces.declares_parameters(model, *data)


def _cosine(num_steps: int) -> Callable:
    return partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=num_steps)
