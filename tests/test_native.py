"""Potentials as graphs, compiled, batched and as C functions, against the story itself."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from zoo import NO_PLATE, PER_DATUM, SHARED

from pplvm.contract import bind
from pplvm.potentials import Potential


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("parts", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        return pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)


def correlated(x):
    scale = pyro.sample("scale", dist.HalfCauchy(1.0).expand([3]).to_event(1))
    L = pyro.sample("L", dist.LKJCholesky(3, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        mvn = dist.MultivariateNormal(torch.zeros(3), scale_tril=scale[:, None] * L)
        return pyro.sample("x", mvn, obs=x)


def story(name: str):
    if name == "mixture":
        return mixture, (torch.tensor([-2.0, 0.1, 0.4, 3.0, 2.5]),)
    if name == "correlated":
        return correlated, (torch.randn(5, 3),)
    found = (PER_DATUM | SHARED | NO_PLATE)[name]()
    return bind(found.model, None, *found.data)[0], found.data


NAMES = [*PER_DATUM, *SHARED, *NO_PLATE, "mixture", "correlated"]
LIBRARY = ["vae"]  # whose products of matrices are too large to be kernels
FEW = ["schools", "mixture", "correlated", "factor_analysis"]  # which take seconds to compile
COMPILED = [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]


def points(potential: Potential, num: int) -> torch.Tensor:
    return torch.randn(num, potential.dim)


@pytest.mark.parametrize("name", NAMES)
def test_the_traced_potential_is_the_storys(name):
    model, data = story(name)
    potential = Potential(model, *data, mode="graph")
    rows = potential.rows(5)
    x = points(potential, 5)
    values, gradients = rows(x)
    assert potential.choice == "graph: as asked"
    for row, value, gradient in zip(x, values, gradients, strict=True):
        want, slope = potential.eager(row)
        for got in (value, potential.single(row)[0]):
            assert torch.allclose(got, want, rtol=1e-10)
        for got in (gradient, potential.single(row)[1]):
            assert torch.allclose(got, slope, rtol=1e-10, atol=1e-10 * slope.abs().max().item())


@pytest.mark.parametrize("name", COMPILED)
def test_the_c_function_is_the_storys(name):
    model, data = story(name)
    potential = Potential(model, *data, mode="inductor")
    assert (potential.native is None) == (name in LIBRARY)
    alone = [f for f in (potential.native, potential.single) if f is not None]
    rows = potential.rows(5)
    x = points(potential, 5)
    values, gradients = rows(x)
    for row, value, gradient in zip(x, values, gradients, strict=True):
        want, slope = potential.eager(row)
        near = {"rtol": 1e-10, "atol": 1e-10 * slope.abs().max().item()}
        for found in (*(function(row) for function in alone), (value, gradient)):
            assert torch.allclose(found[0], want, rtol=1e-10)
            assert torch.allclose(found[1], slope, **near)


def test_a_c_function_reads_no_memory_that_is_gone():
    """Made, and everything around it collected, before it is called."""
    import gc

    model, data = story("mixture")
    potential = Potential(model, *data, mode="inductor")
    native, eager = potential.native, potential.eager
    x = points(potential, 1)[0]
    want = eager(x)
    del potential, model, data
    gc.collect()
    _ = [torch.randn(1000) for _ in range(100)]
    assert torch.allclose(native(x)[0], want[0], rtol=1e-12)
    assert torch.allclose(native(x)[1], want[1], rtol=1e-10)


def test_what_calls_a_library_is_no_c_function():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(300), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample(
                "y", dist.Normal(torch.linalg.eigvalsh(w[:4, None] * w[:4])[-1], 1.0), obs=x
            )

    potential = Potential(model, torch.randn(4), mode="inductor")
    assert potential.native is None
    x = points(potential, 1)[0]
    for got, want in zip(potential.single(x), potential.eager(x), strict=True):
        assert torch.allclose(got, want, rtol=1e-9)


def test_float32_stories_take_float64_points():
    torch.set_default_dtype(torch.float32)
    found = SHARED["mixed"]()
    model = bind(found.model, None, *found.data)[0]
    potential = Potential(model, *found.data, mode="graph")
    x = torch.randn(potential.dim, dtype=torch.float64)
    value, gradient = potential.single(x)
    assert value.dtype == gradient.dtype == torch.float64
    draws = potential.constrain(x.expand(2, 3, -1))
    assert {v.dtype for v in draws.values()} == {torch.float32}


def test_draws_come_back_on_their_own_scale():
    model, data = story("correlated")
    potential = Potential(model, *data)
    x = points(potential, 6).reshape(2, 3, -1)
    found = potential.constrain(x)
    assert found["L"].shape == (2, 3, 3, 3)
    assert torch.allclose((found["L"] @ found["L"].mT).diagonal(dim1=-2, dim2=-1), torch.ones(3))
    assert (found["scale"] > 0).all()


def nowhere(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.factor("wall", mu * 0.0 - torch.inf, has_rsample=False)
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def half_nowhere(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("wall", torch.where(mu > 0.0, 0.0, -torch.inf))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_a_potential_that_is_infinite_everywhere_names_the_site():
    potential = Potential(nowhere, torch.randn(3), mode="off")
    with pytest.raises(ValueError, match=r"not finite at 100 points .* first at site 'wall'"):
        potential.start(torch.Generator().manual_seed(0))


def test_points_where_the_potential_is_infinite_are_tried_again():
    potential = Potential(half_nowhere, torch.randn(3), mode="graph")
    starts = potential.starts(potential.rows(50), 50, seed=0)
    assert starts.shape == (50, 1)
    assert (starts > 0).all()
    assert len(set(starts[:, 0].tolist())) == 50


def steered(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("x", dist.Normal(mu if mu > 0 else -mu, 1.0), obs=x)


def test_what_cannot_be_traced_is_run_point_by_point():
    potential = Potential(steered, torch.randn(3), mode="graph")
    x = points(potential, 4)
    with pytest.warns(UserWarning, match="not compiled: it looks at the value") as warned:
        values, gradients = potential.rows(4)(x)
    assert len(warned) == 1
    assert potential.choice.startswith("off")
    for row, value, gradient in zip(x, values, gradients, strict=True):
        assert torch.equal(value, potential.eager(row)[0])
        assert torch.equal(gradient, potential.eager(row)[1])
