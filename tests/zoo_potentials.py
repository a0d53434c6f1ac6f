"""Stories for the potential: every kind of support, of plate, and of discrete latent.

Each is a row of ``CONTINUOUS`` or ``DISCRETE``: a model and its data.
"""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from zoo import masked, mixed, nested, regression, schools

Y = torch.tensor([0.4, -1.1, 0.7, 2.0], dtype=torch.float64)
SEEN = torch.tensor([True, False, True, True])
LENGTHS = torch.tensor([3, 1, 2])
SERIES = torch.tensor([[0.3, -0.9, 1.4], [1.0, 0.2, -0.5], [-1.2, 0.8, 0.1]], dtype=torch.float64)


class Row(NamedTuple):
    model: callable
    data: tuple[Tensor, ...] = (Y,)
    masked: int = 0  # how many binary latents are masked: Pyro counts both states of each


# ---- continuous latents ----


def dirichlet(y):
    with pyro.plate("data", len(y), dim=-1):
        w = pyro.sample("w", dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0])))
        pyro.sample("y", dist.Normal(w @ torch.tensor([-1.0, 0.0, 1.0]), 0.5), obs=y)


def lkj(y):
    L = pyro.sample("L", dist.LKJCholesky(3, 2.0))
    scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(3)).to_event(1))
    tril = scale[:, None] * L
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=tril), obs=y[:3])


def correlation(y):
    R = pyro.sample("R", dist.LKJ(3, 2.0))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), R), obs=y[:3])


def positive(y):
    rate = pyro.sample("rate", dist.Gamma(torch.tensor([1.0, 2.0, 3.0]), 1.5).to_event(1))
    spread = pyro.sample("spread", dist.InverseGamma(3.0, 1.0))
    with pyro.plate("data", len(y), dim=-1):
        z = pyro.sample("z", dist.LogNormal(rate.sum(-1).log(), spread))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def intervals(y):
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([2.0, 5.0])
    box = pyro.sample("box", dist.Uniform(low, high).to_event(1))
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(y), dim=-1):
        a = pyro.sample("a", dist.Uniform(-1.0, torch.arange(1.0, 5.0)))
        pyro.sample("y", dist.Normal(a * p + box.sum(-1), 1.0), obs=y)


def ordered(y):
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    cuts = dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()])
    cuts = pyro.sample("cuts", cuts)
    below = torch.cat([torch.zeros(1), cuts.sigmoid(), torch.ones(1)])
    with pyro.plate("data", len(y), dim=-1):
        pyro.sample("y", dist.Categorical(below.diff()), obs=torch.arange(4))


def improper(y):
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), (2,)))
    with pyro.plate("data", len(y), dim=-1):
        pyro.sample("y", dist.Normal(mu, s.sum(-1)), obs=y)


def crossed(y):
    rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))  # (3, 1, 2)
    with columns:
        b = pyro.sample("b", dist.HalfNormal(1.0))  # (2,)
    with rows, columns:
        c = pyro.sample("c", dist.Normal(a.sum(-1), b))
        pyro.sample("y", dist.Normal(c, 1.0), obs=y[:2])


def scaled(y):
    with pyro.plate("data", len(y), dim=-1), pyro.poutine.scale(scale=0.3):
        z = pyro.sample("z", dist.Exponential(1.0))
        with pyro.poutine.mask(mask=SEEN):
            w = pyro.sample("w", dist.Exponential(2.0))
            pyro.sample("y", dist.Normal(z - w, 1.0), obs=y)


def trimmings(y):
    """Factors, deterministic sites, data missing in part, reparameterised sites, a point mass."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.poutine.reparam(config={"theta": LocScaleReparam(0.0), "s": TransformReparam()}):
        theta = pyro.sample("theta", dist.Normal(mu, 0.5))
        base = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.ExpTransform()])
        s = pyro.deterministic("twice", 2 * pyro.sample("s", base))
    point = pyro.sample("point", dist.Delta(mu))
    pyro.factor("penalty", -mu * point * theta)
    with pyro.plate("data", len(y), dim=-1):
        y = pyro.sample("y", dist.Normal(theta, s), obs=y, obs_mask=SEEN)
        pyro.deterministic("squares", y**2)


def loops(y):
    """A loop over a plate, and dims that no plate declares."""
    w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0))
    for n in pyro.plate("loop", 4):
        z = pyro.sample(f"z{n}", dist.Normal(w[n], 1.0))
        pyro.sample(f"y{n}", dist.Normal(z, 1.0), obs=y[n])
    pyro.sample("all", dist.Normal(w, 1.0), obs=y)


class Network(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))

    def forward(self, y):
        loc = self.linear(y[:, None] ** Y[:2])[:, 0]
        with pyro.plate("data", len(y), dim=-1):
            return pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def network():
    with pyro.validation_enabled(True):  # its prior checks values from then on
        return Row(Network(), (Y.abs(),))


def of_zoo(story):
    def build():
        row = story()
        return Row(row.model, row.data)

    return build


CONTINUOUS = {s.__name__: of_zoo(s) for s in (schools, regression, mixed, nested, masked)}
CONTINUOUS |= {
    m.__name__: lambda m=m: Row(m)
    for m in (dirichlet, lkj, correlation, positive, intervals, ordered, crossed, scaled, loops)
}
CONTINUOUS["network"] = network
UNCOMPARED = {"improper": lambda: Row(improper), "trimmings": lambda: Row(trimmings)}


# ---- discrete latents ----


def mixture(y):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3, dim=-1):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y), dim=-1):
        k = pyro.sample("k", dist.Categorical(w))
        pyro.sample("y", dist.Normal(loc[k], 0.7), obs=y)


def dependent(y):
    """Two discrete latents of a datum, and a continuous one below them."""
    r = pyro.sample("r", dist.Beta(1.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        b = pyro.sample("b", dist.Bernoulli(r[k]), infer={"enumerate": "sequential"})
        z = pyro.sample("z", dist.Normal(k + 2 * b, 2.0))
        pyro.sample("y", dist.Normal(z - b, 2.0), obs=y)


def shared(y):
    """A discrete latent that all data share, one of each datum, and one of nothing at all."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    c = pyro.sample("c", dist.Categorical(torch.tensor([0.1, 0.6, 0.3])))
    pyro.sample("idle", dist.Bernoulli(0.3))
    with pyro.plate("data", len(y), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.2 + 0.2 * c))
        pyro.sample("y", dist.Normal(mu * k + c, 1.0), obs=y)


def parts(y):  # (N, M)
    """A discrete latent of each datum, above one of each of its parts."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("parts", y.shape[1], dim=-2):
            j = pyro.sample("j", dist.Bernoulli(0.2 + 0.5 * k))
            s = pyro.sample("s", dist.HalfNormal(1.0))
            loc = mu[0] * k + mu[1] * j
            pyro.sample("y", dist.Normal(loc, 1.0 + s), obs=y.T)


def half_seen(y):
    """A mask on the data, and a scale on all that is in their plate."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), dim=-1), pyro.poutine.scale(scale=0.4):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.poutine.mask(mask=SEEN):
            pyro.sample("y", dist.Normal(mu * k, 1.0), obs=y)


def hidden_markov(y):
    A = pyro.sample("A", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    z = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z{t}", dist.Categorical(A[z]))
        pyro.sample(f"y{t}", dist.Normal(loc[z], 1.5), obs=y[t])


def ragged(y, lengths):  # (N, T)
    A = pyro.sample("A", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y), dim=-1):
        z = 0
        for t in pyro.markov(range(y.shape[1])):
            with pyro.poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z{t}", dist.Categorical(A[z]))
                pyro.sample(f"y{t}", dist.Normal(loc[z], 1.5), obs=y[:, t])


def second_order(y):
    """A memory of two steps, and a second chain that drives the first."""
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    z = w = previous = torch.tensor(0.0)
    for t in pyro.markov(range(len(y)), history=2):
        w = pyro.sample(f"w{t}", dist.Bernoulli(0.2 + 0.5 * w))
        z, previous = pyro.sample(f"z{t}", dist.Bernoulli(p * (1 + z + previous + w) / 4)), z
        pyro.sample(f"y{t}", dist.Normal(z - w, 0.6), obs=y[t])


def labelled(y):
    """A mixture of which some labels are known, and a mask on a distribution."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.3), obs=torch.ones(4), obs_mask=SEEN)
        j = pyro.sample("j", dist.Bernoulli(0.6).mask(SEEN))
        pyro.sample("y", dist.Normal(mu * k - j, 1.0), obs=y)


def cycle(y):
    """Discrete latents in a ring, with dims that no plate declares and a lone state."""
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    a = pyro.sample("a", dist.Bernoulli(p))
    b = pyro.sample("b", dist.Binomial(2, 0.3 + 0.4 * a))
    c = pyro.sample("c", dist.Bernoulli(0.1 + 0.4 * b))
    d = pyro.sample("d", dist.OneHotCategorical(torch.stack([c + 1.0, 2.0 - c], -1)))
    one = pyro.sample("one", dist.Categorical(torch.ones(1)))
    pyro.sample("y", dist.Normal((d[..., 0] + a) * p + one, 1.0), obs=y[:2])


def lonely(y):
    """Plates of one row, and one state in a plate."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 1, dim=-1), pyro.plate("parts", 3, dim=-2):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        one = pyro.sample("one", dist.Categorical(torch.ones(1)))
        pyro.sample("y", dist.Normal(mu * k + one, 1.0), obs=y[:3, None])


DISCRETE = {
    m.__name__: lambda m=m: Row(m)
    for m in (mixture, shared, half_seen, hidden_markov, second_order, cycle, lonely)
} | {
    "dependent": lambda: Row(dependent, (Y[:3],)),
    "parts": lambda: Row(parts, (Y.reshape(2, 2),)),
    "labelled": lambda: Row(labelled, masked=4),
    "ragged": lambda: Row(ragged, (SERIES, LENGTHS), masked=3),
}
STORIES = CONTINUOUS | UNCOMPARED | DISCRETE
