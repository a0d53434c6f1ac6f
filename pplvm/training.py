"""One run of stochastic gradient steps, which can stop anywhere and go on bit for bit."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pplvm import traces
from pplvm.batches import Batches
from pplvm.checkpoint import OBJECTIVE, STORY, copy_into
from pplvm.contract import (
    check,
    check_closures,
    check_minibatches,
)
from pplvm.contract_objectives import check_objective, objective_option
from pplvm.gradients import Gradients
from pplvm.parameters import Scope, leaves, module_of, modules, moved
from pplvm.traces import Program
from pplvm.training_copies import copies
from pplvm.types import Estimate
from pplvm.updates import check_optimizer, groups, update


@dataclass
class History:
    """What a fit went through; bounds are averages over data, in nats."""

    bound: list[float] = field(default_factory=list)  # of each step's batch
    lr: list[float] = field(default_factory=list)  # of each step
    validated_at: list[int] = field(default_factory=list)  # steps done before each validation
    validation: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Run:
    """The state of a fit between two steps.

    Args:
        model: The model; modules are trained in copies, so that the caller's stay as they are.
        guide: The guide, likewise; None for Pyro's ``AutoNormal``.
        objective: The objective.
        batches: The data.
        optimizer: Maps parameters to a torch optimiser.
        scheduler: Maps that optimiser to a scheduler, stepped after every step, or None.
        clip_norm: The largest norm of the gradient, or None.
        kl_schedule: Maps the step to the weight of the divergence, or None.
        device: Where to compute.
        seed: Of the run's own random state.
        compile: How to run the steps after the first epoch, one of ``pplvm.compile.MODES``.
        num_steps: How many steps there will be, by which "auto" decides.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable | None,
        *,
        objective: Callable[..., Estimate],
        batches: Batches,
        optimizer: Callable[[list[Tensor]], Optimizer],
        scheduler: Callable | None,
        clip_norm: float | None,
        kl_schedule: Callable[[int], float] | None,
        device: torch.device,
        seed: int,
        compile: str = "off",
        num_steps: int = 1000,
    ) -> None:
        self.model, self.guide = copies(model, guide, *batches.first())
        for module in modules(self.model, self.guide).values():
            module.to(device).train()
        self.objective, self.batches, self.device = copy.deepcopy(objective), batches, device
        check_objective(objective)
        learning = module_of(self.objective)  # an objective with parameters or averages of its own
        self.learning = None if learning is None else learning.to(device).train()
        self.kl_schedule, self.num_steps = kl_schedule, num_steps
        self.scope = Scope(seed)
        self.model, self.guide = (self.scope.thaw(f) for f in (self.model, self.guide))
        with self.scope():
            first = batches.first()
            check(self.model, self.guide, *first)  # and so creates what pyro.param declares
            several = objective_option(objective, "num_particles", 1) > 1
            if several or objective_option(objective, "rao_blackwell", False):
                traces.check_particles(self.model, self.guide, *first)
            self._nesting = traces.nesting(self.model, self.guide, *first)
            sites = traces.look(self.model, *first).values()
            self._per_datum = any(map(traces.in_data_plate, sites))
            self.scope.adopt(modules(self.model, self.guide))
            self.parameters = leaves(self.model, self.guide)
            with moved(self.parameters.values()):
                known = traces.prepared(
                    Program(self.model, nesting=self._nesting), self.guide, *first
                )
            self._known = known
            if batches.per_epoch > 1:
                check_minibatches(self.model, self.listed, *first)
            check_closures(self.model, self.guide, self.parameters)
            if hasattr(self.learning, "prepare"):
                self.learning.prepare(self.model, self.guide, *first)
        if not self.parameters:
            raise ValueError(
                "neither model nor guide has a parameter to learn: use nn.Parameter or pyro.param, "
                "and leave requires_grad on."
            )
        learned, own = list(self.parameters.values()), list(self._of_objective().values())
        self.optimizer = optimizer(groups(learned, own, getattr(self.learning, "lr", None)))
        check_optimizer(self.optimizer)
        self.scheduler = scheduler(self.optimizer) if scheduler is not None else None
        self.gradients = Gradients(
            self.estimate, [*learned, *own], self._places, self._buffers, clip_norm, compile,
            num_clipped=len(learned),
        )  # fmt: skip
        self._update = update(self.optimizer, [*learned, *own])
        self.step_count, self.history = 0, History()
        self.best: dict[str, Tensor] | None = None
        self.best_step = 0

    # ---- steps: all of them are to be called inside the scope ----

    def steps(self) -> Iterator[float]:
        """Takes step after step, yielding each one's bound."""
        while True:
            epoch, skip = divmod(self.step_count, self.batches.per_epoch)
            for batch in self.batches.epoch(epoch, skip):
                start = time.perf_counter()
                bound = self._step(batch, epoch)
                self.history.seconds += time.perf_counter() - start
                yield bound

    def _step(self, batch: tuple[Tensor, ...], epoch: int) -> float:
        weight = None if self.kl_schedule is None else float(self.kl_schedule(self.step_count))
        try:
            # Whatever is wrong with the data shows in the first epoch, which sees all of them;
            # checking every number again afterwards would cost a third of the time.
            if epoch == 0:
                found = self.gradients.eager(batch, weight, validate=True)
            else:
                found = self.gradients(batch, weight, self._num_left)
        except traces.SupportError:  # the data's fault
            raise
        except ValueError as error:  # Pyro's own word on NaN parameters names no step
            self._check_finite(math.nan, batch, error)
            raise
        if not (math.isfinite(found.loss) and math.isfinite(found.bound)):
            self._check_finite(found.bound if math.isfinite(found.loss) else math.nan, batch)
        self.history.lr.append(self.optimizer.param_groups[0]["lr"])
        self.history.bound.append(found.bound)
        self._update(found.grads)
        self.step_count += 1
        if self.scheduler is not None:
            self.scheduler.step()
        return found.bound

    def _num_left(self, batch: tuple[Tensor, ...]) -> int:
        """Returns how many batches of this size are still to come."""
        left, per_epoch = self.num_steps - self.step_count, self.batches.per_epoch
        short = per_epoch > 1 and len(batch[0]) < self.batches.batch_size
        return left // per_epoch if short else left

    @property
    def listed(self) -> frozenset[str]:
        """The discrete latents that are summed out."""
        return self._known.listed

    def _modules(self) -> dict[str, nn.Module]:
        own = {} if self.learning is None else {"objective": self.learning}
        return modules(self.model, self.guide) | own

    def _of_objective(self) -> dict[str, Tensor]:
        """Returns what the objective learns by itself."""
        named = () if self.learning is None else self.learning.named_parameters()
        return {name: p for name, p in named if p.requires_grad}

    def _places(self) -> list[dict | list]:
        owned = self._modules()
        parts = [part for module in owned.values() for part in module.modules()]
        return [*self.scope.places(owned), *(part._buffers for part in parts)]

    def _buffers(self) -> dict[str, Tensor]:
        return {
            f"{role}.{name}": b
            for role, module in self._modules().items()
            for name, b in module.named_buffers()
        }

    def _learnt(self) -> dict[str, Tensor]:
        """Returns what model and guide came to be: their parameters, and averages such as those of
        batch normalisation, without which the parameters are others' in evaluation.
        """
        own = {n: b for n, b in self._buffers().items() if not n.startswith("objective.")}
        return self.parameters | own

    def estimate(self, *batch: Tensor, weight: float | Tensor | None = None) -> Estimate:
        """Returns the objective's estimate on one batch, the divergence weighted if so asked."""
        # Held-out data of a story without a data plate are a datum, and no part of another.
        share = len(batch[0]) / self.batches.size if self._per_datum else 1.0
        model, guide = (
            replace(self._known, program=f, share=share) for f in (self.model, self.guide)
        )
        if weight is None:
            return self.objective(model, guide, *batch)
        return self.objective(model, guide, *batch, kl_weight=weight)

    def validate(self, batches: Batches) -> float:
        """Returns the mean bound of held-out data and keeps what made it if it is the best."""
        total = 0.0
        with self._evaluating(batches.seed):
            for batch in batches.epoch(0):
                # The mean times the data, as a story without a data plate has one bound for all.
                total += self.estimate(*batch).bound.mean().item() * len(batch[0])
        bound = total / batches.size
        past = [value for value in self.history.validation if math.isfinite(value)]
        if math.isfinite(bound) and (not past or bound > max(past)):
            self.best = {name: value.detach().clone() for name, value in self._learnt().items()}
            self.best_step = self.step_count
        self.history.validated_at.append(self.step_count)
        self.history.validation.append(bound)
        return bound

    def stale(self) -> int:
        """Returns how many validations there were since the best one."""
        return sum(at > self.best_step for at in self.history.validated_at)

    def restore_best(self) -> None:
        """Puts back the parameters and buffers that did best in validation, if there was any."""
        if self.best is not None:
            copy_into(self._learnt(), self.best)

    def evaluation_mode(self) -> None:
        """Tells modules, such as dropout, that training is over."""
        for module in self._modules().values():
            module.eval()

    @contextmanager
    def _evaluating(self, seed: int) -> Iterator[None]:
        owned = self._modules().values()
        self.evaluation_mode()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
        for module in owned:
            module.train()

    def _check_finite(
        self, bound: float, batch: tuple[Tensor, ...], error: Exception | None = None
    ) -> None:
        if math.isfinite(bound):
            return
        culprit = traces.first_non_finite(self.model, self.guide, *batch)
        names = self._non_finite()
        if error is not None and culprit is None and not names:
            return
        where = f"first at site '{culprit}'" if culprit else "in no site's own density"
        if names:
            where += f", with NaN in the parameter '{names[0]}'"
        raise NotFiniteError(
            f"the bound turned {bound} at step {self.step_count}, {where}: lower 'lr', set "
            "'clip_norm', or keep scales away from 0"
        ) from error

    def check_parameters(self) -> None:
        """Raises a ``ValueError`` if a parameter is NaN or infinite."""
        names = self._non_finite()
        if names:
            raise NotFiniteError(
                f"the parameter '{names[0]}' turned NaN or infinite by step {self.step_count}: "
                "lower 'lr', set 'clip_norm', or keep scales away from 0"
            )

    def _non_finite(self) -> list[str]:
        return [n for n, p in self.parameters.items() if not torch.isfinite(p).all()]

    def bound(self) -> tuple[Callable, Callable]:
        """Returns model and guide, to be called outside the scope."""
        owned = modules(self.model, self.guide)
        return self.scope.bind(self.model, owned), self.scope.bind(self.guide, owned)

    # ---- the whole state, for checkpoints ----

    def _frozen(self) -> dict[str, Tensor]:
        """Returns the parameters of modules that are not learned."""
        return {
            f"{role}.{name}": p
            for role, module in modules(self.model, self.guide).items()
            for name, p in module.named_parameters()
            if not p.requires_grad
        }

    def state(self) -> dict:
        """Returns everything that the next step depends on."""
        return {
            "parameters": dict(self.parameters),
            "frozen": self._frozen(),
            "objective": self._of_objective(),
            "buffers": self._buffers(),
            "best": self.best,
            "best_step": self.best_step,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "random": self.scope.state(),
            "step": self.step_count,
            "history": asdict(self.history),
        }

    def load(self, state: dict) -> None:
        """Takes over what :meth:`state` returned."""
        self.load_parameters(state)
        copy_into(self._of_objective(), state.get("objective", {}), OBJECTIVE)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scope.resume(state["random"])

    def load_parameters(self, state: dict) -> None:
        """Takes over what a trained run is, but not what its next step would need."""
        copy_into(self.parameters, state["parameters"])
        for name, b in self._buffers().items():
            saved, of_objective = state["buffers"].get(name), name.startswith("objective.")
            if saved is None and of_objective:
                continue  # it may be another than the one that made the fit
            if saved is None or saved.shape != b.shape:
                what, remedy = OBJECTIVE if of_objective else STORY
                raise ValueError(
                    f"the file is of another {what}: it has no buffer '{name}' of shape "
                    f"{tuple(b.shape)}; give the {remedy} that made it."
                )
            b.copy_(saved)
        copy_into(self._frozen(), state["frozen"])
        self.best, self.best_step = state["best"], state["best_step"]
        self.step_count = state["step"]
        self.history = History(**state["history"])


class NotFiniteError(ValueError):
    """A bound that turned NaN or infinite."""
