"""Random patients as a token store, for benchmarks of speed: sentences of the grammar whose codes mean nothing.

NumPy and the accelerator side of the package only, so that it runs where the data stack is not installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cehrxgpt.store.format import StoreAppender, write_meta
from cehrxgpt.timeline.encoded import EncodedHistories
from cehrxgpt.timeline.grammar import Grammar
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.vocabulary import Vocabulary

VISIT_TOKENS = 9  # on average: gap, [VS], type, codes, [VE]


def make_vocabulary(size: int) -> Vocabulary:
    """Prompt, visits, gaps of up to 1,079 days, and codes up to `size` tokens."""

    def row(token: str, kind: Kind, amount: int = -1, minutes: int = 0, code: str | None = None) -> dict[str, object]:
        return {"token": token, "kind": int(kind), "amount": amount, "minutes": minutes, "code": code}

    rows = [row("[PAD]", Kind.PAD), row("[BOS]", Kind.BOS), row("year:unknown", Kind.YEAR)]
    rows += [row(f"year:{year}", Kind.YEAR, year) for year in range(1985, 2035)]
    rows += [row(f"month:{month}", Kind.MONTH, month) for month in range(1, 13)]
    rows += [row("age:unknown", Kind.AGE), *(row(f"age:{age}", Kind.AGE, age) for age in range(120))]
    rows += [row("age_months:unknown", Kind.AGE_MONTHS), *(row(f"age_months:{month}", Kind.AGE_MONTHS, month) for month in range(12))]
    rows += [row(f"gender:{code}", Kind.GENDER, code=f"gender/{code}") for code in (0, 8507, 8532)]
    rows += [row("race:0", Kind.RACE, code="race/0"), row("[VS]", Kind.VISIT_START), row("[VR]", Kind.VISIT_RESUME), row("[VE]", Kind.VISIT_END)]
    rows += [row(f"visit:{code}", Kind.VISIT_TYPE, code=f"Visit/{code}") for code in (9201, 9202)]
    rows += [row(f"stay:{day}", Kind.STAY_DAY, day) for day in (0, 1, 2, 3, 4, 5, 7, 14, 28)]
    rows += [row(f"i-H{hour}", Kind.IN_VISIT_HOURS, hour, 60 * hour) for hour in range(1, 24)]
    rows += [row(f"D{day}", Kind.DAY_GAP, day, 1440 * day) for day in range(1080)]
    rows += [row(f"Y{year}", Kind.YEAR_GAP, year, 1440 * 365 * year) for year in range(2, 31)]
    rows += [row("MEDS_DEATH", Kind.DEATH, code="MEDS_DEATH"), row("[END]", Kind.END)]
    rows += [row(f"condition/{code}", Kind.CODE, code=f"condition/{code}") for code in range(size - len(rows))]
    return Vocabulary.from_rows(rows, {"calendar": "true", "long_gap": "exact"})


def make_patient(vocabulary: Vocabulary, codes: np.ndarray, tokens: int, random: np.random.Generator) -> np.ndarray:
    """Token ids of one patient of about `tokens` tokens."""
    age, year = int(random.integers(20, 90)), int(random.integers(1990, 2030))
    names = ["[BOS]", f"year:{year}", f"month:{int(random.integers(1, 13))}", f"age:{age}", f"age_months:{int(random.integers(12))}"]
    history = [vocabulary.id_of(name) for name in (*names, "gender:8507", "race:0")]
    start, end, kind = (vocabulary.id_of(name) for name in ("[VS]", "[VE]", "visit:9202"))
    gap = vocabulary.id_of("D0")
    while len(history) < tokens:
        if len(history) > PROMPT_LENGTH:
            history.append(gap + 1 + int(random.integers(400)))
        some = (random.zipf(1.3, size=1 + int(random.integers(2 * (VISIT_TOKENS - 4)))) - 1) % len(codes)
        history += [start, kind, *codes[some].tolist(), end]
    return np.array(history, dtype=np.int32)


def make_store(folder: Path, *, patients: int, mean_tokens: int, vocabulary_size: int, seed: int) -> Path:
    """Random patients of `mean_tokens` tokens on average (gamma distributed), all in `train`.

    Args:
        folder: is made.
    """
    vocabulary = make_vocabulary(vocabulary_size)
    codes, random = vocabulary.ids_of_kind(Kind.CODE), np.random.default_rng(seed)
    shortest = PROMPT_LENGTH + 4
    wanted = shortest + random.gamma(1.5, max(mean_tokens - shortest - VISIT_TOKENS / 2, 1) / 1.5, size=patients)
    histories = [make_patient(vocabulary, codes, int(tokens), random) for tokens in wanted]
    lengths = np.array([len(history) for history in histories])
    grammar = Grammar(vocabulary)
    age = [grammar.follow(history[None])[1][0].astype(np.int32) for history in histories]
    total, zeros = int(lengths.sum()), np.zeros(patients, dtype=np.int64)
    encoded = EncodedHistories(
        token_id=np.concatenate(histories),
        age_minutes=np.concatenate(age),
        value=np.full(total, np.nan, dtype=np.float32),
        event_index=np.full(total, -1, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        subject_id=np.arange(patients),
        prediction_time=None,
        start_date=zeros + 12_000,
        birth_date=zeros,
        gender_token=np.full(patients, vocabulary.id_of("gender:8507"), dtype=np.int32),
        race_token=np.full(patients, vocabulary.id_of("race:0"), dtype=np.int32),
        censor_gap_days=random.integers(0, 800, size=patients).astype(np.int32),
        events=zeros,
        unknown=zeros,
    )
    folder.mkdir()
    with StoreAppender(folder) as appender:
        appender.append(encoded, 0)
    vocabulary.save(folder)
    write_meta(folder, histories=patients, tokens=total, splits=["train"], vocabulary=vocabulary.fingerprint, fingerprint="0" * 16)
    return folder
