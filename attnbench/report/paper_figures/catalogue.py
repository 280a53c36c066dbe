"""Which figures of the paper can be drawn from runs, and what each shows there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from attnbench.errors import UnknownNameError, UserInputError, did_you_mean

Kind = Literal["resolution", "cost", "samples", "inside", "separation", "pareto"]
Sizes = Literal["all", "largest"]


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """One figure: what it shows, and what the paper's own shows it on."""

    name: str
    kind: Kind
    title: str
    paper: str
    """What the paper's figure is of; empty of a figure that is not the paper's."""
    sizes: Sizes = "all"
    families: tuple[str, ...] = ()
    """Recipes of these families alone, where the runs have any of them."""
    first_sample: int = 0
    """Of each class, the first sample that is shown by default: figures of the same kind show others."""


_SAMPLES = "Samples of every model from the same noise and class"
FIGURES = {
    figure.name: figure
    for figure in (
        PaperFigure(
            name="1a", kind="resolution", title="Cost against resolution",
            paper="DiT, Sana and DyDi-LiT up to 2048 px",
        ),
        PaperFigure(
            name="1b", kind="cost", title="Quality against cost, area of a marker by parameters",
            paper="FID of DiT, Sana and DyDi-LiT on Sub-IN, 256 px",
        ),
        PaperFigure(name="3", kind="samples", title=_SAMPLES, paper="Sub-IN, 256 px, guidance 4.0"),
        PaperFigure(
            name="4", kind="samples", title=f"{_SAMPLES}, largest size", sizes="largest",
            paper="Sub-IN, 512 px, size L, guidance 4.0",
        ),
        PaperFigure(
            name="5", kind="inside", title="Most used projector of each block and class",
            paper="DyDi-LiT on Sub-IN, four classes",
        ),
        PaperFigure(
            name="6", kind="inside", title="Implied attention of one output token",
            paper="the rungs of Table 4, one query",
        ),
        PaperFigure(
            name="7", kind="inside", title="Mean differential factor of each block",
            paper="both paradigms, both initialisations",
        ),
        PaperFigure(
            name="8", kind="samples", title=f"{_SAMPLES}, further ones", first_sample=1,
            paper="Sub-IN, 256 px, guidance 4.0",
        ),
        PaperFigure(
            name="9", kind="samples", title=f"{_SAMPLES}, largest size, further ones", sizes="largest",
            first_sample=1, paper="Sub-IN, 512 px, size L, guidance 4.0",
        ),
        PaperFigure(
            name="10", kind="samples", title=f"{_SAMPLES}: DiT, Sana, DyDi-LiT",
            families=("dit", "sana", "dydi-lit"), paper="ImageNet-1K, 256 px, size S, guidance 4.0",
        ),
        PaperFigure(
            name="11", kind="separation", title="t-SNE of the features of samples",
            paper="ImageNet-1K, features of ResNet-152: (a) random classes, (b) classes like `cat`",
        ),
        PaperFigure(name="pareto", kind="pareto", title="Quality against each cost", paper=""),
    )
}  # fmt: skip


def chosen_figures(names: Sequence[str]) -> list[PaperFigure]:
    """Return the figures of these names, each once, in the order of the paper; raises UserInputError."""
    for name in names:
        if name in ("1", "11a", "11b"):
            whole = "1a and 1b" if name == "1" else "11, whose two rows are (a) and (b)"
            raise UserInputError(f"no figure {name!r}; name {whole}")
        if name not in FIGURES:
            raise UnknownFigureError(name)
    return [figure for name, figure in FIGURES.items() if name in names]


class UnknownFigureError(UnknownNameError):
    """A figure that cannot be drawn."""

    def __init__(self, got: str) -> None:
        bare = got.lower().removeprefix("figure").removeprefix("fig").strip(" .")
        hint = f" (did you mean {bare!r}?)" if bare in FIGURES else did_you_mean(got, FIGURES)
        UserInputError.__init__(self, f"unknown figure {got!r}{hint}; available: {', '.join(FIGURES)}")
        self.kind, self.got, self.allowed = "figure", got, list(FIGURES)

    def __reduce__(self) -> tuple[type, tuple[str]]:  # type: ignore[override]
        return type(self), (self.got,)
