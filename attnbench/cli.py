"""The command line: parse, call, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from attnbench import __version__, data_command
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

reference_app = typer.Typer(help="Reference files: real images as `attnbench evaluate` compares with them.")
app.add_typer(reference_app, name="reference")

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
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that train and sample one cell together, one GPU each.")
    ] = 1,
    quiet: Quiet = False,
) -> None:
    """Train, sample, evaluate and profile every cell of SUITE, and write the report.

    Finished stages are read, not repeated: to resume, run the same command again.
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
    from attnbench.run_folders import RESULTS, run_folder

    run_dir = run_folder(suite, runs)
    results = latest(read_results(run_dir / RESULTS))
    if not results:
        raise UserInputError(f"{run_dir / RESULTS} holds no results yet; run the suite first")
    question = results[0].case.get("question", "")
    paths = write_report(run_dir, results, title=results[0].suite, question=question)
    console.print_comparison(results)
    typer.echo(f"report: {paths.html}\n        {paths.markdown}")


samples = typer.Typer(
    help="Use the sampled images of a suite that has run.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(samples, name="samples")


@samples.callback()
def samples_group() -> None:
    """Use the sampled images of a suite that has run."""


@samples.command("export")
def samples_export(
    suite: Annotated[str, typer.Argument(help="A suite's name, or its folder below the runs folder.")],
    npz: Annotated[
        Path | None, typer.Option("--npz", metavar="FILE", help="One file as ADM's evaluator reads it.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FOLDER", help="One PNG per image; run again to go on.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--case", metavar="LABEL", help="The cell, where there are several.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", help="The first so many images; all.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Write a finished cell's images to a folder of PNG files or to one npz file, or both.

    The npz holds arr_0, uint8 [N, H, W, 3] (grey images: their channel three times), and arr_1, their
    classes, int64 [N].
    """
    from attnbench import samples_command
    from attnbench.run_folders import run_folder

    samples_command.export(run_folder(suite, runs), npz=npz, png=png, label=label, count=count)


@app.command()
def evaluate(
    samples: Annotated[
        Path | None,
        typer.Argument(help="A folder of PNGs, an npz with arr_0, or a suite's run folder (see --case)."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Real images, a file of `reference build`, or one of ADM's reference npz."),
    ] = None,
    case: Annotated[str | None, typer.Option(help="A run's cell, by label.")] = None,
    extractor: Annotated[str, typer.Option(help="Feature network.")] = "efficientnet-lite0",
    protocol: Annotated[str, typer.Option(help="adm: the network's resize; clean: clean-fid's.")] = "adm",
    weights: Annotated[
        Path | None, typer.Option("--weights", "--inception-weights", help="The network's weights file.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="fd,sfd,kd,skd,is,precision,recall")] = None,
    kd_subset_size: Annotated[int | None, typer.Option(help="Images per subset (default 1000).")] = None,
    kd_subsets: Annotated[int | None, typer.Option(help="Subsets of the kernel distance (100).")] = None,
    neighbours: Annotated[int | None, typer.Option(help="k of precision and recall (3).")] = None,
    is_order: Annotated[str | None, typer.Option(help="permuted, or given: as ADM's code.")] = None,
    reference_images: Annotated[
        int | None, typer.Option(help="Real images for kernel distance, precision, recall (10000).")
    ] = None,
    also: Annotated[list[Path] | None, typer.Option(help="Another set for the same table; repeat.")] = None,
    per_class: Annotated[Path | None, typer.Option(help="Scores by class: a .png, and a .csv.")] = None,
    nearest: Annotated[
        Path | None, typer.Option(help="Samples beside nearest training images, .png.")
    ] = None,
    training: Annotated[Path | None, typer.Option(help="Training images, if not the reference.")] = None,
    tsne: Annotated[Path | None, typer.Option(help="t-SNE of some classes of every set, .png.")] = None,
    classes: Annotated[str, typer.Option(help="For --tsne: close:N, random:N or names.")] = "close:5",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything here, too.")] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="Prove the metrics' maths.")] = False,
    golden: Annotated[Path | None, typer.Option(help="With --self-test: folder of ADM's npz files.")] = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Score SAMPLES against real images: Frechet and kernel distances, inception score, precision, recall.

    Features are kept by content below the runs folder: a second metric costs no second pass.
    """
    from attnbench import evaluate_command

    settings = evaluate_command.settings_from(
        extractor=extractor,
        protocol=protocol,
        weights=weights,
        metrics=metrics,
        kd_subset_size=kd_subset_size,
        kd_subsets=kd_subsets,
        neighbours=neighbours,
        is_order=is_order,
        reference_images=reference_images,
    )
    if golden is not None and not self_test:
        raise UserInputError("--golden goes with --self-test: it is what the self-test compares with")
    if self_test:
        raise typer.Exit(evaluate_command.self_test(settings, golden, runs=runs, device=device))
    if samples is None or reference is None:
        raise UserInputError(
            "attnbench evaluate needs SAMPLES and --reference: attnbench evaluate samples/ --reference real/ "
            "(or --self-test alone)"
        )
    request = evaluate_command.Request(
        samples=samples,
        reference=reference,
        settings=settings,
        case=case,
        also=tuple(also or ()),
        training=training,
        json_file=json_file,
        per_class=per_class,
        nearest=nearest,
        tsne=tsne,
        classes=classes,
    )
    evaluate_command.evaluate(request, runs=runs, device=device, quiet=quiet)


@reference_app.command("build")
def reference_build(
    folder: Annotated[Path, typer.Argument(help="Real images: a folder (one per class) or an npz.")],
    to: Annotated[Path, typer.Option("--to", help="The reference file, .npz.")],
    extractor: Annotated[str, typer.Option(help="Feature network.")] = "efficientnet-lite0",
    protocol: Annotated[str, typer.Option(help="adm: the network's resize; clean: clean-fid's.")] = "adm",
    weights: Annotated[
        Path | None, typer.Option("--weights", "--inception-weights", help="The network's weights file.")
    ] = None,
    reference_images: Annotated[
        int | None, typer.Option(help="Images whose features are kept (10000); the Gaussian is of all.")
    ] = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Make a reference file of FOLDER: statistics and features, checked whenever it is read."""
    from attnbench import evaluate_command

    settings = evaluate_command.settings_from(
        extractor=extractor, protocol=protocol, weights=weights, reference_images=reference_images
    )
    reference = evaluate_command.build_reference(folder, to, settings, runs=runs, device=device, quiet=quiet)
    typer.echo(f"{to}: {len(reference):,} images of {reference.name}, {extractor}, protocol {protocol}")


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


app.add_typer(data_command.app)


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


@app.command("export")
def export_model(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A suite's name, its folder below the runs folder, or an export."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to; a new folder.")],
    case: Annotated[
        str | None, typer.Option("--case", metavar="LABEL", help="The cell (label or id), of several.")
    ] = None,
    diffusers: Annotated[
        bool, typer.Option("--diffusers", help="For diffusers' DiTPipeline (softmax DiT only).")
    ] = False,
    vae: Annotated[
        Path | None, typer.Option("--vae", metavar="FOLDER", help="AutoencoderKL for --diffusers; the run's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Write one trained model of RUN, its averaged weights, to a folder that needs nothing else.

    attnbench.load_model(FOLDER) opens it.
    """
    from attnbench import exchange_command

    exchange_command.export(source, case, to, runs, diffusers=diffusers, vae=vae, force=force)


@app.command("import")
def import_model(
    source: Annotated[
        Path, typer.Argument(help="A folder of diffusers with a DiT, or a .pt file of facebookresearch/DiT.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to; a new folder.")],
    num_heads: Annotated[int | None, typer.Option(min=1, help="Attention heads; for .pt files.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Make an exported folder of a pretrained DiT."""
    from attnbench import exchange_command

    exchange_command.import_weights(source, to, num_heads=num_heads, force=force)


@app.command("transfer")
def transfer_model(
    source: Annotated[
        Path, typer.Argument(metavar="EXPORTED", help="A folder that `attnbench export` has written.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to; a new folder.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="RECIPE", help="The target's recipe; the source's sizes.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option("--attention", metavar="NAME", help="The target's attention backend.")
    ] = None,
    options: Annotated[
        str | None, typer.Option("--options", metavar="JSON", help="Options of that attention.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights that are not copied.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Copy what two models share into one with another attention, and say what was left."""
    from attnbench import exchange_command

    exchange_command.transfer_weights(
        source, to, model=model, attention=attention, options=options, seed=seed, force=force
    )


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="The new backend's name, e.g. my-attention.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the package's folder is made.")] = Path(),
) -> None:
    """Write a package with one attention of your own, ready to install, check and change."""
    from attnbench.scaffold import write_plugin

    written = write_plugin(name, folder)
    typer.echo(f"{written}: written; next: pip install -e {written} && attnbench check {name}")


weights_app = typer.Typer(
    help="Show or fetch the weights files that some feature extractors need.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(weights_app, name="weights")


@weights_app.command("list")
def weights_list() -> None:
    """Show which extractors need a weights file, where it was looked for, and whether it is the right one."""
    from attnbench import weights_command

    weights_command.print_list()


@weights_app.command("fetch")
def weights_fetch(
    name: Annotated[str, typer.Argument(help="The extractor, e.g. inception-tf.")],
    yes: Annotated[bool, typer.Option("--yes", help="Fetch without asking.")] = False,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Where to; by default the cache folder.")
    ] = None,
) -> None:
    """Download the weights file of extractor NAME after asking, and check its SHA-256."""
    from attnbench import weights_command

    path = weights_command.fetch(name, to, yes=yes)
    typer.echo(f"{path}: there, SHA-256 as expected")
    if to is not None:
        typer.echo("it is used where `evaluate.weights` or the extractor's environment variable names it")


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
        if hasattr(stop, "message"):  # a training that was stopped in good order
            typer.echo(stop.message, err=True)
        elif stop.code == INTERRUPTED:
            typer.echo("interrupted; run the same command again to go on from the last checkpoint", err=True)
        raise
    sys.exit(0)


def _fail(error: AttnbenchError, code: int) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
