"""The loop around a run: how long it goes on, what is validated and saved, and why it stopped."""

import math
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pplvm import checkpoint as files
from pplvm.batches import Batches
from pplvm.training import NotFiniteError, Run


class HeldOut(NamedTuple):
    """Held-out data, how many steps lie between looks at them, and how many vain looks end it."""

    batches: Batches
    every: int
    patience: int | None


class Saver(NamedTuple):
    """Where the whole state goes, how often, and the settings that go with it."""

    path: str | Path | None
    every: int
    settings: dict

    def save(self, run: Run) -> None:
        """Writes the state, if there is a path and the state is sound."""
        run.check_parameters()  # NaN must not take the place of the last good checkpoint
        if self.path is not None:
            files.write(self.path, {"settings": self.settings, "run": run.state()})

    def resume(self, run: Run) -> None:
        """Takes the run to where the file is, if there is one, made with the same settings."""
        if not Path(self.path).exists():
            return
        state = read_fit(self.path)
        for name in ("method", "seed", "num_data", "batch_size", "optimizer", "clip_norm"):
            then, now = state["settings"].get(name), self.settings[name]
            if then != now:
                raise ValueError(
                    f"'{self.path}' was made with {name} = {then!r}, got {now!r}: resume with the "
                    "same arguments, or give another checkpoint."
                )
        run.load(state["run"])

    def last_good(self) -> str:
        """Says where to go back to."""
        if self.path is None or not Path(self.path).exists():
            return "there is no checkpoint to go back to (give 'checkpoint')"
        return f"the last good checkpoint is '{self.path}', step {files.read(self.path)['run']['step']}"


def train(
    run: Run, last: int, held_out: HeldOut | None, saver: Saver, progress: bool | None
) -> str:
    """Takes the steps and returns why it stopped."""
    quiet = not sys.stderr.isatty() if progress is None else not progress
    choice = run.gradients.choice
    shown = tqdm(total=last, initial=run.step_count, desc="fit", disable=quiet)
    try:
        with shown:
            steps = run.steps()
            while run.step_count < last:
                if held_out is not None and run.stale() >= (held_out.patience or math.inf):
                    saver.save(run)
                    return f"early, no better in {held_out.patience} validations"
                bound = next(steps)
                shown.update()
                if run.gradients.choice != choice:
                    choice = run.gradients.choice
                    if not quiet and not choice.startswith("off"):
                        shown.write(f"pplvm: compile = {choice}", file=sys.stderr)
                if run.step_count % 50 == 0:
                    shown.set_postfix(bound=f"{bound:.3f}", refresh=False)
                if held_out is not None and run.step_count % held_out.every == 0:
                    run.validate(held_out.batches)
                if run.step_count % saver.every == 0 or run.step_count == last:
                    saver.save(run)
    except KeyboardInterrupt:
        which, step = (
            ("best weights, of", run.best_step) if run.best else ("weights of", run.step_count)
        )
        print(
            f"pplvm: interrupted at step {run.step_count}; kept the {which} step {step}.",
            file=sys.stderr,
        )
        return "interrupted"
    except NotFiniteError as error:
        raise NotFiniteError(f"{error}; {saver.last_good()}.") from error.__cause__
    return "all steps taken"


def read_fit(path: str | Path) -> dict:
    """Reads the settings and the state of a fit; a file of anything else is a ``ValueError``."""
    state = files.read(path)
    if not isinstance(state, dict) or state.keys() != {"settings", "run"}:
        raise ValueError(f"'{path}' holds no fit: give a file that Fit.save or checkpoint= wrote.")
    return state
