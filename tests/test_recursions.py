"""Sums, maxima and draws of paths against a list of all paths: brute force on small chains."""

import itertools
import math
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as laws
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pplvm.traces import blockwise, recursions


class Chain(NamedTuple):
    first: Tensor  # (B, *K)
    moves: list[Tensor]  # (T - 1 or 1, B or 1, K, K)
    later: Tensor  # (T - 1, B, *K)
    known: Tensor  # (T - 1, B)


def chain(
    seed: int, T: int, B: int, Ks: tuple[int, ...], wide=(False, False), holes=0.0, sparse=0.0
) -> Chain:
    """Random logarithms, some of them impossible; matrices that change with step and chain or not."""
    random = torch.Generator().manual_seed(seed)

    def logs(*shape: int) -> Tensor:
        x = 3.0 * torch.randn(shape, generator=random)
        return x.masked_fill(torch.rand(shape, generator=random) < sparse, -math.inf)

    size = (T - 1 if wide[0] else min(T - 1, 1), B if wide[1] else 1)
    moves = [logs(*size, K, K) for K in Ks]
    if T == 1:
        moves = [logs(1, 1, K, K) for K in Ks]
    known = torch.rand(T - 1, B, generator=random) >= holes
    return Chain(logs(B, *Ks), moves, logs(T - 1, B, *Ks), known)


chains = st.builds(
    chain,
    seed=st.integers(0, 10**6),
    T=st.integers(1, 5),
    B=st.integers(1, 3),
    Ks=st.sampled_from([(1,), (2,), (3,), (2, 2), (2, 3), (2, 1, 2)]),
    wide=st.tuples(st.booleans(), st.booleans()),
    holes=st.sampled_from([0.0, 0.4]),
    sparse=st.sampled_from([0.0, 0.0, 0.2]),
)
laws_of_chains = settings(max_examples=60, deadline=None)


def paths(c: Chain) -> tuple[Tensor, Tensor]:
    """Returns all paths (R, T, M) and their log-densities (R, B)."""
    B, *Ks = c.first.shape
    states = list(itertools.product(*(range(K) for K in Ks)))
    listed, scores = [], []
    for path in itertools.product(states, repeat=len(c.later) + 1):
        score = c.first[(slice(None), *path[0])]
        for t in range(len(c.later)):
            move = sum(
                A[t if len(A) > 1 else 0, :, i, j].expand(B)
                for A, i, j in zip(c.moves, path[t], path[t + 1], strict=True)
            )
            move = torch.where(c.known[t], move, -math.log(len(states)))
            score = score + move + c.later[(t, slice(None), *path[t + 1])]
        listed.append(path)
        scores.append(score)
    return torch.tensor(listed), torch.stack(scores)


def assert_close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-9, equal_nan=False)


@laws_of_chains
@given(chains)
def test_the_sum_over_paths(c):
    assert_close(recursions.log_normaliser(*c), paths(c)[1].logsumexp(0))


@contextmanager
def cut(always: bool):
    """Cuts every chain of one state into blocks, or none."""
    former = blockwise.pays
    blockwise.pays = lambda later, moves: always and later.ndim == 3 and len(later) > 0
    try:
        yield
    finally:
        blockwise.pays = former


@laws_of_chains
@given(
    st.builds(
        chain,
        seed=st.integers(0, 10**6),
        T=st.integers(2, 12),
        B=st.integers(1, 3),
        Ks=st.sampled_from([(1,), (2,), (3,)]),
        wide=st.tuples(st.booleans(), st.booleans()),
        holes=st.sampled_from([0.0, 0.4]),
        sparse=st.sampled_from([0.0, 0.0, 0.2]),
    )
)
def test_blocks_are_the_steps_one_after_another(c):
    leaves = [x.requires_grad_() for x in (c.first, c.later, *c.moves)]
    found = []
    for always in (False, True):
        with cut(always):
            z = recursions.log_normaliser(*c)
            possible = ~z.isneginf()
            total = (z[possible] * torch.arange(1, len(z) + 1)[possible]).sum()
            found.append([z, recursions.marginals(*c)[0].exp()[:, possible]])
            found[-1] += torch.autograd.grad(total, leaves, materialize_grads=True)
    for steps, blocks in zip(*found, strict=True):
        assert_close(blocks, steps)


def test_long_chains_are_cut_and_big_ones_are_not():
    def shape(T, B, K):
        return blockwise.pays(torch.empty(T, B, K), [])

    assert shape(10_000, 1, 4)
    assert shape(1000, 10, 8)
    assert not shape(128, 229, 16)
    assert not shape(20, 1, 2)
    assert not blockwise.pays(torch.empty(10_000, 1, 2, 2), [])
    c = chain(0, 3000, 1, (3,), holes=0.1)
    assert blockwise.pays(c.later, c.moves)
    got = recursions.log_normaliser(*c)
    with cut(False):
        assert_close(got, recursions.log_normaliser(*c))


@laws_of_chains
@given(chains)
def test_gradients_are_those_of_the_sum(c):
    inputs = [c.first, c.later, *c.moves]

    def gradients(total) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        again = Chain(leaves[0], leaves[2:], leaves[1], c.known)
        weighed = sum(b * value for b, value in enumerate(total(again), 1) if not value.isneginf())
        if not isinstance(weighed, Tensor):
            return [torch.zeros_like(x) for x in leaves]
        return list(torch.autograd.grad(weighed, leaves, allow_unused=True, materialize_grads=True))

    got = gradients(lambda c: recursions.log_normaliser(*c))
    want = gradients(lambda c: [column.logsumexp(0) for column in paths(c)[1].T])
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


@laws_of_chains
@given(chains)
def test_marginals_sum_the_paths_through_a_state(c):
    listed, scores = paths(c)
    got, log_z = recursions.marginals(*c)
    weights = (scores - scores.logsumexp(0)).exp().nan_to_num(0.0)  # (R, B)
    want = torch.zeros(got.shape)
    for path, weight in zip(listed, weights, strict=True):
        for t, state in enumerate(path):
            want[(t, slice(None), *state)] += weight
    possible = ~log_z.isneginf()
    assert_close(got.exp()[:, possible], want[:, possible])


@laws_of_chains
@given(chains)
def test_no_path_is_more_probable(c):
    listed, scores = paths(c)
    best = recursions.most_probable(*c)  # (T, B, M)
    for b in range(c.first.shape[0]):
        row = (listed == best[:, b]).all(-1).all(-1).nonzero().item()
        assert_close(scores[row, b], scores[:, b].max())


@pytest.mark.parametrize("holes", [0.0, 0.5])
@pytest.mark.parametrize("Ks", [(3,), (2, 2)])
def test_drawn_paths_come_as_often_as_they_should(Ks, holes):
    """False alarm: two chains at 1e-4 each."""
    c = chain(3, 3, 2, Ks, holes=holes)
    listed, scores = paths(c)
    S = 20_000
    many = Chain(
        c.first.repeat(S, *[1] * len(Ks)), c.moves,
        c.later.repeat(1, S, *[1] * len(Ks)), c.known.repeat(1, S),
    )  # fmt: skip
    drawn = recursions.sample(*many, generator=torch.Generator().manual_seed(0))
    drawn = drawn.unflatten(1, (S, 2))  # (T, S, B, M)
    for b in range(2):
        count = torch.stack([(drawn[:, :, b] == p[:, None]).all(-1).all(0).sum() for p in listed])
        expected = S * scores[:, b].softmax(0)
        rare = expected < 5
        got = torch.cat((count[~rare], count[rare].sum()[None])).double()
        want = torch.cat((expected[~rare], expected[rare].sum()[None]))
        assert got.sum() == S
        kept = want > 0
        assert laws.chisquare(got[kept], want[kept]).pvalue > 1e-4


def test_states_that_underflow_are_summed_all_the_same():
    """The last step allows only what two steps before was e²⁰⁰⁰ times less probable than the rest."""
    impossible = -math.inf
    first = torch.tensor([[0.0, -2000.0, -1.0]])
    stay = torch.full((3, 3), impossible).fill_diagonal_(0.0)
    later = torch.tensor([[[0.0, -3.0, 0.0]], [[impossible, 0.0, impossible]]])
    c = Chain(first, [stay[None, None]], later, torch.ones(2, 1, dtype=torch.bool))
    leaf = first.clone().requires_grad_()
    value = recursions.log_normaliser(leaf, *c[1:])
    assert_close(value.detach(), torch.tensor([-2003.0]))
    assert torch.equal(torch.autograd.grad(value.sum(), leaf)[0], torch.tensor([[0.0, 1.0, 0.0]]))


def test_moves_of_no_weight_have_gradients_all_the_same():
    """Neighbours that prefer other states than a move allows: the shifted product overflows."""
    first, later = torch.tensor([[0.0, -900.0]]), torch.tensor([[[-900.0, 0.0]]])
    A = torch.tensor([[[[-800.0, -2000.0], [0.0, -800.0]]]]).requires_grad_()
    value = recursions.log_normaliser(first, [A], later)
    (got,) = torch.autograd.grad(value.sum(), A)
    total = first[0, :, None] + A.detach()[0, 0] + later[0, 0]
    assert_close(got[0, 0], (total - total.logsumexp((0, 1))).exp())


def test_products_that_underflow_between_chains_are_not_counted_as_none():
    """Two chains that both have to move, at a price of e¹⁰⁰⁰ each, beside each other."""
    first, later = torch.zeros(1, 2, 2), torch.zeros(1, 1, 2, 2)
    first[0, 0, 0], later[0, 0, 1, 1] = 3000.0, 3000.0
    moves = [(1000.0 * (torch.eye(2) - 1.0) * s)[None, None].requires_grad_() for s in (1.0, 0.9)]
    value = recursions.log_normaliser(first, moves, later)
    got = torch.autograd.grad(value.sum(), moves)
    for A in got:
        assert_close(A[0, 0], torch.tensor([[0.0, 1.0], [0.0, 0.0]]))


def test_long_chains_in_single_precision_have_gradients():
    """Of 1,000 steps at some -100 nats each: posterior probabilities add up to one."""
    random = torch.Generator().manual_seed(0)
    first, later = (torch.randn(*n, 3, generator=random) * 10 - 100 for n in ((1,), (999, 1)))
    A = torch.randn(1, 1, 3, 3, generator=random).log_softmax(-1)
    exact = [x.double().requires_grad_() for x in (first, A, later)]
    rough = [x.float().requires_grad_() for x in (first, A, later)]
    found = []
    for a, b, c in (exact, rough):
        value = recursions.log_normaliser(a, [b], c)
        found.append(torch.autograd.grad(value.sum(), (a, b, c)))
    for want, got in zip(*found, strict=True):
        assert got.dtype == torch.float32
        assert torch.allclose(got.double(), want, rtol=1e-3, atol=1e-3)
    assert torch.allclose(found[1][2].sum(-1), torch.ones(999, 1, dtype=torch.float32), atol=1e-5)


def test_an_impossible_chain_has_no_gradient():
    first = torch.full((1, 2), -math.inf).requires_grad_()
    value = recursions.log_normaliser(first, [torch.zeros(1, 1, 2, 2)], torch.zeros(3, 1, 2))
    assert value.item() == -math.inf
    assert torch.equal(torch.autograd.grad(value.sum(), first)[0], torch.zeros(1, 2))


@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("Ks", [(3,), (2, 3)])
@pytest.mark.parametrize("wide", [(False, False), (True, True)])
def test_rows_of_a_vmap_are_chains_like_others(Ks, wide, holes):
    c = chain(5, 4, 2, Ks, wide=wide, holes=holes)
    noise = [torch.randn(3, *x.shape) for x in (c.first, c.later, *c.moves)]

    def value(a: Tensor, b: Tensor, *A: Tensor) -> Tensor:
        moves = [x + y for x, y in zip(c.moves, A, strict=True)]
        return recursions.log_normaliser(c.first + a, moves, c.later + b, c.known).sum()

    def both(*row: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in row]
        total = value(*leaves)
        return [total.detach(), *torch.autograd.grad(total, leaves)]

    traced = make_fx(both)(*(x[0] for x in noise))  # which is how chains of MCMC are batched
    assert sum("pplvm" in str(node.target) for node in traced.graph.nodes) == 2
    want = [both(*row) for row in zip(*noise, strict=True)]
    for got, *rows in zip(torch.func.vmap(traced)(*noise), *want, strict=True):
        assert_close(got, torch.stack(rows))
    zeros = [torch.zeros_like(x[0]) for x in noise[:2]]
    only = torch.func.vmap(lambda *A: value(*zeros, *A))(*noise[2:])
    assert_close(only, torch.stack([value(*zeros, *A) for A in zip(*noise[2:], strict=True)]))


def test_what_compilers_are_told_is_so():
    c = chain(7, 4, 2, (2, 3), holes=0.3)
    leaves = [x.clone().requires_grad_() for x in (c.first, *c.moves, c.later)]
    torch.library.opcheck(
        recursions._forward, (leaves[0], leaves[1:-1], leaves[-1], c.known),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip
