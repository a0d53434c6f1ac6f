"""What a command of the command line is about: a story with its guides and its data."""

__all__ = ["Job"]

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cloudpickle
import torch

from pplvm import datasets
from pplvm.batches import Array, as_tensors
from pplvm.catalog import STORIES
from pplvm.naming import nearest
from pplvm.reading import read
from pplvm.study import all_summed_out


class Job:
    """A story with its guides and data, as a command names them."""

    def __init__(
        self, story: str, guide: str | None, data: str | None, columns: str | None,
        standardise: bool, drop_missing: bool, latent_dim: int | None, seed: int,
    ) -> None:  # fmt: skip
        own = ":" in story or story.endswith(".py")
        entry = None if own else nearest(story, STORIES, "story")
        if data is None and entry is None:
            raise ValueError("'--data' is missing: a story of your own needs a file of data.")
        self.data = _data(data or entry.data, columns, standardise, drop_missing)
        torch.manual_seed(seed)
        if entry is None:
            self.model = _program(story, "model")
            self.guides = {"AutoNormal": lambda data: None}
            few = as_tensors([x[:2] for x in self.data], self.model)
            self.summed_out = guide is None and all_summed_out(self.model, *few)
            self.methods = ("exact",) if self.summed_out else ("svi", "nuts")
            self.num_steps, self.batch_size, self.lr = 2000, None, 0.02
        else:
            size = latent_dim or entry.latent_dim
            shape = tuple(self.data[0].shape[1:])
            try:
                self.data = entry.takes(self.data)
            except ValueError as error:
                raise ValueError(f"'{story}' {error}: choose others with --columns.") from error
            self.model = entry.model(self.data, size)
            if len(shape) == 2 and self.data[0].ndim == 2:  # the report shows them as images
                self.model.image_shape = shape
            words, classes = datasets.words_of(data or entry.data)
            if words:  # the report shows them as texts
                self.model.vocabulary, self.model.classes = words, classes
            self.guides = {
                name: lambda data, build=build: build(data, size, self.model)
                for name, build in entry.guides.items()
            }
            self.summed_out, self.methods = entry.summed_out, entry.methods
            self.num_steps, self.batch_size, self.lr = entry.num_steps, entry.batch_size, entry.lr
        self.named = guide is not None
        if guide is not None and ":" in guide:
            self.guides = {guide: lambda data: _program(guide, "guide")}
        elif guide is not None:
            self.guides = {guide: nearest(guide, self.guides, "guide")}

    def guide(self) -> Callable | None:
        """Builds the guide that was named, or the default one: None if all latents are summed out."""
        if self.summed_out and not self.named:
            return None
        return next(iter(self.guides.values()))(self.data)


def _data(
    name: str, columns: str | None, standardise: bool, drop_missing: bool
) -> tuple[Array, ...]:
    """Returns tensors of a named set, arrays of a file: a .npy stays on the disk."""
    if "." not in name and "/" not in name:
        if columns or standardise or drop_missing:
            raise ValueError(
                f"'--columns', '--standardise' and '--drop-missing' are for files, not for '{name}'."
            )
        return datasets.named(name)
    return read(name, columns, standardise=standardise, drop_missing=drop_missing)


def _program(where: str, role: str) -> Callable:
    """Returns the function or module instance that ``file.py:name`` names."""
    path, _, name = where.rpartition(":") if ":" in where else (where, ":", role)
    if not Path(path).is_file() or not path.endswith(".py"):
        raise ValueError(f"no Python file at '{path}': write file.py:{role}, your {role}'s path.")
    programs = vars(_imported(str(Path(path).resolve())))
    programs = {k: v for k, v in programs.items() if callable(v) and not k.startswith("_")}
    program = nearest(name, programs, f"{role} in '{path}'")
    try:
        return program() if isinstance(program, type) else program
    except TypeError as error:
        raise ValueError(
            f"'{name}' in '{path}' cannot be made without arguments ({error}): write "
            f"{role} = {name}(…) in the file and name that."
        ) from error


@functools.cache  # a model and a guide of one file share what the file makes
def _imported(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pplvm_user_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    cloudpickle.register_pickle_by_value(module)  # chains in other processes cannot import it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"'{path}' fails when imported: {type(error).__name__}: {error}."
        ) from error
    return module
