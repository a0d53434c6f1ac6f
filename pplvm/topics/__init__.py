"""Topic models: how good they are, and what they found."""

from pplvm.topics.fitted import FittedTopics
from pplvm.topics.types import TopicModel

__all__ = ["FittedTopics", "TopicModel"]
