"""What is asked where index or outcome come from elsewhere: from settings, as a command line has them, to labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cehrxgpt.errors import ConfigError
from cehrxgpt.events import EventDataset
from cehrxgpt.tasks.checks import check_numbers
from cehrxgpt.tasks.cohorts import cohort_task, read_cohort
from cehrxgpt.tasks.definition import Task
from cehrxgpt.tasks.entries import Censoring, asked_of, label_entries
from cehrxgpt.tasks.files import load_task
from cehrxgpt.tasks.labeler import Labelled, label
from cehrxgpt.tasks.meds_labels import read_times


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Where index and outcome are written, if not in a task.

    Attributes:
        cohort, cohort_id: an OMOP cohort table whose starts are the index, and which of its definitions.
        labels: a label file whose prediction times are the index.
        outcome, outcome_id: an OMOP cohort table whose starts are the outcome.
        horizon_days, gap_days, history_days, first_onset: as in a task file, where no task says them.
        censoring, grace_days: likewise; in place of the task's own where there is one.
    """

    cohort: Path | None = None
    cohort_id: int | None = None
    labels: Path | None = None
    outcome: Path | None = None
    outcome_id: int | None = None
    horizon_days: float | None = None
    gap_days: float | None = None
    history_days: int | None = None
    first_onset: bool = False
    censoring: Censoring | None = None
    grace_days: int | None = None

    def __post_init__(self) -> None:
        if self.cohort is not None and self.labels is not None:
            raise ValueError("--cohort and --labels both say when to ask; give one")
        for name, table in (("cohort", self.cohort), ("outcome", self.outcome)):
            if getattr(self, f"{name}_id") is not None and table is None:
                raise ValueError(f"--{name}-id chooses from a cohort table; give --{name} TABLE")
        check_numbers(self)
        if (self.censoring == "grace_days") != bool(self.grace_days):
            raise ValueError("--grace-days (a positive number) and --censoring grace_days belong together")

    @property
    def terms(self) -> tuple[str, ...]:
        """Options given that a task says itself."""
        given = {"--horizon-days": self.horizon_days, "--gap-days": self.gap_days, "--history-days": self.history_days}
        return tuple(name for name, value in given.items() if value is not None) + (("--first-onset",) if self.first_onset else ())


def label_elsewhere(events: EventDataset | pl.DataFrame, task: Task | str | Path | None, elsewhere: Elsewhere) -> Labelled:
    """Labels of a task, of which `elsewhere` replaces index or outcome or both; without a task it has to give both, and the horizon.

    Raises:
        ConfigError: too little is given, or two things say the same.
        TaskError, InputError, SchemaError, MismatchError: of the task and the tables (see `load_task`, `read_cohort`, `read_times`,
            `label_entries`).
    """
    if task is not None and elsewhere.terms:
        raise ConfigError(f"{elsewhere.terms[0]} and --task both say what is asked; leave one out (a copy of the task's file may say it differently)")
    if task is not None and elsewhere.cohort is None and elsewhere.labels is None and elsewhere.outcome is None:
        return label(events, task, censoring=elsewhere.censoring, grace_days=elsewhere.grace_days)
    if task is None and elsewhere.cohort is None and elsewhere.labels is None:
        raise ConfigError(
            "nothing says when to ask; give --task NAME, or --cohort TABLE (or --labels FILE) with --outcome TABLE and --horizon-days N"
        )
    if task is None and (elsewhere.outcome is None or elsewhere.horizon_days is None):
        lacking = "--outcome TABLE" if elsewhere.outcome is None else "--horizon-days N"
        raise ConfigError(f"nothing says what to look for; give {lacking}, or --task NAME for its outcome and window")
    known = None if task is None else load_task(task)
    index = read_times(elsewhere.labels) if elsewhere.labels is not None else None
    if elsewhere.cohort is not None:
        index = read_cohort(elsewhere.cohort, elsewhere.cohort_id)
    outcome = None if elsewhere.outcome is None else read_cohort(elsewhere.outcome, elsewhere.outcome_id, option="--outcome-id")
    if known is not None:
        asked = asked_of(known, index=index, outcome=outcome)
    else:
        assert index is not None
        assert outcome is not None
        asked = cohort_task(
            index,
            outcome,
            horizon_days=elsewhere.horizon_days or 0.0,
            gap_days=elsewhere.gap_days or 0.0,
            history_days=elsewhere.history_days or 0,
            first_onset=elsewhere.first_onset,
        )
    return label_entries(events, asked, index=index, outcome=outcome, censoring=elsewhere.censoring, grace_days=elsewhere.grace_days)
