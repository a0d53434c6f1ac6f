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
# # Discrete latents that cannot be enumerated
#
# A layer of two hundred binary units has $2^{200}$ states. There is no sum to take, and no path to
# differentiate along: move the logit of a unit a little, and its draw stays what it was, or jumps.
# This notebook is about what is left, in the order in which it was found:
#
# 1. one bit: why the naive gradient is zero, and what the score function does about it;
# 2. baselines, one after the other, and the noise that each takes away;
# 3. wake-sleep, NVIL, reweighted wake-sleep and VIMCO on images;
# 4. relaxations: little noise, of something else;
# 5. control variates and mirrored pairs: little noise, and right;
# 6. all of them side by side, and which to take.
#
# The model is always the sigmoid belief network (Neal, 1992), with the guide of Mnih and Gregor
# (2014): the same layers the other way up.

# %%
import os
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO
from torch import nn

import pplvm
from pplvm.datasets import binary_digits
from pplvm.guides.sigmoid_belief_network import SigmoidBeliefNetworkGuide
from pplvm.models.sigmoid_belief_network import SigmoidBeliefNetwork
from pplvm.objectives import (
    NVIL,
    REBAR,
    RELAX,
    arm,
    concrete,
    disarm,
    muprop,
    reweighted_wake_sleep,
    score_function,
    straight_through,
    vimco,
    wake_sleep,
)

SHORT = bool(os.environ.get("PPLVM_SHORT"))  # a rehearsal: the same steps on less of everything
torch.manual_seed(0)

# %% [markdown]
# ## 1. One bit
#
# A latent bit $z \sim \mathrm{Bern}(\sigma(r))$ and an observation $x \sim \mathcal N(2z, 1)$, seen at
# $x = 1.4$. The guide has one number, the logit $\alpha$ of $q(z = 1)$. With two states, the ELBO and
# its slope can be written down, so we know what a gradient estimator should return on average.


# %%
def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(logits=torch.tensor(-0.5)))
        return pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)


class OneLogit(nn.Module):
    def __init__(self, alpha):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.alpha))


x = torch.tensor([1.4])
listed = partial(score_function, rao_blackwell=True)  # the sum over both states: no draws at all


def elbo_and_slope(alpha):
    guide = OneLogit(alpha)
    estimate = listed(model, guide, x)
    (slope,) = torch.autograd.grad(-estimate.loss, guide.alpha)
    return estimate.bound.item(), slope.item()


grid = torch.linspace(-3, 3, 61)
curve = [elbo_and_slope(a)[0] for a in grid]
value, slope = elbo_and_slope(-1.0)
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(grid, curve, label="ELBO, exact")
near = torch.linspace(-1.8, -0.2, 2)
ax.plot(near, value + slope * (near + 1), label=f"slope at α = -1: {slope:.3f}")
ax.set_xlabel("α, the logit of q(z = 1)")
ax.set_ylabel("nats")
ax.legend()
plt.show()

# %% [markdown]
# Now pretend that we cannot list the states. Draw $z$, put it into $\log p(x, z) - \log q(z)$, and let
# automatic differentiation do the rest? It sees a constant: a draw of a Bernoulli is not a function of
# its logit. What it finds is only the explicit part, $-\nabla_\alpha \log q(z)$, whose mean is zero.
# Pyro's importance-weighted bound leaves out even that, without a word:

# %%
guide = OneLogit(-1.0)
pyro.clear_param_store()
renyi = RenyiELBO(alpha=0.0, num_particles=20, vectorize_particles=True, max_plate_nesting=1)
naive = []
for _ in range(100 if SHORT else 400):
    guide.zero_grad()
    renyi.loss_and_grads(model, lambda x: pyro.module("guide", guide)(x), x)
    naive.append(0.0 if guide.alpha.grad is None else -guide.alpha.grad.item())
naive = torch.tensor(naive)
print(f"RenyiELBO(alpha=0), mean of {len(naive)} gradients: {naive.mean():.4f} ± "
      f"{naive.std() / len(naive) ** 0.5:.4f}")  # fmt: skip

# %% [markdown]
# pplvm refuses: `elbo` and `iwae` name the site that has no pathwise gradient, and what would serve.
#
# The way out is the oldest trick of the trade (Williams, 1992). The derivative of an expectation is an
# expectation after all, of the integrand times the *score*:
#
# $$ \nabla_\alpha \mathbb E_q f(z) = \mathbb E_q \big[f(z)\, \nabla_\alpha \log q(z)\big]. $$
#
# It needs nothing of $f$ but its value. And it is right, on average. The histogram shows single
# gradients. pplvm takes the divergence of guide from prior in closed form, so that only the likelihood
# is left to be scored.


# %%
def gradients(objective, model, guide, x, num_draws):
    """Draws of the whole gradient in the guide's parameters, (S, J)."""
    parameters = list(guide.parameters())
    rows = []
    for _ in range(num_draws):
        loss = objective(model, guide, x).loss
        grads = torch.autograd.grad(-loss, parameters)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


S = 300 if SHORT else 2000
single = gradients(score_function, model, guide, x, S)[:, 0]
eight = gradients(partial(score_function, num_particles=8), model, guide, x, S)[:, 0]
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
bins = torch.linspace(-1.2, 0.8, 41)
ax.hist(single, bins=bins, alpha=0.6, label=f"one draw: {single.mean():.3f} on average")
ax.hist(eight, bins=bins, alpha=0.6, label=f"eight draws: {eight.mean():.3f}")
ax.axvline(slope, color="k", linewidth=1, label=f"exact: {slope:.3f}")
ax.set_xlabel("gradient in α")
ax.set_ylabel("how often")
ax.legend()
plt.show()

# %% [markdown]
# ## 2. Baselines
#
# With many units it gets worse: $f$ is a sum over the whole image, some hundreds of nats, and every
# unit's score is multiplied by all of it. But $\mathbb E\, b\, \nabla \log q = 0$ for any $b$ that does
# not look at the draw. So anything that can be *predicted* of $f$ may be subtracted. The complete NVIL
# stacks four ideas:
#
# - **local signals**: a layer is charged only with the terms that depend on it;
# - **centring**: subtract a moving average of the signal;
# - **input-dependent baselines**: subtract what a small network predicts from the image;
# - **variance normalisation**: divide by a moving standard deviation, if that exceeds one.
#
# The last one changes the length of the gradient and not its direction; the noise below is measured
# relative to the gradient's own size, so that it gains nothing from it. The data are scikit-learn's
# digits, binary, 8 by 8.

# %%
digits = binary_digits()
digits = digits[torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))]
train, test = digits[:1500], digits[1500:]
L = 30
batch = train[:100]


def network(seed=0):
    torch.manual_seed(seed)
    mean = train.mean(0)
    shape = tuple(train.shape[1:])
    return (
        SigmoidBeliefNetwork(shape, (L,), mean=mean),
        SigmoidBeliefNetworkGuide(shape, (L,), mean=mean),
    )


fit = partial(pplvm.fit, batch_size=100, lr=0.003, progress=False)
steps = 60 if SHORT else 1500
halfway = fit(*network(), train, objective=NVIL(), num_steps=steps)

ladder = {
    "score function": score_function,
    "+ moving average": NVIL("moving_average", normalise=False),
    "+ network": NVIL(normalise=False),
    "leave one out, P = 4": partial(score_function, num_particles=4, baseline="leave_one_out"),
}
report = pplvm.gradient_report(
    halfway.model, halfway.guide, batch, objectives=ladder,
    num_draws=20 if SHORT else 200, num_training=20 if SHORT else 400, lr=0.003,
)  # fmt: skip
noise = dict.fromkeys(ladder, 0.0)
for row in report.rows:
    if row.group.startswith("guide."):
        noise[row.objective] += row.variance
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ax.barh(list(noise), list(noise.values()))
ax.invert_yaxis()
ax.set_xscale("log")
ax.set_xlabel("variance of one gradient, summed over the guide")
plt.show()

# %% [markdown]
# Leave-one-out (Kool et al., 2019) needs no network and no memory: it draws a few times and takes for
# each draw the mean of the others as its baseline. It costs as many passes through the model as draws,
# and its four draws are averaged besides.
#
# What is local can be seen in a network of two layers. The second one is not seen by the image at all:
# given $z_1$, the likelihood does not depend on $z_2$, and pplvm finds that out by following the tensors
# of one run. It is told here only so that you believe it:

# %%
deep = SigmoidBeliefNetwork((8, 8), (20, 10)), SigmoidBeliefNetworkGuide((8, 8), (20, 10))
pplvm.explain(*deep, batch, objective=NVIL())

# %% [markdown]
# ## 3. Learning: four families
#
# **Wake-sleep** (Hinton et al., 1995) gives up on the gradient of the ELBO in the guide. Awake, the
# model learns from what the guide makes of the data; asleep, the guide learns from dreams, whose
# latents are known. No score function, little noise, but it is not the same quantity that both climb.
# **Reweighted wake-sleep** (Bornschein & Bengio, 2015) uses several draws with importance weights: the
# model climbs the importance-weighted bound, the guide the divergence the other way round. **VIMCO**
# (Mnih & Rezende, 2016) climbs that bound in both, each draw with the others as its baseline. **NVIL**
# climbs the ELBO.

# %%
families = {
    "wake-sleep": wake_sleep,
    "NVIL": NVIL(),
    "RWS, P = 5": partial(reweighted_wake_sleep, num_particles=5),
    "VIMCO, P = 5": partial(vimco, num_particles=5),
    "DisARM": disarm,
}
num_steps = 90 if SHORT else 4500
fits = {
    name: fit(*network(), train, objective=objective, num_steps=num_steps)
    for name, objective in families.items()
}
few = test[:60] if SHORT else test
for name, done in fits.items():
    held_out = done.log_marginal(few, num_particles=100).value.mean()
    print(f"{name:14s} log p(x) of test images ≥ {held_out:.2f} nats, {done.seconds:5.1f} s")

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
width = 15
for name, done in fits.items():
    bound = torch.tensor(done.history.bound)
    smooth = bound[: len(bound) // width * width].reshape(-1, width).mean(1)
    ax.plot(torch.arange(len(smooth)) * width, smooth, label=name, linewidth=1)
ax.set_ylim(-26, -18)
ax.set_xlabel("step")
ax.set_ylabel("each one's own bound, training")
ax.legend()
plt.show()

# %% [markdown]
# The bounds in the picture are each objective's own: those of five draws lie higher because they are
# tighter, not because the model is better. The printed figures are alike for all: the bound of 100
# draws on images that nobody has trained on.
#
# A model that has learned something dreams of digits:

# %%
best = max(fits, key=lambda name: fits[name].log_marginal(few, num_particles=50).value.mean())
pyro.set_rng_seed(0)
with torch.no_grad(), pyro.poutine.uncondition():
    dreams = fits[best].model(test[:16])
fig, axes = plt.subplots(2, 8, figsize=(6.5, 1.9), layout="constrained")
for ax, image in zip(axes.flat, dreams, strict=True):
    ax.imshow(image.numpy(), cmap="gray_r")
    ax.set_xticks([])
    ax.set_yticks([])
fig.suptitle(f"dreams of the network learned by {best}", fontsize=9)
plt.show()

# %% [markdown]
# ## 4. Relaxations
#
# Replace the step in $z = [\alpha + \epsilon > 0]$, with logistic noise $\epsilon$, by a sigmoid of
# temperature $\lambda$, and there is a path again (Maddison et al., 2017; Jang et al., 2017). The draws
# are no bits any more, and it is another function whose gradient one follows: the warmer, the further
# from the ELBO; the colder, the noisier. The straight-through gradient keeps the bits going forward
# and differentiates as if they were their means: the gradient of no function at all, cheap, and often
# good enough. Below on a network so small that its states can be listed and the bias measured.

# %%
tiny_data = torch.bernoulli(torch.full((6, 3, 2), 0.5), generator=torch.Generator().manual_seed(1))
torch.manual_seed(2)
tiny = SigmoidBeliefNetwork((3, 2), (4,)), SigmoidBeliefNetworkGuide((3, 2), (4,))
with torch.no_grad():
    for p in (*tiny[0].parameters(), *tiny[1].parameters()):
        p.mul_(3.0).add_(0.3 * torch.randn_like(p))
temperatures = [0.1, 0.2, 0.5, 1.0, 2.0]
objectives = {f"{t}": partial(concrete, temperature=t) for t in temperatures}
objectives["straight-through"] = straight_through
soft = pplvm.gradient_report(*tiny, tiny_data, objectives=objectives,
                             num_draws=40 if SHORT else 800)  # fmt: skip
weight = "guide.layers.0.weight"
rows = {row.objective: row for row in soft.rows if row.group == weight}
fig, axes = plt.subplots(1, 2, figsize=(6.5, 3), layout="constrained")
for ax, what in zip(axes, ("bias", "variance"), strict=True):
    ax.plot(
        temperatures, [getattr(rows[f"{t}"], what) for t in temperatures], "o-", label="concrete"
    )
    ax.axhline(getattr(rows["straight-through"], what), color="C1", label="straight-through")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("temperature")
    ax.set_ylabel(what)
axes[0].legend()
plt.show()

# %% [markdown]
# ## 5. Less noise, and still right
#
# Some estimators take the cheap gradient as a *control variate*: they subtract it where it is noisy and
# add its mean back, which is known by a path. **MuProp** (Gu et al., 2016) expands $f$ around the mean
# of the units. **REBAR** (Tucker et al., 2017) takes $f$ of the relaxed units, twice, the second time
# given the bits; its temperature is trained to minimise the noise. **RELAX** (Grathwohl et al., 2018)
# adds a network to that. **ARM** and **DisARM** (Yin & Zhou, 2019; Dong et al., 2020) need no gradient
# of $f$: they draw bits and their mirror image from the same uniform numbers, and look at the
# difference.

# %%
contenders = {
    "score function": score_function,
    "NVIL": NVIL(normalise=False),
    "MuProp": muprop,
    "REBAR": REBAR(),
    "RELAX": RELAX(),
    "ARM": arm,
    "DisARM": disarm,
}
tiny_report = pplvm.gradient_report(*tiny, tiny_data, objectives=contenders,
                                    num_draws=40 if SHORT else 600,
                                    num_training=20 if SHORT else 300)  # fmt: skip
print(tiny_report)

# %% [markdown]
# The column "noise" is the largest deviation of the mean gradient from the exact one, in standard
# errors: around 2 or 3 for all of them, as it should be for what is unbiased. Their variances differ by
# orders of magnitude, and so do their times. Now the same at the parameters learned from the digits,
# where nothing can be listed:

# %%
big = pplvm.gradient_report(halfway.model, halfway.guide, batch, objectives=contenders,
                            num_draws=20 if SHORT else 150,
                            num_training=20 if SHORT else 400, lr=0.003)  # fmt: skip
fig, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
total = {name: sum(r.variance for r in big.rows if r.objective == name
                   and r.group.startswith("guide.")) for name in contenders}  # fmt: skip
ax.barh(list(total), [total["score function"] / v for v in total.values()])
ax.invert_yaxis()
ax.set_xscale("log")
ax.set_xlabel("times less variance in the guide than the score function alone")
plt.show()

# %% [markdown]
# Noise is not all: time matters too. Every dot of the left picture is one estimator; on the right, the
# signal to noise ratio in each parameter.

# %%
big.plot()

# %% [markdown]
# ## 6. Which to take
#
# | if … | take |
# |---|---|
# | the states are few | `rao_blackwell=True`, or leave the latent out of the guide: it is summed out |
# | units are binary, and the model is not too dear to run twice | `disarm`, no options, no training |
# | several draws fit into memory | `score_function(baseline="leave_one_out")`, any discrete latent |
# | the bound matters more than the guide | `vimco` |
# | one pass through the model is all there is time for | `NVIL` |
# | the model takes numbers between 0 and 1, and noise is what holds learning up | `REBAR`, `RELAX` |
# | the guide is to cover all modes, or to learn from dreams | `reweighted_wake_sleep`, `wake_sleep` |
# | a little bias does not matter | `straight_through`, `concrete` |
#
# And look before you choose: `pplvm.gradient_report` tells what each of them costs at *your* story.
