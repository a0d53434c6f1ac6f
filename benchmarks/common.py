"""What the benchmarks share: options, a description of the machine, and tables that are kept.

Results are medians over rounds (``turns.py``), printed as Markdown and kept in
``benchmarks/results``, with all single measurements, as JSON.
"""

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "pyro-ppl", "nutpie", "numpyro", "jax", "jaxlib", "numpy", "pplvm")
POSTERIORS = (
    "eight_schools-eight_schools_noncentered",
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "hmm_example-hmm_example",
    "kidiq-kidscore_interaction",
    "earnings-logearn_height",
    "arK-arK",
    "sblri-blr",
)
WIDTH = 12  # of a column of the tables, but for the first

Row = Mapping[str, str | float | None]


# ---- tables ----


def best(times: Mapping[str, Sequence[float]], beginning: str) -> float | None:
    """Returns the least median of the contenders whose names begin so, if there is one."""
    medians = [statistics.median(v) for k, v in times.items() if k.startswith(beginning)]
    return min(medians, default=None)


def with_means(rows: Sequence[Row], ratios: str) -> list[Row]:
    """Returns rows and one more: geometric means of the columns whose names have this in them."""
    means: dict[str, str | float | None] = dict.fromkeys(rows[0])
    for column in (c for c in rows[0] if ratios in c):
        there = [row[column] for row in rows if row[column] is not None]
        means[column] = statistics.geometric_mean(there) if there else None
    return [*rows, means | {next(iter(means)): "geometric mean"}]


def machine(cores: int | None) -> dict[str, str]:
    """Keeps this process and those it will start to so many cores, and describes the machine.

    PyTorch and XLA then take as many threads: ``OMP_NUM_THREADS`` would bind PyTorch alone.
    """
    load = f"{os.getloadavg()[0]:.2f}"
    available = sorted(os.sched_getaffinity(0))
    used = available[:cores]
    os.sched_setaffinity(0, used)
    os.environ["OMP_NUM_THREADS"] = str(len(used))
    models = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores used": f"{len(used)} of {len(available)}",
        "load before": load,  # more than a little: others worked here
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def number(value: str | float | None) -> str:
    """Formats a number to three digits."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if not math.isfinite(value) or value == 0:
        return f"{value:.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def markdown(title: str, rows: Sequence[Row]) -> str:
    """Returns a table of rows that have the same keys."""
    cells = [list(rows[0]), *([number(v) for v in row.values()] for row in rows)]
    first = max(len(row[0]) for row in cells)
    widths = [first, *(max(WIDTH, len(name)) for name in cells[0][1:])]

    def line(row: list[str]) -> str:
        rest = (cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))
        return "| " + " | ".join((row[0].ljust(first), *rest)) + " |"

    rule = "|" + "|".join(["-" * (first + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([f"**{title}**", "", line(cells[0]), rule, *map(line, cells[1:]), ""])


def keep(
    name: str,
    about: dict[str, str],
    settings: Mapping,
    tables: Mapping[str, Sequence[Row]],
    raw: Mapping,
) -> None:
    """Prints tables, and writes them to ``results/name.md`` and, with all else, ``name.json``.

    Args:
        name: The benchmark.
        about: What :func:`machine` said before all else.
        settings: The options of the program.
        tables: Rows by title.
        raw: Every single measurement.
    """
    versions = {package: version(package) for package in PACKAGES}
    facts = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": about,
        "versions": versions,
        "settings": dict(settings),
    }
    text = "\n".join(markdown(title, rows) for title, rows in tables.items())
    small = "\n".join(f"- {k}: {', '.join(map(str, _items(v)))}" for k, v in facts.items())
    print("\n" + text + "\n" + small, flush=True)
    everything = facts | {"tables": {k: list(map(dict, v)) for k, v in tables.items()}, "raw": raw}
    _write(RESULTS / f"{name}.md", text + "\n" + small + "\n")
    _write(RESULTS / f"{name}.json", json.dumps(everything, indent=1, ensure_ascii=False) + "\n")


def _items(value) -> list[str]:
    return [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else [value]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)  # an interrupted run leaves the last results as they were


# ---- options ----


def parser(description: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """Returns a parser of the options that the programs share."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--cores", type=int, help="how many to use; by default all")
    made.add_argument("--quick", action="store_true", help="less of everything")
    return made


def posteriordb_folder() -> Path:
    """Returns the folder of posteriordb's data and reference draws, or ends the program."""
    folder = Path(os.environ.get("PPLVM_DATA", ""), "posteriordb")
    if not (folder / "draws").is_dir():
        raise SystemExit(
            "PPLVM_DATA should name the folder of the data sets, with posteriordb/draws in it."
        )
    return folder
