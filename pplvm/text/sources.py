"""Documents one after the other, from folders, tables, lines of JSON, or lists of strings.

Files are read as they are asked for, never as a whole.
"""

__all__ = ["Document", "documents"]

import contextlib
import csv
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

FORMATS = "a folder of .txt files, a .txt, .csv or .jsonl (or .csv.gz, .jsonl.gz), or strings"


class Document(NamedTuple):
    """A text, or None if its bytes are not of the encoding."""

    text: str | None
    title: str
    groups: tuple[str, ...] = ()
    where: str = ""  # for people


class Columns(NamedTuple):
    """What to read of tables and lines of JSON."""

    text: str | None = None
    title: str | None = None
    groups: Sequence[str] = ()


def documents(
    source: str | os.PathLike | Iterable[str], columns: Columns, encoding: str
) -> Iterator[Document]:
    """Yields the documents of a source.

    Raises:
        ValueError: if the source is of no known kind, or broken, or without the columns.
    """
    if not isinstance(source, (str, os.PathLike)):
        if any(columns):
            raise ValueError("'column', 'title' and 'groups' are for files: leave them out.")
        yield from _strings(source)
        return
    path = Path(source).expanduser()
    name = path.name.removesuffix(".gz")
    encoding = (
        "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    )  # without its mark
    if not path.exists():
        raise ValueError(f"'{path}' is not there: check the path, or put one string into a list.")
    if path.is_dir() or name.endswith(".txt"):
        if any(columns):
            raise ValueError(f"'{path}' is no table: leave out 'column', 'title' and 'groups'.")
        yield from _texts(path, encoding)
    elif name.endswith((".csv", ".jsonl")):
        if columns.text is None:
            raise ValueError(f"'column' is missing: say which of '{path}' holds the texts.")
        with _reading(path, encoding) as file:
            records = _rows(path, file) if name.endswith(".csv") else _objects(path, file)
            yield from _chosen(path, records, columns)
    else:
        raise ValueError(f"'{path}' should be {FORMATS}: convert it.")


def _strings(texts: Iterable[str]) -> Iterator[Document]:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"document {i} should be a string, got {type(text).__name__}.")
        yield Document(text, str(i))


def _texts(path: Path, encoding: str) -> Iterator[Document]:
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"'{path}' has no .txt files: check the folder.")
    for file in files:
        title = file.relative_to(path).as_posix() if path.is_dir() else file.name
        title = title.encode(errors="replace").decode()
        with _reading(file, encoding) as opened:
            text = opened.read()
        yield Document(None if _escaped(text) else text, title, where=f"'{file}'")


def _rows(path: Path, file: TextIO) -> Iterator[tuple[str, Mapping[str, str], bool]]:
    """Yields where a row of a table is, its cells by column, and whether it could be decoded."""
    reader = csv.reader(file, strict=True)
    header = next(reader, [])
    for i, row in enumerate(filter(None, reader)):
        if len(row) != len(header):
            raise ValueError(
                f"'{path}' has {len(row)} cells in row {i}, and {len(header)} columns: write it again."
            )
        yield f"row {i}", dict(zip(header, row, strict=True)), not any(map(_escaped, row))


def _objects(path: Path, file: TextIO) -> Iterator[tuple[str, Mapping[str, object], bool]]:
    for i, line in enumerate(file):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"'{path}' has no object of JSON in line {i}: write it again.")
        yield f"line {i}", record, not _escaped(line)


def _chosen(path: Path, records: Iterator, columns: Columns) -> Iterator[Document]:
    for i, (where, record, decoded) in enumerate(records):
        for name in (columns.text, columns.title, *columns.groups):
            if name is not None and name not in record:
                known = ", ".join(f"'{key}'" for key in record)
                raise ValueError(f"'{path}' has no '{name}' in {where}: choose from {known}.")
        text = record[columns.text]
        text = "" if text is None else text
        if not isinstance(text, str):
            raise ValueError(f"'{path}' has no text in '{columns.text}' in {where}, got {text!r}.")
        title = str(i if columns.title is None else record[columns.title])
        groups = ("" if (x := record[name]) is None else str(x) for name in columns.groups)
        yield Document(text if decoded else None, title, tuple(groups), f"'{path}', {where},")


@contextlib.contextmanager
def _reading(path: Path, encoding: str) -> Iterator[TextIO]:
    """Opens a text in which bytes that are not of the encoding become surrogates."""
    opener = gzip.open if path.suffix == ".gz" else open
    limit = csv.field_size_limit(2**31 - 1)  # or else cells would have 131,072 characters at most
    try:
        with opener(path, "rt", encoding=encoding, errors="surrogateescape", newline="") as file:
            yield file
    except LookupError as error:
        raise ValueError(
            f"'encoding' is '{encoding}', which Python has not: choose another."
        ) from error
    except (OSError, EOFError, UnicodeError, zlib.error, csv.Error) as error:
        raise ValueError(
            f"'{path}' cannot be read ({type(error).__name__}): check that it is complete, and "
            f"text in {encoding.removesuffix('-sig')}."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _escaped(text: str) -> bool:
    """Returns whether there are surrogates, which no encoding but this module's reading makes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
