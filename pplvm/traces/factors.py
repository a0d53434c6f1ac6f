"""The log-densities of a run in which discrete latents are listed, as factors with named dims."""

from collections.abc import Sequence
from math import log

import torch
from pyro import poutine
from torch import Tensor

from pplvm.traces.elimination import Factor
from pplvm.traces.families import distribution_name
from pplvm.traces.series import Loop, Term
from pplvm.traces.sites import samples, site_log_prob

_FIRST_TIME = 0xE000  # symbols of time axes: for private use, which Pyro's symbols never are


def time_of(number: int) -> str:
    """Returns the symbol of the time axis of a loop."""
    return chr(_FIRST_TIME + number)


def factors_of(
    trace: poutine.Trace, depth: int, loops: Sequence[Loop] = ()
) -> tuple[list[Factor], dict[str, frozenset[str]]]:
    """Returns the log-density of each site, its dims named, and the plates of each discrete one.

    Dims of no plate are summed; among the latents to enumerate they are a ``ValueError``. The later
    steps of loops have their time axis first.
    """
    trace.symbolize_dims()
    plates, factors, homes = set(trace.plate_to_symbol.values()), [], {}
    later = {name: (loop, time_of(i)) for i, loop in enumerate(loops) for name in loop.later}
    for name, site in samples(trace):
        if name in later:
            loop, time = later[name]
            term = loop.terms[name]
        else:
            time, term = "", Term(_where_known(site, site_log_prob(name, site)), False)
        state = site["infer"].get("_enumerate_symbol")
        factors.append(named(name, site, term, time, depth))
        if state is not None and state in factors[-1].dims:
            homes[state] = frozenset(factors[-1].dims) & plates
    return factors, homes


def named(name: str, site: dict, term: Term, time: str, depth: int) -> Factor:
    """Names the dims of a site's term, the first of which is time if it has any."""
    tensor, lead = term.tensor, int(term.timed)
    symbols, latent = site["infer"]["_dim_to_symbol"], "_enumerate_symbol" in site["infer"]
    taken = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
    inside = tensor.ndim - lead
    loose = [d for d in range(-min(depth, inside), 0) if d not in taken and tensor.shape[d] > 1]
    if latent and loose:
        raise ValueError(
            f"site '{name}' ({distribution_name(site['fn'])}) has {tensor.shape[loose[0]]} discrete "
            "values in a dim of no plate: sample it in pyro.plate, so that each is summed out."
        )
    if loose:
        tensor = tensor.sum(loose, keepdim=True)
    wide = [d for d in range(-inside, 0) if tensor.shape[d] > 1]
    if not symbols.keys() >= set(wide):
        raise ValueError(
            f"site '{name}' ({distribution_name(site['fn'])}) does not broadcast over the states "
            "of the discrete latents, which have dims on the left of all plates: index what "
            "depends on them from the right, such as x[..., 0], and use those of a pyro.markov "
            "loop within its reach."
        )
    shape = [*tensor.shape[:lead], *(tensor.shape[d] for d in wide)]
    return Factor(name, tensor.reshape(shape), time * lead + "".join(symbols[d] for d in wide))


def _where_known(site: dict, term: Tensor) -> Tensor:
    """Lets the states of a masked latent sum to one, as if it were not there."""
    if site["infer"].get("_enumerate_symbol") is None:
        return term
    for mask in (site["mask"], getattr(site["fn"], "_mask", None)):
        if mask is not None:
            mask = torch.as_tensor(mask, device=term.device)
            term = torch.where(mask, term, -log(len(site["value"])))
    return term
