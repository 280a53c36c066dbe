"""The look of this package's PNG pictures, and writing them whole or not at all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.storage.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe palette without its yellow (too pale on white) and its black (the ink),
# then three of Paul Tol's "muted" and a grey: the report's palette and two more.
PALETTE = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00",
    "#56b4e9", "#882255", "#999933", "#332288", "#5a5f66",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # 7 and 10 have no common factor: pairs repeat after 70
INK, FAINT, ALARM = "#1c2024", "#c9ced6", "#b3261e"  # text and axes; grid lines; what needs a look
_DOTS_PER_INCH = 150
OUR_FONT = "DejaVu Sans"  # matplotlib brings it
BOXES_ONLY = "Last Resort"  # has every letter, as a box that says which kind it is of


@contextmanager
def drawing(names: Iterable[str] = ()) -> Iterator[Callable[[str], str]]:
    """Draw with our own settings, whatever the user's matplotlibrc says; labels are never markup.

    `names` are the user's words that will stand in the picture: fonts of this machine that have their letters
    are added to ours. What is yielded writes the letters that no font has as escapes, such as \\u4e2d.
    """
    import matplotlib

    letters = set("".join(names))
    fonts, missing = _fonts_with(letters)
    ours = {
        "text.usetex": False, "text.parse_math": False, "font.family": fonts, "font.size": 9,
        "axes.unicode_minus": True, "axes.titlesize": 10, "figure.titlesize": 10, "text.color": INK,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "grid.color": FAINT, "grid.linewidth": 0.6,
        "axes.axisbelow": True,
    }  # fmt: skip
    with matplotlib.rc_context(rc=dict(matplotlib.rcParamsDefault)):
        matplotlib.rcParams.update(ours)
        yield lambda text: "".join(_escaped(letter) if letter in missing else letter for letter in text)


def _fonts_with(letters: set[str]) -> tuple[list[str], set[str]]:
    """Return our font, then others that have what it lacks, and the letters that none of them has."""
    from matplotlib import font_manager, get_data_path

    ours = font_manager.FontEntry(fname=f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", name=OUR_FONT)
    others = sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.fname))
    fonts, missing = [OUR_FONT], {letter for letter in letters if not letter.isprintable()}
    wanted = letters - missing - _letters_of(ours.fname)
    for font in others:
        if not wanted:
            break
        if font.name.startswith(BOXES_ONLY) or (font.style, font.variant) != ("normal", "normal"):
            continue
        if found := wanted & _letters_of(font.fname):
            chosen = font_manager.findfont(font_manager.FontProperties(family=font.name))
            if found & _letters_of(chosen):  # of a family of several files, the one that will be drawn with
                fonts.append(font.name)
                wanted -= _letters_of(chosen)
    return fonts, missing | wanted


@functools.cache
def _letters_of(font: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(font).get_charmap()))
    except (OSError, RuntimeError):  # a font that was removed, or is damaged
        return frozenset()


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, which needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG on white, equal bytes for equal figures; raises StorageError."""
    with atomic_path(path) as temporary:
        figure.savefig(
            temporary, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": None}
        )


def shortened(name: str, letters: int = 28) -> str:
    """Return a label that fits.

    >>> shortened("Egyptian cat", 8)
    'Egyptia…'
    """
    return name if len(name) <= letters else name[: letters - 1] + "…"
