"""Who may import whom: nothing runs back up, and Pyro's handlers stay in one place."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pplvm

ROOT = Path(pplvm.__file__).parent
TOP = ROOT.parent

# Each layer may import those before it, and the modules of its own line.
ORDER = [
    ["types", "naming"],
    ["reading"],
    ["traces"],
    ["graphs"],
    ["compile"],
    ["parameters"],
    ["objectives"],
    ["text"],
    ["batches", "datasets"],
    ["contract"],
    ["checkpoint"],
    ["gradients", "updates"],
    ["training"],
    ["loop"],
    ["draws"],
    ["align"],
    ["likelihood"],
    ["fit", "gradient"],
    ["enumeration", "em"],
    ["exact", "conjugate"],
    ["cavi"],
    ["native"],
    ["potentials"],
    ["nuts", "chees"],
    ["mcmc"],
    ["diagnostics"],
    ["table"],
    ["compare"],
    ["plots"],
    ["report"],
    ["topics"],
    ["catalog"],
    ["study"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# A table writes its own report: a convenience that looks up, and only once it is called.
UPWARD = {("table", "report"), ("gradient", "plots")}

FILES = sorted(path for path in ROOT.rglob("*.py"))
STORIES = sorted(path for name in ("models", "guides") for path in (TOP / name).glob("*.py"))


def layer_of(path: Path) -> str:
    name = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return name.split("_")[0]  # plots_images and its like are parts of plots


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yields every dotted name that is imported, and whether inside a function."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            within = inside or isinstance(child, (ast.FunctionDef, ast.Lambda))
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "imports are absolute"
                yield from ((f"{child.module}.{alias.name}", inside) for alias in child.names)
            else:
                yield from visit(child, within)

    return visit(tree, False)


def uses_poutine(source: str) -> bool:
    tree = ast.parse(source)
    named = any("poutine" in name.split(".") for name, _ in imports(tree))
    return named or any(
        isinstance(n, ast.Attribute) and n.attr == "poutine" for n in ast.walk(tree)
    )


def climbs(layer: str, source: str) -> list[str]:
    """Returns what a layer imports from above itself."""
    found = []
    for name, inside in imports(ast.parse(source)):
        parts = name.split(".")
        if parts[0] != "pplvm" or len(parts) < 2 or parts[1] in ("models", "guides"):
            continue
        other = parts[1]
        if (
            other in RANK
            and RANK[other] > RANK[layer]
            and not (inside and (layer, other) in UPWARD)
        ):
            found.append(name)
    return found


def foreign(source: str) -> list[str]:
    """Returns what a story imports beyond torch, Pyro, the standard library and other stories."""
    allowed = {"torch", "pyro"} | sys.stdlib_module_names
    names = [name for name, _ in imports(ast.parse(source)) if not name.startswith("pplvm.models.")]
    return [name for name in names if name.split(".")[0] not in allowed]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_traces_knows_pyros_handlers(path):
    assert uses_poutine(path.read_text()) <= (layer_of(path) == "traces")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_imported_from_above(path):
    if path == ROOT / "__init__.py":
        pytest.skip("the face of the package is above all layers")
    assert layer_of(path) in RANK, "give the new module its place in ORDER"
    assert climbs(layer_of(path), path.read_text()) == []


@pytest.mark.parametrize("path", STORIES, ids=lambda path: str(path.relative_to(TOP)))
def test_stories_are_plain_pyro(path):
    assert foreign(path.read_text()) == []


def test_the_guards_see_what_they_guard_against():
    assert uses_poutine("import pyro\npyro.poutine.trace")
    assert uses_poutine("from pyro import poutine")
    assert uses_poutine("from pyro.poutine.messenger import Messenger")
    assert not uses_poutine("import pyro\npyro.sample")
    assert climbs("draws", "from pplvm.fit import fit") == ["pplvm.fit.fit"]
    assert climbs("draws", "def f():\n    from pplvm import fit") == ["pplvm.fit"]
    assert climbs("table", "from pplvm.report import write") == ["pplvm.report.write"]
    assert climbs("table", "def f():\n    from pplvm.report import write") == []
    assert climbs("fit", "from pplvm import traces") == []
    assert foreign("import numpy as np\nimport math\nfrom torch import nn") == ["numpy"]
