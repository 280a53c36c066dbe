"""A chart as SVG text, readable on light and dark pages.

Written here and not by matplotlib, whose import alone takes as long as the rest of a report; and so its bytes
depend on no other package's version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

from attnbench.report.axes import scale_of, tick_text
from attnbench.report.charts import Chart, Line, Point
from attnbench.report.drawing import FAINT, INK, colour, dash, distinct, marker
from attnbench.report.marks import outline
from attnbench.report.placement import spread_out
from attnbench.report.tables import plain

MOST_LABELS = 60
"""Lines that a drawing names; of more it would be a column of text with a chart beside it."""
_LEFT, _ABOVE, _BELOW = 66, 12, 46  # pixels around the axes
_WIDTH, _LEAST_HEIGHT, _LABEL_HEIGHT, _LETTER = 420, 300, 15, 6.6


def draw(chart: Chart, labels: Sequence[str], looks: Sequence[int]) -> str:
    """Return a chart as one SVG element; `labels` and `looks` are those of all cases."""
    named = [labels[line.series] for line in chart.lines] if len(chart.lines) <= MOST_LABELS else []
    place = _Place(chart, max(_LEAST_HEIGHT, _LABEL_HEIGHT * len(named)))
    parts = list(_axes(chart, place))
    if chart.front:
        path = _steps([place.at(point) for point in chart.front])
        parts.append(_path(path, stroke=INK, stroke_opacity=0.5, stroke_dasharray="3 2"))
    for line in chart.lines:
        parts += _line(chart, line, place, looks[line.series])
    shown = distinct(named)
    parts += _labels(chart, place, named, shown, looks)
    width = round(_LEFT + _WIDTH + 30 + _LETTER * max(map(len, shown), default=0))
    height = round(_ABOVE + place.height + _BELOW)
    return (
        f'<svg role="img" aria-label={quoteattr(chart.description)} xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


class _Place:
    """Where the values of one chart stand, in pixels."""

    def __init__(self, chart: Chart, height: float) -> None:
        margin = 0.03 if chart.joined else 0.1
        xs = [x for line in chart.lines for x in (*(x for x, _ in line.points), *(line.x_interval or ()))]
        ys = [y for line in chart.lines for y in (*(y for _, y in line.points), *(line.y_interval or ()))]
        self.x, self.y = (
            scale_of(values, log=axis.log, margin=margin) for values, axis in ((xs, chart.x), (ys, chart.y))
        )
        self.height = height

    def at(self, point: Point) -> Point:
        """Return pixels from the left and from above."""
        x, y = point
        return _LEFT + _WIDTH * self.x.share(x), _ABOVE + self.height * (1 - self.y.share(y))


def _axes(chart: Chart, place: _Place) -> Iterator[str]:
    right, foot = _LEFT + _WIDTH, _ABOVE + place.height
    grid = {"stroke": FAINT, "stroke_width": 0.6}
    for value in place.x.ticks():
        x, _ = place.at((value, place.y.low))
        yield _path(f"M{x:.1f},{_ABOVE}V{foot:.1f}", **grid)
        yield _text(tick_text(value), x, foot + 16, "middle", "x-tick")
    for value in place.y.ticks():
        _, y = place.at((place.x.low, value))
        yield _path(f"M{_LEFT},{y:.1f}H{right}", **grid)
        yield _text(tick_text(value), _LEFT - 6, y + 4, "end", "y-tick")
    yield _path(f"M{_LEFT},{_ABOVE}V{foot:.1f}H{right}", stroke=INK)
    yield _text(chart.x.label, _LEFT + _WIDTH / 2, foot + 38, "middle")
    title = _text(chart.y.label, 0, 0, "middle")
    yield f'<g transform="translate(14 {_ABOVE + place.height / 2:.1f}) rotate(-90)">{title}</g>'


def _line(chart: Chart, line: Line, place: _Place, look: int) -> Iterator[str]:
    style = {"stroke": colour(look), **({"opacity": 0.3} if line.faint else {})}
    at = [place.at(point) for point in line.points]
    if chart.joined and len(at) > 1:
        yield _path(_joined(at), stroke_width=1.8, **_dashes(look), **style)
    x, y = line.points[0]
    if line.x_interval is not None:
        yield _path(_joined([place.at((end, y)) for end in line.x_interval]), stroke_opacity=0.5, **style)
    if line.y_interval is not None:
        yield _path(_joined([place.at((x, end)) for end in line.y_interval]), stroke_opacity=0.5, **style)
    if chart.marked or len(at) == 1:
        shape = outline(marker(look), 3.5 if chart.joined else 5)
        kind = {"class_": "hollow"} if line.hollow else {"fill": colour(look)}
        for left, top in at:
            yield _path(shape, transform=f"translate({left:.1f} {top:.1f})", **kind, **style)


def _labels(
    chart: Chart, place: _Place, named: Sequence[str], shown: Sequence[str], looks: Sequence[int]
) -> Iterator[str]:
    """Write every label to the right of the axes, joined to the line's last point by a thin one."""
    if not named:
        return
    ends = [place.at(line.points[-1]) for line in chart.lines]
    gap = min(_LABEL_HEIGHT / place.height, 1 / max(1, len(ends) - 1))
    heights = spread_out([1 - (y - _ABOVE) / place.height for _, y in ends], gap)
    edge = _LEFT + _WIDTH
    for line, label, text, (x, y), share in zip(chart.lines, named, shown, ends, heights, strict=True):
        top = _ABOVE + place.height * (1 - share)
        path = f"M{x + 4:.1f},{y:.1f}L{edge + 16},{top:.1f}h6"
        yield _path(path, stroke=colour(looks[line.series]), stroke_width=0.8, stroke_dasharray="1 2")
        yield _text(text, edge + 25, top + 4, whole=label if text != plain(label) else "")


def _path(data: str, **style: object) -> str:
    style.setdefault("fill", "none")
    said = "".join(f' {name.strip("_").replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<path d="{data}"{said}/>'


def _text(text: str, x: float, y: float, anchor: str = "start", kind: str = "", whole: str = "") -> str:
    """Return text at a place; `whole` is what a pointer over it is told."""
    more = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    told = f"<title>{escape(plain(whole))}</title>" if whole else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(plain(text))}{told}</text>'


def _joined(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _steps(points: Sequence[Point]) -> str:
    """Return a path that keeps each height until the next point."""
    (x, y), *others = points
    return f"M{x:.1f},{y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in others)


def _dashes(look: int) -> dict[str, str]:
    style = dash(look)
    return {} if isinstance(style, str) else {"stroke_dasharray": " ".join(f"{1.8 * n:g}" for n in style[1])}
