r"""The variational autoencoder of ``models/vae.py`` by a plain PyTorch loop, to compare with.

.. math:: \mathrm{ELBO}(x) = \mathbb E_{q(z \mid x)} \log \mathrm{Bern}(x; f(z))
    - \tfrac12 \textstyle\sum_l (m_l^2 + s_l^2 - 1 - 2 \log s_l)

with the same layers as ``models/vae.py`` and ``guides/vae.py``, whose ``decoder`` and ``encoder``
exchange state dictionaries with those here, one draw of z for each image, and Adam.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114

    | Importance Weighted Autoencoders (Burda et al., 2016)
    | https://arxiv.org/abs/1509.00519

Shapes: N images of any shape, D pixels, B minibatch, P particles, L latent dimensions, H hidden.
"""

import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build(num_pixels: int, latent_dim: int, hidden_dim: int) -> tuple[nn.Module, nn.Module]:
    """Returns an encoder of (B, D) to m and log s, (B, 2L), and a decoder of (*, L) to (*, D)."""
    encoder = nn.Sequential(
        nn.Flatten(),
        nn.Linear(num_pixels, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, 2 * latent_dim),
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, num_pixels)
    )
    return encoder, decoder


def elbo_terms(encoder: nn.Module, decoder: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns one draw's log-likelihood and the divergence, (B,) each in nats, of x, (B, D)."""
    m, log_s = encoder(x).chunk(2, dim=-1)  # (B, L) each
    z = m + log_s.exp() * torch.randn_like(m)
    log_lik = -F.binary_cross_entropy_with_logits(decoder(z), x, reduction="none").sum(-1)
    kl = 0.5 * (m**2 + (2 * log_s).exp() - 1 - 2 * log_s).sum(-1)
    return log_lik, kl


def train(
    x_train: Tensor,
    num_epochs: int,
    seed: int,
    *,
    batch_size: int = 128,
    lr: float = 1e-3,
    latent_dim: int = 20,
    hidden_dim: int = 400,
) -> tuple[nn.Module, nn.Module, float]:
    """Returns the encoder, the decoder, and the seconds that the loop alone took.

    Args:
        x_train: Images of 0 and 1, (N, …), on the device and in the precision to train with.
        num_epochs: How often each image is seen; the last minibatch of an epoch may be short.
        seed: Sets the initial weights, the order of the images, and the draws.
    """
    torch.manual_seed(seed)
    x_train = x_train.flatten(1)  # (N, D)
    encoder, decoder = build(x_train.shape[1], latent_dim, hidden_dim)
    encoder.to(x_train)
    decoder.to(x_train)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=lr)
    start = _now(x_train)
    for _ in range(num_epochs):
        order = torch.randperm(len(x_train), device=x_train.device)
        for batch in order.split(batch_size):
            log_lik, kl = elbo_terms(encoder, decoder, x_train[batch])
            loss = (kl - log_lik).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return encoder, decoder, _now(x_train) - start


@torch.no_grad()
def evaluate(
    encoder: nn.Module,
    decoder: nn.Module,
    x_test: Tensor,
    num_particles: int = 5000,
    *,
    num_images: int = 200,
    num_draws: int = 10,
    image_batch: int = 1000,
    particle_batch: int = 100,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the ELBO of all of x_test and the IWAE bound of some of it, in nats per image.

    The largest array has particle_batch × 100 × D numbers, 31 MB by default.

    Args:
        x_test: Images of 0 and 1, (N, …).
        num_particles: The number of particles P of the importance-weighted bound.
        num_images: How many images enter that bound, evenly spaced, as the halves of MNIST's
            test file differ by 3 nats; 200 give a standard error of 2 nats (arbitrary).
        num_draws: How many draws the ELBO averages for each image.
        image_batch: How many images at a time enter the ELBO.
        particle_batch: How many particles of 100 images at a time enter the IWAE bound.
        seed: Sets the draws.
    """
    torch.manual_seed(seed)
    x_test = x_test.flatten(1)  # (N, D)
    elbo = 0.0
    for x in x_test.split(image_batch):
        for _ in range(num_draws):
            log_lik, kl = elbo_terms(encoder, decoder, x)
            elbo += (log_lik - kl).sum().item() / num_draws
    some = torch.linspace(0, len(x_test) - 1, min(num_images, len(x_test))).round().long()
    iwae = 0.0
    for x in x_test[some].split(100):
        log_w = torch.stack(
            [
                log_weights(encoder, decoder, x, num).logsumexp(0)
                for start in range(0, num_particles, particle_batch)
                for num in [min(particle_batch, num_particles - start)]
            ]
        )  # (P / particle_batch, 100): logarithms of sums of weights
        iwae += (log_w.logsumexp(0) - math.log(num_particles)).sum().item()
    return elbo / len(x_test), iwae / len(some)


def log_weights(encoder: nn.Module, decoder: nn.Module, x: Tensor, num_particles: int) -> Tensor:
    """Returns log p(x, z) - log q(z | x), (P, B), at draws of z given x, (B, D)."""
    m, log_s = encoder(x).chunk(2, dim=-1)  # (B, L) each
    eps = torch.randn(num_particles, *m.shape, device=m.device, dtype=m.dtype)  # (P, B, L)
    z = m + log_s.exp() * eps
    logits = decoder(z)  # (P, B, D)
    # log Bern(x; logits), without an array of x repeated for each particle.
    log_lik = torch.einsum("pbd,bd->pb", logits, x) - F.softplus(logits).sum(-1)
    log_ratio = (log_s + 0.5 * (eps**2 - z**2)).sum(-1)  # log p(z) - log q(z | x); 2π cancels
    return log_lik + log_ratio


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
