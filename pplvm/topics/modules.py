"""Stories of topics and their guides as plain values and tensors, and back.

What a module is built of is read off its parameters, so that no pickle is needed to build it again.
"""

__all__ = ["MODULES", "Learnt", "packed", "unpacked"]

from typing import Any, NamedTuple

from torch import nn

from pplvm.guides.lda import LDAGuide, LDALogisticNormal
from pplvm.guides.neural_lda import NeuralLDAGuide
from pplvm.guides.neural_lda_mean_field import NeuralLDAMeanField
from pplvm.models.bags import Encoder
from pplvm.models.lda import LDA
from pplvm.models.neural_lda import NeuralLDA
from pplvm.naming import nearest

MODULES = {
    kind.__name__: kind
    for kind in (LDA, NeuralLDA, LDAGuide, LDALogisticNormal, NeuralLDAGuide, NeuralLDAMeanField)
}


class Learnt(NamedTuple):
    """A story and its guide as a fit left them."""

    model: nn.Module
    guide: nn.Module


def packed(module: nn.Module) -> dict[str, Any]:
    """Returns what :func:`unpacked` builds a module of.

    Raises:
        ValueError: if it is none of those that are shipped for new documents, too.
    """
    name = type(module).__name__
    if MODULES.get(name) is not type(module):
        raise ValueError(
            f"'model' was learnt with {name}, which cannot be saved as a topic model: use one of "
            f"{', '.join(MODULES)}, or save its fit."
        )
    if isinstance(module, NeuralLDAMeanField):  # all that it has is the story's
        return {"module": name, "options": {}, "state": {}}
    return {"module": name, "options": _options(module), "state": dict(module.state_dict())}


def unpacked(state: dict[str, Any], model: nn.Module | None = None) -> nn.Module:
    """Returns the module, in evaluation mode: a story, or the guide of one."""
    kind = nearest(state["module"], MODULES, "story or guide of topics")
    if kind is NeuralLDAMeanField:
        return kind(model).eval()
    module = kind(**state["options"])
    module.load_state_dict(state["state"], assign=True)
    return module.eval().requires_grad_(False)


def _options(module: nn.Module) -> dict[str, Any]:
    options: dict[str, Any] = {"num_words": module.num_words}
    if isinstance(module, LDA):
        return {**options, "num_topics": module.num_topics}
    if isinstance(module, NeuralLDA):
        dim = module.A.shape[1] if hasattr(module, "A") else None
        options |= {"likelihood": module.likelihood, "embedding_dim": dim}
        return {**options, "num_topics": len(module.scale), "learn_prior": hasattr(module, "mu")}
    widths = _widths(module.encoder)
    K = widths[-1] // 2 if isinstance(module, NeuralLDAGuide) else len(module.log_lambda)
    return {**options, "num_topics": K, "hidden_dims": widths[:-1]}


def _widths(encoder: Encoder) -> list[int]:
    return [part.out_features for part in encoder.modules() if isinstance(part, nn.Linear)]
