"""What `attnbench profile` does: read its options, measure, print and keep the rows."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnbench import console
from attnbench.commands.targets import check_folder, check_target
from attnbench.devices import chosen_device
from attnbench.errors import UserInputError
from attnbench.profiling.crossovers import crossovers
from attnbench.profiling.memory_size import parse_memory
from attnbench.profiling.profile import (
    ProfileRows,
    ReportFile,
    default_precision,
    profile_batches,
    requests_for,
    spec_of,
)
from attnbench.profiling.requested import block_parts, softmax_models
from attnbench.profiling.rows import ProfileRequest, ProfileRow
from attnbench.profiling.scaling import by_setting, scalings
from attnbench.report.profile_page import write_profile_report
from attnbench.report.profile_tables import rows_table, scaling_table
from attnbench.report.tables import significant
from attnbench.specs import CodecSpec, ProfileSpec
from attnbench.stages.interrupts import interrupt, keeping, on_signal
from attnbench.stages.latents.latent_space import kind_of, latent_space
from attnbench.stages.profile import CHILD

DEFAULT_MODELS = "dit-s,sana-s,dydi-lit-s"
WITHIN_S = 150.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command, as they were typed."""

    res: str
    models: str
    backends: str
    recipe: str
    only: str
    batch: str
    fit: str
    num_classes: int
    device: str
    within_s: float
    json_file: Path | None
    report: Path | None
    autoencoder: Path | None
    resume: bool
    quiet: bool
    command: str
    """As it was typed."""
    settings: dict[str, Any]
    """Those that are called as in a suite's `profile`."""


def profile(options: Options) -> int:
    """Measure what the options name; return the exit code.

    An interrupted session prints what is finished, and keeps it where --json names a file.
    """
    device = chosen_device(options.device)
    spec, batch_sizes = _spec(options, device), _numbers(options.batch, "--batch", "images", "1,8,32")
    requests = _requests(options)
    file = _report_file(options, spec, batch_sizes, device)
    rows = ProfileRows(file.read() if file and options.resume else [])
    earlier = list(rows)
    if not options.quiet:
        console.print_notice(
            console.profile_announcement(len(requests) * len(batch_sizes), spec, device, options.within_s)
        )

    def keep(row: ProfileRow) -> None:
        rows.append(row)
        if file:
            file.write(rows)
        if not options.quiet:
            console.print_notice(_in_a_line(row))

    measured = ProfileRows()
    asked = len(requests) * len(batch_sizes) * len(spec.resolutions or []) * len(_in_modes(spec, options))
    with (
        keeping(lambda: _what_is_kept(rows, asked, file, device)),
        on_signal(interrupt),
        console.progress_bar("profile", quiet=options.quiet) as progress,
    ):
        for one in _in_modes(spec, options):
            measured += profile_batches(
                requests,
                one,
                batch_sizes,
                device=device,
                within_s=options.within_s or None,
                finished=earlier,
                on_row=keep,
                progress=progress,
                say=console.print_notice,
                worker=CHILD,
                fit_mib=parse_memory(options.fit) if options.fit else 0.0,
            )
    baselines = softmax_models(requests)
    _print(measured, baselines, device)
    if file:
        file.write(measured, baselines)
    if options.report:
        parts = [block_parts(request, side) for request in requests for side in spec.resolutions or []]
        page = write_profile_report(
            measured, options.report, baselines=baselines, parts=parts, command=options.command
        )
        console.print_notice(f"report: {page}")
    statuses = {row.status for row in measured}
    return 1 if "failed" in statuses or "ok" not in statuses else 0  # as a run's exit code


def _in_a_line(row: ProfileRow) -> str:
    """Say of a row, as soon as it is finished, what its time and memory are, or why it has none."""
    name = f"{row.model} at {row.resolution} px"
    if row.status != "ok":
        return f"{name}: {row.status}: {row.reason}"
    found = [
        *([] if row.latency_ms is None else [f"{significant(row.latency_ms)} ms"]),
        *([] if row.live_memory_mib is None else [f"{row.live_memory_mib:,.1f} MiB"]),
        *([] if row.planned_memory_mib is None else [f"{row.planned_memory_mib:,.1f} MiB planned"]),
        *(["disturbed"] if row.disturbed else []),
    ]
    return f"{name}: {', '.join(found) or 'counted'}"


def _in_modes(spec: ProfileSpec, options: Options) -> list[ProfileSpec]:
    """Return the settings once; with --fit for a forward pass and a training step, whose batches differ."""
    if not options.fit or spec.mode != "forward":
        return [spec]
    return [spec, spec.model_copy(update={"mode": "train"})]


def _print(rows: Sequence[ProfileRow], baselines: Sequence[str], device: str) -> None:
    """Print costs, then for each setting growth and crossovers, where there are sizes to see them on."""
    console.print_table(rows_table(rows, f"Costs on {device}"))
    for together in by_setting(rows).values():
        table = scaling_table(scalings(together), crossovers(together, baselines))
        if table is not None:
            console.print_table(table)


def _what_is_kept(rows: Sequence[ProfileRow], asked: int, file: ReportFile | None, device: str) -> str:
    """Print the rows of an interrupted session; return what to say of them."""
    if rows:
        _print(rows, (), device)
    kept = f"{len(rows)} of {asked} rows are finished"
    if file is None:
        step = "with --json FILE they would be kept, and --resume would go on from them"
    else:
        step = f"they are in {file.path}; the same command with --resume goes on from them"
    return f"{kept}; {step}"


def _report_file(
    options: Options, spec: ProfileSpec, batch_sizes: Sequence[int], device: str
) -> ReportFile | None:
    """Return the file of --json; that it can be written is known before anything is measured."""
    path = options.json_file
    check_folder(options.report, "--report")
    if path is None:
        if options.resume:
            raise UserInputError("--resume goes on from the rows of a file; name it with --json FILE")
        return None
    check_target(path, "--json")
    file = ReportFile(path, spec, batch_sizes, device)
    file.write(file.read() if options.resume else [])
    return file


def _requests(options: Options) -> list[ProfileRequest]:
    models, backends = words(options.models), words(options.backends)
    if not models and not backends:
        models = words(DEFAULT_MODELS)
    requests = requests_for(models, backends, options.recipe, options.num_classes)
    if options.autoencoder:
        requests = [_with_autoencoder(request, options.autoencoder) for request in requests]
    elif options.settings["scope"] == "end-to-end":
        raise UserInputError("--scope end-to-end decodes with an autoencoder; name its folder: --autoencoder")
    if not options.only:
        return requests
    chosen = [request for request in requests if fnmatch.fnmatchcase(request.label, options.only)]
    if not chosen:
        names = ", ".join(request.label for request in requests)
        raise UserInputError(f"--only {options.only!r} matches none of {names}")
    return chosen


def _with_autoencoder(request: ProfileRequest, folder: Path) -> ProfileRequest:
    """Give a model on latents the autoencoder of a folder, whose grid its sizes then are."""
    codec = CodecSpec(kind=kind_of(folder), path=folder)
    space, config = latent_space(codec), request.config
    if config.input != "latent" or config.in_channels != space.channels:
        has = f"{config.in_channels} channels of latents" if config.input == "latent" else "pixels"
        raise UserInputError(
            f"--autoencoder: {request.label} works on {has}, the autoencoder in {folder} makes "
            f"{space.channels} channels of latents; leave out one of them"
        )
    return replace(request, codec=codec, latent_factor=space.factor)


def _spec(options: Options, device: str) -> ProfileSpec:
    """Return the settings that the command line gives; raises UserInputError naming the option."""
    settings = dict(options.settings)
    if options.within_s < 0:
        raise UserInputError(f"--within takes seconds, or 0 for any number of them; got {options.within_s:g}")
    settings["resolutions"] = _numbers(options.res, "--res", "pixels", "256,512")
    settings["measure"] = words(settings["measure"])
    if options.fit:
        parse_memory(options.fit)  # one clear error before anything is planned
        settings["measure"] = ["params", "memory-plan"]
    if not settings["measure"]:
        raise UserInputError("--measure names nothing; e.g. --measure macs,latency")
    settings["precision"] = settings["precision"] or default_precision(device)
    try:
        return spec_of(settings)
    except UserInputError as error:
        raise UserInputError(f"--{str(error).replace('_', '-', 1)}") from error


def _numbers(text: str, option: str, what: str, example: str) -> list[int]:
    try:
        numbers = list(dict.fromkeys(int(word) for word in words(text)))
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserInputError(
            f"{option} takes whole, positive numbers of {what}, got {text!r}; e.g. {option} {example}"
        )
    return numbers


def words(text: str) -> list[str]:
    """Split a list of names at its commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
