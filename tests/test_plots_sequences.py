"""Figures of states along time, and of components: what they show is what the answers say.

Shapes: N data, T steps, K states, D features.
"""

import io

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pplvm
from pplvm import plots_mixtures, plots_sequences
from pplvm.models.factorial_hmm import FactorialHMM
from pplvm.models.gaussian_mixture import GaussianMixture
from pplvm.models.hmm import HMM
from pplvm.table import Table

LENGTHS = torch.tensor([6, 3, 5, 6])


def rolls() -> Tensor:
    x = torch.bernoulli(torch.full((4, 6, 9), 0.4))
    x[..., :2] = 0.0  # features that are never heard
    return x * (torch.arange(6) < LENGTHS[:, None])[..., None]


def table_of_sequences(model: torch.nn.Module) -> Table:
    model, data = model.requires_grad_(False), (rolls(), LENGTHS)
    apart = pplvm.cavi(model, *data, structured=False)
    return pplvm.compare({"apart": apart, "exact": pplvm.exact(model, *data)}, num_draws=50)


def table_of_mixture() -> Table:
    x = torch.cat([torch.randn(6, 3) - 4.0, torch.zeros(1, 3), torch.randn(5, 3) + 4.0])
    model = GaussianMixture(3, 2).requires_grad_(False)
    model.mu.copy_(torch.tensor([[-4.0], [4.0]]).expand(2, 3))
    exact = pplvm.exact(model, x)
    return pplvm.compare({"draws": exact.draws(400), "exact": exact})


def images_of(figure: Figure) -> list[list]:
    figure.savefig(io.BytesIO())  # whatever fails in drawing fails here
    return [ax.images for ax in figure.axes]


@pytest.mark.parametrize("chains", [1, 2])
def test_loops_are_found_with_their_lengths(chains):
    torch.manual_seed(0)
    model = HMM(3, 9, "bernoulli") if chains == 1 else FactorialHMM(2, 3, 9, "bernoulli")
    table = table_of_sequences(model)
    found = plots_sequences.sequences(table)
    assert torch.equal(found.lengths, LENGTHS)
    assert torch.equal(found.x, rolls_of(table))
    assert [chain.stem for chain in found.chains] == (["z"] if chains == 1 else ["z0", "z1"])
    assert list(found.chains[0].p) == ["exact", "apart"]  # the reference first
    for chain in found.chains:
        exact = table.answers["exact"].marginals[chain.stem]
        torch.testing.assert_close(chain.p["exact"], exact)
    assert plots_mixtures.mixture(table) is None


def rolls_of(table: Table) -> Tensor:
    return table.data[0].double()


def test_states_are_drawn_up_to_the_lengths():
    torch.manual_seed(0)
    table = table_of_sequences(FactorialHMM(2, 3, 9, "bernoulli"))
    found = plots_sequences.sequences(table)
    figure = plots_sequences.posteriors(table, found)
    images = images_of(figure)
    assert len(images) == 3 * (1 + 2 * 2)  # sequences × (roll, 2 chains by 2 answers)
    for n in range(3):
        roll, exact, *_ = images[n::3]
        T = int(LENGTHS[n])
        assert roll[0].get_array().shape == (7, T)  # without the features that are never heard
        assert torch.equal(torch.as_tensor(roll[0].get_array().T), found.x[n, :T, 2:])
        shown = torch.as_tensor(exact[0].get_array().T)  # (T, K)
        torch.testing.assert_close(shown, table.answers["exact"].marginals["z0"][n, :T])
        path, dots = figure.axes[3 + n].lines
        best = table.answers["exact"].most_probable()["z0"][n, :T]
        assert path.get_ydata().tolist() == best.tolist()
        assert dots.get_ydata().tolist() == shown.argmax(-1).tolist()


def test_what_states_emit_and_how_they_follow():
    torch.manual_seed(0)
    table = table_of_sequences(HMM(3, 9, "bernoulli"))
    figure = plots_sequences.summary(table, plots_sequences.sequences(table))
    images = images_of(figure)
    emitted, moves = (torch.as_tensor(i[0].get_array()) for i in images[:2])
    p = table.answers["exact"].marginals["z"] * (torch.arange(6) < LENGTHS[:, None])[..., None]
    mean = torch.einsum("ntk,ntd->kd", p, rolls_of(table)) / p.sum((0, 1))[:, None]
    torch.testing.assert_close(emitted, mean[:, 2:])
    torch.testing.assert_close(moves.sum(-1), torch.ones(3, dtype=moves.dtype))


def test_components_are_those_of_the_answers():
    torch.manual_seed(0)
    table = table_of_mixture()
    found = plots_mixtures.mixture(table)
    assert (found.latent, list(found.p)) == ("k", ["exact", "draws"])
    assert plots_sequences.sequences(table) is None
    figure = plots_mixtures.axes_of_data(found)
    images_of(figure)
    assert figure.axes[0].get_title() == "exact: 1 of 12 below 95 %"
    assert [len(part.get_offsets()) for part in figure.axes[0].collections[-1:]] == [1]
    shown = torch.as_tensor(images_of(plots_mixtures.responsibilities(found))[0][0].get_array())
    assert shown.shape == (2, 12)
    assert shown[0].diff().max() <= 1e-9  # sorted: the first component, then the second
    (means,) = images_of(plots_mixtures.components(table, found))[0]
    p = table.answers["exact"].marginals["k"]
    want = p.T @ table.data[0].double() / p.sum(0)[:, None]
    torch.testing.assert_close(torch.as_tensor(means.get_array()), want)
