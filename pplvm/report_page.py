"""The page that every report is: figures as pictures within, written whole or not at all."""

__all__ = ["Picture", "Section", "Text", "beside", "failed", "picture", "template"]

import base64
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pplvm import plots


class Picture(NamedTuple):
    """A figure and what to see in it, or a sentence on what failed."""

    title: str
    caption: str
    png: str = ""  # base64
    width: int = 0  # of the page, in pixels
    failure: str = ""


class Text(NamedTuple):
    """What the macro of texts.html.jinja that is called as its section writes, or what failed."""

    found: object = None
    failure: str = ""


class Section(NamedTuple):
    """A heading and what stands under it."""

    key: str
    title: str
    pictures: list[Picture]
    text: Text | None = None


def template(name: str) -> jinja2.Template:
    """Returns one of the package's templates, in which all text is escaped."""
    loader = jinja2.PackageLoader("pplvm", "")
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Gives a file beside a path, which takes its place at the end if all went well.

    Raises:
        ValueError: at once, if nothing can be written there.
    """
    part = path.with_name(path.name + ".part")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write '{path}': {reason}; choose another path.") from error
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def picture(title: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    """Draws a figure, closes what pyplot opened for it, and survives what goes wrong."""
    before = set(plt.get_fignums())
    buffer = io.BytesIO()
    try:
        # ioff: no window opens where the user's backend is interactive.
        with plots.style(), plt.ioff():
            figure = draw()
            figure.savefig(buffer, format="png")
    except Exception as error:  # a report without one figure is better than none
        return Picture(title, caption, failure=failed("figure", error))
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
    png = base64.b64encode(buffer.getvalue()).decode()
    return Picture(title, caption, png, width=round(100 * figure.get_figwidth()))


def failed(what: str, error: Exception) -> str:
    """Returns the sentence that stands in the place of what failed."""
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    return f"This {what} failed: {type(error).__name__}: {reason}"
