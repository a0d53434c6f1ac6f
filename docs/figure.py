r"""Draws the figure of the README: what each method says of one digit, against the exact answer.

Factor analysis of scikit-learn's digits, parameters learned once and held fixed. On the left, the
posterior of two factors of one digit; on the right, the bound on log p(x) that each method trains.
Run as ``python docs/figure.py``, which takes about a minute and writes figure.png beside itself.
"""

import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import pplvm
from pplvm.datasets import digits
from pplvm.guides.factor_analysis import AmortisedMeanField, LinearGaussian
from pplvm.models.factor_analysis import FactorAnalysis
from pplvm.objectives import elbo, iwae, wake_sleep

NUM_STEPS = 2000
OBJECTIVES = {  # label: its objective and its colour
    "SVI, mean field": (elbo, "tab:orange"),
    "wake-sleep": (wake_sleep, "tab:cyan"),
    "IWAE, 16 particles": (partial(iwae, num_particles=16, gradient="dreg"), "tab:purple"),
    "SVI, full covariance": (elbo, "tab:green"),
}


def fit(model, guide, x, **options) -> pplvm.Fit:
    """Fits with a learning rate that falls to nothing along a cosine."""
    decay = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=NUM_STEPS)
    return pplvm.fit(model, guide, x, num_steps=NUM_STEPS, lr=0.05, scheduler=decay, **options)


def least_axial(model: FactorAnalysis, num_rotations: int = 1000) -> FactorAnalysis:
    """Turns the factors to where a mean field does worst: the likelihood cannot tell."""
    W, psi = model.W.detach(), model.log_psi.detach().exp()
    L = W.shape[1]
    rotations = [torch.linalg.qr(torch.randn(L, L))[0] for _ in range(num_rotations)]
    precision = torch.eye(L) + W.T @ (W / psi[:, None])
    worst = max(rotations, key=lambda R: float((R.T @ precision @ R).diagonal().log().sum()))
    model.W.data = W @ worst
    return model.requires_grad_(False)


def ellipse(mean, covariance, mass: float = 0.9):
    """Returns the outline that holds so much of a Gaussian in two dims, (2, 200)."""
    angle = torch.linspace(0, 2 * math.pi, 200, dtype=mean.dtype)
    circle = torch.stack([angle.cos(), angle.sin()]) * math.sqrt(-2 * math.log(1 - mass))
    return mean[:, None] + torch.linalg.cholesky(covariance) @ circle


def draw_posterior(ax, exact, fits, chain) -> None:
    """Draws the two most correlated factors of the first digit."""
    covariance = (exact.scale_tril @ exact.scale_tril.mT)[0]
    sd = covariance.diagonal().sqrt()
    correlation = (covariance / sd.outer(sd) - torch.eye(len(sd))).abs()
    i, j = divmod(int(correlation.argmax()), len(sd))
    pair = torch.tensor([i, j])
    own = chain["z"][:, :, 0, pair].flatten(0, 1)
    ax.plot(
        *own[:: max(1, len(own) // 1500)].T,
        ".",
        color="0.72",
        ms=2.5,
        label="draws of NUTS",
        zorder=0,
    )
    ax.plot(*ellipse(exact.location[0, pair], covariance[pair][:, pair]), "k", lw=3, label="exact")
    for name, answer in fits.items():
        z = answer.draws(*exact.data, num_draws=20_000)["z"][0, :, 0, pair].double()
        style = "--" if name == "SVI, full covariance" else "-"
        ax.plot(*ellipse(z.mean(0), torch.cov(z.T)), style, color=OBJECTIVES[name][1], lw=2)
    m, s = exact.location[0, pair], sd[pair]
    ax.set(xlim=(m[0] - 3 * s[0], m[0] + 3 * s[0]), ylim=(m[1] - 3 * s[1], m[1] + 3.4 * s[1]))
    ax.set(xlabel=f"factor {i}", ylabel=f"factor {j}")
    ax.set_title("90 % of one digit's posterior", fontsize=13)


def draw_bounds(ax, exact, fits) -> None:
    """Draws how far each bound stays below the exact log p(x)."""
    truth = float(exact.log_marginal.mean())
    for row, name in enumerate(fits):
        bounds = fits[name].bound(*exact.data, num_repeats=100).double().mean(1)
        ax.barh(row, float(bounds.mean()) - truth, color=OBJECTIVES[name][1], height=0.6)
    ax.axvline(0, color="k", lw=3)
    ax.set_yticks(range(len(fits)), list(fits))
    ax.text(-0.03, -0.5, f"exact log p(x) = {truth:.1f} ", ha="right", va="center", fontsize=11)
    ax.set(xlabel="bound − log p(x)   (nats per digit)", ylim=(-0.8, len(fits) - 0.4))
    ax.invert_yaxis()
    ax.set_title("How far each bound is from the truth", fontsize=13)


def main() -> None:
    """Fits everything and writes the picture."""
    x = digits()
    D, L = x.shape[1], 10
    torch.manual_seed(0)
    learned = fit(FactorAnalysis(D, L), LinearGaussian(D, L), x)
    model = least_axial(learned.model)
    few = x[:100]
    exact, fits = pplvm.exact(model, few), {}
    for name, (objective, _) in OBJECTIVES.items():
        guide = (LinearGaussian if "full" in name else AmortisedMeanField)(D, L)
        fits[name] = fit(model, guide, x, objective=objective, batch_size=128)
    chain = pplvm.nuts(model, few[:4], num_warmup=200, num_samples=400)
    with plt.rc_context({"font.size": 11.5, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(
            1, 2, figsize=(10, 4.0), width_ratios=[1, 1.15], layout="constrained"
        )
        draw_posterior(axes[0], exact, fits, chain)
        draw_bounds(axes[1], exact, fits)
        axes[0].legend(fontsize=10.5, loc="upper left", frameon=False, markerscale=3, borderpad=0)
        figure.savefig(Path(__file__).with_name("figure.png"), dpi=100)
        plt.close(figure)


if __name__ == "__main__":
    main()
