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

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from pplvm.traces.chains import Chain
from pplvm.traces.decoding import decode, decoded
from pplvm.traces.discrete import Graph, graph_of, loops_are_even, place
from pplvm.traces.elimination import Factor, align
from pplvm.traces.likelihoods import discrete_latents
from pplvm.traces.placements import Plan
from pplvm.traces.sites import DATA, distribution_name, factorises
from pplvm.traces.sums import listable


class Variable(NamedTuple):
    """A discrete latent, or those of all steps of a loop."""

    sites: list[str]  # one for each step
    states: Tensor  # (K, event…)
    plates: torch.Size


class Listed:
    """A story at all states of its discrete latents.

    Args:
        model: A story without continuous latents; with any, a ``ValueError`` names one.
        data: Its arguments.
        even: Whether loops over time may be run for all later steps at once, if that is known.
    """

    def __init__(self, model: Callable, *data: Tensor, even: bool | None = None) -> None:
        even = loops_are_even(model, *data) if even is None else even
        self.latents: Plan = place(model, *data, even=even)
        for name, z in self.latents.continuous.items():
            raise ValueError(
                f"site '{name}' ({distribution_name(z.fn)}) is continuous and others are discrete: "
                "exact sums discrete latents out or integrates Gaussian ones, not both, so use nuts, "
                "or make it a parameter."
            )
        self.graph: Graph = graph_of(model, self.latents, *data, even=even)
        alone = factorises(model, data=data)
        self._kept = self.graph.trace.plate_to_symbol.get(DATA, "") if alone else ""
        self.variables = self._variables()

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
        return {n: self._placed(v, of_site, chained) for n, v in self.variables.items()}

    def weights(self) -> list[Tensor]:
        """Returns the posterior probabilities that weigh the log-densities in :meth:`expected`."""
        fixed = [x.detach().clone().requires_grad_() for x in self.graph.tensors()]
        with torch.enable_grad():
            total = self.graph.filled(fixed).total()[0]
            return list(torch.autograd.grad(total, fixed))

    def expected(self, weights: list[Tensor]) -> Tensor:
        """Returns the joint log-density, (), in expectation under a posterior, with gradient."""
        terms = [
            (weight * x.masked_fill(weight == 0, 0.0)).sum()  # what is impossible is not weighed
            for weight, x in zip(weights, self.graph.tensors(), strict=True)
        ]
        return sum(terms)

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

    def _variables(self) -> dict[str, Variable]:
        found, later = {}, {name for loop in self.graph.loops for name in loop.later}
        sites = {name: [name] for name in self.latents.discrete if name not in later}
        shown = dict.fromkeys(sites)
        for loop in self.graph.loops:
            names = [
                [n for n in side if n in self.latents.discrete] for side in (loop.first, loop.later)
            ]
            for name, then in zip(*names, strict=True):
                sites[name] += [loop.name_at(then, t) for t in loop.steps[1:]]
                shown[name] = loop.common_name(then)
        for name, steps in sites.items():
            z = self.latents.discrete[name]
            states = self.graph.trace.nodes[name]["value"].reshape(-1, *z.fn.event_shape)
            title = shown[name]
            title = title if title and title not in sites and title not in found else name
            found[title] = Variable(steps, states, z.plates)
        return found

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

    def _placed(
        self, variable: Variable, unary: dict[str, Factor], chained: dict[str, Factor]
    ) -> Tensor:
        """Returns probabilities in the order of a variable's plates."""
        name, K = variable.sites[0], len(variable.states)
        symbols = self.graph.trace.nodes[name]["infer"]["_dim_to_symbol"]
        frames = self.graph.trace.nodes[name]["cond_indep_stack"]
        plates = "".join(symbols[f.dim] for f in sorted(frames, key=_dim) if f.vectorized)
        own = self.graph.trace.nodes[name]["infer"]["_enumerate_symbol"]
        steps = (len(variable.sites),) if len(variable.sites) > 1 else ()
        if name in chained:
            factor = chained[name]  # time first, state last
            term = align(
                factor._replace(dims=factor.dims[:-1] + own), plates + factor.dims[0] + own
            )
        elif name in unary:
            term = align(unary[name], plates + own)
        else:  # one state alone
            return torch.ones(*variable.plates, *steps, K)
        return term.expand(*variable.plates, *steps, K).contiguous()


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
