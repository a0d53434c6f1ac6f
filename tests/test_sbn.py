"""Sigmoid belief networks: densities by hand, all states listed, and both directions.

Shapes: N images, P particles, L units.
"""

import itertools

import pyro
import pytest
import torch
from pyro import poutine
from test_datasets import one_sentence
from torch import Tensor
from torch.nn.functional import logsigmoid

import pplvm
from pplvm import traces
from pplvm.guides.sigmoid_belief_network import SigmoidBeliefNetworkGuide
from pplvm.models.sigmoid_belief_network import SigmoidBeliefNetwork
from pplvm.objectives import reweighted_wake_sleep, wake_sleep

SHAPE, N = (3, 2), 5
NETWORKS = {
    "one layer": {"latent_dims": (4,)},
    "two layers": {"latent_dims": (3, 2)},
    "three layers": {"latent_dims": (3, 4, 2)},
    "not linear": {"latent_dims": (3, 2), "hidden_dim": 5},
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def build(name: str, num_data: int = N) -> tuple[SigmoidBeliefNetwork, torch.nn.Module, Tensor]:
    """Returns a network and a guide in which no parameter is as it starts, and images."""
    x = torch.bernoulli(torch.full((num_data, *SHAPE), 0.4))
    options = {"mean": torch.rand(SHAPE)} | NETWORKS[name]
    pair = SigmoidBeliefNetwork(SHAPE, **options), SigmoidBeliefNetworkGuide(SHAPE, **options)
    with torch.no_grad():
        for p in itertools.chain(*(part.parameters() for part in pair)):
            p.add_(0.5 * torch.randn_like(p))
    return (*pair, x)


def bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    return (x * logsigmoid(logits) + (1 - x) * logsigmoid(-logits)).sum(-1)


def through(layer: torch.nn.Module, z: Tensor) -> Tensor:
    """Applies a layer by its weights."""
    if isinstance(layer, torch.nn.Linear):
        return z @ layer.weight.T + layer.bias
    first, second, last = layer[0], layer[2], layer[4]
    h = (z @ first.weight.T + first.bias).tanh()
    return (h @ second.weight.T + second.bias).tanh() @ last.weight.T + last.bias


def log_p(model: SigmoidBeliefNetwork, x: Tensor, z: list[Tensor]) -> Tensor:
    """log p(x, z) of x, (N, height, width), and layers z, that next to the image first."""
    total = bernoulli(z[-1], model.prior)
    for layer, below, above in zip(model.layers, [x.flatten(1), *z], z, strict=False):
        total = total + bernoulli(below, through(layer, above))
    return total


def log_q(guide: torch.nn.Module, x: Tensor, z: list[Tensor]) -> Tensor:
    total, belows = 0.0, [x.flatten(1) - guide.mean, *z]
    for layer, below, above in zip(guide.layers, belows, z, strict=False):
        total = total + bernoulli(above, through(layer, below))
    return total


def drawn(program, *data, **values) -> tuple[poutine.Trace, list[Tensor]]:
    trace = poutine.trace(poutine.condition(program, values)).get_trace(*data)
    numbers = range(1, 1 + sum(name[0] == "z" and name[1:].isdigit() for name in trace.nodes))
    return trace, [trace.nodes[f"z{i}"]["value"] for i in numbers]


def joint(trace: poutine.Trace) -> Tensor:
    """Returns the sum of the log-densities of all sites, (*)."""
    trace.compute_log_prob()
    names = {*trace.stochastic_nodes, *trace.observation_nodes} - {"data", "particles"}
    return sum(trace.nodes[name]["log_prob"] for name in names)


# ---- densities ----


@each_network
def test_densities_are_those_by_hand(name):
    model, guide, x = build(name)
    trace, z = drawn(model, x)
    assert [tuple(part.shape) for part in z] == [(N, L) for L in NETWORKS[name]["latent_dims"]]
    torch.testing.assert_close(joint(trace), log_p(model, x, z))
    trace, z = drawn(guide, x)
    torch.testing.assert_close(joint(trace), log_q(guide, x, z))


@pytest.mark.parametrize("name", ["one layer", "two layers", "not linear"])
def test_log_marginals_are_sums_over_all_states(name):
    """By importance sampling from the guide; false alarm: 5 images at 5 standard errors, 3e-6."""
    model, guide, x = build(name)
    dims = NETWORKS[name]["latent_dims"]
    states = torch.cartesian_prod(*[torch.arange(2.0)] * sum(dims)).to(x)  # (S, sum of L)
    terms = [log_p(model, x, list(row.expand(N, -1).split(dims, -1))) for row in states]
    want = torch.stack(terms).logsumexp(0)
    found = pplvm.log_marginal(model, guide, x, num_particles=4000)
    assert ((found.value - want).abs() < 5 * found.error + 1e-6).all()


@each_network
def test_particles_are_as_many_runs(name):
    model, guide, x = build(name)
    traces.check_particles(model, guide, x)
    P = 3
    with pyro.plate("particles", P, dim=-2):
        trace, z = drawn(guide, x)
        both = joint(poutine.trace(poutine.replay(model, trace=trace)).get_trace(x))
    for p in range(P):
        row = {f"z{i}": part[p] for i, part in enumerate(z, start=1)}
        torch.testing.assert_close(joint(drawn(model, x, **row)[0]), both[p])


@each_network
def test_soft_units_are_weighed_as_they_are(name):
    """As a relaxation has them: in between a unit that is off and one that is on."""
    model, guide, x = build(name)
    dims, P = NETWORKS[name]["latent_dims"], 2
    soft = {f"z{i}": torch.rand(P, N, L) for i, L in enumerate(dims, start=1)}
    with pyro.validation_enabled(False), pyro.plate("particles", P, dim=-2):
        for program, by_hand in ((model, log_p), (guide, log_q)):
            trace, _ = drawn(program, x, **soft)
            want = [by_hand(program, x, [part[p] for part in soft.values()]) for p in range(P)]
            torch.testing.assert_close(joint(trace), torch.stack(want))


# ---- dreams and gradients ----


@each_network
@pytest.mark.parametrize("num_data", [1, N])
def test_a_dream_is_an_image_of_zeros_and_ones(name, num_data):
    model, _, x = build(name, num_data)
    assert poutine.trace(model)(x) is x
    dream = poutine.uncondition(model)(x)
    assert dream.shape == x.shape
    assert set(dream.unique().tolist()) <= {0.0, 1.0}


def test_dreams_follow_the_model():
    """False alarm: 6 pixels at 5 standard errors, 3e-6."""
    model, _, _ = build("two layers")
    S, dims = 20_000, NETWORKS["two layers"]["latent_dims"]
    dream = poutine.uncondition(model)(torch.zeros(S, *SHAPE)).flatten(1)
    units = torch.cartesian_prod(*[torch.arange(2.0)] * sum(dims)).to(dream)
    z1, z2 = units.split(dims, -1)
    weight = (bernoulli(z2, model.prior) + bernoulli(z1, through(model.layers[1], z2))).exp()
    want = weight @ through(model.layers[0], z1).sigmoid()
    error = (want * (1 - want) / S).sqrt()
    assert ((dream.mean(0) - want).abs() < 5 * error).all()


@each_network
@pytest.mark.parametrize("objective", [wake_sleep, reweighted_wake_sleep])
def test_gradients_reach_every_parameter(name, objective):
    model, guide, x = build(name)
    objective(model, guide, x).loss.backward()
    for program in (model, guide):
        for parameter, p in program.named_parameters():
            assert p.grad is not None, parameter
            assert p.grad.isfinite().all(), parameter
            assert p.grad.abs().max() > 0, parameter


def test_learning_raises_the_bound():
    x = torch.bernoulli(torch.full((40, *SHAPE), 0.5))
    x[:, 1:] = x[:, :1]  # rows are copies of the first
    options = {"latent_dims": (4, 2), "mean": x.mean(0)}
    fit = pplvm.fit(
        SigmoidBeliefNetwork(SHAPE, **options),
        SigmoidBeliefNetworkGuide(SHAPE, **options),
        x,
        objective=reweighted_wake_sleep,
        num_steps=150,
        lr=0.03,
    )
    bound = torch.tensor(fit.history.bound)
    assert bound[-10:].mean() > bound[:10].mean() + 0.5


# ---- the mean, and arguments ----


@pytest.mark.parametrize("hidden_dim", [None, 5])
def test_the_mean_is_where_both_start(hidden_dim):
    mean = torch.tensor([[0.0, 0.3], [0.5, 0.9], [1.0, 0.001]])
    model = SigmoidBeliefNetwork(SHAPE, (3,), hidden_dim, mean=mean)
    last = model.layers[0] if hidden_dim is None else model.layers[0][-1]
    want = torch.tensor([0.01, 0.3, 0.5, 0.9, 0.99, 0.01])
    torch.testing.assert_close(last.bias.sigmoid(), want, check_dtype=False)
    guide = SigmoidBeliefNetworkGuide(SHAPE, (3,), hidden_dim, mean=mean)
    plain = SigmoidBeliefNetworkGuide(SHAPE, (3,), hidden_dim)
    plain.layers.load_state_dict(guide.layers.state_dict())
    x = torch.rand(2, *SHAPE)
    logits = [
        poutine.trace(program).get_trace(data).nodes["z1"]["fn"].base_dist.logits
        for program, data in ((guide, x), (plain, x - mean))
    ]
    torch.testing.assert_close(*logits)
    mean.fill_(0.5)  # which is the caller's to do
    torch.testing.assert_close(last.bias.sigmoid(), want, check_dtype=False)
    assert guide.mean[0] == 0.0


@pytest.mark.parametrize("kind", [SigmoidBeliefNetwork, SigmoidBeliefNetworkGuide])
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"latent_dims": ()}, ["'latent_dims' is ()", "(3, 2)"]),
        ({"latent_dims": (4, 0)}, ["'latent_dims' is (4, 0)"]),
        ({"mean": torch.zeros(2, 3)}, ["'mean'", "(2, 3)", "(3, 2)"]),
    ],
)
def test_networks_that_there_are_not_are_refused(kind, options, parts):
    with pytest.raises(ValueError, match="give") as info:
        kind(SHAPE, **options)
    one_sentence(info, *parts)


def test_images_of_another_shape_or_kind_are_refused():
    model, guide, x = build("one layer")
    for wrong, words in ((x[:, :2], "shape"), (0.5 * x, "Bernoulli")):
        with pytest.raises(ValueError, match=words) as info:
            pplvm.fit(model, guide, wrong, objective=reweighted_wake_sleep, num_steps=1)
        one_sentence(info)
