"""Nested states of tensors and plain values on disk, without pickle.

Tensors go into a safetensors file; the structure around them into its header as JSON.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "pplvm-1"
# What a file may be of another, and what to give then.
STORY, OBJECTIVE = ("story", "model and guide"), ("objective", "objective, with the options,")


def check_writable(path: str | Path) -> None:
    """Raises a ``ValueError`` if nothing can be written beside a path: better now than later."""
    beside = Path(path).with_name(Path(path).name + ".part")
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.open("wb").close()
        beside.unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write '{path}': {error.strerror}; choose another path."
        ) from error


def write(path: str | Path, state: Any) -> None:
    """Writes a state of dicts, lists, tuples, tensors and plain values, all of it or nothing.

    Args:
        path: Where to; the file is written beside it and then renamed.
        state: The state. A value of any other type is a ``ValueError``.
    """
    tensors: dict[str, Tensor] = {}
    structure = _pack(state, tensors, "state")
    blob = save(tensors, metadata={"format": FORMAT, "structure": json.dumps(structure)})
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise ValueError(
            f"cannot write '{path}': {error.strerror}; choose another path."
        ) from error


def read(path: str | Path) -> Any:
    """Reads what :func:`write` wrote; anything else is a ``ValueError`` and is never executed."""
    if not Path(path).is_file():
        raise ValueError(f"no file at '{path}': check the path.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"'{path}' is a safetensors file of format {metadata.get('format')!r}, not a fit of "
                f"pplvm ({FORMAT!r}): give a file that Fit.save or checkpoint= wrote."
            )
        return _unpack(json.loads(metadata["structure"]), tensors)
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise ValueError(
            f"'{path}' is truncated or not a fit of pplvm ({error}): nothing in it was executed; "
            "use an intact file."
        ) from error


def _pack(value: Any, tensors: dict[str, Tensor], key: str) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):
        # Pairs, because JSON has only strings for keys and an optimiser has integers.
        return {"dict": [[k, _pack(v, tensors, f"{key}.{k}")] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        if all(isinstance(v, float) for v in value) and len(value) > 8:
            tensors[key] = torch.tensor(value, dtype=torch.float64)
            return {"floats": key}
        items = [_pack(v, tensors, f"{key}.{i}") for i, v in enumerate(value)]
        return {type(value).__name__ if type(value) in (list, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ValueError(
        f"cannot save {key} of type {type(value).__name__}: only tensors and plain values."
    )


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "floats":
        return tensors[content].tolist()
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in content}
    if kind in ("list", "tuple"):
        items = [_unpack(v, tensors) for v in content]
        return items if kind == "list" else tuple(items)
    return content


def copy_into(
    parameters: dict[str, Tensor], values: dict[str, Tensor], whose: tuple[str, str] = STORY
) -> None:
    """Copies values into parameters of the same names and shapes, else raises ``ValueError``."""
    what, remedy = whose
    if parameters.keys() != values.keys():
        odd = sorted(parameters.keys() ^ values.keys())[0]
        raise ValueError(
            f"the file is of another {what}: parameter '{odd}' is in only one of the two; give the "
            f"{remedy} that made it."
        )
    for name, p in parameters.items():
        if p.shape != values[name].shape:
            raise ValueError(
                f"the file is of another {what}: parameter '{name}' has shape "
                f"{tuple(values[name].shape)} there but {tuple(p.shape)} here; give the {remedy} "
                "that made it."
            )
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(values[name])
