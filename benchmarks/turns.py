"""Contenders in processes of their own, which take turns.

Each waits at its pipe, without using the processor, while another one works, so that whatever else
the machine does falls on all of them.
"""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from unittest import mock


class Worker:
    """Creates a process that makes a function by ``setup(*args)`` and then calls it on request.

    Args:
        setup: A function of a module, which imports what only this process is to have.
        args: Its arguments.
        env: Environment variables of the process.
    """

    def __init__(self, setup: Callable, *args, env: Mapping[str, str] | None = None) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(there, setup, args))
        with mock.patch.dict(os.environ, env or {}):
            self._process.start()
        there.close()
        self._receive()

    def __call__(self, *args):
        """Returns what the function does."""
        self._pipe.send(args)
        return self._receive()

    def close(self) -> None:
        """Ends the process."""
        with suppress(BrokenPipeError):  # it has failed, and ended
            self._pipe.send(None)
        self._process.join()

    def _receive(self):
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError("a contender's process died: see above") from None
        if failed:
            raise RuntimeError(f"a contender failed:\n{answer}")
        return answer


def _serve(pipe, setup: Callable, args: tuple) -> None:
    try:
        function = setup(*args)
        pipe.send((False, None))
        while (asked := pipe.recv()) is not None:
            pipe.send((False, function(*asked)))
    except Exception:
        pipe.send((True, traceback.format_exc()))
    if "joblib" in sys.modules:  # it ends its processes at the exit that this one does not have
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(kill_workers=True)


@contextmanager
def closing(workers: Mapping[object, Worker]):
    """Ends processes whatever happens."""
    try:
        yield
    finally:
        for worker in workers.values():
            worker.close()


class Step:
    """Times calls, each of which takes so many steps.

    Args:
        call: Takes the steps.
        steps: How many they are.
        wait: Returns once they are done, where calls only ask for them.
    """

    def __init__(
        self, call: Callable[[], object], steps: int = 1, wait: Callable = lambda last: last
    ) -> None:
        self.call, self.steps, self.wait = call, steps, wait

    def seconds(self, budget: float) -> float:
        """Returns the seconds of a step, averaged over calls that take about so long in all."""
        self.wait(self.call())  # also touches what others have put out of the caches
        once = self._time(1)
        return self._time(max(1, round(budget / once))) / self.steps

    def _time(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            last = self.call()
        self.wait(last)
        return (time.perf_counter() - start) / count


def measure(
    contenders: Mapping[Callable, Sequence[str]], name: str, rounds: int, budget: float
) -> dict[str, list[float]]:
    """Returns what each contender says in each round, after a round of warm-up.

    Args:
        contenders: What makes, of ``name``, a function that maps a kind and a budget to the seconds
            of a step, and its kinds. Each has a process of its own, with empty caches.
        name: What to measure with.
        rounds: How often all of them take a turn.
        budget: Seconds of a turn.
    """
    print(name, file=sys.stderr, flush=True)
    times: dict[str, list[float]] = {kind: [] for kinds in contenders.values() for kind in kinds}
    workers: dict[Callable, Worker] = {}
    with tempfile.TemporaryDirectory() as cache, closing(workers):
        for setup in contenders:
            workers[setup] = Worker(setup, name, env={"TORCHINDUCTOR_CACHE_DIR": cache})
        for r in range(rounds + 1):
            for setup, kinds in contenders.items():
                for kind in kinds:
                    times[kind].append(workers[setup](kind, budget if r else 0.0))
    return {kind: seconds[1:] for kind, seconds in times.items()}
