"""What the tokens can say of an event table, worked out from the rules of docs/timeline.md, one patient after the other.

This is the other side of `decode(encode(events)) == quantise(events)`, so it shares no code with encoding and decoding: plain Python,
written to be read. A quarter of a million events take some seconds; it is meant for checks and for the table of what is lost.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits as visit_classes
from cehrxgpt.events import EVENT_DTYPES, sort_events
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.timeline import Timeline
from cehrxgpt.timeline.vocabulary import Vocabulary

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LONG_GAP = 1080
LONGEST_LENGTH = 180  # days that the last bin of lengths goes to
COUNTS = {
    "events": "events that could be tokens",
    "backed_off": "codes written as one of their ancestors",
    "unmapped": "codes (or discharge places) the vocabulary lacks, or discharges without a visit: set aside",
    "time_moved": "time moved to the grid",
    "value_binned": "number moved to its bin's median",
    "value_set_aside": "number or category without a token",
    "visit_type_mapped": "visit type written as its class",
    "visits_merged": "visits merged into another",
    "links_changed": "events that changed their visit other than by a merger",
    "icu_moved": "stays in intensive care with a begin or end on the grid, inside their visit",
    "icu_merged": "stays in intensive care merged into another",
    "icu_set_aside": "stays in intensive care that the vocabulary lacks or no span visit holds",
    "length_binned": "length of a drug moved to the middle of its bin",
    "end_set_aside": "end of a drug, a device or another event without a token for it",
    "operator_set_aside": "comparison sign of a number without bins of its own",
}


@dataclass(frozen=True)
class Quantised:
    """Attributes:
    events: EventTable rows as decoding would give them (no static rows; `prediction_time` added for cut histories).
    counts: the keys of COUNTS.
    """

    events: pl.DataFrame
    counts: dict[str, int]

    @property
    def shares(self) -> dict[str, float]:
        """Each count but the first as a share of all events."""
        total = max(self.counts["events"], 1)
        return {name: self.counts[name] / total for name in COUNTS if name != "events"}


@dataclass
class _Visit:
    """A visit, or several merged into the one that names them."""

    row: dict[str, Any]
    code: str
    stay: bool  # hours inside
    rank: int
    begin: datetime
    end: datetime | None
    rows: list[tuple[datetime, dict[str, Any]]] = field(default_factory=list)  # events with their time on the grid
    discharges: list[dict[str, Any]] = field(default_factory=list)
    icu: list[dict[str, Any]] = field(default_factory=list)


class _Words:
    """What the vocabulary can say."""

    def __init__(self, vocabulary: Vocabulary, ancestor: Mapping[str, str]):
        self.ancestor = ancestor
        self.codes: dict[str, str | None] = {}
        self.bins: dict[tuple[str, str | None, str | None], list[tuple[float, float]]] = {}  # (lower edge, median), ascending
        self.categories: set[tuple[str, str]] = set()
        self.icu: tuple[str, str | None] | None = None
        self.lengths = sorted(int(vocabulary.amount[index]) for index in range(len(vocabulary)) if vocabulary.kind[index] == Kind.DRUG_LENGTH)
        for index, kind in enumerate(vocabulary.kind.tolist()):
            code, quantiles = vocabulary.code[index], vocabulary.quantiles[index]
            if code is None:
                continue
            if kind in (Kind.CODE, Kind.VISIT_TYPE, Kind.DISCHARGE, Kind.DEATH):
                self.codes[code] = vocabulary.origin[index]
            elif kind == Kind.VALUE and quantiles is not None:
                middle = float(quantiles[len(quantiles) // 2])
                key = (code, vocabulary.unit[index], vocabulary.operator[index])
                self.bins.setdefault(key, []).append((float(vocabulary.bin_low[index]), middle))
            elif kind == Kind.LAB:
                lows, points = vocabulary.bin_edges[index], vocabulary.bin_quantiles[index]
                assert lows is not None
                assert points is not None
                key = (code, vocabulary.unit[index], vocabulary.operator[index])
                self.bins[key] = [(float(low), float(one[len(one) // 2])) for low, one in zip(lows, points, strict=False)]
            elif kind == Kind.CATEGORY:
                self.categories.add((code, str(vocabulary.text_value[index])))
            elif kind == Kind.ICU_START:
                self.icu = (code, vocabulary.origin[index])
        for bins in self.bins.values():
            bins.sort()
        self.exact = vocabulary.settings.get("long_gap", "exact") == "exact"

    def say(self, row: dict[str, Any], counts: Counter[str]) -> dict[str, Any]:
        """The row's code with what is left of its value."""
        said = {"code": row["code"], "numeric_value": None, "text_value": None, "unit": None, "operator": None, "origin": self.codes[row["code"]]}
        number, text = row["numeric_value"], row["text_value"]
        signed = row["operator"] is not None and (row["code"], row["unit"], row["operator"]) in self.bins
        bins = self.bins.get((row["code"], row["unit"], row["operator"] if signed else None))
        if number is not None and math.isfinite(number) and bins:
            place = max(bisect_right([low for low, _ in bins], number) - 1, 0)
            said |= {"numeric_value": bins[place][1], "unit": row["unit"], "operator": row["operator"] if signed else None}
            counts["value_binned"] += bins[place][1] != number
            counts["operator_set_aside"] += row["operator"] is not None and not signed
        elif text is not None and (row["code"], text) in self.categories:
            said["text_value"] = text
        elif number is not None or (text is not None and any(letter.isalnum() for letter in text)):
            counts["value_set_aside"] += 1
        return said

    def ends(self, row: dict[str, Any], at: datetime, counts: Counter[str]) -> datetime | None:
        """The end of a drug, a device or another clinical event that stands at `at`."""
        end = row["end_time"]
        if end is None:
            return None
        if not self.lengths or self.codes[row["code"]] != "drug_exposure":
            counts["end_set_aside"] += 1
            return None
        days = max((end.date() - row["time"].date()).days + 1, 1)
        first = max(edge for edge in self.lengths if edge <= days)
        last = min([edge - 1 for edge in self.lengths if edge > first], default=LONGEST_LENGTH)
        middle = (first + last) // 2
        counts["length_binned"] += middle != days
        return datetime.combine(at.date() + timedelta(days=middle), time()) - timedelta(microseconds=1)


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time())


def _read_visits(rows: list[dict[str, Any]], death: datetime | None, words: _Words, counts: Counter[str]) -> list[_Visit]:
    """Visits on the hour grid, in order of their exact start."""
    found = []
    for row in sorted(rows, key=lambda row: (row["time"], row["code"], (row["visit_id"] is None, row["visit_id"] or 0))):
        begin, end = _hour(row["time"]), row["end_time"]
        if end is None:
            end = row["_left"]
        last = None if end is None else max(_hour(end), begin)
        if death is not None:
            last = max(_hour(death), begin) if last is None else max(min(last, _hour(death)), begin)
        elapsed_until = row["end_time"] or row.get("prediction_time")
        minutes = None if elapsed_until is None else (elapsed_until - row["time"]) // timedelta(minutes=1)
        name = visit_classes.class_of(row["code"], minutes)
        code = row["code"] if row["code"] in words.codes else f"{s.VISIT_PREFIX}{name}"
        counts["visit_type_mapped"] += code != row["code"]
        rank = len(visit_classes.CLASSES) - visit_classes.CLASSES.index(name)
        found.append(_Visit(row, code, name in visit_classes.SPAN_CLASSES, rank, begin, last))
    return found


def _reaches(end: datetime | None, moment: datetime) -> bool:
    """The end lies beyond the moment."""
    return end is None or moment < end


def _merge_stays(visits: list[_Visit], home: dict[int, _Visit]) -> list[_Visit]:
    """Overlapping stays become one; `home` learns where each visit went."""
    stays: list[_Visit] = []
    for visit in sorted((v for v in visits if v.stay), key=lambda v: (v.begin, v.end or datetime.max)):
        if stays and _reaches(stays[-1].end, visit.begin):
            whole = stays[-1]
            if visit.rank > whole.rank:
                whole.row, whole.code, whole.rank = visit.row, visit.code, visit.rank
            whole.end = None if whole.end is None or visit.end is None else max(whole.end, visit.end)
            home[id(visit)] = whole
        else:
            stays.append(visit)
            home[id(visit)] = visit
    return stays


def _around(stays: list[_Visit], moment: datetime) -> _Visit | None:
    """The last stay begun before the moment."""
    earlier = [stay for stay in stays if stay.begin < moment]
    return earlier[-1] if earlier else None


def _place_day_visits(visits: list[_Visit], stays: list[_Visit], home: dict[int, _Visit]) -> list[tuple[datetime, _Visit]]:
    """Day visits of their own, each with the moment by which it is put in order; the others go into the stay around them."""
    alone = []
    for visit in visits:
        if visit.stay:
            continue
        order, stay = visit.begin, _around(stays, visit.begin)
        home[id(visit)] = visit
        if stay is not None and stay.end is not None and stay.end.date() == order.date() != stay.begin.date():
            order = max(order, stay.end)
        elif stay is not None and _reaches(stay.end, order):
            home[id(visit)] = stay
            continue
        alone.append((order, visit))
    return alone


def _goes_to(row: dict[str, Any], moment: datetime, own: _Visit | None, stays: list[_Visit], home: dict[int, _Visit]) -> _Visit | None:
    """The visit an event ends up in, None = bare."""
    if own is not None:
        target = home[id(own)]
        on_its_date = own.stay or moment.date() == own.begin.date()
        near = target.begin - DAY <= moment and (target.end is None or moment <= target.end + DAY)
        if on_its_date and (near or not target.stay):
            return target
    stay = _around(stays, moment)
    return stay if stay is not None and _reaches(stay.end, moment) else None


def _patient(rows: list[dict[str, Any]], words: _Words, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The quantised rows of one history."""
    dated = [row for row in rows if row["time"] is not None and row["code"] not in (s.BIRTH, s.OBSERVATION_START, s.OBSERVATION_END)]
    counts["events"] += len(dated)
    for row in dated:  # an event that is written as an ancestor says nothing else
        if row["code"] in words.ancestor:
            row["code"] = words.ancestor[row["code"]]
            counts["backed_off"] += 1
            counts["value_set_aside"] += row["numeric_value"] is not None or any(letter.isalnum() for letter in row["text_value"] or "")
            row["numeric_value"] = row["text_value"] = row["unit"] = None
    deaths = [row for row in dated if row["code"] == s.DEATH]
    death = deaths[0]["time"] if deaths else None
    discharges = [row for row in dated if row["code"].startswith(s.DISCHARGE_PREFIX)]
    visit_rows = [row for row in dated if row["code"].startswith(s.VISIT_PREFIX)]
    for row in visit_rows:
        left = [other["time"] for other in discharges if other["visit_id"] is not None and other["visit_id"] == row["visit_id"]]
        row["_left"] = max(left) if left else None
    visits = _read_visits(visit_rows, death, words, counts)
    by_id: dict[int, _Visit] = {}
    for visit in visits:
        if visit.row["visit_id"] is not None:
            by_id.setdefault(visit.row["visit_id"], visit)
    named = {id(visit): visit.row["visit_id"] for visit in visits}
    home: dict[int, _Visit] = {}
    stays = _merge_stays(visits, home)
    alone = _place_day_visits(visits, stays, home)
    counts["visits_merged"] += len(visits) - len(stays) - len(alone)
    for row in discharges:
        own = by_id.get(row["visit_id"])
        if row["code"] in words.codes and own is not None:
            home[id(own)].discharges.append(row)
        else:
            counts["unmapped"] += 1

    # Everything that stands for itself, in order: at one moment day visits, then bare events, then stays.
    line: list[tuple[datetime, int, datetime, int, Any]] = [(order, 0, visit.row["time"], n, visit) for n, (order, visit) in enumerate(alone)]
    line += [(stay.begin, 2, stay.begin, n, stay) for n, stay in enumerate(stays)]
    for n, row in enumerate(dated):
        if row["code"] == s.DEATH or row["code"].startswith((s.VISIT_PREFIX, s.DISCHARGE_PREFIX)):
            continue
        if row["code"].startswith(s.ICU_PREFIX):
            target = None if words.icu is None else _goes_to(row, _hour(row["time"]), by_id.get(row["visit_id"]), stays, home)
            if target is not None and target.stay:
                target.icu.append(row)
            else:
                counts["icu_set_aside"] += 1
            continue
        if row["code"] not in words.codes:
            counts["unmapped"] += 1
            continue
        moment, own = _hour(row["time"]), by_id.get(row["visit_id"])
        target = _goes_to(row, moment, own, stays, home)
        if target is None:
            line.append((moment, 1, moment, n, row))
        else:
            target.rows.append((moment, row))
        before = None if own is None else home[id(own)]
        counts["links_changed"] += before is not target or (target is None and row["visit_id"] is not None)
    line.sort(key=lambda item: item[:4])
    yield from _walk(line, deaths[:1], words, counts, named)


def _walk(
    line: list[tuple[datetime, int, datetime, int, Any]], deaths: list[dict[str, Any]], words: _Words, counts: Counter[str], named: dict[int, Any]
) -> Iterator[dict[str, Any]]:
    """Go through what stands in line with a clock that never runs back."""
    clock: datetime | None = None
    lost = timedelta()  # by gaps written as LT
    for order, what, _, _, item in line:
        end: datetime | None
        start = _midnight(order.date())
        if clock is not None:
            gap = (start.date() - lost - clock.date()).days
            if not words.exact and gap > LONG_GAP:
                lost += timedelta(days=gap - LONG_GAP)
            start = max(start - lost, clock)
        if what == 1:
            clock = start
            yield _moved(item, start, None, words.ends(item, start, counts), words, counts)
            continue
        if what == 0:
            unended = item.end is None and item is line[-1][4] and not deaths
            begin, end = start, (start if not unended else None)
        else:
            begin, end, unended = item.begin - lost, (None if item.end is None else item.end - lost), item.end is None
        identity = item.row["visit_id"]
        said = _nothing_but(item.code, words.codes[item.code])
        counts["time_moved"] += item.row["time"] != begin or (item.row["end_time"] is not None and item.row["end_time"] != end)
        yield item.row | said | {"time": begin, "end_time": None if unended else end, "visit_id": identity}
        latest = begin
        for entered, left, first in _icu_stays(item, counts):
            latest = max(latest, entered - lost, entered - lost if left is None else left - lost)
            yield _in_icu(first, entered - lost, None if left is None else left - lost, identity, words, counts)
        for moment, row in item.rows:
            within = max(moment - lost, begin)
            at = begin if what == 0 else within if end is None else min(within, end)
            latest = max(latest, at)
            yield _moved(row, at, identity, words.ends(row, at, counts), words, counts)
        if item.discharges and not unended and end is not None:
            yield _moved(item.discharges[-1], end, identity, None, words, counts)
        clock = end if end is not None else latest
    for row in deaths:
        day = row["time"].date() if clock is None else max((row["time"] - lost).date(), clock.date())
        if clock is not None and not words.exact:
            day = min(day, clock.date() + timedelta(days=LONG_GAP))
        yield _moved(row, datetime.combine(day, time.max), None, None, words, counts)


def _nothing_but(code: str, origin: str | None) -> dict[str, Any]:
    return {"code": code, "numeric_value": None, "text_value": None, "unit": None, "operator": None, "origin": origin}


def _icu_stays(visit: _Visit, counts: Counter[str]) -> list[tuple[datetime, datetime | None, dict[str, Any]]]:
    """Intensive care inside a visit's hours: begin, end, and the row that begins it; stays that touch on the grid are one."""
    found: list[tuple[datetime, datetime | None, dict[str, Any]]] = []
    for row in visit.icu:
        entered = max(_hour(row["time"]), visit.begin)
        entered = entered if visit.end is None else min(entered, visit.end)
        left = visit.end if row["end_time"] is None else max(_hour(row["end_time"]), entered)
        left = left if visit.end is None or left is None else min(left, visit.end)
        found.append((entered, left, row))
    merged: list[tuple[datetime, datetime | None, dict[str, Any]]] = []
    for entered, left, row in sorted(found, key=lambda stay: (stay[0], stay[1] or datetime.max)):
        before = merged[-1] if merged else None
        if before is None or (before[1] is not None and before[1] < entered):
            merged.append((entered, left, row))
            continue
        merged[-1] = (before[0], None if before[1] is None or left is None else max(before[1], left), before[2])
        counts["icu_merged"] += 1
    return merged


def _in_icu(row: dict[str, Any], entered: datetime, left: datetime | None, visit: int | None, words: _Words, counts: Counter[str]) -> dict[str, Any]:
    assert words.icu is not None
    counts["icu_moved"] += (row["time"], row["end_time"]) != (entered, left)
    return row | _nothing_but(*words.icu) | {"time": entered, "end_time": left, "visit_id": visit}


def _moved(row: dict[str, Any], at: datetime, visit: int | None, end: datetime | None, words: _Words, counts: Counter[str]) -> dict[str, Any]:
    """A clinical row, a discharge or a death at its new time."""
    counts["time_moved"] += row["time"] != at
    return row | words.say(row, counts) | {"time": at, "visit_id": visit, "end_time": end}


def quantise(events: pl.DataFrame, timeline: Timeline | Vocabulary, *, key: Sequence[str] = ("subject_id",)) -> Quantised:
    """Reduce events to what their tokens can say.

    Args:
        events: EventTable; or what `cut_history` gives, with key ("subject_id", "prediction_time").
        timeline: or its vocabulary.

    Returns:
        the rows of visits, intensive care, clinical events in the vocabulary, discharges and deaths, with only these changed: times on their grid
        (hours inside span visits, else days), values at their bin's median, codes that cannot be mapped, merged and changed visits.
    """
    words = _Words(timeline, {}) if isinstance(timeline, Vocabulary) else _Words(timeline.vocabulary, timeline.aliases.target)
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    made: list[dict[str, Any]] = []
    columns = [*EVENT_DTYPES, *(name for name in key if name not in EVENT_DTYPES)]
    for part in events.select(columns).partition_by(list(key), maintain_order=True):
        made += _patient(part.to_dicts(), words, counts)
    dtypes = EVENT_DTYPES | ({"prediction_time": pl.Datetime("us")} if len(key) == 2 else {})
    kept = {name: [row[name] for row in made] for name in dtypes}
    return Quantised(sort_events(pl.DataFrame(kept, schema=dtypes), *[name for name in key if name != "subject_id"]), dict(counts))


def table_row(name: str, quantised: Quantised) -> str:
    """One line of the docs' table: the data set, its events, and the share of each change in percent."""
    shares = (f"{100 * share:.2f}%" for share in quantised.shares.values())
    return f"| {name} | {quantised.counts['events']:,} | " + " | ".join(shares) + " |"


def table_head() -> str:
    """The two lines above `table_row`s."""
    names = ["data set", "events", *(name.replace("_", " ") for name in COUNTS if name != "events")]
    return "| " + " | ".join(names) + " |\n|" + "---|" * len(names)
