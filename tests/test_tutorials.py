"""Every tutorial is a percent notebook, and runs as a script, in short, without a warning."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "tutorials").glob("[0-9]*.py"))
CELL = re.compile(r"^# %%.*$", re.MULTILINE)
# The script's figures stay open, so they can be counted and drawn once it is done.
RUN = """
import runpy, sys
import matplotlib.pyplot as plt
runpy.run_path(sys.argv[1], run_name="__main__")
figures = [plt.figure(number) for number in plt.get_fignums()]
for figure in figures:
    figure.canvas.draw()
bare = [
    f"figure {figure.number}" for figure in figures for ax in figure.axes
    if ax.get_xticks().size and not ax.get_xlabel() and not ax.get_label() == "<colorbar>"
]
print(f"figures: {len(figures)}, axes without a label: {bare}")
"""

each = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def cells(file: Path) -> list[tuple[str, str]]:
    """Returns the head and the body of each cell."""
    text = file.read_text()
    heads = [match.group() for match in CELL.finditer(text)]
    return list(zip(heads, CELL.split(text)[1:], strict=True))


def test_there_are_tutorials():
    assert FILES


@each
def test_percent_format(file):
    before = CELL.split(file.read_text())[0]
    assert all(line.startswith("#") for line in before.splitlines() if line)  # the header
    assert "format_name: percent" in before
    kinds = [head.removeprefix("# %%").strip() for head, _ in cells(file)]
    assert set(kinds) == {"", "[markdown]"}
    for kind, (_, body) in zip(kinds, cells(file), strict=True):
        assert body.strip()
        if kind == "[markdown]":
            assert all(line.startswith("#") for line in body.splitlines() if line)
            prose = re.sub(r"`[^`]*`", "", body)
            assert prose.count("$") % 2 == 0, f"an unclosed formula in {body}"
        else:
            ast.parse(body)  # a cell is whole by itself


@each
def test_nothing_of_this_machine(file):
    text = file.read_text()
    assert not re.search(r"[\"'](/|~/|\w:\\)", text)
    assert "PPLVM_SHORT" in text


@each
def test_runs_in_short(file, tmp_path):
    environment = {**os.environ, "PPLVM_SHORT": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(file)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = re.search(r"figures: (\d+), axes without a label: (.*)", done.stdout)
    assert int(figures.group(1)) >= 6
    assert figures.group(2) == "[]"
    assert not any(tmp_path.iterdir())  # it leaves nothing behind
