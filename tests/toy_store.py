"""A small vocabulary and random sentences of the grammar, as token stores, for the tests of store, objectives and training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cehrxgpt.schema import SPLITS
from cehrxgpt.store.format import StoreAppender, write_meta
from cehrxgpt.timeline.encoded import EncodedHistories, concatenate
from cehrxgpt.timeline.grammar import Grammar
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.time import age_in_months, year_month_of
from cehrxgpt.timeline.vocabulary import Vocabulary


def toy_vocabulary(*, codes: int = 12, days: int = 1080, years: int = 30, long_gap: str = "exact", labs: tuple[int, ...] = ()) -> Vocabulary:
    """Every kind of token; `long_gap` "exact" has Y2..Y<years>, "token" has LT; `labs` has `lab/<n>` of n bins for each number n."""

    def row(token: str, kind: Kind, amount: int = -1, **facts: object) -> dict[str, object]:
        return {"token": token, "kind": int(kind), "amount": amount, **facts}

    rows = [row("[PAD]", Kind.PAD), row("[BOS]", Kind.BOS), row("year:unknown", Kind.YEAR)]
    rows += [row(f"year:{year}", Kind.YEAR, year) for year in range(1990, 2030)]
    rows += [row(f"month:{month}", Kind.MONTH, month) for month in range(1, 13)]
    rows += [row("age:unknown", Kind.AGE), *(row(f"age:{age}", Kind.AGE, age) for age in range(120))]
    rows += [row("age_months:unknown", Kind.AGE_MONTHS), *(row(f"age_months:{month}", Kind.AGE_MONTHS, month) for month in range(12))]
    rows += [row(f"gender:{code}", Kind.GENDER, code=f"gender/{code}") for code in (0, 8507, 8532)]
    rows += [row(f"race:{code}", Kind.RACE, code=f"race/{code}") for code in (0, 8527)]
    rows += [row("[VS]", Kind.VISIT_START), row("[VR]", Kind.VISIT_RESUME), row("[VE]", Kind.VISIT_END)]
    rows += [row(f"visit:{code}", Kind.VISIT_TYPE, code=f"Visit/{code}") for code in (9201, 9202)]
    rows += [row(f"stay:{day}", Kind.STAY_DAY, day) for day in (0, 1, 2, 3, 4, 5, 7, 14, 28)]
    rows += [row(f"D{day}", Kind.DAY_GAP, day, minutes=1440 * day) for day in range(days)]
    if long_gap == "exact":
        rows += [row(f"Y{year}", Kind.YEAR_GAP, year, minutes=1440 * 365 * year) for year in range(2, years + 1)]
    else:
        rows += [row("LT", Kind.LONG_GAP, minutes=1440 * 1080)]
    rows += [row(f"i-D{day}", Kind.IN_VISIT_DAYS, day, minutes=1440 * day) for day in range(1, 32)]
    rows += [row(f"i-H{hour}", Kind.IN_VISIT_HOURS, hour, minutes=60 * hour) for hour in range(1, 24)]
    rows += [row(f"condition/{code}", Kind.CODE, code=f"condition/{code}") for code in range(codes)]
    rows += [row("MEDS_DEATH", Kind.DEATH, code="MEDS_DEATH"), row("[END]", Kind.END)]
    rows += [row(f"bin:{place}", Kind.BIN, place) for place in range(max(labs, default=0))]
    for count in labs:
        bins = {"bin_edges": [float(edge) for edge in range(count + 1)], "bin_quantiles": [[low, low + 0.5, low + 1] for low in range(count)]}
        rows.append(row(f"lab/{count}", Kind.LAB, code=f"lab/{count}", **bins))
    return Vocabulary.from_rows(rows, {"calendar": "true", "long_gap": long_gap})


def toy_history(vocabulary: Vocabulary, random: np.random.Generator, *, subject: int, units: int, per_unit: int = 4) -> EncodedHistories:
    """One history: `units` visits or bare days of up to `per_unit` codes, gaps between; open, or ending in death."""
    start = int(random.integers(11000, 18000))
    birth = start - int(random.integers(7000, 25000))
    year, month = (int(part) for part in year_month_of(np.int64(start)))
    months = int(age_in_months(np.int64(birth), np.int64(start)))
    gender, race = vocabulary.id_of("gender:8532"), vocabulary.id_of("race:0")
    names = ["[BOS]", f"year:{year}", f"month:{month}", f"age:{months // 12}", f"age_months:{months % 12}"]
    tokens = [*(vocabulary.id_of(name) for name in names), gender, race]
    codes = vocabulary.ids_of_kind(Kind.CODE, Kind.LAB)
    for unit in range(units):
        if unit:
            tokens.append(vocabulary.id_of(f"D{int(random.integers(1, 60))}"))
        chosen = [int(code) for code in random.choice(codes, size=int(random.integers(1, per_unit + 1)))]
        if random.random() < 0.6:
            visit = [vocabulary.id_of("[VS]"), vocabulary.id_of("visit:9201")]
            for code in chosen:
                if random.random() < 0.3:
                    visit.append(vocabulary.id_of(f"i-D{int(random.integers(1, 4))}"))
                visit += _event(vocabulary, random, code)
            tokens += [*visit, vocabulary.id_of("[VE]")]
        else:
            tokens += [token for code in chosen for token in _event(vocabulary, random, code)]
    dies = random.random() < 0.2
    if dies:
        tokens += [vocabulary.id_of("D3"), vocabulary.id_of("MEDS_DEATH"), vocabulary.id_of("[END]")]
    token_id = np.array(tokens, dtype=np.int32)
    _, age = Grammar(vocabulary).follow(token_id[None])
    one = np.ones(1, dtype=np.int64)
    return EncodedHistories(
        token_id=token_id,
        age_minutes=age[0].astype(np.int32),
        value=np.full(len(tokens), np.nan, dtype=np.float32),
        event_index=np.full(len(tokens), -1, dtype=np.int32),
        offsets=np.array([0, len(tokens)], dtype=np.int64),
        subject_id=one * subject,
        prediction_time=None,
        start_date=one * start,
        birth_date=one * birth,
        gender_token=np.full(1, gender, dtype=np.int32),
        race_token=np.full(1, race, dtype=np.int32),
        censor_gap_days=np.full(1, -1 if dies else int(random.integers(0, 1500)), dtype=np.int32),
        events=one * units,
        unknown=one * 0,
    )


def retold(vocabulary: Vocabulary, history: EncodedHistories, tokens: list[int], *, subject: int) -> EncodedHistories:
    """The same person's prompt, other tokens behind it; open, and watched until the last of them."""
    token_id = np.array([*history.token_id[:PROMPT_LENGTH], *tokens], dtype=np.int32)
    _, age = Grammar(vocabulary).follow(token_id[None])
    return replace(
        history,
        token_id=token_id,
        age_minutes=age[0].astype(np.int32),
        value=np.full(len(token_id), np.nan, dtype=np.float32),
        event_index=np.full(len(token_id), -1, dtype=np.int32),
        offsets=np.array([0, len(token_id)], dtype=np.int64),
        subject_id=np.array([subject]),
        censor_gap_days=np.zeros(1, dtype=np.int32),
    )


def _event(vocabulary: Vocabulary, random: np.random.Generator, code: int) -> list[int]:
    """A code, or a lab and its bin."""
    bins = int(vocabulary.bin_count[code])
    return [code, vocabulary.id_of(f"bin:{int(random.integers(bins))}")] if bins else [code]


def toy_histories(vocabulary: Vocabulary, count: int, *, seed: int = 0, units: tuple[int, int] = (1, 8), per_unit: int = 4) -> EncodedHistories:
    """`count` histories of `units` units each."""
    random = np.random.default_rng(seed)
    sizes = random.integers(*units, size=count)
    return concatenate([toy_history(vocabulary, random, subject=100 + index, units=int(size), per_unit=per_unit) for index, size in enumerate(sizes)])


def save_store(folder: Path, vocabulary: Vocabulary, by_split: dict[str, EncodedHistories]) -> Path:
    """Write a store from histories in memory."""
    folder.mkdir(parents=True)
    with StoreAppender(folder) as appender:
        for split, histories in by_split.items():
            appender.append(histories, SPLITS.index(split))
    vocabulary.save(folder)
    write_meta(
        folder,
        histories=appender.histories,
        tokens=appender.tokens,
        splits=list(SPLITS),
        vocabulary=vocabulary.fingerprint,
        fingerprint=f"{appender.tokens:016x}",
    )
    return folder


def toy_store(
    folder: Path,
    *,
    train: int = 60,
    tuning: int = 20,
    seed: int = 0,
    units: tuple[int, int] = (1, 8),
    days: int = 1080,
    vocabulary: Vocabulary | None = None,
) -> Path:
    """A store of random histories; `days` gap tokens where no vocabulary is given."""
    vocabulary = vocabulary or toy_vocabulary(days=days)
    counts = {"train": (train, seed), "tuning": (tuning, seed + 1)}
    parts = {name: toy_histories(vocabulary, count, seed=key, units=units) for name, (count, key) in counts.items() if count}
    return save_store(folder, vocabulary, parts)
