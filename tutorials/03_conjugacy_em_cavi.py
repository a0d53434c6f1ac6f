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
# # When the algebra helps: conjugacy, EM and coordinate ascent
#
# Some posteriors can be written down. Others come apart into pieces that can. This notebook is
# about both, in the order in which they give way:
#
# 1. **conjugacy**: the whole posterior in closed form, and the evidence with it;
# 2. **EM**: the discrete latents exactly, the parameters at their most likely value;
# 3. **CAVI**, coordinate-ascent variational inference: a distribution for everything, each factor
#    in closed form given the others;
# 4. the three beside gradient steps and NUTS, on the same data, in one table;
# 5. what none of this can do.
#
# None of these methods asks for a learning rate, or draws a random number after its start. In
# exchange they ask something of the story. Nobody has to derive an update here, though: the
# stories are plain Pyro, and what is conjugate in them is read off their densities.

# %%
import math
import os
from functools import partial
from itertools import pairwise, permutations

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture as Peer

import pplvm
from pplvm.models.conjugate import beta_binomial, gamma_poisson, normal_inverse_gamma
from pplvm.models.counts import Multinomial
from pplvm.models.dirichlet_multinomial import CollapsedDirichletMultinomial
from pplvm.models.gaussian_mixture import BayesianGaussianMixture, GaussianMixture
from pplvm.objectives import elbo

torch.set_default_dtype(torch.float64)  # closed forms deserve all their digits
SHORT = bool(os.environ.get("PPLVM_SHORT"))  # a rehearsal: the same steps on less of everything
mean_field = partial(
    pplvm.cavi, num_starts=2 if SHORT else 10, num_steps=60 if SHORT else 1000,
    tolerance=1e-4 if SHORT else 1e-6,
)  # fmt: skip
COLOURS = ["tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple"]

# %% [markdown]
# ## 1. Conjugacy
#
# A prior is *conjugate* to a likelihood if the posterior is of the prior's family again. The
# reason is always the same: as a function of the latent alone, the joint log-density is
#
# $$ \log p(x, \theta) = c + \eta^\top T(\theta), $$
#
# with the statistics $T$ of some exponential family. All that the data do is to move $\eta$.
# Normalise, and the constant that it takes is the evidence $\log p(x)$.
#
# Calls that reach a help desk in an hour are Poisson, their rate Gamma. Here is the story, and all
# of the inference. It ships as `pplvm.models.conjugate.gamma_poisson`.


# %%
def calls_per_hour(x, a=1.0, b=1.0):
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(a), torch.tensor(b)))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Poisson(rate), obs=x)


torch.manual_seed(0)
TRUE_RATE = 4.0
calls = torch.poisson(torch.full((50,), TRUE_RATE))
answer = pplvm.conjugate(calls_per_hour, calls)
print(answer.posterior["rate"], f"log p(x) = {float(answer.log_marginal):.3f}")
found = answer.posterior["rate"]
textbook = (1.0 + float(calls.sum()), 1.0 + len(calls))  # shape a + Σx, rate b + N
print(f"by the textbook: Gamma({textbook[0]:.0f}, {textbook[1]:.0f})")
assert math.isclose(float(found.concentration), textbook[0], rel_tol=1e-6)
assert math.isclose(float(found.rate), textbook[1], rel_tol=1e-6)
same = pplvm.conjugate(gamma_poisson, calls)
assert torch.allclose(same.log_marginal, answer.log_marginal)

# %% [markdown]
# ### Today's posterior is tomorrow's prior
#
# Data that come in batches can be forgotten once they are counted. `update` takes the posterior
# for the prior of the next batch, and its evidence is that batch's *given all before*:
#
# $$ \log p(x_{1:N}) = \log p(x_{\text{Mon}}) + \log p(x_{\text{Tue}} \mid x_{\text{Mon}}) + \dots $$
#
# So the evidence is a sum of forecasts, each made before its data were seen. That is why it can
# compare models, and why it needs no held-out data to do so.

# %%
HOURS = [0, 1, 5, 20, 50]
nights = [pplvm.conjugate(gamma_poisson, calls[:0])]  # nobody has called yet: the prior
for start, end in pairwise(HOURS):
    nights.append(nights[-1].update(calls[start:end]))
parts = [float(night.log_marginal) for night in nights]
print("log p of each batch given those before:", [f"{part:.3f}" for part in parts[1:]])
print(f"their sum {sum(parts):.6f}, all at once {float(answer.log_marginal):.6f}")
assert abs(sum(parts) - float(answer.log_marginal)) < 1e-6

stale = pplvm.conjugate(partial(gamma_poisson, a=40.0, b=20.0), calls[:0])  # it believes in 2
forecasts = {"Gamma(1, 1)": [], "Gamma(40, 20)": []}
for name, now in zip(forecasts, (nights[0], stale), strict=True):
    for n in range(0, 50, 5):
        now = now.update(calls[n : n + 5])
        forecasts[name].append(float(now.log_marginal))

fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
grid = torch.linspace(0.05, 9, 400)
shades = plt.get_cmap("viridis_r")
for i, (hours, night) in enumerate(zip(HOURS, nights, strict=True)):
    density = night.posterior["rate"].log_prob(grid).exp()
    label = "prior" if hours == 0 else f"after {hours} h"
    axes[0].plot(grid, density, color=shades(0.15 + 0.8 * i / len(HOURS)), label=label)
axes[0].axvline(TRUE_RATE, color="k", ls=":", label="truth")
axes[0].set(xlabel="calls per hour", ylabel="density", title="Posterior of the rate")
axes[0].legend(fontsize=8)
for name, batches in forecasts.items():
    total = torch.tensor(batches).cumsum(0)
    axes[1].plot(range(5, 51, 5), total, "o-", ms=4, label=f"prior {name}")
axes[1].set(
    xlabel="hours seen", ylabel="log p(x so far) (nats)", title="Evidence, as forecasts add up"
)
axes[1].legend(fontsize=8)
totals = {name: sum(batches) for name, batches in forecasts.items()}
print({name: f"{total:.2f}" for name, total in totals.items()})
assert abs(totals["Gamma(1, 1)"] - float(answer.log_marginal)) < 1e-6
assert totals["Gamma(1, 1)"] > totals["Gamma(40, 20)"]

# %% [markdown]
# The second prior is sure of two calls an hour, and pays for it in its first forecasts. Later both
# forecast alike: the data have the say.
#
# ### A latent of each datum
#
# Thirty clinics treat few patients or many. Each has a success rate of its own,
# $p_n \sim \mathrm{Beta}(a, b)$, of which it shows $x_n \sim \mathrm{Binomial}(t_n, p_n)$. Now the
# posterior is thirty Betas. Each is drawn from the raw share towards the prior mean, the more so
# the fewer patients it has: *shrinkage*. How strong should the prior be? The evidence knows.

# %%
torch.manual_seed(1)
TRUE_STRENGTH = 20.0
patients = torch.randint(3, 80, (30,)).double()
truth = dist.Beta(0.6 * TRUE_STRENGTH, 0.4 * TRUE_STRENGTH).sample((30,))
cured = torch.binomial(patients, truth)


def clinics(strength):
    """The story with a prior of mean 0.6 that weighs as much as so many patients."""
    return partial(beta_binomial, a=0.6 * strength, b=0.4 * strength)


STRENGTHS = [2.0**power for power in range(-1, 13)]
evidence = [
    float(pplvm.conjugate(clinics(s), cured, patients).log_marginal.sum()) for s in STRENGTHS
]
best = STRENGTHS[evidence.index(max(evidence))]
rates = pplvm.conjugate(clinics(best), cured, patients)
raw, shrunk = cured / patients, rates.mean["p"]
errors = {"raw": raw, "posterior": shrunk, "pooled": cured.sum() / patients.sum()}
errors = {name: float((e - truth).square().mean().sqrt()) for name, e in errors.items()}
print(f"best strength {best:.0f}, of which the data were made: {TRUE_STRENGTH:.0f}")
print("RMS error of the rates:", {name: f"{error:.3f}" for name, error in errors.items()})

fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for n in range(30):
    axes[0].plot([patients[n]] * 2, [raw[n], shrunk[n]], color="0.7", lw=1, zorder=0)
axes[0].plot(patients, raw, "o", ms=4, mfc="none", color="k", label="raw share")
axes[0].errorbar(
    patients, shrunk, rates.sd["p"], fmt="o", ms=4, lw=1, color="tab:blue", label="posterior ± sd"
)
axes[0].axhline(0.6, color="0.5", ls=":", label="prior mean")
axes[0].set(xlabel="patients of a clinic", ylabel="success rate", title="Shrinkage")
axes[0].set_ylim(0.25, 1.15)
axes[0].legend(fontsize=8, ncol=3, loc="upper center")
axes[1].semilogx(STRENGTHS, evidence, "o-", ms=4, base=2)
axes[1].axvline(TRUE_STRENGTH, color="k", ls=":", label="truth")
axes[1].set(
    xlabel="strength a + b of the prior", ylabel="log p(x) (nats)", title="The evidence chooses"
)
axes[1].legend(fontsize=8)
assert errors["posterior"] < errors["raw"]
assert 5 <= best <= 80

# %% [markdown]
# ### Counts that vary more than they should
#
# Readers, cells and customers all sort their counts $x_n$ into $V$ kinds. Are their proportions
# the same, or has each its own?
#
# $$ \begin{aligned}
#   \text{multinomial} &: & p &\sim \mathrm{Dir}(1, \dots, 1), & x_n &\sim \mathrm{Mult}(t_n, p) \\
#   \text{overdispersed} &: & p_n &\sim \mathrm{Dir}(\alpha), & x_n &\sim \mathrm{Mult}(t_n, p_n)
# \end{aligned} $$
#
# Both are conjugate. We let them see half of the data and ask for the log-probability of the other
# half: by `update` for the first, and for the second at the $\alpha$ that the first half makes
# most likely. Then we make the data more and more alike, by raising $A = \sum_v \alpha_v$ of the
# Dirichlet that they come from.


# %%
def one_for_all(x):
    """Counts (N, V) that share their proportions."""
    p = pyro.sample("p", dist.Dirichlet(x.new_ones(x.shape[1])))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", Multinomial(x.sum(-1), p), obs=x)


SHARES = torch.tensor([0.4, 0.3, 0.2, 0.1])
SPREADS = [10.0, 100.0, 10000.0] if SHORT else [5.0, 20.0, 100.0, 300.0, 1000.0, 10000.0]


def forecast(A):
    """log p(second half | first half) by both stories, in nats, and the factor of the variance."""
    torch.manual_seed(2)
    totals = torch.full((80,), 60.0)
    x = Multinomial(totals, dist.Dirichlet(A * SHARES).sample((80,))).sample()
    first, second = x[:40], x[40:]
    pooled = pplvm.conjugate(one_for_all, first).update(second).log_marginal
    own = pplvm.fit(CollapsedDirichletMultinomial(4), None, first, num_steps=400, lr=0.1)
    own_score = elbo(own.model, nothing, second).bound.sum()  # without latents, log p(x) itself
    expected = 60 * SHARES * (1 - SHARES)
    return float(pooled), float(own_score), float((x.var(0) / expected).mean())


def nothing(x):
    """A guide that draws no latents, so that all of them are summed out, if there are any."""


scores = [forecast(A) for A in SPREADS]
print(f"{'A':>8}{'variance':>12}{'multinomial':>14}{'overdispersed':>16}{'difference':>13}")
for A, (pooled, own, factor) in zip(SPREADS, scores, strict=True):
    print(f"{A:>8.0f}{factor:>11.2f}×{pooled:>14.1f}{own:>16.1f}{own - pooled:>+13.1f}")

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
gains = [own - pooled for pooled, own, _ in scores]
ax.semilogx(SPREADS, gains, "o-")
ax.set_yscale("symlog", linthresh=5)
ax.axhline(0, color="k", lw=1)
_ = ax.set(
    xlabel="A: how alike the proportions are",
    ylabel="gain in log p (nats)",
    title="Overdispersed against multinomial: above 0, each datum has its own",
)
assert gains[0] > 20
assert gains[-1] < 2

# %% [markdown]
# Where the counts vary more than a multinomial allows, the evidence is overwhelming. Where they do
# not, the larger model gains next to nothing: it contains the smaller as $A \to \infty$, and has
# learned to be nearly that.
#
# ### A story that is not conjugate
#
# A coin whose log-odds are Normal is no less sensible than one whose chance is Beta. Only its
# posterior has no name. `conjugate` does not guess: it says which site breaks the form.


# %%
def log_odds(x):
    w = pyro.sample("w", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Bernoulli(logits=w), obs=x)


try:
    pplvm.conjugate(log_odds, (calls > 3).double())
except ValueError as error:
    print(error)

# %% [markdown]
# ## 2. EM: a posterior for the latents, a point for the parameters
#
# A mixture of Gaussians is not conjugate: the datum may come from any component, and the joint of
# everything else is a sum of $K^N$ terms. But were the components $k_n$ known, all would be
# averages. Our data have three of them, and their truth is known.

# %%
N, K = (120, 3) if SHORT else (200, 3)
TRUE_MU = torch.tensor([[-1.5, 0.0], [1.0, 1.2], [1.2, -1.2]])  # (K, D)
TRUE_S = torch.tensor([[0.5, 1.0], [0.9, 0.5], [0.6, 0.6]])  # (K, D)
TRUE_PI = torch.tensor([0.3, 0.5, 0.2])  # (K,)
torch.manual_seed(0)
k = torch.multinomial(TRUE_PI, N, replacement=True)
x = TRUE_MU[k] + TRUE_S[k] * torch.randn(N, 2)  # (N, D)


def start_from(seed, num_components=K):
    """A mixture at the means of so many data, chosen by chance."""
    torch.manual_seed(seed)
    model = GaussianMixture(2, num_components)
    with torch.no_grad():
        model.mu.copy_(x[torch.randperm(N)[:num_components]])
    return model


first = start_from(seed=0)
em = pplvm.em(first, x)
rises = [b - a for a, b in pairwise(em.log_marginal)]
print(f"log p(x): {em.log_marginal[0]:.3f} at the start, {em.log_marginal[-1]:.3f} at the end")
print(f"{len(rises)} steps, the least of them {min(rises):+.5f}")
assert min(rises) > 0

# %% [markdown]
# EM alternates. The **E step** holds $\theta_i$ and takes the posterior of the latents,
# $q(k_n) = p_{\theta_i}(k_n \mid x_n)$, which for discrete latents is a sum and a division. The
# **M step** holds $q$ and maximises the expected complete log-likelihood,
#
# $$ Q(\theta \mid \theta_i) = \sum_n \sum_k q(k_n = k)\, \log p_\theta(x_n, k). $$
#
# Add the entropy of $q$, and $Q + H(q)$ is the ELBO: below $\log p_\theta(x)$ for every $\theta$,
# and equal to it at $\theta_i$, for there $q$ is the posterior. So wherever $Q$ rises, $\log p$
# rises at least as much. For this story the M step has a closed form, weighted averages;
# `pplvm.em` climbs by L-BFGS instead, which any story allows. Here is one step of it, against the
# averages.


# %%
def log_joint(log_pi, mu, log_s):
    """log p(x_n, k) of every datum and component, by hand: (N, K)."""
    z = (x[:, None] - mu) / log_s.exp()  # (N, K, D)
    return log_pi.log_softmax(-1) - (0.5 * z**2 + log_s + 0.5 * math.log(2 * math.pi)).sum(-1)


def parameters(model):
    return [p.detach().clone().requires_grad_() for p in model.parameters()]


q = pplvm.exact(first, x).marginals["k"]  # (N, K): the E step
second = pplvm.em(first, x, num_steps=1, num_inner=100).model.requires_grad_(False)
averages = q.T @ x / q.sum(0)[:, None]  # (K, D)
spread = (q[..., None] * (x[:, None] - averages) ** 2).sum(0) / q.sum(0)[:, None]  # (K, D)
print(f"means:   largest difference {float((second.mu - averages).abs().max()):.1e}")
print(f"sds:     largest difference {float((second.log_s.exp() - spread.sqrt()).abs().max()):.1e}")
shares = second.log_pi.softmax(-1)
print(f"weights: largest difference {float((shares - q.mean(0)).abs().max()):.1e}")
assert torch.allclose(second.mu, averages, atol=1e-3)


def along(t):
    """log p(x) and the bound Q + H, at a point of the line from θ_0 through θ_1."""
    with torch.no_grad():
        ends = zip(first.parameters(), second.parameters(), strict=True)
        table = log_joint(*[a + t * (b - a) for a, b in ends])
        entropy = -torch.xlogy(q, q).sum()
        return float(table.logsumexp(1).sum()), float((q * table).sum() + entropy)


line = torch.linspace(-0.25, 1.6, 60)
tops, bounds = zip(*[along(t) for t in line], strict=True)
peer = Peer(
    K, covariance_type="diag", means_init=first.mu.detach().numpy(), tol=1e-8, max_iter=2000
)  # fmt: skip
peer_score = peer.fit(x.numpy()).score(x.numpy()) * N

fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
axes[0].plot(line, tops, color="k", label="log p(x)")
axes[0].plot(line, bounds, color="tab:orange", label=r"$Q(\theta \mid \theta_0) + H(q)$")
axes[0].plot([0, 1], [along(0)[0], along(1)[1]], "o", color="tab:orange")
axes[0].annotate(r"E: touch at $\theta_0$", (0, along(0)[0]), (0.1, along(0)[0] - 25), fontsize=9)
axes[0].annotate(r"M: climb to $\theta_1$", (1, along(1)[1]), (0.8, along(1)[1] - 25), fontsize=9)
axes[0].set(xlabel=r"place between $\theta_0$ and $\theta_1$", ylabel="nats", title="One step")
axes[0].legend(fontsize=8)
axes[1].plot(em.log_marginal, "o-", ms=3, color="k", label="pplvm.em")
axes[1].axhline(peer_score, color="tab:red", ls="--", lw=1, label="scikit-learn, at its end")
axes[1].set(xlabel="step of EM", ylabel="log p(x) (nats)", title="All of them")
axes[1].legend(fontsize=8)
print(f"log p(x) at the end: {em.log_marginal[-1]:.3f}, by scikit-learn {peer_score:.3f}")
assert all(top >= bound - 1e-2 for top, bound in zip(tops, bounds, strict=True))
assert abs(em.log_marginal[-1] - peer_score) < 0.5

# %% [markdown]
# ### Fisher's identity
#
# In the left panel the curves do not only touch, they have one slope. That is an identity:
#
# $$ \nabla_\theta \log p_\theta(x) \Big|_{\theta_i}
#    = \mathbb E_{p_{\theta_i}(k \mid x)}\, \nabla_\theta \log p_\theta(x, k) \Big|_{\theta_i}
#    = \nabla_\theta Q(\theta \mid \theta_i) \Big|_{\theta_i}. $$
#
# We compute both sides apart. On the right, the marginals of `pplvm.exact` weigh the log-densities
# that were written by hand above. On the left, the story itself: `elbo` with a guide that draws
# nothing sums $k$ out, so its bound is $\log p(x)$, and autograd does the rest.


# %%
def two_gradients(model):
    """The gradient of Q, and that of log p(x)."""
    theta = parameters(model)
    weights = pplvm.exact(model, x).marginals["k"]
    expected = torch.autograd.grad((weights * log_joint(*theta)).sum(), theta)
    estimate = elbo(model, nothing, x)
    direct = torch.autograd.grad(-estimate.loss * N, list(model.parameters()))  # an average of N
    exact = pplvm.exact(model, x).log_marginal
    assert torch.allclose(estimate.bound, exact)  # of no draw, and so no bound but the value
    return [torch.cat([g.flatten() for g in side]) for side in (expected, direct)]


for name, model in (
    ("at the start", first),
    ("after one step", second.requires_grad_()),
    ("at the end", em.model),
):
    left, right = two_gradients(model)
    difference = float((left - right).abs().max())
    print(f"{name:15} |gradient| {float(right.norm()):9.4f}   largest difference {difference:.1e}")
    assert difference < 1e-8

# %% [markdown]
# So a gradient step on $\log p(x)$ *is* a step on $Q$: a partial M step. Where every M step is
# partial, EM still rises (*generalised EM*). The two differ in how far they trust one $q$: EM goes
# to the top of its bound before it looks again, gradient ascent looks again after every step.
# `pplvm.fit(model, None, x)` is the latter, with Adam.

# %%
rates = {0.02: "tab:cyan", 0.1: "tab:blue"}
ascents = {
    lr: pplvm.fit(first, None, x, num_steps=300 if SHORT else 800, lr=lr) for lr in rates
}  # the start is EM's
top = max(em.log_marginal[-1], *(max(ascent.history.bound) * N for ascent in ascents.values()))
curves = {"EM": (em.log_marginal, em.seconds, "k")}
for lr, ascent in ascents.items():
    curves[f"Adam, lr = {lr}"] = ([N * b for b in ascent.history.bound], ascent.seconds, rates[lr])

fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
print(f"{'':18}{'steps to 0.1 nat':>18}{'seconds to it':>15}{'log p(x) at the end':>21}")
for name, (curve, seconds, colour) in curves.items():
    gap = [max(top - value, 1e-6) for value in curve]
    axes[0].loglog(range(1, len(gap) + 1), gap, color=colour, label=name)
    axes[1].loglog([seconds * (i + 1) / len(gap) for i in range(len(gap))], gap, color=colour)
    there = next((i for i, value in enumerate(gap) if value < 0.1), None)
    reached = "—" if there is None else f"{there}"
    after = "—" if there is None else f"{seconds * there / len(gap):.2f}"
    print(f"{name:18}{reached:>18}{after:>15}{curve[-1]:>21.3f}")
axes[0].set(xlabel="step", ylabel="log p(x) still to come (nats)", title="By steps")
axes[1].set(xlabel="seconds", title="By the clock")
axes[0].legend(fontsize=8)
axes[0].set_ylim(bottom=1e-3)
assert abs(ascents[0.1].history.bound[-1] * N - em.log_marginal[-1]) < 0.5

# %% [markdown]
# EM takes few steps, and needs no learning rate; but each of its steps is an M step of many
# gradients. With closed-form averages it would be cheaper by that factor, which is what a library
# of one model, such as scikit-learn, can offer. What the gradient offers is minibatches, networks
# in the story, and an end to the crawl that EM falls into where components overlap: more of that
# crawl in section 3.
#
# ### One likelihood, many tops
#
# All of this climbs, so where it starts decides where it ends.

# %%
STARTS = 2 if SHORT else 8
climbs = {}
for components in (3, 5):
    climbs[components] = [
        pplvm.em(start_from(seed, components), x, num_steps=60, num_inner=5, tolerance=1e-5)
        for seed in range(STARTS)
    ]


def ellipse(centre, sd, mass=0.8):
    """The outline that holds so much of a Gaussian with independent features: (2, 100)."""
    angle = torch.linspace(0, 2 * math.pi, 100)
    radius = math.sqrt(-2 * math.log(1 - mass))
    return centre[:, None] + radius * torch.stack([angle.cos(), angle.sin()]) * sd[:, None]


fig, axes = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
for ax, (components, runs) in zip(axes[:2], climbs.items(), strict=True):
    for run in runs:
        ax.plot(range(1, len(run.log_marginal) + 1), run.log_marginal, lw=1)
    ends = sorted(run.log_marginal[-1] for run in runs)
    ax.set_xscale("log")
    ax.set_ylim(ends[-1] - 60, ends[-1] + 5)
    ax.set(
        xlabel="step of EM", ylabel="log p(x) (nats)", title=f"K = {components}, {STARTS} starts"
    )
    print(f"K = {components}: ends from {ends[0]:.2f} to {ends[-1]:.2f}")
axes[2].scatter(*x.T, s=8, c=[COLOURS[i] for i in k], alpha=0.5)
with torch.no_grad():
    for centre, log_s in zip(em.model.mu, em.model.log_s, strict=True):
        axes[2].plot(*ellipse(centre, log_s.exp()), color="k")
axes[2].set(xlabel="$x_1$", ylabel="$x_2$", title="EM, K = 3 (colours: the truth)")
spans = {
    c: max(e) - min(e)
    for c, e in ((c, [r.log_marginal[-1] for r in rs]) for c, rs in climbs.items())
}
assert spans[5] > 0.1
assert max(r.log_marginal[-1] for r in climbs[5]) > max(r.log_marginal[-1] for r in climbs[3])

# %% [markdown]
# Of several tops one can at least take the highest. What the height cannot say is how many
# components there are: five are always more likely than three at their best, for they can do all
# that three can. For that, the parameters need priors.
#
# ## 3. CAVI: a distribution for everything
#
# Give the parameters conjugate priors (`pplvm.models.gaussian_mixture.BayesianGaussianMixture`):
#
# $$ \pi \sim \mathrm{Dir}(\alpha, \dots, \alpha), \quad \tau_{kd} \sim \mathrm{Gamma}(a, b), \quad
#    \mu_{kd} \mid \tau_{kd} \sim \mathcal N\big(m, (\kappa \tau_{kd})^{-1}\big), \quad
#    k_n \sim \mathrm{Cat}(\pi), \quad x_{nd} \sim \mathcal N\big(\mu_{k_n d}, \tau_{k_n d}^{-1}\big). $$
#
# Given all else, each of $\pi$, $\tau$, $\mu$ and $k$ is conjugate. Mean field makes them
# independent, $q(\pi)\,q(\mu)\,q(\tau)\,q(k)$, and sets each factor in turn to its best given the
# others,
#
# $$ \log q(\theta_j) = \mathbb E_{q(\text{all else})} \log p(x, \theta, k) + \text{const}, $$
#
# which is of the prior's family. Nothing is drawn, nothing has a step size, and the ELBO rises at
# every update. EM is the special case in which $q(\theta)$ is a point.

# %%
mixture = BayesianGaussianMixture(2, K)
cavi = mean_field(mixture, x)
print(cavi.settings)
for name, factor in cavi.posterior.items():
    print(f"q({name}) is {factor}")
print("q(pi) has the mean", [f"{w:.3f}" for w in cavi.mean["pi"]])
assert all(b > a - 1e-9 for a, b in pairwise(cavi.elbo))

# %% [markdown]
# ### How far below the evidence?
#
# With $K = 1$ we know. Then nothing is latent but a mean and a variance for each feature, and the
# story is the Normal-inverse-Gamma of section 1's collection: `conjugate` has its evidence. With
# more components, the factors of CAVI serve as a proposal for importance sampling, with $k$ summed
# out. What that finds is the mass near *this* numbering of the components.

# %%
prior = partial(normal_inverse_gamma, m=0.0, kappa=0.1, a=2.0, b=1.0)
single = mean_field(BayesianGaussianMixture(2, 1), x)
closed = sum(float(pplvm.conjugate(prior, x[:, d]).log_marginal) for d in range(2))
print(f"K = 1: ELBO {single.elbo[-1]:.4f}, log p(x) in closed form {closed:.4f}")
assert 0 < closed - single.elbo[-1] < 0.05


def guide_of(answer):
    """The continuous factors of CAVI as a guide: k is left out, and so is summed out."""

    def guide(x):
        pyro.sample("pi", answer.posterior["pi"])
        with pyro.plate("components", len(answer.mean["pi"]), dim=-1):
            pyro.sample("tau", answer.posterior["tau"])
            pyro.sample("mu", answer.posterior["mu"])

    return guide


def evidence_near(answer):
    """log p(x) by importance sampling, of one numbering of the components."""
    return pplvm.log_marginal(answer.model, guide_of(answer), x, num_particles=4000)


near = evidence_near(cavi)
print(
    f"K = {K}: ELBO {cavi.elbo[-1]:.3f}, importance sampling {float(near.value):.3f} "
    f"± {float(near.error):.3f} (k̂ {float(near.khat):.2f})"
)
assert cavi.elbo[-1] < float(near.value) + 4 * float(near.error)

# %% [markdown]
# ### Against NUTS
#
# NUTS has no family to be wrong about; $k$ is summed out while it moves. But its chains number the
# components as they please, and each has its own numbering. `align` renumbers the components of
# every draw, here by the means, as CAVI has them. Only then does it make sense to average a
# component.

# %%
chains = pplvm.nuts(
    mixture, x, num_chains=2 if SHORT else 4, num_warmup=50 if SHORT else 200,
    num_samples=50 if SHORT else 500,
)  # fmt: skip
nuts = pplvm.align(chains, {"mu": 0}, reference=cavi.draws())
before, after = (d["mu"].mean(1) for d in (chains, nuts))  # (C, K, D)
print(f"spread of the chains' means of mu, as sampled: {float(before.std(0).max()):.3f}")
print(f"                                      aligned: {float(after.std(0).max()):.3f}")


def sd_ratio(answer, draws):
    """By what factor an answer's sds of the means differ from those of draws: (K, D)."""
    return answer.sd["mu"] / draws["mu"].flatten(0, 1).std(0)


ratio = sd_ratio(cavi, nuts)
print(f"sd of mu, CAVI / NUTS: from {float(ratio.min()):.2f} to {float(ratio.max()):.2f}")

fig, axes = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
axes[0].plot(range(1, len(cavi.elbo) + 1), cavi.elbo, "o-", ms=3, color="k")
axes[0].set(xlabel="step of CAVI", ylabel="ELBO (nats)", title="It never falls")
axes[1].scatter(*x.T, s=6, color="0.8")
for c in range(K):
    drawn = nuts["mu"][:, ::4, c].flatten(0, 1)
    axes[1].plot(*drawn.T, ".", ms=1.5, color=COLOURS[c], alpha=0.5)
    axes[1].plot(*ellipse(cavi.mean["mu"][c], cavi.sd["mu"][c], 0.9), color="k", lw=1.2)
axes[1].set(xlabel="$x_1$", ylabel="$x_2$", title="Means: NUTS (dots), CAVI (90 %)")
widest = divmod(int(ratio.argmin()), 2)
sampled = nuts["mu"][(..., *widest)].flatten()
m, s = (float(moment["mu"][widest]) for moment in (cavi.mean, cavi.sd))
grid = torch.linspace(float(sampled.min()), float(sampled.max()), 200)
axes[2].hist(sampled, 40, density=True, color=COLOURS[widest[0]], alpha=0.4, label="NUTS")
axes[2].plot(grid, dist.Normal(m, s).log_prob(grid).exp(), "k", label="CAVI")
axes[2].set(xlabel="the mean it has most wrong", ylabel="density", title="Too sure of itself")
axes[2].legend(fontsize=8)
assert float(ratio.log().mean().exp()) < 1
assert (cavi.mean["mu"] - nuts["mu"].mean((0, 1))).abs().max() < 0.2

# %% [markdown]
# The means agree. The standard deviations are short, here by little. How short, the overlap of the
# components decides. If every datum's component is plain, a mean is uncertain as an average is,
# and CAVI has that right. If not, a part of the uncertainty is about *which* data are averaged.
# The factor $q(\mu)$ holds $q(k)$ fixed, and so does not see that part.
#
# It has a name, the *missing information*: at the maximum, the information that the complete data
# would give, less that of $x$ alone,
#
# $$ J_{\text{complete}} = -\nabla^2 Q, \qquad J_{\text{observed}} = -\nabla^2 \log p(x), \qquad
#    \lambda = \lambda_{\max}\big(I - J_{\text{complete}}^{-1} J_{\text{observed}}\big). $$
#
# One number, two troubles. Near its end EM closes the share $1 - \lambda$ of what is left at every
# step: that is its crawl. (The table measures it by the last few rises of $\log p$, and needs an EM
# that takes long enough.) And a mean field that takes the complete information for the observed has
# standard deviations of $1/\sqrt{J_{\text{complete}}}$ where the square roots of the diagonal of
# $J_{\text{observed}}^{-1}$ would be right. We move two components apart and look at both.

# %%
GAPS = [3.0, 6.0] if SHORT else [3.0, 4.0, 6.0]


def pair_table(theta, y):
    """log p(y_n, k) of two components in one dim; theta is a logit, means and log-sds: (N, 2)."""
    weights = torch.stack([theta.new_zeros(()), theta[0]]).log_softmax(0)
    return weights + dist.Normal(theta[1:3], theta[3:].exp()).log_prob(y)


def two_components(gap):
    """λ by theory and by EM, and the ratios of CAVI's sds of the means to NUTS's, likewise."""
    torch.manual_seed(3)
    side = 2.0 * (torch.arange(150) % 2) - 1
    y = (side * gap / 2 + torch.randn(150))[:, None]  # (N, 1)
    model = GaussianMixture(1, 2)
    with torch.no_grad():
        model.mu.copy_(torch.tensor([[-1.0], [1.0]]))
    run = pplvm.em(model, y, num_steps=400, tolerance=1e-10)
    late = [b - a for a, b in pairwise(run.log_marginal) if b - a > 1e-5][-5:]
    speed = (late[-1] / late[0]) ** (0.5 / (len(late) - 1))  # rises shrink by λ² a step
    log_pi, mu, log_s = (p.detach().flatten() for p in run.model.parameters())
    theta = torch.cat([log_pi[1:] - log_pi[:1], mu, log_s])
    weights = pair_table(theta, y).softmax(1)
    hessian = torch.autograd.functional.hessian
    complete = -hessian(lambda t: (weights * pair_table(t, y)).sum(), theta)
    observed = -hessian(lambda t: pair_table(t, y).logsumexp(1).sum(), theta)
    missing = torch.eye(5) - torch.linalg.solve(complete, observed)
    predicted = (torch.linalg.inv(observed).diagonal() * complete.diagonal()).rsqrt()[1:3]
    story = BayesianGaussianMixture(1, 2)
    field = pplvm.cavi(story, y)
    drawn = pplvm.nuts(
        story, y, num_chains=2, num_warmup=60 if SHORT else 150,
        num_samples=100 if SHORT else 400, compile="graph",
    )  # fmt: skip
    drawn = pplvm.align(drawn, {"mu": 0}, reference=field.draws())
    measured = sd_ratio(field, drawn)
    largest = float(torch.linalg.eigvals(missing).real.max())
    return (
        largest,
        speed,
        float(predicted.mean()),
        float(measured.mean()),
        run.settings["num_steps"],
    )


separations = [two_components(gap) for gap in GAPS]
print(f"{'':>10}{'missing information λ':>25}{'':>6}{'sd of a mean: CAVI / NUTS':>29}")
print(f"{'distance':>10}{'theory':>14}{'from EM':>11}{'steps':>8}{'theory':>16}{'measured':>11}")
for gap, (theory, speed, predicted, measured, steps) in zip(GAPS, separations, strict=True):
    print(
        f"{gap:>8.1f} σ{theory:>14.3f}{speed:>11.3f}{steps:>8}{predicted:>16.2f}{measured:>11.2f}"
    )

fig, axes = plt.subplots(1, 2, figsize=(10, 3.3), layout="constrained")
columns = list(zip(*separations, strict=True))
axes[0].plot(GAPS, columns[0], "k-", label="missing information, from Hessians")
axes[0].plot(GAPS, columns[1], "o", color="tab:orange", label="speed of EM, from its steps")
axes[0].set(xlabel="distance of two means (sds)", ylabel="λ", title="What EM is slowed by")
axes[1].plot(GAPS, columns[2], "k-", label="theory")
axes[1].plot(GAPS, columns[3], "s", color="tab:blue", label="CAVI / NUTS")
axes[1].axhline(1, color="0.6", lw=1)
axes[1].set(
    xlabel="distance of two means (sds)", ylabel="ratio of sds", title="What CAVI overlooks"
)
for ax in axes:
    ax.legend(fontsize=8)
assert columns[0][0] > columns[0][-1]
assert columns[3][0] < 0.8 < 0.85 < columns[3][-1]
assert abs(columns[0][0] - columns[1][0]) < 0.1

# %% [markdown]
# ### How many components?
#
# The ELBO is a bound on the evidence, and the evidence, unlike the likelihood at its maximum, does
# not grow with $K$ for ever. But a mixture of $K$ components has the same posterior $K!$ times, once
# for each numbering, and mean field sits at one of them. If $e$ of its components are empty, and so
# alike, it has $K!/e!$ distinct mirror images. An equal mixture of them all would have an ELBO larger
# by $\log (K!/e!)$, less what the images overlap. It is added before models are compared.


# %%
def numberings(answer):
    """log of the number of distinct mirror images, and of components in use."""
    own = answer.marginals["k"].sum(0) > 0.5  # of which some datum probably is
    empty = int((~own).sum())
    return math.lgamma(len(own) + 1) - math.lgamma(empty + 1), int(own.sum())


iris = torch.tensor(load_iris().data)
iris = ((iris - iris.mean(0)) / iris.std(0))[:, 2:]  # petals: (150, 2)
KS = [1, 3] if SHORT else [1, 2, 3, 4, 5]
choices = {"our data": x, "petals of iris": iris}
table = {}
for name, data in choices.items():
    dims = data.shape[1]
    table[name] = [mean_field(BayesianGaussianMixture(dims, c), data) for c in KS]
highest_of = {}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
for ax, (name, answers) in zip(axes, table.items(), strict=True):
    low = [a.elbo[-1] for a in answers]
    images, used = zip(*[numberings(a) for a in answers], strict=True)
    whole = [e + i for e, i in zip(low, images, strict=True)]
    print(f"{name}:  K   ELBO    + log K!/e!   components in use")
    for row in zip(KS, low, whole, used, strict=True):
        print("{:>17}{:>10.2f}{:>12.2f}{:>13}".format(*row))
    ax.plot(KS, low, "o--", ms=4, color="0.5", label="ELBO")
    ax.plot(KS, whole, "s-", ms=4, color="tab:blue", label="ELBO + log K!/e!")
    if name == "our data":
        near = [evidence_near(a) for a in answers]
        sampled = [float(e.value) + i for e, i in zip(near, images, strict=True)]
        axes[0].plot(KS, sampled, "^", color="tab:orange", label="importance sampling + log K!/e!")
        print("log p(x), sampled:", [f"{v:.2f}" for v in sampled])
        print("k̂ of these:", [f"{float(e.khat):.2f}" for e in near])
    ax.set_xticks(KS)
    ax.set(xlabel="components K", ylabel="nats", title=name)
    ax.legend(fontsize=8)
    highest = whole.index(max(whole))
    highest_of[name] = KS[highest]
    print(f"highest at K = {KS[highest]}, with {used[highest]} in use")
assert highest_of["our data"] == 3

# %% [markdown]
# On our data the truth is three, and the bound says so. On the petals, which nobody drew from a
# mixture of Gaussians, the count is a matter of what the story takes for one component. Mind two
# things. Each point is where one of a few starts led: if a larger $K$ finds a higher ELBO with
# components left over, the smaller $K$ could have found it, too, and was not lucky. And importance
# sampling stands where its $\hat k$ is below 0.7, not beyond.
#
# ### Components that nobody needs
#
# There is another way to choose $K$: take it too large, and let the prior of the weights decide. A
# small $\alpha$ expects few components in use. A component that loses its data loses its weight
# with them, down to $\alpha / (N + K \alpha)$. Maximum likelihood uses whatever it is given.

# %%
MANY = 6
emptied = {
    f"EM, K = {MANY}": pplvm.em(
        start_from(0, MANY), x, num_steps=60, num_inner=5, tolerance=1e-5
    ).model.log_pi.softmax(0).detach()
}  # fmt: skip
for alpha in (10.0, 1.0, 0.01):
    crowd = BayesianGaussianMixture(2, MANY, concentration=alpha)
    emptied[f"CAVI, α = {alpha:g}"] = mean_field(crowd, x).mean["pi"]
fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
for i, (name, weights) in enumerate(emptied.items()):
    weights = weights.sort(descending=True).values
    print(f"{name:16}", "  ".join(f"{w:.5f}" for w in weights))
    ax.bar([c + 0.2 * (i - 1.5) for c in range(1, MANY + 1)], weights.tolist(), 0.18, label=name)
ax.set(
    xlabel="component, by weight", ylabel="weight", title="Six components, of which three are true"
)
ax.legend(fontsize=8)
last = [float(weights.min()) for weights in emptied.values()]
assert last[-1] < 0.001 < last[0]

# %% [markdown]
# ## 4. Side by side
#
# The same data, $K = 3$, and five ways. The third column is the log-likelihood at a point where
# there is a point, and a bound on the evidence where there is a posterior: **the two are not to be
# compared with each other**. The error of the means is against the truth, which no method sees; the
# sds are against NUTS.
#
# SVI on the Bayesian story is `pplvm.fit` without a guide: independent normals for all that is
# continuous, in unconstrained coordinates, and $k$ summed out. Because it sums $k$ out *given* the
# draw, while CAVI makes $q(k)$ independent of it, its bound can be the higher one, if its normals fit.

# %%
steps = 400 if SHORT else 1500
decay = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps)
svi = pplvm.fit(mixture, None, x, num_steps=steps, lr=0.05, scheduler=decay)
svi_draws = pplvm.align(svi.draws(num_draws=2000), {"mu": 0}, reference=cavi.draws())
svi_bound = float(svi.bound(num_repeats=100).sum(1).mean())
adam = ascents[0.1]


def error_of(mu):
    """RMS distance of K means from the true ones, in the best of all numberings."""
    mu = mu.detach()
    return min(
        float((mu[list(p)] - TRUE_MU).square().mean().sqrt()) for p in permutations(range(K))
    )


def sd_of(sd):
    right = nuts["mu"].flatten(0, 1).std(0)
    return f"{float((sd / right).log().mean().exp()):.2f}"


svi_mu = svi_draws["mu"].flatten(0, 1)
nuts_mu = nuts["mu"].flatten(0, 1)
point = "log p(x)"
answers = [
    ("EM", em.seconds, em.log_marginal[-1], point, em.model.mu, "—"),
    ("gradient (Adam)", adam.seconds, adam.history.bound[-1] * N, point, adam.model.mu, "—"),
    ("CAVI", cavi.seconds, cavi.elbo[-1], "bound", cavi.mean["mu"], sd_of(cavi.sd["mu"])),
    ("SVI", svi.seconds, svi_bound, "bound", svi_mu.mean(0), sd_of(svi_mu.std(0))),
    ("NUTS", nuts.seconds, math.nan, "—", nuts_mu.mean(0), sd_of(nuts_mu.std(0))),
]
print(f"{'':18}{'seconds':>8}{'nats':>10}  {'of which':10}{'error of means':>15}{'sd / NUTS':>11}")
for name, seconds, nats, what, mu, sd in answers:
    nats = "—" if math.isnan(nats) else f"{nats:.2f}"
    print(f"{name:18}{seconds:>8.2f}{nats:>10}  {what:10}{error_of(mu):>15.3f}{sd:>11}")

fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
names = [row[0] for row in answers]
axes[0].barh(names, [row[1] for row in answers], color="0.6")
axes[0].set(xlabel="seconds", title="What it takes")
right = nuts_mu.std(0).flatten()
for (name, sd), marker in zip(
    {"CAVI": cavi.sd["mu"], "SVI": svi_mu.std(0)}.items(), "so", strict=True
):
    axes[1].plot(range(2 * K), sd.flatten() / right, marker, label=name)
axes[1].axhline(1, color="k", lw=1, label="NUTS")
axes[1].set_xticks(range(2 * K), [rf"$\mu_{{{c + 1}{d + 1}}}$" for c in range(K) for d in range(2)])
axes[1].set(
    xlabel="mean of a component", ylabel="sd / sd of NUTS", title="What it knows of its error"
)
axes[1].legend(fontsize=8)
axes[0].invert_yaxis()
assert all(error_of(row[4]) < (0.8 if SHORT else 0.3) for row in answers)

# %% [markdown]
# The means are as good by every method: with so many data, the posterior is about where the
# likelihood is. The methods differ in what else they say, and in what they ask.
#
# | | gives | lacks | asks of the story |
# |---|---|---|---|
# | `conjugate` | everything | nothing | that it be conjugate |
# | `em` | a point; $p(k \mid x)$ at it | error bars, evidence | latents that can be listed |
# | `fit`, no priors | likewise, from minibatches too | likewise; a learning rate to find | gradients |
# | `cavi` | a distribution for all, a bound | correlations of factors | conditional conjugacy |
# | `fit`, priors | likewise, for almost any story | likewise; noise in the bound | gradients |
# | `nuts` | the posterior, with time | the evidence; its chains' numbering | gradients |
#
# So: **conjugate** where you can. **EM** for a quick maximum that needs no tuning. **CAVI** for
# error bars at the price of EM, and to choose among models; add importance sampling if the
# difference is a few nats. **Gradients** when the data are many, or a network is in the story. **NUTS**
# where the error bars are the result; or on a part of the data, to see how far the others are off.
#
# ## 5. Honest limits
#
# **Starts.** CAVI climbs, as EM does. It therefore starts several times, with states at random,
# and the better half of the runs goes on, until one is left. On data as clear as ours one start
# is enough; where components overlap it is not, and the spread of a few seeds tells:

# %%
tries = 1 if SHORT else 6
ends = {
    count: [mean_field(mixture, x, num_starts=count, seed=seed).elbo[-1] for seed in range(tries)]
    for count in (1, 5)
}
for count, found in ends.items():
    print(f"num_starts={count}: ELBO from {min(found):.2f} to {max(found):.2f} over {tries} seeds")
assert max(ends[5]) >= max(ends[1]) - 0.1

# %% [markdown]
# **The likelihood has no top.** Put one more component on a single datum and let its sd go to
# nothing: the density there grows without end. What EM finds is a top nearby, which is what one
# wants, and nothing but the start keeps it there. A prior on the scales, as CAVI's story has, takes
# the others away.

# %%
spike = GaussianMixture(2, K + 1).requires_grad_(False)
print(f"log p(x) at the top that EM found: {em.log_marginal[-1]:.1f}")
heights = []
for sd in (1e-1, 1e-3, 1e-6, 1e-12):
    here = torch.full((1, 2), math.log(sd))
    spike.mu.copy_(torch.cat([em.model.mu.detach(), x[:1]]))
    spike.log_s.copy_(torch.cat([em.model.log_s.detach(), here]))
    spike.log_pi.copy_(torch.cat([em.model.log_pi.detach().log_softmax(0), -torch.ones(1) * 5]))
    heights.append(float(pplvm.exact(spike, x).log_marginal.sum()))
    print(f"with a component of sd {sd:g} on one datum: {heights[-1]:.1f}")
assert heights[-1] > em.log_marginal[-1]

# %% [markdown]
# **Mean field is too sure of itself** where factors lean on each other: section 3 has the numbers.
# No longer run mends it, and the ELBO does not warn.
#
# **Not every story will do.** `cavi` tests at random points whether each latent is, given all else,
# of the form that it should be. A mixture whose means are conjugate but whose log-scales are Normal
# is refused, and the site is named:


# %%
def normal_scales(x):
    with pyro.plate("components", 2, dim=-1):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 3.0))
        log_s = pyro.sample("log_s", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
        return pyro.sample("x", dist.Normal(mu[k], log_s[k].exp()), obs=x)


try:
    pplvm.cavi(normal_scales, x[:, 0])
except ValueError as error:
    print(error)

# %% [markdown]
# ## What to take home
#
# - Conjugate answers cost nothing and bring the evidence: a sum of forecasts, made one after the
#   other.
# - EM's bound touches $\log p(x)$ and has its slope there; so gradient ascent is EM in small steps.
# - The missing information slows EM down, and is what mean field leaves out of its error bars.
# - The ELBO of CAVI is a bound on the evidence, for one numbering of the components: add
#   $\log (K!/e!)$ before you compare values of $K$.
# - Start more than once, and hold what matters against NUTS.
#
# ## Where next
#
# - Put a Gamma prior on $a$ and $b$ of the clinics. Is it still conjugate? What does `nuts` say of
#   $a + b$, where the evidence above had its top?
# - Replace the weights of the mixture by a chain: a hidden Markov model
#   (`pplvm.models.hmm.HMM`), to which `em` and `exact` apply as they are.
# - Where would the sds of section 3 go with a hundred times the data? Does $\lambda$ change?
#
# ## References
#
# - Dempster, Laird and Rubin, [Maximum likelihood from incomplete data via the EM
#   algorithm](https://doi.org/10.1111/j.2517-6161.1977.tb01600.x), 1977. Fisher's identity is in the
#   discussion of it, and goes back to Fisher, [Theory of statistical
#   estimation](https://doi.org/10.1017/S0305004100009580), 1925.
# - Louis, [Finding the observed information matrix when using the EM
#   algorithm](https://doi.org/10.1111/j.2517-6161.1982.tb01203.x), 1982: the missing information.
# - Neal and Hinton, [A view of the EM algorithm that justifies incremental, sparse, and other
#   variants](https://doi.org/10.1007/978-94-011-5014-9_12), 1998: EM as ascent of one bound.
# - Beal, [Variational algorithms for approximate Bayesian
#   inference](https://cse.buffalo.edu/faculty/mbeal/thesis/), 2003.
# - Bishop, [Pattern Recognition and Machine
#   Learning](https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/),
#   2006: EM in chapter 9, CAVI for this very mixture in 10.2.
# - Gelman and others, [Bayesian Data Analysis](http://www.stat.columbia.edu/~gelman/book/), 3rd ed.,
#   2013: conjugacy in chapters 2 and 3, mixtures in 22.
