"""What all figures share: colours and marks of series, our own settings of matplotlib, SVG text."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    with matplotlib.rc_context(rc=dict(matplotlib.rcParamsDefault)), warnings.catch_warnings():
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
