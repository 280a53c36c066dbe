"""Figures as files: SVG, PNG or PDF, and what LaTeX needs to include them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attnbench.errors import UserInputError
from attnbench.report.drawing import drawing, on_paper, svg
from attnbench.report.tables import plain
from attnbench.storage.atomic import atomic_write, storage_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["svg", "png", "pdf"]
LATEX = "figures.tex"
_HEAD = "% needs \\usepackage{graphicx}, and \\graphicspath where this folder is not the paper's own\n"
_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "·": r"\textperiodcentered{}", "…": r"\dots{}", "–": "--", "↓": r"$\downarrow$",
    "↑": r"$\uparrow$", "−": "--",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One figure in a file."""

    name: str
    path: Path
    caption: str


def write_figure(
    name: str, draw: Callable[[], Figure], caption: str, folder: Path, file_format: Format
) -> Drawn:
    """Draw a figure into `folder/figure-NAME.FORMAT`: equal bytes for equal figures; raises StorageError."""
    path = folder / f"figure-{name}.{file_format}"
    with drawing():
        figure = draw()
        if file_format == "svg":
            data = on_paper(svg(figure, f"figure-{name}", caption)).encode()
        else:
            dates = {"Software": None} if file_format == "png" else {"CreationDate": None}
            buffer = io.BytesIO()
            figure.savefig(
                buffer, format=file_format, dpi=max(150.0, figure.dpi), facecolor="white", metadata=dates
            )
            data = buffer.getvalue()
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)
    return Drawn(name=name, path=path, caption=caption)


def write_latex(drawn: Sequence[Drawn], folder: Path) -> Path:
    """Write `figures.tex`, one figure environment each, to be taken into a paper with \\input.

    Raises UserInputError where one lies there that somebody else wrote, StorageError.
    """
    path = folder / LATEX
    with storage_errors(path):
        if path.exists() and not path.read_bytes().startswith(_HEAD.encode()):
            raise UserInputError(
                f"{path} is not attnbench's: it was left as it is; move it away, or "
                "give another folder with --to"
            )
    parts = [
        "\\begin{figure}[t]\n  \\centering\n"
        f"  \\includegraphics[width=\\linewidth]{{{figure.path.name}}}\n"
        f"  \\caption{{{latex_text(figure.caption)}}}\n  \\label{{fig:attnbench-{figure.name}}}\n"
        "\\end{figure}\n"
        for figure in drawn
    ]
    atomic_write(path, (_HEAD + "\n".join(parts)).encode())
    return path


def latex_text(text: str) -> str:
    """Return text as LaTeX shows it, whatever it holds.

    >>> latex_text("50 % of a_b")
    '50 \\\\% of a\\\\_b'
    """
    return "".join(_ESCAPES.get(letter, letter) for letter in plain(text))
