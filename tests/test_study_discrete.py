"""Discrete latents side by side: their probabilities are compared, and nothing of their labels.

Shapes: N data, T steps, K states, S draws.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pplvm
from pplvm.guides.document_model import DocumentModelGuide
from pplvm.models.document_model import DocumentModel
from pplvm.models.gaussian_mixture import GaussianMixture
from pplvm.models.hmm import HMM
from pplvm.objectives import reweighted_wake_sleep
from pplvm.study import all_summed_out, study


def labels(x: Tensor) -> Tensor:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        return pyro.sample("x", dist.Normal(2.0 * k, 1.0), obs=x)


def both(x: Tensor) -> Tensor:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        return pyro.sample("x", dist.Normal(mu + 2.0 * k, 1.0), obs=x)


def drawn(model, data: tuple[Tensor, ...], stats: dict | None = None, **values) -> pplvm.Draws:
    """Draws by hand, of sites in the plate of the data unless they are mu."""
    plates = {name: () if name == "mu" else ("data",) for name in values}
    return pplvm.Draws(values, plates, stats or {}, model, data, {"method": "by hand"})


def sequences() -> tuple[HMM, Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.bernoulli(torch.full((3, 5, 4), 0.5))
    return HMM(2, 4, "bernoulli").requires_grad_(False), x, torch.tensor([5, 2, 3])


# ---- total variation ----


def test_total_variation_of_a_wrong_answer():
    x = torch.tensor([0.3, 2.2])
    p = torch.sigmoid(torch.tensor(0.3 / 0.7).log() + 2 * x - 2)  # of k = 1: Bayes' rule
    wrong = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])[None]  # (1, S, N)
    table = pplvm.compare({"wrong": drawn(labels, (x,), k=wrong), "exact": pplvm.exact(labels, x)})
    want = ((1 - p[0]) + (p[1] - 0.25).abs()) / 2
    assert table["wrong"].total_variation == pytest.approx(want.item())
    assert table["exact"].total_variation is None  # it is not held against itself
    row = table["wrong"]
    assert (row.mean_error, row.sd_error, row.cover_50, row.cover_90) == (None,) * 4
    header = str(table).splitlines()[0]
    assert "total variation" in header
    assert "mean err" not in str(table)
    assert "total variation: ½" in table.legend()


def test_marginals_are_taken_where_an_answer_has_them():
    """However few the draws are."""
    model, x, lengths = sequences()
    answers = {"CAVI": pplvm.cavi(model, x, lengths), "exact": pplvm.exact(model, x, lengths)}
    table = pplvm.compare(answers, num_draws=2)
    assert table["CAVI"].total_variation < 1e-6  # one chain: the mean field is exact


def test_masked_steps_do_not_count():
    model, x, lengths = sequences()
    exact = pplvm.exact(model, x, lengths)
    zeros = {f"z_{t}": torch.zeros(1, 3, 3) for t in range(5)}
    table = pplvm.compare({"zeros": drawn(model, (x, lengths), **zeros), "exact": exact})
    counted = torch.arange(5) < lengths[:, None]  # (N, T)
    want = exact.marginals["z"][..., 1][counted].mean()  # all that is not at 0
    assert table["zeros"].total_variation == pytest.approx(want.item())


def test_numbers_and_labels_each_have_their_own_error():
    x = torch.randn(6)
    k, mu = torch.bernoulli(torch.full((4, 500, 6), 0.4)), torch.randn(4, 500)
    calm = {"diverging": torch.zeros(4, 500, dtype=torch.bool)}
    table = pplvm.compare(
        {
            "chains": drawn(both, (x,), calm, k=k, mu=mu),
            "other": drawn(both, (x,), k=1 - k, mu=mu + 1),
        }
    )
    assert table.reference == "chains"
    share = k.mean((0, 1))
    assert table["other"].total_variation == pytest.approx((1 - 2 * share).abs().mean().item())
    assert table["other"].mean_error == pytest.approx(1 / mu.std().item())
    assert table["other"].sd_error == pytest.approx(0.0, abs=1e-6)


def test_a_guide_that_is_sure_of_a_label_is_no_point_estimate():
    def sure(x):
        b = pyro.param("b", torch.tensor(60.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Bernoulli(logits=b * (x - 1)))

    x = torch.tensor([-3.0, 5.0])
    objective = pplvm.objectives.wake_sleep
    fit = pplvm.fit(labels, sure, x, objective=objective, num_steps=1, lr=1e-6)
    row = pplvm.compare({"sure": fit, "exact": pplvm.exact(labels, x)})["sure"]
    assert row.log_marginal == pytest.approx(
        pplvm.exact(labels, x).log_marginal.mean().item(), abs=0.05
    )
    assert not any("point" in worry for worry in row.worries)


# ---- what is summed out under particles ----

SUMMED_OUT = {
    "mixture": lambda: (GaussianMixture(2, 3), torch.randn(7, 2)),
    "chain": lambda: (HMM(2, 4, "bernoulli"), *sequences()[1:]),
}


@pytest.mark.parametrize("name", SUMMED_OUT)
def test_a_fit_without_a_guide_weighs_every_particle_by_all_of_p(name):
    """Nothing is drawn, so nothing but the data tells the particles apart: they all agree."""
    torch.manual_seed(0)
    model, *data = SUMMED_OUT[name]()
    objective = reweighted_wake_sleep
    fit = pplvm.fit(model, None, *data, objective=objective, num_steps=2)
    exact = pplvm.exact(fit.model, *data).log_marginal
    weights = fit.log_marginal(num_particles=30)
    torch.testing.assert_close(weights.value, exact, rtol=1e-5, atol=1e-5, check_dtype=False)
    assert weights.error.max() < 1e-5
    table = pplvm.compare({"fit": fit, "exact": pplvm.exact(fit.model, *data)})
    assert table["fit"].total_variation < 0.1  # by 4000 draws


def test_moves_of_a_masked_chain_are_those_of_its_states():
    model, x, lengths = sequences()
    exact = pplvm.exact(model, x, lengths)
    moves, z = exact.pairwise("z"), exact.marginals["z"]  # (N, T - 1, K, K), (N, T, K)
    torch.testing.assert_close(moves.sum(-1), z[:, :-1])
    torch.testing.assert_close(moves.sum(-2), z[:, 1:])


# ---- study ----


def test_parameters_are_learned_without_a_guide_and_then_shared():
    torch.manual_seed(0)
    _, x, lengths = sequences()
    model, lines = HMM(2, 4, "bernoulli"), []
    methods = ("cavi", "cavi-apart", "exact")
    answers = study(
        model, {}, x, lengths, methods=methods, num_compared=2, num_steps=30, announce=lines.append
    )
    assert list(answers) == ["CAVI", "CAVI, every state apart", "exact"]
    assert lines == ["parameters: latents summed out, 3 data", *answers]
    learned = [answer.model.state_dict()["W"] for answer in answers.values()]
    assert not torch.equal(learned[0], model.W)
    assert all(torch.equal(W, learned[0]) for W in learned)
    assert answers["exact"].log_marginal.shape == (2,)
    assert answers["CAVI, every state apart"].elbo[-1] <= answers["CAVI"].elbo[-1] + 1e-9


def test_parameters_are_learned_by_wake_sleep_where_no_gradient_flows_through_draws():
    torch.manual_seed(0)
    x, lines = torch.poisson(torch.full((6, 4), 2.0)), []
    guides = {"network": lambda data: DocumentModelGuide(4, 2)}
    answers = study(
        DocumentModel(4, 2), guides, x, methods=("wake-sleep", "reweighted-wake-sleep"),
        num_compared=3, num_steps=5, announce=lines.append,
    )  # fmt: skip
    assert lines == ["parameters: score-function, network guide, 6 data", *answers]
    learned = [answer.model.state_dict() for answer in answers.values()]
    assert all(torch.equal(learned[0][name], learned[1][name]) for name in learned[0])


def test_a_method_that_needs_a_guide_says_so():
    model, x, lengths = sequences()
    with pytest.raises(ValueError, match=r"'svi' needs a guide.*'exact'"):
        study(model, {"AutoNormal": lambda data: None}, x, lengths, methods=["exact", "svi"])


def test_what_is_all_summed_out():
    x = torch.randn(4)
    assert all_summed_out(labels, x)
    assert not all_summed_out(both, x)
    assert not all_summed_out(lambda x: None, x)
