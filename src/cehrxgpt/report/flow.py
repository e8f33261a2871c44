"""A flow diagram after CONSORT and STROBE: who came in at the top, who was left out and why at the side, what became of the rest below.

The layout is computed before anything is drawn, so that boxes are as high as their words. On a wide screen the reasons stand
beside the stem, on a narrow one they are indented under it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from cehrxgpt.report.markup import Markup
from cehrxgpt.report.svg import Axis, Chart, responsive

_LINE, _PAD, _GAP = 17, 9, 26
_LETTER = 6.9  # pixels; a generous mean width of letters at 12 pixels


@dataclass(frozen=True)
class Step:
    """A box of the stem, and the box at its side that says who did not go on to the next.

    Attributes:
        title: what the box counts, in bold; `lines` are under it.
        side_title, side: who was left out, and the reasons; empty where nothing is left out here.
    """

    title: str
    lines: tuple[str, ...] = ()
    side_title: str = ""
    side: tuple[str, ...] = ()


@dataclass(frozen=True)
class End:
    """A box at the foot; `colour` is a class of the style sheet."""

    title: str
    lines: tuple[str, ...]
    colour: str = "soft"


@dataclass(frozen=True)
class _Box:
    x: float
    y: float
    width: float
    height: float
    title: tuple[str, ...]
    lines: tuple[str, ...]
    class_: str
    colour: str = ""

    @property
    def bottom(self) -> float:
        return self.y + self.height


def _wrapped(value: str, width: float) -> tuple[str, ...]:
    return tuple(textwrap.wrap(value, max(12, int((width - 2 * _PAD) / _LETTER)))) or ("",)


def _box(x: float, y: float, width: float, title: str, lines: Sequence[str], class_: str, colour: str = "") -> _Box:
    head = _wrapped(title, width * 0.93) if title else ()  # bold letters are wider
    body = tuple(part for line in lines for part in _wrapped(line, width))
    return _Box(x, y, width, 2 * _PAD - 3 + _LINE * (len(head) + len(body)), head, body, class_, colour)


def _layout(width: int, steps: Sequence[Step], ends: Sequence[End]) -> tuple[list[_Box], list[str]]:
    """Boxes, and the arrows between them as paths."""
    wide = width > 500
    stem = 0.46 * width if wide else width - 2.0
    middle = stem / 2 if wide else 14.0
    boxes: list[_Box] = []
    arrows: list[str] = []
    y = 1.0
    for index, step in enumerate(steps):
        box = _box(1, y, stem, step.title, step.lines, "node")
        boxes.append(box)
        last = index == len(steps) - 1
        below = box.bottom + _GAP
        if step.side_title:
            x = stem + 44 if wide else 38.0
            side = _box(x, box.bottom + 10, width - x - 1, step.side_title, step.side, "node aside")
            boxes.append(side)
            below = side.bottom + 16
            turn = side.y + min(side.height / 2, 18)
            arrows.append(_across(middle, turn, x))
        if not last:
            arrows.append(_down(middle, box.bottom, below))
        y = below if not last or ends else box.bottom + 2
    boxes += _ends(width, y, ends, wide=wide)
    if ends:
        arrows.append(_fan(middle, [box for box in boxes if box.class_ == "node"][-1].bottom, boxes[-len(ends) :], wide=wide))
    return boxes, arrows


def _ends(width: int, y: float, ends: Sequence[End], *, wide: bool) -> list[_Box]:
    found: list[_Box] = []
    each = (width - 12.0 * (len(ends) - 1) - 2) / max(1, len(ends)) if wide else width - 39.0
    for index, end in enumerate(ends):
        x = 1 + index * (each + 12) if wide else 38.0
        box = _box(x, y, each, end.title, end.lines, "node end", end.colour)
        found.append(box)
        if not wide:
            y = box.bottom + 8
    height = max((box.height for box in found), default=0.0)
    return [_Box(**{**box.__dict__, "height": height}) for box in found] if wide else found


def _down(x: float, start: float, end: float) -> str:
    return f"M{x:.1f} {start:.1f}V{end - 1:.1f}m-4 -6l4 6l4 -6"


def _across(start: float, y: float, end: float) -> str:
    return f"M{start:.1f} {y:.1f}H{end - 1:.1f}m-6 -4l6 4l-6 4"


def _fan(x: float, start: float, ends: Sequence[_Box], *, wide: bool) -> str:
    if not wide:
        rail = f"M{x:.1f} {start:.1f}V{ends[-1].y + 18:.1f}"
        return rail + "".join(_across(x, box.y + 18, box.x) for box in ends)
    bar = ends[0].y - 12
    centres = [box.x + box.width / 2 for box in ends]
    joined = f"M{x:.1f} {start:.1f}V{bar:.1f}M{min(x, *centres):.1f} {bar:.1f}H{max(x, *centres):.1f}"
    return joined + "".join(_down(centre, bar, ends[0].y) for centre in centres)


def flow_chart(width: int, steps: Sequence[Step], ends: Sequence[End] = ()) -> Chart:
    """The diagram at one width, pixels."""
    boxes, arrows = _layout(width, steps, ends)
    chart = Chart(width, max(box.bottom for box in boxes) + 2, Axis.linear(0, 1), Axis.linear(0, 1), show_x=False, show_y=False)
    for path in arrows:
        chart.raw(path, "arrow")
    for box in boxes:
        chart.box(box.x, box.y, box.width, box.height, box.class_, radius=4)
        if box.colour:
            chart.box(box.x, box.y, 5, box.height, f"fill {box.colour}", radius=2)
        y = box.y + _PAD + 9
        for line, style in (*((line, "strong flat") for line in box.title), *((line, "plain") for line in box.lines)):
            chart.label(box.x + _PAD + (4 if box.colour else 0), y, line, class_=style)
            y += _LINE
    return chart


def flow(steps: Sequence[Step], ends: Sequence[End], description: str) -> Markup:
    """The diagram for wide and narrow screens; `description` is what a screen reader says."""
    return responsive(lambda width: flow_chart(width, steps, ends), description)
