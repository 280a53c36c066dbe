"""What the stage `diagnose` leaves of one trained case: small arrays as JSON, read without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from attnbench.results import Record, Result, checked_record

ARTEFACT = "diagnosis"
TIME = "diagnose_time_s"
PREFIX = "diagnose:"  # of the measurements and curves that are means of these arrays
MAP_MEASURES = ("entropy", "effective_rank", "row_variance")
MEASURES = (*MAP_MEASURES, "token_similarity", "attention_similarity")
MapPath = Literal["values", "tokens", ""]


class Choices(Record):
    """What a router of each block has chosen, as shares of its tokens."""

    options: int
    shares: list[list[float]]
    """Layer, option; a layer that records none has an empty list."""
    by_class: list[list[list[float]]]
    """Class, layer, option; empty where the record does not say which image a choice belongs to."""


class Factors(Record):
    """A recorded number of each block, such as lambda."""

    means: list[list[float]]
    """Layer, bank (queries and keys, where there are two); a layer that records none has an empty list."""


class QueryMaps(Record):
    """The weights of one output token of one image over all input tokens, mean over heads."""

    query: int
    timestep: int
    weights: list[list[float]]
    """Layer, token (row-major on the grid); a layer without a map has an empty list."""


class Diagnosis(Record):
    """Everything recorded of one case; lists over layers have one entry a block."""

    format: Literal[1] = 1
    images: int
    map_images: int
    num_queries: int
    timesteps: list[int]
    grid: tuple[int, int]
    heads: int
    classes: list[int]
    """Labels of the images, each once, ascending: the order of `Choices.by_class`."""
    class_names: list[str]
    paths: list[MapPath]
    """Of each layer, what its map leads from: `values`, `tokens`, or nothing where there is no map."""
    measures: dict[str, list[list[float | None]]]
    """Of each of MEASURES: timestep, layer; None where it could not be found."""
    choices: dict[str, Choices]
    factors: dict[str, Factors]
    query_maps: QueryMaps | None
    problems: list[str]
    """Why something is missing, one sentence each."""

    def over_layers(self, measure: str) -> list[tuple[int, float]]:
        """Return (layer, mean over timesteps) of a measure, without layers that miss it at one of them."""
        layers = zip(*self.measures.get(measure, ()), strict=True)
        return [
            (layer, sum(found) / len(found))
            for layer, values in enumerate(layers)
            if len(found := [value for value in values if value is not None]) == len(values)
        ]

    def mean(self, measure: str) -> float | None:
        """Return the mean over layers and timesteps, None where one of them misses it."""
        found = [value for row in self.measures.get(measure, ()) for value in row]
        kept = [value for value in found if value is not None]
        return sum(kept) / len(kept) if kept and len(kept) == len(found) else None


def read_diagnosis(run_dir: Path, result: Result) -> Diagnosis | str | None:
    """Return a case's diagnosis from beside its report, why it cannot be read, or None where it has none."""
    place = result.artefacts.get(ARTEFACT)
    if place is None:
        return None
    file = (run_dir / place).resolve()
    if not file.is_relative_to(run_dir.resolve()):
        return "its diagnosis lies outside the run directory"
    try:
        return _parsed(file.read_bytes())
    except OSError as error:
        return f"its diagnosis cannot be read: {error.strerror}"
    except ValueError as error:
        return f"its diagnosis is damaged: {error}"


_READ: dict[str, Diagnosis] = {}  # several drawings read the same few files


def _parsed(data: bytes) -> Diagnosis:
    key = hashlib.sha256(data).hexdigest()
    if key not in _READ:
        _READ[key] = checked_record(data, Diagnosis)
    return _READ[key]
