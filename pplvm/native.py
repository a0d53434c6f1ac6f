r"""A compiled potential as a C function: no Python, and no interpreter lock, between two gradients.

What inductor compiles is a few C++ kernels and a Python function that calls them one after the
other on freshly allocated tensors. For ten unknowns that function takes five times as long as the
kernels. Here it runs once, watched: which kernel it calls, and on which memory. The list is then
replayed by a C function, with memory of its own for each thread, as CUDA graphs replay launches.
"""

__all__ = ["Native", "native"]

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# No kernel of inductor's takes more arguments than this; a story that needs them is not replayed.
_ARITY = 120
_ALIGNMENT = 64  # bytes
_ABSOLUTE, _X, _SCRATCH = 0, 1, 2


def _case(n: int) -> str:
    types, args = ", ".join(["void *"] * n), ", ".join(f"a[{i}]" for i in range(n))
    return f"        case {n}: ((void (*)({types}))fn)({args}); break;"


_CASES = "\n".join(map(_case, range(1, _ARITY + 1)))
# The plan is an array: number of calls, bytes of scratch, where potential and gradient are found,
# then function, number of arguments and the arguments of each call.
_SOURCE = f"""
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void make_key(void) {{ pthread_key_create(&key, free); }}

static char *scratch_of(int64_t bytes) {{
    pthread_once(&once, make_key);
    int64_t *held = (int64_t *)pthread_getspecific(key);
    if (!held || held[0] < bytes) {{
        free(held);
        if (posix_memalign((void **)&held, {_ALIGNMENT}, bytes + {_ALIGNMENT})) abort();
        held[0] = bytes;
        pthread_setspecific(key, held);
    }}
    return (char *)held + {_ALIGNMENT};
}}

static void *resolve(const int64_t *arg, const double *x, char *scratch) {{
    if (arg[0] == {_ABSOLUTE}) return (void *)arg[1];
    return arg[0] == {_X} ? (char *)x + arg[1] : scratch + arg[1];
}}

extern "C" int64_t log_density(
    size_t dim, const double *x, double *grad, double *out, const void *data
) {{
    const int64_t *plan = (const int64_t *)data;
    char *scratch = scratch_of(plan[1]);
    void *a[{_ARITY}];
    const int64_t *next = plan + 6;
    for (int64_t call = 0; call < plan[0]; call++) {{
        void *fn = (void *)next[0];
        int64_t num = next[1];
        next += 2;
        for (int64_t i = 0; i < num; i++, next += 2) a[i] = resolve(next, x, scratch);
        switch (num) {{
{_CASES}
        }}
    }}
    *out = -*(double *)resolve(plan + 2, x, scratch);
    const double *g = (const double *)resolve(plan + 4, x, scratch);
    int64_t finite = isfinite(*out);
    for (size_t i = 0; i < dim; i++) {{
        grad[i] = -g[i];
        finite = finite && isfinite(g[i]);
    }}
    return !finite;  // which a sampler takes for a divergence
}}

extern "C" int64_t copy(size_t dim, size_t, const double *x, double *out, const void *) {{
    memcpy(out, x, dim * sizeof(double));
    return 0;
}}
"""


class Native:
    """Addresses of C functions for :mod:`nutpie`, and what has to stay alive for them.

    ``log_density(dim, x, gradient, value, plan)`` writes the log-density and its gradient at x and
    returns 0, or 1 where one of them is not finite; ``copy(dim, dim, x, out, plan)`` copies.
    """

    def __init__(self, plan: np.ndarray, held: Any) -> None:
        from torch._inductor import config
        from torch._inductor.codecache import CppCodeCache

        with config.patch({"cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": True}):
            self._library = CppCodeCache.load(_SOURCE)
        self.plan, self._held = plan, held

    def address(self, name: str) -> int:
        """Returns the address of one of the two functions."""
        return ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns potential () and gradient (D,) at x (D,), for tests."""
        x = x.contiguous()
        value, gradient = torch.empty((), dtype=x.dtype), torch.empty_like(x)
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (x, gradient, value))
        self._library.log_density(
            ctypes.c_size_t(len(x)), *pointers, ctypes.c_void_p(self.plan.ctypes.data)
        )
        return -value, -gradient


def native(call: Callable, x: Tensor, constants: tuple[Tensor, ...]) -> Native | None:
    """Returns a potential as a C function, or None where it is more than kernels.

    Args:
        call: What inductor made of (x, constants…) -> (potential (), gradient (D,)).
        x: A point (D,), float64.
        constants: What else it reads; their memory is read in place.
    """
    watched = _watch(call, x, constants)
    if watched is None:
        return None
    calls, (potential, gradient) = watched
    places = _Places(x, constants)
    body = []
    for address, args in calls:
        if len(args) > _ARITY:
            return None
        body += [address, len(args), *(n for t in args for n in places.of(t))]
    if potential.dtype != torch.float64 or not gradient.is_contiguous():
        return None
    head = [len(calls), 0, *places.of(potential), *places.of(gradient)]
    head[1] = places.size
    return Native(np.array(head + body, dtype=np.int64), (x, constants, calls, call))


def _watch(call: Callable, x: Tensor, constants: tuple[Tensor, ...]):
    """Runs once and returns the kernels' calls and the results, None if there is anything else."""
    namespace = getattr(getattr(call, "__func__", call), "__globals__", {})
    kernels = {n: f for n, f in namespace.items() if n.startswith("cpp_fused")}
    calls: list[tuple[int, tuple[Tensor, ...]]] = []

    def recorder(kernel: Callable) -> Callable:
        address = _address(kernel)

        def record(*args: Tensor) -> None:
            calls.append((address, args))
            kernel(*args)

        return record

    try:
        namespace.update({name: recorder(kernel) for name, kernel in kernels.items()})
        with torch.no_grad(), _Strict():
            results = call([x, *constants])
    except _OtherOperationError:
        return None
    finally:
        namespace.update(kernels)
    if not kernels or not all(isinstance(t, Tensor) for _, args in calls for t in args):
        return None
    return calls, results


def _address(kernel: Callable) -> int:
    library = ctypes.CDLL(kernel.__self__.__file__)
    return ctypes.cast(library.kernel, ctypes.c_void_p).value


class _OtherOperationError(Exception):
    """An operation that is no kernel."""


class _Strict(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise _OtherOperationError(str(function))


class _Places:
    """Where the memory of tensors is to be found in a replay."""

    def __init__(self, x: Tensor, constants: tuple[Tensor, ...]) -> None:
        self._x = _base(x)
        self._constants = {_base(c) for c in constants}
        self._scratch: dict[int, int] = {}
        self.size = 0

    def of(self, tensor: Tensor) -> tuple[int, int]:
        base = _base(tensor)
        offset = tensor.data_ptr() - base
        if base in self._constants:
            return _ABSOLUTE, tensor.data_ptr()
        if base == self._x:
            return _X, offset
        if base not in self._scratch:
            self._scratch[base] = self.size
            size = tensor.untyped_storage().nbytes()
            self.size += -(-size // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT  # kernels may read on
        return _SCRATCH, self._scratch[base] + offset


def _base(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
