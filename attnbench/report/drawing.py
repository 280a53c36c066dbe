"""What all figures share: looks and labels of series, our own settings of matplotlib, SVG text."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnbench.report.charts import Chart
from attnbench.report.placement import spread_out
from attnbench.report.tables import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe palette without its yellow (too pale on white) and its black (the ink),
# then a wine of Paul Tol's "muted" and a violet: no pair is harder to tell apart than the hardest of Okabe
# and Ito's own, for any of the three kinds of colour blindness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#7a5cff")
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
    """Return the line style of the i-th series: the next one with every turn of the markers.

    So marker and line alone, without colour, tell as many series apart as there are pairs of them: 28.
    """
    return DASHES[i // len(MARKERS) % len(DASHES)]


def marker(i: int) -> str:
    """Return the marker of the i-th series."""
    return MARKERS[i % len(MARKERS)]


def shortened(label: str, letters: int = _LABEL_LETTERS) -> str:
    """Return a label on one line and not too long: its middle is cut out, since labels differ at their ends.

    >>> shortened("dydila(mode=token, num_factors=9)", 17)
    'dydila(m…ctors=9)'
    """
    label = plain(label)
    if len(label) <= letters:
        return label
    tail = (letters - 1) // 2
    return label[: letters - 1 - tail] + "…" + label[len(label) - tail :]


def distinct(labels: Sequence[str], letters: int = _LABEL_LETTERS) -> list[str]:
    """Return labels as figures show them: shortened, and numbered where several are cut to the same text.

    Where labels were equal before they were cut, there is nothing to tell them apart by: they stay equal.

    >>> distinct(["one long label", "one lone label"], 9)
    ['one … (1)', 'one … (2)']
    """
    cut = {label: shortened(label, letters) for label in labels}
    several = {text for text, count in Counter(cut.values()).items() if count > 1}
    numbers: Counter[str] = Counter()
    shown = {}
    for label, text in cut.items():
        if text in several:
            numbers[text] += 1
            number = f" ({numbers[text]})"
            text = plain(label)[: letters - 1 - len(number)] + "…" + number
        shown[label] = text
    return [shown[label] for label in labels]


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], **settings: Any) -> None:
    """Add a legend that shows every name, those too that begin with `_`, which matplotlib leaves out."""
    drawn = figure.legend(handles, [str(i) for i in range(len(names))], frameon=False, **settings)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set_text(name)


def label_ends(
    figure: Figure, axes: Axes, ends: Mapping[int, tuple[float, float]], labels: Mapping[int, str]
) -> None:
    """Write the label of every series to the right of the axes, joined to its point by a thin line."""
    axes.get_xlim(), axes.get_ylim()  # fixes the limits, so that data can be placed in axes coordinates
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform(point)[1]) for point in ends.values()]
    gap = min(0.075, 1 / max(1, len(ends) - 1))
    texts = distinct([labels[i] for i in ends])
    for (i, point), height, text in zip(ends.items(), spread_out(heights, gap), texts, strict=True):
        axes.annotate(
            text, xy=point, xytext=(1.06, height), textcoords="axes fraction",
            va="center", parse_math=False, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour(i), "linewidth": 0.8, "linestyle": (0, (1, 2)),
                        "shrinkA": 2, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


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
