"""Stage `sample`: images from the averaged weights, in shards that several processes may share out.

Balanced classes take turns (sample `index` has class `index % K`), so that the first images cover all of
them. Noise and labels belong to (seed, index), so every backend starts from the same noise, and neither
the batch size nor the number of processes changes a picture by more than rounding. Which noise that is
stands in the stage's key: samples of another one are other samples.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from attnbench.diffusion.noise import fork_rng
from attnbench.models import build_model, fuse_for_inference
from attnbench.results import Measurement
from attnbench.specs import UNWRITTEN_NOISE, Case
from attnbench.stages.compatibility import check_sampler
from attnbench.stages.distributed import World, together
from attnbench.stages.latents.model_space import codec_of, decoder
from attnbench.stages.sampling.grid import MAX_COLUMNS, MAX_ROWS, write_grid
from attnbench.stages.sampling.sampler import Sampler
from attnbench.stages.sampling.shards import (
    ShardRecord,
    is_whole,
    read_images,
    read_records,
    shard_path,
    shard_ranges,
    write_shard,
)
from attnbench.stages.training.checkpoint import load_averaged, load_into
from attnbench.storage.atomic import storage_errors
from attnbench.storage.names import AVERAGED, DONE, GRID, SAMPLE_SHARDS, sample_shard
from attnbench.storage.store import NOTICE, StageOutput, Workspace, read_output, write_output

TIME = "sample_time_s"


def run(case: Case, workspace: Workspace) -> StageOutput:
    """Draw the case's samples, or return what an earlier run finished; resumes shard by shard.

    Raises UserInputError, UnsupportedError, CheckpointError, NonFiniteError or StorageError.
    """
    folder = workspace.folder("sample", case)
    _reopen_where_damaged(folder, workspace)
    with workspace.holding(folder):
        finished = workspace.finished(folder)
        if finished is not None:
            return finished
        _tell_of_earlier_noise(case, workspace)
        check_sampler(case)
        with together(case, workspace, "sample") as world:
            sampler = draw_part(case, workspace, world)
        output = finish(sampler, folder)
        output.computed_with.update(case.outside_key("sample"))
        write_output(folder, output)
        return output


def _reopen_where_damaged(folder: Path, workspace: Workspace) -> None:
    """Make a finished stage unfinished where a shard is not what was written: its samples are needed now."""
    finished = read_output(folder)
    if finished is None:
        return
    count = next((m.n for m in finished.measurements if m.name == TIME), None) or 0
    shards = [(shard_path(folder, number), len(part)) for number, part in enumerate(shard_ranges(count))]
    lost = [path.name for path, size in shards if not is_whole(path, size)]
    if lost:
        text = f"{', '.join(lost)} in {folder} cannot be used: missing or damaged, drawn again"
        workspace.report(NOTICE, 0, 0, text)
        with storage_errors(folder / DONE):
            (folder / DONE).unlink(missing_ok=True)


def _tell_of_earlier_noise(case: Case, workspace: Workspace) -> None:
    """Say where samples of this case lie that an earlier version drew, or began to: from other noise."""
    then = case.model_copy(update={"sample": case.sample.model_copy(update={"noise": UNWRITTEN_NOISE})})
    folder = workspace.root / "sample" / then.key("sample")  # not made where there is none
    if case.sample.noise != UNWRITTEN_NOISE and any(folder.glob(SAMPLE_SHARDS)):
        text = (
            f"{folder} holds samples of this case that start from the noise of earlier versions, "
            f"{UNWRITTEN_NOISE}; they are left alone and drawn anew from {case.sample.noise}. "
            f"-o sample.noise={UNWRITTEN_NOISE} reads them, and goes on where they are unfinished"
        )
        workspace.report(NOTICE, 0, 0, text)


def draw_part(case: Case, workspace: Workspace, world: World) -> Sampler:
    """Draw the shards that fall to one of the processes of a world; all of them are drawn on return."""
    device = world.device_of(workspace.device)
    sampler = load_sampler(case, replace(workspace, device=device))
    draw_shards(sampler, workspace.folder("sample", case), rank=world.rank, world=world.size)
    world.meet()
    return sampler


def draw_shards(sampler: Sampler, folder: Path, *, rank: int = 0, world: int = 1) -> None:
    """Draw the shards `rank`, `rank + world`, ... that are not there yet; neither number changes a byte."""
    for number, indices in list(enumerate(shard_ranges(sampler.total)))[rank::world]:
        path = shard_path(folder, number)
        if not is_whole(path, len(indices)):
            write_shard(path, sampler.draw(indices))


def finish(sampler: Sampler, folder: Path) -> StageOutput:
    """Write the grid and describe all shards; raises CheckpointError when one is missing."""
    sizes = [len(indices) for indices in shard_ranges(sampler.total)]
    records = read_records(folder, len(sizes))
    settings = sampler.case.sample
    chosen = list(range(min(sampler.total, MAX_ROWS * MAX_COLUMNS)))  # random labels make no rows
    columns = MAX_COLUMNS
    if settings.labels == "balanced":
        chosen = grid_indices(sampler.num_classes, settings.per_class)
        columns = min(MAX_COLUMNS, settings.per_class)
    write_grid(folder / GRID, read_images(folder, chosen), num_columns=columns)
    return _describe(records, sizes, decodes=codec_of(sampler.case) is not None)


def load_sampler(case: Case, workspace: Workspace) -> Sampler:
    """Load the averaged weights of a finished training into an inference model; raises CheckpointError."""
    path = workspace.folder("train", case) / AVERAGED
    weights, model_input = load_averaged(path, case.key("train"))
    with fork_rng(workspace.device):
        model: nn.Module = build_model(
            config=case.model, input_size=model_input.shape[1], num_classes=model_input.num_classes
        )
    load_into(model, weights, path)
    fused = fuse_for_inference(model.to(workspace.device).eval())
    if case.sample.compile:
        fused.compile()  # in place: its weights keep their names
    return Sampler(case, workspace, fused, model_input, decoder(case, workspace))


def grid_indices(num_classes: int, per_class: int) -> list[int]:
    """Return the sample indices of the grid, row by row: the first images of the first classes."""
    columns = range(min(MAX_COLUMNS, per_class))
    return [column * num_classes + row for row in range(min(MAX_ROWS, num_classes)) for column in columns]


def _describe(records: list[ShardRecord], sizes: list[int], *, decodes: bool) -> StageOutput:
    """Return what drawing took, and decoding where there is an autoencoder."""
    count = sum(sizes)

    def seconds(name: str, values: list[float], note: str = "") -> Measurement:
        return Measurement(name=name, unit="s", values=[sum(values)], n=count, better="lower", note=note)

    def rate(name: str, values: list[float], note: str) -> Measurement:
        rates = [size / max(value, 1e-9) for size, value in zip(sizes, values, strict=True)]
        return Measurement(name=name, unit="1/s", values=rates, n=count, better="higher", note=note)

    totals, denoising = [r.total_s for r in records], [r.denoise_s for r in records]
    measurements = [
        seconds(TIME, totals, "sum over shards; several processes share it"),
        rate("images_per_s", totals, "per shard, with decoding" if decodes else "per shard"),
    ]
    if decodes:
        measurements += [
            seconds("decode_time_s", [r.decode_s for r in records], "on a GPU beside the denoising"),
            rate("denoise_images_per_s", denoising, "per shard, without decoding"),
        ]
    again = [sample_shard(number) for number, record in enumerate(records) if record.drawn_again]
    if again:
        note = f"stored samples were damaged and drawn again: {', '.join(again)}"
        measurements.append(Measurement(name="sample_warnings", values=[len(again)], note=note))
    return StageOutput(measurements=measurements, artefacts={"grid": GRID})
