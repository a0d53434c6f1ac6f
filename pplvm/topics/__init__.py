"""Topic models: how to find topics, how good they are, and what they say."""

from pplvm.topics.coherence import c_v, diversity, npmi, top_words
from pplvm.topics.fitted import FittedTopics
from pplvm.topics.perplexity import bound_perplexity, completion_perplexity
from pplvm.topics.types import TopicModel
from pplvm.topics.variational_em import VariationalEM, variational_em

__all__ = [
    "FittedTopics",
    "TopicModel",
    "VariationalEM",
    "bound_perplexity",
    "c_v",
    "completion_perplexity",
    "diversity",
    "npmi",
    "top_words",
    "variational_em",
]
