"""What `attnbench export`, `import` and `transfer` do: open a model, write a folder, say what was done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import typer

from attnbench import console
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.exchange import (
    Exported,
    TransferReport,
    find_case,
    from_diffusers,
    from_original,
    open_model,
    read_exported,
    transferred,
    write_diffusers,
    write_exported,
)
from attnbench.exchange.diffusers_config import SCHEDULER_CONFIG
from attnbench.exchange.diffusers_format import ORIGIN
from attnbench.exchange.exported import is_exported
from attnbench.exchange.transfer import grouped
from attnbench.models.recipes import resolve
from attnbench.models.resolution import input_size
from attnbench.problems import json_object
from attnbench.specs import HUB_NAME, HUB_PART, GrowthSpec, ModelConfig
from attnbench.stages.latents.latent_space import on_hub
from attnbench.stages.latents.model_space import codec_of
from attnbench.stages.training.initial_weights import CONFIG
from attnbench.storage import hub
from attnbench.storage.run_folders import run_folder

ON_HUB = "hub:"  # before OWNER/NAME: a path that does not exist is not taken for a repository


def export(
    source: str, case: str | None, to: Path, runs: Path, *, diffusers: bool, vae: Path | None, force: bool
) -> None:
    """Write one trained model of a run (or an exported model again) to a folder of its own."""
    if vae is not None and not diffusers:
        raise UserInputError("--vae is for --diffusers alone: an exported folder holds no autoencoder")
    place = run_folder(source, runs)
    exported = open_model(place, case)
    if not diffusers:
        written = write_exported(exported, to, force=force)
        typer.echo(
            f"{to}: {written.model.name} with {', '.join(written.attention)} attention, "
            f"{len(exported.weights)} tensors; attnbench.load_model({str(to)!r}) opens it"
        )
        return
    result = write_diffusers(exported, to, vae=vae or _vae_of(place, case), force=force)
    if result.no_pipeline:
        typer.echo(f"{to}: transformer and scheduler; no whole pipeline: {result.no_pipeline}")
    else:
        typer.echo(f"{to}: a whole pipeline; DiTPipeline.from_pretrained({str(to)!r}) opens it")
    typer.echo(
        "note: diffusers' timestep frequencies are not DiT's; README.md there has the two lines that set them"
    )


def _vae_of(place: Path, case: str | None) -> Path | None:
    """Return the folder of a run's autoencoder, if it has one."""
    if (place / CONFIG).is_file():
        return None
    codec = codec_of(find_case(place, case))
    model = None if codec is None else on_hub(codec)
    if model is not None:
        snapshot = hub.cached(model)
        return None if snapshot is None else snapshot.folder
    return None if codec is None else codec.path


def import_weights(source: Path, to: Path, *, num_heads: int | None, force: bool) -> None:
    """Write an exported folder from a DiT of diffusers, here or on the hub, or a checkpoint of DiT's code."""
    snapshot = _fetched(str(source)) if str(source).startswith(ON_HUB) else None
    origin, source = str(source), source if snapshot is None else snapshot.folder
    if not source.exists():
        hint = f", or {ON_HUB}{source} for the repository on the hub" if HUB_NAME.fullmatch(origin) else ""
        raise UserInputError(
            f"{source} does not exist; name a folder of diffusers or a .pt file of DiT's code{hint}"
        )
    if source.is_dir() and num_heads is not None:
        raise UserInputError("--num-heads is for .pt files alone: a folder of diffusers states its heads")
    if is_exported(source):
        raise UserInputError(
            f"{source} is an exported model already; attnbench.load_model({str(source)!r}) opens it"
        )
    exported = from_diffusers(source) if source.is_dir() else from_original(source, num_heads=num_heads)
    if snapshot is not None:
        _, _, further = exported.config.imported_from.partition(ORIGIN)
        told = {"imported_from": f"{origin} (commit {snapshot.commit}){further}"}
        exported = dataclasses.replace(exported, config=exported.config.model_copy(update=told))
    written = write_exported(exported, to, force=force)
    model = written.model
    typer.echo(f"from {written.imported_from}")
    typer.echo(
        f"{to}: a DiT of {model.depth} blocks, width {model.dim}, {model.num_heads} heads, "
        f"{written.input.num_classes} classes; attnbench.load_model({str(to)!r}) opens it"
    )


def _fetched(source: str) -> hub.Snapshot:
    """Return the transformer of `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION` in the hub's cache.

    The scheduler's settings are fetched beside it: they say what noise the weights were trained with.
    """
    name, _, revision = source.removeprefix(ON_HUB).partition("@")
    if not HUB_NAME.fullmatch(name) or not (revision == "" or HUB_PART.fullmatch(revision)):
        raise UserInputError(
            f"{source} names no repository on the hub; write {ON_HUB}OWNER/NAME, or with @REVISION behind it"
        )
    model = hub.HubModel(name=name, subfolder="transformer", revision=revision or None)

    def report(done: int, total: int, note: str) -> None:
        typer.echo(f"{note} ({done} of {total})", err=True)

    snapshot = hub.fetch(model, report)
    hub.fetch_file(hub.HubModel(name=name, revision=snapshot.commit), SCHEDULER_CONFIG, report)
    return snapshot


def transfer_weights(
    source: Path,
    to: Path,
    *,
    model: str | None,
    attention: str | None,
    options: str | None,
    classes: int | None,
    image_size: int | None,
    depth: int | None,
    growth: str | None,
    keep: int | None,
    seed: int,
    force: bool,
) -> None:
    """Write an exported folder of another model with the weights it shares with `source`; print the table."""
    if all(said is None for said in (model, attention, classes, image_size, depth, growth)):
        raise UserInputError(
            "name what changes: --attention NAME, --model RECIPE, --classes N, --image-size PIXELS, --depth N"
        )
    exported = read_exported(source)
    config = _target(exported, model, attention, options, depth)
    side = None if image_size is None else input_size(config, image_size)
    how = _growth(depth, growth, keep)
    target, report = transferred(exported, config, num_classes=classes, side=side, seed=seed, growth=how)
    write_exported(target, to, force=force)
    print_report(report, exported, target)
    heads = exported.config.model.num_heads, target.config.model.num_heads
    if heads[0] != heads[1]:
        typer.echo(f"note: q, k and v are cut into {heads[1]} heads here, {heads[0]} in the source")
    if how is not None:
        typer.echo(f"note: {config.depth} blocks here, {exported.config.model.depth} there: {how.strategy}")
    typer.echo(f"{to}: written; train it from there with -o train.init_from={to}")


def _growth(depth: int | None, strategy: str | None, keep: int | None) -> GrowthSpec | None:
    """Return how the target grows, or None where nothing says that it does."""
    if depth is None and strategy is None and keep is None:
        return None
    strategies = get_args(GrowthSpec.model_fields["strategy"].annotation)
    if strategy is not None and strategy not in strategies:
        raise UnknownNameError("strategy of growth", strategy, strategies)
    return GrowthSpec.model_validate({"strategy": strategy or "preserve", "keep": keep})


def _target(
    exported: Exported, model: str | None, attention: str | None, options: str | None, depth: int | None
) -> ModelConfig:
    if options is not None and attention is None:
        raise UserInputError("--options are those of --attention; name it, too")
    overrides: dict[str, Any] = {} if depth is None else {"depth": depth}
    if attention is not None:
        overrides["attention"] = {"name": attention, "options": json_object(options or "{}")}
    if model is not None:
        return resolve(model, overrides)
    own = exported.config.model.model_dump(mode="json")
    if depth is not None and attention is None and isinstance(own["attention"], list):
        raise UserInputError(
            "the source has an attention of its own for each block; with --depth name one for all, "
            "--attention NAME"
        )
    return ModelConfig.model_validate({**own, **overrides, "published": {}})


def print_report(report: TransferReport, source: Exported, target: Exported) -> None:
    """Print what was copied, left and missing, blocks taken together."""
    rows = [("copied", name, str(count), "") for name, count in grouped(report.copied).items()]
    for reason in dict.fromkeys(reason for _, reason in report.left):
        names = grouped(name for name, why in report.left if why == reason)
        rows += [("left", name, str(count), reason) for name, count in names.items()]
    rows += [
        ("missing", name, str(count), "as initialised") for name, count in grouped(report.missing).items()
    ]
    title = f"{', '.join(source.config.attention)} to {', '.join(target.config.attention)}"
    total = f"{len(report.copied)} copied, {len(report.left)} left, {len(report.missing)} missing"
    console.print_table(console.listing(title, ("status", "tensor", "count", "reason"), rows, (total,)))
