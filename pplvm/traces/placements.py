"""A model run at given latents: the continuous ones by bijections of R^n, the discrete listed.

Nothing is drawn. With Pyro's validation off, ``make_fx`` follows these runs.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from math import prod
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer.util import is_validation_enabled
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor
from torch.distributions import biject_to
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pplvm.traces.elimination import check_size
from pplvm.traces.families import distribution_name
from pplvm.traces.sites import samples

MANY = 2**16  # joint states from which on the size of every table is looked at first
NO_LOOPS = nullcontext()  # loops over time are run as they stand
NO_PLATE = nullcontext()


class Latent(NamedTuple):
    """What one run says of a latent."""

    fn: Any
    value: Tensor  # (batch…, event…): plates that it is not in have size 1
    u: Tensor | None  # (plates…, unconstrained event…); None where it is discrete
    plates: torch.Size
    num_states: int = 1


class Plan(NamedTuple):
    """One run at given continuous latents, with discrete ones in their first states."""

    trace: poutine.Trace
    latents: dict[str, Latent]
    log_det: Tensor  # (): log |dz/du|
    depth: int  # how many dims the run has taken, on the right

    @property
    def continuous(self) -> dict[str, Latent]:
        """The latents that move."""
        return {name: z for name, z in self.latents.items() if z.u is not None}

    @property
    def discrete(self) -> dict[str, Latent]:
        """The latents to sum out."""
        return {name: z for name, z in self.latents.items() if z.u is None}

    @property
    def num_joint_states(self) -> int:
        """How many combinations of states the discrete latents of a datum have, at most."""
        return prod(z.num_states for z in self.discrete.values())


def plan(
    model: Callable,
    *data: Tensor,
    u: dict[str, Tensor] | None = None,
    values: dict[str, Tensor] | None = None,
    loops: AbstractContextManager = NO_LOOPS,
) -> Plan:
    """Runs a model at ``u``, or at ``values`` (plates…, event…), or at zero without constraint."""
    with TraceMessenger() as tracer, _Traceable(), _Move(u, values, device_of(data)) as move, loops:
        model(*data)
    taken = [0]  # by plates, or by observations with dims of no plate
    for _, site in samples(tracer.trace):
        taken += [len(site["fn"].batch_shape), site["value"].ndim - site["fn"].event_dim]
    return Plan(tracer.trace, move.latents, move.log_det, max(taken))


def device_of(data: tuple[Any, ...]) -> torch.device | None:
    """Returns the device of the data, None if there are none."""
    return next((x.device for x in data if isinstance(x, Tensor)), None)


def at(model: Callable, values: dict[str, Tensor], *data: Tensor) -> poutine.Trace:
    """Runs a model at given latents, as they stand in a run; what is not given is drawn."""
    with TraceMessenger() as tracer, _Traceable(), _Fix(values):
        model(*data)
    return tracer.trace


def enumerated(
    model: Callable,
    values: dict[str, Tensor],
    depth: int,
    *data: Tensor,
    loops: AbstractContextManager = NO_LOOPS,
    plate: AbstractContextManager = NO_PLATE,
    bounded: Iterable[str] = (),
) -> poutine.Trace:
    """Runs a model at given latents, and at every state of all others, in dims on the left.

    Args:
        model: The story.
        values: Latents as they stand in a run, (batch…, event…).
        depth: How many dims plates take.
        data: The arguments of the story.
        loops: How loops over time are run.
        plate: One around all others, of particles.
        bounded: Names of the others, if the size of every table is to be looked at before it is
            made.
    """
    with (
        TraceMessenger() as tracer,
        _Traceable(),
        _Fix(values),
        _Enumerate(-1 - depth),
        _Parallel(values),
        _Bounded(bounded) if bounded else nullcontext(),
        loops,
        plate,  # inside, lest it come after what has been listed
    ):
        try:
            model(*data)
        except RuntimeError as error:
            if "64 dims" not in str(error):
                raise
            raise ValueError(
                f"the discrete latents up to site '{list(tracer.trace.nodes)[-1]}' take more than the "
                "64 dims that a tensor may have, one for each: sample them in pyro.plate, or loop "
                "over them with pyro.markov."
            ) from error
    return tracer.trace


class _Bounded(TorchDispatchMode):
    """Refuses to make a tensor of all joint states where it would fill the memory."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = list(names)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        shapes = [x.shape for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        try:
            size = torch.broadcast_shapes(*shapes).numel()
        except RuntimeError:  # no operation of elements: a product of matrices, or an index
            size = max(shape.numel() for shape in shapes)
        check_size(size, self.names)
        return function(*args, **(kwargs or {}))


class _Move(Messenger):
    """Gives each latent its value: by a bijection of ``u``, as given, or the first of its states."""

    def __init__(
        self, u: dict[str, Tensor] | None, values: dict[str, Tensor] | None, device: Any
    ) -> None:
        super().__init__()
        self.u, self.values = u, values
        self.latents: dict[str, Latent] = {}
        self.log_det = torch.zeros((), device=device)

    def _pyro_sample(self, msg: dict) -> None:
        name, fn = msg["name"], msg["fn"]
        if poutine.util.site_is_subsample(msg) or msg["is_observed"] or msg["done"]:
            return
        if distribution_name(fn) == Delta.__name__:
            return
        frames = [f for f in msg["cond_indep_stack"] if f.vectorized]
        plates = torch.Size(f.size for f in sorted(frames, key=lambda frame: frame.dim))
        if plates.numel() != prod(fn.batch_shape):
            plates = torch.Size(fn.batch_shape)  # dims of no plate
        if _is_discrete(name, fn):
            first, num_states = _states(name, fn)
            latent = Latent(fn, first, None, plates, num_states)
        else:
            try:
                latent = self._place(name, fn, plates)
            except NotImplementedError as error:
                raise ValueError(
                    f"site '{name}' ({distribution_name(fn)}) has no bijection from R^n to its support, "
                    "with a Jacobian: write it as a transform of latents that have one, such as "
                    "LKJCholesky times scales."
                ) from error
        self.latents[name] = latent
        msg["value"], msg["done"] = latent.value, True

    def _place(self, name: str, fn: Any, plates: torch.Size) -> Latent:
        transform, shape = biject_to(fn.support), fn.batch_shape + fn.event_shape
        free = transform.inverse_shape(shape)  # (batch…, unconstrained event…)
        event = free[len(fn.batch_shape) :]
        if self.values is not None:
            value = _find(name, self.values, plates + fn.event_shape).reshape(shape)
            return Latent(fn, value, transform.inv(value).reshape(plates + event), plates)
        if self.u is None:
            u = torch.zeros(plates + event, dtype=_dtype(fn), device=self.log_det.device)
        else:
            u = _find(name, self.u, plates + event)
        value = transform(u.reshape(free))
        self.log_det = self.log_det + transform.log_abs_det_jacobian(u.reshape(free), value).sum()
        return Latent(fn, value, u, plates)


class _Fix(Messenger):
    """Gives latents their values."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class _Enumerate(EnumMessenger):
    """Lists states without ``make_fx`` seeing it: some distributions read how many there are."""

    def _pyro_sample(self, msg: dict) -> None:
        with disable_proxy_modes_tracing():
            super()._pyro_sample(msg)


class _Parallel(Messenger):
    """Marks the latents to enumerate, whatever the story says of them: discrete ones not given."""

    def __init__(self, given: Iterable[str]) -> None:
        super().__init__()
        self.given = given

    def _pyro_sample(self, msg: dict) -> None:
        if poutine.util.site_is_subsample(msg):
            return
        listed = msg["name"] not in self.given and not msg["is_observed"] and not msg["done"]
        how = "parallel" if listed and distribution_name(msg["fn"]) != Delta.__name__ else None
        msg["infer"].update(enumerate=how, expand=False, num_samples=None)


class _Traceable(Messenger):
    """Spares ``make_fx`` what it cannot follow: the indices of plates, and checks of values."""

    def _pyro_sample(self, msg: dict) -> None:
        fn = msg["fn"]
        if not poutine.util.site_is_subsample(msg):
            if not is_validation_enabled():
                msg["fn"] = _unchecked(fn)
            return
        if fn.subsample_size is not None and fn.subsample_size < fn.size:
            raise ValueError(
                f"plate '{msg['name']}' takes {fn.subsample_size} of {fn.size} data, but a potential "
                "is of all data: write the plate without subsample_size."
            )
        if msg["value"] is None:
            with disable_proxy_modes_tracing():
                msg["value"] = fn()


def _unchecked(fn: Any) -> Any:
    """Returns the distribution without validation: one made while that was on, a prior, keeps it."""
    fn = copy(fn)
    if hasattr(fn, "base_dist"):  # first, for a wrapper may hand the flag on to it
        fn.base_dist = _unchecked(fn.base_dist)
    fn._validate_args = False
    return fn


def _dtype(fn: Any) -> torch.dtype:
    """Returns the dtype of what a distribution draws, by its parameters: nothing is drawn."""
    for value in vars(fn).values():
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.dtype
    return _dtype(fn.base_dist) if hasattr(fn, "base_dist") else torch.get_default_dtype()


def _is_discrete(name: str, fn: Any) -> bool:
    try:
        return fn.support.is_discrete
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"site '{name}' ({distribution_name(fn)}) does not say what its support is: give the "
            "distribution a 'support', or write the site as a transform of others."
        ) from error


def _states(name: str, fn: Any) -> tuple[Tensor, int]:
    """Returns the first state of a discrete latent, and how many there are."""
    # An index that make_fx does not see, as a story may ask for a number by it.
    try:
        with disable_proxy_modes_tracing():
            states = fn.enumerate_support()
            return states[0], len(states)
    except NotImplementedError as error:
        raise ValueError(
            f"site '{name}' ({distribution_name(fn)}) is discrete, with states that cannot be listed "
            "and summed out: observe it, truncate it to a Categorical, or sample each of its values "
            "in pyro.plate rather than to_event."
        ) from error


def _find(name: str, given: dict[str, Tensor], shape: torch.Size) -> Tensor:
    if name not in given:
        raise ValueError(
            f"site '{name}' is given no value (there are {sorted(given)}): give one of shape "
            f"{tuple(shape)}."
        )
    if given[name].shape != shape:
        raise ValueError(
            f"site '{name}' is given a value of shape {tuple(given[name].shape)}: give one of shape "
            f"{tuple(shape)}."
        )
    return given[name]
