"""Topic models on disk: a folder of weights, words and settings, without pickle.

``weights.safetensors`` has the tensors, ``vocabulary.txt`` one word a line in UTF-8, and
``settings.json`` what made the topics, and how texts were cut into words, so that new ones can be
cut alike.

Shapes: V words of the vocabulary, K topics.
"""

__all__ = ["Saved", "check_folder", "load", "save"]

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pplvm import checkpoint, report_facts
from pplvm.naming import nearest
from pplvm.parameters import module_of
from pplvm.topics.fitted import FittedTopics
from pplvm.topics.modules import Learnt, packed, unpacked
from pplvm.topics.overview import Overview
from pplvm.topics.types import TopicModel
from pplvm.topics.variational_em import VariationalEM

WEIGHTS, VOCABULARY, SETTINGS = "weights.safetensors", "vocabulary.txt", "settings.json"
FORMAT = "pplvm-topics-1"
_PACKAGES = ("pplvm", "torch", "pyro-ppl", "numpy", "scipy")


class Saved(NamedTuple):
    """A topic model from disk, and what was kept with it."""

    model: TopicModel
    vocabulary: tuple[str, ...]  # V words
    facts: Overview
    settings: Mapping[str, Any]  # what made the topics
    text: Mapping[str, Any]  # how texts were cut into words; empty if they came as counts


def save(
    path: str | Path,
    model: TopicModel,
    vocabulary: Sequence[str],
    facts: Overview,
    *,
    settings: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a topic model as a folder, and returns where to.

    The folder is written beside and then renamed; one that is there already is replaced if it
    holds a topic model, and nothing else.

    Args:
        path: The folder.
        model: The topics, of a kind that pplvm makes.
        vocabulary: The V words.
        facts: What :func:`pplvm.topics.overview.overview` returned.
        settings: What made the topics: plain values.
        text: How texts were cut into words: plain values.

    Raises:
        ValueError: if the folder cannot be written or holds other things, if the words are not as
            many as those of the topics, or if the model is of another kind.
    """
    path = Path(path)
    check_folder(path)
    words = _joined(vocabulary, model)
    state = {
        "topics": _state(model),
        "facts": {f.name: getattr(facts, f.name) for f in dataclasses.fields(facts)},
        "vocabulary": _digest(words),
    }
    plain = {
        "format": FORMAT,
        "num_topics": len(model.topics),
        "num_words": len(vocabulary),
        "settings": dict(settings or {}),
        "text": dict(text or {}),
        "versions": dict(report_facts.versions(_PACKAGES)),
    }
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        beside.mkdir()
        checkpoint.write(beside / WEIGHTS, state)
        (beside / VOCABULARY).write_text(words, encoding="utf-8", newline="\n")
        (beside / SETTINGS).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        _replace(beside, path)
    except OSError as error:
        raise ValueError(
            f"cannot write '{path}': {error.strerror}; choose another path."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def check_folder(path: str | Path) -> None:
    """Raises a ``ValueError`` if a topic model cannot be written there: better now than later."""
    path = Path(path)
    if path.exists():
        held = {file.name for file in path.iterdir()} if path.is_dir() else {path.name}
        strange = sorted(held - {WEIGHTS, VOCABULARY, SETTINGS})
        if strange:
            raise ValueError(
                f"'{path}' holds other things than a topic model, such as '{strange[0]}', and is left "
                "as it is: choose another folder."
            )
    checkpoint.check_writable(path)


def load(path: str | Path) -> Saved:
    """Opens what :func:`save` wrote; no pickled code is run.

    Raises:
        ValueError: if there is no such folder, if a file of it is absent, cut short or of another
            format, or if the vocabulary is not the one that the weights were learnt with.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no folder at '{path}': give one that `pplvm fit lda --save` wrote.")
    missing = [name for name in (WEIGHTS, VOCABULARY, SETTINGS) if not (path / name).is_file()]
    if missing:
        raise ValueError(
            f"'{path}' is no complete topic model, as '{missing[0]}' is not there: use an intact "
            "folder that `pplvm fit lda --save` wrote."
        )
    state = checkpoint.read(path / WEIGHTS)
    plain = _settings(path / SETTINGS)
    try:
        words = (path / VOCABULARY).read_bytes().decode()
        model, facts = _model(state["topics"]), Overview(**state["facts"])
        digest = state["vocabulary"]
    except (OSError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{path}' is no topic model of this version of pplvm ({type(error).__name__}: {error}): "
            "use an intact folder that `pplvm fit lda --save` wrote."
        ) from error
    if _digest(words) != digest:
        raise ValueError(
            f"'{path / VOCABULARY}' is not the vocabulary that the weights were learnt with: use an "
            "intact folder that `pplvm fit lda --save` wrote."
        )
    return Saved(model, tuple(words.split("\n")[:-1]), facts, plain["settings"], plain["text"])


# ---- within ----


def _settings(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] != FORMAT or not isinstance(plain["settings"], dict):
            raise ValueError(f"of format {plain['format']!r}, not {FORMAT!r}")
        return {"settings": plain["settings"], "text": dict(plain["text"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{path}' cannot be read ({error}): use an intact folder that `pplvm fit lda --save` "
            "wrote."
        ) from error


def _joined(vocabulary: Sequence[str], model: TopicModel) -> str:
    V = model.topics.shape[1]
    if len(vocabulary) != V:
        raise ValueError(
            f"'vocabulary' has {len(vocabulary)} words, but the topics have {V}: give the words that "
            "they were learnt with."
        )
    broken = [word for word in vocabulary if "\n" in word or not word]
    if broken:
        raise ValueError(
            f"'vocabulary' has {broken[0]!r}, which cannot stand on a line of its own: leave it out."
        )
    return "".join(f"{word}\n" for word in vocabulary)


def _digest(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()


def _replace(beside: Path, path: Path) -> None:
    """Renames a folder to a path; what was there goes once the new one is in its place."""
    old = path.with_name(f"{path.name}.{os.getpid()}.old")
    there = path.exists()
    if there:
        os.rename(path, old)
    try:
        os.rename(beside, path)
    except OSError:
        if there:
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


# ---- kinds of topic models ----

# Those that are tensors and plain values alone, by the names that files have for them.

KINDS: dict[str, type] = {"variational-em": VariationalEM}


def _state(model: TopicModel) -> dict[str, Any]:
    if isinstance(model, FittedTopics):
        fit = model.fit
        return {
            "kind": "fit",
            "model": packed(module_of(fit.model)),
            "guide": packed(module_of(fit.guide)),
        }
    for name, kind in KINDS.items():
        if type(model) is kind:
            return {
                "kind": name,
                **{f.name: getattr(model, f.name) for f in dataclasses.fields(model)},
            }
    raise ValueError(
        f"'model' is of the kind {type(model).__name__}, which cannot be saved: give topics that "
        "pplvm found."
    )


def _model(state: dict[str, Any]) -> TopicModel:
    kind = state.pop("kind")
    if kind == "fit":
        story = unpacked(state["model"])
        return FittedTopics(Learnt(story, unpacked(state["guide"], story)))
    return nearest(kind, KINDS, "kind of topic model")(**state)
