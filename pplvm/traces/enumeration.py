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

from pplvm.traces.chains import Chain
from pplvm.traces.decoding import decode, decoded
from pplvm.traces.discrete import Graph, graph_of, loops_are_even, place
from pplvm.traces.elimination import Factor, align
from pplvm.traces.families import distribution_name
from pplvm.traces.likelihoods import discrete_latents
from pplvm.traces.placements import Plan
from pplvm.traces.sites import DATA, PARTICLES, factorises
from pplvm.traces.statistics import Averaged, statistics_of
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

    def again(self) -> "Listed":
        """Returns the same at the parameters that the story has by now."""
        found = copy(self)
        found.graph = self._graph_at(self.latents)
        return found

    def averaged(self, weights: list[Tensor]) -> Callable[[], Tensor]:
        """Returns a function that returns the expected joint log-density, (), at the parameters by then.

        It is so up to a constant, and sees the data by expected sufficient statistics where it can.
        """
        statistics = statistics_of(self.graph, weights)

        def expected() -> Tensor:
            with Averaged(statistics):
                return weighed(weights, self._graph_at(self.latents).tensors())

        return expected

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
        factors = {}
        if unary:
            with torch.enable_grad():
                found = torch.autograd.grad(graph.total()[0], [f.term for f in unary.values()])
            for (name, f), p in zip(unary.items(), found, strict=True):
                factors[name] = f._replace(term=p)
        for number, chain in enumerate(graph.chains):
            factors |= _apart(chain, self._steps(number))
        return {
            name: placed(graph.trace, v, factors.get(v.sites[0]))
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
        number = next(n for n, c in enumerate(self.graph.chains) if c is chains[0])
        i, j = (chains[0].names.index(site) for site in sites)
        joint = self._consecutive(number, i) if i == j else self._together(number, i, j)
        plates, (T, _, K, L) = self.variables[one].plates, joint.shape  # (T, B, K, K')
        found = _over_plates(chains[0], joint.reshape(T, *chains[0].sizes, K * L))
        found = Factor(one, found.term.movedim(0, -2).flatten(-2), found.dims[1:])
        variable = Variable(sites[:1], torch.empty(T * K * L), plates)
        return placed(self.graph.trace, variable, found).reshape(*plates, T, K, L)

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

    def _steps(self, number: int) -> Tensor:
        """Returns the joint probabilities of a chain's latents at each step, (T, B, *K)."""
        chain = self.graph.chains[number]
        leaves = [x.detach().clone().requires_grad_() for x in (chain.first, chain.later)]
        found = self._gradient(number, chain._replace(first=leaves[0], later=leaves[1]), leaves)
        return torch.cat((found[0][None], found[1]))

    def _together(self, number: int, i: int, j: int) -> Tensor:
        """Returns the joint probabilities of two latents of a chain at each step, (T, B, K, K')."""
        chain = self.graph.chains[number]
        order = [k for group in chain.groups for k in group]
        p = self._steps(number).flatten(2).unflatten(2, [chain.states[k] for k in order])
        rest = [2 + n for n, k in enumerate(order) if k not in (i, j)]
        p = p.sum(rest) if rest else p
        return p if order.index(i) < order.index(j) else p.mT

    def _consecutive(self, number: int, i: int) -> Tensor:
        """Returns the joint probabilities of a latent at a step and the next, (T - 1, B, K, K)."""
        chain = self.graph.chains[number]
        m = next(m for m, group in enumerate(chain.groups) if i in group)
        A = chain.moves[m].detach()
        wide = A.expand(len(chain.later), len(chain.first), -1, -1).clone().requires_grad_()
        moves = [wide if n == m else A for n, A in enumerate(chain.moves)]
        (p,) = self._gradient(number, chain._replace(moves=moves), [wide])
        if chain.known is not None:  # a masked step is uniform, whatever went before
            before = self._steps(number)[:-1]
            others = [2 + n for n in range(len(chain.groups)) if n != m]
            before = before.sum(others) if others else before
            alone = (before / p.shape[-1])[..., None].expand_as(p)
            p = torch.where(chain.known[..., None, None], p, alone)
        group = chain.groups[m]
        states, n = [chain.states[k] for k in group], group.index(i)
        p = p.flatten(2).unflatten(2, states + states)
        rest = [2 + k for k in range(2 * len(group)) if k not in (n, len(group) + n)]
        return p.sum(rest) if rest else p

    def _gradient(self, number: int, chain: Chain, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        chains = [chain if n == number else c for n, c in enumerate(self.graph.chains)]
        with torch.enable_grad():
            return torch.autograd.grad(self.graph._replace(chains=chains).total()[0], leaves)

    def weights(self) -> tuple[Tensor, list[Tensor]]:
        """Returns the total, (), and the posterior probabilities that weigh ``graph.tensors()``."""
        fixed = [x.detach().clone().requires_grad_() for x in self.graph.tensors()]
        with torch.enable_grad():
            total = self.graph.filled(fixed).total()[0]
            return total.detach(), list(torch.autograd.grad(total, fixed))

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
        return graph._replace(factors=[*graph.factors, *unary.values()]), unary


def weighed(weights: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Returns the joint log-density, (), in expectation under a posterior, with gradient."""
    total = 0.0
    for weight, x in zip(weights, tensors, strict=True):
        same = [d for d in range(x.ndim) if x.stride(d) == 0 and x.shape[d] > 1]
        if same:  # one number for many
            weight = weight.sum(same, keepdim=True)
            x = x[tuple(slice(0, 1) if d in same else slice(None) for d in range(x.ndim))]
        total = total + (weight * x.masked_fill(weight == 0, 0.0)).sum()  # what cannot be weighs 0
    return total


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
