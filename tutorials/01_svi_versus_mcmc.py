# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One posterior, many answers: variational inference against MCMC
#
# Given data $x$ and a story $p_\theta(x, z)$ about how hidden causes $z$ made them, *inference* is
# the question what the causes were: $p_\theta(z \mid x)$. Variational inference answers with the
# best member $q$ of a family that is easy to draw from. Markov chain Monte Carlo answers with
# draws that are right in the limit. Both answers look the same on the screen: a mean, and a bar
# around it. How would you know that one of them is wrong?
#
# Here you will, because we take a story whose posterior is known exactly. Everything below is
# measured against it:
#
# 1. the story, and why its parameters have to be held fixed;
# 2. three families of guides, and the gap that each leaves;
# 3. more particles: a tighter bound, and what $\hat k$ says about the weights;
# 4. what the gradient costs;
# 5. wake-sleep, which errs on the other side;
# 6. NUTS, and what its diagnostics see and do not see;
# 7. the table that puts all of this side by side;
# 8. a regression, where the latents are shared by all data.

# %%
import math
import os
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import FactorAnalysis as EMFactorAnalysis
from torch import nn

import pplvm
from pplvm.datasets import digits
from pplvm.diagnostics import psis_loo
from pplvm.guides.factor_analysis import AmortisedMeanField, LinearGaussian, MeanField
from pplvm.objectives import elbo, iwae, reweighted_wake_sleep, wake_sleep

SHORT = bool(os.environ.get("PPLVM_SHORT"))  # a rehearsal: the same steps on less of everything
L = 10  # factors
NUM_STEPS = 600 if SHORT else 3000
REPEATS = 40 if SHORT else 200
CHAINS = 2 if SHORT else 4

# %% [markdown]
# ## 1. The story
#
# Factor analysis is the oldest latent variable model there is. A digit is a picture of $D$ pixels.
# Behind it stand $L = 10$ hidden factors, standard normal. Each factor adds its own *loading*, a
# pattern $W_{\cdot\ell}$ of pixels, and each pixel adds noise of its own:
#
# $$ z_n \sim \mathcal N(0, I_L), \qquad
#    x_n \mid z_n \sim \mathcal N\big(W z_n + \mu,\; \Psi\big), \qquad
#    \Psi = \mathrm{diag}(\psi_1, \dots, \psi_D). $$
#
# As a program it is no longer than that. There is nothing in it but Pyro: `plate` says that the
# data are independent, `sample` draws or scores, and `obs` is what we saw. (It ships as
# `pplvm.models.factor_analysis.FactorAnalysis`.)


# %%
class FactorAnalysis(nn.Module):
    def __init__(self, obs_dim, latent_dim):
        super().__init__()
        self.W = nn.Parameter(torch.randn(obs_dim, latent_dim) / latent_dim**0.5)  # (D, L)
        self.mu = nn.Parameter(torch.zeros(obs_dim))  # (D,)
        self.log_psi = nn.Parameter(torch.zeros(obs_dim))  # (D,)

    def forward(self, x):
        prior = dist.Normal(x.new_zeros(self.W.shape[1]), 1.0).to_event(1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)  # (*, L)
            noise = (0.5 * self.log_psi).exp()
            return pyro.sample("x", dist.Normal(z @ self.W.T + self.mu, noise).to_event(1), obs=x)


x = digits()  # (N, D): scikit-learn's digits, centred; three pixels that never change are dropped
N, D = x.shape
print(f"{N} digits of {D} pixels")

# %% [markdown]
# We learn $\theta = (W, \mu, \Psi)$ by stochastic gradients of a lower bound. Sections 2 to 5 are
# about such bounds; for the moment, take it that this maximises $\log p_\theta(x)$. `explain` says
# what will be done at which site.


# %%
def cosine(num_steps):
    """A learning rate that falls to nothing, so that the last steps do not dither."""
    return partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=num_steps)


def fit(*arguments, num_steps=NUM_STEPS, lr=0.05, **options):
    """pplvm.fit with the settings of this notebook."""
    decay = cosine(num_steps)
    return pplvm.fit(*arguments, num_steps=num_steps, lr=lr, scheduler=decay, **options)


def learn(seed):
    torch.manual_seed(seed)
    num_steps = max(NUM_STEPS, 1000)
    return fit(FactorAnalysis(D, L), LinearGaussian(D, L), x, num_steps=num_steps, seed=seed)


pplvm.explain(FactorAnalysis(D, L), LinearGaussian(D, L), x)
model = learn(seed=0).model.requires_grad_(False)  # from here on, θ is fixed

# %%
kept = torch.tensor(load_digits().data.std(0) > 0)  # which of the 8 × 8 pixels are in x
grey = torch.tensor(load_digits().data[:, kept].mean(0))


def picture(row):
    return torch.zeros(64).masked_scatter(kept, row.float()).view(8, 8).numpy()


torch.manual_seed(1)
unseen = pyro.poutine.uncondition(model)  # what was observed is drawn anew
dreams = unseen(x[:L])
fig, axes = plt.subplots(3, L, figsize=(10, 3.3), layout="constrained")
for column in range(L):
    axes[0, column].imshow(picture(x[column] + grey), cmap="gray_r", vmin=0, vmax=16)
    axes[1, column].imshow(picture(dreams[column] + grey), cmap="gray_r", vmin=0, vmax=16)
    axes[2, column].imshow(picture(model.W[:, column]), cmap="RdBu_r", vmin=-4, vmax=4)
for ax, label in zip(axes[:, 0], ["data", "dreams", "loadings"], strict=True):
    ax.set_ylabel(label)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
title = "Ten digits, ten dreams of the story, and its loadings (red adds ink, blue takes it away)"
_ = fig.suptitle(title, fontsize=11)

# %% [markdown]
# ### The exact answer
#
# The joint density is quadratic in $z$, so the posterior is Gaussian:
#
# $$ p(z \mid x) = \mathcal N\big(\Sigma\, W^\top \Psi^{-1}(x - \mu),\; \Sigma\big), \qquad
#    \Lambda = \Sigma^{-1} = I + W^\top \Psi^{-1} W, $$
#
# with one covariance for all data. `pplvm.exact` finds it by differentiating the story, whatever
# the sites are called; the formula is there to check it. And scikit-learn, which maximises the
# same likelihood by EM, is there to check that we have arrived.

# %%
some = x[:100]  # most questions below are about these
exact = pplvm.exact(model, some)


def gaussian_posterior(story):
    """Λ and Σ, (L, L) each, and the means, (100, L)."""
    noise = story.log_psi.exp()
    precision = torch.eye(L) + story.W.T @ (story.W / noise[:, None])
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    return precision, covariance, (some - story.mu) / noise @ story.W @ covariance


precision, covariance, mean = gaussian_posterior(model)
close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-3)
close(exact.mean["z"].float(), mean)
close(exact.sd["z"][0].float(), covariance.diagonal().sqrt())

ours = float(pplvm.exact(model, x).log_marginal.mean())
em = EMFactorAnalysis(L, tol=1e-4, max_iter=2000).fit(x.numpy()).score(x.numpy())
print(f"log p(x) per digit: {ours:.3f} nats here, {em:.3f} by EM")
assert ours > em - (1.0 if SHORT else 0.05)

# %% [markdown]
# ### Why the parameters are held fixed
#
# Take any orthogonal $R$ and replace $W$ by $WR$, $z$ by $R^\top z$. The prior does not change,
# $Wz$ does not change, and so neither does $p(x)$: the likelihood cannot tell the two apart, but
# their posteriors are about *different factors*. Two fits from two seeds reach the same likelihood
# and share not a single factor. To hold their posteriors against each other would be to compare
# the latitude of one town with the longitude of another.
#
# There is more. A mean-field guide, one that makes the factors independent, leaves a gap that
# *does* depend on $R$: in the basis where $\Lambda$ is diagonal there is none. So if $\theta$ is
# learned along with such a guide, the guide pulls $\theta$ to where it looks good itself. Hence
# the rule that `pplvm.study` follows, and this notebook: learn $\theta$ once, freeze it, then ask
# every method the same question.

# %%
other = learn(seed=1).model
theirs = float(pplvm.exact(other, x).log_marginal.mean())
print(f"log p(x) per digit: {ours:.3f} with one seed, {theirs:.3f} with another")


def factors(story):
    """Posterior means of all digits, each factor scaled to unit length: (N, L)."""
    z = pplvm.exact(story, x).mean["z"]
    return (z - z.mean(0)) / (z - z.mean(0)).norm(dim=0)


a, b = factors(model).float(), factors(other).float()
u, _, vh = torch.linalg.svd(other.W.detach().T / other.log_psi.detach().exp() @ model.W)


def turn(story, R):
    """The same story with W R for W."""
    turned = FactorAnalysis(D, L).requires_grad_(False)
    turned.load_state_dict({**story.state_dict(), "W": story.W.detach() @ R})
    return turned


c = factors(turn(other, u @ vh)).float()  # the best rotation


def mean_field_gap(precision):
    """KL(q‖p) of the best independent Gaussian q, in nats: see section 2."""
    return 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))


def rotation():
    return torch.linalg.qr(torch.randn(L, L))[0]


torch.manual_seed(0)
rotations = [rotation() for _ in range(1000)]
gaps = [float(mean_field_gap(R.T @ precision @ R)) for R in rotations]
_, principal = torch.linalg.eigh(precision)
none = float(mean_field_gap(principal.T @ precision @ principal))

fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for ax, second, title in zip(axes, (b, c), ("two seeds", "after the best rotation"), strict=False):
    shown = ax.imshow((a.T @ second).abs().numpy(), cmap="Greys", vmin=0, vmax=1)
    ax.set(title=title, xlabel="factor of seed 1", ylabel="factor of seed 0")
fig.colorbar(shown, ax=axes[1], label="|correlation|")
axes[2].hist(gaps, 40, color="tab:blue", alpha=0.6, label="random rotations")
axes[2].axvline(float(mean_field_gap(precision)), color="k", label="as learned")
axes[2].axvline(none, color="tab:red", ls="--", label="principal axes")
axes[2].set(title="mean field, same likelihood", xlabel="gap (nats per digit)", ylabel="rotations")
axes[2].legend(fontsize=8)

agreement = [(a.T @ s).diagonal().abs().median().item() for s in (b, c)]
print(
    f"median |correlation| of paired factors: {agreement[0]:.2f}, after rotation {agreement[1]:.2f}"
)
assert abs(ours - theirs) < (0.5 if SHORT else 0.05)
assert agreement[1] > 0.9 > agreement[0]
assert abs(none) < 1e-3 < min(gaps)

# %% [markdown]
# As all rotations are equally true, we may choose. We take the one of the thousand where mean
# field fares worst: it is no less likely than any other, and there will be something to see.

# %%
model = turn(model, rotations[gaps.index(max(gaps))])
precision, covariance, mean = gaussian_posterior(model)
exact = pplvm.exact(model, some)
close(exact.mean["z"].float(), mean)
still = float(pplvm.exact(model, x).log_marginal.mean())
print(f"log p(x) per digit is still {still:.3f}")
assert abs(still - ours) < 1e-3

# %% [markdown]
# ## 2. Guides, the bound, and its gap
#
# A *guide* $q_\phi(z \mid x)$ is a second program, with the same latents and no data. Three
# families:
#
# $$ \begin{aligned}
#   \text{linear-Gaussian} &: & q(z \mid x) &= \mathcal N\big(Ax + b,\; S S^\top\big), &
#       & S \text{ lower triangular}\\
#   \text{amortised mean field} &: & q(z \mid x) &= \mathcal N\big(Ax + b,\; \mathrm{diag}(s^2)\big) \\
#   \text{mean field} &: & q(z_n) &= \mathcal N\big(m_n,\; \mathrm{diag}(s_n^2)\big), &
#       & m_n, s_n \text{ of each datum's own}
# \end{aligned} $$
#
# The first contains the posterior: $A = \Sigma W^\top \Psi^{-1}$ and $S S^\top = \Sigma$. The
# other two have no correlations. The third pays for the freedom of each datum with parameters that
# grow with the data, and with having nothing to say about a new one.
#
# Whatever the family, for every $q$
#
# $$ \log p(x) \;=\; \underbrace{\mathbb E_{q}\Big[\log \tfrac{p(x, z)}{q(z \mid x)}\Big]}_{\text{ELBO}}
#    \;+\; \underbrace{\mathrm{KL}\big(q(z \mid x)\,\|\,p(z \mid x)\big)}_{\text{gap}\;\ge\;0}. $$
#
# To raise the ELBO in $\phi$ *is* to lower the divergence. The gap is usually unknown, for who
# knows $\log p(x)$? Here we compute both sides on their own: the left by Monte Carlo, exact
# $\log p(x)$ less the bound, and the right in closed form, the divergence of two Gaussians.

# %%
few = x[: 4 if SHORT else 20]  # NUTS will be asked about these
amortised = partial(fit, model, batch_size=128)  # φ learns from minibatches of all digits
fits = {
    "linear-Gaussian": amortised(LinearGaussian(D, L), x),
    "amortised mean field": amortised(AmortisedMeanField(D, L), x),
    "mean field": fit(model, MeanField(len(some), L), some),
}

# %%
posterior = torch.distributions.MultivariateNormal(exact.location, scale_tril=exact.scale_tril)


def covariance_factor(guide):
    """Cholesky factor of the guide's covariance, (L, L) or (100, L, L)."""
    if isinstance(guide, LinearGaussian):
        return guide.L.tril(-1) + guide.L.diagonal().exp().diag()
    return torch.diag_embed(guide.log_s.exp())


def gaussian(guide):
    """The guide at `some` as a distribution, in double precision."""
    m = guide.m if isinstance(guide, MeanField) else guide.mean(some)
    S = covariance_factor(guide)
    return torch.distributions.MultivariateNormal(
        m.detach().double(), scale_tril=S.detach().double()
    )


print(f"{'':22}{'log p(x) - ELBO':>24}{'KL(q‖p)':>12}")
kls = {}
for name, answer in fits.items():
    kls[name] = float(torch.distributions.kl_divergence(gaussian(answer.guide), posterior).mean())
    bounds = answer.bound(some, num_repeats=REPEATS).double().mean(1)  # (R,)
    gap = float(exact.log_marginal.mean() - bounds.mean())
    error = float(bounds.std()) / math.sqrt(REPEATS)
    print(f"{name:22}{gap:>16.4f} ± {error:.4f}{kls[name]:>12.4f}")
    assert abs(gap - kls[name]) < 4 * error + 1e-3  # the two sides of the identity
assert kls["linear-Gaussian"] < 0.2 * kls["amortised mean field"]

# %% [markdown]
# The mean-field gap can be said beforehand. Among independent Gaussians the divergence is smallest
# at the right mean and $s_\ell^2 = 1 / \Lambda_{\ell\ell}$, the variance of one factor *given all
# others*, where it is
#
# $$ \min_q \mathrm{KL}(q \,\|\, p)
#    = \tfrac12 \Big(\sum_\ell \log \Lambda_{\ell\ell} - \log\lvert\Lambda\rvert\Big). $$
#
# The posterior's own variance is $\Sigma_{\ell\ell} \ge 1 / \Lambda_{\ell\ell}$: **mean field
# understates the uncertainty, and the more so the more the factors are correlated**. Look at the
# most correlated pair.

# %%
correlation = covariance / covariance.diagonal().sqrt().outer(covariance.diagonal().sqrt())
i, j = divmod(int((correlation - torch.eye(L)).abs().argmax()), L)
pair = torch.tensor([i, j])
best = float(mean_field_gap(precision))
print(f"best mean-field gap {best:.4f} nats, fitted {kls['amortised mean field']:.4f}")
print(f"factors {i} and {j}: posterior correlation {float(correlation[i, j]):.2f}")

COLOURS = {
    "linear-Gaussian": "tab:green",
    "amortised mean field": "tab:orange",
    "mean field": "tab:red",
}


def ellipse(centre, covariance, mass=0.9):
    """The outline that holds so much of a Gaussian's mass in two dims."""
    angle = torch.linspace(0, 2 * math.pi, 200)
    circle = torch.stack([angle.cos(), angle.sin()]) * math.sqrt(-2 * math.log(1 - mass))
    return centre[:, None] + torch.linalg.cholesky(covariance) @ circle.to(covariance)


fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
square = posterior.covariance_matrix[0][pair][:, pair]
axes[0].fill(*ellipse(exact.location[0, pair], square), color="0.85", label="exact")
for name, answer in fits.items():
    q = gaussian(answer.guide)
    square = q.covariance_matrix.expand(len(some), L, L)[0][pair][:, pair]
    style = {"color": COLOURS[name], "ls": "--" if name == "mean field" else "-"}
    axes[0].plot(*ellipse(q.mean[0, pair], square), label=name, **style)
axes[0].set(
    xlabel=f"factor {i}",
    ylabel=f"factor {j}",
    title="90 % of one digit's posterior (grey: exact)",
    aspect="equal",
)
axes[1].barh(list(kls), list(kls.values()), color=[COLOURS[name] for name in kls])
axes[1].axvline(best, color="k", ls=":", label="best of mean field")
axes[1].set(xlabel="gap KL(q‖p) (nats per digit)", title="What each family leaves")
axes[1].legend(fontsize=8)
for name in ("amortised mean field", "mean field"):
    assert kls[name] > best - 1e-3

# %% [markdown]
# ## 3. More particles
#
# The weight $w = p(x, z) / q(z \mid x)$ has mean $p(x)$ under $q$. The ELBO takes the logarithm of
# one weight and pays Jensen's inequality in full. Average $K$ weights *before* the logarithm, and
# it pays less:
#
# $$ \mathcal L_K = \mathbb E \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad
#    \text{ELBO} = \mathcal L_1 \le \mathcal L_2 \le \dots \le \log p(x). $$
#
# This is the bound of IWAE. It rises for one reason alone, the spread of the weights, and it rises
# fast only if their variance is finite. How heavy their tail is, $\hat k$ tells: the shape of a
# Pareto distribution fitted to the largest of them. Beyond 0.7 the sum is in the hands of a few
# draws, and neither the estimate nor its own standard error is to be trusted.
#
# For two Gaussians the true $k$ is known. With guide precision $\Lambda_q$, the log-weight grows
# like $\tfrac12 z^\top(\Lambda_q - \Lambda) z$, hence
# $k = 1 - \lambda_{\min}\big(\Lambda_q^{-1/2} \Lambda\, \Lambda_q^{-1/2}\big)$: positive wherever
# the guide is narrower than the posterior in some direction.

# %%
KS = [1, 2, 4, 8, 16, 32, 64] if SHORT else [1, 2, 4, 8, 16, 32, 64, 128, 256]
truth = float(exact.log_marginal.mean())


@torch.no_grad()
def bound_of(answer, K, x=some):
    """L_K averaged over digits x, and its standard error."""
    torch.manual_seed(K)
    objective = partial(iwae, model, answer.guide, x, num_particles=K)
    bounds = [objective().bound.double().mean() for _ in range(max(20, 2 * REPEATS // K))]
    bounds = torch.stack(bounds)
    return float(bounds.mean()), float(bounds.std()) / math.sqrt(len(bounds))


shown = {name: fits[name] for name in ("linear-Gaussian", "amortised mean field")}
curves = {name: [bound_of(answer, K) for K in KS] for name, answer in shown.items()}
weights = {name: answer.log_marginal(some, num_particles=4000) for name, answer in shown.items()}

fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for name, curve in curves.items():
    values, errors = zip(*curve, strict=True)
    axes[0].errorbar(
        KS, values, [2 * e for e in errors], fmt="o-", ms=4, color=COLOURS[name], label=name
    )
    axes[1].hist(weights[name].khat, 20, color=COLOURS[name], alpha=0.6, label=name)
axes[0].axhline(truth, color="k", lw=1, label="exact log p(x)")
axes[0].set_xscale("log", base=2)
axes[0].set(
    xlabel="particles K",
    ylabel="bound (nats per digit)",
    title="The bound tightens (bars: 2 standard errors)",
)
axes[0].legend(fontsize=8)

narrow = torch.linalg.inv(covariance_factor(shown["amortised mean field"].guide)).detach()
narrow = narrow.T @ narrow  # Λ_q
scale = narrow.diagonal().rsqrt().outer(narrow.diagonal().rsqrt())
k_true = 1 - float(torch.linalg.eigvalsh(precision * scale)[0])
axes[1].axvline(k_true, color="tab:orange", ls=":", label="mean field, theory")
axes[1].axvline(0.7, color="k", ls="--", lw=1, label="0.7")
axes[1].set(
    xlabel=r"$\hat k$ of a digit's weights", ylabel="digits", title="How heavy the tails are"
)
axes[1].legend(fontsize=8)

for name, curve in curves.items():
    for (low, e), (high, f) in pairwise(curve):
        assert high - low > -3 * math.hypot(e, f)  # rises in K
    assert all(value < truth + 3 * e + 1e-3 for value, e in curve)  # and stays below
    value, error = weights[name].value.mean(), weights[name].error.square().sum().sqrt() / len(some)
    print(
        f"{name:22} log p(x) {float(value):.3f} ± {float(error):.3f}, exact {truth:.3f}; "
        f"median k̂ {float(weights[name].khat.median()):.2f}, "
        f"above 0.7 for {int((weights[name].khat > 0.7).sum())} of {len(some)}"
    )
print(f"mean field, theory: k = {k_true:.2f}")
assert abs(float(weights["amortised mean field"].khat.median()) - k_true) < 0.2

# %% [markdown]
# `log_marginal` is $\mathcal L_K$ at large $K$: an estimate from below, with a standard error and
# a $\hat k$ for each datum. Note what it needs: not a good guide, only one whose weights behave.
#
# ## 4. What the gradient costs
#
# A reparameterised draw $z = z_\phi(\epsilon)$ lets the gradient of the bound flow through the
# draw. Written out, it has two parts: the *path* through $z$, and the *score*
# $\nabla_\phi \log q_\phi$ at fixed $z$, whose mean is zero but which is not zero. Three
# estimators:
#
# $$ \begin{aligned}
#   \text{plain} &: \textstyle\sum_k \bar w_k \nabla_\phi \log w_k &
#   \text{stl} &: \textstyle\sum_k \bar w_k\, \partial_z \log w_k\, \nabla_\phi z_k &
#   \text{dreg} &: \textstyle\sum_k \bar w_k^2\, \partial_z \log w_k\, \nabla_\phi z_k
# \end{aligned} $$
#
# *Sticking the landing* drops the score: when $q = p$, $\log w$ is constant in $z$, the path is
# zero for every draw, and so is the variance. But at $K > 1$ its mean is wrong. *Doubly
# reparameterised* is right for every $K$. And it mends a nuisance of plain IWAE: the tighter the
# bound, the less it depends on $q$, so the signal in $\phi$ fades faster ($1/K$) than the noise
# ($1/\sqrt K$), and the signal-to-noise ratio falls. More particles, worse gradient! With dreg it
# rises.
#
# To see it we take the exact linear-Gaussian guide, known from section 1, and spoil it by
# $\varepsilon$.


# %%
def spoiled(epsilon):
    """The exact posterior as a guide, its parameters moved by epsilon times a normal draw."""
    guide = LinearGaussian(D, L)
    A = covariance @ model.W.T / model.log_psi.exp()  # (L, D)
    S = torch.linalg.cholesky(covariance)
    S = S.tril(-1) + S.diagonal().log().diag()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        guide.mean.weight.copy_(A)
        guide.mean.bias.copy_(-A @ model.mu + epsilon * torch.randn(L, generator=noise))
        guide.L.copy_(S + epsilon * torch.randn(L, L, generator=noise).tril())
    return guide


def gradients(guide, K, estimator):
    """Gradients in b and S, as rows: (R, L + L²)."""
    torch.manual_seed(0)
    rows = []
    for _ in range(REPEATS):
        loss = iwae(model, guide, x[:10], num_particles=K, gradient=estimator).loss
        parts = torch.autograd.grad(loss, [guide.mean.bias, guide.L])
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def noise_of(g):
    return float(g.var(0).sum().sqrt())


def signal_of(g):
    """The length of the mean, less what noise adds to it."""
    return math.sqrt(max(float(g.mean(0).square().sum() - g.var(0).sum() / len(g)), 0.0))


EPSILONS = [0.0, 0.003, 0.01, 0.03, 0.1, 0.3]
noises = {
    e: [noise_of(gradients(spoiled(eps), 1, e)) for eps in EPSILONS] for e in ("plain", "stl")
}
PARTICLES = [1, 4, 16, 64]
ratios = {}
for e in ("plain", "dreg"):
    drawn = [gradients(spoiled(0.02), K, e) for K in PARTICLES]
    ratios[e] = [signal_of(g) / noise_of(g) for g in drawn]

fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for e, values in noises.items():
    axes[0].plot(EPSILONS, values, "o-", label=e)
axes[0].set_xscale("symlog", linthresh=0.003)
axes[0].set_yscale("symlog", linthresh=0.01)
axes[0].set(
    xlabel=r"distance $\varepsilon$ from the posterior",
    ylabel="sd of the gradient",
    title="K = 1: sticking the landing",
)
axes[0].set_xlim(left=-0.0003)
axes[0].set_ylim(bottom=-0.001)
for e, colour in (("plain", "tab:blue"), ("dreg", "tab:green")):
    axes[1].loglog(PARTICLES, ratios[e], "o-", color=colour, label=e, base=2)
axes[1].set(
    xlabel="particles K",
    ylabel="|mean| / sd of the gradient",
    title=r"Signal to noise at $\varepsilon = 0.02$",
)
for ax in axes:
    ax.legend(fontsize=8)
print({e: [f"{r:.2f}" for r in values] for e, values in ratios.items()})
assert noises["stl"][0] < 1e-2 * noises["plain"][0]  # lands
assert ratios["dreg"][-1] > ratios["dreg"][0]
assert ratios["plain"][-1] < ratios["plain"][0]

# %% [markdown]
# ## 5. Wake-sleep: to err on the other side
#
# $\mathrm{KL}(q\,\|\,p)$ punishes $q$ for being where $p$ is not. It never asks what $q$ leaves
# out, so a small family *shrinks into* the posterior: mode-seeking. The divergence the other way
# round punishes leaving out, and a small family *spreads over* the posterior: mass-covering. Among
# independent Gaussians,
#
# $$ \arg\min_q \mathrm{KL}(q\,\|\,p):\; s_\ell^2 = \frac{1}{\Lambda_{\ell\ell}}, \qquad\qquad
#    \arg\min_q \mathrm{KL}(p\,\|\,q):\; s_\ell^2 = \Sigma_{\ell\ell}. $$
#
# The second has the right standard deviations, though its joint density is too wide. *Wake-sleep*
# attains it by dreaming: in the sleep phase it draws $(x, z) \sim p_\theta$, where the causes are
# known, and fits $\log q_\phi(z \mid x)$ to them. *Reweighted* wake-sleep takes the data instead,
# with $K$ draws of $q$ weighted by $\bar w_k$ in place of draws from the posterior. Neither
# differentiates through $z$, which may therefore be discrete. IWAE begins at
# $\mathrm{KL}(q\,\|\,p)$ with $K = 1$; for large $K$ its gap is $\chi^2(p\,\|\,q) / 2K$, the
# relative variance of the weights, which dreads missing mass even more.

# %%
K = 16
fits["IWAE"] = amortised(
    AmortisedMeanField(D, L), x, objective=partial(iwae, num_particles=K, gradient="dreg")
)
fits["wake-sleep"] = amortised(AmortisedMeanField(D, L), x, objective=wake_sleep)
fits["reweighted wake-sleep"] = amortised(
    AmortisedMeanField(D, L), x, objective=partial(reweighted_wake_sleep, num_particles=K)
)
COLOURS |= {"IWAE": "tab:purple", "wake-sleep": "tab:cyan", "reweighted wake-sleep": "tab:blue"}
MARKERS = {
    "amortised mean field": "v",
    "IWAE": "D",
    "reweighted wake-sleep": "s",
    "wake-sleep": "^",
}

right = covariance.diagonal().sqrt()
order = (precision.diagonal().rsqrt() / right).argsort()
sds = {name: fits[name].guide.log_s.detach().exp() for name in MARKERS}
fig, ax = plt.subplots(figsize=(10, 3.6), layout="constrained")
ax.plot(range(L), torch.ones(L), color="k", lw=1, label=r"posterior, $\sqrt{\Sigma_{\ell\ell}}$")
ax.plot(
    range(L),
    (precision.diagonal().rsqrt() / right)[order],
    "k:",
    label=r"$1/\sqrt{\Lambda_{\ell\ell}}$",
)
for shift, (name, marker) in enumerate(MARKERS.items()):
    position = [p + 0.12 * (shift - 1.5) for p in range(L)]
    label = "ELBO" if name == "amortised mean field" else name
    ax.plot(position, (sds[name] / right)[order], marker, color=COLOURS[name], label=label)
ax.set_xticks(range(L), [str(int(o)) for o in order])
ax.set(xlabel="factor", ylabel="sd / exact sd", title="One family, four objectives")
ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

ratio = {name: float((sd / right).log().mean().exp()) for name, sd in sds.items()}
print({name: f"{r:.3f}" for name, r in ratio.items()})
short = float((precision.diagonal().rsqrt() / right).log().mean().exp())
assert abs(ratio["amortised mean field"] - short) < 0.03  # mode-seeking, as computed
assert abs(ratio["wake-sleep"] - 1) < (0.1 if SHORT else 0.05)  # mass-covering
assert ratio["amortised mean field"] < ratio["reweighted wake-sleep"]
assert ratio["amortised mean field"] < ratio["IWAE"]

# %% [markdown]
# ## 6. NUTS, and what its diagnostics see
#
# Hamiltonian Monte Carlo has no family to be wrong about. Its draws are dependent, and right only
# in the limit; so the question is whether they have come far enough. Two numbers, each for every
# scalar, of which we look at the worst:
#
# - $\hat R$ compares the spread of all chains together with the spread within each. If chains that
#   started apart have forgotten where, it is 1; above 1.01, run longer.
# - *ESS* is the number of independent draws that would serve as well: of the bulk for means, of
#   the tails for intervals. 400 are enough for most purposes.
#
# We run it twice on a few digits: as one should, and after a warm-up that is far too short.

# %%
good = pplvm.nuts(
    model, few, num_chains=CHAINS, num_warmup=100 if SHORT else 300,
    num_samples=100 if SHORT else 1000,
)  # fmt: skip
hasty = pplvm.nuts(model, few, num_chains=CHAINS, num_warmup=4, num_samples=40)
exact_few = pplvm.exact(model, few)
check = pplvm.compare({"exact": exact_few, "NUTS": good, "hasty": hasty})

fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for ax, draws, name in zip(axes, (hasty, good), ("hasty", "NUTS"), strict=False):
    for chain in draws["z"][:, :, 0, i]:
        ax.plot(chain[-200:], lw=0.7)
    row = check[name]
    title = rf"{name}: $\hat R$ = {row.rhat:.2f}, ESS = {row.ess_bulk:.0f}"
    ax.set(xlabel="draw (of the last 200)", ylabel=f"factor {i} of one digit", title=title)
m, s = float(exact_few.mean["z"][0, i]), float(exact_few.sd["z"][0, i])
grid = torch.linspace(m - 4 * s, m + 4 * s, 200)
axes[2].hist(good["z"][:, :, 0, i].flatten(), 40, density=True, color="0.7", label="NUTS")
axes[2].plot(
    grid, torch.exp(-0.5 * ((grid - m) / s) ** 2) / (s * math.sqrt(2 * math.pi)), "k", label="exact"
)
axes[2].set(xlabel=f"factor {i} of one digit", ylabel="density", title="all chains")
axes[2].legend(fontsize=8)
check

# %%
assert check["hasty"].rhat > 1.05 > (0 if SHORT else check["NUTS"].rhat)
assert check["NUTS"].mean_error < (0.3 if SHORT else 0.1)

# %% [markdown]
# ## 7. Side by side
#
# `compare` takes answers of any kind about the same data. Its reference is the exact answer if
# there is one, else the longest healthy run of NUTS; the columns that measure error are against
# it, those that diagnose need none.
#
# - **bound**, **log p(x)**: how much of the evidence an objective claims, and the
#   importance-sampled truth.
# - **mean err**, **sd err**: in units of the reference's standard deviations.
# - **50 %**, **90 %**: how much of the reference lies within the central intervals of the answer.
#   This is what a reader of your error bars relies on.
# - **k̂**, **R̂**, **ESS**: as above, at their worst.
# - **worry about**: what of all this you should act on, in words.

# %%
fits["mean field"] = fit(model, MeanField(len(few), L), few)  # the others know any digit
table = pplvm.compare({**fits, "NUTS": good, "exact": exact_few}, num_particles=4000)
table

# %% [markdown]
# Read it by columns. The linear-Gaussian guide is as good as exact: a family that contains the
# posterior, and an objective that finds it. Mean field has its *means* right and its *sds* short,
# and its intervals cover less than they promise. IWAE and both forms of wake-sleep, with the same
# family, have honest intervals. Yet on one footing, by the one-particle bound of the right panel
# below, all three are *worse* than mean field (the bounds that the table gives for IWAE and
# reweighted wake-sleep are $\mathcal L_{16}$). **The ELBO ranks guides by $\mathrm{KL}(q\,\|\,p)$;
# if intervals are what you want, that is the wrong ranking.**

# %%
mf, sleep, full = (
    table[name] for name in ("amortised mean field", "wake-sleep", "linear-Gaussian")
)
names = list(fits)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for level, marker in ((50, "o"), (90, "s")):
    for row, name in enumerate([*names, "NUTS"]):
        cover = 100 * (table[name].cover_50 if level == 50 else table[name].cover_90)
        axes[0].plot(cover, row, marker, color=COLOURS.get(name, "k"))
    axes[0].axvline(level, color="0.6", ls="--", lw=1)
axes[0].set_yticks(range(len(names) + 1), [*names, "NUTS"])
axes[0].set(xlabel="posterior inside (%): ● of 50 %, ■ of 90 %", title="Coverage")
gaps = [table["exact"].log_marginal - bound_of(fits[name], 1, few)[0] for name in names]
axes[1].barh(range(len(names)), gaps, color=[COLOURS[name] for name in names])
axes[1].set(xlabel="log p(x) - ELBO (nats per digit)", title="Gap of one particle: KL(q‖p)")
assert mf.cover_90 < full.cover_90
assert mf.cover_90 < sleep.cover_90
by_name = dict(zip(names, gaps, strict=True))
for name in ("IWAE", "wake-sleep", "reweighted wake-sleep"):
    assert by_name[name] > by_name["amortised mean field"]

# %% [markdown]
# The same table, with the plots behind it, goes into one self-contained HTML file that you can
# mail to somebody:

# %%
with tempfile.TemporaryDirectory() as folder:
    path = table.report(Path(folder) / "report.html")
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# ## 8. Latents that all data share
#
# In a Bayesian regression the unknown is one vector of coefficients for everybody, so it is
# sampled *outside* the plate. Six measures of 442 diabetes patients, $X$, and the progress of
# their disease a year on, $y$, all standardised:
#
# $$ w \sim \mathcal N(0, I), \qquad y_n \mid w \sim \mathcal N(x_n^\top w, \sigma^2). $$
#
# The noise $\sigma$ is held at its least-squares value, so that this posterior, too, is known
# exactly. The trouble is in $X$: some of the blood values measure nearly the same thing.

# %%
NAMES = ["bmi", "bp", "s1", "s2", "s3", "s5"]
bunch = load_diabetes(as_frame=True, scaled=False)
table_of = bunch.frame[[*NAMES, "target"]].to_numpy()
X, y = (
    torch.tensor((table_of - table_of.mean(0)) / table_of.std(0)).float().split([len(NAMES), 1], 1)
)
y = y[:, 0]
sigma = float((y - X @ torch.linalg.lstsq(X, y[:, None]).solution[:, 0]).std())
print(f"correlation of s1 and s2: {float(torch.corrcoef(X.T)[2, 3]):.2f}; sigma = {sigma:.2f}")


def regression(X, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(X.shape[1]), 1.0).to_event(1))  # (*, D)
    with pyro.plate("data", len(X), dim=-1):
        return pyro.sample("y", dist.Normal((X * w).sum(-1), sigma), obs=y)


slow = partial(fit, regression, lr=0.03, objective=partial(elbo, num_particles=8))
answers = {
    "mean field": slow(None, X, y),  # no guide given: Pyro's AutoNormal
    "full covariance": slow(AutoMultivariateNormal(regression), X, y),
    "NUTS": pplvm.nuts(
        regression, X, y, num_chains=CHAINS, num_warmup=100 if SHORT else 300,
        num_samples=100 if SHORT else 800,
    ),
    "exact": pplvm.exact(regression, X, y),
}  # fmt: skip
shared = pplvm.compare(answers)
shared

# %% [markdown]
# **PSIS-LOO** asks how well the story predicts a patient it has not seen,
# $\mathrm{elpd} = \sum_n \log p(y_n \mid y_{-n})$, from draws of the one posterior given all: draw
# $s$ is weighted by $1 / p(y_n \mid w_s)$, and the tails of these weights are smoothed. Again a
# $\hat k$, of each patient, tells whether that is allowed: a large one is a patient who moves the
# posterior on his own. Here the truth is in the textbooks: with $C = XX^\top + \sigma^2 I$ the
# covariance of $y$,
#
# $$ p(y_n \mid y_{-n})
#    = \mathcal N\Big(y_n - \tfrac{[C^{-1}y]_n}{[C^{-1}]_{nn}},\; \tfrac{1}{[C^{-1}]_{nn}}\Big). $$

# %%
inverse = torch.linalg.inv(X.double() @ X.double().T + sigma**2 * torch.eye(len(X)))
variance = 1 / inverse.diagonal()
residual = inverse @ y.double() * variance
elpd = float(torch.distributions.Normal(0.0, variance.sqrt()).log_prob(residual).sum())
loos = {name: psis_loo(draws) for name, draws in shared.draws.items()}
print(f"{'LOO, closed form':20}{elpd:>10.2f}")
for name, loo in loos.items():
    print(f"{name:20}{loo.elpd:>10.2f}   largest k̂ {float(loo.khat.max()):.2f}")

fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
palette = {
    "mean field": "tab:orange",
    "full covariance": "tab:green",
    "NUTS": "tab:blue",
    "exact": "k",
}
for shift, (name, draws) in enumerate(shared.draws.items()):
    w = draws["w"].flatten(0, 1)
    low, middle, high = w.quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
    position = [p + 0.16 * (shift - 1.5) for p in range(len(NAMES))]
    axes[0].errorbar(
        position,
        middle,
        [middle - low, high - middle],
        fmt="o",
        ms=3,
        color=palette[name],
        label=name,
    )
axes[0].axhline(0, color="0.7", lw=1)
axes[0].set_xticks(range(len(NAMES)), NAMES)
axes[0].set(xlabel="measure", ylabel="coefficient", title="Median and 90 % interval")
axes[0].legend(fontsize=8)
for name in ("mean field", "exact"):
    w = shared.draws[name]["w"][0, :1000]
    axes[1].plot(w[:, 2], w[:, 3], ".", ms=2, color=palette[name], label=name)
axes[1].set(
    xlabel="coefficient of s1", ylabel="coefficient of s2", title="Draws of a correlated pair"
)
axes[1].legend(fontsize=8, markerscale=4)
assert shared["mean field"].cover_90 < 0.8
s1 = {name: draws["w"][..., 2].quantile(0.95) for name, draws in shared.draws.items()}
assert s1["mean field"] < 0 < s1["exact"]
assert shared["mean field"].cover_90 < 0.7 < shared["full covariance"].cover_90
assert all(abs(loo.elpd - elpd) < 1 for loo in loos.values())

# %% [markdown]
# The means agree, the intervals do not. By mean field, s1 matters beyond doubt; by the exact
# posterior the data hardly tell s1 from s2. An independent Gaussian cannot say "one of the two",
# so it says "this one, surely". A guide with a full covariance can, at the price of $D^2 / 2$
# parameters and of patience: the weak direction is learned last. NUTS can, at the price of time.
#
# And LOO? It hardly notices. A forecast sees only $x^\top w$, in which the errors of s1 and s2
# cancel. **A good forecast is no proof of a good posterior**: where the coefficients themselves
# are the question, ask about the coefficients. The $\hat k$ of mean field in the table did, for it
# looks at the whole of $w$.
#
# ## What to take home
#
# - A posterior is a posterior *at some parameters*: fix them before you compare.
# - The gap of the ELBO is $\mathrm{KL}(q\,\|\,p)$, and a small family pays it in standard
#   deviations that are too small.
# - More particles tighten the bound, not the intervals of the guide; $\hat k$ says whether the
#   weights may be trusted.
# - Train with dreg if $K > 1$; with stl if $K = 1$.
# - Wake-sleep covers. NUTS is right when $\hat R$ and ESS say so, and takes its time.
# - If an exact answer exists for a story near yours, hold every method against it there first.
