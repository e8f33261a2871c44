"""A dialect applied to one bucket of MEDS rows: codes to events, visits, deaths and demographics."""

from __future__ import annotations

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.sources.bucket import DEATHS, EVENTS, STATICS, VISITS, Bucket, shaped
from cehrxgpt.sources.detail_rules import DETAIL
from cehrxgpt.sources.dialect import SEPARATOR, Demographic, Dialect, ExposureCodes, IcuCodes, VisitCodes
from cehrxgpt.sources.ledger import Ledger

_NUMBER = r"^[-+]?[0-9]*\.?[0-9]+$"
_COMPARED = r"^(?<sign><=|>=|<|>)\s*(?<number>[-+]?[0-9]*\.?[0-9]+)$"
_NO_RESULT = tuple(pl.lit(None).alias(name) for name in ("numeric_value", "text_value", "unit", "fingerprint"))
_PAIR = r"^(?<first>[0-9]*\.?[0-9]+)\s*/\s*(?<second>[0-9]*\.?[0-9]+)$"


def segment(index: int) -> pl.Expr:
    """One segment of the code; null where it has fewer."""
    return pl.col("code").str.split(SEPARATOR).list.get(index, null_on_oob=True)


def apply_dialect(rows: pl.DataFrame, rules: Dialect, ledger: Ledger) -> Bucket:
    """The rows of a bucket.

    Args:
        rows: subject_id, time, code, numeric_value, text_value, unit, visit_id, race, order, fingerprint, table.
        ledger: counts what is dropped or mended here.
    """
    found = Bucket()
    rows = rows.with_columns(segment(0).fill_null("").alias("group"), pl.lit(False).alias("derived"))
    rows = ledger.drop(rows, pl.col("subject_id").is_null(), "no_subject_id")
    origin = pl.lit(None, dtype=pl.String)
    if rules.origin:
        origin = pl.col("group").replace_strict(rules.origin, default=None, return_dtype=pl.String)
    rows = rows.with_columns(origin.alias("origin"))
    birth, death = (pl.col("code").eq_missing(code) for code in (s.BIRTH, s.DEATH))
    found.deaths = shaped(rows.filter(death).with_columns(pl.lit("death").alias("origin")), DEATHS)
    found.statics = _statics(rows, rules)
    for index, kind in enumerate(rules.visits):
        visits = _visits(rows, kind, -1 - index, ledger)
        found.visits = pl.concat([found.visits, visits])
        if kind.place_segment and not kind.has_id:
            rows = _identify_closings(rows, kind, visits)
    stays = [_intensive_care(rows, kind) for kind in rules.intensive_care]
    found.events = shaped(_events(_other_rows(rows.filter(~birth & ~death), rules, ledger), rules, ledger), EVENTS)
    found.events = pl.concat([found.events, *stays])
    # A fact without a time is static, but what begins or ends a stay is none: it is dropped for want of a date, else it would be known from birth on.
    bounds = [code for visit in rules.visits for code in (visit.opens, visit.closes)]
    bounds += [code for care in rules.intensive_care for code in (care.opens, care.closes)]
    static = pl.col("time").is_null() & pl.col("code").is_not_null() & ~pl.col("group").is_in(bounds)
    found.statics = pl.concat([found.statics, shaped(found.events.filter(static), STATICS)])
    found.events = found.events.filter(~static)
    return found


def _mapped(rows: pl.DataFrame, prefix: str, value: pl.Expr, part: Demographic) -> pl.DataFrame:
    concept = value.str.strip_chars().str.to_uppercase().replace_strict(part.values, default=0, return_dtype=pl.Int64)
    return rows.with_columns((pl.lit(prefix) + concept.cast(pl.String)).alias("code"), pl.lit("person").alias("origin"))


def _statics(rows: pl.DataFrame, rules: Dialect) -> pl.DataFrame:
    """Births, gender and race. A race read from a column is derived: the known value that most rows have, the first of equals."""
    found = [rows.filter(pl.col("code") == s.BIRTH).with_columns(pl.lit("person").alias("origin"))]
    for part, prefix in ((rules.gender, s.GENDER_PREFIX), (rules.race, s.RACE_PREFIX)):
        if part is None:
            continue
        if part.code:
            coded = rows.filter(pl.col("group") == part.code)
            found.append(_mapped(coded, prefix, segment(1), part).with_columns(pl.lit(None, dtype=pl.Datetime("us")).alias("time")))
            continue
        said = _mapped(rows.filter(pl.col("race").is_not_null()), prefix, pl.col("race"), part)
        votes = said.group_by("subject_id", "code", "origin").agg(pl.len().alias("votes"), pl.col("time").min().alias("first"))
        votes = votes.with_columns((pl.col("code") == prefix + "0").alias("unknown"))
        votes = votes.sort("subject_id", "unknown", "votes", "first", "code", descending=[False, False, True, False, False])
        chosen = votes.unique("subject_id", keep="first", maintain_order=True).select("subject_id", "code", "origin")
        found.append(chosen.with_columns(pl.lit(True).alias("derived"), pl.lit("person").alias("table")))
    return pl.concat([shaped(frame, STATICS) for frame in found])


def _visits(rows: pl.DataFrame, kind: VisitCodes, number: int, ledger: Ledger) -> pl.DataFrame:
    """Visits of one kind. The opening row stands for the visit, unless it stays as an event: then the visit is derived."""
    opening = rows.filter(pl.col("group") == kind.opens).with_columns(pl.lit(kind.keep_opening).alias("derived"))
    opening = ledger.drop(opening, pl.col("time").is_null(), "no_date")
    opening = ledger.drop(opening, ~pl.struct("subject_id", "time", "fingerprint").is_first_distinct(), "duplicate")
    closing = rows.filter((pl.col("group") == kind.closes) & pl.col("time").is_not_null())
    if kind.has_id:
        ends = closing.group_by("subject_id", "visit_id").agg(pl.col("time").max().alias("end_time"))
        visits = opening.join(ends, on=["subject_id", "visit_id"], how="left")
    else:
        visits = _paired(opening, closing, number)
    return shaped(
        visits.with_columns(
            pl.lit(f"{s.VISIT_PREFIX}{kind.visit_class}").alias("code"),
            pl.lit("visit_occurrence").alias("origin"),
            pl.lit(kind.closes).alias("end_group"),
        ),
        VISITS,
    )


def _intensive_care(rows: pl.DataFrame, kind: IcuCodes) -> pl.DataFrame:
    """Stays in intensive care: derived rows, as the openings stay as events. A stay that is moved on to the next ends as that begins."""
    opening = rows.filter((pl.col("group") == kind.opens) & pl.col("time").is_not_null())
    opening = opening.unique(["subject_id", "time"], maintain_order=True).sort("subject_id", "time")
    opening = opening.with_columns(pl.col("time").shift(-1).over("subject_id").alias("_next"))
    closing = rows.filter((pl.col("group") == kind.closes) & pl.col("time").is_not_null())
    stays = _first_closing(opening, closing, at_once=False)
    return shaped(
        stays.with_columns(pl.lit(f"{s.ICU_PREFIX}icu").alias("code"), pl.lit(DETAIL).alias("origin"), pl.lit(True).alias("derived"), *_NO_RESULT),
        EVENTS,
    )


def _paired(opening: pl.DataFrame, closing: pl.DataFrame, number: int) -> pl.DataFrame:
    """Each opening with the first closing from then on, if no other opening comes between; ids are negative and count per subject."""
    opening = opening.sort("subject_id", "time")
    following = pl.col("time").shift(-1).over("subject_id")
    opening = opening.with_columns(
        following.alias("_next"), (number - 16 * pl.int_range(pl.len(), dtype=pl.Int64).over("subject_id")).alias("visit_id")
    )  # fmt: skip
    return _first_closing(opening, closing, at_once=True)


def _first_closing(opening: pl.DataFrame, closing: pl.DataFrame, *, at_once: bool) -> pl.DataFrame:
    """`end_time` of each opening: the first closing, unless the next opening (`_next`) comes before it.

    `at_once`: a closing may be at the same instant, and an opening without a closing of its own has no end; else the next opening ends it.
    """
    ends = closing.select("subject_id", pl.col("time").alias("end_time")).unique().sort("end_time")
    paired = opening.sort("time").join_asof(
        ends, left_on="time", right_on="end_time", by="subject_id", strategy="forward", coalesce=False, check_sortedness=False,
        allow_exact_matches=at_once,
    )  # fmt: skip
    own = pl.col("_next").is_null() | (pl.col("end_time") <= pl.col("_next"))
    moved_on = pl.lit(None, dtype=pl.Datetime("us")) if at_once else pl.col("_next")
    return paired.with_columns(pl.when(own).then("end_time").otherwise(moved_on).alias("end_time")).drop("_next")


def _identify_closings(rows: pl.DataFrame, kind: VisitCodes, visits: pl.DataFrame) -> pl.DataFrame:
    """Closing rows of visits without ids get the id of the visit that they were paired with, so that the discharge place finds it."""
    ended = visits.filter(pl.col("end_time").is_not_null()).unique(["subject_id", "end_time"], keep="first", maintain_order=True)
    ended = ended.select("subject_id", pl.col("end_time").alias("time"), pl.col("visit_id").alias("_paired"), pl.lit(kind.closes).alias("group"))
    rows = rows.join(ended, on=["subject_id", "time", "group"], how="left", maintain_order="left")
    return rows.with_columns(pl.coalesce("_paired", "visit_id").alias("visit_id")).drop("_paired")


def _other_rows(rows: pl.DataFrame, rules: Dialect, ledger: Ledger) -> pl.DataFrame:
    """Rows that are events: not demographics, nor openings that became the visit; closings become discharge places or ends."""
    if rules.not_exposures:
        rows = ledger.drop(rows, pl.col("code").str.contains(rules.not_exposures), "not_an_exposure")
    if rules.exposures or rules.exposure_ends:
        rows = _exposures(rows, rules, ledger)
    demographic = [part.code for part in (rules.gender, rules.race) if part is not None and part.code]
    rows = rows.filter(~pl.col("group").is_in([*demographic, *(kind.opens for kind in rules.visits if not kind.keep_opening)]))
    rows = rows.with_columns(pl.lit(False).alias("discharge"))
    for kind in rules.visits:
        closes = pl.col("group") == kind.closes
        if kind.place_segment:
            place = pl.lit(s.DISCHARGE_PREFIX) + segment(kind.place_segment).fill_null("UNK")
            rows = rows.with_columns(pl.when(closes).then(place).otherwise("code").alias("code"), (pl.col("discharge") | closes).alias("discharge"))
        else:
            rows = ledger.drop(rows, closes, "only_ends_a_visit")
    closings = [kind.closes for kind in rules.intensive_care]
    return ledger.drop(rows, pl.col("group").is_in(closings), "only_ends_intensive_care") if closings else rows


def _exposures(rows: pl.DataFrame, rules: Dialect, ledger: Ledger) -> pl.DataFrame:
    """Rows that only end an exposure go; where the order says which exposure, that gets their time as its end."""
    rows = rows.with_columns(pl.lit(None, dtype=pl.Datetime("us")).alias("end_time"))
    for kind in rules.exposures:
        rows = _with_ends(rows, kind)
    ledger.mend(rows, pl.col("end_time").is_not_null(), "end_from_a_row_of_its_own")
    ends = pl.any_horizontal(pl.lit(False), *(pl.col("code").str.starts_with(kind.closes) for kind in rules.exposures))
    if rules.exposure_ends:
        ends |= pl.col("code").str.contains(rules.exposure_ends)
    return ledger.drop(rows, ends, "only_ends_an_exposure")


def _with_ends(rows: pl.DataFrame, kind: ExposureCodes) -> pl.DataFrame:
    """`end_time` of the opening rows: the first closing row of the same order and drug from then on."""
    timed = rows.with_row_index("_row").filter(pl.col("time").is_not_null() & pl.col("order").is_not_null())
    opening, closing = (
        timed.filter(pl.col("code").str.starts_with(begins)).with_columns(pl.col("code").str.strip_prefix(begins).alias("_drug"))
        for begins in (kind.opens, kind.closes)
    )
    closing = closing.select("subject_id", "order", "_drug", pl.col("time").alias("_end"))
    paired = opening.select("_row", "time", "subject_id", "order", "_drug").join(closing, on=["subject_id", "order", "_drug"])
    first = paired.filter(pl.col("_end") >= pl.col("time")).group_by("_row").agg(pl.col("_end").min())
    joined = rows.with_row_index("_row").join(first, on="_row", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("_end", "end_time").alias("end_time")).drop("_row", "_end")


def _events(rows: pl.DataFrame, rules: Dialect, ledger: Ledger) -> pl.DataFrame:
    """Values and units of the event rows."""
    text = pl.col("text_value").str.strip_chars()
    gone = text.is_in([*rules.no_text, ""])
    compared = text.str.extract_groups(_COMPARED)
    plain = pl.when(text.str.contains(_NUMBER)).then(text)
    number = pl.coalesce(plain, compared.struct.field("number")).cast(pl.Float32, strict=False)
    value = pl.when(pl.col("numeric_value").is_finite()).then("numeric_value").cast(pl.Float32)
    took = value.is_null() & number.is_not_null()
    ledger.mend(rows, gone, "text_that_means_missing")
    ledger.mend(rows, took, "number_read_from_text")
    unit: pl.Expr = pl.when(pl.col("unit").str.strip_chars() != "").then(pl.col("unit").str.strip_chars())
    for name, index in rules.unit_segments.items():
        unit = pl.coalesce(unit, pl.when(pl.col("group") == name).then(segment(index)))
    rows = rows.with_columns(
        pl.when(~gone & ~took.fill_null(False)).then(text).alias("text_value"),
        pl.coalesce(value, number).alias("numeric_value"),
        pl.when(took).then(compared.struct.field("sign")).alias("operator"),
        pl.when(~unit.is_in(rules.no_unit)).then(unit).alias("unit"),
        pl.col("group").is_in(rules.billing).alias("billing"),
    )
    return _split_pairs(rows, rules, ledger)


def _split_pairs(rows: pl.DataFrame, rules: Dialect, ledger: Ledger) -> pl.DataFrame:
    """`120/80` becomes two rows: the first number stays with the source's row, the second is derived."""
    if rules.number_pairs is None:
        return rows
    numbers = pl.col("text_value").str.extract_groups(_PAIR)
    pair = pl.col("group").is_in(rules.number_pairs.codes) & pl.col("text_value").str.contains(_PAIR)
    ledger.mend(rows, pair, "pair_of_numbers_split")
    found = rows.filter(pair.fill_null(False))
    parts = []
    for name, part, derived in ((rules.number_pairs.names[0], "first", False), (rules.number_pairs.names[1], "second", True)):
        parts.append(
            found.with_columns(
                (pl.col("code") + SEPARATOR + name).alias("code"),
                numbers.struct.field(part).cast(pl.Float32, strict=False).alias("numeric_value"),
                pl.lit(None, dtype=pl.String).alias("text_value"),
                pl.lit(derived).alias("derived"),
            )
        )
    return pl.concat([rows.filter(~pair.fill_null(False)), *parts])
