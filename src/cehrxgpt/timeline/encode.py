"""Events to tokens, vectorised: no Python loop over events, histories or units.

A frame becomes units (`units.py`); every unit is an opening, its members and a closing, the *elements*; every element is a short run of
optional tokens (prompt, gap, [VS], type, days, hours, event, ...). Elements are laid out in order, the lengths of their runs give
every token its place, and each optional token is then written for all elements at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits as visit_classes
from cehrxgpt.errors import SchemaError
from cehrxgpt.timeline.encoded import BIRTH_UNKNOWN, EncodedHistories
from cehrxgpt.timeline.icu import IcuRows, IcuStays, members
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.layout import Alphabet, Written, lay_out
from cehrxgpt.timeline.lengths import LOWER_DAYS, bin_of, days_of
from cehrxgpt.timeline.lookup import Lookup
from cehrxgpt.timeline.prompt import prompt_ages, prompt_tokens
from cehrxgpt.timeline.time import (
    LONG_GAP_DAYS,
    MAX_IN_VISIT_DAYS,
    MICROSECONDS_PER_MINUTE,
    MINUTES_PER_DAY,
    MINUTES_PER_HOUR,
    age_minutes_at_start,
)
from cehrxgpt.timeline.units import HOURS_PER_DAY, OPEN, Bool, Int, Loose, Unit, Units, Visits, build_units
from cehrxgpt.timeline.vocabulary import Vocabulary

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Rows:
    """A frame's rows, by what they are. Row numbers count in the frame."""

    token: Ids  # [n] -1 = not in the vocabulary or not a token
    bin: Ids  # [n] token of a lab's bin; -1 = none
    value: npt.NDArray[np.float32]  # [n]
    order: Int  # [n] rank of the code among all codes, alphabetical
    visits: Visits
    loose: Loose
    icu: IcuRows
    length: Ids  # [n] token of a drug's length; -1 = none
    discharge: Int  # rows of discharge places in the vocabulary, in order of time
    discharge_visit: Int  # index into visits
    death_history: Int
    death_hour: Int
    death_row: Int
    events: Int  # [S]
    unknown: Int  # [S]


class Encoder:
    """Encodes frames with one vocabulary; the tables are made once."""

    def __init__(self, vocabulary: Vocabulary, *, calendar: str = "true"):
        self.vocabulary = vocabulary
        self.calendar = calendar
        self.lookup = Lookup(vocabulary)
        self.exact_gaps = vocabulary.settings.get("long_gap", "exact") == "exact"
        numbers = vocabulary.amount_to_id
        icu = [vocabulary.ids_of_kind(kind) for kind in (Kind.ICU_START, Kind.ICU_END)]
        self.icu_start, self.icu_end = (int(ids[0]) if len(ids) else -1 for ids in icu)
        self.drug = np.isin(np.arange(len(vocabulary)), vocabulary.drugs)
        self.length_ids = _table(numbers.get(Kind.DRUG_LENGTH, {}), LOWER_DAYS[-1] + 1)  # by lower edge
        one = {kind: int(vocabulary.ids_of_kind(kind)[0]) for kind in (Kind.VISIT_START, Kind.VISIT_END, Kind.DEATH, Kind.END)}
        self.alphabet = Alphabet(
            gap=_table(numbers[Kind.DAY_GAP], LONG_GAP_DAYS),
            years=_table(numbers[Kind.YEAR_GAP], 1 + max(numbers[Kind.YEAR_GAP])),
            long=-1 if self.exact_gaps else int(vocabulary.ids_of_kind(Kind.LONG_GAP)[0]),
            steps=_table(numbers[Kind.IN_VISIT_DAYS], MAX_IN_VISIT_DAYS + 1),
            hours=_table(numbers[Kind.IN_VISIT_HOURS], HOURS_PER_DAY),
            visit_start=one[Kind.VISIT_START],
            visit_end=one[Kind.VISIT_END],
            death=one[Kind.DEATH],
            end=one[Kind.END],
        )

    def encode(self, events: pl.DataFrame, *, key: Sequence[str] = ("subject_id",)) -> EncodedHistories:
        """Encode whole histories.

        Args:
            events: EventTable rows, those of one key together and sorted as `events.sort_events` or `events.cut_history` leave them.
            key: ("subject_id",) or ("subject_id", "prediction_time").

        Returns:
            one history per key, in order of appearance; without tokens where the vocabulary has none of its events.

        Raises:
            SchemaError: the rows of a key do not stand together, or a column is missing.
        """
        if tuple(key) not in (("subject_id",), ("subject_id", "prediction_time")):
            raise SchemaError(f"encode: key {tuple(key)} is not known; expected ('subject_id',) or ('subject_id', 'prediction_time')")
        missing = [name for name in (*key, "time", "code", "visit_id", "end_time") if name not in events.columns]
        if missing:
            raise SchemaError(f"encode: column '{missing[0]}' is missing (columns there: {', '.join(events.columns)})")
        change = events.select(pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in key)).to_series().to_numpy().copy()
        if len(change):
            change[0] = True
        history = np.cumsum(change, dtype=np.int64) - 1
        first = np.flatnonzero(change)
        if events[first].select(key).is_duplicated().any():
            raise SchemaError(f"encode: the rows of one ({', '.join(key)}) do not stand together; use events.sort_events or cut_history")
        rows = self._read(events, history, len(first))
        units = build_units(rows.visits, rows.loose, rows.icu.begun, rows.death_history, rows.death_hour, rows.death_row)
        outside = rows.icu.begun.history[units.icu_unit < 0]  # intensive care that no span visit holds
        rows = replace(rows, unknown=rows.unknown + np.bincount(outside, minlength=len(first)))
        cut = events["prediction_time"].gather(first).to_numpy().astype("datetime64[us]") if len(key) == 2 else None
        return self._write(events, history, first, rows, units, cut)

    def _read(self, events: pl.DataFrame, history: Int, count: int) -> _Rows:
        """Look every row up and sort the rows into visits, loose rows, discharges and deaths."""
        code, time = events["code"], events["time"]
        dated = time.is_not_null().to_numpy()
        hour = np.where(dated, _minutes(time) // MINUTES_PER_HOUR, 0)
        is_visit = dated & code.str.starts_with(s.VISIT_PREFIX).to_numpy()
        is_discharge = dated & code.str.starts_with(s.DISCHARGE_PREFIX).to_numpy()
        is_death = dated & (code == s.DEATH).to_numpy()
        skipped = code.is_in([s.BIRTH, s.OBSERVATION_START, s.OBSERVATION_END]).to_numpy()
        is_icu = dated & code.str.starts_with(s.ICU_PREFIX).to_numpy()
        clinical = dated & ~(is_visit | is_icu | is_discharge | is_death | skipped)
        token, bins, value = self.lookup.events(events)
        token[is_icu] = self.icu_start

        death_row = np.flatnonzero(is_death)
        death_row = death_row[np.concatenate([[True], np.diff(history[death_row]) > 0])[: len(death_row)]]  # the first of each history
        death_hour = np.full(count, OPEN)
        death_hour[history[death_row]] = hour[death_row]
        discharges = np.flatnonzero(is_discharge)
        visits, links = self._read_visits(events, history, hour, np.flatnonzero(is_visit), discharges, death_hour, token)

        seen = clinical | is_visit | is_icu | is_discharge | is_death
        unknown = (clinical | is_icu | is_discharge) & (token < 0)
        member = np.flatnonzero(clinical & (token >= 0))
        placed = discharges[(token[discharges] >= 0) & (links[discharges] >= 0)]
        return _Rows(
            token=token,
            bin=bins,
            value=value,
            order=_alphabetical(code),
            visits=visits,
            loose=Loose(history[member], hour[member], links[member], member),
            icu=_icu_rows(events, np.flatnonzero(is_icu & (token >= 0)), history, hour, links),
            length=self._lengths(events, token),
            discharge=placed,
            discharge_visit=links[placed],
            death_history=history[death_row],
            death_hour=hour[death_row],
            death_row=death_row,
            events=np.bincount(history[seen], minlength=count),
            unknown=np.bincount(history[unknown], minlength=count),
        )

    def _read_visits(
        self, events: pl.DataFrame, history: Int, hour: Int, rows: Int, discharges: Int, death_hour: Int, token: Ids
    ) -> tuple[Visits, Int]:
        """Visit rows in order, and the visit index of every row of the frame (-1 = none). Writes the visits' tokens into `token`."""
        # A visit with a discharge row has ended then, whether or not its end was written down.
        left = pl.DataFrame({"_history": history[discharges], "visit_id": events["visit_id"].gather(discharges), "_left": hour[discharges]})
        left = left.drop_nulls().group_by("_history", "visit_id").agg(pl.col("_left").max())
        columns = ["time", "end_time", "code", "visit_id", *([] if "prediction_time" not in events.columns else ["prediction_time"])]
        frame = events[rows].select(columns).with_columns(pl.Series("_history", history[rows]), pl.Series("_row", rows))
        frame = frame.join(left, on=["_history", "visit_id"], how="left").sort("_history", "time", "code", "visit_id", "_row", nulls_last=True)
        until = pl.coalesce("end_time", pl.col("prediction_time")) if "prediction_time" in columns else pl.col("end_time")
        minutes = (until - pl.col("time")).dt.total_minutes()
        frame = frame.with_columns(visit_classes.classify(pl.col("code"), minutes).alias("_class"))
        frame = frame.with_columns(visit_classes.is_span(pl.col("_class")).alias("_span"), visit_classes.rank(pl.col("_class")).alias("_rank"))
        row = frame["_row"].to_numpy()
        token[row] = self.lookup.visit_types(frame["code"], frame["_class"])
        start = hour[row]
        known = frame["end_time"].is_not_null().to_numpy()
        end = np.where(known, _minutes(frame["end_time"]) // MINUTES_PER_HOUR, OPEN)
        end = np.where(known, end, np.minimum(end, frame["_left"].fill_null(int(OPEN)).to_numpy()))
        end = np.maximum(np.minimum(end, death_hour[history[row]]), start)
        of_history = frame["_history"].to_numpy().astype(np.int64)
        exact = frame["time"].to_physical().to_numpy().astype(np.int64)
        visits = Visits(of_history, start, end, exact, frame["_span"].to_numpy(), frame["_rank"].to_numpy().astype(np.int64), row)
        index = frame.select("_history", "visit_id", pl.int_range(pl.len(), dtype=pl.Int64).alias("_visit")).drop_nulls()
        index = index.unique(["_history", "visit_id"], keep="first", maintain_order=True)
        linked = pl.DataFrame({"_history": history, "visit_id": events["visit_id"]})
        links = linked.join(index, on=["_history", "visit_id"], how="left", maintain_order="left")["_visit"].fill_null(-1).to_numpy()
        return visits, links.astype(np.int64)

    def _lengths(self, events: pl.DataFrame, token: Ids) -> Ids:
        """Token of each row's length: of drugs with a known end, where the vocabulary has lengths."""
        found = np.full(len(token), -1, np.int32)
        if (self.length_ids >= 0).any():
            days = events.select(days_of(pl.col("time"), pl.col("end_time")).fill_null(0)).to_series().to_numpy()
            there = np.flatnonzero((token >= 0) & self.drug[np.maximum(token, 0)] & (days > 0))
            found[there] = self.length_ids[bin_of(days[there])]
        return found

    def _write(
        self, events: pl.DataFrame, history: Int, first: Int, rows: _Rows, units: Units, cut: npt.NDArray[np.datetime64] | None
    ) -> EncodedHistories:
        count = len(first)
        births = np.full(count, BIRTH_UNKNOWN)
        born = np.flatnonzero((events["code"] == s.BIRTH).to_numpy() & events["time"].is_not_null().to_numpy())[::-1]  # the first one wins
        births[history[born]] = events["time"].gather(born).dt.date().to_physical().to_numpy()
        stays = IcuStays.build(rows.icu, units)
        units, shift = self._shorten(units)
        first_unit = np.ones(len(units.history), np.bool_)
        first_unit[1:] = np.diff(units.history) > 0
        start_date = np.full(count, BIRTH_UNKNOWN)
        start_date[units.history[first_unit]] = units.start[first_unit] // HOURS_PER_DAY
        there = start_date != BIRTH_UNKNOWN
        gender = self._static(events, history, count, s.GENDER_PREFIX, Kind.GENDER)
        race = self._static(events, history, count, s.RACE_PREFIX, Kind.RACE)
        prompt, months = prompt_tokens(self.vocabulary, np.where(there, start_date, 0), births, gender, race, calendar=self.calendar)
        left_open = _left_open(units, rows.visits)
        written = self._tokens(units, stays.earlier(shift), rows, first_unit, left_open, prompt[there])
        of_token = units.history[written.unit]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(of_token, minlength=count))]).astype(np.int64)
        age = written.clock * MINUTES_PER_HOUR - start_date[of_token] * MINUTES_PER_DAY + age_minutes_at_start(months)[of_token]
        age[offsets[:-1][there][:, None] + np.arange(PROMPT_LENGTH)] = prompt_ages(months[there])
        index = np.where(written.row >= 0, written.row - first[of_token], -1)
        return EncodedHistories(
            token_id=written.token.astype(np.int32),
            age_minutes=age.astype(np.int32),
            value=written.value,
            event_index=index.astype(np.int32),
            offsets=offsets,
            subject_id=events["subject_id"].gather(first).to_numpy().astype(np.int64),
            prediction_time=cut,
            start_date=start_date,
            birth_date=births,
            gender_token=gender,
            race_token=race,
            censor_gap_days=self._censoring(events, history, count, units, left_open, shift, cut),
            events=rows.events,
            unknown=rows.unknown,
        )

    def _tokens(self, units: Units, stays: IcuStays, rows: _Rows, first_unit: Bool, left_open: Bool, prompt: Ids) -> Written:
        """Members in order of writing, visit types and discharge places by unit, and then the tokens."""
        row = rows.loose.row[units.member]
        unit, hour, turn, icu_row, icu_token = members(stays, self.icu_start, self.icu_end)
        unit, hour = np.concatenate([units.unit, unit]), np.concatenate([units.hour, hour])
        turn = np.concatenate([np.ones(len(row), np.int64), turn])
        rank = np.concatenate([rows.order[row], np.zeros(len(icu_row), np.int64)])
        token = np.concatenate([rows.token[row], icu_token])
        row = np.concatenate([row, icu_row])
        order = np.lexsort((row, rank, turn, hour, unit))
        row = row[order]
        units = replace(units, member=order, unit=unit[order], hour=hour[order])
        visit_token = np.where(units.row >= 0, rows.token[np.maximum(units.row, 0)], -1) if len(rows.token) else np.zeros(0, np.int32)
        discharge = np.full(len(units.history), -1, np.int64)
        discharge[units.unit_of_visit[rows.discharge_visit]] = rows.discharge  # the last one of a unit wins
        return lay_out(
            units,
            first=first_unit,
            left_open=left_open,
            prompt=prompt,
            visit_token=visit_token.astype(np.int32),
            discharge_row=discharge,
            token=rows.token,
            member_token=token[order],
            member_value=np.where(row >= 0, rows.value[row], np.float32(np.nan)) if len(row) else rows.value[:0],
            member_bin=np.where(row >= 0, rows.bin[row], -1).astype(np.int32) if len(row) else token,
            member_length=np.where(row >= 0, rows.length[row], -1).astype(np.int32) if len(row) else token,
            member_row=row,
            alphabet=self.alphabet,
        )

    def _shorten(self, units: Units) -> tuple[Units, Int]:
        """With `LT`, move what follows a long gap so that the gap counts 1,080 days; also the hours each unit was moved by."""
        shift = np.zeros(len(units.history), np.int64)
        if self.exact_gaps or not len(shift):
            return units, shift
        before = np.where(np.diff(units.history) > 0, 0, units.start[1:] // HOURS_PER_DAY - units.end[:-1] // HOURS_PER_DAY)
        excess = np.concatenate([[0], np.maximum(before - LONG_GAP_DAYS, 0)])
        total = np.cumsum(excess)
        first = np.maximum.accumulate(np.where(np.concatenate([[True], np.diff(units.history) > 0]), np.arange(len(total)), 0))
        shift = (total - total[first]) * HOURS_PER_DAY
        end = np.where(units.end >= OPEN, units.end, units.end - shift)
        return replace(units, start=units.start - shift, end=end, hour=units.hour - shift[units.unit]), shift

    def _static(self, events: pl.DataFrame, history: Int, count: int, prefix: str, kind: Kind) -> Ids:
        """Token of each history's first static row with the prefix; the unknown token where there is none in the vocabulary."""
        ids = {str(self.vocabulary.code[i]): int(i) for i in self.vocabulary.ids_of_kind(kind)}
        token = np.full(count, ids[f"{prefix}0"], np.int32)
        rows = np.flatnonzero(events["code"].str.starts_with(prefix).to_numpy())[::-1]
        token[history[rows]] = [ids.get(code, ids[f"{prefix}0"]) for code in events["code"].gather(rows).to_list()]
        return token

    def _censoring(
        self,
        events: pl.DataFrame,
        history: Int,
        count: int,
        units: Units,
        left_open: Bool,
        shift: Int,
        cut: npt.NDArray[np.datetime64] | None,
    ) -> Ids:
        """Whole days from the last token's date to the end of observation; -1 after death and inside visits."""
        visits = pl.col("code").str.starts_with(s.VISIT_PREFIX)
        seen = events.select(pl.max_horizontal("time", pl.when(visits).then(pl.col("end_time"))).fill_null(pl.datetime(1, 1, 1)).dt.date())
        last = np.full(count, -(1 << 40))
        np.maximum.at(last, history, seen.to_series().to_physical().to_numpy().astype(np.int64))
        if cut is not None:
            last = np.maximum(last, cut.astype("datetime64[D]").astype(np.int64))
        final = np.flatnonzero(np.concatenate([np.diff(units.history) > 0, [True]])) if len(units.history) else np.zeros(0, np.int64)
        final = final[(units.kind[final] != Unit.DEATH) & ~left_open[final]]
        gap = np.full(count, -1, np.int64)
        ended = (units.end[final] + shift[final]) // HOURS_PER_DAY
        gap[units.history[final]] = np.maximum(last[units.history[final]] - ended, 0)
        return gap.astype(np.int32)


def _alphabetical(code: pl.Series) -> Int:
    """Rank of each code among the distinct ones; only those are compared as text."""
    distinct = code.unique().sort().to_frame("code").with_row_index("_rank")
    return code.to_frame("code").join(distinct, on="code", how="left", maintain_order="left")["_rank"].to_numpy().astype(np.int64)


def _icu_rows(events: pl.DataFrame, rows: Int, history: Int, hour: Int, links: Int) -> IcuRows:
    """Rows of intensive care with the hour at which they end."""
    ended = events["end_time"].gather(rows)
    end = np.where(ended.is_not_null().to_numpy(), _minutes(ended) // MINUTES_PER_HOUR, OPEN)
    return IcuRows(Loose(history[rows], hour[rows], links[rows], rows), end)


def _minutes(time: pl.Series) -> Int:
    """Instants in minutes; 0 for nulls."""
    return time.to_physical().fill_null(0).to_numpy().astype(np.int64) // MICROSECONDS_PER_MINUTE


def _table(amount_to_id: dict[int, int], size: int) -> Ids:
    table = np.full(size, -1, np.int32)
    for amount, index in amount_to_id.items():
        if 0 <= amount < size:
            table[amount] = index
    return table


def _left_open(units: Units, visits: Visits) -> Bool:
    """Units that are visits whose end is not known: span visits, and a day visit that is the history's last unit."""
    last = np.ones(len(units.history), np.bool_)
    last[:-1] = np.diff(units.history) > 0
    unended = np.zeros(len(units.history), np.bool_)
    unended[units.unit_of_visit[(visits.end >= OPEN) & ~visits.span]] = True
    return ((units.kind == Unit.SPAN) & (units.end >= OPEN)) | ((units.kind == Unit.DAY) & last & unended)
