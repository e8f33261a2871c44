"""Synthetic patients: the model writes them from [BOS] on, and they come out as events.

    1  demographics   [BOS] -> year month age months gender race, drawn from the model under the grammar
    2  dates          a day in the month of the start, a birth date that gives the age; a stand-in where the year is unknown
    3  length         how long the patient is observed, drawn from the population given the demographics
    4  the rest       drawn from the model until the observation ends, the patient dies, or the token budget is used up
    5  events         decoded with numbers drawn inside their bins; demographics, birth and OBSERVATION//START, END beside them

A patient whose budget runs out is kept, with the observation ending on the date of the last event, and is counted. Everything is a
function of (seed, number of the patient): the same whatever the batch, and a longer run begins with the shorter one's patients.
Memory is bounded by one chunk of patients.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from cehrxgpt import schema as s
from cehrxgpt.errors import ConfigError, InputError
from cehrxgpt.events import conform, sort_events
from cehrxgpt.objectives.heads import predicts_demographics
from cehrxgpt.rollout.engine import rollout
from cehrxgpt.rollout.prompt import Prompt
from cehrxgpt.rollout.result import Rollouts
from cehrxgpt.rollout.windows import rollout_through_windows
from cehrxgpt.synthesis.meds import write_meds
from cehrxgpt.synthesis.omop import write_omop
from cehrxgpt.timeline.decode import decode
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.people import Prompts, draw_dates, person_rows, read_prompts
from cehrxgpt.timeline.population import Population
from cehrxgpt.timeline.time import MINUTES_PER_DAY
from cehrxgpt.timeline.vocabulary import Vocabulary

if TYPE_CHECKING:
    from cehrxgpt.model.hub import Loaded

Int = npt.NDArray[np.int64]
CONTEXTS = 8  # of the model, the default budget of a patient
BASE_YEAR = 2000  # stands for `year:unknown`, which models of shifted calendars say
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
_SECOND_STAGE = 0x5EED_0002  # the history's random numbers must not repeat those of the demographics


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How patients are drawn.

    Attributes:
        seed: patients are a function of it and of their number.
        max_new_tokens: budget of one patient after the demographics; None: eight times the model's context. Patients longer than the
            context are written window by window.
        batch_rows: patients written side by side.
        chunk: patients decoded and written to disk at once.
        temperature: 1 draws from the model's own distribution.
        dtype: precision to compute in; None = the model's own.
        base_year: stands for an unknown year.
    """

    seed: int = 0
    max_new_tokens: int | None = None
    batch_rows: int = 512
    chunk: int = 1024
    temperature: float = 1.0
    dtype: Literal["float32", "float64", "bfloat16"] | None = None
    base_year: int = BASE_YEAR

    def __post_init__(self) -> None:
        for name in ("batch_rows", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise ValueError(f"dtype is '{self.dtype}'; valid: {', '.join(_DTYPES)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")


class Synthesizer:
    """Draws patients chunk by chunk; `counts` says what came of them."""

    def __init__(self, model: Loaded, patients: int, config: SynthesisConfig | None = None):
        """
        Raises:
            ConfigError: fewer than one patient is asked for.
            InputError: the model has no population file, or was not trained to say who there is.
        """
        if patients < 1:
            raise ConfigError(f"synthesize: {patients} patients; at least 1 is needed")
        if model.population is None:
            raise InputError(
                f"{model.folder}: no population.json (how long patients are observed); train the model again from a token store with one"
            )
        if not predicts_demographics(model.folder):
            raise InputError(
                f"{model.folder}: trained with next_token: {{demographics: false}}, so it cannot draw people; train one that predicts demographics"
            )
        self.vocabulary, self.patients, self.config = model.vocabulary, patients, config or SynthesisConfig()
        self.population = Population.from_dict(model.population)
        self.decoder = model.decoder
        if self.config.dtype is not None and _DTYPES[self.config.dtype] != self.decoder.embedding.weight.dtype:
            self.decoder = copy.deepcopy(self.decoder).to(_DTYPES[self.config.dtype])
        self.counts: Counter[str] = Counter()

    def chunks(self, progress: Callable[[int, int, str], None] | None = None) -> Iterator[pl.DataFrame]:
        """EventTables of `config.chunk` patients each, numbered 1..n."""
        for start in range(0, self.patients, self.config.chunk):
            subject_id = np.arange(start + 1, min(start + self.config.chunk, self.patients) + 1, dtype=np.int64)

            def report(done: int, _: int, base: int = start) -> None:
                if progress is not None:
                    progress(base + done, self.patients, "patients")

            yield self._chunk(subject_id, report)

    def _chunk(self, subject_id: Int, progress: Callable[[int, int], None]) -> pl.DataFrame:
        bos = self.vocabulary.ids_of_kind(Kind.BOS)[:1].astype(np.int32)
        config = self.config
        started = rollout(
            self.decoder,
            self.vocabulary,
            [Prompt(token_id=bos, subject_id=int(one)) for one in subject_id],
            samples=1,
            seed=config.seed,
            max_new_tokens=PROMPT_LENGTH - 1,
            batch_rows=config.batch_rows,
            temperature=config.temperature,
        )
        prompt_ids = np.concatenate([np.repeat(bos[None], len(subject_id), 0), started.token_id.reshape(len(subject_id), PROMPT_LENGTH - 1)], axis=1)
        people = read_prompts(self.vocabulary, prompt_ids)
        # One generator a patient, so that who else is in the chunk makes no difference.
        dates = [
            _dates(people, place, self.population, [self.config.seed % 2**63, int(one)], self.config.base_year)
            for place, one in enumerate(subject_id)
        ]
        start_date, birth_date, days = (np.array(column, dtype=np.int64) for column in zip(*dates, strict=True))
        prompts = [
            Prompt(token_id=row, subject_id=int(one), start_date=int(start), horizon_minutes=int(length + 1) * MINUTES_PER_DAY - 1)
            for row, one, start, length in zip(prompt_ids, subject_id, start_date, days, strict=True)
        ]
        drawn = rollout_through_windows(
            self.decoder,
            self.vocabulary,
            prompts,
            birth_date=birth_date.tolist(),
            samples=1,
            seed=config.seed ^ _SECOND_STAGE,
            max_new_tokens=config.max_new_tokens or CONTEXTS * self.decoder.config.context,
            batch_rows=config.batch_rows,
            temperature=config.temperature,
            progress=progress,
        )
        return self._events(prompt_ids, drawn, subject_id, people, start_date, birth_date, days)

    def _events(
        self, prompt_ids: npt.NDArray[np.int32], drawn: Rollouts, subject_id: Int, people: Prompts, start_date: Int, birth_date: Int, days: Int
    ) -> pl.DataFrame:
        """Decode a chunk, add demographics and observation rows, count."""
        lengths = drawn.tokens + PROMPT_LENGTH
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        token_id = np.empty(int(offsets[-1]), dtype=np.int32)
        in_prompt = (offsets[:-1, None] + np.arange(PROMPT_LENGTH)).ravel()
        token_id[in_prompt] = prompt_ids.ravel()
        token_id[np.setdiff1d(np.arange(len(token_id)), in_prompt, assume_unique=True)] = drawn.token_id
        rng = np.random.default_rng([self.config.seed % 2**63, int(subject_id[0]), 1])
        events = decode(self.vocabulary, token_id, offsets, start_date=start_date, subject_id=subject_id, rng=rng)
        last = drawn.end_clock_minutes // MINUTES_PER_DAY
        end_date = start_date + np.where(drawn.stop_reason == "horizon", days, last)
        rows = [events, person_rows(people, subject_id, birth_date), observation_rows(subject_id, start_date, end_date)]
        self.counts.update({f"stopped/{reason}": count for reason, count in drawn.stopped().items()})
        self.counts["patients"] += len(subject_id)
        self.counts["tokens"] += int(drawn.tokens.sum())
        self.counts["unknown_year"] += int((people.year < 0).sum())
        self.counts["unknown_age"] += int((people.age < 0).sum())
        self.counts["days"] += int((end_date - start_date).sum())
        return sort_events(pl.concat(rows))

    def summary(self) -> dict[str, Any]:
        """Counts as plain JSON."""
        counts = self.counts
        return {
            "patients": counts["patients"],
            "tokens": counts["tokens"],
            "stopped": {reason: counts[f"stopped/{reason}"] for reason in s.STOP_REASONS},
            "out_of_budget": counts["stopped/budget"],
            "deaths": counts["stopped/death"] + counts["stopped/end"],
            "unknown_year": counts["unknown_year"],
            "unknown_age": counts["unknown_age"],
            "observed_years_mean": counts["days"] / 365.25 / max(counts["patients"], 1),
        }


def _dates(people: Prompts, place: int, population: Population, seed: list[int], base_year: int) -> tuple[int, int, int]:
    """Start date, birth date and observed days of one patient."""
    rng = np.random.default_rng(seed)
    one = slice(place, place + 1)
    person = Prompts(people.year[one], people.month[one], people.age[one], people.age_months[one], people.gender[one], people.race[one])
    start, birth = draw_dates(person, rng, year=base_year)
    days = population.draw(year=person.year, age=person.age, rng=rng)
    return int(start[0]), int(birth[0]), int(days[0])


def observation_rows(subject_id: Int, start_date: Int, end_date: Int) -> pl.DataFrame:
    """OBSERVATION//START at the first instant of the start's day and OBSERVATION//END at the last instant of the end's."""
    frames = []
    last_instant = pl.duration(days=1, microseconds=-1)
    for code, dates in ((s.OBSERVATION_START, start_date), (s.OBSERVATION_END, end_date)):
        day = pl.Series("time", dates).cast(pl.Int32).cast(pl.Date).cast(pl.Datetime("us"))
        frame = pl.DataFrame({"subject_id": pl.Series(subject_id, dtype=pl.Int64), "time": day}).with_columns(
            (pl.col("time") + last_instant).alias("available_time"),
            pl.lit(code).alias("code"),
            pl.lit("day").alias("time_precision"),
            pl.lit("observation_period").alias("origin"),
        )
        frames.append(frame if code == s.OBSERVATION_START else frame.with_columns(pl.col("available_time").alias("time")))
    return conform(pl.concat(frames))


def names_of(vocabulary: Vocabulary) -> dict[str, str]:
    """code -> readable name, where the vocabulary has one."""
    return {code: name for code, name in zip(vocabulary.code, vocabulary.name, strict=True) if code and name}


def synthesize(
    model: Loaded, patients: int, config: SynthesisConfig | None = None, *, progress: Callable[[int, int, str], None] | None = None
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Draw patients into one EventTable.

    Args:
        model: as `load_model` gives it, with its population file.
        patients: how many; they are numbered from 1.
        config: see `SynthesisConfig`.
        progress: called with (patients done, patients asked for, "patients").

    Returns:
        the events, and counts as plain JSON.

    Raises:
        ConfigError, InputError: see `Synthesizer`.
    """
    source = Synthesizer(model, patients, config)
    frames = list(source.chunks(progress))
    return pl.concat(frames), source.summary()


def write_synthetic(
    model: Loaded,
    patients: int,
    out: str | Path,
    config: SynthesisConfig | None = None,
    *,
    format: Literal["omop", "meds"] = "omop",
    force: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Draw patients and write them chunk by chunk, as OMOP CDM 5.4 tables or as a MEDS event data set.

    Returns:
        counts of `synthesize` with those of the writer under "written".

    Raises:
        ConfigError: the format is not known.  OutputExistsError, StorageError: see `atomic.atomic_path`.
    """
    source = Synthesizer(model, patients, config)
    description = f"Synthetic patients drawn from a generative model (seed {source.config.seed}); no row describes a real person."
    if format == "omop":
        written = write_omop(
            source.chunks(progress), out, names=names_of(model.vocabulary), drug_days=model.vocabulary.drug_days,
            source_name="cehrxgpt synthetic", description=description, force=force,
        )  # fmt: skip
    elif format == "meds":
        calendar = str(model.vocabulary.settings.get("calendar", "true"))
        written = write_meds(source.chunks(progress), out, names=names_of(model.vocabulary), description=description, calendar=calendar, force=force)
    else:
        raise ConfigError(f"synthesize: no format '{format}'; valid: omop, meds")
    return source.summary() | {"format": format, "written": written}
