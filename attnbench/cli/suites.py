"""`attnbench run`, `plan`, `validate`, `report` and `schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import RUNS, Cases, Device, Overrides, Quiet, Runs, Seeds, SuiteArgument, app


@app.command()
def run(
    suite: SuiteArgument,
    override: Overrides = None,
    case: Cases = None,
    seeds: Seeds = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    executor: Annotated[
        str,
        typer.Option(
            help="Where cases run: local, by --jobs or --inline; ray, slurm: tasks of such a cluster."
        ),
    ] = "local",
    address: Annotated[
        str,
        typer.Option(help="With ray: auto or host:port of the cluster; without it, one of this machine."),
    ] = "",
    partition: Annotated[
        str, typer.Option(help="With slurm: where to submit; without it, its default.")
    ] = "",
    time: Annotated[
        str,
        typer.Option(
            help="With slurm: a task's time limit, as sbatch takes it (12 hours); a case goes on in the next."
        ),
    ] = "",
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="With slurm: an option of sbatch (account=lab, mem=16G)."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With slurm: print what would be submitted; submit nothing.")
    ] = False,
    inline: Annotated[bool, typer.Option(help="Run the cases in this process (for debugging).")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=0,
            help="Cases at a time, each with its share of cores and GPUs; 0: as many as there are of these.",
            show_default="1; on a cluster 0",
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that train and sample one case together, one GPU each.")
    ] = 1,
    nodes: Annotated[
        int,
        typer.Option(min=1, help="With ray or slurm: machines of each case, which share its processes."),
    ] = 1,
    threads: Annotated[
        int,
        typer.Option(min=0, help="CPU threads of a case, which its weights depend on; 0: its share."),
    ] = 0,
    share_gpus: Annotated[
        bool, typer.Option("--share-gpus", help="Let several of --jobs share a GPU.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train, sample, evaluate and profile a suite; write the report.

    Finished stages are read, not repeated: to resume, run the same command again. Started once more beside
    it, on another GPU or machine with the same --runs folder, it takes the cases that are free. Exit code 1
    when a case failed, or none could run; the others are finished and reported. With --case the report is of
    the chosen cases; the others stay in the run's folder. What a case prints is kept in its folder logs.
    """
    from attnbench.commands import suites as suite_commands

    of_slurm = {"--partition": partition, "--time": time, "--slurm": slurm, "--dry-run": dry_run}
    of_one = {"ray": {"--address": bool(address)}, "slurm": {k: bool(v) for k, v in of_slurm.items()}}
    engine = suite_commands.engine(executor, inline=inline, jobs=jobs, share_gpus=share_gpus, of_one=of_one)
    launch = suite_commands.launch(processes, engine, nodes)
    if launch is None:
        raise typer.Exit(0)  # another copy, started by torchrun beside this one, does the work
    with suite_commands.cradle(engine, launch) as early:
        code = suite_commands.run(
            suite_commands.load(suite, override or [], case or [], seeds),
            runs,
            device=device,
            engine=engine,
            nodes=nodes,
            address=address,
            partition=partition,
            time=time,
            slurm=slurm or (),
            dry_run=dry_run,
            jobs=jobs,
            launch=launch,
            threads=threads,
            share_gpus=share_gpus,
            quiet=quiet,
            cradle=early,
        )
    raise typer.Exit(code)


@app.command()
def plan(
    suite: SuiteArgument,
    override: Overrides = None,
    case: Cases = None,
    seeds: Seeds = None,
    runs: Runs = RUNS,
    assume: Annotated[
        str,
        typer.Option(
            metavar="GPUxN",
            help="Times on N of these instead: a100, h100, h200, l40s or rtx4090; h100x4@0.3: at that share "
            "of the peak, which is 0.35 otherwise.",
        ),
    ] = "",
    device: Device = "auto",
) -> None:
    """Estimate a suite: compute, time, disk, and what it lacks.

    By case and by stage. Runs nothing and needs neither images nor weights: what is not there yet is said
    below the cases.
    """
    from attnbench.commands import suites as suite_commands

    suite_commands.plan(
        suite_commands.load(suite, override or [], case or [], seeds), runs, assume=assume, device=device
    )


@app.command()
def validate(
    suite: SuiteArgument,
    override: Overrides = None,
    case: Cases = None,
    seeds: Seeds = None,
    runs: Runs = RUNS,
    device: Device = "auto",
) -> None:
    """Check a suite file without its data; count its cases.

    Settings that ruin a training without an error are warned of, and finished trainings below the runs
    folder that a longer one does not go on from. What `run` would refuse or skip on this machine, such as
    data or weights that are not there, is said below; the file is valid all the same.
    """
    from attnbench.commands import suites as suite_commands

    suite_commands.validate(
        suite_commands.load(suite, override or [], case or [], seeds), runs, device=device
    )


@app.command()
def report(
    run: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Suites' names, or folders of runs; several with --layout."),
    ],
    layout: Annotated[
        str, typer.Option(help="table1 to table8 of arXiv:2601.13683, published beside measured.")
    ] = "",
    format: Annotated[
        str, typer.Option("--format", help="One table alone, as html, md, csv, latex or json.")
    ] = "",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Write that table here; the ending is its format."),
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """Write the report of a run again, or one table of runs.

    --layout shows runs in a table of the paper; --format or --to without it is the comparison of one run.
    Exit code 1 where no result stands in any row of a layout.
    """
    if layout or format or to is not None or len(run) > 1:
        from attnbench.commands import tables

        raise typer.Exit(tables.report_layout(run, layout, format, to, runs))
    from attnbench.commands import suites as suite_commands

    suite_commands.report(run[0], runs)


@app.command()
def schema(
    of: Annotated[
        str,
        typer.Option(
            "--of", help="suite; profile: of `profile --json`; compare: of `compare --format json`."
        ),
    ] = "suite",
) -> None:
    """Print the JSON schema of suite files, for editors."""
    import json

    from attnbench.commands import schema as command

    typer.echo(json.dumps(command.schema(of), indent=2))
