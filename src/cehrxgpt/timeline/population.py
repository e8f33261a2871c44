"""What synthesis has to know beside the model: how long patients are observed. NumPy only.

Observation ends for reasons the records do not tell (people move, the extract was made), so its length is drawn with the demographics
and generation runs to it. Deaths end histories early: the length they would have had is not known, so the distribution is the
Kaplan-Meier estimate of the observation's end with deaths as censored, per band of start year (of start age where the calendar is
shifted). What is kept is a few quantiles per band of at least `min_subjects` patients, with the ends pulled in to the fifth patient
from either side; draws are interpolated between them, so that nobody's own length comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cehrxgpt.errors import InputError
from cehrxgpt.timeline.bins import TAIL_SUBJECTS
from cehrxgpt.timeline.encoded import BIRTH_UNKNOWN, EncodedHistories
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.time import MINUTES_PER_DAY, age_in_months, year_month_of
from cehrxgpt.timeline.vocabulary import Vocabulary

Int = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

VERSION = 1
BAND_SUBJECTS = 50  # patients a band should have; fewer than `min_subjects` it never has
MAX_BANDS = 8
MAX_POINTS = 41


@dataclass(frozen=True)
class Band:
    """Patients whose start year (or age) is at most `upper` and beyond the band before; `upper` None = the last band.

    `days`: quantiles of the observed length, evenly spaced in probability.
    """

    upper: int | None
    subjects: int
    days: tuple[float, ...]


@dataclass(frozen=True)
class Population:
    """Observed lengths by band of `by`: `year` of the first event, or `age` at it."""

    by: str
    bands: tuple[Band, ...]

    @classmethod
    def fit(cls, histories: EncodedHistories, vocabulary: Vocabulary, *, min_subjects: int = 11) -> Population:
        """From the training histories.

        Raises:
            InputError: fewer than `min_subjects` histories have tokens.
        """
        histories = histories.subset(histories.lengths > 0)
        if len(histories) < max(min_subjects, 1):
            raise InputError(
                f"population: {len(histories)} patients have tokens; at least {min_subjects} are needed to keep how long they are observed"
            )
        days, ended = observed_days(histories, vocabulary)
        shifted = vocabulary.amount[histories.token_id[histories.offsets[:-1] + 1]] < 0
        by = "age" if shifted.any() else "year"
        value = start_age(histories) if by == "age" else year_month_of(histories.start_date)[0]
        bands = []
        for low, high, last in _cut(value, max(min_subjects, 1)):
            mine = (value > low) & (value <= high)
            bands.append(Band(None if last else high, int(mine.sum()), tuple(_quantiles(days[mine], ended[mine]))))
        return cls(by, tuple(bands))

    def draw(self, *, year: npt.ArrayLike, age: npt.ArrayLike, rng: np.random.Generator) -> Int:
        """Observed length in days of people with this start year and age in years (negative = unknown), int64[n]."""
        value = np.asarray(year if self.by == "year" else age, dtype=np.int64)
        uppers = np.array([band.upper for band in self.bands[:-1]], dtype=np.int64)
        which = np.searchsorted(uppers, value, side="left")
        which = np.where(value < 0, rng.choice(len(self.bands), len(value), p=self._shares), which)
        share, days = rng.random(len(value)), np.zeros(len(value))
        for number, band in enumerate(self.bands):
            mine = which == number
            days[mine] = np.interp(share[mine], np.linspace(0, 1, len(band.days)), band.days)
        return np.floor(days).astype(np.int64)

    @property
    def _shares(self) -> Floats:
        counts = np.array([band.subjects for band in self.bands], dtype=np.float64)
        return counts / counts.sum()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        bands = [{"upper": band.upper, "subjects": band.subjects, "days": list(band.days)} for band in self.bands]
        return {"version": VERSION, "by": self.by, "bands": bands}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Population:
        """The inverse of `to_dict`.

        Raises:
            InputError: it is something else, or of a later version.
        """
        try:
            if content["version"] > VERSION:
                raise InputError(f"population: version {content['version']}, this release reads up to {VERSION}; upgrade cehrxgpt")
            bands = tuple(Band(band["upper"], int(band["subjects"]), tuple(float(day) for day in band["days"])) for band in content["bands"])
            by = str(content["by"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("population: not what Population.to_dict wrote (damaged file?)") from error
        if by not in ("year", "age") or not bands:
            raise InputError("population: expected bands by 'year' or 'age'")
        return cls(by, bands)


def start_age(histories: EncodedHistories) -> Int:
    """Completed years of age at the start, int64[S]; -1 where birth is unknown."""
    unknown = histories.birth_date == BIRTH_UNKNOWN
    months = age_in_months(np.where(unknown, histories.start_date, histories.birth_date), histories.start_date)
    return np.where(unknown, -1, months // 12)


def observed_days(histories: EncodedHistories, vocabulary: Vocabulary) -> tuple[Int, npt.NDArray[np.bool_]]:
    """Days from each history's start to the end of its observation, int64[S], and whether that is the end (False: death came first).

    Histories must have tokens.
    """
    last = histories.offsets[1:] - 1
    kind = vocabulary.kind[histories.token_id[last]]
    days = histories.clock_minutes[last] // MINUTES_PER_DAY + np.maximum(histories.censor_gap_days, 0)
    return days, ~np.isin(kind, (int(Kind.END), int(Kind.DEATH)))


def _cut(value: Int, min_subjects: int) -> list[tuple[int, int, bool]]:
    """Bands (low, high], the last of them marked, each of enough patients."""
    distinct, counts = np.unique(value, return_counts=True)
    wanted = max(min_subjects, min(BAND_SUBJECTS, len(value)), -(-len(value) // MAX_BANDS))
    uppers, held = [], 0
    for here, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        held += count
        if held >= wanted:
            uppers.append(here)
            held = 0
    if held or not uppers:  # what is left joins the last band
        uppers = [*uppers[:-1], int(distinct[-1])]
    lows = [int(distinct[0]) - 1, *uppers[:-1]]
    return [(low, high, high == uppers[-1]) for low, high in zip(lows, uppers, strict=True)]


def _quantiles(days: Int, ended: npt.NDArray[np.bool_]) -> list[float]:
    """Quantiles of the time to the end of observation, deaths censored."""
    order = np.lexsort((~ended, days))
    days, ended = days[order].astype(np.float64), ended[order]
    at_risk = len(days) - np.arange(len(days))
    survival = np.cumprod(1 - ended / at_risk)
    cumulative = 1 - survival
    cumulative[-1] = 1.0  # whoever is left ends with the longest
    tail = min(TAIL_SUBJECTS, (len(days) + 1) // 2) - 1
    points = int(np.clip(len(days) // 4, 5, MAX_POINTS))
    place = np.searchsorted(cumulative, np.linspace(0, 1, points) - 1e-12)
    found = np.clip(days[np.minimum(place, len(days) - 1)], days[tail], days[len(days) - 1 - tail])
    return [float(day) for day in found]
