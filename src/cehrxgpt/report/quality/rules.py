"""The checks that compare a part with its whole: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cehrxgpt.report.markup import is_number
from cehrxgpt.report.quality.evidence import HIGH, LOW, MEDIUM, Evidence
from cehrxgpt.report.quality.facts import Facts, Part

NEVER = 2.0  # a share that no part reaches


@dataclass(frozen=True)
class Rule:
    """A check of a part of a whole.

    Attributes:
        title: what is found, if it is; also the check's name where nothing is.
        unit: what is counted.
        part: from the evidence; None where that has not the means.
        grades: shares from which the finding is low, medium, high; 0 means "any at all".
    """

    title: str
    kind: str
    unit: str
    part: Callable[[Evidence], Part | None]
    grades: tuple[float, float, float]
    why: str
    advice: str

    def severity(self, part: Part) -> str | None:
        """The finding's severity, or None."""
        if not part.count:
            return None
        reached = [name for name, grade in zip((LOW, MEDIUM, HIGH), self.grades, strict=True) if part.share >= grade]
        return reached[-1] if reached else None


def _fact(name: str) -> Callable[[Evidence], Part | None]:
    def part(evidence: Evidence) -> Part | None:
        facts: Facts | None = evidence.facts
        return None if facts is None else getattr(facts, name)

    return part


def _dropped(*reasons: str) -> Callable[[Evidence], Part | None]:
    return lambda evidence: evidence.ledger("dropped", *reasons)


def _mended(*reasons: str) -> Callable[[Evidence], Part | None]:
    return lambda evidence: evidence.ledger("mended", *reasons)


def _unreadable(evidence: Evidence) -> Part | None:
    found = evidence.ingest.get("unreadable_values")
    whole = evidence.ledger("dropped")
    if not isinstance(found, dict) or whole is None:
        return None
    columns = [(f"{table}.{column}", n) for table, one in found.items() if isinstance(one, dict) for column, n in one.items() if is_number(n)]
    columns.sort(key=lambda pair: (-pair[1], pair[0]))
    return Part(sum(n for _, n in columns), whole.of, tuple(columns[:3]))


def _unlisted_visits(evidence: Evidence) -> Part | None:
    visits = evidence.ingest.get("visits_recovered")
    found = evidence.ingest.get("visits_of_unlisted_concepts")
    if not isinstance(visits, dict) or not isinstance(found, dict):
        return None
    return Part(sum(found.values()), visits.get("total") or 0, tuple(sorted(found.items(), key=lambda pair: -pair[1])[:3]))


def _vocabulary(evidence: Evidence) -> Part | None:
    events, dropped = evidence.tokenized.get("events"), evidence.tokenized.get("events_dropped")
    return Part(int(dropped), int(events)) if is_number(events) and is_number(dropped) and events is not None and dropped is not None else None


RULES: tuple[Rule, ...] = (
    # -- completeness
    Rule(
        "Events outside every visit", "completeness", "clinical events", _fact("outside_visits"), (0.05, 0.25, 0.5),
        "Tasks about an admission do not see them as part of it; the model reads each as a day of its own.",
        "Check visit_occurrence_id in the tables named: ids of another extract point to nothing. Fetch visits and events together.",
    ),
    Rule(
        "Visits without an end", "completeness", "visits", _fact("open_visits"), (0.0, 0.05, 0.3),
        "The length of stay and the discharge are unknown, and tasks at discharge leave these visits out.",
        "Fill visit_end_datetime at the source, or leave stays that are still open out of the extract.",
    ),
    Rule(
        "Codes without a name", "completeness", "clinical events", _fact("nameless"), (0.01, 0.5, NEVER),
        "Results do not change, but nobody can check them by reading.",
        "Put the vocabulary's concept table (CONCEPT.csv of Athena, or codes.parquet of MEDS) beside the tables and ingest again.",
    ),
    Rule(
        "Numbers without a unit", "completeness", "numeric values", _fact("unitless"), (0.05, 0.3, NEVER),
        "Values of one code in several units fall into the same bins, and a number cannot be compared with another site's.",
        "Fill unit_concept_id; where each code has one unit at the source, nothing is lost within this data.",
    ),
    Rule(
        "Sex unknown", "completeness", "subjects", _fact("unknown_gender"), (0.01, 0.05, 0.3),
        "Sex stands at the head of every history the model reads.", "Check gender_concept_id (0 = no mapping) against gender_source_value.",
    ),
    Rule(
        "Race unknown", "completeness", "subjects", _fact("unknown_race"), (0.05, 0.3, NEVER),
        "Performance cannot be compared between groups for these subjects.", "Check race_concept_id (0 = no mapping) against race_source_value.",
    ),
    Rule(
        "No date of birth", "completeness", "subjects", _fact("no_birth"), (0.0, 0.01, 0.1),
        "Age stands at the head of every history; without it the model is told “unknown”.", "Fill year_of_birth; the year alone will do.",
    ),
    Rule(
        "Subjects without any event", "completeness", "subjects", _fact("no_events"), (0.01, 0.1, 0.5),
        "Nothing but age and sex is known of them; they count as healthy.", "Check that persons and clinical tables are of one extract.",
    ),
    Rule(
        "Subjects seen on one day only", "completeness", "subjects", _fact("one_day"), (0.1, 0.3, 0.6),
        "A single day has no course over time for the model to learn.", "Extract longer histories, or ask that a task has a minimum of history.",
    ),
    # -- conformance
    Rule(
        "Events with concept 0", "conformance", "clinical events", _fact("unmapped"), (0.01, 0.1, 0.3),
        "They keep their source code, which no other site shares and no library task names.",
        "Map the source codes of the tables named (Usagi, source_to_concept_map) and ingest again.",
    ),
    Rule(
        "Events with concepts of the site's own", "conformance", "clinical events", _fact("local"), (0.05, 0.3, NEVER),
        "Concept ids from 2,000,000,000 on mean something else at every site; a model does not carry them over.",
        "Map them to standard concepts where these exist, above all if the model is to leave the house.",
    ),
    Rule(
        "Numeric codes with several units", "conformance", "numeric codes", _fact("mixed_units"), (0.0, 0.2, 0.5),
        "Bins are made per code and unit, so one lab is several to the model.", "Convert to one unit per code before the ingest.",
    ),
    Rule(
        "Rows of nobody in person", "conformance", "rows read", _dropped("subject_not_in_person", "no_subject_id"), (0.0, 0.05, 0.2),
        "They belong to people whose age and sex are not here; they were left out.", "Extract person together with the tables named.",
    ),
    Rule(
        "Rows without a code or date", "conformance", "rows read", _dropped("no_code", "no_date", "no_end_date"), (0.0, 0.02, 0.2),
        "They say that something happened, not what or when; they were left out.", "Look for the columns that the tables named leave empty.",
    ),
    Rule(
        "Values that could not be read", "conformance", "rows read", _unreadable, (0.0, 0.01, 0.1),
        "A text stands where a number or a date belongs; the value was set to null.", "Correct the columns named in the extract.",
    ),
    Rule(
        "Duplicate rows", "conformance", "rows read", _dropped("duplicate"), (0.001, 0.05, 0.3),
        "Rows equal in all but their id; one of each was kept. Counts of the source will be higher than ours.",
        "Usually one source row mapped to several targets, or a table loaded twice: check the mapping of the tables named.",
    ),
    Rule(
        "Events of visits that are not there", "conformance", "rows read", _mended("unlinked_visit_absent"), (0.0, 0.1, 0.4),
        "Their visit id is unknown; they were kept as events outside visits.", "Extract visit_occurrence for the same people and period.",
    ),
    Rule(
        "Visit concepts that are not listed", "conformance", "visits", _unlisted_visits, (0.0, 0.05, 0.3),
        "They count as class “other”: one day, without hours, never an admission.", "Add the concepts to visit_classes.yaml, or map them.",
    ),
    # -- plausibility
    Rule(
        "Events over a day outside their visit", "plausibility", "rows read", _mended("unlinked_over_24h_outside", "unlinked_other_day_of_day_visit"),
        (0.0, 0.05, 0.2), "Their time contradicts their visit; they were kept at their own time, outside it.",
        "Compare their dates with the visit's: order, collection and result dates are easily taken for one another.",
    ),
    Rule(
        "Events after death", "plausibility", "rows read", _mended("moved_to_death"), (0.0, 0.01, 0.1),
        "Within a day they were moved to the time of death: results come late.", "A few are usual; many mean that the date of death is wrong.",
    ),
    Rule(
        "Events long after death", "plausibility", "rows read", _dropped("after_death"), (0.0, 0.001, 0.01),
        "Over a day after it; they were left out.", "Check the source of the deaths: a wrongly linked death ends a living person's record.",
    ),
    Rule(
        "Events before birth or in the future", "plausibility", "rows read", _dropped("before_birth", "in_the_future"), (0.0, 0.001, 0.01),
        "They cannot be true and were left out.", "Look for default dates (1900-01-01, 9999-12-31) and for two-digit years.",
    ),
    Rule(
        "Stays or drugs that end before they start", "plausibility", "rows read",
        _mended("end_before_start", "visit_ends_before_start", "period_ends_before_start"), (0.0, 0.01, 0.1),
        "Their end was set to their start.", "Check whether the two columns were swapped.",
    ),
    Rule(
        "Diagnoses and procedures of the other sex", "plausibility", "events that befall one sex alone", _fact("other_sex"), (0.0, 0.01, 0.05),
        "A prostate in a woman, a birth in a man: the sex, the code or the person that the row is linked to is wrong.",
        "Look up how the codes named were mapped and whose rows they are. A few may be true, of people whose recorded sex changed.",
    ),
    Rule(
        "Values far outside the usual", "plausibility", "numeric values", _fact("far_values"), (0.001, 0.01, 0.05),
        "Further out than the range of the middle 98 in 100 is wide; they fall into the outermost bin. Often another unit, or 9999 for “missing”.",
        "Look at the codes named; set codes for “missing” to null before the ingest.",
    ),
    Rule(
        "Subjects over 110 years old", "plausibility", "subjects", _fact("centenarians"), (0.0, 0.01, 0.05),
        "Few people are so old: their year of birth may be a default, or their death is missing.", "Check year_of_birth, and the linkage of deaths.",
    ),
    Rule(
        "Dates without a time of day", "plausibility", "clinical events", _fact("day_only"), (0.1, 0.5, NEVER),
        "The order within a day is not known, and stays have no hours. Such events count as known from the end of their day on.",
        "Fill the *_datetime columns if the source has them. Tasks of hours cannot be asked.",
    ),
    Rule(
        "Observation ends with the last record", "plausibility", "subjects", _fact("period_ends_with_record"), (0.3, 0.6, NEVER),
        "Alive, and observation ends within two days of the last event: then it says when people came, not until when they were watched. "
        "Those who stayed well count as not known, and risks come out too high.",
        "Set the period's end to the end of enrolment or of the extract; or label with “grace_days”.",
    ),
    # -- fitness
    Rule(
        "Events outside the vocabulary", "fitness", "events", _vocabulary, (0.01, 0.05, 0.2),
        "Codes of fewer training patients than the least allowed: the model does not see them.",
        "Map rare source codes to broader concepts, or pool data. See “What the vocabulary leaves out”.",
    ),
)  # fmt: skip
