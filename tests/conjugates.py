"""What the tests of conjugate stories compare with, and how closely."""

import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

from pplvm.conjugate import Conjugate
from pplvm.models.dirichlet_multinomial import CollapsedDirichletMultinomial, DirichletMultinomial


def close(got: Tensor, want: Tensor | float, rtol: float = 1e-8) -> None:
    want = torch.as_tensor(want, dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol)


def parameters(answer: Conjugate, name: str) -> tuple[Tensor, ...]:
    """The posterior's own parameters, through whatever makes its dims events."""
    q = answer.posterior[name]
    q = getattr(q, "base_dist", q) if type(q).__name__ == "Independent" else q
    kinds = {
        "Beta": ("concentration1", "concentration0"),
        "Gamma": ("concentration", "rate"),
        "InverseGamma": ("concentration", "rate"),
        "Dirichlet": ("concentration",),
        "Normal": ("loc", "scale"),
        "StudentT": ("df", "loc", "scale"),
    }
    return tuple(getattr(q, key) for key in kinds[type(q).__name__])


def dirichlet_multinomial(alpha: list[float] | Tensor) -> DirichletMultinomial:
    model = DirichletMultinomial(len(alpha))
    with torch.no_grad():
        model.log_alpha.copy_(torch.as_tensor(alpha).log())
    return model


def integrated(model: DirichletMultinomial, x: Tensor) -> Tensor:
    """The log-density of each row in the story without latents."""
    collapsed = CollapsedDirichletMultinomial(x.shape[1])
    collapsed.load_state_dict(model.state_dict())
    trace = poutine.trace(collapsed).get_trace(x)
    trace.compute_log_prob()
    return trace.nodes["x"]["log_prob"].detach()


def scipy_logpmf(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.as_tensor(stats.dirichlet_multinomial.logpmf(x, alpha, x.sum(-1)))
