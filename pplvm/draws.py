"""Draws from any method, with plates as named dims, and their passage to ArviZ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import xarray as xr
from arviz_base import dict_to_dataset
from torch import Tensor

from pplvm import traces
from pplvm.batches import mix
from pplvm.traces import DATA, Site

# Draws are replayed through the model in parts of at most this many numbers a site.
_PART = 20_000_000


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of the latents given data: C chains of S draws, in order.

    ``draws["z"]`` has shape (C, S, plates…, event…). Draws that a guide or an exact posterior
    made are independent and come as one chain.
    """

    values: dict[str, Tensor]  # (C, S, plates…, event…)
    plates: Mapping[str, tuple[str, ...]]  # names of the plates of each site, outermost first
    stats: Mapping[str, Tensor]  # (C, S) each: diverging, energy, tree_depth, …
    model: Callable  # at the parameters that the draws are given
    data: tuple[Tensor, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __getitem__(self, name: str) -> Tensor:
        """Returns the draws of one site, (C, S, plates…, event…)."""
        if name not in self.values:
            raise ValueError(f"no site '{name}' in these draws: they have {sorted(self.values)}.")
        return self.values[name]

    @property
    def shape(self) -> tuple[int, int]:
        """The number of chains and of draws in each, (C, S)."""
        return tuple(next(iter(self.values.values())).shape[:2])

    @property
    def independent(self) -> bool:
        """Whether the draws come from no chain, so that they need no convergence diagnostics."""
        return not self.stats

    def thin(self, num_draws: int) -> "Draws":
        """Returns at most so many draws of each chain, evenly spread."""
        S = self.shape[1]
        if num_draws >= S:
            return self
        rows = torch.linspace(0, S - 1, num_draws).round().long()
        return replace(
            self,
            values={name: v[:, rows] for name, v in self.values.items()},
            stats={name: v[:, rows] for name, v in self.stats.items()},
        )

    def deterministic(self) -> dict[str, Tensor]:
        """Returns what ``pyro.deterministic`` names in the model, (C, S, …)."""
        sites = traces.look(self.model, *self.data)
        names = [name for name, site in sites.items() if site.kind == "deterministic"]
        if not names:
            return {}
        return self._replay(
            lambda values: _values(traces.replay(self.model, values, *self.data), names)
        )

    def log_likelihood(self) -> dict[str, Tensor]:
        """Returns each observed site's log-density in nats, (C, S, N), or (C, S) outside the plate.

        Discrete latents are summed out, each datum's own inside its own density; the sites that they
        tie together are one then.
        """
        if traces.discrete_latents(self.model, *self.data):
            of = traces.summed_pointwise
        else:
            of = traces.pointwise
        return self._replay(lambda values: of(self.model, values, *self.data))

    def predict(self, seed: int = 0) -> dict[str, Tensor]:
        """Draws what is observed anew at each draw of the latents, (C, S, N, …)."""

        def part(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return _values(traces.replay(self.model, values, *self.data, dream=True), observed)

        observed = self._observed()
        with torch.random.fork_rng():
            torch.manual_seed(mix(seed, 1))  # not the noise that made the latents
            return self._replay(part)

    def prior_predict(self, num_draws: int = 100, seed: int = 0) -> tuple[dict, dict]:
        """Draws latents and data from the model alone, (1, S, …) each."""
        with torch.random.fork_rng():
            torch.manual_seed(mix(seed, 2))
            dreams = [traces.run(self.model, *self.data, dream=True) for _ in range(num_draws)]
        latents, observed = (
            {name: torch.stack([d[name].value for d in dreams])[None] for name in names}
            for names in (self.values, self._observed())
        )
        return latents, observed

    def to_arviz(self, coords: Mapping[str, Sequence] | None = None) -> xr.DataTree:
        """Returns an ArviZ DataTree.

        Its groups are posterior, sample_stats (of chains), log_likelihood for each datum,
        posterior and prior predictive, prior and observed_data. Plates are named dims.

        Args:
            coords: Labels of dims, such as ``{"data": names, "z_dim_0": factors}``; a plate or
                dim that does not exist, or of another length, is a ``ValueError``.
        """
        prior, prior_predictive = self.prior_predict()
        sites = traces.look(self.model, *self.data)
        groups: dict[str, Mapping[str, Tensor]] = {
            "posterior": self.values | self.deterministic(),
            "posterior_predictive": self.predict(),
            "log_likelihood": self.log_likelihood(),
            "prior": prior,
            "prior_predictive": prior_predictive,
            "observed_data": {name: sites[name].value[None, None] for name in self._observed()},
            "sample_stats": self.stats,
        }
        dims = {k: {n: _dims(n, v, sites) for n, v in group.items()} for k, group in groups.items()}
        sizes = {
            dim: size
            for k, group in groups.items()
            for n, v in group.items()
            for dim, size in zip(dims[k][n], v.shape[2:], strict=True)
        }
        coords = {dim: list(labels) for dim, labels in (coords or {}).items()}
        for dim, labels in coords.items():
            if sizes.get(dim) != len(labels):
                raise ValueError(
                    f"coords['{dim}'] has {len(labels)} labels, but the dims are {sizes}: give one "
                    "label for each element of an existing dim."
                )
        tree = {
            k: dict_to_dataset(
                {name: value.detach().cpu().numpy() for name, value in group.items()},
                dims=dims[k],
                coords={
                    d: c
                    for d, c in coords.items()
                    if d in {x for ds in dims[k].values() for x in ds}
                },
            )
            for k, group in groups.items()
            if group
        }
        tree["observed_data"] = tree["observed_data"].isel(chain=0, draw=0, drop=True)
        return xr.DataTree.from_dict(tree)

    def _observed(self) -> list[str]:
        sites = traces.look(self.model, *self.data)
        return [name for name, site in sites.items() if site.kind == "observed"]

    def _replay(self, part: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Maps the draws, as particles, to (C, S, …) in parts of bounded memory."""
        C, S = self.shape
        flat = {name: v.flatten(0, 1) for name, v in self.values.items()}  # (C·S, …)
        widest = max(x.numel() for x in (*self.data, *(v[0] for v in flat.values())))
        rows = max(2, _PART // max(widest, 1))
        parts = [
            part({name: v[start : start + rows] for name, v in flat.items()})
            for start in range(0, C * S, rows)
        ]
        return {n: torch.cat([p[n] for p in parts]).unflatten(0, (C, S)) for n in parts[0]}


def independent(answer: Any, values: Mapping[str, Tensor]) -> Draws:
    """Returns independent draws (S, …) as one chain, of the story and data of what made them."""
    sites = traces.look(answer.model, *answer.data)
    return Draws(
        values={name: value[None] for name, value in values.items()},
        plates={name: tuple(n for n, _, _ in sites[name].plates) for name in values},
        stats={},
        model=answer.model,
        data=answer.data,
        settings=answer.settings,
        seconds=answer.seconds,
    )


def _values(sites: dict[str, Site], names: list[str]) -> dict[str, Tensor]:
    return {name: sites[name].value for name in names}


def _dims(name: str, value: Tensor, sites: dict[str, Site]) -> list[str]:
    """Names the dims of a (C, S, …) value: plates first, as far as they are there."""
    plates = sites[name].plates if name in sites else ()
    sizes = tuple(size for _, size, _ in plates)
    named = [plate for plate, _, _ in plates]
    if tuple(value.shape[2 : 2 + len(named)]) != sizes:  # a datum's density, or a free value
        named = [DATA] if DATA in named and value.shape[2:3] == sizes[-1:] else []
    return named + [f"{name}_dim_{i}" for i in range(value.ndim - 2 - len(named))]
