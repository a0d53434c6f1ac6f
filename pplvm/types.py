"""What every objective returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A surrogate whose gradient is meant and a number to report, never mixed up.

    An estimate also answers the three questions that ``pyro.infer.SVI`` puts to a loss, in
    Pyro's units (summed over the data), so that every objective may serve as that ``loss``.
    """

    loss: Tensor  # () surrogate, averaged over the data: only its gradient means anything
    bound: Tensor  # (N,) lower bound on log p(x_n), in nats, detached: the number to report

    @property
    def requires_grad(self) -> bool:
        """Whether there is anything to differentiate."""
        return self.loss.requires_grad

    def backward(self, retain_graph: bool = False) -> None:
        """Accumulates the gradient of the surrogate, summed over the data."""
        (self.loss * len(self.bound)).backward(retain_graph=retain_graph)

    def item(self) -> float:
        """Returns what Pyro calls the loss: the negative bound of all the data, in nats."""
        return -self.bound.sum().item()
