"""HTML from data, safely: every string goes through `text` unless it is `Markup` already.

`Markup` is a `str` that is known to be HTML. The helpers below take plain values, escape them, and return `Markup`; nothing in the
report joins strings from data into HTML by hand.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any


class Markup(str):
    """A string that is HTML already and must not be escaped again."""

    __slots__ = ()


_CONTROL = {code: None for code in range(32) if code not in (9, 10, 13)}


def text(value: Any) -> Markup:
    """`value` as escaped HTML text; `Markup` passes unchanged, None becomes an en dash."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("–")
    return Markup(html.escape(str(value).translate(_CONTROL), quote=True))


def join(parts: Iterable[Any], separator: str = "") -> Markup:
    """Parts made safe and joined; `separator` is our own text."""
    return Markup(separator.join(text(part) for part in parts))


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """One element. Attribute names: `class_` for `class`, `aria_label` for `aria-label`; None leaves the attribute out."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def paragraph(*content: Any, class_: str | None = None) -> Markup:
    return tag("p", *content, class_=class_)


def note(*content: Any) -> Markup:
    """A quiet line: how to read a figure, or what is missing."""
    return tag("p", *content, class_="note")


# -- numbers ----------------------------------------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """A finite number (booleans are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def count(value: Any) -> str:
    """12,345; an en dash for what is not a number."""
    return f"{round(value):,}" if is_number(value) else "–"


def number(value: Any, digits: int = 3) -> str:
    """A figure with `digits` decimals below 10, fewer above, and significant digits when tiny."""
    if not is_number(value):
        return "–"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.{min(digits, 1)}f}".replace("-", "−")
    if 0 < size < 10.0**-digits:
        return f"{value:.1e}".replace("-", "−")
    return f"{value:.{digits}f}".replace("-", "−")


def percent(value: Any, digits: int = 1) -> str:
    """0.123 -> 12.3%."""
    return f"{100 * value:.{digits}f}%".replace("-", "−") if is_number(value) else "–"


def short_count(value: Any) -> str:
    """1.2 k, 3.4 M: for headline figures."""
    if not is_number(value):
        return "–"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.1f} {unit}"
    return f"{value:,.0f}"


def duration(seconds: Any) -> str:
    """42 s, 3 min 20 s, 1 h 05 min."""
    if not is_number(seconds) or seconds < 0:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def day(value: date | datetime | None) -> str:
    """2011-04-29."""
    return value.strftime("%Y-%m-%d") if value is not None else "–"


def readable(name: str) -> str:
    """hf_readmission_30d -> hf readmission 30d; reasons and tasks as words."""
    return name.replace("_", " ")


def shorten(value: str, limit: int) -> str:
    """At most `limit` characters, cut with an ellipsis."""
    return value if len(value) <= limit else value[: max(1, limit - 1)].rstrip() + "…"


# -- blocks -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """One chapter of the page.

    Attributes:
        children: the sub-chapters the table of contents names (id, title).
        figures: what it says in numbers, for programs.
    """

    id: str
    title: str
    body: Markup
    children: tuple[tuple[str, str], ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


def table(headers: Sequence[Any], rows: Iterable[Sequence[Any]], *, caption: str, left: int = 1, class_: str = "") -> Markup:
    """A table in a box of its own that scrolls sideways when it is too wide.

    Args:
        headers: column heads; the first column holds row heads.
        rows: cells, as text (escaped) or Markup.
        caption: what the table shows; visible, and its accessible name.
        left: how many leading columns are text; the others are figures, set right.
    """
    head = join(tag("th", header, scope="col", class_="t" if index < left else None) for index, header in enumerate(headers))
    body = []
    for row in rows:
        cells = [tag("th", row[0], scope="row")]
        cells += [tag("td", cell, class_="t" if index < left else None) for index, cell in enumerate(row[1:], start=1)]
        body.append(tag("tr", *cells))
    if not body:
        body.append(tag("tr", tag("td", "no rows", colspan=len(headers), class_="t")))
    # The visible caption stands outside the box, where it wraps; the table keeps its own for those who listen.
    inner = tag("table", tag("caption", caption, class_="unseen"), tag("thead", tag("tr", head)), tag("tbody", *body), class_=class_ or None)
    box = tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)
    return tag("div", tag("p", caption, class_="caption", aria_hidden="true"), box, class_="table")


def figure(chart: Any, caption: Any = None) -> Markup:
    """A chart with its caption."""
    return tag("figure", chart, tag("figcaption", caption) if caption else "")


def details(summary: str, *content: Any) -> Markup:
    """Something most readers skip, behind one line."""
    return tag("details", tag("summary", summary), *content)


def definitions(pairs: Iterable[tuple[Any, Any]]) -> Markup:
    """Names and values, two columns."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def tiles(figures: Iterable[tuple[str, Any, Any]]) -> Markup:
    """Headline figures: (label, figure, small print)."""
    return tag(
        "ul",
        *(
            tag("li", tag("span", label, class_="label"), tag("strong", value), tag("span", small or "", class_="small"))
            for label, value, small in figures
        ),
        class_="tiles",
    )


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """(label, colour class and shape) pairs; the shape is one of `line`, `dash`, `dot`, `box`."""
    return tag("ul", *(tag("li", tag("i", class_=f"key {style}"), label) for label, style in entries), class_="legend", aria_label="Legend")
