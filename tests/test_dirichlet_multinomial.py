"""The Dirichlet-multinomial against scipy: evidence, moments and dreams."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from conjugates import close, dirichlet_multinomial, integrated, parameters, scipy_logpmf
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from scipy import stats

import pplvm
from pplvm.models.counts import Multinomial
from pplvm.models.dirichlet_multinomial import (
    CollapsedDirichletMultinomial,
    DirichletMultinomial,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 200), min_size=3, max_size=3), min_size=1, max_size=5))
def test_dirichlet_multinomial_of_each_datum(found):
    x, model = torch.tensor(found), dirichlet_multinomial([0.1, 1.0, 7.0])
    answer = pplvm.conjugate(model, x)
    alpha = model.log_alpha.detach().exp()
    (got,) = parameters(answer, "p")
    close(got, alpha + x)
    close(answer.log_marginal, scipy_logpmf(x, alpha))
    close(answer.log_marginal, integrated(model, x))
    assert answer.posterior["p"].batch_shape == (len(found),)
    assert answer.log_marginal.shape == (len(found),)


def test_a_real_table_of_counts(shared_data):
    """Taxa of 278 microbiomes, totals that differ, nine tenths of a row zero; alpha from 1e-3 on."""
    x = torch.as_tensor(np.load(shared_data / "counts/twins_microbiome.npz")["counts"].astype(int))
    assert x.shape == (278, 130)
    for alpha in (torch.full((130,), 0.5), torch.logspace(-3, 2, 130)):
        model = dirichlet_multinomial(alpha)
        answer = pplvm.conjugate(model, x)
        close(answer.log_marginal, scipy_logpmf(x, alpha))
        close(answer.log_marginal, integrated(model, x))
        close(parameters(answer, "p")[0], alpha + x)


def test_every_moment_of_the_dirichlet_multinomial_is_that_of_scipy():
    alpha, n = torch.tensor([0.3, 2.0, 5.0, 1.0]), 17
    ours, theirs = dist.DirichletMultinomial(alpha, n), stats.dirichlet_multinomial(alpha, n)
    x = Multinomial(torch.tensor(17.0), torch.tensor([0.1, 0.2, 0.3, 0.4])).sample((20,))
    close(ours.log_prob(x), theirs.logpmf(x))
    close(ours.mean, theirs.mean())
    close(ours.variance, theirs.var())
    p, A = alpha / alpha.sum(), alpha.sum()
    close((n * (n + A) / (1 + A)) * (p.diag() - torch.outer(p, p)), theirs.cov())


def test_a_dream_has_the_moments_of_scipy_row_by_row():
    """False alarm: 12 means and 18 covariances of two stories at 5 standard errors, 4e-5."""
    alpha, totals = torch.tensor([0.5, 2.0, 1.0]), torch.tensor([0.0, 7.0, 40.0])
    S, x = 100_000, torch.zeros(3, 3)
    x[:, 0] = totals  # any data with these totals
    model = dirichlet_multinomial(alpha)
    collapsed = CollapsedDirichletMultinomial(3)
    collapsed.load_state_dict(model.state_dict())
    for story in (model, collapsed):
        with torch.no_grad(), poutine.uncondition(), pyro.plate("dreams", S, dim=-2):
            dream = story(x)  # (S, N, V)
        assert (dream.sum(-1) == totals).all()
        for row, n in enumerate([0, 7, 40]):
            theirs, got = stats.dirichlet_multinomial(alpha.numpy(), n), dream[:, row]
            gap = got - torch.as_tensor(theirs.mean())
            assert (gap.mean(0).abs() <= 5 * gap.std(0) / S**0.5).all()
            products = gap[:, :, None] * gap[:, None, :]  # (S, V, V)
            off = products.mean(0) - torch.as_tensor(theirs.cov())
            assert (off.abs() <= 5 * products.std(0) / S**0.5 + 1e-12).all()


def test_multinomials_of_one_total_are_those_of_torch():
    probs = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    x = torch.tensor([[1.0, 3.0, 0.0], [4.0, 0.0, 0.0]])
    ours = Multinomial(torch.tensor([4.0, 4.0]), probs)
    close(ours.log_prob(x), dist.Multinomial(4, probs).log_prob(x))
    assert ours.expand((5, 2)).sample((7,)).shape == (7, 5, 2, 3)
    assert (ours.sample((50,))[:, 1] == x[1]).all()


def test_learning_alpha_climbs_the_evidence():
    """The story without latents fits by gradient; its evidence is that of the exact posterior."""
    x = torch.tensor([[5, 1, 0], [9, 0, 1], [2, 2, 2]])
    collapsed = CollapsedDirichletMultinomial(3)
    optim = torch.optim.Adam(collapsed.parameters(), lr=0.1)
    for _ in range(30):
        trace = poutine.trace(collapsed).get_trace(x)
        optim.zero_grad()
        (-trace.log_prob_sum()).backward()
        optim.step()
    start, end = DirichletMultinomial(3), DirichletMultinomial(3)
    end.load_state_dict(collapsed.state_dict())
    before, after = (pplvm.conjugate(m, x).log_marginal.sum() for m in (start, end))
    assert after > before + 0.5
