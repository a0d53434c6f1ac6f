r"""Counts of V kinds, such as the words of a document, whose totals differ from datum to datum:

.. math:: \log p(x \mid n, p) = \log \frac{n!}{\prod_v x_v!} + \sum_v x_v \log p_v, \qquad
    n = \sum_v x_v.

The first term, the multinomial coefficient, is in the density: x stands for its tokens in any
order. It depends on nothing that is learned, but is not left out: without it, log p(x) would be
that of one sequence of tokens.

Shapes: V kinds; * is any batch, such as (N,).
"""

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Size, Tensor


class Multinomial(dist.TorchDistribution):
    """Counts (*, V) that add up to given totals (*); that of torch has one total for all rows.

    Args:
        total: n, of shape (*,).
        probs: p, of shape (*, V), up to a constant, which may be 0 for some kinds.
        logits: log p instead, up to a constant.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        total: Tensor,
        probs: Tensor | None = None,
        *,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        logits = (probs.log() if logits is None else logits).log_softmax(-1)
        batch = torch.broadcast_shapes(total.shape, logits.shape[:-1])
        self.total, self.logits = total.expand(batch), logits.expand(*batch, -1)
        super().__init__(batch, logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: None = None) -> "Multinomial":
        """Returns the same distribution for more rows."""
        new = self._get_checked_instance(Multinomial, _instance)
        new.total = self.total.expand(batch_shape)
        new.logits = self.logits.expand(*batch_shape, -1)
        super(Multinomial, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws of shape (…, V), each of which adds up to its n.

        Halves of the kinds share what there is in binomial draws, and so do halves of halves:
        log2 V steps, of tensors whose sizes depend on no total.
        """
        V = self.event_shape[0]
        masses = [torch.nn.functional.pad(self.logits.exp(), (0, (1 << (V - 1).bit_length()) - V))]
        while masses[-1].shape[-1] > 1:
            masses.append(masses[-1].unflatten(-1, (-1, 2)).sum(-1))  # (*, half as many)
        counts = self.total.to(masses[0].dtype).expand(*sample_shape, *self.batch_shape)[..., None]
        for mass in reversed(masses[:-1]):
            pairs = mass.unflatten(-1, (-1, 2))  # (*, as many as counts, 2)
            # Where nothing can come to either half, there is nothing to share out.
            share = (pairs[..., 0] / pairs.sum(-1)).nan_to_num(0.0)
            first = torch.binomial(counts.contiguous(), share.expand_as(counts).contiguous())
            counts = torch.stack((first, counts - first), -1).flatten(-2)
        return counts[..., :V]

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability (*) of counts that add up to the totals."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.to(self.logits.dtype)
        orders = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
        # What is impossible costs nothing where it is not seen: 0 times -inf is 0.
        return orders + torch.where(value > 0, value * self.logits, 0.0).sum(-1)
