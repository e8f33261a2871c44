"""What the full population looks like to an epidemiologist: prevalence, incidence, visits and latent levels by age, as one JSON object.

    python benchmarks/epidemiology.py [--patients 10000] [--hospital a] [--seed 5]

Prevalence (percent) and levels are taken in the middle of each person's observation; incidence is per 1,000 person-years. Age bands: from 18, 30, 45,
60 and 75 years.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cehrxgpt.simulate.lives import Lives, live
from cehrxgpt.simulate.populations.full import FULL
from cehrxgpt.simulate.state import AT_EMERGENCY, AT_INPATIENT, AT_OUTPATIENT, DAY, DISCHARGE, NEVER, YEAR

Floats = npt.NDArray[np.float64]
BANDS = np.array([18.0, 30.0, 45.0, 60.0, 75.0, 130.0])


def by_age(age: Floats, weight: Floats | None = None) -> Floats:
    """Sum in each age band, [5]."""
    return np.histogram(age, BANDS, weights=weight)[0].astype(np.float64)


class Tally:
    """Sums over lots of lives."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Floats] = {}
        self.stays: list[Floats] = []

    def add(self, kind: str, name: str, values: Floats) -> None:
        """Add to one sum."""
        self.sums[kind, name] = self.sums.get((kind, name), np.zeros(len(values))) + values

    def count(self, lives: Lives) -> None:
        """Count these lives."""
        s = lives.states
        last = np.r_[np.diff(s.row) != 0, True]
        end = np.minimum(lives.end, np.where(s.is_event("death")[last], s.time[last], np.inf))
        birth, male = s.birth[last], s.male[last]
        for low, high in pairwise(BANDS):
            years = np.minimum(end, birth + high * YEAR) - np.maximum(lives.start, birth + low * YEAR)
            self.add("years", str(low), np.array([np.maximum(years, 0).sum() / YEAR]))
        age = (s.time - s.birth) / YEAR
        for name in FULL.names:
            self.add("events", name, by_age(age[s.is_event(name)]))
        for name, kind in (("outpatient", AT_OUTPATIENT), ("emergency", AT_EMERGENCY), ("inpatient", AT_INPATIENT)):
            self.add("visits", name, np.array([(s.visit == kind).sum()], dtype=np.float64))
        stays = s.visit == AT_INPATIENT
        self.stays.append((s.visit_end[stays] - s.time[stays]) / DAY)
        readmitted = (s.time[stays] - s.since("discharge")[stays]) < 30 * DAY
        self.add("visits", "readmitted, discharged", np.array([readmitted.sum(), (s.event == DISCHARGE).sum()], dtype=np.float64))
        self._middle(lives, (lives.start + end) / 2, birth, male)

    def _middle(self, lives: Lives, middle: Floats, birth: Floats, male: npt.NDArray[np.bool_]) -> None:
        """Who has what, and which levels, in the middle of observation."""
        s = lives.states
        span = s.time.max() - s.time.min() + 1
        at = np.searchsorted(s.row + (s.time - s.time.min()) / span, np.arange(len(middle)) + (middle - s.time.min()) / span) - 1
        age = (middle - birth) / YEAR
        self.add("people", "all", by_age(age))
        for name in (*FULL.first_markers, "infarction", "stroke"):
            self.add("prevalence", name, by_age(age[s.since(name)[at] > NEVER]))
        for level in FULL.levels:
            value = s.level(level.name)[at]
            value = np.exp(value) if level.name in ("creatinine", "ntprobnp") else value
            groups = (np.ones(len(value)), male.astype(np.float64), (~male).astype(np.float64))
            self.add("levels", level.name, np.array([moment for group in groups for moment in (group.sum(), group @ value, group @ value**2)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=10_000)
    parser.add_argument("--hospital", default="a")
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    tally = Tally()
    for lives in live(FULL, arguments.patients, arguments.seed, hospital=arguments.hospital):
        tally.count(lives)
    sums = tally.sums
    years = np.array([sums["years", str(low)][0] for low in BANDS[:-1]])
    stays = np.concatenate(tally.stays)
    again, left = sums["visits", "readmitted, discharged"]

    def both(total: Floats, base: Floats, factor: float) -> list[float]:
        return [round(float(total.sum() / base.sum() * factor), 2), *np.round(total / base * factor, 2).tolist()]

    levels = {}
    for level in FULL.levels:
        moments = sums["levels", level.name].reshape(3, 3)
        mean, sd = moments[:, 1] / moments[:, 0], np.sqrt(moments[:, 2] / moments[:, 0] - (moments[:, 1] / moments[:, 0]) ** 2)
        levels[level.name] = {"mean": round(mean[0], 2), "sd": round(sd[0], 2), "men": round(mean[1], 2), "women": round(mean[2], 2)}
    figures = {
        "visits_per_100_person_years": {
            k: round(float(sums["visits", k][0] / years.sum() * 100), 1) for k in ("outpatient", "emergency", "inpatient")
        },
        "readmitted_within_30_days": round(float(again / left), 3),
        "stay_days": {"mean": round(float(stays.mean()), 2), "median": round(float(np.median(stays)), 2)},
        "prevalence_percent_all_then_by_age": {k: both(v, sums["people", "all"], 100) for (kind, k), v in sums.items() if kind == "prevalence"},
        "incidence_per_1000_all_then_by_age": {k: both(v, years, 1000) for (kind, k), v in sums.items() if kind == "events"},
        "levels": levels,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
