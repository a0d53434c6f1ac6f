"""The command line: the same jobs for shipped stories and for a user's own file."""

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from typer.core import TyperGroup

import pplvm
from pplvm import cli_topics, datasets
from pplvm.catalog import STORIES
from pplvm.checkpoint import check_writable
from pplvm.cli_job import Job
from pplvm.naming import nearest, runs
from pplvm.study import METHODS, OBJECTIVES, freeze, study


class _Commands(TyperGroup):
    """Sends `fit lda` and its like to a command of their own, with the options of topic models."""

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple:
        """Returns the name of a command, the command, and what is left of the arguments."""
        if args[0] == "fit" and args[1:2] and args[1] in cli_topics.NAMES:
            return "fit", self.commands["fit-topics"], args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Latent variable models: one generative story, every inference method, one honest report.",
)  # fmt: skip

StoryName = Annotated[
    str, typer.Argument(help="A shipped story (see `pplvm list`) or file.py:model.")
]
GuideName = Annotated[str | None, typer.Option("--guide", help="A guide's name or file.py:guide.")]
DataName = Annotated[
    str | None, typer.Option("--data", help="A data set's name, or .npz .npy .csv .pt.")
]
Columns = Annotated[
    str | None, typer.Option("--columns", help='Columns to read, such as "x1:x9,age".')
]
Standardise = Annotated[bool, typer.Option("--standardise", help="Bring columns to mean 0, sd 1.")]
DropMissing = Annotated[bool, typer.Option("--drop-missing", help="Drop rows with missing values.")]
LatentDim = Annotated[
    int | None,
    typer.Option("--latent-dim", min=1, help="Of a shipped story: L, or K states or components."),
]
Steps = Annotated[int | None, typer.Option("--num-steps", min=1, help="Gradient steps of a fit.")]
Rate = Annotated[float | None, typer.Option("--lr", help="Learning rate.")]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Size of minibatches.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FitFile = Annotated[Path | None, typer.Option("--fit", help="A fit that `pplvm fit --save` wrote.")]
Compared = Annotated[int, typer.Option("--num-compared", min=1, help="How many data are compared.")]
Samples = Annotated[int, typer.Option("--num-samples", min=1, help="Draws of each of four chains.")]
Warmup = Annotated[int, typer.Option("--num-warmup", min=0, help="Warm-up of each chain.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the shipped stories, their guides, the data sets and the methods."""
    stories = {
        name: {
            "summary": s.summary,
            "guides": list(s.guides),
            "summed_out": s.summed_out,
            "data": s.data,
            "methods": list(s.methods),
        }
        for name, s in STORIES.items()
    }
    if as_json:
        held = {"stories": stories, "data": list(datasets.DATASETS), "methods": list(METHODS)}
        print(json.dumps(held, indent=2))
        return
    for name, story in stories.items():
        print(f"{name}: {story['summary']}")
        none = ["none needed"] if story["summed_out"] else []
        print(f"    guides: {', '.join(none + story['guides'])}; data: {story['data']}")
    print(f"data sets: {', '.join(datasets.DATASETS)}, or a file (.npz, .npy, .csv, .pt)")
    print(f"methods: {', '.join(METHODS)}")


@app.command()
def explain(
    story: StoryName, guide: GuideName = None, data: DataName = None, columns: Columns = None,
    standardise: Standardise = False, drop_missing: DropMissing = False, latent_dim: LatentDim = None,
    objective: Annotated[str, typer.Option(help="Whose gradient estimators are meant.")] = "svi",
) -> None:  # fmt: skip
    """Show a story site by site: shape, plates, distribution, gradient estimator."""
    job = Job(story, guide, data, columns, standardise, drop_missing, latent_dim, seed=0)
    chosen = nearest(objective, OBJECTIVES, "objective")
    pplvm.explain(job.model, job.guide(), *job.data, objective=chosen)


@app.command("fit")
def fit_(
    story: StoryName, guide: GuideName = None, data: DataName = None, columns: Columns = None,
    standardise: Standardise = False, drop_missing: DropMissing = False, latent_dim: LatentDim = None,
    objective: Annotated[str, typer.Option(help="One of those in `pplvm list`.")] = "svi",
    num_steps: Steps = None, batch_size: Batch = None, lr: Rate = None, seed: Seed = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the whole state here.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the fit here.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Learn a model and a guide. Topics have options of their own: see `pplvm fit lda --help`."""
    job = Job(story, guide, data, columns, standardise, drop_missing, latent_dim, seed)
    chosen = nearest(objective, OBJECTIVES, "objective")
    _check_out(save)
    fit = pplvm.fit(
        job.model, job.guide(), *job.data, objective=chosen,
        num_steps=num_steps or job.num_steps, batch_size=batch_size or job.batch_size,
        lr=job.lr if lr is None else lr, seed=seed, device=device, checkpoint=checkpoint, resume=resume,
    )  # fmt: skip
    if save is not None:
        fit.save(save)
    last = fit.history.bound[-max(1, len(fit.history.bound) // 20) :]
    result = {
        "method": fit.settings["method"],
        "num_steps": fit.settings["num_steps"],
        "stopped": fit.settings["stopped"],
        "bound": sum(last) / len(last),
        "seconds": fit.seconds,
        "saved": str(save) if save else None,
    }
    if as_json:
        print(json.dumps(result))
        return
    mean = f"mean of the last {len(last)} steps"
    print(f"{result['method']}: bound {result['bound']:.3f} nats per datum ({mean})")
    print(f"{result['num_steps']} steps in {result['seconds']:.1f} s; {result['stopped']}")
    if save is not None:
        print(f"wrote {save}")


@app.command()
def sample(
    story: StoryName, guide: GuideName = None, data: DataName = None, columns: Columns = None,
    standardise: Standardise = False, drop_missing: DropMissing = False, latent_dim: LatentDim = None,
    fit: FitFile = None, num_warmup: Warmup = 500, num_samples: Samples = 1000, seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Where the draws go, .npz.")] = Path("draws.npz"),
) -> None:  # fmt: skip
    """Draw the latents: from a saved fit, or exactly or by NUTS at the model's parameters."""
    job = Job(story, guide, data, columns, standardise, drop_missing, latent_dim, seed)
    _check_out(out)
    if fit is not None:
        loaded = pplvm.load(fit, job.model, job.guide(), *job.data)
        draws = loaded.draws(num_draws=num_samples, seed=seed)
    elif job.summed_out:  # a chain would have nothing to move
        draws = pplvm.exact(job.model, *job.data).draws(num_samples, seed=seed)
    else:
        draws = pplvm.nuts(
            job.model, *job.data, num_warmup=num_warmup, num_samples=num_samples, seed=seed
        )
    _write_npz(out, {name: value.cpu().numpy() for name, value in draws.values.items()})
    for name, names in runs({n: value.shape for n, value in draws.values.items()}).items():
        print(f"{name}: {tuple(draws[names[0]].shape)} = (chains, draws, …)")
    print(f"wrote {out}")


@app.command()
def compare(
    story: StoryName, guide: GuideName = None, data: DataName = None, columns: Columns = None,
    standardise: Standardise = False, drop_missing: DropMissing = False, latent_dim: LatentDim = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated; see `pplvm list`.")] = None,
    num_compared: Compared = 100, num_steps: Steps = None, batch_size: Batch = None, lr: Rate = None,
    num_warmup: Warmup = 500, num_samples: Samples = 1000, seed: Seed = 0,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here, too.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Ask every method about the same latents at the same parameters, and print one table."""
    job = Job(story, guide, data, columns, standardise, drop_missing, latent_dim, seed)
    _check_out(report)
    answers = study(
        job.model, job.guides, *job.data,
        methods=job.methods if methods is None else methods.split(","), num_compared=num_compared,
        num_steps=num_steps or job.num_steps, batch_size=batch_size or job.batch_size,
        lr=job.lr if lr is None else lr, num_warmup=num_warmup, num_samples=num_samples, seed=seed,
        announce=_announce,
    )  # fmt: skip
    table = pplvm.compare(answers, seed=seed)
    print(json.dumps(table.to_dict(), indent=2) if as_json else table)
    if report is not None:
        _announce("report")
        table.report(report)
        if not as_json:
            print(f"wrote {report}")


@app.command("report")
def report_(
    story: StoryName, guide: GuideName = None, data: DataName = None, columns: Columns = None,
    standardise: Standardise = False, drop_missing: DropMissing = False, latent_dim: LatentDim = None,
    fit: FitFile = None, num_compared: Compared = 100, seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("report.html"),
) -> None:  # fmt: skip
    """Report on a saved fit, against the exact posterior where there is one."""
    job = Job(story, guide, data, columns, standardise, drop_missing, latent_dim, seed)
    if fit is None:
        raise ValueError("'--fit' is missing: name a fit that `pplvm fit --save` wrote.")
    loaded = pplvm.load(fit, job.model, job.guide(), *job.data)
    answers = {loaded.settings["method"]: loaded}
    if "exact" in job.methods:
        answers["exact"] = pplvm.exact(freeze(loaded), *(x[:num_compared] for x in job.data))
    table = pplvm.compare(answers, seed=seed)
    print(table)
    table.report(out)
    print(f"wrote {out}")


app.command("fit-topics", hidden=True)(cli_topics.fit)
app.command("topics")(cli_topics.topics)
app.command("transform")(cli_topics.transform)


def main() -> None:
    """Runs a command; exit code 0 if done, 2 for what the user can mend, 1 for anything else."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except ValueError as error:
        print(f"pplvm: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except typer.TyperException as error:
        print(f"pplvm: {' '.join(error.format_message().split())}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("pplvm: interrupted.", file=sys.stderr)
        sys.exit(1)


# ---- within ----


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "wb") as file:
            np.savez_compressed(file, **arrays)
        beside.replace(path)
    except OSError as error:
        raise ValueError(
            f"cannot write '{path}': {error.strerror}; choose another path."
        ) from error


def _check_out(path: Path | None) -> None:
    if path is not None:
        check_writable(path)


def _announce(line: str) -> None:
    if sys.stderr.isatty():
        print(f"· {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
