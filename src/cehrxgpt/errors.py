"""The errors a user can meet, as one small tree.

Every message says what was wrong, where, and what would be right, in one line. The command line prints the message without a
traceback and exits with the class's `exit_status`: 2 where the input or the arguments are at fault, 1 where we or the machine are.
Messages may name files, columns, codes and subject ids; they never quote a patient's values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class CehrxgptError(Exception):
    """Base of everything this package raises on purpose."""

    exit_status = 1


class InputError(CehrxgptError):
    """The input or the arguments cannot be used as they are; the message says what would be right."""

    exit_status = 2


class ConfigError(InputError):
    """A recipe, task or option has an unknown key, a wrong type or a value out of range.

    Attributes:
        at: keys and places in lists that lead from the top of the settings to what is wrong; empty where that is the whole.
    """

    def __init__(self, message: str, at: tuple[str | int, ...] = ()):
        super().__init__(message)
        self.at = at


class SchemaError(InputError):
    """A table lacks a column, has a column of the wrong type, or breaks an invariant of its schema."""


class SourceError(InputError):
    """A source folder, file or database cannot be read as what it was taken for."""


class TaskError(InputError):
    """A task is malformed, or its concepts are absent from the data."""


class MismatchError(InputError):
    """Two artefacts do not belong together: a model and a token store, labels and events, predictions and labels."""


class OutputExistsError(InputError):
    """The output is there already and `--force` was not given."""


class StorageError(CehrxgptError):
    """The machine failed us while reading or writing (disk full, device error); nothing half-written was left behind."""


class Interrupted(CehrxgptError):
    """The run was told to stop (Ctrl-C, SIGTERM); the message says where it stands and how to go on."""

    exit_status = 130


class ElsewhereError(CehrxgptError):
    """Another process of the same run met an error, and has said so."""

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


class TrainingError(CehrxgptError):
    """Training cannot go on: too many non-finite losses, or no usable checkpoint."""


def did_you_mean(word: str, known: Iterable[str], *, count: int = 1, cutoff: float = 0.6) -> str | None:
    """The question by which a message answers a word that is none of those known: "did you mean 'a' or 'b'?"; None where none is
    so like it (`cutoff`, of difflib's ratio)."""
    close = difflib.get_close_matches(word, list(known), n=count, cutoff=cutoff)
    return f"did you mean {' or '.join(repr(one) for one in close)}?" if close else None


def refuse_name(given: object, what: str, reader: str) -> None:
    """Raise `InputError` where `given` is only the name of a folder, and not what `reader` makes of it; `what`: "events are", "model is"."""
    if isinstance(given, (str, Path)):
        raise InputError(f"{what} a {type(given).__name__}; give {reader}({str(given)!r})")


def no_parquet(path: Path) -> str:
    """In words, that a file cannot be read as Parquet, and why it may be so."""
    table = path.suffix.lower() in (".csv", ".tsv", ".txt", ".gz", ".xlsx")
    return f"{path}: not a readable Parquet file ({f'{path.suffix} is another format' if table else 'truncated or damaged?'})"
