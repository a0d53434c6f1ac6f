r"""Words with K binary factors each, spelt out by a recurrent network:

.. math:: z_k \sim \mathrm{Bern}(\pi_k), \qquad h_0 = \tanh(A z + a), \qquad
    h_t = \mathrm{GRU}(h_{t-1}, E_{x_{t-1}} + B z), \qquad
    x_t \mid x_{<t}, z \sim \mathrm{Cat}\big(\mathrm{softmax}(W h_t + b)\big),

for t = 1, 2, … until x_t is the end of the word, so that its length is part of its density: a
word of n characters is n + 1 draws. Characters are numbered from 1. The end is 0, and so is the padding
after it, and :math:`x_0`, which begins a word: what comes after an end is in no density.

A dream is spelt character by character, each word with a length of its own. One that has not ended
after the T steps that the data have is cut there.

References:
    | Variational inference and deep generative models, a tutorial (Aziz & Schulz, 2018), its
      exercise on a latent factor model of words
    | https://github.com/vitutorial/exercises

    | Learning phrase representations using RNN encoder-decoder for statistical machine translation
      (Cho et al., 2014), on the GRU
    | https://arxiv.org/abs/1406.1078

Shapes: N words, T characters of the longest, V characters of the alphabet, K factors, E embedding
dims, H hidden units; * is (N,) or (P, N).
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Size, Tensor, nn

from pplvm.models.sequences import check_lengths


class LatentFactorWords(nn.Module):
    """Creates the model of words; all sizes but V are arbitrary defaults.

    Args:
        num_characters: V.
        latent_dim: K.
        embedding_dim: E.
        hidden_dim: H.
    """

    def __init__(
        self,
        num_characters: int,
        latent_dim: int = 10,
        embedding_dim: int = 32,
        hidden_dim: int = 64,
    ) -> None:
        super().__init__()
        self.num_characters = num_characters
        self.prior = nn.Parameter(torch.zeros(latent_dim))  # (K,): logits
        self.speller = Speller(num_characters, latent_dim, embedding_dim, hidden_dim)

    def check_data(self, x: Tensor, lengths: Tensor) -> None:
        """Raises a ``ValueError`` for lengths that x has not, or characters there are none of."""
        check_words(x, lengths, self.num_characters)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Observes words and returns them; unconditioned, returns a dream and its lengths.

        Args:
            x: Of shape (N, T), characters 1 to V; what lies beyond the lengths is not looked at.
            lengths: How many characters each word has, (N,).
        """
        T = x.shape[1]
        seen = torch.where(torch.arange(T, device=x.device) < lengths[:, None], x, 0)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))  # (*, K)
            spelt = pyro.sample("x", Words(self.speller, z, T), obs=seen)  # (*, T)
        if spelt is seen:
            return x, lengths
        return spelt, (spelt > 0).sum(-1)  # which was not observed, but dreamt


class Speller(nn.Module):
    """Creates the network that spells words given factors."""

    def __init__(
        self, num_characters: int, latent_dim: int, embedding_dim: int, hidden_dim: int
    ) -> None:
        super().__init__()
        self.start = nn.Linear(latent_dim, hidden_dim)  # A and a
        self.embeddings = nn.Embedding(num_characters + 1, embedding_dim)  # E
        self.factors = nn.Linear(latent_dim, embedding_dim, bias=False)  # B
        self.gru = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.out = nn.Linear(hidden_dim, num_characters + 1)  # W and b

    def forward(self, z: Tensor, before: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns logits of the next characters, (*, S, V + 1), and the last hidden state.

        Args:
            z: Factors, (*, K).
            before: The characters before each of S steps, (*, S), or fewer dims on the left.
            h: The hidden state before the first of them, or None at the beginning of a word.
        """
        inputs = self.embeddings(before) + self.factors(z)[..., None, :]  # (*, S, E)
        batch, own = inputs.shape[:-2], (-1, *inputs.shape[-2:])
        if h is None:
            h = self.start(z).tanh().expand(*batch, -1).reshape(1, -1, self.gru.hidden_size)
        found, h = self.gru(inputs.reshape(own), h)  # the GRU knows one batch dim
        return self.out(found).reshape(*batch, own[1], -1), h


class Words(dist.TorchDistribution):
    """Words (*, T), 0 after their ends, of characters drawn from a network one after the other.

    Args:
        speller: The network.
        z: Factors, (*, K).
        num_steps: T. Longer words are cut when drawn: their densities are not what is drawn from.
    """

    arg_constraints = {"z": constraints.real_vector}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, speller: Speller, z: Tensor, num_steps: int, validate_args: bool | None = None
    ) -> None:
        self.speller, self.z = speller, z
        super().__init__(z.shape[:-1], Size([num_steps]), validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: None = None) -> "Words":
        """Returns the same distribution in a larger batch shape."""
        z = self.z.expand(*batch_shape, -1)
        return Words(self.speller, z, *self.event_shape, validate_args=False)

    @torch.no_grad()
    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws words, (…, T)."""
        z, h = self.z.expand(*sample_shape, *self.z.shape), None
        character = z.new_zeros(z.shape[:-1], dtype=torch.long)  # (…,): the beginning
        going, characters = torch.ones_like(character), []
        for _ in range(*self.event_shape):
            logits, h = self.speller(z, character[..., None], h)  # (…, 1, V + 1)
            character = dist.Categorical(logits=logits[..., 0, :]).sample() * going
            going = going * (character > 0)
            characters.append(character)
        return torch.stack(characters, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability (*) of words with their ends, all steps at once."""
        x = value.long()
        nothing = torch.zeros_like(x[..., :1])
        before = torch.cat((nothing, x), -1)  # (*, T + 1)
        after = torch.cat((x, nothing), -1)  # the last word may be T characters long, and then ends
        logits, _ = self.speller(self.z, before)  # (*, T + 1, V + 1)
        terms = logits.log_softmax(-1)
        terms = terms.gather(-1, after.expand(terms.shape[:-1])[..., None])[..., 0]
        going = torch.cat((nothing + 1, (x > 0).long().cumprod(-1)), -1)  # 1 up to the end
        return (terms * going).sum(-1)


def check_words(x: Tensor, lengths: Tensor, num_characters: int) -> None:
    """Raises a ``ValueError`` unless words (N, T) have lengths (N,) and characters 1 to V."""
    if x.ndim != 2 or x.is_floating_point():
        raise ValueError(
            f"'x' has shape {tuple(x.shape)} and dtype {x.dtype}: give the numbers of characters, "
            "whole ones, of shape (N, T), 0 after the end of each word."
        )
    check_lengths(x, lengths)
    inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    wrong = inside & ((x < 1) | (x > num_characters))
    if wrong.any():
        row, step = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"'x' is {x[row, step].item()} in row {row}, step {step}, within the length of its "
            f"word: characters are 1 to {num_characters}, 0 is for what comes after them."
        )
