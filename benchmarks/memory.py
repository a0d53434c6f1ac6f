"""Memory of a process over 100,000 steps of a fit, and over 100,000 draws of NUTS.

Run: python benchmarks/memory.py [--quick]

The resident set (RSS) of a process that takes steps of SVI on eight schools, after a tenth of
them, when all is compiled and warm, and after all. The history alone, two numbers a step, is about
64 bytes a step. Likewise of one that calls NUTS time and again for 1000 draws, which it lets go.
"""

import sys
import tempfile
from collections.abc import Callable

import common
import turns

DRAWS = 1000  # of each call


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


def drawing(mode: str) -> Callable[[int], int]:
    """Returns the same for draws of NUTS."""
    import psutil
    import stories

    import pplvm

    model, _, data = stories.STORIES["eight schools"]()

    def draw(count: int) -> int:
        for seed in range(count // DRAWS):
            size = {"num_chains": 2, "num_warmup": 200, "num_samples": DRAWS // 2}
            pplvm.nuts(model, *data, **size, compile=mode, seed=seed, progress=False)
        return psutil.Process().memory_info().rss

    return draw


CONTENDERS = {
    "steps, compiled": (taking_steps, "inductor"),
    "steps, eager": (taking_steps, "off"),
    "draws of NUTS": (drawing, "inductor"),
}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args()
    steps = options.steps // 10 if options.quick else options.steps
    about = common.machine(options.cores)
    rows = []
    for name, (setup, mode) in CONTENDERS.items():
        print(name, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as cache:
            worker = turns.Worker(setup, mode, env={"TORCHINDUCTOR_CACHE_DIR": cache})
            with turns.closing({name: worker}):
                early = worker(steps // 10)
                late = worker(steps - steps // 10)
        rows.append(
            {
                "what": name,
                f"MB after {steps // 10:,}": early / 1e6,
                f"MB after {steps:,}": late / 1e6,
                "growth, bytes each": (late - early) / (steps - steps // 10),
            }
        )
    common.keep("memory", about, vars(options), {"Resident memory": rows}, {})


if __name__ == "__main__":
    main()
