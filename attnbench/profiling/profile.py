"""`attnbench.profile`: which models and backends, at which sizes; the rows and what they were measured on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, ValidationError

from attnbench.errors import UserInputError
from attnbench.models.published import expand
from attnbench.models.recipes import recipe as load_recipe
from attnbench.models.recipes import resolve
from attnbench.models.resolution import input_size
from attnbench.plugins import registry
from attnbench.problems import problems_in
from attnbench.profiling.child import WORKER
from attnbench.profiling.crossovers import Crossover, crossovers
from attnbench.profiling.rows import ProfileRequest, ProfileRow
from attnbench.profiling.scaling import Scaling, scalings
from attnbench.profiling.session import Say, profile_models
from attnbench.progress import Progress
from attnbench.results import FORMAT, Environment, Record, environment
from attnbench.specs import Precision, ProfileSpec
from attnbench.storage.atomic import atomic_write
from attnbench.yaml_source import show_path

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]


class ProfileReport(Record):
    """What `attnbench profile --json` writes: where it was measured, what was asked, and the rows."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    format: int = FORMAT
    environment: Environment
    settings: ProfileSpec
    batch_sizes: list[int]
    rows: list[ProfileRow] = Field(default_factory=list)
    scalings: list[Scaling] = Field(default_factory=list)
    """How time and memory of each model grow with tokens."""
    crossovers: list[Crossover] = Field(default_factory=list)
    """From where each model is faster, or takes less memory, than softmax attention."""


class ProfileRows(list[ProfileRow]):
    """The rows of a profile, a list; `to_dataframe` where pandas is there."""

    def to_dataframe(self) -> pandas.DataFrame:
        """Return one line per row and one column per quantity; raw samples stay in the rows' `rounds`.

        Raises UserInputError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserInputError("to_dataframe needs pandas; pip install pandas") from None
        lines = [row.model_dump(mode="json", exclude={"rounds"}) for row in self]
        return pandas.DataFrame([_flat(line) for line in lines])


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    """Move percentiles and conditions up into columns of their own."""
    for name, prefix in (("latency_percentiles_ms", "latency_ms_"), ("conditions", "")):
        line |= {f"{prefix}{key}": value for key, value in line.pop(name).items()}
    line |= {f"version_{name}": version for name, version in line.pop("versions").items()}
    line |= line.pop("energy") or {}
    low, high = line.pop("latency_interval_ms") or (None, None)
    return {**line, "latency_ms_low": low, "latency_ms_high": high}


def default_precision(device: str) -> Precision:
    """Return what models are trained and sampled in where nobody says: bf16 on a GPU, fp32 on a CPU."""
    return "bf16" if device.startswith("cuda") else "fp32"


def requests_for(
    models: Iterable[str], backends: Iterable[str], recipe: str, num_classes: int
) -> list[ProfileRequest]:
    """Return the models named, then each backend in the shell of `recipe`; rows are called after them.

    `models` takes table1 to table8, too. Raises UserInputError on names that are not known or given twice, or
    where nothing is named.
    """
    requests = [
        ProfileRequest(label=config.name, config=config, num_classes=num_classes)
        for config in map(load_recipe, expand(models))
    ]
    for name in backends:
        registry().backend(name)  # a wrong name is its own error, not one of the recipe's
        config = resolve(recipe, {"attention": {"name": name}})
        if config.content() != load_recipe(recipe).content():  # what is printed is of the recipe as it stands
            config = config.model_copy(update={"published": {}})
        requests.append(ProfileRequest(label=name, config=config, num_classes=num_classes))
    labels = [request.label for request in requests]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserInputError(f"{', '.join(twice)}: named twice; name each model and backend once")
    if not requests:
        raise UserInputError("no model and no backend is named; see attnbench list models and list backends")
    return requests


def spec_of(settings: dict[str, Any]) -> ProfileSpec:
    """Return settings as a ProfileSpec; raises UserInputError naming each that is wrong."""
    try:
        return ProfileSpec.model_validate(settings)
    except ValidationError as error:
        found = problems_in(error, ProfileSpec, settings)
        raise UserInputError("; ".join(f"{show_path(p.path[:1])}: {p.message}" for p in found)) from error


def profile_batches(
    requests: Sequence[ProfileRequest],
    spec: ProfileSpec,
    batch_sizes: Sequence[int],
    *,
    device: str,
    within_s: float | None = None,
    finished: Sequence[ProfileRow] = (),
    on_row: Callable[[ProfileRow], None] | None = None,
    progress: Progress | None = None,
    say: Say = lambda text: None,
    worker: str = WORKER,
    fit_mib: float = 0.0,
) -> ProfileRows:
    """Profile all requests at every resolution and batch size; see `profile_models`.

    `spec.batch_size` is ignored; rows in `finished` with the same settings are taken over.
    """
    for request in requests:
        for side in spec.resolutions or []:
            input_size(request.config, side, request.latent_factor)  # one clear error before anything runs
    deadline = None if within_s is None else time.monotonic() + within_s
    rows = ProfileRows()
    for batch_size in batch_sizes:
        one = spec.model_copy(update={"batch_size": batch_size})
        rows += profile_models(
            requests,
            one,
            device=device,
            progress=progress,
            within_s=None if deadline is None else max(0.0, deadline - time.monotonic()),
            finished={(row.model, row.resolution): row for row in finished if _is_answer(row, one, device)},
            on_row=on_row,
            say=say,
            worker=worker,
            fit_mib=fit_mib,
            compare_precisions=batch_size == batch_sizes[0],
        )
    return rows


def _is_answer(row: ProfileRow, spec: ProfileSpec, device: str) -> bool:
    """Whether a row of an earlier session is what these settings ask for."""
    same = (row.mode, row.scope, row.precision, row.batch_size, row.device) == (
        spec.mode,
        spec.scope,
        spec.precision or "fp32",
        spec.batch_size,
        device,
    )
    timed = "latency" not in spec.measure or len(row.rounds) >= spec.rounds
    threads = not spec.threads or spec.threads == row.conditions.threads
    return same and timed and threads and row.status == "ok"


class ReportFile:
    """The file of a profile, rewritten after every row: what is finished is never lost."""

    def __init__(self, path: Path, spec: ProfileSpec, batch_sizes: Sequence[int], device: str) -> None:
        self.path = path
        self._report = ProfileReport(
            environment=environment(device), settings=spec, batch_sizes=list(batch_sizes)
        )

    def read(self) -> list[ProfileRow]:
        """Return the rows of an earlier session; none where there is no such file.

        Raises UserInputError where it is something else.
        """
        if not self.path.exists():
            return []
        try:
            earlier = ProfileReport.model_validate_json(self.path.read_bytes())
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise UserInputError(
                f"{self.path} is no profile that this version can go on from ({first}); leave --resume out, "
                "or name another --json"
            ) from error
        ours = self._report.environment
        if (earlier.environment.cpu, earlier.environment.packages) != (ours.cpu, ours.packages):
            raise UserInputError(
                f"{self.path} was measured on {earlier.environment.cpu} with other packages than this is "
                f"({ours.cpu}); its rows cannot stand beside new ones: leave --resume out, or name another "
                "--json"
            )
        return earlier.rows

    def write(self, rows: Sequence[ProfileRow], baselines: Sequence[str] = ()) -> None:
        """Replace the file's rows, and what follows from them; raises StorageError."""
        derived = {"scalings": scalings(rows), "crossovers": crossovers(rows, baselines)}
        report = self._report.model_copy(update={"rows": list(rows), **derived})
        atomic_write(self.path, report.model_dump_json(indent=1).encode() + b"\n")
