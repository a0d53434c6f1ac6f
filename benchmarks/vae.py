"""A VAE trained by pplvm beside the same network trained by a plain PyTorch loop.

Run: PPLVM_DATA=… python benchmarks/vae.py [--epochs 20] [--seeds 3]

Both train 784-400-20 on binarised MNIST (or, without it, on scikit-learn's digits) with Adam,
learning rate 0.001, batches of 128. Each row has the bound of the test images and, for some of
them, the importance-weighted bound with 5000 particles, both by pplvm's estimators for pplvm and
by the plain code for the plain loop. They are equal if the difference of the means lies within
its standard error over the seeds, times 2.78 (the t distribution's 97.5 % point at 4 degrees of
freedom, for 3 seeds; other numbers of seeds take their own).
"""

import argparse
import math
import os
import statistics

import torch
import vae_torch
from scipy.stats import t as student
from torch import Tensor

import pplvm
from pplvm.datasets import binary_digits, mnist
from pplvm.guides.vae import VAEGuide
from pplvm.models.vae import VAE


def images() -> tuple[str, Tensor, Tensor]:
    """Returns the name, the training and the test images."""
    if os.environ.get("PPLVM_DATA"):
        return "MNIST, binarised", mnist("train"), mnist("test")
    x = binary_digits()
    return "digits, binarised", x[:1500], x[1500:]


def by_pplvm(
    train: Tensor, test: Tensor, some: Tensor, epochs: int, seed: int
) -> tuple[float, ...]:
    """Returns test bound, importance-weighted bound of some images, and seconds of training."""
    shape = train.shape[1:]
    torch.manual_seed(seed)
    fit = pplvm.fit(
        VAE(shape), VAEGuide(shape), train, num_epochs=epochs, batch_size=128, seed=seed,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-3),
    )  # fmt: skip
    weighted = fit.log_marginal(some, num_particles=5000, seed=seed).value.mean().item()
    return fit.bound(test, seed=seed).mean().item(), weighted, fit.seconds


def by_hand(train: Tensor, test: Tensor, some: Tensor, epochs: int, seed: int) -> tuple[float, ...]:
    """Returns the same of the plain loop."""
    encoder, decoder, seconds = vae_torch.train(train, epochs, seed)
    bound, _ = vae_torch.evaluate(encoder, decoder, test, num_particles=2, num_images=1, seed=seed)
    _, weighted = vae_torch.evaluate(encoder, decoder, some, num_images=len(some), seed=seed)
    return bound, weighted, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    name, train, test = images()
    some = test[:: max(1, len(test) // 200)][:200]
    print(
        f"{name}: {len(train)} training, {len(test)} test images, {len(some)} of them for IWAE-5000"
    )
    print(f"{'seed':6}{'loop':10}{'test bound':>12}{'IWAE-5000':>12}{'seconds':>10}")
    results: dict[str, list[tuple[float, ...]]] = {"pplvm": [], "PyTorch": []}
    for seed in range(options.seeds):
        for loop, run in (("pplvm", by_pplvm), ("PyTorch", by_hand)):
            results[loop].append(run(train, test, some, options.epochs, seed))
            bound, weighted, seconds = results[loop][-1]
            print(f"{seed:<6}{loop:10}{bound:12.3f}{weighted:12.3f}{seconds:10.1f}", flush=True)
    if options.seeds < 2:
        return
    for i, what in enumerate(("test bound", "IWAE-5000")):
        a, b = ([row[i] for row in rows] for rows in results.values())
        gap = statistics.mean(a) - statistics.mean(b)
        error = math.sqrt((statistics.variance(a) + statistics.variance(b)) / options.seeds)
        limit = student.ppf(0.975, 2 * options.seeds - 2) * error
        verdict = "equal within noise" if abs(gap) <= limit else "different"
        print(f"{what}: pplvm - PyTorch = {gap:+.3f} ± {error:.3f} (limit {limit:.3f}): {verdict}")


if __name__ == "__main__":
    main()
