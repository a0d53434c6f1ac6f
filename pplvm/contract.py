"""The contract of a story and its guide: checked before inference, explained on request."""

__all__ = ["check", "explain"]

import inspect
from collections.abc import Callable

import pyro
import torch
from torch import Tensor

from pplvm import traces
from pplvm.batches import as_tensors, check_data
from pplvm.contract_objectives import objective_name
from pplvm.naming import runs
from pplvm.objectives import elbo
from pplvm.parameters import Scope, closed_over, module_of, modules
from pplvm.traces import DATA, Site, distribution_name


def check(model: Callable, guide: Callable | None, *data: Tensor) -> None:
    """Runs both programs once and raises a ``ValueError`` for the first breach of the contract.

    A module that needs more of its data than its sites say has a method ``check_data``, which takes
    them and raises.

    Args:
        model: The model.
        guide: The guide, or None where the inference needs none.
        data: The arguments of both, first axis N.
    """
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(True):
        for program in (model, guide):
            getattr(module_of(program), "check_data", _no_check)(*data)
        p = _run("model", model, *data)
        _check_use_of_plate("model", model, *data)
        _check_plates("model", p, *data)
        for site in p.values():
            if site.kind == "observed":
                traces.check_support(site.name, site.fn, site.value)
        if guide is None:
            return
        q = _run("guide", guide, *data)
        _check_use_of_plate("guide", guide, *data)
        _check_plates("guide", q, *data)
        latents = {s.name for s in p.values() if s.kind == "latent"}
        drawn = {
            s.name for s in q.values() if not s.infer.get("is_auxiliary") and s.kind == "latent"
        }
        latents -= traces.listable(model, guide, *data)
        if latents != drawn:
            raise ValueError(traces.mismatch(latents, drawn))
        for name in sorted(latents):
            _check_pair(p[name], q[name])
        try:
            with torch.no_grad():
                z = traces.draw(model, guide, *data, moving=False)
                traces.weigh(model, guide, z, *data, per_datum=False)
        except RuntimeError as error:  # such as two dtypes that do not mix
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the model cannot run at the draws of the guide: {reason}; let both have "
                "parameters of one dtype, and latents of one shape."
            ) from error


def _no_check(*data: Tensor) -> None:
    """Asks nothing of the data: what a program without ``check_data`` does."""


def check_default_guide(model: Callable, minibatches: bool, *data: Tensor) -> None:
    """Raises a ``ValueError`` for a latent that the default guide cannot do."""
    for name, site in traces.look(model, *data).items():
        if site.kind != "latent":
            continue
        if site.fn.support.is_discrete and not site.fn.has_enumerate_support:
            raise ValueError(
                f"site '{name}' ({traces.distribution_name(site.fn)}) is discrete, with states that "
                "cannot be listed and summed out: give a 'guide' that samples it."
            )
        if minibatches and traces.in_data_plate(site) and not site.fn.support.is_discrete:
            raise ValueError(
                f"site '{name}' is each datum's own, and the default guide has parameters for each "
                "datum: give an amortised 'guide', or leave out 'batch_size'."
            )


def check_minibatches(model: Callable, listed: frozenset[str], *data: Tensor) -> None:
    """Raises a ``ValueError`` for data, or a sum over latents, that minibatches could not scale."""
    for site in traces.look(model, *data).values():
        if site.name in listed and not traces.in_data_plate(site):
            raise ValueError(
                f"site '{site.name}' is discrete and shared by the data, so that it can be summed out "
                "of all of them alone: leave out 'batch_size', or sample it in the guide."
            )
    for site in traces.look(model, *data).values():
        if site.kind == "observed" and not traces.in_data_plate(site):
            raise ValueError(
                f"site '{site.name}' is observed outside plate 'data' (it is in "
                f"{[name for name, _, _ in site.plates]}), so minibatches cannot be scaled: observe it "
                "inside plate('data', len(x), dim=-1), or leave out 'batch_size'."
            )


def check_closures(model: Callable, guide: Callable, learned: dict[str, Tensor]) -> None:
    """Raises a ``ValueError`` if a function holds a module whose parameters nobody would learn."""
    known = {id(p) for p in learned.values()}
    for role, program in (("model", model), ("guide", guide)):
        for name, module in closed_over(program).items():
            if any(p.requires_grad and id(p) not in known for p in module.parameters()):
                raise ValueError(
                    f"the {role} uses the module '{name}' without a word to Pyro, so that it would not "
                    f"be learned: call pyro.module('{name}', {name}) in it, pass the module itself, or "
                    "call its requires_grad_(False)."
                )


def bind(
    model: Callable, guide: Callable | None, *data: Tensor
) -> tuple[Callable, Callable | None]:
    """Checks both programs and returns them with the parameters that they have now.

    Those come from the active parameter store; what the programs declare here for the first
    time stays out of it.
    """
    scope = Scope(0, pyro.get_param_store().get_state())
    with scope.parameters():
        check(model, guide, *data)
    owned = modules(model, guide)
    return scope.bind(model, owned), None if guide is None else scope.bind(guide, owned)


def check_schedule(objective: Callable, kl_schedule: Callable | None) -> None:
    """Raises a ``ValueError`` where a schedule has no divergence to weigh."""
    call = getattr(objective, "forward", objective)  # of a module
    if kl_schedule is not None and "kl_weight" not in inspect.signature(call).parameters:
        raise ValueError(
            f"'kl_schedule' needs an objective with a 'kl_weight', which {objective_name(objective)} "
            "has not: use 'elbo'."
        )


def explain(
    model: Callable, guide: Callable | None, *data: Tensor, objective: Callable = elbo
) -> None:
    """Prints a table of the sites: shape, plates, distribution, gradient estimator.

    Sites of a loop that only differ in a number at the end are one row.

    Args:
        model: The model.
        guide: The guide, or None for the model alone.
        data: The arguments of both, first axis N.
        objective: The objective whose estimators are meant.
    """
    check_data(data)
    data = as_tensors(data, model, guide)
    with Scope(0).parameters():  # what pyro.param declares here is forgotten again
        check(model, guide, *data)
        rows = grouped(site_table(model, guide, *data, objective=objective))
    header = ("site", "kind", "shape", "plates", "model", "guide", "gradient")
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def site_table(
    model: Callable, guide: Callable | None, *data: Tensor, objective: Callable = elbo
) -> list[tuple[str, ...]]:
    """Returns the rows that :func:`explain` prints, one for each site."""
    with torch.random.fork_rng(devices=[]):
        p = traces.run(model, *data)
        q = traces.run(guide, *data) if guide is not None else {}
        listed = traces.listable(model, guide, *data) if guide is not None else frozenset()
    rows = []
    for site in p.values():
        twin, other = q.get(site.name), "summed out" if site.name in listed else "—"
        rows.append(
            (
                site.name,
                site.kind,
                str(tuple(site.value.shape)),
                ", ".join(f"{name} {size}" for name, size, _ in site.plates) or "—",
                distribution_name(site.fn) if site.kind != "deterministic" else "—",
                distribution_name(twin.fn) if twin else "—",
                _estimator(objective, site, twin) if twin else other,
            )
        )
    return rows


def grouped(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Returns the rows of a site table with those of a loop in one, such as that of z_0 … z_31."""
    rest = {row[0]: row[1:] for row in rows}
    return [(label, *rest[names[0]]) for label, names in runs(rest).items()]


# How each objective differentiates by way of a latent that is not reparameterisable.
_BY_DRAWS = {
    "score_function": "score function",
    "NVIL": "score function, learned baselines",
    "vimco": "score function, the other draws as baseline",
    "muprop": "score function, expansion at the mean as baseline",
    "REBAR": "score function, soft control variate",
    "RELAX": "score function, soft and learned control variate",
    "arm": "mirrored pairs of draws",
    "disarm": "mirrored pairs of draws",
    "concrete": "pathwise at soft values, biased",
    "straight_through": "straight through, biased",
}


def _estimator(objective: Callable, p: Site, q: Site) -> str:
    name = objective_name(objective)
    function = name.partition("(")[0]
    if function in ("wake_sleep", "reweighted_wake_sleep"):
        return "score of fixed draws"
    if function not in ("elbo", "iwae", *_BY_DRAWS):
        return f"as {name} has it"
    if not q.fn.has_rsample:
        return _BY_DRAWS.get(function, "none: not reparameterisable")
    if function not in ("iwae", "vimco") and traces.closed_kl(q.fn, p.fn) is not None:
        return "pathwise, KL in closed form"
    return "none: reparameterisable" if function == "vimco" else "pathwise"


def _run(role: str, program: Callable, *data: Tensor) -> dict[str, Site]:
    try:
        return traces.run(program, *data)
    except (RuntimeError, ValueError) as error:
        # Pyro's word on plates names the site and both sizes, but no way out. Other sentences
        # that are a ValueError already come from the story itself.
        if str(error).startswith("Shape mismatch inside plate"):
            raise ValueError(
                f"the {role} breaks a plate: {str(error).splitlines()[0]}: give the plate the size "
                "of what is sampled in it, for data plate('data', len(x), dim=-1)."
            ) from error
        if isinstance(error, ValueError):  # without the table of shapes that Pyro appends
            raise ValueError(" ".join(str(error).split("Trace Shapes:")[0].split())) from error
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}".replace("torch.", "") for x in data)
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the {role} cannot run on data of shape {shapes}: {reason}.") from error
    except (TypeError, IndexError) as error:  # such as arguments too many, or a column too far
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the {role} cannot run on {len(data)} arguments: {reason}.") from error


def _check_use_of_plate(role: str, program: Callable, *data: Tensor) -> None:
    misused = traces.misused_plate(program, *data)
    if misused is not None:
        raise ValueError(
            f"plate 'data' of the {role} is {misused[1]} at site '{misused[0]}': write with "
            "pyro.plate('data', len(x), dim=-1), and give fit a batch_size, which scales for you."
        )


def _check_plates(role: str, sites: dict[str, Site], *data: Tensor) -> None:
    for site in sites.values():
        for name, size, dim in site.plates:
            if name == DATA and dim != -1:
                raise ValueError(
                    f"plate 'data' of the {role} is on dim {dim} at site '{site.name}': write "
                    "plate('data', N, dim=-1) and put other plates on dims -2, -3, …"
                )
            if name == DATA and size != len(data[0]):
                raise ValueError(
                    f"plate 'data' of the {role} has size {size} at site '{site.name}', but the data "
                    f"have {len(data[0])} rows: write plate('data', len(x), dim=-1); minibatches "
                    "are scaled for you."
                )
        if site.kind == "deterministic":
            continue
        held = {dim for _, _, dim in site.plates}
        batch = site.value.shape[: site.value.ndim - site.fn.event_dim]
        sizes = tuple(size for _, size, _ in site.plates)
        for dim, size in enumerate(reversed(site.fn.batch_shape), start=1):
            if size != 1 and -dim not in held:
                remedy = (
                    "sample it inside plate('data', N, dim=-1)"
                    if size == len(data[0])
                    else "sample it inside a plate"
                )
                raise ValueError(
                    f"site '{site.name}' of the {role} has batch shape {tuple(site.fn.batch_shape)}, "
                    f"of which dim {-dim} is in no plate: {remedy}, or call .to_event() on what "
                    "belongs together."
                )
        event = site.value.shape[len(batch) :]
        if site.kind == "observed" and not _broadcasts(event, site.fn.event_shape):
            raise ValueError(
                f"site '{site.name}' of the {role} observes events of shape {tuple(event)}, but its "
                f"{distribution_name(site.fn)} has {tuple(site.fn.event_shape)}: build the {role} for "
                "data of this shape."
            )
        if site.kind == "observed" and batch != sizes:
            raise ValueError(
                f"site '{site.name}' of the {role} observes a value of batch shape {tuple(batch)}, "
                f"but its plates are {[(name, size) for name, size, _ in site.plates]}: give each "
                "plate the size of the data in it."
            )


def _broadcasts(a: torch.Size, b: torch.Size) -> bool:
    return all(i == j or 1 in (i, j) for i, j in zip(reversed(a), reversed(b), strict=False))


def _check_pair(p: Site, q: Site) -> None:
    plates = [sorted((name, size) for name, size, _ in site.plates) for site in (p, q)]
    if plates[0] != plates[1]:
        inside = [[name for name, _ in held] for held in plates]
        if inside[0] == inside[1]:
            inside = [[f"{name} of {size}" for name, size in held] for held in plates]
        raise ValueError(
            f"site '{p.name}' is in plates {inside[0]} in the model but {inside[1]} in the guide: "
            "sample it in the same plates."
        )
    if p.value.shape != q.value.shape:
        raise ValueError(
            f"site '{p.name}' has shape {tuple(p.value.shape)} in the model but "
            f"{tuple(q.value.shape)} in the guide: make the event dims agree."
        )
    if not p.fn.support.check(q.value).all():
        raise ValueError(
            f"site '{p.name}' is drawn by the guide from {distribution_name(q.fn)}, outside the "
            f"support of the model's {distribution_name(p.fn)}: choose a family on that support."
        )
