"""Memory of a process over 100,000 steps of a fit.

Run: python benchmarks/memory.py [--quick]

The resident set (RSS) of a process that takes steps of SVI on eight schools, after a tenth of
them, when all is compiled and warm, and after all. The history alone, two numbers a step, is about
64 bytes a step.
"""

import sys
import tempfile
from collections.abc import Callable

import common
import turns

MODES = {"compiled": "inductor", "eager": "off"}


def taking_steps(mode: str) -> Callable[[int], int]:
    """Returns a function that maps a number of steps, which it takes, to the RSS in bytes."""
    import psutil
    import stories

    run = stories.run("eight schools", mode)
    steps = run.steps()

    def take(count: int) -> int:
        with run.scope():
            for _ in range(count):
                next(steps)
        return psutil.Process().memory_info().rss

    return take


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args()
    steps = options.steps // 10 if options.quick else options.steps
    about = common.machine(options.cores)
    rows = []
    for name, mode in MODES.items():
        print(name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as cache:
            worker = turns.Worker(taking_steps, mode, env={"TORCHINDUCTOR_CACHE_DIR": cache})
            with turns.closing({name: worker}):
                early = worker(steps // 10)
                late = worker(steps - steps // 10)
        rows.append(
            {
                "steps": name,
                f"MB after {steps // 10:,}": early / 1e6,
                f"MB after {steps:,}": late / 1e6,
                "growth, bytes a step": (late - early) / (steps - steps // 10),
            }
        )
    common.keep("memory", about, vars(options), {"Resident memory": rows}, {})


if __name__ == "__main__":
    main()
