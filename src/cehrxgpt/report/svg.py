"""Charts as SVG text: a few shapes, two axes, colours by CSS class.

Coordinates are CSS pixels at the chart's natural width, so that letters have the size of the page's small print. Colours are the
classes `c1` ... `c8`, `ink` and `soft` of `style.css`, which follow the reader's light or dark setting; nothing here names a colour.
A chart that is as wide as the column is drawn twice, for a wide and for a narrow screen (`responsive`), rather than shrunk
until nobody can read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np

from cehrxgpt.report.markup import Markup, tag, text

_EPOCH = datetime(1970, 1, 1)
_LETTER = 6.6  # pixels; about the widest that a figure is in the usual fonts at 12 pixels


def days(value: date | datetime) -> float:
    """Days since 1970, the unit of date axes."""
    instant = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    return (instant - _EPOCH) / timedelta(days=1)


def nice_ticks(low: float, high: float, target: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers within [low, high], about `target` of them; `whole`: integers only."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, target)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    if whole:
        step = float(math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def _plain(value: float) -> str:
    return f"{value:,.10g}".replace("-", "−")


@dataclass(frozen=True)
class Axis:
    """A range of values and its ticks; `fraction` maps a value to 0..1 along the axis."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    @classmethod
    def linear(
        cls, low: float, high: float, *, target: int = 5, label: Callable[[float], str] = _plain, snap: bool = False, whole: bool = False
    ) -> Axis:
        """`snap` widens the range to the ticks around it; `whole` is for counts."""
        if not high > low:
            low, high = low - 0.5, high + 0.5
        if snap:
            ticks = nice_ticks(low, high, target, whole=whole)
            step = (ticks[-1] - ticks[0]) / max(1, len(ticks) - 1)
            if step > 0:
                low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return cls(low, high, tuple((tick, label(tick)) for tick in nice_ticks(low, high, target, whole=whole)))

    @classmethod
    def logarithmic(cls, low: float, high: float, *, label: Callable[[float], str] = _plain) -> Axis:
        """Whole powers of ten as ticks, 2 and 5 as well where the range is short."""
        low, high = max(low, 1e-12), max(high, low * 1.01, 2e-12)
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
        values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        return cls(low, high, tuple((value, label(value)) for value in values if low * 0.999 <= value <= high * 1.001), log=True)

    @classmethod
    def dates(cls, start: date | datetime, end: date | datetime, *, target: int = 6) -> Axis:
        """Ticks at first days of years, months, or single days."""
        low, high = days(start), days(end)
        if high - low < 1:
            low, high = low - 0.5, high + 0.5
        return cls(low, high, tuple(date_ticks(low, high, target)))

    def fraction(self, value: Any) -> Any:
        """0 at `low`, 1 at `high`; arrays allowed."""
        if self.log:
            return np.log(np.maximum(value, self.low * 1e-3) / self.low) / math.log(self.high / self.low)
        return (np.asarray(value, dtype=float) - self.low) / (self.high - self.low)


def date_ticks(low: float, high: float, target: int) -> list[tuple[float, str]]:
    """Ticks of a range of days since 1970 at first days of years, months, or single days."""
    start, end = _EPOCH + timedelta(days=low), _EPOCH + timedelta(days=high)
    months = (high - low) / 30.44
    ticks: list[tuple[float, str]] = []
    if months > 6 * target:
        step = next((step for step in (1, 2, 5, 10, 20, 50) if months / 12 / step <= target), 100)
        ticks = [(days(date(max(year, 1), 1, 1)), str(year)) for year in range((start.year // step) * step, end.year + 1, step)]
    elif months > 2:
        step = next(step for step in (1, 2, 3, 6) if months / step <= target or step == 6)
        firsts = (
            date(index // 12, index % 12 + 1, 1) for index in range(start.year * 12 + start.month - 1, end.year * 12 + end.month) if index % step == 0
        )
        ticks = [(days(first), first.strftime("%b %Y")) for first in firsts]
    else:
        step = max(1, math.ceil((high - low) / target))
        whole = range(math.ceil(low), math.floor(high) + 1, step)
        # The year stands at the first tick alone: these labels are close together.
        ticks = [(float(index), (_EPOCH + timedelta(days=index)).strftime("%d %b" if place else "%d %b %Y")) for place, index in enumerate(whole)]
    return [(value, label) for value, label in ticks if low <= value <= high]


def text_width(value: str) -> float:
    """About how wide a text of the charts is, pixels: capitals are wider than small letters."""
    return sum(8.6 if letter.isupper() else 4.2 if letter in "ijlt.,:;'|/() " else 7.2 for letter in value)


def fitted(value: str, width: float) -> str:
    """The text, cut with an ellipsis where it would be wider than `width` pixels."""
    if text_width(value) <= width:
        return value
    kept = value
    while kept and text_width(kept) + 8 > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def _points(xs: Any, ys: Any) -> list[str]:
    return [f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]


class Chart:
    """A drawing area with an x and a y axis; shapes are given in data units and kept in the order drawn.

    Args:
        width, height: natural size, pixels, axes included.
        x, y: the axes.
        margin: (top, right, bottom, left) pixels.
        x_title, y_title: what the axes measure; the y title stands above the axis, upright.
        show_x, show_y: draw the ticks' labels and gridlines.
    """

    def __init__(
        self,
        width: float,
        height: float,
        x: Axis,
        y: Axis,
        *,
        margin: tuple[float, float, float, float] = (26, 18, 40, 46),
        x_title: str = "",
        y_title: str = "",
        show_x: bool = True,
        show_y: bool = True,
    ):
        self.width, self.height, self.x, self.y = width, height, x, y
        self.top, self.right, self.bottom, self.left = margin
        self._parts: list[str] = []
        self._axes(x_title, y_title, show_x, show_y)

    def at_x(self, value: Any) -> Any:
        """Pixels from the left edge."""
        return self.left + self.x.fraction(value) * (self.width - self.left - self.right)

    def at_y(self, value: Any) -> Any:
        """Pixels from the top edge."""
        return self.height - self.bottom - self.y.fraction(value) * (self.height - self.top - self.bottom)

    def _axes(self, x_title: str, y_title: str, show_x: bool, show_y: bool) -> None:
        floor, edge = self.height - self.bottom, self.width - self.right
        if show_y:
            for value, label in self.y.ticks:
                py = float(self.at_y(value))
                self._parts.append(f'<path class="grid" d="M{self.left:.1f} {py:.1f}H{edge:.1f}"/>')
                self.label(self.left - 6, py + 4, label, anchor="end")
        if show_x:
            self._parts.append(f'<path class="axis" d="M{self.left:.1f} {floor:.1f}H{edge:.1f}"/>')
            free = -math.inf
            for value, label in self.x.ticks:
                px = float(self.at_x(value))
                self._parts.append(f'<path class="axis" d="M{px:.1f} {floor:.1f}v4"/>')
                half = _LETTER / 2 * len(label)
                anchor = "end" if px + half > self.width else "start" if px - half < 0 else "middle"
                left = px - {"end": 2 * half, "middle": half, "start": 0.0}[anchor]
                if left >= free:  # a label that would run into the one before it is left out
                    self.label(min(px, self.width - 1), floor + 17, label, anchor=anchor)
                    free = left + 2 * half + 4
        if x_title:
            self.label(self.left + (edge - self.left) / 2, self.height - 5, x_title, anchor="middle", class_="title")
        if y_title:
            self.label(2, 13, y_title, class_="title")

    # -- shapes in pixels ---------------------------------------------------------------------------------------------------------

    def label(self, px: float, py: float, value: str, *, anchor: str = "start", class_: str = "") -> None:
        """Text at a pixel position."""
        style = f' class="{class_}"' if class_ else ""
        where = f' text-anchor="{anchor}"' if anchor != "start" else ""
        self._parts.append(f'<text x="{px:.1f}" y="{py:.1f}"{where}{style}>{text(value)}</text>')

    def box(self, px: float, py: float, width: float, height: float, class_: str, *, title: str = "", radius: float = 0) -> None:
        """A filled rectangle at a pixel position; `title` is what a pointer held over it shows."""
        inner = f"<title>{text(title)}</title>" if title else ""
        rounded = f' rx="{radius:g}"' if radius else ""
        self._parts.append(
            f'<rect class="{class_}" x="{px:.1f}" y="{py:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"{rounded}>{inner}</rect>'
        )

    def raw(self, path: str, class_: str) -> None:
        """A path in pixels."""
        self._parts.append(f'<path class="{class_}" d="{path}"/>')

    # -- shapes in data units -----------------------------------------------------------------------------------------------------

    def line(self, xs: Any, ys: Any, class_: str) -> None:
        """A polyline; points that are not finite are left out."""
        points = _points(np.atleast_1d(self.at_x(np.asarray(xs, float))), np.atleast_1d(self.at_y(np.asarray(ys, float))))
        if points:
            self._parts.append(f'<path class="line {class_}" d="M{"L".join(points)}"/>')

    def steps(self, xs: Sequence[float], ys: Sequence[float], class_: str) -> None:
        """A step function: the value `ys[i]` holds from `xs[i]` on."""
        wide = [x for x in xs for _ in (0, 1)][1:]
        tall = [y for y in ys for _ in (0, 1)][:-1]
        self.line(wide, tall, class_)

    def band(self, xs: Any, low: Any, high: Any, class_: str) -> None:
        """The area between two curves."""
        px = self.at_x(np.asarray(xs, float))
        upper, lower = _points(px, self.at_y(np.asarray(high, float))), _points(px, self.at_y(np.asarray(low, float)))
        if len(upper) > 1:
            self._parts.append(f'<path class="band {class_}" d="M{"L".join(upper + lower[::-1])}Z"/>')

    def dots(self, xs: Any, ys: Any, class_: str) -> None:
        """Many points as one path (round line caps), which keeps the page small."""
        points = _points(np.atleast_1d(self.at_x(np.asarray(xs, float))), np.atleast_1d(self.at_y(np.asarray(ys, float))))
        if points:
            self._parts.append(f'<path class="dots {class_}" d="{"".join(f"M{point}h0" for point in points)}"/>')

    def dot(self, x: float, y: float, class_: str, title: str = "", radius: float = 4) -> None:
        """One point, with a title."""
        inner = f"<title>{text(title)}</title>" if title else ""
        self._parts.append(f'<circle class="{class_}" cx="{float(self.at_x(x)):.1f}" cy="{float(self.at_y(y)):.1f}" r="{radius:g}">{inner}</circle>')

    def whisker(self, x: float, low: float, high: float, class_: str) -> None:
        """A vertical interval."""
        self.raw(f"M{float(self.at_x(x)):.1f} {float(self.at_y(low)):.1f}V{float(self.at_y(high)):.1f}", f"line thin {class_}")

    def bars(self, edges: Sequence[float], heights: Sequence[float], class_: str, titles: Sequence[str] = ()) -> None:
        """A histogram: `len(edges) == len(heights) + 1`."""
        floor = float(self.at_y(self.y.low))
        for index, value in enumerate(heights):
            left, right, top = float(self.at_x(edges[index])), float(self.at_x(edges[index + 1])), float(self.at_y(value))
            if value > 0:
                self.box(
                    left + 0.5, min(top, floor - 1), max(right - left - 1, 1), max(floor - top, 1), class_, title=titles[index] if titles else ""
                )

    def vertical(self, x: float, label: str = "", class_: str = "rule") -> None:
        """A line across the plot at `x`, named at its top."""
        px = float(self.at_x(x))
        self.raw(f"M{px:.1f} {self.top:.1f}V{self.height - self.bottom:.1f}", class_)
        if label:
            self.label(px, self.top - 6, label, anchor="end" if px > self.width * 0.7 else "middle", class_="title")

    def svg(self, description: str, *, class_: str = "") -> Markup:
        """The chart as an `<svg>` element; `description` is what a screen reader says."""
        content = "".join(self._parts)
        return Markup(
            f'<svg class="chart {class_}" viewBox="0 0 {self.width:g} {self.height:g}" style="max-width:{self.width * 1.15:.0f}px" role="img" '
            f'aria-label="{text(description)}">{content}</svg>'
        )


def responsive(draw: Callable[[int], Chart], description: str, *, wide: int = 760, narrow: int = 344) -> Markup:
    """The same chart drawn for a wide and for a narrow column; the style sheet shows one of them."""
    return Markup(draw(wide).svg(description, class_="wide") + draw(narrow).svg(description, class_="narrow"))


def grid(charts: Iterable[Any]) -> Markup:
    """Charts side by side as far as there is room."""
    return tag("div", *charts, class_="charts")
