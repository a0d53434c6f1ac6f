r"""Small stories whose answers are known; adding a story to a law is adding a row here.

``ORACLES`` are stories of one datum with every density written again by hand, in torch alone.
Their programs take their parameters first, so that a test can give each datum a copy of its
own: one call then yields as many independent gradients as there are data. ``ZOO`` are stories
as a user writes them.

Shapes: N data, P particles, G grid points, L latents of a datum, M parts of a datum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from pplvm.guides.factor_analysis import AmortisedMeanField, LinearGaussian
from pplvm.guides.vae import VAEGuide
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.models.vae import VAE

Params = dict[str, Tensor]
NODES = {1: 60, 2: 40, 3: 28, 4: 16}  # quadrature nodes an axis, by the number of axes


def gauss_hermite(dims: int) -> tuple[Tensor, Tensor]:
    """Points (G, dims) and weights (G,) for expectations under N(0, I)."""
    x, w = np.polynomial.hermite_e.hermegauss(NODES[dims])
    x, w = torch.tensor(x), torch.tensor(w / w.sum())
    points = torch.cartesian_prod(*[x] * dims).reshape(-1, dims)
    return points, torch.cartesian_prod(*[w] * dims).reshape(-1, dims).prod(-1)


def normal(value: Tensor, loc: Tensor, log_scale: Tensor | float = 0.0) -> Tensor:
    log_scale = torch.as_tensor(log_scale)
    return -0.5 * ((value - loc) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Oracle:
    """A story of one datum x with its densities by hand; z is (…, L)."""

    model: Callable  # (θ, x): the Pyro programs
    guide: Callable  # (φ, x)
    theta: Params
    phi: Params
    x: Tensor  # ()
    log_p: Callable  # (θ, x, z) -> (…)
    log_q: Callable  # (φ, x, z) -> (…)
    log_marginal: Callable  # (θ, x) -> ()
    latents: int
    move: Callable | None = None  # (φ, x, eps) -> z, where z has a density
    dreams: Callable | None = None  # (θ) -> x (G,), z (G, L), weight (G,)
    states: Tensor | None = None  # (S, L): all values of z, where it is discrete

    def draws(self, phi: Params, num_particles: int) -> tuple[Tensor, Tensor]:
        """Every draw of P particles, (G, P, L), and how likely each is, (G,)."""
        if self.states is not None:
            which = torch.cartesian_prod(*[torch.arange(len(self.states))] * num_particles)
            z = self.states[which.reshape(-1, num_particles)]
            return z, self.log_q(phi, self.x, z).sum(-1).exp().detach()
        eps, weight = gauss_hermite(num_particles * self.latents)
        return self.move(phi, self.x, eps.reshape(-1, num_particles, self.latents)), weight


# ---- one latent ----


def gaussian_model(theta: Params, x: Tensor, prior: Callable = dist.Normal) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", prior(theta["mu"], 1.0))
        return pyro.sample("x", dist.Normal(theta["a"] * z, theta["log_s"].exp()), obs=x)


def gaussian_guide(phi: Params, x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(phi["b"] * x + phi["c"], phi["log_t"].exp()))


def _gaussian_dreams(theta: Params) -> tuple[Tensor, Tensor, Tensor]:
    eps, weight = gauss_hermite(2)
    z = theta["mu"] + eps[:, :1]
    return theta["a"] * z[:, 0] + theta["log_s"].exp() * eps[:, 1], z, weight


def gaussian() -> Oracle:
    def log_p(theta, x, z):
        z = z[..., 0]
        return normal(z, theta["mu"]) + normal(x, theta["a"] * z, theta["log_s"])

    def log_marginal(theta, x):
        var = theta["a"] ** 2 + (2 * theta["log_s"]).exp()
        return normal(x, theta["a"] * theta["mu"], 0.5 * var.log())

    return Oracle(
        gaussian_model,
        gaussian_guide,
        _params(mu=0.3, a=0.8, log_s=-0.2),
        _params(b=0.2, c=-0.3, log_t=0.1),
        torch.tensor(1.2),
        log_p,
        lambda phi, x, z: normal(z[..., 0], phi["b"] * x + phi["c"], phi["log_t"]),
        log_marginal,
        latents=1,
        move=lambda phi, x, eps: phi["b"] * x[..., None] + phi["c"] + phi["log_t"].exp() * eps,
        dreams=_gaussian_dreams,
    )


def student() -> Oracle:
    """A prior for which there is no closed-form divergence."""
    prior = partial(dist.StudentT, 5.0)
    constant = math.lgamma(3.0) - math.lgamma(2.5) - 0.5 * math.log(5.0 * math.pi)

    def log_p(theta, x, z):
        z = z[..., 0]
        log_prior = constant - 3.0 * torch.log1p((z - theta["mu"]) ** 2 / 5.0)
        return log_prior + normal(x, theta["a"] * z, theta["log_s"])

    def log_marginal(theta, x):
        z = torch.linspace(-40.0, 40.0, 16001)
        return torch.trapezoid(log_p(theta, x, z[:, None]).exp(), z).log()

    row = gaussian()
    return Oracle(
        partial(gaussian_model, prior=prior),
        gaussian_guide,
        row.theta,
        row.phi,
        row.x,
        log_p,
        row.log_q,
        log_marginal,
        latents=1,
        move=row.move,
    )


# ---- two latents, a guide that samples them in either order ----


def hierarchical_model(theta: Params, x: Tensor) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        z1 = pyro.sample("z1", dist.Normal(theta["m"], 1.0))
        z2 = pyro.sample("z2", dist.Normal(theta["r"] * z1, 1.0))
        return pyro.sample("x", dist.Normal(z2 + 0.5 * z1, theta["log_s"].exp()), obs=x)


def hierarchical_guide(phi: Params, x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z1 = pyro.sample("z1", dist.Normal(phi["b1"] * x, phi["log_t1"].exp()))
        pyro.sample("z2", dist.Normal(phi["b2"] * x + phi["h"] * z1, phi["log_t2"].exp()))


def backward_guide(phi: Params, x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.Normal(phi["b2"] * x, phi["log_t2"].exp()))
        pyro.sample("z1", dist.Normal(phi["b1"] * x + phi["h"] * z2, phi["log_t1"].exp()))


def hierarchical(backward: bool = False) -> Oracle:
    first, second = (1, 0) if backward else (0, 1)  # z1 and z2 by place

    def log_p(theta, x, z):
        z1, z2 = z.unbind(-1)
        prior = normal(z1, theta["m"]) + normal(z2, theta["r"] * z1)
        return prior + normal(x, z2 + 0.5 * z1, theta["log_s"])

    def log_q(phi, x, z):
        base, rest = z[..., first], z[..., second]
        b, t = f"b{first + 1}", f"log_t{first + 1}"
        c, u = f"b{second + 1}", f"log_t{second + 1}"
        return normal(base, phi[b] * x, phi[t]) + normal(rest, phi[c] * x + phi["h"] * base, phi[u])

    def move(phi, x, eps):
        b, t = f"b{first + 1}", f"log_t{first + 1}"
        c, u = f"b{second + 1}", f"log_t{second + 1}"
        base = phi[b] * x + phi[t].exp() * eps[..., 0]
        rest = phi[c] * x + phi["h"] * base + phi[u].exp() * eps[..., 1]
        return torch.stack((rest, base) if backward else (base, rest), -1)

    def log_marginal(theta, x):
        slope = theta["r"] + 0.5
        var = slope**2 + 1.0 + (2 * theta["log_s"]).exp()
        return normal(x, slope * theta["m"], 0.5 * var.log())

    def dreams(theta):
        eps, weight = gauss_hermite(3)
        z1 = theta["m"] + eps[:, 0]
        z2 = theta["r"] * z1 + eps[:, 1]
        x = z2 + 0.5 * z1 + theta["log_s"].exp() * eps[:, 2]
        return x, torch.stack((z1, z2), -1), weight

    return Oracle(
        hierarchical_model,
        backward_guide if backward else hierarchical_guide,
        _params(m=0.4, r=0.7, log_s=-0.1),
        _params(b1=0.3, log_t1=-0.1, b2=0.2, h=0.4, log_t2=0.05),
        torch.tensor(0.9),
        log_p,
        log_q,
        log_marginal,
        latents=2,
        move=move,
        dreams=dreams,
    )


# ---- discrete latents, few enough to enumerate ----


def _pick(table: Tensor, k: Tensor) -> Tensor:
    """``table[k]`` for a table (K,), or one for each datum, (N, K)."""
    return (table * one_hot(k.long(), table.shape[-1])).sum(-1)


def discrete_model(theta: Params, x: Tensor) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(logits=theta["pi"]))
        b = pyro.sample("b", dist.Bernoulli(logits=_pick(theta["r"], k)))
        logits = _pick(theta["v"], k) + theta["u"] * b
        return pyro.sample("x", dist.Bernoulli(logits=logits), obs=x)


def discrete_guide(phi: Params, x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(logits=phi["f"] + phi["g"] * x[..., None]))
        pyro.sample("b", dist.Bernoulli(logits=_pick(phi["c"], k) + phi["d"] * x))


def bernoulli(value: Tensor, logits: Tensor) -> Tensor:
    return logsigmoid((2 * value - 1) * logits)


def discrete() -> Oracle:
    states = torch.cartesian_prod(torch.arange(3.0), torch.arange(2.0))

    def log_p(theta, x, z):
        k, b = z[..., 0].long(), z[..., 1]
        prior = theta["pi"].log_softmax(-1)[k] + bernoulli(b, theta["r"][k])
        return prior + bernoulli(x, theta["v"][k] + theta["u"] * b)

    def log_q(phi, x, z):
        k, b = z[..., 0].long(), z[..., 1]
        logits = (phi["f"] + phi["g"] * x[..., None]).log_softmax(-1)
        log_k = (logits * one_hot(k, 3)).sum(-1)
        return log_k + bernoulli(b, phi["c"][k] + phi["d"] * x)

    def dreams(theta):
        z = states.repeat(2, 1)
        x = torch.arange(2.0).repeat_interleave(len(states))
        return x, z, log_p(theta, x, z).exp()

    return Oracle(
        discrete_model,
        discrete_guide,
        {
            "pi": torch.tensor([0.2, -0.3, 0.5]),
            "r": torch.tensor([-0.4, 0.6, 0.1]),
            "v": torch.tensor([0.8, -1.0, 0.3]),
            "u": torch.tensor(0.9),
        },
        {
            "f": torch.tensor([-0.1, 0.4, 0.0]),
            "g": torch.tensor([0.3, 0.2, -0.5]),
            "c": torch.tensor([0.5, -0.2, -0.6]),
            "d": torch.tensor(-0.3),
        },
        torch.tensor(1.0),
        log_p,
        log_q,
        lambda theta, x: log_p(theta, x, states).logsumexp(0),
        latents=2,
        dreams=dreams,
        states=states,
    )


def _params(**values: float) -> Params:
    return {name: torch.tensor(value) for name, value in values.items()}


CONTINUOUS = {
    "gaussian": gaussian,
    "student": student,
    "hierarchical": hierarchical,
    "backward": partial(hierarchical, backward=True),
}
ORACLES = CONTINUOUS | {"discrete": discrete}


# ---- stories as a user writes them ----


class Story(NamedTuple):
    model: Callable
    guide: Callable
    data: tuple[Tensor, ...]
    log_marginal: Tensor | None = None  # (N,): exact, for the learned parameters as they start


def learned(program: Callable, params: Params) -> Callable:
    """The program with its parameters in Pyro's store."""

    def learning(*data: Tensor) -> Tensor | None:
        # A clone, for the store shares memory and an optimiser writes in place.
        return program({n: pyro.param(n, value.clone()) for n, value in params.items()}, *data)

    return learning


def of_oracle(row: Callable[[], Oracle], num_data: int = 4) -> Story:
    oracle = row()
    x = torch.arange(num_data) % 2.0 if oracle.states is not None else torch.randn(num_data)
    return Story(
        learned(oracle.model, oracle.theta),
        learned(oracle.guide, oracle.phi),
        (x,),
        torch.stack([oracle.log_marginal(oracle.theta, value) for value in x]),
    )


def nested(num_data: int = 4, num_parts: int = 3) -> Story:
    """A latent of each datum, and one of each of its parts."""

    def model(theta, x):  # x: (N, M)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))  # (N,)
            with pyro.plate("parts", x.shape[1], dim=-2):
                w = pyro.sample("w", dist.Normal(z, 1.0))  # (M, N)
                x = pyro.sample("x", dist.Normal(w, theta["log_s"].exp()), obs=x.T)
                return x.T

    def guide(phi, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(phi["b"] * x.mean(1), 0.8))
            with pyro.plate("parts", x.shape[1], dim=-2):
                pyro.sample("w", dist.Normal(phi["c"] * x.T + 0.3 * z, 0.9))

    x = torch.randn(num_data, num_parts)
    cov = torch.ones(num_parts, num_parts) + 2.0 * torch.eye(num_parts)  # at log_s = 0
    return Story(
        learned(model, _params(log_s=0.0)),
        learned(guide, _params(b=0.4, c=0.3)),
        (x,),
        dist.MultivariateNormal(torch.zeros(num_parts), cov).log_prob(x),
    )


def masked() -> Story:
    """Some data unseen, and a latent that counts by half in both programs."""

    def model(theta, x, seen):
        with pyro.plate("data", len(x), dim=-1):
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Normal(theta["mu"], 1.0))
            with poutine.mask(mask=seen):
                return pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(phi, x, seen):
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=0.5):
            pyro.sample("z", dist.Normal(phi["b"] * x, 0.6))

    data = (torch.randn(4), torch.tensor([True, False, True, True]))
    return Story(learned(model, _params(mu=0.2)), learned(guide, _params(b=0.5)), data)


def factor_analysis(num_data: int = 4, obs_dim: int = 3, latent_dim: int = 2) -> Story:
    model, guide = FactorAnalysis(obs_dim, latent_dim), AmortisedMeanField(obs_dim, latent_dim)
    x = torch.randn(num_data, obs_dim)
    with torch.no_grad():
        cov = model.W @ model.W.T + model.log_psi.exp().diag()
        exact = dist.MultivariateNormal(model.mu, cov).log_prob(x)
    return Story(model, guide, (x,), exact)


def factor_analysis_full() -> Story:
    story = factor_analysis()
    return story._replace(guide=LinearGaussian(3, 2))


def vae(num_data: int = 4, height: int = 2, latent_dim: int = 2) -> Story:
    model, guide = VAE((height, 2), latent_dim, 5), VAEGuide((height, 2), latent_dim, 5)
    x = torch.bernoulli(torch.full((num_data, height, 2), 0.5))
    exact = None
    if latent_dim == 2:
        axis = torch.linspace(-8.0, 8.0, 161)
        z = torch.cartesian_prod(axis, axis)  # (G, L)
        with torch.no_grad():
            logits = model.decoder(z).unflatten(-1, (height, 2))
            lik = bernoulli(x[:, None], logits).sum((-1, -2))  # (N, G)
        prior = normal(z, torch.tensor(0.0)).sum(-1) + 2 * math.log(0.1)
        exact = (lik + prior).logsumexp(1)
    return Story(model, guide, (x,), exact)


def schools() -> Story:
    """Eight schools: no data plate, hence shared latents only, and one datum."""

    def model(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", len(y), dim=-1):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            return pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def guide(phi, y, sigma):
        pyro.sample("mu", dist.Normal(phi["m"], 2.0))
        tau = pyro.sample("tau", dist.LogNormal(phi["t"], 0.5))
        with pyro.plate("school", len(y), dim=-1):
            pyro.sample("theta", dist.Normal(phi["c"] * y, tau))

    data = (
        torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
        torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    )
    return Story(model, learned(guide, _params(m=4.0, t=1.0, c=0.3)), data)


def regression(num_data: int = 6) -> Story:
    """Bayesian linear regression: weights that the data share."""

    def model(theta, features, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))  # (L,) or (P, 1, L)
        with pyro.plate("data", len(features), dim=-1):
            loc = (features * w).sum(-1)  # (N,) or (P, N)
            return pyro.sample("y", dist.Normal(loc, theta["log_s"].exp()), obs=y)

    def guide(phi, features, y):
        pyro.sample("w", dist.Normal(phi["m"], phi["log_t"].exp()).to_event(1))

    features = torch.randn(num_data, 2)
    return Story(
        learned(model, _params(log_s=-0.3)),
        learned(guide, {"m": torch.tensor([0.3, -0.2]), "log_t": torch.tensor([-0.5, -0.4])}),
        (features, features @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(num_data)),
    )


def mixed(num_data: int = 6, scale: float = 0.6) -> Story:
    """A latent that the data share, above one of each datum."""

    def model(theta, x):
        m = pyro.sample("m", dist.Normal(theta["mu"], 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            return pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(phi, x):
        pyro.sample("m", dist.Normal(phi["c"], 0.5))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(phi["b"] * x, scale))

    return Story(
        learned(model, _params(mu=0.1)),
        learned(guide, _params(b=0.5, c=0.2)),
        (torch.randn(num_data),),
    )


PER_DATUM = {name: partial(of_oracle, row) for name, row in CONTINUOUS.items()} | {
    "nested": nested,
    "masked": masked,
    "factor_analysis": factor_analysis,
    "factor_analysis_full": factor_analysis_full,
    "vae": vae,
}
DISCRETE = {"discrete": partial(of_oracle, discrete)}
NO_PLATE = {"schools": schools}  # one datum, which is the data set
SHARED = {"regression": regression, "mixed": mixed}
ZOO = PER_DATUM | DISCRETE | NO_PLATE | SHARED
