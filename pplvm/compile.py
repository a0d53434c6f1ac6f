r"""A function of tensors, traced once to its tensor operations and compiled.

For stories of a few hundred numbers nearly all the time of a step goes into Python: effect
handlers, distributions, autograd. None of that depends on the values of tensors, so it is done
once, by ``make_fx``, and what is left is a graph of tensor operations. The graph runs as it is, or
as the C++ (on CUDA: Triton) code that inductor makes of it.

Random operations are operations like any other: every call draws anew, from torch's own random
state, so that a seed gives the same draws traced or not.

References:
    | PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph
    | Compilation (Ansel et al., 2024) https://doi.org/10.1145/3620665.3640366
"""

__all__ = ["MODES", "NotTraceableError", "Traced", "choose", "trace"]

import os
import random
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor, fx
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx

from pplvm.graphs import SPELLED_OUT, Steady, lift, mutates_inputs

aten = torch.ops.aten

MODES = ("auto", "inductor", "graph", "off")

# Seconds that inductor takes to start, and for each operation; seconds that it spares for each
# operation, and for each number that is passed from one to the next. Rough, from graphs of 30 to
# 600 operations and up to five million numbers, on one core.
_START, _EACH, _SPARED, _PASSED = 3.0, 0.02, 2e-6, 5e-10
# Products and draws, between which inductor's kernels end, from which on there are kernels enough
# for headers to be prepared: that takes three seconds once, and then spares one for each kernel.
_MANY = 4
# Compiled graphs that are kept, the latest of them.
_COMPILED: dict[tuple, Callable] = {}
_KEPT = 64


class NotTraceableError(Exception):
    """Why a function cannot be traced or compiled: half a sentence for the warning."""


@dataclass(frozen=True)
class Traced:
    """A function as its tensor operations."""

    module: fx.GraphModule  # (inputs…, constants…) -> tuple of tensors
    constants: tuple[Tensor, ...]  # what it reads beyond its inputs, such as data
    example: tuple[Tensor, ...]  # inputs, for shapes and dtypes

    @property
    def size(self) -> int:
        """The number of operations."""
        return sum(node.op == "call_function" for node in self.module.graph.nodes)

    @property
    def spared(self) -> float:
        """Seconds that a call takes less when operations are fused, give or take half of them."""
        nodes = [n for n in self.module.graph.nodes if n.op == "call_function"]
        fused = [n.meta.get("val") for n in nodes if not _ends_kernel(n)]
        numbers = sum(value.numel() for value in fused if isinstance(value, Tensor))
        return _SPARED * self.size + _PASSED * numbers

    def interpreted(self) -> Callable[..., tuple[Tensor, ...]]:
        """Returns the graph as a function of its inputs, run operation by operation."""
        forward, constants = self.module.forward, self.constants
        return lambda *inputs: forward(*inputs, *constants)

    def compiled(self, num_threads: int | None = None) -> "Compiled":
        """Returns the graph as a function of its inputs, compiled by inductor.

        Args:
            num_threads: How many threads an operation may use; by default as many as torch does.

        Raises:
            NotTraceableError: There is no compiler, its cache cannot be written to, or it
                rejects an operation.
        """
        inputs = (*self.example, *self.constants)
        return Compiled(compile_graph(self.module, inputs, num_threads), self.constants)

    def batched(self, num_rows: int) -> "Traced":
        """Returns the function of its first input with rows, (C, …) -> (C, …) each."""
        pure = torch.func.functionalize(self.module, remove="mutations")
        others = len(self.example) - 1 + len(self.constants)
        spread = torch.func.vmap(pure, in_dims=(0, *[None] * others))
        first, *rest = self.example
        rows = first.expand(num_rows, *first.shape).contiguous()
        return trace(lambda *inputs: spread(*inputs, *self.constants), rows, *rest)


class Compiled(NamedTuple):
    """A compiled graph, to be called with its inputs."""

    generated: Callable[[list[Tensor]], tuple[Tensor, ...]]  # the code that inductor wrote
    constants: tuple[Tensor, ...]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs it."""
        return self.generated([*inputs, *self.constants])


def trace(
    function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, in_kernels: bool = False
) -> Traced:
    """Traces a function at inputs, by whose values it may not be steered.

    Args:
        function: Maps tensors to a tuple of tensors; it may differentiate by
            ``torch.autograd.grad``.
        inputs: Its arguments.
        in_kernels: Whether small products and solutions are spelled out, for inductor to fuse
            them with the rest instead of calling a library.

    Raises:
        NotTraceableError: It looks at the values of tensors, changes one in place, or draws
            from other random states than torch's.
    """
    _check_cache()  # torch needs it even to trace
    foreign = random.getstate(), np.random.get_state()
    default = Distribution._validate_args
    Distribution.set_default_validate_args(False)  # checks read the values of tensors
    try:
        with torch.random.fork_rng(), pyro.validation_enabled(False), _quiet(), Steady():
            table = SPELLED_OUT if in_kernels else None
            module = make_fx(lambda *given: function(*given), table)(*inputs)  # methods confuse it
    except Exception as error:
        raise NotTraceableError(_reason(error)) from error
    finally:
        Distribution.set_default_validate_args(default)
        drew = random.getstate() != foreign[0], _state(np.random.get_state()) != _state(foreign[1])
        random.setstate(foreign[0])
        np.random.set_state(foreign[1])
    if any(drew):
        whose = "Python's random" if drew[0] else "numpy.random"
        raise NotTraceableError(f"it draws from {whose}, which a trace would freeze: use Pyro")
    if mutates_inputs(module.graph):
        raise NotTraceableError("it changes a tensor that it did not make in place")
    return Traced(*lift(module), inputs)


def compile_graph(
    module: fx.GraphModule, inputs: tuple[Tensor, ...], num_threads: int | None = None
) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
    """Returns what inductor makes of a graph; a ``NotTraceableError`` says why it did not.

    Graphs of one text and shape are compiled once, as for the next data set of a study.
    """
    num_threads = num_threads or torch.get_num_threads()
    layouts = tuple((x.shape, x.stride(), x.dtype, x.device) for x in inputs)
    key = (module.code, layouts, num_threads)
    if key not in _COMPILED:
        try:
            found = _compile(module, inputs, num_threads)
        except Exception as error:
            raise NotTraceableError(f"the compiler gave up: {_reason(error)}") from error
        if len(_COMPILED) == _KEPT:
            del _COMPILED[next(iter(_COMPILED))]
        _COMPILED[key] = found
    return _COMPILED[key]


def _check_cache() -> None:
    """Raises a ``NotTraceableError`` for a folder of compiled code that cannot be written."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise NotTraceableError(
            f"the cache folder '{folder}' that TORCHINDUCTOR_CACHE_DIR names cannot be written "
            f"({error.strerror})"
        ) from error


def _compile(
    module: fx.GraphModule, inputs: tuple[Tensor, ...], num_threads: int
) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
    ends = sum(map(_ends_kernel, module.graph.nodes))
    options = {
        "fallback_random": True,  # torch's own random numbers, the same as uncompiled
        "cpp_cache_precompile_headers": ends >= _MANY,
        "cpp.vec_isa_ok": True,  # the processor's own word: no trial compilations
        "cpp.threads": num_threads,
        # Numbers for which it is worth sharing a loop with another thread: few while products of
        # matrices keep that awake, many where it sleeps.
        "cpp.min_chunk_size": 8192 if ends else 60_000,
        "size_asserts": False,  # they take as long as the smallest kernels
        "alignment_asserts": False,
        "compile_threads": 1,  # in this process: no pool of others is left behind
        "triton.cudagraphs": True,  # on CUDA, launches are captured
    }
    bare: list = []
    with _quiet(), torch.random.fork_rng(), torch.no_grad():
        from torch._inductor import config, lowering  # takes half a second
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner
        from torch._inductor.decomposition import decompositions

        # Its decomposition compares other random numbers than the operation itself.
        draw = aten.bernoulli.default
        kept = {op: d for op, d in decompositions.items() if op != draw}
        if draw not in lowering.lowerings:  # left to itself, inductor refuses under CI
            lowering.make_fallback(draw, warn=False, override_decomp=True)

        def inner(*args, **kwargs):
            bare.append(compile_fx_inner(*args, **kwargs))
            return bare[-1]

        with config.patch(options):
            wrapped = compile_fx(module, list(inputs), inner, decompositions=kept)
        # Around the code is bookkeeping for results that alias inputs, or inputs that change. It
        # takes as long as the code of a small story, and is left out where there are none.
        code = bare[-1].current_callable
        want, got = _seeded(wrapped, *inputs), _seeded(lambda *given: code(list(given)), *inputs)
    plain = len(want) == len(got) and all(
        isinstance(b, Tensor) and torch.allclose(a, b, 0.0, 0.0, equal_nan=True)
        for a, b in zip(want, got, strict=True)
    )
    return code if plain else lambda given: wrapped(*given)


def _ends_kernel(node: fx.Node) -> bool:
    return node.target in (
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
    ) or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _seeded(function: Callable, *inputs: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(function(*inputs))


def choose(
    mode: str, num_calls: int, seconds: float, traced: Traced | None = None
) -> tuple[str, str]:
    """Decides how to run a function, and says why.

    Args:
        mode: What the user asked for, one of :data:`MODES`.
        num_calls: How often it is going to be called.
        seconds: What a call takes now: eagerly, or as a graph once it is traced.
        traced: Its graph, None before it is traced.
    """
    if mode != "auto":
        return mode, "as asked"
    total = num_calls * seconds
    calls = f"{num_calls} calls of {1e3 * seconds:.2g} ms"
    if traced is None:
        return ("graph", calls) if total > 2.0 else ("off", f"{calls} are soon done")
    size = f"{traced.size} operations"
    cost = _START + _EACH * traced.size
    if num_calls * min(traced.spared, seconds) > cost:
        return "inductor", f"{calls}, {size}"
    return "graph", f"{calls}, {size}: compiling would take about {cost:.0f} s"


def _reason(error: Exception) -> str:
    text = str(error)
    if "data-dependent" in text or "value out of a tracing tensor" in text:
        return "it looks at the value of a tensor (if, while, float() or .item())"
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].strip().rstrip(".")[:200]


def _state(state: tuple) -> tuple:
    return state[1].tobytes(), *state[2:]


@contextmanager
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of what it is about to change
        yield
