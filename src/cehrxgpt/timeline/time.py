"""All arithmetic of time units, in one place: NumPy only, so that the accelerator side may import it.

An instant is an int64 count of minutes since 1970-01-01 00:00 (the EventTable's microseconds, floored). A date is an int64 count of
days since 1970-01-01. Ages are whole completed months, rounded down, everywhere. Time tokens count whole days or whole hours.

    gap between visits   difference of calendar dates: D0..D1079; from 1,080 days Y<days // 365> followed by D<days % 365>
    inside a visit       i-D<n> moves to midnight n days on; i-H<n> directly after it, or on admission, sets the hour of that day;
                         elsewhere it adds n hours
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]

MINUTES_PER_HOUR = 60
MINUTES_PER_DAY = 1440
DAYS_PER_YEAR = 365  # of a year token: METHOD's decomposition days // 365, not a calendar year
MINUTES_PER_MONTH = 43830  # 365.25 / 12 days: turns the prompt's months of age into `age_minutes`
LONG_GAP_DAYS = 1080  # from here on a gap is a year token and a day remainder
MAX_IN_VISIT_DAYS = 31  # i-D31 is the longest single step inside a visit; longer ones are written as several
MICROSECONDS_PER_MINUTE = 60_000_000


def instant_from_datetime64(time: npt.NDArray[np.datetime64]) -> Int:
    """Minutes since the epoch, floored (also before 1970)."""
    return np.floor_divide(time.astype("datetime64[us]").astype(np.int64), MICROSECONDS_PER_MINUTE)


def datetime64_from_instant(instant: Int) -> npt.NDArray[np.datetime64]:
    """The inverse of `instant_from_datetime64`, to the minute."""
    return (np.asarray(instant, dtype=np.int64) * MICROSECONDS_PER_MINUTE).astype("datetime64[us]")


def date_of(instant: Int) -> Int:
    """Days since the epoch of each instant."""
    return np.floor_divide(instant, MINUTES_PER_DAY)


def midnight(date: Int) -> Int:
    """Instant at which each date begins."""
    return np.asarray(date, dtype=np.int64) * MINUTES_PER_DAY


def year_month_of(date: Int) -> tuple[Int, Int]:
    """Calendar year and month (1..12) of each date."""
    months = np.asarray(date, dtype=np.int64).astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    return 1970 + np.floor_divide(months, 12), 1 + np.mod(months, 12)


def date_from_year_month(year: Int, month: Int) -> Int:
    """First day of the month, as days since the epoch."""
    months = (np.asarray(year, dtype=np.int64) - 1970) * 12 + np.asarray(month, dtype=np.int64) - 1
    return months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)


def age_in_months(birth_date: Int, date: Int) -> Int:
    """Completed months of age on `date`, rounded down; never negative."""
    birth = np.asarray(birth_date, dtype=np.int64).astype("datetime64[D]")
    now = np.asarray(date, dtype=np.int64).astype("datetime64[D]")
    months = now.astype("datetime64[M]").astype(np.int64) - birth.astype("datetime64[M]").astype(np.int64)
    day_of_birth = (birth - birth.astype("datetime64[M]")).astype(np.int64)
    day_now = (now - now.astype("datetime64[M]")).astype(np.int64)
    return np.maximum(months - (day_now < day_of_birth), 0)


def age_minutes_at_start(age_months: Int) -> Int:
    """`age_minutes` of the prompt: the age that the prompt's tokens say, in minutes. Unknown age (negative) counts as 0."""
    return np.maximum(np.asarray(age_months, dtype=np.int64), 0) * MINUTES_PER_MONTH
