r"""Exact posteriors of stories whose latents are all discrete, by summing them out.

Latents of each datum, chains of them along time (``for t in pyro.markov(range(T))``), several such
chains side by side, and any graph of them whose sums fit into memory: see
:mod:`pplvm.traces.elimination` and :mod:`pplvm.traces.recursions`.
"""

__all__ = ["Enumerated", "enumerated", "moments"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pplvm import traces
from pplvm.batches import check_count, check_seed, mix
from pplvm.draws import Draws, independent


@dataclass(frozen=True, eq=False)
class Enumerated:
    """The exact posterior of discrete latents.

    The latents of a loop over time, "z_0", "z_1", …, are one latent "z" here, with a dim for its T
    steps after the plates. Steps that are masked have uniform states.
    """

    log_marginal: Tensor  # (N,): log p(x_n), in nats; (1,) if the data share a latent
    marginals: Mapping[str, Tensor]  # (plates…, K) or (plates…, T, K): probabilities
    states: Mapping[str, Tensor]  # (K, event…): what they are of
    mean: Mapping[str, Tensor]  # (plates…, event…) of each site
    sd: Mapping[str, Tensor]  # likewise
    listed: traces.Listed
    model: Callable
    data: tuple[Tensor, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def pairwise(self, one: str, other: str | None = None) -> Tensor:
        """Returns the joint probabilities of the states of two latents.

        Args:
            one: A latent. Alone, one of a loop over time: at a step and the next,
                (plates…, T - 1, K, K), as the expected moves of a hidden Markov model are.
            other: Another: (plates…, K, K'), or (plates…, T, K, K') at the same step of one loop.
        """
        for name in (one, one if other is None else other):
            if name not in self.marginals:
                raise ValueError(f"no latent '{name}' here: there are {sorted(self.marginals)}.")
        return self.listed.pairs(one, one if other is None else other)

    def most_probable(self) -> dict[str, Tensor]:
        """Returns the jointly most probable states, (plates…, event…) or (plates…, T, event…).

        For a chain that is the path of Viterbi (1967), not the most probable state of each step.
        """
        return self.listed.most_probable()

    def draws(self, num_draws: int = 1000, seed: int = 0) -> Draws:
        """Returns independent draws from the joint posterior, one chain, site by site."""
        check_count("num_draws", num_draws)
        check_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(mix(seed, 4))
            values = self.listed.draws(num_draws)
        return independent(self, values)


def enumerated(model: Callable, *data: Tensor) -> Enumerated:
    """Sums out the discrete latents of a story at its parameters."""
    with torch.no_grad():
        listed = traces.Listed(model, *data)
        log_marginal = listed.log_marginal()
        lost = (~log_marginal.isfinite()).nonzero()[:, 0]
        if len(lost):
            raise ValueError(
                f"log p(x) is {log_marginal[lost[0]].item()} for {len(lost)} of {len(log_marginal)} "
                f"data, the first in row {lost[0]}: no state makes them possible, so check likelihood "
                "and transitions."
            )
        marginals = listed.marginals()
    mean, sd = moments(listed.variables, marginals)
    return Enumerated(
        log_marginal=log_marginal,
        marginals=marginals,
        states={name: v.states for name, v in listed.variables.items()},
        mean=mean,
        sd=sd,
        listed=listed,
        model=model,
        data=data,
        settings={"method": "exact, enumeration"},
    )


def moments(
    variables: Mapping[str, Any], marginals: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns mean and sd of each site, (plates…, event…), of latents with these marginals."""
    mean, sd = {}, {}
    for name, variable in variables.items():
        p, states = marginals[name], variable.states.to(marginals[name].dtype)
        states = states.reshape(len(states), -1)  # (K, event)
        first, second = p @ states, p @ states.square()  # (plates…, [T,] event)
        shape = variable.states.shape[1:]
        steps = len(variable.sites) > 1
        for t, site in enumerate(variable.sites):
            m, s = (x.select(-2, t) if steps else x for x in (first, second))
            mean[site] = m.reshape(m.shape[:-1] + shape)
            sd[site] = (s - m.square()).clamp(min=0).sqrt().reshape(m.shape[:-1] + shape)
    return mean, sd
