"""What all figures share: colours and marks of series, our own settings of matplotlib, SVG text."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnbench.report.charts import Chart
from attnbench.report.tables import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe palette without its yellow (too pale on white) and its black (the ink),
# then two of Paul Tol's "muted".
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#1c2024", "#c9ced6"  # text and axes; grid lines
_LABEL_LETTERS = 34


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A drawing with its caption."""

    name: str
    svg: str
    caption: str
    chart: Chart | None = None
    """What it shows, where the page can draw it again: with values to hover and series to hide."""


def colour(i: int) -> str:
    """Return the colour of the i-th series."""
    return PALETTE[i % len(PALETTE)]


def dash(i: int) -> Any:
    """Return the line style of the i-th series: the next one with every turn of the colours."""
    return DASHES[i // len(PALETTE) % len(DASHES)]


def marker(i: int) -> str:
    """Return the marker of the i-th series."""
    return MARKERS[i % len(MARKERS)]


def shortened(label: str) -> str:
    """Return a label as a figure shows it: on one line and not too long."""
    label = plain(label)
    return label if len(label) <= _LABEL_LETTERS else label[: _LABEL_LETTERS - 1] + "…"


def shortened_apart(labels: Sequence[str]) -> list[str]:
    """Return labels as one figure shows them: not too long, and different where they were.

    Where the beginnings are alike the middle is left out; where both ends are, a number is put behind.

    >>> shortened_apart(["a" * 40, "a" * 39 + "b"])
    ['aaaaaaaaaaaa…aaaaaaaaaaaaaaaaaaaaa', 'aaaaaaaaaaaa…aaaaaaaaaaaaaaaaaaaab']
    """
    shown = [shortened(label) for label in labels]
    alike = _told_alike(labels, shown)
    shown = [_without_middle(plain(labels[i])) if i in alike else text for i, text in enumerate(shown)]
    alike = _told_alike(labels, shown)
    return [f"{text[:-6]}… #{i + 1}" if i in alike else text for i, text in enumerate(shown)]


def _told_alike(labels: Sequence[str], shown: Sequence[str]) -> set[int]:
    """Return the positions whose text stands for another label too."""
    counts = Counter(text for text, _ in set(zip(shown, labels, strict=True)))
    return {i for i, text in enumerate(shown) if counts[text] > 1}


def _without_middle(label: str) -> str:
    head = _LABEL_LETTERS // 3 + 1
    return label if len(label) <= _LABEL_LETTERS else f"{label[:head]}…{label[head + 1 - _LABEL_LETTERS :]}"


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with our own settings, whatever the user's matplotlibrc says; labels are never markup."""
    import matplotlib

    ours = {
        "svg.fonttype": "none", "svg.hashsalt": "attnbench", "text.usetex": False, "text.parse_math": False,
        "font.family": "DejaVu Sans", "font.size": 10, "axes.unicode_minus": True,
        "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    # Without the backend, for which pyplot would be imported: files need neither.
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(rc=defaults), warnings.catch_warnings():
        # A glyph missing in DejaVu only affects measuring: the reader's browser draws the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        matplotlib.rcParams.update(ours)
        yield


def plain_ticks(axis: Any) -> None:
    """Write 0.02 instead of a power of ten in mathtext, which is switched off."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def svg(figure: Figure, name: str, description: str) -> str:
    """Return an SVG element whose ids are its own, so that several can stand in one page."""
    from xml.sax.saxutils import quoteattr

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label={quoteattr(description)} ', 1)


def on_paper(text: str) -> str:
    """Give an SVG element its own white ground: outside our page dark viewers would hide the ink."""
    return text.replace("<svg ", '<svg style="background: #fff" ', 1)
