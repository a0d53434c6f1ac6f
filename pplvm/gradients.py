"""The gradient of an objective in a run's parameters: eager at first, compiled once that pays."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pplvm.compile import NotTraceableError, Traced, choose, trace
from pplvm.types import Estimate

# Traces of more shapes of batches than this are not worth their time.
_MOST_SHAPES = 8
# Eager gradients that are timed before "auto" decides.
_TIMED = 3
# Draws by which a trace is compared with the eager gradient, if the first ones differ.
_ATTEMPTS = 3
# Times as slow as eager steps from which on traced ones are not taken: the machine may have been busy.
_SLOWER = 1.3
# Calls at which a trace meets the eager gradient again, in case the story has changed its mind.
_CHECKED_AGAIN = {2**k for k in range(3, 40)}


class Gradient(NamedTuple):
    """One gradient and what is reported of it."""

    grads: list[Tensor | None]  # of each parameter; None where the objective does not see it
    loss: float
    bound: float  # mean over the batch, in nats


class Gradients:
    """Maps batches to gradients.

    Args:
        estimate: The objective, (batch…, KL weight or None) -> Estimate.
        parameters: What to differentiate in.
        places: Returns the dicts and lists in which programs find those parameters, and buffers.
        buffers: Returns what else programs and objective may change, such as running statistics.
        clip_norm: The largest norm of the gradient, or None.
        mode: One of :data:`pplvm.compile.MODES`.
        num_clipped: How many parameters that norm is of, the first ones; by default all.
    """

    def __init__(
        self,
        estimate: Callable[..., Estimate],
        parameters: list[Tensor],
        places: Callable[[], list[dict | list]],
        buffers: Callable[[], dict[str, Tensor]],
        clip_norm: float | None,
        mode: str,
        num_clipped: int | None = None,
    ) -> None:
        self.estimate, self.parameters, self.num_clipped = estimate, parameters, num_clipped
        self.places, self.buffers = places, buffers
        self.clip_norm, self.mode = clip_norm, mode
        self.choice = "off: as asked" if mode == "off" else f"{mode}: not reached"
        self._calls: dict[tuple, list[float]] = {}  # seconds of eager calls, by shape
        self._fast: dict[tuple, _Fast | None] = {}

    def eager(
        self, batch: tuple[Tensor, ...], weight: float | None, validate: bool = False
    ) -> Gradient:
        """Differentiates by running model and guide, under Pyro's checks if so asked."""
        start = time.perf_counter()
        with pyro.validation_enabled(validate):
            *grads, report = self._differentiate(self.parameters, batch, weight)
        found = Gradient(grads, *report.tolist())
        self._calls.setdefault(_key(batch), []).append(time.perf_counter() - start)
        return found

    def __call__(self, batch: tuple[Tensor, ...], weight: float | None, num_left: int) -> Gradient:
        """Differentiates by the trace for this shape of batch, where there is one.

        Args:
            batch: The arguments of the objective.
            weight: The weight of the divergence, None where there is no schedule.
            num_left: Says how many more batches of this shape are to come.
        """
        if self.mode == "off":
            return self.eager(batch, weight)
        key = _key(batch)
        if key not in self._fast:
            if self.mode == "auto" and len(self._calls.get(key, [])) < _TIMED:
                return self.eager(batch, weight)
            self._fast[key] = self._prepare(batch, weight, num_left(batch))
        fast = self._fast.get(key)
        if fast is None:
            return self.eager(batch, weight)
        fast.calls += 1
        if fast.calls in _CHECKED_AGAIN and not self._agrees(fast, batch, weight):
            self._give_up("model or guide no longer do what was traced")
            return self.eager(batch, weight)
        return fast(self.parameters, batch, weight)

    def _differentiate(
        self, parameters: list[Tensor], batch: tuple[Tensor, ...], weight: float | Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Returns the gradient in each parameter, and (loss, mean bound)."""
        with torch.enable_grad():
            estimate = self.estimate(*batch, weight=weight)
            grads = torch.autograd.grad(estimate.loss, parameters, allow_unused=True)
        if self.clip_norm is not None:  # as torch.nn.utils.clip_grad_norm_ has it
            clipped = grads[: self.num_clipped]
            norm = torch.nn.utils.get_total_norm([g for g in clipped if g is not None])
            shrink = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            clipped = [None if g is None else g * shrink for g in clipped]
            grads = [*clipped, *grads[len(clipped) :]]
        return *grads, torch.stack((estimate.loss.detach(), estimate.bound.mean()))

    # ---- tracing ----

    def _prepare(
        self, batch: tuple[Tensor, ...], weight: float | None, num_left: int
    ) -> "_Fast | None":
        """Returns what replaces the eager gradient for this shape of batch, None for nothing."""
        seconds = min(self._calls.get(_key(batch), [0.0]))
        mode, why = choose(self.mode, num_left, seconds)
        if mode == "off":
            if not any(self._fast.values()):  # batches of another shape may be traced
                self.choice = f"off: {why}"
            return None
        if len(self._fast) >= _MOST_SHAPES:
            return self._give_up(f"batches come in more than {_MOST_SHAPES} shapes")
        try:
            fast = self._traced(batch, weight)
            if not self._agrees(fast, batch, weight):
                return self._give_up("the traced gradient differs from the eager one")
        except NotTraceableError as error:
            return self._give_up(str(error))
        mode, why = choose(self.mode, num_left, self._seconds(fast, batch, weight), fast.traced)
        if mode == "inductor":
            try:
                compiled = fast.compiled()
                if not self._agrees(compiled, batch, weight):
                    raise NotTraceableError("the compiled gradient differs from the eager one")
                fast = compiled
            except NotTraceableError as error:
                warnings.warn(f"{error}; the graph runs without it.", stacklevel=2)
                mode, why = "graph", str(error)
        self.choice = f"{mode}: {why}"
        # Long loops may be slower so: their operations were few before.
        if self.mode == "auto" and self._seconds(fast, batch, weight) > _SLOWER * seconds:
            self.choice = f"off: {1e3 * seconds:.2g} ms a call, less than if traced"
            return None
        return fast

    def _traced(self, batch: tuple[Tensor, ...], weight: float | None) -> "_Fast":
        num, unseen, changing = len(self.parameters), [], self._changing(batch, weight)

        def pure(*inputs: Tensor) -> tuple[Tensor, ...]:
            point = [p.detach().requires_grad_() for p in inputs[:num]]
            state = [b.clone() for b in inputs[num : num + len(changing)]]
            rest = inputs[num + len(changing) :]
            found = self.buffers()
            held = [*self.parameters, *(found[name] for name in changing)]
            with self._at(held, [*point, *state]):
                out = self._differentiate(
                    point, *((rest[1:], rest[0]) if weighted else (rest, None))
                )
                found = self.buffers()
                after = [found[name].detach() for name in changing]
            unseen[:] = [g is None for g in out]
            return (*(g.detach() for g in out if g is not None), *after)

        weighted = weight is not None
        extra = (torch.tensor(weight),) if weighted else ()
        with self._undisturbed() as buffers:
            state = [buffers[name] for name in changing]
            traced = trace(pure, *(p.detach() for p in self.parameters), *state, *extra, *batch)
        state = _State(changing, self.buffers)
        return _Fast(traced, list(unseen[:-1]), state, traced.interpreted())

    def _changing(self, batch: tuple[Tensor, ...], weight: float | None) -> list[str]:
        """Returns the names of the buffers that a gradient changes."""
        with self._undisturbed() as buffers, pyro.validation_enabled(False):
            self._differentiate(self.parameters, batch, weight)
            return [n for n, b in self.buffers().items() if not torch.equal(b, buffers[n])]

    @contextmanager
    def _at(self, here: list[Tensor], there: list[Tensor]) -> Iterator[None]:
        """Lets programs find other tensors where their parameters and buffers are."""
        other = {id(p): q for p, q in zip(here, there, strict=True)}
        held = [
            (place, key, p)
            for place in self.places()
            for key, p in (place.items() if isinstance(place, dict) else enumerate(place))
            if id(p) in other
        ]
        for place, key, p in held:
            place[key] = other[id(p)]
        try:
            yield
        finally:
            for place, key, p in held:
                place[key] = p

    @contextmanager
    def _undisturbed(self) -> Iterator[dict[str, Tensor]]:
        """Puts parameters, buffers and random states back as they were."""
        points = [p.detach().clone() for p in self.parameters]
        buffers = {name: b.detach().clone() for name, b in self.buffers().items()}
        with torch.random.fork_rng():
            try:
                yield buffers
            finally:
                with torch.no_grad():
                    for p, value in zip(self.parameters, points, strict=True):
                        p.copy_(value)
                    for name, b in self.buffers().items():
                        b.copy_(buffers[name])

    def _agrees(self, fast: "_Fast", batch: tuple[Tensor, ...], weight: float | None) -> bool:
        """Whether a trace gives the eager gradient near the parameters, by the same draws.

        In single precision, one of many thousand draws of a bit may fall on the other side of its
        threshold: then bounds are near, gradients need not be, and other draws are looked at.
        """
        for attempt in range(_ATTEMPTS):
            same, near = self._compared(fast, batch, weight, seed=_ATTEMPTS * fast.calls + attempt)
            if same or not near:
                return same
        return False

    def _compared(
        self, fast: "_Fast", batch: tuple[Tensor, ...], weight: float | None, seed: int
    ) -> tuple[bool, bool]:
        """Returns whether all is the same up to rounding, and whether the bounds are near."""
        with self._undisturbed() as buffers:
            torch.manual_seed(seed)
            with torch.no_grad():
                for p in self.parameters:
                    p.add_(0.01 * (0.1 + p.abs()) * torch.randn_like(p))
            torch.manual_seed(seed)
            with pyro.validation_enabled(False):
                *want, report = self._differentiate(self.parameters, batch, weight)
            after = {name: b.detach().clone() for name, b in self.buffers().items()}
            with torch.no_grad():
                for name, b in self.buffers().items():
                    b.copy_(buffers[name])
            torch.manual_seed(seed)
            got = fast(self.parameters, batch, weight)
            pairs = [*zip(got.grads, want, strict=True), (torch.tensor(got[1:]), report)]
            pairs += [(b, after[name]) for name, b in self.buffers().items()]
            bound = report[1].item()
            near = abs(got.bound - bound) < 0.01 * abs(bound)
            return all(_close(a, b) for a, b in pairs), near

    def _seconds(self, fast: "_Fast", batch: tuple[Tensor, ...], weight: float | None) -> float:
        times = []
        with self._undisturbed():
            for _ in range(_TIMED):
                start = time.perf_counter()
                fast(self.parameters, batch, weight)
                times.append(time.perf_counter() - start)
        return min(times)

    def _give_up(self, why: str) -> None:
        self.mode, self.choice = "off", f"off: {why}"
        self._fast.clear()
        warnings.warn(f"the steps are not compiled: {why}; they run eagerly.", stacklevel=2)


class _State(NamedTuple):
    """What a gradient changes beside its results, and finds changed the next time."""

    names: list[str]
    buffers: Callable[[], dict[str, Tensor]]

    def now(self) -> list[Tensor]:
        """Returns the buffers."""
        if not self.names:
            return []
        found = self.buffers()
        return [found[name] for name in self.names]

    def become(self, values: list[Tensor]) -> None:
        """Gives the buffers new values."""
        for b, value in zip(self.now(), values, strict=True):
            b.copy_(value)


class _Fast:
    """A traced gradient, as a graph or compiled."""

    def __init__(
        self, traced: Traced, unseen: list[bool], state: _State, function: Callable
    ) -> None:
        self.traced, self._unseen, self._state, self._function = traced, unseen, state, function
        self.calls, self._some_unseen, self._num_state = 0, any(unseen), len(state.names)

    def compiled(self) -> "_Fast":
        return _Fast(self.traced, self._unseen, self._state, self.traced.compiled())

    def __call__(
        self, parameters: list[Tensor], batch: tuple[Tensor, ...], weight: float | None
    ) -> Gradient:
        extra = () if weight is None else (torch.tensor(weight),)
        with torch.no_grad():
            out = self._function(*parameters, *self._state.now(), *extra, *batch)
            if self._num_state:
                self._state.become(out[-self._num_state :])
                out = out[: -self._num_state]
        *grads, report = out
        if self._some_unseen:
            seen = iter(grads)
            grads = [None if unseen else next(seen) for unseen in self._unseen]
        return Gradient(grads, *report.tolist())


def _key(batch: tuple[Tensor, ...]) -> tuple:
    return tuple((x.shape, x.dtype) for x in batch)


def _close(got: Tensor | None, want: Tensor | None) -> bool:
    if got is None or want is None:
        return got is want
    tolerance = 1e-3 if want.dtype == torch.float32 else 1e-7
    scale = want.abs().max().item() if want.numel() else 0.0
    return torch.allclose(
        got.to(want), want, rtol=tolerance, atol=tolerance * scale, equal_nan=True
    )
