"""The command line: parse, call, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from attnbench import __version__
from attnbench.errors import AttnbenchError, UnknownNameError, UserInputError

app = typer.Typer(
    name="attnbench",
    help="What does an attention cost, and what quality does it buy, in one diffusion transformer?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SuiteArgument = Annotated[str, typer.Argument(help="A suite file, or the name of a shipped suite.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--override", "-o", metavar="KEY=VALUE", help="Override a setting.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder for everything a run keeps.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; print results only.")]
RUNS = Path("runs")
INTERRUPTED = 130


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attnbench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What does an attention cost, and what quality does it buy, in one diffusion transformer?"""


@app.command()
def run(
    suite: SuiteArgument,
    override: Overrides = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    inline: Annotated[bool, typer.Option(help="Run the cells in this process (for debugging).")] = False,
    quiet: Quiet = False,
) -> None:
    """Train, sample, evaluate and profile every cell of SUITE, and write the report.

    Finished stages are read, not repeated: to resume, run the same command again.
    """
    from attnbench import console
    from attnbench.executors import run_in_process, run_inline
    from attnbench.runner import run as run_cells
    from attnbench.suite import load_suite

    loaded = load_suite(suite, override or [])
    with console.run_listener(len(loaded.cases), quiet=quiet) as listener:
        outcome = run_cells(
            loaded,
            runs,
            device=None if device == "auto" else device,
            executor=run_inline if inline else run_in_process,
            listener=listener,
        )
    console.print_comparison(outcome.results)
    typer.echo(f"report: {outcome.report.html}\n        {outcome.report.markdown}")
    raise typer.Exit(outcome.exit_code)


@app.command()
def plan(suite: SuiteArgument, override: Overrides = None, runs: Runs = RUNS) -> None:
    """Show the cells of SUITE, what is cached, and an estimate of time and disk; run nothing."""
    from attnbench import console
    from attnbench.plan import plan as plan_cells
    from attnbench.suite import load_suite

    loaded = load_suite(suite, override or [])
    console.print_plan(loaded, plan_cells(loaded.cases, runs.absolute() / "store"))


@app.command()
def validate(suite: SuiteArgument, override: Overrides = None) -> None:
    """Check SUITE without its data and say how many cells it has."""
    from attnbench.suite import load_suite

    loaded = load_suite(suite, override or [])
    typer.echo(f"{loaded.name}: valid, {len(loaded.cases)} cells")


@app.command()
def profile(
    res: Annotated[str, typer.Option(help="Sides in pixels of the decoded image.")] = "256,512,1024,2048",
    models: Annotated[
        str, typer.Option(help="Model recipes; table1 to table8: those of a table of arXiv:2601.13683.")
    ] = "dit-s,sana-s,dydi-lit-s",
    measure: Annotated[str, typer.Option(help="Quantities.")] = "macs,params,latency,memory",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here, too.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 1,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of the latency measurement.")] = 5,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    timeout_s: Annotated[float, typer.Option(help="Time limit of one row.")] = 120.0,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes of the label embedding.")] = 1000,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure multiply-adds, parameters, latency and memory of model recipes over resolutions.

    A resolution is in pixels of the decoded image: 256 means a 32x32 latent for latent models.
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
    with console.progress_bar("profile", quiet=quiet) as progress:
        rows = profile_models(requests, spec, device=chosen, progress=progress)
    console.print_profile(rows, chosen)
    if json_file is not None:
        console.write_json(json_file, [row.model_dump(mode="json") for row in rows])
    raise typer.Exit(1 if any(row.status == "failed" for row in rows) else 0)


@app.command()
def report(
    suite: Annotated[str, typer.Argument(help="A suite's name, or its folder below the runs folder.")],
    runs: Runs = RUNS,
) -> None:
    """Write the report of a suite that has run, from its results alone."""
    from attnbench import console
    from attnbench.report import write_report
    from attnbench.results import latest, read_results

    run_dir = Path(suite) if Path(suite).is_dir() else runs / suite
    results = latest(read_results(run_dir / "results.jsonl"))
    if not results:
        raise UserInputError(f"{run_dir / 'results.jsonl'} holds no results yet; run the suite first")
    question = results[0].case.get("question", "")
    paths = write_report(run_dir, results, title=results[0].suite, question=question)
    console.print_comparison(results)
    typer.echo(f"report: {paths.html}\n        {paths.markdown}")


@app.command("list")
def list_things(
    kind: Annotated[str, typer.Argument(help="backends, models, suites, plugins, datasets or extractors.")],
) -> None:
    """List what there is of one kind."""
    from attnbench import console

    listings = {
        "backends": console.backends,
        "models": console.models,
        "suites": console.suites,
        "plugins": console.plugins,
        "datasets": console.datasets,
        "extractors": console.extractors,
    }
    if kind not in listings:
        raise UnknownNameError("kind of listing", kind, listings)
    console.print_table(listings[kind]())


@app.command()
def show(name: Annotated[str, typer.Argument(help="A backend, model, suite, dataset or extractor.")]) -> None:
    """Show everything known about NAME: options with their defaults, sizes, sources."""
    from attnbench.show import show as show_name

    show_name(name)


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Backends, or pkg.module:Object; none: all built-ins.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--options", metavar="JSON", help="Options as a JSON object; repeat for several sets."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every row here, too.")] = None,
    quiet: Quiet = False,
) -> None:
    """Ask of attention backends what they promise: shapes, gradients, costs, complexity, plumbing.

    Exit code 1 when a check fails, or passes although the backend says it fails.
    """
    from attnbench import check_command

    raise typer.Exit(check_command.check(names or [], options or [], json_file, quiet=quiet))


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="The new backend's name, e.g. my-attention.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the package's folder is made.")] = Path(),
) -> None:
    """Write a package with one attention of your own, ready to install, check and change."""
    from attnbench.scaffold import write_plugin

    written = write_plugin(name, folder)
    typer.echo(f"{written}: written; next: pip install -e {written} && attnbench check {name}")


@app.command()
def schema() -> None:
    """Print the JSON schema of suite files, for editors."""
    import json

    from attnbench.suite import suite_json_schema

    typer.echo(json.dumps(suite_json_schema(), indent=2))


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


def main() -> NoReturn:
    """Run the command line; exit codes 0 fine, 1 a cell failed, 2 the input was wrong."""
    try:
        app(prog_name="attnbench")
    except UserInputError as error:
        _fail(error, 2)
    except AttnbenchError as error:
        _fail(error, 1)
    except SystemExit as stop:  # typer turns Ctrl-C into exit code 130 without a word
        if stop.code == INTERRUPTED:
            typer.echo("interrupted; run the same command again to go on from the last checkpoint", err=True)
        raise
    sys.exit(0)


def _fail(error: AttnbenchError, code: int) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
