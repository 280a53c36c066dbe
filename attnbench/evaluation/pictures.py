"""The look of this package's PNG pictures, and writing them whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
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


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with our own settings, whatever the user's matplotlibrc says; labels are never markup."""
    import matplotlib

    ours = {
        "text.usetex": False, "text.parse_math": False, "font.family": "DejaVu Sans", "font.size": 9,
        "axes.unicode_minus": True, "axes.titlesize": 10, "figure.titlesize": 10, "text.color": INK,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "grid.color": FAINT, "grid.linewidth": 0.6,
        "axes.axisbelow": True,
    }  # fmt: skip
    with matplotlib.rc_context(rc=dict(matplotlib.rcParamsDefault)):
        matplotlib.rcParams.update(ours)
        yield


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
