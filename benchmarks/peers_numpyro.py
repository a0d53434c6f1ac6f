r"""The same stories in NumPyro: of posteriordb for NUTS, and of ``stories.py`` for SVI.

They have the parametrisations of ``tests/posteriordb.py``, the whitened coefficients of the
regressions and the product of matrices of the hidden chain among them, so that samplers and
gradients are compared and nothing else. SVI's parameters have the names that they have in PyTorch,
as ``mean.weight``. ``check_peers.py`` holds all of them against Pyro's densities and bounds.

Shapes: N data, D coefficients or features, K components or states, T steps, L latent dimensions.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp
from numpyro import deterministic, param, sample

# ---- posteriordb: data, as float64 arrays -> model of the same data ----


def eight_schools(y: Array, sigma: Array) -> None:
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("data", len(y)):
        z = sample("z", dist.Normal(0.0, 1.0))
        theta = deterministic("theta", mu + tau * z)
        sample("y", dist.Normal(theta, sigma), obs=y)


def mixture(y: Array) -> None:
    total = sample("total", dist.Normal(0.0, 2.0))
    gap = sample("gap", dist.HalfNormal(2.0))
    mu = deterministic("mu", jnp.stack((total - gap, total + gap)) / 2**0.5)  # (K,)
    sigma = sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))  # (K,)
    theta = sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack((theta, 1.0 - theta)))
    with numpyro.plate("data", len(y)):
        sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def markov(y: Array) -> None:
    low = sample("low", dist.FoldedDistribution(dist.Normal(3.0, 1.0)))
    gap = sample("gap", dist.FoldedDistribution(dist.Normal(10.0 - low, 1.0)))
    mu = deterministic("mu", jnp.stack((low, low + gap)))  # (K,)
    theta = sample("theta", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))  # (K, K)
    log_lik = dist.Normal(mu, 1.0).log_prob(y[:, None])  # (T, K)
    moves = jnp.log(theta) + log_lik[1:, None, :]  # (T - 1, K, K)
    while len(moves) > 1:
        pairs, odd = jnp.split(moves, (len(moves) // 2 * 2,))
        product = logsumexp(pairs[::2, :, :, None] + pairs[1::2, None, :, :], axis=-2)
        moves = jnp.concatenate((product, odd))
    numpyro.factor("y", logsumexp(log_lik[0, :, None] + moves[0]))


def linear(X: np.ndarray, y: np.ndarray, noise: dist.Distribution, scale: float = 1e6) -> Callable:
    """Returns the regression whose coefficients are whitened by these data."""
    R = np.linalg.qr(X).R
    centre = np.linalg.lstsq(X, y)[0]
    A = (y - X @ centre).std(ddof=1) * np.linalg.inv(R)
    prior = dist.MultivariateNormal(
        -np.linalg.solve(A, centre), precision_matrix=A.T @ A / scale**2
    )

    def model(X: Array, y: Array) -> None:
        w = sample("w", prior)  # (D,)
        beta = deterministic("beta", centre + A @ w)  # (D,)
        sigma = sample("sigma", noise)
        with numpyro.plate("data", len(X)):
            sample("y", dist.Normal(X @ beta, sigma), obs=y)

    return model


def twin(name: str, *data: np.ndarray) -> Callable:
    """Returns the model of one of posteriordb's names, given the data of ``tests/posteriordb.py``."""
    regressions = {
        "kidiq-kidscore_interaction": partial(linear, noise=dist.HalfCauchy(2.5)),
        "earnings-logearn_height": partial(linear, noise=dist.HalfNormal(1e3)),
        "arK-arK": partial(linear, noise=dist.HalfCauchy(2.5), scale=10.0),
        "sblri-blr": partial(linear, noise=dist.HalfNormal(10.0), scale=10.0),
    }
    if name in regressions:
        return regressions[name](*data)
    return {
        "eight_schools-eight_schools_noncentered": eight_schools,
        "low_dim_gauss_mix-low_dim_gauss_mix": mixture,
        "hmm_example-hmm_example": markov,
    }[name]


# ---- stories.py ----


def schools(y: Array, sigma: Array) -> None:
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        z = sample("z", dist.Normal(0.0, 1.0))
        sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def schools_guide(y: Array, sigma: Array) -> None:
    m, s = param("m", jnp.zeros(2)), param("s", jnp.zeros(2))
    mz, sz = param("mz", jnp.zeros(8)), param("sz", jnp.zeros(8))
    sample("mu", dist.Normal(m[0], jnp.exp(s[0])))
    sample("tau", dist.LogNormal(m[1], jnp.exp(s[1])))
    with numpyro.plate("school", len(y)):
        sample("z", dist.Normal(mz, jnp.exp(sz)))


def regression(X: Array, y: Array) -> None:
    w = sample("w", dist.Normal(jnp.zeros(X.shape[1]), 1.0).to_event(1))  # (D,)
    sigma = sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("data", len(X)):
        sample("y", dist.Normal(X @ w, sigma), obs=y)


def regression_guide(X: Array, y: Array) -> None:
    m, s = param("m", jnp.zeros(X.shape[1])), param("s", jnp.zeros(X.shape[1]))
    m_sigma, s_sigma = param("m_sigma", jnp.zeros(())), param("s_sigma", jnp.zeros(()))
    sample("w", dist.Normal(m, jnp.exp(s)).to_event(1))
    sample("sigma", dist.LogNormal(m_sigma, jnp.exp(s_sigma)))


def random(*shape: int, scale: float = 0.1) -> Callable[[Array], Array]:
    """Returns how to begin with a parameter."""
    return lambda key: scale * jax.random.normal(key, shape)


def factor_analysis(x: Array) -> None:
    W = param("W", random(x.shape[1], 10))  # (D, L)
    mu, log_psi = param("mu", jnp.zeros(x.shape[1])), param("log_psi", jnp.zeros(x.shape[1]))
    with numpyro.plate("data", len(x)):
        z = sample("z", dist.Normal(jnp.zeros(10), 1.0).to_event(1))  # (N, L)
        sample("x", dist.Normal(z @ W.T + mu, jnp.exp(0.5 * log_psi)).to_event(1), obs=x)


def linear_gaussian(x: Array) -> None:
    A, b = param("mean.weight", random(10, x.shape[1])), param("mean.bias", jnp.zeros(10))
    L = param("L", jnp.zeros((10, 10)))
    scale = jnp.tril(L, -1) + jnp.diag(jnp.exp(jnp.diag(L)))
    with numpyro.plate("data", len(x)):
        sample("z", dist.MultivariateNormal(x @ A.T + b, scale_tril=scale))


def layers(name: str, x: Array, *sizes: int) -> Array:
    """Applies two linear layers, which PyTorch's ``nn.Sequential`` would name so."""
    first, last = name.split()
    h = jax.nn.relu(x @ param(f"{first}.weight", random(sizes[1], sizes[0])).T
                    + param(f"{first}.bias", jnp.zeros(sizes[1])))  # fmt: skip
    return h @ param(f"{last}.weight", random(sizes[2], sizes[1])).T + param(
        f"{last}.bias", jnp.zeros(sizes[2])
    )


def vae(x: Array) -> None:
    with numpyro.plate("data", len(x)):
        z = sample("z", dist.Normal(jnp.zeros(20), 1.0).to_event(1))  # (N, L)
        logits = layers("decoder.0 decoder.2", z, 20, 400, 784).reshape(x.shape)
        sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)


def vae_guide(x: Array) -> None:
    out = layers("encoder.1 encoder.3", x.reshape(len(x), -1), 784, 400, 40)
    m, log_s = jnp.split(out, 2, axis=-1)  # (N, L) each
    with numpyro.plate("data", len(x)):
        sample("z", dist.Normal(m, jnp.exp(log_s)).to_event(1))


STORIES: dict[str, tuple[Callable, Callable]] = {  # model and guide
    "eight schools": (schools, schools_guide),
    "regression, 1000 × 10": (regression, regression_guide),
    "factor analysis, 1797 × 61": (factor_analysis, linear_gaussian),
    "VAE 784-400-20, 128 images": (vae, vae_guide),
}
