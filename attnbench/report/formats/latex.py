"""A table as LaTeX for `\\input`: booktabs, every text escaped; compiles with pdflatex and UTF-8."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from attnbench.report.tables import Cell, Column, Row, Table

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "*": r"\textasteriskcentered{}",
    "–": "--", "—": "---", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "…": r"\dots{}",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$", "≥": r"$\geq$", "≤": r"$\leq$",
    "≈": r"$\approx$", "∞": r"$\infty$", "²": "$^2$", "³": "$^3$", "µ": r"$\mu$",
    **{letter: rf"$\{name}$" for letter, name in zip("αβγδεκλμνπρστφΔΣΩ", (
        "alpha", "beta", "gamma", "delta", "epsilon", "kappa", "lambda", "mu", "nu", "pi", "rho", "sigma",
        "tau", "phi", "Delta", "Sigma", "Omega"), strict=True)},
}  # fmt: skip
_LIGATURES = re.compile(r"(?<=[-?!,])(?=[-`,])")  # `--` would become a dash
_PREAMBLE = (
    r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}; wide tables fit \resizebox or landscape."
)


def escape(text: str) -> str:
    """Return text that LaTeX prints as it stands; letters that pdflatex has no font for by their number.

    >>> escape("50 % of a_b")
    '50 \\\\% of a\\\\_b'
    """
    parts = (piece for piece in _LIGATURES.split(text))
    return "{}".join("".join(map(_letter, piece)) for piece in parts)


def render(table: Table) -> str:
    """Return a `table*` environment with caption and notes; groups of columns have a rule of their own."""
    layout = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [
        _PREAMBLE,
        r"\begin{table*}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape(table.title)}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        *_groups(table.columns),
        _line(escape(column.name) for column in table.columns),
        *_small_print(table.columns),
        r"\midrule",
    ]
    for index, row in enumerate(table.rows):
        if row.status == "floor" and (index == 0 or table.rows[index - 1].status != "floor"):
            lines.append(r"\midrule")
        lines.append(_line(_cells(row)))
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        lines += ["", r"\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [escape(note) + r"\par" for note in table.notes]
        lines.append(r"\end{minipage}")
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _letter(letter: str) -> str:
    if letter in _SPECIAL:
        return _SPECIAL[letter]
    number = ord(letter)
    if 0x20 <= number < 0x7F or 0xC0 <= number < 0x180:  # Latin letters with accents, in T1
        return letter
    return r"\texttt{U+" + f"{number:04X}" + "}"


def _groups(columns: tuple[Column, ...]) -> list[str]:
    """Return the line of group headings and the rules below it, or nothing."""
    if not any(column.group for column in columns):
        return []
    cells, rules, at = [], [], 1
    for group, members in itertools.groupby(columns, key=lambda column: column.group):
        width = len(list(members))
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    return [_line(cells), " ".join(rules)]


def _small_print(columns: tuple[Column, ...]) -> list[str]:
    if not any(column.small_print for column in columns):
        return []
    return [_line(rf"\tiny {escape(column.small_print)}" if column.small_print else "" for column in columns)]


def _cells(row: Row) -> list[str]:
    cells = [_cell(cell) for cell in row.cells]
    if row.status in ("failed", "skipped"):
        cells[0] += rf" \emph{{({row.status})}}"
    return cells


def _cell(cell: Cell) -> str:
    text = rf"\textbf{{{escape(cell.text)}}}" if cell.best else escape(cell.text)
    marks = rf"\textsuperscript{{{escape(cell.marks)}}}" if cell.marks else ""
    detail = rf" {{\tiny ({escape(cell.detail)})}}" if cell.detail else ""
    return f"{text}{marks}{detail}"


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
