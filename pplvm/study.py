"""One story, every method: the parameters are learned once, then each method is asked about z."""

__all__ = ["METHODS", "OBJECTIVES", "all_summed_out", "freeze", "study"]

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from pplvm import traces
from pplvm.batches import Array, as_tensors
from pplvm.cavi import cavi
from pplvm.exact import exact
from pplvm.fit import Fit, fit
from pplvm.mcmc import nuts
from pplvm.naming import nearest
from pplvm.objectives import (
    NVIL,
    disarm,
    elbo,
    iwae,
    reweighted_wake_sleep,
    score_function,
    vimco,
    wake_sleep,
)
from pplvm.parameters import Bound, Scope, module_of
from pplvm.table import Answer

OBJECTIVES = {
    "svi": elbo,
    "iwae": partial(iwae, num_particles=16, gradient="dreg"),
    "wake-sleep": wake_sleep,
    "reweighted-wake-sleep": partial(reweighted_wake_sleep, num_particles=16),
    "score-function": partial(score_function, num_particles=4, baseline="leave_one_out"),
    "nvil": NVIL(),  # every fit learns in a copy
    "vimco": partial(vimco, num_particles=16),
    "disarm": disarm,
}
METHODS = (*OBJECTIVES, "nuts", "cavi", "cavi-apart", "exact")


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
    first, by SVI with the first guide on all data, and held fixed from there on; by the score
    function if that guide draws a latent that has no pathwise gradient. A story whose latents are
    all discrete, with states that can be listed, learns them without a guide, its latents summed
    out. SVI is then asked with every guide, other objectives with the first.

    Args:
        model: The story.
        guides: By name, each a function from the data to a guide, or to None for AutoNormal.
        data: The arguments of the story, first axis N; memory maps are read by minibatch.
        methods: Some of "svi", "iwae", "wake-sleep", "reweighted-wake-sleep",
            "score-function", "nvil", "vimco", "disarm", "nuts", "cavi",
            "cavi-apart" (no chain along time is one factor), "exact".
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

    Raises:
        ValueError: if there is no such method, or one that needs a guide where there is none, or if a
            guide holds the model.
    """
    for method in methods:
        nearest(method, dict.fromkeys(METHODS), "method")
    run = partial(
        fit, num_steps=num_steps, lr=lr, scheduler=_cosine(num_steps), seed=seed, progress=progress
    )
    few = as_tensors([x[:num_compared] for x in data], model)
    guides = _guides(model, guides, methods, data, few)
    _check_apart(model, guides, few)
    if _learns(model, *few):
        learner, how, guide = "svi", "latents summed out", None
        if not all_summed_out(model, *few):
            default = next(iter(guides))
            learner = _learner(guides[default], *few)
            how = f"{'SVI' if learner == 'svi' else learner}, {default} guide"
            guide = guides[default](data)
        announce(f"parameters: {how}, {data[0].shape[0]} data")
        learned = run(model, guide, *data, objective=OBJECTIVES[learner], batch_size=batch_size)
        model = freeze(learned)
    sites = traces.look(model, *few).values()
    local = any(traces.in_data_plate(site) for site in sites if site.kind == "latent")
    data = few if local else as_tensors(data, model)
    chains = {"num_warmup": num_warmup, "num_samples": num_samples, "progress": progress}
    answers: dict[str, Answer] = {}
    for method in methods:
        for label, ask in _questions(method, guides, run, partial(nuts, seed=seed, **chains), seed):
            announce(label)
            answers[label] = ask(model, data)
    return answers


def _questions(
    method: str, guides: Mapping[str, Callable], run: Callable, sample: Callable, seed: int
) -> Iterator[tuple[str, Callable[[Callable, tuple[Tensor, ...]], Answer]]]:
    """Yields what the answers of a method are called, and how to get each."""
    if method == "nuts":
        yield "NUTS", lambda model, data: sample(model, *data)
    elif method == "cavi":
        yield "CAVI", lambda model, data: cavi(model, *data, seed=seed)
    elif method == "cavi-apart":
        ask = partial(cavi, structured=False, seed=seed)
        yield "CAVI, every state apart", lambda model, data: ask(model, *data)
    elif method == "exact":
        yield "exact", lambda model, data: exact(model, *data)
    else:
        ask = partial(run, objective=OBJECTIVES[method])
        for name in guides if method == "svi" else list(guides)[:1]:
            label = f"SVI, {name}" if method == "svi" else method
            yield label, lambda model, data, name=name: ask(model, guides[name](data), *data)


def all_summed_out(model: Callable, *data: Tensor) -> bool:
    """Returns whether a story's latents are all discrete, with states that can be listed."""
    with Scope(0).parameters():  # what pyro.param declares here is forgotten again
        sites = traces.look(model, *data).values()
        latents = {site.name for site in sites if site.kind == "latent"}
        return bool(latents) and latents == traces.discrete_latents(model, *data)


def _learner(build: Callable, *data: Tensor) -> str:
    """Returns the objective that a guide can learn a model's parameters by."""
    with torch.random.fork_rng(devices=[]), Scope(0).parameters():  # which leaves no traces
        guide = build(data)
        sites = [] if guide is None else traces.look(guide, *data).values()  # AutoNormal is None
        moving = all(site.fn.has_rsample for site in sites if site.kind == "latent")
        return "svi" if moving else "score-function"


def freeze(learned: Fit) -> Callable:
    """Returns a copy of the model of a fit whose parameters another fit will leave alone."""
    model = copy.deepcopy(learned.model)
    module = module_of(model)
    if module is not None:
        module.requires_grad_(False)
    if isinstance(model, Bound):
        model.frozen = True
    return model


def _guides(
    model: Callable,
    guides: Mapping[str, Callable],
    methods: Sequence[str],
    data: tuple[Array, ...],
    few: tuple[Tensor, ...],
) -> dict[str, Callable]:
    """Returns the guides that have a latent to sample, which methods that need one must find."""
    if not all_summed_out(model, *few):
        return dict(guides)
    found = {name: build for name, build in guides.items() if build(data) is not None}
    for method in methods:
        if method in OBJECTIVES and not found:
            raise ValueError(
                f"method '{method}' needs a guide, but the latents are all discrete and are summed out "
                "where there is none: give a guide that samples them, or ask 'exact'."
            )
    return found


def _check_apart(model: Callable, guides: Mapping[str, Callable], few: tuple[Tensor, ...]) -> None:
    """Raises a ``ValueError`` for a guide with the model in it, whose copy would not be that one."""
    module = module_of(model)
    theirs = set() if module is None else {id(p) for p in module.parameters()}
    with torch.random.fork_rng(devices=[]), Scope(0).parameters():
        for name, build in guides.items():
            guide = build(few)
            own = None if guide is None else module_of(guide)
            if own not in (None, module) and any(id(p) in theirs for p in own.parameters()):
                raise ValueError(
                    f"guide '{name}' holds the model that it is for, while here a copy of that is held "
                    "fixed: it cannot be compared, but `pplvm fit` and pplvm.fit take it."
                )


def _learns(model: Callable, *data: Tensor) -> bool:
    module = module_of(model)
    if module is not None:
        return any(p.requires_grad for p in module.parameters())
    return traces.declares_parameters(model, *data)


def _cosine(num_steps: int) -> Callable:
    return partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=num_steps)
