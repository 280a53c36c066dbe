"""What `attnbench run`, `plan`, `validate` and `report` do with a suite or its run.

Each imports what it needs itself: a suite is checked in half the time that the models take to import, and a
report is written without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from attnbench import console
from attnbench.results import Result
from attnbench.stages.interrupts import GO_ON, Interrupted, Stopped
from attnbench.storage.names import LOGS, RESULTS, STORE

CLUSTERS = ("ray", "slurm")
"""Executors that run cases on other machines, too."""

OfOne = Mapping[str, Mapping[str, bool]]
"""Of each cluster's executor its own options, and whether they are given."""

if TYPE_CHECKING:
    from attnbench.running.executors.cradle import Cradle
    from attnbench.running.executors.interface import Asked, Executor
    from attnbench.running.executors.launcher import Launch
    from attnbench.running.listener import Listener
    from attnbench.suite.loading import Suite


def load(suite: str, overrides: Sequence[str], cases: Sequence[str] = (), seeds: int | None = None) -> Suite:
    """Return a suite as the command line asks for it: with its overrides, seeds and choice of cases."""
    from attnbench.suite.choosing import choose_cases
    from attnbench.suite.loading import load_suite

    return choose_cases(load_suite(suite, overrides, seeds=seeds), cases)


def engine(executor: str, *, inline: bool, jobs: int | None, share_gpus: bool, of_one: OfOne) -> str:
    """Return which of `executors.EXECUTORS` the options of `attnbench run` name.

    `of_one` are the options that one executor alone has, with whether they are given. Raises UserInputError
    where two of them do not go together.
    """
    from attnbench.errors import UnknownNameError, UserInputError

    if executor not in ("local", *CLUSTERS):
        raise UnknownNameError("executor", executor, ("local", *CLUSTERS))
    for words, is_given in (("--inline", inline), ("--share-gpus", share_gpus)):
        if executor in CLUSTERS and is_given:
            raise UserInputError(
                f"{words} is of this machine, --executor {executor} runs cases on a cluster's; leave one out"
            )
    for owner, options in of_one.items():
        for words, is_given in options.items():
            if is_given and executor != owner:
                raise UserInputError(
                    f"{words} is of a {owner.title()} cluster; add --executor {owner}, or leave it out"
                )
    if executor in CLUSTERS:
        return executor
    return "inline" if inline else "process" if jobs in (None, 1) else "jobs"


def launch(processes: int, engine: str, nodes: int) -> Launch | None:
    """Return what a launcher has started, None for a copy that has nothing to do; raises UserInputError.

    Also where `--nodes` is of no use to this engine, or does not divide the processes.
    """
    from attnbench.errors import UserInputError
    from attnbench.running.executors.launcher import take_over_launcher

    if nodes > 1 and engine not in CLUSTERS:
        raise UserInputError(
            f"--nodes is {nodes}, which is of a cluster; add --executor ray or slurm, or leave it out: "
            "torchrun on each machine says it by --nnodes"
        )
    taken = take_over_launcher(processes)
    if taken is not None and taken.machines > 1 and engine not in ("process", "inline"):
        raise UserInputError(
            f"a launcher has started attnbench on {taken.machines} machines, for one case at a time on all "
            "of them; leave --jobs and --executor out"
        )
    if taken is not None and taken.processes % nodes:
        raise UserInputError(
            f"--processes is {taken.processes}, and each of --nodes {nodes} has as many of them; choose a "
            f"multiple of {nodes}"
        )
    return taken


def cradle(engine: str, launch: Launch) -> AbstractContextManager[Cradle | None]:
    """Start what starts the processes of cases here: it imports while this process reads the suite."""
    from attnbench.running.executors.cradle import Cradle

    runs_here = engine in ("process", "jobs") and launch.machine == 0
    return Cradle() if runs_here else nullcontext()


def run(
    suite: Suite,
    runs: Path,
    *,
    device: str,
    engine: str,
    nodes: int,
    address: str,
    jobs: int | None,
    launch: Launch,
    threads: int,
    share_gpus: bool,
    quiet: bool,
    partition: str = "",
    time: str = "",
    slurm: Sequence[str] = (),
    dry_run: bool = False,
    cradle: Cradle | None = None,
) -> int:
    """Run a suite, print its comparison and where the report is; return the exit code.

    On another machine than the first of a launch: lend processes to it until it has done so.
    """
    from attnbench.devices import chosen_device
    from attnbench.running.executors import make_executor
    from attnbench.running.executors.gathering import gathered, lend
    from attnbench.running.executors.interface import Asked
    from attnbench.stages.distributed import check_division

    for case in suite.cases:
        check_division(case, launch.processes)
    # where cases run elsewhere, this machine's devices say nothing of theirs
    chosen = device if engine in CLUSTERS else chosen_device(device)
    asked = Asked(
        jobs=(0 if engine in CLUSTERS else 1) if jobs is None else jobs,
        processes=launch.processes,
        nodes=nodes,
        threads=threads,
        share_gpus=share_gpus,
        device=chosen,
        address=address,
        partition=partition,
        time=time,
        slurm=tuple(slurm),
        num_cases=len(suite.cases),
        cradle=cradle,
    )
    if launch.machine > 0:
        return lend(launch, suite.cases, chosen, console.print_notice)
    with gathered(launch, suite.cases, runs.absolute() / STORE, chosen, console.print_notice) as crew:
        asked = replace(asked, hosts=crew.hosts)
        executor = make_executor(engine, asked)
        if dry_run:
            return show_submission(suite, runs, asked)
        crew.code = _run_cases(suite, runs, device=device, executor=executor, quiet=quiet)
    return crew.code


def _run_cases(suite: Suite, runs: Path, *, device: str, executor: Executor, quiet: bool) -> int:
    from attnbench.running.runner import run as run_cases

    results: dict[str, Result] = {}
    try:
        with console.run_listener(len(suite.cases), quiet=quiet) as listener:
            heard = _remembering(results, listener)
            outcome = run_cases(suite, runs, device=device, executor=executor, listener=heard)
    except (Stopped, Interrupted) as stop:
        raise Stopped(stop.number, _what_is_finished(suite, results, stop)) from None
    console.print_comparison(outcome.results)
    typer.echo(f"report: {outcome.report.html}\n        {outcome.report.markdown}")
    return outcome.exit_code


def show_submission(suite: Suite, runs: Path, asked: Asked) -> int:
    """Print the batch script that Slurm would get for what is not finished; submit nothing."""
    from attnbench.running.executors.interface import Order
    from attnbench.running.executors.slurm_submit import script, share_of
    from attnbench.running.memory import memory_need
    from attnbench.running.once import each_once
    from attnbench.running.runner import check_inputs
    from attnbench.running.schedule import log_name
    from attnbench.stages.case import finished_case

    check_inputs(suite.cases)
    run_dir, store, here = runs.absolute() / suite.name, runs.absolute() / STORE, asked.processes_here
    with each_once():
        orders = [
            Order(
                case=case,
                store=store,
                device=asked.device,
                log=run_dir / LOGS / log_name(case),
                memory=memory_need(case, asked.device, here, asked.processes - here),
            )
            for case in suite.cases
            if finished_case(case, store) is None
        ]
    if orders:
        typer.echo(script(asked, share_of(asked), orders))
    console.print_notice(f"{len(orders)} of {len(suite.cases)} cases to run; nothing was submitted")
    return 0


def _remembering(results: dict[str, Result], listener: Listener) -> Listener:
    """Return a listener that puts what is finished into `results`, by the case's id, and passes all on."""

    def finished(result: Result, cached: bool) -> None:
        results[result.case_id] = result
        listener.finished(result, cached)

    return replace(listener, finished=finished)


def _what_is_finished(suite: Suite, results: Mapping[str, Result], stop: Stopped | Interrupted) -> str:
    """Print the finished cases of an interrupted run; return what to say of them and of the others."""
    ended = [results[case.id] for case in suite.cases if case.id in results]
    if ended:
        console.print_comparison(ended)
    statuses, every = Counter(result.status for result in ended), len(suite.cases)
    others = "".join(f", {number} {status}" for status, number in statuses.items() if status != "ok")
    finished = f"interrupted: {statuses['ok']} of {every} cases are finished{others}"
    if len(ended) < every:
        said = f"{finished}; {stop.message}" if isinstance(stop, Stopped) else f"{finished}; {GO_ON}"
        return said
    return (
        f"{finished}; of their costs what was measured is kept: run the same command again to measure the "
        "rest and to write the report"
    )


def plan(suite: Suite, runs: Path, *, assume: str, device: str) -> None:
    """Print what a suite would take, each stage of it, and what it lacks."""
    from attnbench.devices import chosen_device
    from attnbench.running.machines import assumed, this_machine
    from attnbench.running.needs import skips
    from attnbench.running.once import each_once
    from attnbench.running.plan import plan as plan_cases
    from attnbench.running.plan import plan_profile, warnings

    machine = assumed(assume) if assume else this_machine(device)
    store = runs.absolute() / STORE
    device = chosen_device(device)
    with each_once():
        planned = plan_cases(suite.cases, store, machine, device="cuda" if assume else device)
        profile = plan_profile(planned, store, machine)
        fine = [one.case for one in planned if not one.problem]
        told = warnings(suite, store)
        cannot = skips(fine)
    console.print_table(console.plan_listing(suite, planned, profile, told, machine, cannot))
    stages = console.stage_listing(planned, profile)
    if stages.rows:
        typer.echo()
        console.print_table(stages)


def validate(suite: Suite, runs: Path, *, device: str) -> None:
    """Print that a suite is valid, how many cases it has and what a run would refuse here.

    Warnings go to stderr. Raises UserInputError for a device that is not there, as the run would.
    """
    from attnbench.devices import chosen_device
    from attnbench.running.needs import refusals, skips, taken_by_another
    from attnbench.running.plan import warnings
    from attnbench.stages.latents.model_space import assumption

    chosen_device(device)
    for line in warnings(suite, runs.absolute() / STORE):
        console.print_notice(f"warning: {line}")
    typer.echo(f"{suite.name}: valid, {len(suite.cases)} case{'' if len(suite.cases) == 1 else 's'}")
    for assumed in dict.fromkeys(filter(None, map(assumption, suite.cases))):
        typer.echo(f"note: {assumed}")
    refused = refusals(suite.cases)
    if taken := taken_by_another(suite, runs.absolute() / suite.name):
        refused[taken] = [case.label for case in suite.cases]
    for line in console.reasons(refused, skips(suite.cases), len(suite.cases)):
        typer.echo(line)


def report(run: str, runs: Path) -> None:
    """Write the report of a run again from its results alone, as the run wrote it."""
    from attnbench.report.run_report import write_run_report
    from attnbench.storage.run_folders import read_run

    read = read_run(run, runs)
    lost = len(read.record.case_ids) - len(read.results) if read.record else 0
    if lost:
        console.print_notice(
            f"warning: {lost} of the {lost + len(read.results)} cases that the run was asked for are not in "
            f"{read.folder / RESULTS}; run the suite again, which writes down what is finished"
        )
    paths = write_run_report(read)
    console.print_comparison(read.results)
    typer.echo(f"report: {paths.html}\n        {paths.markdown}")
