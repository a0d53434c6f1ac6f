"""ChEES-HMC: Hamiltonian Monte Carlo for many short chains that move, and adapt, together.

Each iteration moves all chains along trajectories of the same length h_t·T, in coordinates scaled
to unit variance, with one batched gradient a leapfrog step. h_t is the van der Corput sequence,
which keeps trajectories from falling into step with an orbit of the target. T climbs the *change
in the estimator of the expected square*, by its gradient at the end (x', v') of a trajectory::

    ChEES = ¼ E[(‖x' − E x‖² − ‖x − E x‖²)²]
    T · dChEES/dT = E[h_t T (‖x' − E x‖² − ‖x − E x‖²) (x' − E x)ᵀ v']

a mean over chains, weighted by their probabilities of acceptance. Longer jumps in ‖x − E x‖² mean
less autocorrelation of first *and* second moments; expected squared jumps in x itself are largest
where x' = −x, which never changes the norm.

References:
    | An adaptive-MCMC scheme for setting trajectory lengths in HMC (Hoffman, Radul & Sountsov, 2021)
    | https://proceedings.mlr.press/v130/hoffman21a.html
    | The No-U-Turn Sampler (Hoffman & Gelman, 2014), for dual averaging
    | https://jmlr.org/papers/v15/hoffman14a.html
"""

__all__ = ["Potential", "Transition", "chees_hmc", "stack"]

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# (C, D) positions -> (C,) potentials, (C, D) gradients: detached, and not finite outside the
# support rather than an error. They may be overwritten by the next call, as by a CUDA graph.
Potential = Callable[[Tensor], tuple[Tensor, Tensor]]

_DIVERGENT = 1000.0  # nats of energy error, as in Stan
# A chain that is rejected for sure counts as one accepted this often. The paper's harmonic mean has
# no floor: one chain in thousands beyond rescue would then drag the steps of all to zero.
_LEAST_ACCEPTANCE = 0.1
# Of the dual averaging: Hoffman & Gelman's, and one for when steps are about right. A mean over
# chains needs less of a pull than one chain, and steps that wander end too short.
_QUICK, _STEADY = 0.05, 0.2
# Where adaptation begins: about the best T, 2.25, for a standard Gaussian, and a step that few
# dims bear; where it is far too long, dual averaging takes it down a thousandfold in 4 iterations.
_FIRST_LENGTH, _FIRST_STEP = 2.0, 1.0
_CROWD = 16  # chains by whose potentials one of them can be called astray
_SETTLING_STEPS = 32  # the most steps a trajectory while scales may be wrong by orders of magnitude


class Transition(NamedTuple):
    """One iteration of all chains, and the settings that it was made with."""

    position: Tensor  # (C, D) after it
    diverging: Tensor  # (C,) whether its energy error was beyond all reason
    energy: Tensor  # (C,) potential and kinetic energy after it, in nats
    acceptance_rate: Tensor  # (C,) probability of acceptance
    n_steps: int  # leapfrog steps of every chain, each one gradient
    step_size: float  # in coordinates divided by their scale, as is the next
    trajectory_length: float  # T
    scale: Tensor  # (D,) sd of each coordinate: the mass matrix is diag(scale)⁻²
    warmup: bool


class _State(NamedTuple):
    position: Tensor  # (C, D)
    potential: Tensor  # (C,)
    gradient: Tensor  # (C, D)


class _Move(NamedTuple):
    """A proposal, and what became of it."""

    start: _State
    end: _State
    velocity: Tensor  # (C, D) at the end, in scaled coordinates
    error: Tensor  # (C,) of the energy
    acceptance: Tensor  # (C,) probability
    accepted: Tensor  # (C,)
    energy: Tensor  # (C,) of where each chain now is


def chees_hmc(
    potential: Potential,
    initial: Tensor,
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    target_accept: float = 0.75,
    max_num_steps: int = 1000,
) -> Iterator[Transition]:
    """Draws from the density exp(−potential), up to a constant; yields every iteration.

    ``draws, statistics = stack(chees_hmc(…))`` runs it to its end; a loop may stop before.

    Args:
        potential: Maps (C, D) to the potentials (C,) in nats and their gradients (C, D), detached.
            It returns what is not finite where the density is zero; such moves are rejected.
        initial: Where the chains start, (C, D), best spread about; C ≥ 2, and better 64 or more.
        num_warmup: Iterations of adaptation: a fifth settles the scales near the typical set, then
            the trajectory length is learned too, and a fifth tunes the step size alone. Before
            each of the last two, chains that are stuck or astray begin again where others are. Strong
            correlations, or fewer than 16 chains, deserve 500; easy targets need 100.
        num_samples: The number of iterations after that, with all adaptation frozen.
        generator: Of all the noise, on the device of ``initial``.
        target_accept: The harmonic mean of the acceptance probabilities that the step size aims
            at: 0.75 makes their plain mean about 0.83. The paper has 0.651, about 0.78.
        max_num_steps: The most leapfrog steps of one trajectory. The default is arbitrary.

    Yields:
        Transitions of all chains, those of the warm-up included.

    Raises:
        ValueError: There is one chain, or the potential is not finite where chains start.
    """
    state = _start(potential, initial)
    settled, learned = num_warmup // 5, num_warmup - num_warmup // 5
    tuning = _Tuning(initial, target_accept, learned - settled)
    still = torch.zeros_like(state.potential)  # (C,) rejections in a row
    for i in range(num_warmup + num_samples):
        if i in (settled, learned):
            state = _rescue(state, (still > settled // 2) | _astray(state.potential), generator)
        if i == settled:
            tuning.step.restart(tuning.step.mean, _STEADY)
        if i == learned:
            tuning.freeze_length()
        if i == num_warmup:
            tuning.step.size = tuning.step.mean
        most = min(max_num_steps, _SETTLING_STEPS if i < settled else max_num_steps)
        jitter, step_size, length, scale = _jitter(i), tuning.step.size, tuning.length, tuning.scale
        num_steps = min(max(math.ceil(jitter * length / step_size), 1), most)
        move = _move(potential, state, step_size * scale, num_steps, generator)
        state = _choose(move.accepted, move.end, move.start)
        if i < num_warmup:
            still = torch.where(move.accepted, 0.0, still + 1.0)
            tuning.update(move, jitter, settled <= i < learned, max_num_steps)
        if i < learned:
            tuning.update_scale(state.position)
        yield Transition(
            position=state.position,
            diverging=move.error > _DIVERGENT,
            energy=move.energy,
            acceptance_rate=move.acceptance,
            n_steps=num_steps,
            step_size=step_size,
            trajectory_length=length,
            scale=scale,
            warmup=i < num_warmup,
        )


def stack(transitions: Iterable[Transition]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the draws after the warm-up, (C, S, D), and their statistics.

    These are (C, S) each, by ArviZ's names: diverging, energy, acceptance_rate, n_steps and
    step_size, the last in coordinates divided by their scale.
    """
    kept = [t for t in transitions if not t.warmup]
    if not kept:
        raise ValueError("no iteration after the warm-up: there are no draws to keep.")
    stats = {
        name: torch.stack([getattr(t, name) for t in kept], 1)
        for name in ("diverging", "energy", "acceptance_rate")
    }
    energy = stats["energy"]  # (C, S)
    steps = torch.tensor([t.n_steps for t in kept], device=energy.device)  # (S,)
    stats["n_steps"] = steps.expand(energy.shape)
    stats["step_size"] = energy.new_tensor([t.step_size for t in kept]).expand(energy.shape)
    return torch.stack([t.position for t in kept], 1), stats


# ---- one transition ----


def _start(potential: Potential, initial: Tensor) -> _State:
    if initial.ndim != 2 or len(initial) < 2:
        raise ValueError(
            f"'initial' should be (C, D) of two chains or more, which adapt together, "
            f"got {tuple(initial.shape)}."
        )
    value, gradient = potential(initial.clone())
    lost = ~(value.isfinite() & gradient.isfinite().all(-1))  # (C,)
    if lost.any():
        raise ValueError(
            f"{int(lost.sum())} of {len(initial)} chains start where the potential or its gradient "
            "is not finite: give 'initial' inside the support."
        )
    return _State(initial.clone(), value.clone(), gradient.clone())


def _move(
    potential: Potential, start: _State, stride: Tensor, num_steps: int, generator: torch.Generator
) -> _Move:
    """Takes ``num_steps`` leapfrog steps of ``stride`` (D,), step size times scale."""
    like = {"generator": generator, "dtype": stride.dtype, "device": stride.device}
    momentum = torch.randn(start.position.shape, **like)
    # Velocity and momentum are one in scaled coordinates, and the two half kicks between leaps
    # are taken as one: two tensor operations a step beside the gradient.
    position, velocity, gradient = start.position.clone(), momentum.clone(), start.gradient
    for n in range(num_steps):
        velocity.addcmul_(gradient, stride, value=-1.0 if n else -0.5)
        position.addcmul_(velocity, stride)
        value, gradient = potential(position)
    velocity.addcmul_(gradient, stride, value=-0.5)
    before, after = (0.5 * v.square().sum(-1) for v in (momentum, velocity))  # (C,) kinetic
    error = (value - start.potential) + (after - before)  # in this order, for float32
    error = torch.where(error.isfinite(), error, math.inf)
    acceptance = (-error).exp().clamp(max=1)
    accepted = torch.rand(acceptance.shape, **like) < acceptance
    return _Move(
        start=start,
        end=_State(position, value, gradient),
        velocity=velocity,
        error=error,
        acceptance=acceptance,
        accepted=accepted,
        energy=torch.where(accepted, value + after, start.potential + before),
    )


def _choose(which: Tensor, yes: _State, no: _State) -> _State:
    """Returns new tensors: a potential may overwrite those that it returned."""
    return _State(
        torch.where(which[:, None], yes.position, no.position),
        torch.where(which, yes.potential, no.potential),
        torch.where(which[:, None], yes.gradient, no.gradient),
    )


def _jitter(i: int) -> float:
    """The van der Corput sequence ½, ¼, ¾, ⅛, …: the bits of i + 1 behind the point, reversed."""
    value, weight, i = 0.0, 0.5, i + 1
    while i:
        value, weight, i = value + weight * (i & 1), weight / 2, i >> 1
    return value


# ---- adaptation ----


def _harmonic_mean(acceptance: Tensor) -> Tensor:  # (C,) -> ()
    return 1 / (1 / acceptance.clamp(min=_LEAST_ACCEPTANCE)).mean()


def _log_variance(position: Tensor, instead: Tensor) -> Tensor:
    """Returns the log-variance of each coordinate over the chains, (D,), where there is any."""
    variance = position.var(0)
    return torch.where(variance > 0, variance.log(), instead)


def _astray(potential: Tensor) -> Tensor:
    """Finds chains (C,) in a local mode of next to no mass: their potentials are far above others'.

    Further, that is, than ten times the median is above the least: some 23 sds for a Gaussian.
    """
    median = potential.median()
    return (potential - median > 10 * (median - potential.min())) & (len(potential) >= _CROWD)


def _rescue(state: _State, stuck: Tensor, generator: torch.Generator) -> _State:
    """Moves stuck chains (C,) to where others are: no sin before any draw is kept."""
    if not stuck.any() or stuck.all():
        return state
    free = (~stuck).nonzero()[:, 0]
    rows = torch.randint(len(free), stuck.shape, generator=generator, device=stuck.device)
    return _choose(stuck, _State(*(x[free[rows]] for x in state)), state)


class _Average:
    """A mean over about the latest tenth of what it was given: it forgets where chains began."""

    def __init__(self, value: Tensor | float) -> None:
        self.value, self.count = value, 0

    def update(self, value: Tensor | float) -> None:
        self.count += 1
        self.value = self.value + 10 / (10 + self.count) * (value - self.value)


class _DualAveraging:
    """A step size for an acceptance of ``target``, as in section 3.2 of Hoffman & Gelman."""

    def __init__(self, target: float) -> None:
        self.target = target
        self.restart(_FIRST_STEP, _QUICK)

    def restart(self, size: float, shrinkage: float) -> None:
        """Begins anew near a size, to which it holds on the more the larger ``shrinkage``."""
        self.size, self.mean, self.shrinkage = size, size, shrinkage
        self.centre, self.count, self.lack = math.log(size), 0, 0.0

    def update(self, acceptance: float) -> None:
        self.count += 1
        self.lack += self.target - acceptance
        log = self.centre - self.count**0.5 / self.shrinkage * self.lack / (self.count + 10)
        weight = self.count**-0.75
        self.size = math.exp(log)
        self.mean = math.exp((1 - weight) * math.log(self.mean) + weight * log)


class _Tuning:
    """Step size, trajectory length T and scales, as learned from all chains."""

    def __init__(self, initial: Tensor, target_accept: float, num_learning: int) -> None:
        self.step = _DualAveraging(target_accept)
        self.length = _FIRST_LENGTH
        self._mean_log_length = _Average(math.log(self.length))
        self._mean = _Average(initial.mean(0))
        # Logarithms, so that where chains began is soon forgotten even if it was 1,000 sds away.
        self._log_variance = _Average(_log_variance(initial, torch.zeros_like(initial[0])))
        # Adam's rate: the paper's, or as much more as a short warm-up needs to cover e⁸.
        self._rate = min(max(8 / max(num_learning, 1), 0.025), 0.05)
        self._square, self._count = 0.0, 0
        self.scale = self._log_variance.value.mul(0.5).exp()

    def update(self, move: _Move, jitter: float, learning: bool, max_num_steps: int) -> None:
        """Adapts to one transition, and the trajectory length only while ``learning``."""
        slope = jitter * self.length * self._slope(move)
        acceptance, slope = torch.stack([_harmonic_mean(move.acceptance), slope]).tolist()
        if learning:
            # Adam on log T, without momentum as in the paper. Its steps are at most rate / √0.05,
            # 0.22, which spares the clip of other implementations.
            self._count += 1
            self._square = 0.95 * self._square + 0.05 * slope**2
            size = (self._square / (1 - 0.95**self._count)) ** 0.5
            length = self.length * math.exp(self._rate * slope / size if size > 0 else 0.0)
            self.length = min(max(length, self.step.size), max_num_steps * self.step.size)
            self._mean_log_length.update(math.log(self.length))
        self.step.update(acceptance)

    def update_scale(self, position: Tensor) -> None:
        """Takes in positions (C, D)."""
        self._mean.update(position.mean(0))
        self._log_variance.update(_log_variance(position, self._log_variance.value))
        self.scale = self._log_variance.value.mul(0.5).exp()

    def freeze_length(self) -> None:
        """Fixes the trajectory length; the step size is then tuned to it."""
        self.length = math.exp(self._mean_log_length.value)
        self.step.restart(self.step.mean, _STEADY)

    def _slope(self, move: _Move) -> Tensor:
        """Returns the derivative of ChEES by the time at the end of a trajectory, ()."""
        before, after = (
            (state.position - self._mean.value) / self.scale for state in (move.start, move.end)
        )  # (C, D)
        change = after.square().sum(-1) - before.square().sum(-1)  # (C,)
        slopes = change * (after * move.velocity).sum(-1)
        weights = torch.where(slopes.isfinite(), move.acceptance, 0)
        slopes = torch.where(slopes.isfinite(), slopes, 0)
        return (weights * slopes).sum() / weights.sum().clamp(min=1e-9)
