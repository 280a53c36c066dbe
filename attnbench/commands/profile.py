"""What `attnbench profile` does: read its options, measure the recipes, print and keep the rows."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from attnbench import console
from attnbench.devices import chosen_device
from attnbench.errors import UserInputError
from attnbench.models.published import expand
from attnbench.models.recipes import recipe
from attnbench.models.resolution import input_size
from attnbench.profiling.rows import ProfileRequest
from attnbench.profiling.session import profile_models
from attnbench.specs import ProfileSpec


def profile(
    models: str, spec: ProfileSpec, *, num_classes: int, json_file: Path | None, device: str, quiet: bool
) -> int:
    """Measure the recipes that `models` names; return the exit code."""
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
    chosen = chosen_device(device)
    if not quiet:
        console.print_notice(console.profile_announcement(len(requests), spec, chosen))
    with console.progress_bar("profile", quiet=quiet) as progress:
        rows = profile_models(requests, spec, device=chosen, progress=progress)
    console.print_table(console.profile_table(rows, chosen))
    if json_file is not None:
        console.write_json(json_file, [row.model_dump(mode="json") for row in rows])
    statuses = {row.status for row in rows}
    return 1 if "failed" in statuses or "ok" not in statuses else 0  # as a run's exit code


def spec_from(
    *, res: str, measure: str, batch_size: int, rounds: int, precision: str, timeout_s: float
) -> ProfileSpec:
    """Return the settings that the command line gives; raises UserInputError naming the option."""
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


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
