"""The same samples of every model for `attnbench figures`, from the store or from a run's grid pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.commands.sample_sources import SampleSource, open_source
from attnbench.errors import DataError, UserInputError, did_you_mean
from attnbench.report.paper_figures.catalogue import PaperFigure
from attnbench.report.paper_figures.families import SIZES, model_of, without_shared
from attnbench.report.paper_figures.sample_grid import ModelSamples, draw_samples
from attnbench.report.tables import plain
from attnbench.results import Result
from attnbench.specs import Case
from attnbench.storage.run_folders import case_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_COLUMNS = 8  # of one group
_MOST_COLUMNS_OF_SEVERAL = 4


@dataclass(frozen=True, kw_only=True)
class FigureCase:
    """A case of a run."""

    folder: Path
    """Of its run."""
    result: Result


@dataclass(frozen=True, kw_only=True)
class SampleChoice:
    """Which samples are shown, as the user typed it."""

    classes: str | None = None
    """Names or numbers, with commas; None, or a way of choosing for figure 11: spread over all of them."""
    samples: str | None = None
    """Numbers from 0 within each class."""


def sample_figure(
    figure: PaperFigure, cases: Sequence[FigureCase], choice: SampleChoice, *, say: Callable[[str], None]
) -> tuple[Callable[[], Figure], str]:
    """Return what draws a grid of samples, and its caption; `say` hears which cases are left out and why.

    Raises UserInputError where the cases are not of the same noise, DataError where samples are missing.
    """
    shown = _of_figure(figure, cases)
    settings = [case_of(case.folder, case.result) for case in shown]
    check_same_noise(figure.name, [case.result for case in shown], settings)
    opened: list[tuple[FigureCase, SampleSource]] = []
    for case, spec in zip(shown, settings, strict=True):
        source = open_source(case.folder, case.result, spec)
        if isinstance(source, str):
            say(f"figure {figure.name} without {plain(case.result.label)}: {source}")
        else:
            opened.append((case, source))
    if len(opened) < 2:
        raise UserInputError(
            f"figure {figure.name} compares models, and {len(opened)} of {len(cases)} cases can be shown; "
            "run the suite (again), or look at one case's samples with `attnbench samples export`"
        )
    models = [model_of(case.result) for case, _ in opened]
    sizes = len({model.size for model in models})
    columns = chosen_columns(
        [(case.result.label, source) for case, source in opened],
        choice,
        first_sample=figure.first_sample,
        most=_MOST_COLUMNS if sizes == 1 else _MOST_COLUMNS_OF_SEVERAL,
    )
    called = without_shared([model.series for model in models])
    rows = [
        ModelSamples(
            series=called[model.series],
            size=model.size,
            images=[source.image(label, number) for label, number in columns],
        )
        for model, (_, source) in sorted(zip(models, opened, strict=True), key=lambda pair: pair[0].place)
    ]
    names = [opened[0][1].class_name(label) for label, _ in columns]
    heading = _heading(settings[0])
    caption = f"{figure.title}: {heading}. The paper's figure {figure.name}: {figure.paper}."
    return partial(draw_samples, rows, names, heading), caption


def _of_figure(figure: PaperFigure, cases: Sequence[FigureCase]) -> list[FigureCase]:
    """Return the finished cases that a figure is of: some families, or the largest size, if there are any."""
    shown = [case for case in cases if case.result.status == "ok"]
    of_family = [case for case in shown if model_of(case.result).family in figure.families]
    shown = of_family or shown
    if figure.sizes == "largest":
        sizes = {model_of(case.result).size for case in shown} & set(SIZES)
        if sizes:
            largest = max(sizes, key=SIZES.index)
            shown = [case for case in shown if model_of(case.result).size == largest]
    return shown


def check_same_noise(figure: str, results: Sequence[Result], settings: Sequence[Case]) -> None:
    """Raise UserInputError unless all cases draw from the same noise and classes in the same way."""
    for name, values in _what_must_agree(settings).items():
        groups: dict[str, list[str]] = {}
        for result, value in zip(results, values, strict=True):
            groups.setdefault(value, []).append(plain(result.label))
        if len(groups) > 1:
            found = "; ".join(f"{value} ({_some(labels)})" for value, labels in groups.items())
            raise UserInputError(
                f"figure {figure} is of the same noise and class for every model, and these cases differ in "
                f"{name}: {found}; choose cases that agree with --case, such as --case "
                f"'*{name.rpartition('.')[2]}={next(iter(groups))}*' where the labels say it"
            )


def _what_must_agree(settings: Sequence[Case]) -> dict[str, list[str]]:
    sampling = ("sampler", "num_steps", "guidance_scale", "guidance_channels", "labels", "noise")
    return {
        "data": [_data_words(case) for case in settings],
        "seed": [str(case.seed) for case in settings],
        **{f"sample.{name}": [str(getattr(case.sample, name)) for case in settings] for name in sampling},
        "train.objective": [case.train.objective for case in settings],
        "model.input": [f"{case.model.input} of {case.model.in_channels} channels" for case in settings],
    }


def _data_words(case: Case) -> str:
    values = {key: value for key, value in case.data.model_dump(mode="json").items() if key != "name"}
    rest = ", ".join(f"{key}={value}" for key, value in values.items() if value is not None)
    return f"{case.data.name}({rest})" if rest else case.data.name


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")


def chosen_columns(
    sources: Sequence[tuple[str, SampleSource]], choice: SampleChoice, *, first_sample: int, most: int
) -> list[tuple[int, int]]:
    """Return (class, number within the class) of every column; raises DataError where one is missing.

    What is not chosen: classes spread evenly over those that all models show, and of each as many samples as
    fit, from `first_sample` on.
    """
    common = sorted(set.intersection(*(source.classes for _, source in sources)))
    if not common:
        raise DataError("these cases show no class in common; choose cases with --case")
    named = choice.classes if choice.classes and ":" not in choice.classes else None
    if named is not None:
        labels = [_class_number(word.strip(), sources) for word in named.split(",") if word.strip()]
    else:
        count = min(len(common), most)
        labels = [common[i * len(common) // count] for i in range(count)]
    if choice.samples is not None:
        numbers = _numbers(choice.samples)
    else:
        numbers = list(range(first_sample, first_sample + max(1, most // max(1, len(labels)))))
        fewest = min(source.count(label) for _, source in sources for label in labels)
        numbers = [number for number in numbers if number < fewest] or numbers[:1]
    for name, source in sources:
        for label in labels:
            if source.count(label) <= max(numbers):
                raise DataError(
                    f"{plain(name)} has {source.count(label)} samples of class {source.class_name(label)!r}"
                    f"{source.remark}, number {max(numbers)} (from 0) is asked for; choose lower ones with "
                    "--samples, other --classes, or sample more (sample.per_class)"
                )
    return [(label, number) for label in labels for number in numbers]


def _class_number(word: str, sources: Sequence[tuple[str, SampleSource]]) -> int:
    """Return the label of a class given by its name or number; raises DataError for an unknown one."""
    source = sources[0][1]
    if word in source.names:
        return source.names.index(word)
    every = set().union(*(each.classes for _, each in sources))
    if word.isdecimal() and (int(word) in every or int(word) < len(source.names)):
        return int(word)
    known = source.names or [str(label) for label in sorted(every)]
    raise DataError(
        f"unknown class {word!r}{did_you_mean(word, known)}; there are {len(known)}: "
        f"{', '.join(known[:6])}{', ...' if len(known) > 6 else ''}"
    )


def _numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise UserInputError(
            f"--samples takes numbers of samples within a class, from 0, got {text!r}; e.g. --samples 0,1,2"
        )
    return [int(word) for word in words]


def _heading(case: Case) -> str:
    sample = case.sample
    guidance = "no guidance" if sample.guidance_scale == 1 else f"guidance {sample.guidance_scale:g}"
    return (
        f"{case.data.name}, {case.data.image_size} px, {sample.sampler}, {sample.num_steps} evaluations "
        f"of the model, {guidance}, seed {case.seed}; a column is one noise and class"
    )
