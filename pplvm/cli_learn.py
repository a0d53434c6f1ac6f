"""How the command line learns topics: LDA in closed form, or a story and a guide by gradients."""

__all__ = ["learn"]

from typing import Any, NamedTuple

import torch
from scipy.sparse import csr_array

import pplvm
from pplvm.catalog import STORIES
from pplvm.naming import nearest
from pplvm.study import OBJECTIVES
from pplvm.topics.fitted import FittedTopics
from pplvm.topics.modules import MODULES
from pplvm.topics.types import TopicModel
from pplvm.topics.variational_em import variational_em

MANY = 5000  # documents; of more of them, LDA is learnt online. Arbitrary.
STARTS = 4  # of fewer, which take seconds each; arbitrary


class Steps(NamedTuple):
    """What is asked of learning by gradients; None is the default, the catalog's if it has one."""

    num_steps: int | None
    batch_size: int | None
    lr: float | None
    objective: str | None
    device: str | None


def learn(
    story: str, counts: csr_array, num_topics: int, *, guide: str | None, steps: Steps, seed: int
) -> tuple[TopicModel, dict[str, Any]]:
    """Returns topics of documents (N, V), and what made them.

    Raises:
        ValueError: if there is no such guide or objective, or if steps are asked for and none are made.
    """
    if story == "lda" and guide is None:
        asked = [k for k, v in steps._asdict().items() if v is not None and k != "batch_size"]
        if asked:
            option = "--" + asked[0].replace("_", "-")
            raise ValueError(
                f"'{option}' is of learning by gradients, but LDA is learnt in closed form: name a "
                "--guide, or leave it."
            )
        return _closed_form(counts, num_topics, steps.batch_size, seed)
    entry = STORIES[story]
    name = guide or next(iter(entry.guides))
    build = nearest(name, entry.guides, "guide")
    objective = nearest(steps.objective or "svi", OBJECTIVES, "objective")
    x, N = counts, counts.shape[0]  # which the fit makes dense by the minibatch
    torch.manual_seed(seed)
    model = entry.model((x,), num_topics)
    program = build((x,), num_topics, model)
    if type(program) not in MODULES.values():
        raise ValueError(
            f"'--guide' is '{name}', which has parameters for each document and finds no topics in new "
            "ones: choose another."
        )
    fit = pplvm.fit(
        model, program, x, seed=seed,
        num_steps=steps.num_steps or entry.num_steps, lr=steps.lr or entry.lr,
        batch_size=steps.batch_size or min(entry.batch_size or N, N),
        objective=objective, device=steps.device or "auto",
        clip_norm=entry.clip_norm,
    )  # fmt: skip
    made = {key: value for key, value in fit.settings.items() if key != "objective"}
    return FittedTopics(fit), {"guide": name, **made}


def _closed_form(
    counts: csr_array, num_topics: int, batch_size: int | None, seed: int
) -> tuple[TopicModel, dict[str, Any]]:
    many = counts.shape[0] > MANY
    found = variational_em(
        counts, num_topics, batch_size=batch_size or (1024 if many else None), seed=seed,
        num_epochs=20 if many else 100, num_starts=1 if many else STARTS,
    )  # fmt: skip
    return found, {**found.settings, "eta": found.eta, "seconds": found.seconds}
