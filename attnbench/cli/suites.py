"""Commands around suites: run, plan, validate, profile, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attnbench.cli.app import RUNS, Device, Overrides, Quiet, Runs, SuiteArgument, app
from attnbench.errors import UserInputError


@app.command()
def run(
    suite: SuiteArgument,
    override: Overrides = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    inline: Annotated[bool, typer.Option(help="Run the cells in this process (for debugging).")] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that train and sample one cell together, one GPU each.")
    ] = 1,
    quiet: Quiet = False,
) -> None:
    """Train, sample, evaluate and profile a suite; write the report.

    Finished stages are read, not repeated: to resume, run the same command again. Started once more beside
    it, on another GPU or machine with the same --runs folder, it takes the cells that are free. Exit code 1
    when a cell failed, or none could run; the others are finished and reported.
    """
    from functools import partial

    from attnbench import console
    from attnbench.executors import run_in_process, run_inline, take_over_launcher
    from attnbench.runner import run as run_cells
    from attnbench.suite import load_suite

    loaded = load_suite(suite, override or [])
    taken = take_over_launcher(processes)
    if taken is None:
        return  # another copy, started by torchrun beside this one, does the work
    with console.run_listener(len(loaded.cases), quiet=quiet) as listener:
        outcome = run_cells(
            loaded,
            runs,
            device=None if device == "auto" else device,
            executor=partial(run_inline if inline else run_in_process, processes=taken),
            listener=listener,
        )
    console.print_comparison(outcome.results)
    typer.echo(f"report: {outcome.report.html}\n        {outcome.report.markdown}")
    raise typer.Exit(outcome.exit_code)


@app.command()
def plan(suite: SuiteArgument, override: Overrides = None, runs: Runs = RUNS) -> None:
    """Estimate time and disk of a suite, and what it lacks.

    Runs nothing and needs neither images nor weights: what is not there yet is said below the cells.
    """
    from attnbench import console
    from attnbench.plan import plan as plan_cells
    from attnbench.suite import load_suite

    loaded = load_suite(suite, override or [])
    console.print_table(console.plan_listing(loaded, plan_cells(loaded.cases, runs.absolute() / "store")))


@app.command()
def validate(suite: SuiteArgument, override: Overrides = None) -> None:
    """Check a suite file without its data; count its cells."""
    from attnbench.suite import load_suite

    loaded = load_suite(suite, override or [])
    typer.echo(f"{loaded.name}: valid, {len(loaded.cases)} cells")


@app.command()
def profile(
    res: Annotated[
        str, typer.Option(metavar="PX,PX", help="Sides in pixels of the decoded image.")
    ] = "256,512,1024,2048",
    models: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME",
            help="Model recipes; table1 to table8: those of a table of arXiv:2601.13683.",
        ),
    ] = "dit-s,sana-s,dydi-lit-s",
    measure: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Quantities.")
    ] = "macs,params,latency,memory",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here, too.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 1,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of the latency measurement.")] = 5,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    timeout_s: Annotated[
        float, typer.Option(help="Seconds a row may take; beyond them it is skipped.")
    ] = 120.0,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the label embedding.")] = 1000,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure multiply-adds, latency and memory of model recipes.

    A resolution is in pixels of the decoded image: 256 means a 32x32 latent for latent models. A row that
    runs out of its time is skipped; its reason stands below the table.

    Exit code 1 when a row failed, or when none could be measured whole; 0 otherwise.
    """
    from attnbench import console
    from attnbench.models.published import expand
    from attnbench.models.recipes import recipe
    from attnbench.models.resolution import input_size
    from attnbench.profiling.rows import ProfileRequest
    from attnbench.profiling.session import profile_models
    from attnbench.runner import default_device

    spec = _profile_spec(res, measure, batch_size, rounds, precision, timeout_s)
    configs = [recipe(name) for name in expand(_words(models))]
    if not configs:
        raise UserInputError("--models names no model; see attnbench list models")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserInputError(
            f"--json: the folder {json_file.absolute().parent} does not exist; create it first"
        )
    for config in configs:
        for side in spec.resolutions or []:
            input_size(config, side)  # one clear error before anything is measured
    requests = [ProfileRequest(label=c.name, config=c, num_classes=num_classes) for c in configs]
    chosen = default_device() if device == "auto" else device
    if not quiet:
        console.print_notice(console.profile_announcement(len(requests), spec, chosen))
    with console.progress_bar("profile", quiet=quiet) as progress:
        rows = profile_models(requests, spec, device=chosen, progress=progress)
    console.print_table(console.profile_table(rows, chosen))
    if json_file is not None:
        console.write_json(json_file, [row.model_dump(mode="json") for row in rows])
    statuses = {row.status for row in rows}
    raise typer.Exit(1 if "failed" in statuses or "ok" not in statuses else 0)  # as a run's exit code


@app.command()
def report(
    suite: Annotated[
        str, typer.Argument(metavar="RUN", help="A suite's name, or its folder below the runs folder.")
    ],
    runs: Runs = RUNS,
) -> None:
    """Write the report of a suite again from its results alone."""
    from attnbench import console
    from attnbench.report import write_report
    from attnbench.results import latest, read_results
    from attnbench.run_folders import RESULTS, run_folder

    run_dir = run_folder(suite, runs)
    results = latest(read_results(run_dir / RESULTS))
    if not results:
        raise UserInputError(f"{run_dir / RESULTS} holds no results yet; run the suite first")
    question = results[0].case.get("question", "")
    paths = write_report(run_dir, results, title=results[0].suite, question=question)
    console.print_comparison(results)
    typer.echo(f"report: {paths.html}\n        {paths.markdown}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _profile_spec(
    res: str, measure: str, batch_size: int, rounds: int, precision: str, timeout_s: float
) -> Any:
    from pydantic import ValidationError

    from attnbench.specs import ProfileSpec

    try:
        resolutions = list(dict.fromkeys(int(word) for word in _words(res)))
    except ValueError:
        raise UserInputError(f"--res takes whole numbers of pixels, got {res!r}; e.g. 256,512") from None
    if not resolutions or not _words(measure):
        raise UserInputError("--res and --measure need a value each, e.g. --res 256 --measure macs")
    try:
        return ProfileSpec.model_validate(
            {
                "resolutions": resolutions,
                "measure": _words(measure),
                "batch_size": batch_size,
                "rounds": rounds,
                "precision": precision,
                "timeout_s": timeout_s,
            }
        )
    except ValidationError as error:
        problems = (
            f"--{'.'.join(map(str, e['loc'][:1]))}: {e['msg']}, got {e['input']!r}" for e in error.errors()
        )
        raise UserInputError("; ".join(problems)) from error
