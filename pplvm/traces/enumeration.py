r"""The posterior of a story whose latents are all discrete, by listing their states.

.. math::
    \log p(x_n) = \log \sum_z p(x_n, z), \qquad
    p(z_{nt} = k \mid x) = \frac{\partial}{\partial b_{ntk}} \log p(x)

with b a zero that is added to the log-density of that state: a marginal is the gradient of the
log-normaliser (Darwiche, 2003). Latents of a loop over time have one name, and a dim for its steps.

References:
    | A differential approach to inference in Bayesian networks (Darwiche, 2003)
    | https://doi.org/10.1145/765568.765570

Shapes: K states.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import NamedTuple

import torch
from pyro import poutine
from torch import Tensor
from torch.func import vmap

from pplvm.traces import recursions
from pplvm.traces.chains import Chain
from pplvm.traces.decoding import decode, decoded
from pplvm.traces.discrete import Graph, graph_of, loops_are_even, place
from pplvm.traces.elimination import Factor, align
from pplvm.traces.likelihoods import discrete_latents
from pplvm.traces.placements import Plan
from pplvm.traces.sites import DATA, PARTICLES, distribution_name, factorises
from pplvm.traces.sums import listable


class Variable(NamedTuple):
    """A discrete latent, or those of all steps of a loop."""

    sites: list[str]  # one for each step
    states: Tensor  # (K, event…)
    plates: torch.Size


class Listed:
    """A story at all states of its discrete latents.

    Args:
        model: The story.
        data: Its arguments.
        values: The continuous latents, (plates…, event…); where one is not given, a ``ValueError``
            names it.
        even: Whether loops over time may be run for all later steps at once, if that is known.
    """

    def __init__(
        self,
        model: Callable,
        *data: Tensor,
        values: dict[str, Tensor] | None = None,
        even: bool | None = None,
    ) -> None:
        even = loops_are_even(model, *data) if even is None else even
        self.latents: Plan = place(model, *data, even=even, values=values)
        for name, z in self.latents.continuous.items() if values is None else ():
            raise ValueError(
                f"site '{name}' ({distribution_name(z.fn)}) is continuous and others are discrete: "
                "exact sums discrete latents out or integrates Gaussian ones, not both, so use nuts "
                "or cavi, or make it a parameter."
            )
        self._graph_at = lambda latents: graph_of(model, latents, *data, even=even)
        self.graph: Graph = self._graph_at(self.latents)
        alone = factorises(model, data=data)
        self._kept = self.graph.trace.plate_to_symbol.get(DATA, "") if alone else ""
        self.variables = variables_of(self.graph, self.latents)

    def filled(self, tensors: list[Tensor]) -> "Listed":
        """Returns the same with other log-densities, in the order of ``graph.tensors()``."""
        found = copy(self)
        found.graph = self.graph.filled(tensors)
        return found

    def tensors_at(self, values: dict[str, Tensor]) -> list[Tensor]:
        """Returns the log-densities at other continuous latents, with gradient."""
        latents = {
            name: z._replace(value=values[name].reshape(z.value.shape)) if name in values else z
            for name, z in self.latents.latents.items()
        }
        return self._graph_at(self.latents._replace(latents=latents)).tensors()

    def log_marginal(self) -> Tensor:
        """Returns log p(x_n) in nats, (N,), or (1,) if the data share a latent; with gradient."""
        return self.graph.total(kept=self._kept)[0].reshape(-1)

    def marginals(self) -> dict[str, Tensor]:
        """Returns the posterior probability of each state: (plates…, K), in loops (plates…, T, K)."""
        graph, unary = self._with_unaries()
        leaves = [f.term for f in unary.values()]
        leaves += [x for c in graph.chains for x in (c.first, c.later)]
        with torch.enable_grad():
            total = graph.total()[0]
            found = iter(torch.autograd.grad(total, leaves) if leaves else ())
        of_site = {name: f._replace(term=next(found)) for name, f in unary.items()}
        chained = {}
        for chain in graph.chains:
            steps = torch.cat((next(found)[None], next(found)))  # (T, B, *K)
            chained |= _apart(chain, steps)
        found = of_site | chained
        return {
            name: placed(graph.trace, v, found.get(v.sites[0]))
            for name, v in self.variables.items()
        }

    def pairs(self, one: str, other: str) -> Tensor:
        """Returns the joint posterior probabilities of two latents, ``one`` before the other.

        (plates…, K, K') of two outside loops, (plates…, T, K, K') of two in one loop, at the same
        step, and (plates…, T - 1, K, K) of one in a loop, at a step and the next.
        """
        sites = [self.variables[name].sites[0] for name in (one, other)]
        chains = [next((c for c in self.graph.chains if site in c.names), None) for site in sites]
        if chains[0] is not chains[1] or (chains[0] is None and one == other):
            raise ValueError(
                f"'{one}' and '{other}' have no joint probabilities here: name two latents outside "
                "loops over time, two of one loop, or one of a loop twice, for its consecutive steps."
            )
        if chains[0] is None:
            return self._pair_outside(*sites)
        chain, (i, j) = chains[0], (chains[0].names.index(site) for site in sites)
        joint = _consecutive(chain, i) if i == j else _together(chain, i, j)  # (T, B, K, K')
        plates, (T, _, K, L) = self.variables[one].plates, joint.shape
        joint = joint.reshape(T, *chain.sizes, K * L)
        variable = self.variables[one]._replace(sites=sites[:1] * T, states=torch.empty(K * L))
        found = placed(self.graph.trace, variable, _over_plates(chain, joint))
        return found.reshape(*plates, T, K, L)

    def _pair_outside(self, one: str, other: str) -> Tensor:
        graph, trace = self.graph, self.graph.trace
        own, its = (trace.nodes[name]["infer"]["_enumerate_symbol"] for name in (one, other))
        sizes = {d: n for f in graph.factors for d, n in zip(f.dims, f.term.shape, strict=True)}
        K, L = (self.latents.discrete[name].num_states for name in (one, other))
        homes = [graph.homes.get(symbol, frozenset()) for symbol in (own, its)]
        if min(K, L) == 1:
            raise ValueError(f"'{one if K == 1 else other}' has a single state, and no pairs.")
        dims = "".join(sorted(homes[0] | homes[1])) + own + its
        like = graph.factors[0].term.detach()
        zero = like.new_zeros([sizes[d] for d in dims]).requires_grad_()
        with torch.enable_grad():
            total = graph._replace(factors=[*graph.factors, Factor(one, zero, dims)]).total()[0]
            (found,) = torch.autograd.grad(total, [zero])
        inner = one if homes[0] >= homes[1] else other
        plates = self.latents.discrete[inner].plates
        joint = Factor(inner, found.flatten(-2), dims[:-1])
        variable = Variable([inner], torch.empty(K * L), plates)
        return placed(trace, variable, joint).reshape(*plates, K, L)

    def weights(self) -> list[Tensor]:
        """Returns the posterior probabilities that weigh the log-densities, ``graph.tensors()``."""
        fixed = [x.detach().clone().requires_grad_() for x in self.graph.tensors()]
        with torch.enable_grad():
            total = self.graph.filled(fixed).total()[0]
            return list(torch.autograd.grad(total, fixed))

    def most_probable(self) -> dict[str, Tensor]:
        """Returns the jointly most probable states, (plates…, event…), in loops (plates…, T, event…)."""
        with torch.no_grad():
            found = decoded(self.graph, self.latents, most_probable=True)
        return {
            name: torch.stack([found[s] for s in v.sites], len(v.plates))
            if len(v.sites) > 1
            else found[v.sites[0]]
            for name, v in self.variables.items()
        }

    def draws(self, num_draws: int) -> dict[str, Tensor]:
        """Draws from the joint posterior, site by site: (S, plates…, event…)."""

        def one(_: Tensor) -> dict[str, Tensor]:
            return decoded(self.graph, self.latents, most_probable=False)

        with torch.no_grad():
            return vmap(one, randomness="different")(torch.zeros(num_draws))

    def _with_unaries(self) -> tuple[Graph, dict[str, Factor]]:
        """Returns the graph with a zero for each state, by which to differentiate."""
        graph, unary = self.graph, {}
        sizes = {d: n for f in graph.factors for d, n in zip(f.dims, f.term.shape, strict=True)}
        sizes |= {d: n for c in graph.chains for d, n in zip(c.dims, c.sizes, strict=True)}
        like = (graph.factors[0].term if graph.factors else graph.chains[0].first).detach()
        for name in self.latents.discrete:
            symbol = graph.trace.nodes[name]["infer"]["_enumerate_symbol"]
            if symbol in graph.homes:
                dims = "".join(sorted(graph.homes[symbol])) + symbol
                zero = like.new_zeros([sizes[d] for d in dims]).requires_grad_()
                unary[name] = Factor(name, zero, dims)
        chains = [
            c._replace(
                first=c.first.detach().clone().requires_grad_(),
                later=c.later.detach().clone().requires_grad_(),
            )
            for c in graph.chains
        ]
        return graph._replace(factors=[*graph.factors, *unary.values()], chains=chains), unary


def weighed(weights: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Returns the joint log-density, (), in expectation under a posterior, with gradient."""
    return sum(
        (weight * x.masked_fill(weight == 0, 0.0)).sum()  # what is impossible is not weighed
        for weight, x in zip(weights, tensors, strict=True)
    )


def variables_of(graph: Graph, latents: Plan) -> dict[str, Variable]:
    """Returns the discrete latents of a graph, those of a loop over time by one name."""
    found, later = {}, {name for loop in graph.loops for name in loop.later}
    sites = {name: [name] for name in latents.discrete if name not in later}
    shown = dict.fromkeys(sites)
    for loop in graph.loops:
        names = [[n for n in side if n in latents.discrete] for side in (loop.first, loop.later)]
        for name, then in zip(*names, strict=True):
            sites[name] += [loop.name_at(then, t) for t in loop.steps[1:]]
            shown[name] = loop.common_name(then)
    for name, steps in sites.items():
        z = latents.discrete[name]
        states = graph.trace.nodes[name]["value"].reshape(-1, *z.fn.event_shape)
        title = shown[name]
        title = title if title and title not in sites and title not in found else name
        found[title] = Variable(steps, states, z.plates)
    return found


def placed(trace: poutine.Trace, variable: Variable, factor: Factor | None) -> Tensor:
    """Returns a factor in the order of a variable's plates, (plates…, [T,] K).

    Its dims are those of a trace, and after them, in a loop, first time and last the state.
    """
    name, K = variable.sites[0], len(variable.states)
    steps = (len(variable.sites),) if len(variable.sites) > 1 else ()
    if factor is None:  # one state alone
        return torch.ones(*variable.plates, *steps, K)
    symbols, frames = (
        trace.nodes[name]["infer"]["_dim_to_symbol"],
        trace.nodes[name]["cond_indep_stack"],
    )
    frames = [f for f in sorted(frames, key=_dim) if f.vectorized and f.name != PARTICLES]
    plates = "".join(symbols[f.dim] for f in frames)
    time, own = factor.dims[: len(steps)], factor.dims[-1]
    return align(factor, plates + time + own).expand(*variable.plates, *steps, K).contiguous()


def _dim(frame: object) -> int:
    return frame.dim if frame.dim is not None else 0


def _apart(chain: Chain, joint: Tensor) -> dict[str, Factor]:
    """Returns the marginals of each latent of a loop, (T, plates…, K), of joint ones (T, B, *K)."""
    found = {}
    for m, group in enumerate(chain.groups):
        others = [i + 2 for i in range(len(chain.groups)) if i != m]
        alone = joint.sum(others) if others else joint  # (T, B, K of the group)
        alone = alone.unflatten(-1, [chain.states[i] for i in group])
        for position, i in enumerate(group):
            rest = [2 + j for j in range(len(group)) if j != position]
            term = alone.sum(rest) if rest else alone
            term = term.reshape(len(term), *chain.sizes, -1)
            found[chain.names[i]] = _over_plates(chain, term)
    return found


def _together(chain: Chain, i: int, j: int) -> Tensor:
    """Returns the joint probabilities of two latents of a loop at each step, (T, B, K, K')."""
    p = _steps(chain)
    p = p.reshape(*p.shape[:2], *(chain.states[k] for group in chain.groups for k in group))
    order = [k for group in chain.groups for k in group]
    rest = [2 + n for n, k in enumerate(order) if k not in (i, j)]
    p = p.sum(rest) if rest else p
    return p if order.index(i) < order.index(j) else p.mT


def _consecutive(chain: Chain, i: int) -> Tensor:
    """Returns the joint probabilities of a latent at a step and the next, (T - 1, B, K, K)."""
    m = next(m for m, group in enumerate(chain.groups) if i in group)
    size = (len(chain.later), len(chain.first), *chain.moves[m].shape[2:])
    wide = chain.moves[m].detach().expand(size).clone().requires_grad_()
    moves = [wide if n == m else A.detach() for n, A in enumerate(chain.moves)]
    with torch.enable_grad():
        total = chain._replace(moves=moves).total().term.sum()
        (p,) = torch.autograd.grad(total, [wide])  # (T - 1, B, K, K)
    if chain.known is not None:  # a masked step is uniform, whatever went before
        before = _steps(chain)[:-1]  # (T - 1, B, *K)
        others = [2 + n for n in range(len(chain.groups)) if n != m]
        before = before.sum(others) if others else before
        alone = before[..., None] / p.shape[-1]
        p = torch.where(chain.known[..., None, None], p, alone.expand_as(p))
    group = chain.groups[m]
    states = [chain.states[k] for k in group]
    p = p.reshape(*p.shape[:2], *states, *states)
    n = group.index(i)
    rest = [2 + k for k in range(2 * len(group)) if k not in (n, len(group) + n)]
    return p.sum(rest) if rest else p


def _steps(chain: Chain) -> Tensor:
    """Returns the joint probabilities of each step, (T, B, *K)."""
    found, _ = recursions.marginals(chain.first, chain.moves, chain.later, chain.known)
    return found.detach().exp()


def _over_plates(chain: Chain, term: Tensor) -> Factor:
    """Sums over the latents outside a loop that its rows also list."""
    listed = [d for d in chain.dims if d not in chain.plates]
    if listed:
        term = term.sum([1 + chain.dims.index(d) for d in listed])
    dims = "".join(d for d in chain.dims if d not in listed)
    return Factor(chain.names[0], term, chain.time + dims + "?")


def rest(
    model: Callable, guide: Callable, values: dict[str, Tensor], num_draws: int, *data: Tensor
) -> dict[str, Tensor]:
    """Draws what a guide leaves to be summed out, given its draws: (S, plates…, event…)."""
    listed = listable(model, guide, *data)
    if not listed:
        return {}
    if discrete_latents(model, *data) != listed:
        raise ValueError(
            f"the guide samples some discrete latents and leaves {sorted(listed)[:3]} to be summed out, "
            "which are not drawn given the others: let it sample all of them, or none."
        )
    if values:
        return decode(model, values, *data)
    return Listed(model, *data).draws(num_draws)
