r"""A sigmoid belief network of one layer, and every estimator of its gradient, by hand in PyTorch.

.. math:: z_l \sim \mathrm{Bern}(\sigma(r_l)), \qquad x \sim \mathrm{Bern}(\sigma(W z + c)), \qquad
    q(z \mid x) = \mathrm{Bern}(\sigma(V (x - \bar x) + d)),

to compare with: eager, as one would write it, with the divergence in closed form and one draw of z for
each image unless an estimator needs more.

Shapes: N images, D pixels, L units, P draws.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Network(nn.Module):
    """Creates the network and its guide for images (N, D) of a mean image (D,)."""

    def __init__(self, num_pixels: int, num_units: int, mean: Tensor) -> None:
        super().__init__()
        self.r = nn.Parameter(torch.zeros(num_units))
        self.decoder, self.encoder = (
            nn.Linear(num_units, num_pixels), nn.Linear(num_pixels, num_units),
        )  # fmt: skip
        self.mean = mean

    def logits(self, x: Tensor) -> Tensor:
        """Returns those of q(z | x), (N, L)."""
        return self.encoder(x - self.mean)

    def log_lik(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns log p(x | z), (N,) or (P, N)."""
        logits = self.decoder(z)
        x = x.expand_as(logits)
        return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)

    def kl(self, alpha: Tensor) -> Tensor:
        """Returns the divergence of q from the prior, (N,)."""
        q, log_q, log_not_q = alpha.sigmoid(), F.logsigmoid(alpha), F.logsigmoid(-alpha)
        return (
            q * (log_q - F.logsigmoid(self.r)) + (1 - q) * (log_not_q - F.logsigmoid(-self.r))
        ).sum(-1)


def log_bernoulli(z: Tensor, logits: Tensor) -> Tensor:
    """Returns the log-probability of units, summed over them."""
    logits = logits.expand_as(z)
    return -F.binary_cross_entropy_with_logits(logits, z, reduction="none").sum(-1)


def _noise(alpha: Tensor) -> tuple[Tensor, Tensor]:
    u = torch.rand_like(alpha).clamp(1e-7, 1 - 1e-7)
    return u, u.logit()


def score_function(net: Network, x: Tensor) -> Tensor:
    alpha = net.logits(x)
    z = torch.bernoulli(alpha.detach().sigmoid())
    log_lik = net.log_lik(x, z)
    score = log_lik.detach() * log_bernoulli(z, alpha)
    return (net.kl(alpha) - log_lik - score).mean()


class NVIL(nn.Module):
    """Creates a network that predicts the signal, and its averages."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.baseline = nn.Sequential(nn.Linear(len(net.mean), 100), nn.Tanh(), nn.Linear(100, 1))
        self.centre, self.variance, self.taken = 0.0, 0.0, 0

    def forward(self, net: Network, x: Tensor) -> Tensor:
        """Returns the surrogate."""
        alpha = net.logits(x)
        z = torch.bernoulli(alpha.detach().sigmoid())
        log_p, log_q = net.log_lik(x, z) + log_bernoulli(z, net.r), log_bernoulli(z, alpha)
        predicted = self.baseline(x).squeeze(-1)
        residual = (log_p - log_q).detach() - predicted
        seen = 1 - 0.8**self.taken if self.taken else 1.0
        centre, scale = self.centre / seen, max(1.0, math.sqrt(self.variance / seen))
        signal = (residual - centre) / scale
        found = residual.detach()
        self.centre = 0.8 * self.centre + 0.2 * found.mean().item()
        self.variance = 0.8 * self.variance + 0.2 * found.var(correction=0).item()
        self.taken += 1
        error = scale * signal.square() / 2
        return (error - log_p - signal.detach() * log_q).mean()


def vimco(net: Network, x: Tensor, num_particles: int = 8) -> Tensor:
    alpha = net.logits(x)
    P = num_particles
    z = torch.bernoulli(alpha.detach().sigmoid().expand(P, *alpha.shape))
    log_q = log_bernoulli(z, alpha)
    log_w = net.log_lik(x, z) + log_bernoulli(z, net.r) - log_q  # (P, N)
    bound = log_w.logsumexp(0) - math.log(P)
    mean = (log_w.sum(0) - log_w) / (P - 1)
    others = log_w.expand(P, P, -1).clone()
    places = torch.arange(P)
    others[places, places] = mean
    signal = (bound - others.logsumexp(1) + math.log(P)).detach()
    w = log_w.detach().softmax(0)
    return -(signal * log_q + w * log_w).sum(0).mean()


def leave_one_out(net: Network, x: Tensor, num_particles: int = 4) -> Tensor:
    alpha = net.logits(x)
    P = num_particles
    z = torch.bernoulli(alpha.detach().sigmoid().expand(P, *alpha.shape))
    log_lik = net.log_lik(x, z)
    f = log_lik.detach()
    signal = f - (f.sum(0) - f) / (P - 1)
    return (net.kl(alpha) - (log_lik + signal * log_bernoulli(z, alpha)).mean(0)).mean()


def muprop(net: Network, x: Tensor) -> Tensor:
    alpha = net.logits(x)
    p = alpha.detach().sigmoid()
    z = torch.bernoulli(p)
    mu = p.clone().requires_grad_()
    at_mean = net.log_lik(x, mu)
    slope = torch.autograd.grad(at_mean.sum(), mu)[0]
    log_lik = net.log_lik(x, z)
    signal = log_lik.detach() - at_mean.detach() - (slope * (z - p)).sum(-1)
    signal = signal - (signal.sum() - signal) / (len(signal) - 1)
    g = signal[:, None] * (z - p) + slope * p * (1 - p)
    return (net.kl(alpha) - log_lik).mean() - (g * alpha).sum() / len(x)


def disarm(net: Network, x: Tensor) -> Tensor:
    alpha = net.logits(x)
    a = alpha.detach()
    u, _ = _noise(a)
    b, other = (u > (-a).sigmoid()).to(a), (1 - u > (-a).sigmoid()).to(a)
    log_lik = net.log_lik(x, b)
    with torch.no_grad():
        difference = log_lik - net.log_lik(x, other)
        g = 0.5 * difference[:, None] * (b - other) * a.abs().sigmoid()
    return (net.kl(alpha) - log_lik).mean() - (g * alpha).sum() / len(x)


def arm(net: Network, x: Tensor) -> Tensor:
    alpha = net.logits(x)
    a = alpha.detach()
    u, _ = _noise(a)
    b, other = (u > (-a).sigmoid()).to(a), (1 - u > (-a).sigmoid()).to(a)
    log_lik = net.log_lik(x, b)
    with torch.no_grad():
        g = (log_lik - net.log_lik(x, other))[:, None] * (u - 0.5)
    return (net.kl(alpha) - log_lik).mean() - (g * alpha).sum() / len(x)


class REBAR(nn.Module):
    """Creates a control variate."""

    def __init__(self, net: Network, network: bool = False) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(0.5).log())
        self.eta = nn.Parameter(torch.tensor(1.0))
        self.network = None
        if network:
            self.network = nn.Sequential(nn.Linear(len(net.r), 50), nn.Tanh(), nn.Linear(50, 1))

    def c(self, net: Network, x: Tensor, z: Tensor) -> Tensor:
        """Returns it for each image."""
        relaxed = net.log_lik(x, (z / self.log_temperature.exp()).sigmoid())
        extra = 0.0 if self.network is None else self.network(z).squeeze(-1)
        return self.eta * relaxed + extra

    def forward(self, net: Network, x: Tensor) -> Tensor:
        """Returns the surrogate, and the variance of its gradient in what is trained."""
        alpha = net.logits(x)
        a = alpha.detach().requires_grad_()
        _, noise = _noise(a)
        z = a + noise
        b = (z.detach() > 0).to(a)
        v, _ = _noise(a.detach())
        p = a.sigmoid()
        given = torch.where(b > 0, 1 - p + v * p, v * (1 - p)).clamp(1e-7, 1 - 1e-7)
        log_lik = net.log_lik(x, b)
        c_z, c_given = self.c(net, x, z), self.c(net, x, a + given.logit())
        slope = torch.autograd.grad((c_z - c_given).sum(), a, create_graph=True)[0]
        g = (log_lik.detach() - c_given)[:, None] * (b - p.detach()) + slope
        own = list(self.parameters())
        grads = torch.autograd.grad(g.square().sum() / len(x), own, retain_graph=True)
        loss = (net.kl(alpha) - log_lik).mean() - (g.detach() * alpha).sum() / len(x)
        return loss + sum((q * h).sum() for q, h in zip(own, grads, strict=True))


class RELAX(REBAR):
    """Creates a control variate with a network in it."""

    def __init__(self, net: Network) -> None:
        super().__init__(net, network=True)


def concrete(net: Network, x: Tensor, temperature: float = 0.5) -> Tensor:
    alpha = net.logits(x)
    _, noise = _noise(alpha)
    kl, zeta = net.kl(alpha), alpha + noise
    with torch.no_grad():  # as pplvm: what is reported is the bound of discrete draws
        (net.log_lik(x, (zeta > 0).to(zeta)) - kl).mean().item()
    return (kl - net.log_lik(x, (zeta / temperature).sigmoid())).mean()


def straight_through(net: Network, x: Tensor) -> Tensor:
    alpha = net.logits(x)
    p = alpha.sigmoid()
    z = torch.bernoulli(p.detach()) + p - p.detach()
    return (net.kl(alpha) - net.log_lik(x, z)).mean()


def wake_sleep(net: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        z = torch.bernoulli(net.logits(x).sigmoid())
        dreamt = torch.bernoulli(net.r.sigmoid().expand_as(z))
        image = torch.bernoulli(net.decoder(dreamt).sigmoid())
    wake = net.log_lik(x, z) + log_bernoulli(z, net.r)
    return -(wake + log_bernoulli(dreamt, net.logits(image))).mean()


def reweighted_wake_sleep(net: Network, x: Tensor, num_particles: int = 8) -> Tensor:
    alpha = net.logits(x)
    z = torch.bernoulli(alpha.detach().sigmoid().expand(num_particles, *alpha.shape))
    log_q = log_bernoulli(z, alpha)
    log_p = net.log_lik(x, z) + log_bernoulli(z, net.r)
    bound = (log_p - log_q.detach()).logsumexp(0)
    w = (log_p - log_q).detach().softmax(0)
    return -(bound + (w * log_q).sum(0)).mean()


ESTIMATORS: dict[str, Callable[[Network], Callable[[Network, Tensor], Tensor]]] = {
    "score function": lambda net: score_function,
    "NVIL": NVIL,
    "leave one out, P = 4": lambda net: leave_one_out,
    "VIMCO, P = 8": lambda net: vimco,
    "wake-sleep": lambda net: wake_sleep,
    "RWS, P = 8": lambda net: reweighted_wake_sleep,
    "MuProp": lambda net: muprop,
    "REBAR": REBAR,
    "RELAX": RELAX,
    "ARM": lambda net: arm,
    "DisARM": lambda net: disarm,
    "concrete": lambda net: concrete,
    "straight-through": lambda net: straight_through,
}
