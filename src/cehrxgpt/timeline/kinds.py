"""The kinds of token, as small integers: what a token *is* never has to be parsed out of its string.

The order is part of the stored vocabulary; add at the end.
"""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """Kind of a token; `Vocabulary.kind[token_id]`."""

    PAD = 0
    BOS = 1  # first token of every sequence
    YEAR = 2  # prompt: calendar year at the first event; amount -1 = unknown (shifted calendars)
    MONTH = 3  # prompt: month 1..12
    AGE = 4  # prompt: completed years; amount -1 = unknown
    AGE_MONTHS = 5  # prompt: completed months beyond the years, 0..11; amount -1 = unknown
    GENDER = 6  # prompt
    RACE = 7  # prompt
    VISIT_START = 8  # [VS]
    VISIT_RESUME = 9  # [VR]: a window that starts inside a visit re-opens it
    VISIT_TYPE = 10  # Visit/<...>
    STAY_DAY = 11  # after a resumed visit's type: day of stay, binned; amount = lower edge of the bin in days
    DISCHARGE = 12  # discharge/<...>, directly before [VE]
    VISIT_END = 13  # [VE]
    DAY_GAP = 14  # D<n>: between units; amount = days
    YEAR_GAP = 15  # Y<n>: always followed by D0..D364; amount = years of 365 days
    LONG_GAP = 16  # LT: 1,080 days or more, where exact long gaps are switched off
    IN_VISIT_DAYS = 17  # i-D<n>
    IN_VISIT_HOURS = 18  # i-H<n>
    CODE = 19  # a plain code
    VALUE = 20  # code, unit, comparison sign and value bin in one: fused values
    CATEGORY = 21  # code and categorical result in one
    DEATH = 22
    END = 23  # [END]: only ever after a death
    ICU_START = 24  # [ICU]: intensive care begins; between a resumed visit's type and its day of stay: is going on
    ICU_END = 25  # [/ICU]
    DRUG_LENGTH = 26  # directly after a drug: days from its first to its last, binned; amount = lower edge of the bin
    LAB = 27  # split values: code, unit and comparison sign; always followed by its bin
    BIN = 28  # directly after a lab: number of its bin, shared by all labs; amount = 0, 1, ... from the lowest bin up


PROMPT_KINDS = (Kind.BOS, Kind.YEAR, Kind.MONTH, Kind.AGE, Kind.AGE_MONTHS, Kind.GENDER, Kind.RACE)
"""The demographic prompt, in order: every sequence and every window begins with one token of each."""

PROMPT_LENGTH = len(PROMPT_KINDS)

TIME_KINDS = (Kind.DAY_GAP, Kind.YEAR_GAP, Kind.LONG_GAP, Kind.IN_VISIT_DAYS, Kind.IN_VISIT_HOURS)
EVENT_KINDS = (Kind.VISIT_TYPE, Kind.DISCHARGE, Kind.CODE, Kind.VALUE, Kind.LAB, Kind.CATEGORY, Kind.DEATH, Kind.ICU_START)
"""Kinds whose tokens decode to a row of the EventTable at the token's own clock."""
FOLLOWERS = (Kind.BIN, Kind.DRUG_LENGTH)
"""Kinds that say more of the event directly before them; nothing may part them from it."""
