r"""Stories with discrete latents, small enough to list all their states, and data for them.

Every density is written again here, in torch alone and from the stories' parameters.
"""

import itertools
import math
from functools import partial

import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.nn.functional import logsigmoid

from pplvm.guides.factorial_hmm import AmortisedMeanField, MeanField
from pplvm.guides.naive_bayes import NaiveBayesGuide
from pplvm.guides.neural_mixture import NeuralMixtureGuide
from pplvm.models.factorial_hmm import FactorialHMM
from pplvm.models.gaussian_mixture import BayesianGaussianMixture, GaussianMixture
from pplvm.models.hmm import HMM, NeuralHMM
from pplvm.models.naive_bayes import NaiveBayes
from pplvm.models.neural_mixture import NeuralMixture

N, T, K, M, D = 4, 4, 3, 2, 3
LENGTHS = torch.tensor([4, 1, 3, 2])

MODELS = {
    "gaussian_mixture": lambda: GaussianMixture(D, K),
    "bayesian_gaussian_mixture": lambda: BayesianGaussianMixture(D, K),
    "bernoulli_bayes": lambda: NaiveBayes(D, K),
    "multinomial_bayes": lambda: NaiveBayes(D, K, "multinomial"),
    "neural_mixture": lambda: NeuralMixture(D, K),
    "categorical_hmm": lambda: HMM(K, D),
    "gaussian_hmm": lambda: HMM(K, D, "gaussian"),
    "poisson_hmm": lambda: HMM(K, D, "poisson"),
    "bernoulli_hmm": lambda: HMM(K, D, "bernoulli"),
    "neural_hmm": lambda: NeuralHMM(K, D),
    "factorial_hmm": lambda: FactorialHMM(M, K, D),
    "factorial_bernoulli_hmm": lambda: FactorialHMM(M, K, D, "bernoulli"),
}
SERIES = [name for name in MODELS if "hmm" in name]
MIXTURES = ["gaussian_mixture", "bernoulli_bayes", "multinomial_bayes", "neural_mixture"]
GUIDES = {
    "bernoulli_bayes": lambda: NaiveBayesGuide(D, K),
    "multinomial_bayes": lambda: NaiveBayesGuide(D, K),
    "neural_mixture": lambda: NeuralMixtureGuide(D, K),
    "factorial_hmm": lambda: MeanField(N, T, M, K),
    "factorial_bernoulli_hmm": lambda: AmortisedMeanField(D, M, K),
}


def story(name: str) -> torch.nn.Module:
    """Returns a story in which no parameter is as it starts."""
    model = MODELS[name]()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return model


def data_of(name: str, num_data: int = N, num_steps: int = T) -> tuple[Tensor, ...]:
    """Returns data that a story may observe, lengths included; nothing of them is 0 at the end."""
    shape = (num_data, num_steps, D) if name in SERIES else (num_data, D)
    if name == "categorical_hmm":
        x = torch.randint(D, shape[:2])
    elif "poisson" in name or "multinomial" in name:
        x = torch.poisson(torch.full(shape, 2.0)) + 1
    elif "bernoulli" in name or "neural_hmm" in name:
        x = torch.bernoulli(torch.full(shape, 0.5))
    else:
        x = torch.randn(shape)
    lengths = (LENGTHS.clamp(max=num_steps)[torch.arange(num_data) % N],)
    return (x, *lengths) if name in SERIES else (x,)


def enumerated(model, *data, depth=1) -> Tensor:
    """Returns the sum of log p(x) as Pyro has it; states beyond the lengths sum to one."""
    loss = TraceEnum_ELBO(max_plate_nesting=depth)
    return torch.as_tensor(-loss.loss(config_enumerate(model), lambda *data: None, *data))


# ---- densities by hand ----


def normal(x: Tensor, loc: Tensor, log_s: Tensor) -> Tensor:
    terms = -0.5 * ((x - loc) / log_s.exp()) ** 2 - log_s - 0.5 * math.log(2 * math.pi)
    return terms.sum(-1)


def bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    return logsigmoid((2 * x - 1) * logits).sum(-1)


def poisson(x: Tensor, log_rate: Tensor) -> Tensor:
    return (x * log_rate - log_rate.exp() - (x + 1).lgamma()).sum(-1)


def emission(name: str, model, x: Tensor, k: int) -> Tensor:
    """log p(x | k) of x, (N, D) or (N,): (N,)."""
    if name == "gaussian_mixture":
        return normal(x, model.mu[k], model.log_s[k])
    if name == "gaussian_hmm":
        return normal(x, model.W[k], model.log_s[k])
    if name == "multinomial_bayes":
        orders = (x.sum(-1) + 1).lgamma() - (x + 1).lgamma().sum(-1)
        return orders + (x * (model.W[k].softmax(-1)).log()).sum(-1)
    if name == "neural_mixture":
        first, _, last = model.decoder
        out = last.weight @ (first.weight[:, k] + first.bias).tanh() + last.bias
        return normal(x, out[:D], out[D:])
    if name == "categorical_hmm":
        return model.W[k].softmax(-1).log()[x]
    return (poisson if name == "poisson_hmm" else bernoulli)(x, model.W[k])


def path_of_hmm(name: str, model, x: Tensor, path: tuple[int, ...]) -> Tensor:
    """log p(x, path) of one sequence x, (T, D) or (T,)."""
    pi, A = model.log_pi.softmax(-1), model.log_A.softmax(-1)
    total = pi[path[0]].log()
    for i, j in itertools.pairwise(path):
        total = total + A[i, j].log()
    return total + sum(emission(name, model, x[t : t + 1], k)[0] for t, k in enumerate(path))


def path_of_neural(model, x: Tensor, path: tuple[int, ...]) -> Tensor:
    total = model.log_pi.softmax(-1)[path[0]].log()
    W, b = model.before.weight, model.before.bias
    H = len(b) // 2
    for t, k in enumerate(path):
        h = b if t == 0 else W @ x[t - 1] + b
        if t > 0:
            layer = model.transition[1]
            logits = layer.weight @ (model.moving[path[t - 1]] + h[:H]).tanh() + layer.bias
            total = total + logits.softmax(-1)[k].log()
        layer = model.emission[1]
        logits = layer.weight @ (model.emitting[k] + h[H:]).tanh() + layer.bias
        total = total + bernoulli(x[t], logits)
    return total


def path_of_factorial(model, x: Tensor, path: tuple[tuple[int, ...], ...]) -> Tensor:
    total = torch.zeros(())
    for m in range(M):
        total = total + model.log_pi[m].softmax(-1)[path[0][m]].log()
        for i, j in itertools.pairwise(path):
            total = total + model.log_A[m].softmax(-1)[i[m], j[m]].log()
    for t, states in enumerate(path):
        loc = model.W[0, states[0]] + model.W[1, states[1]]
        gaussian = model.log_s is not None
        total = total + (normal(x[t], loc, model.log_s) if gaussian else bernoulli(x[t], loc))
    return total


def brute_force(name: str, model, x: Tensor) -> Tensor:
    """log p(x) of one sequence, (T, D) or (T,), as a sum over all paths."""
    states = list(range(K))
    if "factorial" in name:
        states, path_of = list(itertools.product(states, states)), path_of_factorial
    else:
        path_of = path_of_neural if name == "neural_hmm" else partial(path_of_hmm, name)
    paths = itertools.product(states, repeat=len(x))
    return torch.stack([path_of(model, x, path) for path in paths]).logsumexp(0)
