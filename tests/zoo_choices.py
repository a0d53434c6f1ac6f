r"""Stories of one datum whose latents are discrete, and the mean of every bound by listing all states.

Beside the "discrete" story of the zoo, with an index of three values: two layers of binary units, a
one-hot latent, latents of parts in a plate of their own, units that a mask leaves out, and a continuous
latent below a binary one. Parameters come first, as in the zoo.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from zoo import Oracle, Params, bernoulli, discrete, gauss_hermite, normal


def exact_loss(oracle: Oracle, theta: Params, phi: Params, num_particles: int = 1) -> Tensor:
    """-E log mean_p w_p as a function of all parameters, those of the draws included."""
    if oracle.states is None:
        return _mixed_loss(oracle, theta, phi)
    places = torch.cartesian_prod(*[torch.arange(len(oracle.states))] * num_particles)
    z = oracle.states[places.reshape(-1, num_particles)]  # (G, P, L)
    log_q = oracle.log_q(phi, oracle.x, z)
    log_w = oracle.log_p(theta, oracle.x, z) - log_q  # (G, P)
    return log_q.sum(-1).exp() @ (math.log(num_particles) - log_w.logsumexp(1))


def _states(num_bits: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(2.0)] * num_bits).reshape(-1, num_bits)


def _oracle(model: Callable, guide: Callable, theta: Params, phi: Params, **known) -> Oracle:
    states, log_p = known["states"], known["log_p"]
    return Oracle(
        model,
        guide,
        {name: torch.tensor(value) for name, value in theta.items()},
        {name: torch.tensor(value) for name, value in phi.items()},
        torch.tensor(1.0),
        log_marginal=lambda theta, x: log_p(theta, x, states).logsumexp(0),
        latents=states.shape[1],
        **known,
    )


# ---- two layers of two units ----


def belief_model(theta: Params, x: Tensor) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.Bernoulli(logits=theta["r"]).to_event(1))
        logits = (theta["W"] * z2[..., None, :]).sum(-1) + theta["c"]
        z1 = pyro.sample("z1", dist.Bernoulli(logits=logits).to_event(1))
        logits = (theta["v"] * z1).sum(-1) + theta["u"] * z1.prod(-1)
        return pyro.sample("x", dist.Bernoulli(logits=logits), obs=x)


def belief_guide(phi: Params, x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        logits = phi["b"] + phi["g"] * x[..., None]
        z1 = pyro.sample("z1", dist.Bernoulli(logits=logits).to_event(1))
        logits = (phi["A"] * z1[..., None, :]).sum(-1) + phi["d"]
        pyro.sample("z2", dist.Bernoulli(logits=logits).to_event(1))


def belief() -> Oracle:
    def log_p(theta, x, z):
        z1, z2 = z[..., :2], z[..., 2:]
        total = bernoulli(z2, theta["r"]).sum(-1)
        total = total + bernoulli(z1, z2 @ theta["W"].T + theta["c"]).sum(-1)
        return total + bernoulli(x, (theta["v"] * z1).sum(-1) + theta["u"] * z1.prod(-1))

    def log_q(phi, x, z):
        z1, z2 = z[..., :2], z[..., 2:]
        total = bernoulli(z1, phi["b"] + phi["g"] * x).sum(-1)
        return total + bernoulli(z2, z1 @ phi["A"].T + phi["d"]).sum(-1)

    return _oracle(
        belief_model,
        belief_guide,
        {"r": [0.3, -0.5], "W": [[0.8, -0.6], [0.2, 1.1]], "c": [-0.2, 0.4], "v": [1.2, -0.9],
         "u": 0.7},
        {"b": [0.2, -0.4], "g": [0.5, 0.1], "A": [[0.6, -0.3], [0.9, 0.4]], "d": [-0.1, 0.3]},
        log_p=log_p, log_q=log_q, states=_states(4),
    )  # fmt: skip


# ---- one of three, and a bit below it ----


def one_hot_model(theta: Params, x: Tensor) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.OneHotCategorical(logits=theta["pi"]))
        b = pyro.sample("b", dist.Bernoulli(logits=(theta["r"] * k).sum(-1)))
        logits = (theta["v"] * k).sum(-1) + theta["u"] * b
        return pyro.sample("x", dist.Bernoulli(logits=logits), obs=x)


def one_hot_guide(phi: Params, x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.OneHotCategorical(logits=phi["f"] + phi["g"] * x[..., None]))
        pyro.sample("b", dist.Bernoulli(logits=(phi["c"] * k).sum(-1) + phi["d"] * x))


def one_hot() -> Oracle:
    """The densities of "discrete", for that is what it is."""
    return replace(discrete(), model=one_hot_model, guide=one_hot_guide)


# ---- parts in a plate of their own ----


def parts_model(theta: Params, x: Tensor) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(logits=theta["r"]))
        with pyro.plate("parts", 2, dim=-2):
            logits = theta["c"].movedim(-1, 0).reshape(2, -1) + theta["w"] * z
            part = pyro.sample("part", dist.Bernoulli(logits=logits))  # (…, 2, N)
        logits = (theta["v"].movedim(-1, 0).reshape(2, -1) * part).sum(-2, keepdim=part.ndim > 2)
        return pyro.sample("x", dist.Bernoulli(logits=logits + theta["u"] * z), obs=x)


def parts_guide(phi: Params, x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(logits=phi["b"] + phi["g"] * x))
        with pyro.plate("parts", 2, dim=-2):
            logits = phi["c"].movedim(-1, 0).reshape(2, -1) + phi["h"] * z + phi["d"] * x
            pyro.sample("part", dist.Bernoulli(logits=logits))


def parts() -> Oracle:
    def log_p(theta, x, z):
        top, part = z[..., :1], z[..., 1:]
        total = bernoulli(top[..., 0], theta["r"])
        total = total + bernoulli(part, theta["c"] + theta["w"] * top).sum(-1)
        return total + bernoulli(x, (theta["v"] * part).sum(-1) + theta["u"] * top[..., 0])

    def log_q(phi, x, z):
        top, part = z[..., :1], z[..., 1:]
        total = bernoulli(top[..., 0], phi["b"] + phi["g"] * x)
        return total + bernoulli(part, phi["c"] + phi["h"] * top + phi["d"] * x).sum(-1)

    return _oracle(
        parts_model,
        parts_guide,
        {"r": 0.3, "c": [-0.2, 0.5], "w": 0.8, "v": [1.1, -0.7], "u": 0.4},
        {"b": 0.1, "g": -0.4, "c": [0.3, -0.6], "h": 0.7, "d": 0.2},
        log_p=log_p, log_q=log_q, states=_states(3),
    )  # fmt: skip


# ---- two units, of which a mask counts one ----


def masked_model(theta: Params, x: Tensor) -> Tensor:
    counted = torch.tensor([True, False])
    with pyro.plate("data", len(x), dim=-1):
        prior = dist.Bernoulli(logits=theta["r"]).mask(counted).to_event(1)
        z = pyro.sample("z", prior)
        logits = (theta["v"] * z * counted).sum(-1)
        return pyro.sample("x", dist.Bernoulli(logits=logits), obs=x)


def masked_guide(phi: Params, x: Tensor) -> None:
    counted = torch.tensor([True, False])
    with pyro.plate("data", len(x), dim=-1):
        logits = phi["b"] + phi["g"] * x[..., None]
        pyro.sample("z", dist.Bernoulli(logits=logits).mask(counted).to_event(1))


def masked() -> Oracle:
    def log_p(theta, x, z):
        first = z[..., 0]
        return bernoulli(first, theta["r"][0]) + bernoulli(x, theta["v"][0] * first)

    return _oracle(
        masked_model,
        masked_guide,
        {"r": [0.4, 2.0], "v": [1.3, -3.0]},
        {"b": [-0.3, 1.0], "g": [0.6, 0.5]},
        log_p=log_p,
        log_q=lambda phi, x, z: bernoulli(z[..., 0], phi["b"][0] + phi["g"][0] * x),
        states=_states(1),
    )


# ---- a number, a bit below it, and a number below that ----


def mixed_model(theta: Params, x: Tensor) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Normal(theta["m"], 1.0))
        b = pyro.sample("b", dist.Bernoulli(logits=theta["r"] + theta["s"] * y))
        z = pyro.sample("z", dist.Normal(theta["w"] * b, 1.0))
        loc = z + theta["v"] * b + 0.3 * y
        return pyro.sample("x", dist.Normal(loc, theta["log_s"].exp()), obs=x)


def mixed_guide(phi: Params, x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Normal(phi["a"] * x, phi["log_a"].exp()))
        b = pyro.sample("b", dist.Bernoulli(logits=phi["f"] + phi["g"] * y))
        loc = phi["c"] * x + phi["h"] * b + phi["k"] * y
        pyro.sample("z", dist.Normal(loc, phi["log_t"].exp()))


def _mixed_log_p(theta: Params, x: Tensor, z: Tensor) -> Tensor:
    y, b, z = z.unbind(-1)
    total = normal(y, theta["m"]) + bernoulli(b, theta["r"] + theta["s"] * y)
    loc = z + theta["v"] * b + 0.3 * y
    return total + normal(z, theta["w"] * b) + normal(x, loc, theta["log_s"])


def _mixed_loss(oracle: Oracle, theta: Params, phi: Params) -> Tensor:
    """Quadrature over the noise of the numbers, the sum over the bit."""
    eps, weight = gauss_hermite(2)  # (G, 2)
    y, total = phi["a"] * oracle.x + phi["log_a"].exp() * eps[:, 0], 0.0
    for b in torch.tensor([0.0, 1.0]):
        loc = phi["c"] * oracle.x + phi["h"] * b + phi["k"] * y
        z = loc + phi["log_t"].exp() * eps[:, 1]
        log_b = bernoulli(b, phi["f"] + phi["g"] * y)
        log_q = normal(y, phi["a"] * oracle.x, phi["log_a"]) + normal(z, loc, phi["log_t"]) + log_b
        log_p = oracle.log_p(theta, oracle.x, torch.stack([y, b.expand_as(y), z], -1))
        total = total + weight @ (log_b.exp() * (log_q - log_p))
    return total


def mixed() -> Oracle:
    theta = {"m": 0.2, "r": 0.4, "s": -0.5, "w": 0.7, "v": 0.6, "log_s": -0.3}
    phi = {"a": 0.3, "log_a": -0.1, "f": -0.2, "g": 0.8, "c": 0.4, "h": -0.5, "k": 0.2,
           "log_t": -0.2}  # fmt: skip
    return Oracle(
        mixed_model,
        mixed_guide,
        {name: torch.tensor(value) for name, value in theta.items()},
        {name: torch.tensor(value) for name, value in phi.items()},
        torch.tensor(1.0),
        log_p=_mixed_log_p,
        log_q=None,
        log_marginal=None,
        latents=3,
    )


CHOICES = {
    "index": discrete,
    "one_hot": one_hot,
    "belief": belief,
    "parts": parts,
    "masked": masked,
    "mixed": mixed,
}
