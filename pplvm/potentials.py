r"""The potential of a story as a function of one flat vector, traced and compiled.

A point u in R^D is all continuous latents side by side, on their unconstrained scale: see
:mod:`pplvm.traces.potentials`. Shapes: C chains, S draws, D unknowns.
"""

import time
import warnings
from collections.abc import Callable, Iterable
from functools import cached_property

import pyro
import torch
from torch import Tensor

from pplvm import traces
from pplvm.batches import floating_dtype
from pplvm.compile import NotTraceableError, Traced, choose, trace
from pplvm.native import Native, native

# (…, D) -> potential (…), gradient (…, D)
Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]

# Points that are tried for each chain before the potential counts as infinite everywhere.
_TRIES = 100
# A batch of draws is put on its own scale at once as long as it has at most so many numbers.
_PART = 10_000_000


class Potential:
    """The potential of a story's continuous latents.

    Args:
        model: A story at fixed parameters.
        data: Its arguments.
        mode: How to run it, one of :data:`pplvm.compile.MODES`.
        num_calls: How often its gradient will be asked for, by which "auto" decides.
    """

    def __init__(
        self, model: Callable, *data: Tensor, mode: str = "auto", num_calls: int = 100_000
    ) -> None:
        self.model, self.data, self.mode, self.num_calls = model, data, mode, num_calls
        self.even = traces.loops_are_even(model, *data)
        with torch.random.fork_rng():
            self.shapes = traces.unconstrained_shapes(model, *data, even=self.even)
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.device, self.dtype = data[0].device, floating_dtype(model)
        self.choice = "off: as asked" if mode == "off" else f"{mode}: not reached"

    @property
    def dim(self) -> int:
        """The number of unknowns D."""
        return sum(self.sizes)

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Cuts a point (D,) into the latents on their unconstrained scale."""
        parts = zip(self.shapes.items(), x.to(self.dtype).split(self.sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def eager(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns potential () and gradient (D,) at a point (D,), by running the story."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = traces.potential(self.model, self.split(x), *self.data, even=self.even)
            (gradient,) = torch.autograd.grad(value, x)
        return value.detach().to(x.dtype), gradient

    def start(self, generator: torch.Generator, gradient: Gradient | None = None) -> Tensor:
        """Returns a point (D,), float64, with a finite potential and gradient.

        Uniform on (-2, 2), as in Stan; where a hundred such points fail, a ``ValueError`` names
        the first site whose density is not finite. The gradient is the eager one unless given.
        """
        for _ in range(_TRIES):
            x = torch.rand(self.dim, generator=generator, dtype=torch.float64) * 4.0 - 2.0
            x = x.to(self.device)
            with pyro.validation_enabled(False):
                value, slope = (gradient or self.eager)(x)
            if torch.isfinite(value) and torch.isfinite(slope).all():
                return x
        raise ValueError(
            f"the potential is not finite at {_TRIES} points drawn at random, first at site "
            f"'{self._culprit(x)}': check that its density is finite wherever its support is, and "
            "keep scales away from 0."
        )

    def starts(self, rows: Gradient, num_rows: int, seed: int) -> Tensor:
        """Returns points (C, D) as :meth:`start` does, by a batched gradient."""
        generator = torch.Generator().manual_seed(seed)
        points = torch.full((num_rows, self.dim), torch.nan, dtype=torch.float64)
        lost = torch.ones(num_rows, dtype=torch.bool)
        for _ in range(_TRIES):
            x = torch.rand(points.shape, generator=generator, dtype=torch.float64) * 4.0 - 2.0
            points = torch.where(lost[:, None], x, points)
            value, gradient = rows(points.to(self.device))
            lost = ~(value.isfinite() & gradient.isfinite().all(1)).cpu()
            if not lost.any():
                return points.to(self.device)
        for row in lost.nonzero()[:, 0]:
            points[row] = self.start(generator)  # or an error that names the site
        return points.to(self.device)

    def _culprit(self, x: Tensor) -> str:
        with torch.no_grad(), pyro.validation_enabled(False):
            values = traces.constrained(self.model, self.split(x), *self.data)
            terms = traces.site_log_probs(self.model, values, *self.data)
        names = [name for name, term in terms.items() if not torch.isfinite(term)]
        return names[0] if names else next(iter(self.shapes))

    def _own(self, x: Tensor) -> tuple[Tensor, ...]:
        latents = self.split(x)
        return tuple(traces.constrained(self.model, latents, *self.data, even=self.even).values())

    @cached_property
    def _spread(self) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """Maps points (S, D) to each latent on its own scale, (S, plates…, event…)."""
        point = torch.zeros(1, self.dim, dtype=torch.float64, device=self.device)
        try:
            traced = trace(self._own, point[0])
            spread = torch.func.vmap(lambda x: traced.module(x, *traced.constants))
            spread(point)
        except (NotTraceableError, RuntimeError):  # slow, but right
            return lambda rows: [torch.stack(v) for v in zip(*map(self._own, rows), strict=True)]
        return spread

    def constrain(self, draws: Tensor) -> dict[str, Tensor]:
        """Puts draws (C, S, D) on the latents' own scale, (C, S, plates…, event…) each."""
        wide = max(1, _PART // max(self.dim, *(x.numel() for x in self.data)))
        with torch.no_grad(), pyro.validation_enabled(False):
            parts = [self._spread(part) for part in draws.flatten(0, 1).split(wide)]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        size = draws.shape[:2]
        return {n: v.unflatten(0, size) for n, v in zip(self.shapes, columns, strict=True)}

    def prepare(self, num_rows: int | None = None) -> Gradient:
        """Traces and compiles all that sampling needs, and returns the gradient of one or many."""
        _ = self._spread
        if num_rows is not None:
            return self.rows(num_rows)
        _ = self.native
        return self.single

    # ---- fast ----

    @cached_property
    def traced(self) -> Traced | None:
        """The gradient as a graph; None, with a warning, where it cannot be trusted."""
        if self.mode == "off":
            return None
        point = self.start(torch.Generator().manual_seed(0))
        try:
            traced = trace(self.eager, point, in_kernels=True)
            self._compare(traced.interpreted())
        except NotTraceableError as error:
            self.choice = f"off: {error}"
            warnings.warn(f"the potential is not compiled: {error}; it runs eagerly.", stacklevel=2)
            return None
        return traced

    @cached_property
    def single(self) -> Gradient:
        """The gradient at one point, as fast as ``mode`` allows."""
        return self._fast(self.traced, self.num_calls)

    def rows(self, num_rows: int) -> Gradient:
        """Returns the gradient at many points (C, D) at once."""
        if self.traced is None:
            return self._each
        try:
            traced = self.traced.batched(num_rows)
            self._compare(traced.interpreted(), num_rows)
        except NotTraceableError as error:
            warnings.warn(f"chains are not batched: {error}; they take turns.", stacklevel=2)
            return self._each
        return self._fast(traced, self.num_calls // num_rows, num_rows)

    @cached_property
    def native(self) -> Native | None:
        """The gradient as a C function of float64, where it is compiled and all kernels."""
        found = self.single
        if self.device.type != "cpu" or not self.choice.startswith("inductor"):
            return None
        point = self.start(torch.Generator().manual_seed(0))
        return native(found.generated, point, found.constants)

    def _fast(self, traced: Traced | None, num_calls: int, num_rows: int | None = None) -> Gradient:
        """Returns the graph, compiled if that pays; or what runs the story, if there is none."""
        if traced is None:
            return self.eager
        graph = traced.interpreted()
        start = time.perf_counter()
        graph(*traced.example)
        mode, why = choose(self.mode, num_calls, time.perf_counter() - start, traced)
        self.choice = f"{mode}: {why}"
        if mode != "inductor":
            return graph
        try:
            # One point at a time leaves the other cores to the other chains.
            compiled = traced.compiled(num_threads=1 if num_rows is None else None)
            self._compare(compiled, num_rows)
        except NotTraceableError as error:
            self.choice = f"graph: {error}"
            warnings.warn(f"{error}; the graph runs without it.", stacklevel=2)
            return graph
        return compiled

    def _compare(self, fast: Gradient, num_rows: int | None = None) -> None:
        """Raises unless a fast gradient is the eager one, at points drawn at random."""
        generator = torch.Generator().manual_seed(1)
        points = torch.stack([self.start(generator) for _ in range(2)])  # (2, D)
        want = _stacked(map(self.eager, points))
        if num_rows is None:
            got = _stacked(map(fast, points))
        else:
            value, gradient = fast(points.repeat(-(-num_rows // 2), 1)[:num_rows])
            got = torch.cat((value[:, None], gradient), 1)[:2]
            want = want[:num_rows]
        tolerance = 1e-3 if self.dtype == torch.float32 else 1e-7
        if not torch.allclose(got, want, rtol=tolerance, atol=tolerance * float(want.abs().max())):
            raise NotTraceableError("the fast gradient differs from the eager one")

    def _each(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = zip(*(self.single(row) for row in rows), strict=True)
        return torch.stack(values), torch.stack(gradients)


def _stacked(found: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([torch.cat((value[None], gradient)) for value, gradient in found])
