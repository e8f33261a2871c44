"""Dialects of MEDS: which codes open and close visits, where race and units stand, what is no exposure. One small YAML file each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from cehrxgpt import visits
from cehrxgpt.config import read_config
from cehrxgpt.errors import ConfigError

_FOLDER = Path(__file__).with_name("dialects")
SEPARATOR = "//"


@dataclass(frozen=True, kw_only=True)
class Recognise:
    """A data set is of this dialect when it has the column and a code whose first segment is `code`."""

    column: str
    code: str


@dataclass(frozen=True, kw_only=True)
class VisitCodes:
    """A visit that codes open and close.

    Attributes:
        visit_class: becomes `Visit/<visit_class>`.
        opens, closes: first segments of the two codes.
        has_id: the rows carry the visit's id (column `visit_id` of the dialect); else each opening is paired with the next closing.
        keep_opening: the opening row also stays as an event of its own.
        place_segment: segment of the closing code with the discharge place; 0 = it has none.
    """

    visit_class: str
    opens: str
    closes: str
    has_id: bool = False
    keep_opening: bool = False
    place_segment: int = 0

    def __post_init__(self) -> None:
        if self.visit_class not in visits.CLASSES:
            raise ValueError(f"visit_class: '{self.visit_class}' is not a visit class; valid: {', '.join(visits.CLASSES)}")


@dataclass(frozen=True, kw_only=True)
class IcuCodes:
    """Stays in intensive care that codes open and close, as first segments: each opening is paired with the next closing. The opening row
    stays as an event too, as it names the unit."""

    opens: str
    closes: str


@dataclass(frozen=True, kw_only=True)
class ExposureCodes:
    """An exposure told by two codes, as what the codes begin with: they have all that follows in common (the drug) and `id`, the column with
    the number of the order. The closing row is no exposure of its own: the opening row has its time as the end."""

    opens: str
    closes: str
    id: str


@dataclass(frozen=True, kw_only=True)
class Demographic:
    """Where gender or race stands: a code with the value in its second segment, or a column; `values` maps it to OMOP concepts, others 0."""

    values: dict[str, int]
    code: str = ""
    column: str = ""

    def __post_init__(self) -> None:
        if bool(self.code) == bool(self.column):
            raise ValueError("give either 'code' or 'column'")


@dataclass(frozen=True, kw_only=True)
class NumberPairs:
    """Codes whose text is two numbers with a slash: they become two numeric rows, `<code>//<name>`."""

    codes: list[str]
    names: list[str]

    def __post_init__(self) -> None:
        if len(self.names) != 2:
            raise ValueError("names: give two names, of the first and the second number")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One dialect; all but the name is optional."""

    name: str
    recognise: Recognise | None = None
    visit_id: str = ""
    visits: list[VisitCodes] = field(default_factory=list)
    intensive_care: list[IcuCodes] = field(default_factory=list)
    gender: Demographic | None = None
    race: Demographic | None = None
    not_exposures: str = ""  # regular expression on the whole code
    exposures: list[ExposureCodes] = field(default_factory=list)
    exposure_ends: str = ""  # regular expression on the whole code: further rows that only end an exposure, and do not say which
    unit_column: str = ""
    unit_segments: dict[str, int] = field(default_factory=dict)  # first segment -> index of the segment with the unit
    no_unit: list[str] = field(default_factory=list)
    no_text: list[str] = field(default_factory=list)
    number_pairs: NumberPairs | None = None
    billing: list[str] = field(default_factory=list)
    identifiers: list[str] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, pattern in (("not_exposures", self.not_exposures), ("exposure_ends", self.exposure_ends)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name}: not a regular expression ({error})") from error
        if any(kind.has_id for kind in self.visits) and not self.visit_id:
            raise ValueError("visits: has_id needs the key 'visit_id', the column with the visit's id")


def shipped() -> list[str]:
    """Names of the dialects in the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_dialect(name: str) -> Dialect:
    """A shipped dialect by name, or one from a YAML file.

    Raises:
        ConfigError: there is no such dialect, or its file is malformed.
    """
    path = _FOLDER / f"{name}.yaml"
    if name not in shipped():
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"dialect: '{name}' is neither shipped ({', '.join(shipped())}) nor a file")
    return read_config(Dialect, path)
