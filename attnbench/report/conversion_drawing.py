"""Quality against steps of every converted attention: a small panel each, with the teacher's line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from attnbench.report.axes import Scale, scale_of, tick_text
from attnbench.report.configurations import Configuration
from attnbench.report.conversion import Conversion, conversions, finite_values, first_quantity, mean_of
from attnbench.report.drawing import FAINT, INK, PALETTE, Drawing, shortened
from attnbench.report.quantities import Quantity
from attnbench.report.tables import plain
from attnbench.results import Result

_PER_LINE = 4
_WIDTH, _HEIGHT, _LEFT, _ABOVE, _GAP, _BELOW = 150, 84, 50, 34, 34, 44  # pixels
CONVERTED, SCRATCH = PALETTE[0], PALETTE[1]


def conversion_drawings(results: Sequence[Result], run_dir: Path) -> list[Drawing]:
    """Return the panels, or nothing where no case was taught or none has a quality."""
    found, quantity = conversions(results), first_quantity(results)
    if not found or quantity is None:
        return []
    panels = [_Panel(one, quantity) for one in found]
    if not any(panel.values for panel in panels):
        return []
    caption = (
        f"{quantity.title} against training steps of each attention: converted (filled) and from scratch "
        "(open), means over seeds with the seeds as dots; the dashed line is the teacher."
    )
    return [Drawing(name="conversion", svg=_draw(panels, quantity), caption=plain(caption))]


class _Panel:
    """The points of one conversion."""

    def __init__(self, one: Conversion, quantity: Quantity) -> None:
        self.label = one.label
        self.lines = {
            name: [(steps, finite_values(row, quantity)) for steps, row in rows.items()]
            for name, rows in (("converted", one.converted), ("scratch", one.scratch))
        }
        self.means = {
            "converted": _means(one.converted, quantity),
            "scratch": _means(one.scratch, quantity),
        }
        self.teacher = mean_of(one.teacher, quantity)
        self.values = [v for points in self.lines.values() for _, values in points for v in values]
        self.values += [] if self.teacher is None else [self.teacher]
        self.steps = [steps for points in self.lines.values() for steps, _ in points]


def _means(rows: Mapping[int, Configuration], quantity: Quantity) -> list[tuple[int, float]]:
    found = ((steps, mean_of(row, quantity)) for steps, row in rows.items())
    return [(steps, mean) for steps, mean in found if mean is not None]


def _draw(panels: Sequence[_Panel], quantity: Quantity) -> str:
    x = scale_of([float(s) for panel in panels for s in panel.steps], log=True, margin=0.08)
    y = scale_of([v for panel in panels for v in panel.values], log=False, margin=0.06)
    lines = -(-len(panels) // _PER_LINE)
    columns = min(_PER_LINE, len(panels))
    width = _LEFT + columns * (_WIDTH + 18)
    height = _ABOVE + lines * (_HEIGHT + _GAP) + _BELOW - _GAP
    parts = list(_legend())
    for number, panel in enumerate(panels):
        row, column = divmod(number, _PER_LINE)
        left, top = _LEFT + column * (_WIDTH + 18), _ABOVE + row * (_HEIGHT + _GAP)
        is_last = number + _PER_LINE >= len(panels)
        parts.append(f'<g transform="translate({left} {top})">')
        parts += _axes(x, y, ticked=column == 0, footed=is_last)
        parts += _panel(panel, x, y)
        parts.append("</g>")
    said = f"{quantity.title} against training steps, converted and from scratch"
    return (
        f'<svg role="img" aria-label={quoteattr(said)} xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{INK}">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _legend() -> Iterator[str]:
    for left, colour, fill, text in (
        (_LEFT, CONVERTED, CONVERTED, "converted"),
        (_LEFT + 90, SCRATCH, "none", "from scratch"),
    ):
        yield f'<path d="M{left},8h22" stroke="{colour}" fill="none" stroke-width="1.8"/>'
        yield f'<circle cx="{left + 11}" cy="8" r="3.2" stroke="{colour}" fill="{fill}"/>'
        yield _text(text, left + 27, 12)
    yield f'<path d="M{_LEFT + 196},8h22" stroke="{INK}" fill="none" stroke-dasharray="4 2"/>'
    yield _text("teacher", _LEFT + 223, 12)


def _axes(x: Scale, y: Scale, *, ticked: bool, footed: bool) -> Iterator[str]:
    for value in y.ticks(4):
        top = _HEIGHT * (1 - y.share(value))
        yield f'<path d="M0,{top:.1f}H{_WIDTH}" stroke="{FAINT}" stroke-width="0.6" fill="none"/>'
        if ticked:
            yield _text(tick_text(value), -6, top + 4, "end")
    for value in x.ticks():
        left = _WIDTH * x.share(value)
        yield f'<path d="M{left:.1f},0V{_HEIGHT}" stroke="{FAINT}" stroke-width="0.6" fill="none"/>'
        if footed:
            yield _text(tick_text(value), left, _HEIGHT + 14, "middle")
    if footed:
        yield _text("optimizer steps", _WIDTH / 2, _HEIGHT + 30, "middle")
    yield f'<path d="M0,0V{_HEIGHT}H{_WIDTH}" stroke="{INK}" fill="none"/>'


def _panel(panel: _Panel, x: Scale, y: Scale) -> Iterator[str]:
    def at(steps: float, value: float) -> tuple[str, str]:
        return f"{_WIDTH * x.share(steps):.1f}", f"{_HEIGHT * (1 - y.share(value)):.1f}"

    yield f"<g><title>{escape(plain(panel.label))}</title>{_text(shortened(panel.label, 24), 0, -7)}</g>"
    if panel.teacher is not None:
        _, level = at(x.low, panel.teacher)
        yield f'<path d="M0,{level}H{_WIDTH}" stroke="{INK}" stroke-dasharray="4 2" fill="none"/>'
    for name, colour, fill in (("scratch", SCRATCH, "none"), ("converted", CONVERTED, CONVERTED)):
        means = panel.means[name]
        if len(means) > 1:
            path = "M" + "L".join(",".join(at(*mean)) for mean in means)
            yield f'<path d="{path}" stroke="{colour}" stroke-width="1.8" fill="none"/>'
        for steps, values in panel.lines[name]:
            for value in values if len(values) > 1 else ():
                left, top = at(steps, value)
                yield f'<circle cx="{left}" cy="{top}" r="1.3" fill="{colour}" opacity="0.6"/>'
        for steps, mean in means:
            left, top = at(steps, mean)
            yield f'<circle cx="{left}" cy="{top}" r="3.2" stroke="{colour}" fill="{fill}"/>'


def _text(text: str, x: float, y: float, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(plain(text))}</text>'
