"""`Timeline`: a fitted vocabulary with its grammar, and the way from events to tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from cehrxgpt.errors import InputError
from cehrxgpt.events import EventDataset
from cehrxgpt.timeline.back_off import Aliases, ConceptSets, aliases
from cehrxgpt.timeline.encode import Encoder
from cehrxgpt.timeline.encoded import EncodedHistories
from cehrxgpt.timeline.fit import TimelineConfig, fit_vocabulary, is_category
from cehrxgpt.timeline.grammar import Grammar
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary

SETTINGS_FILE = "timeline.json"


class Timeline:
    """Vocabulary + grammar + settings.

    Attributes:
        vocabulary: what tokens there are.
        calendar: `true` | `shifted` (dates moved to other centuries: years are not written).
        aliases: codes that are written as an ancestor, by the ontology of the data in hand; see `knowing`.
    """

    def __init__(self, vocabulary: Vocabulary, *, calendar: str | None = None, aliases: Aliases | None = None):
        self.vocabulary = vocabulary
        self.aliases = aliases or Aliases()
        self.calendar = calendar or str(vocabulary.settings.get("calendar", "true"))

    def __repr__(self) -> str:
        return f"Timeline({len(self.vocabulary):,} tokens, calendar {self.calendar!r})"

    @cached_property
    def grammar(self) -> Grammar:
        """Which token may follow which."""
        return Grammar(self.vocabulary)

    @classmethod
    def fit(
        cls,
        events: EventDataset | pl.DataFrame,
        *,
        split: str | None = "train",
        config: TimelineConfig | None = None,
        calendar: str | None = None,
        concept_sets: ConceptSets | None = None,
    ) -> Timeline:
        """Fit on one split of a data set (or on a whole EventTable); see `fit.fit_vocabulary`."""
        return cls(fit_vocabulary(events, split=split, config=config, calendar=calendar, concept_sets=concept_sets)).knowing(events)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.vocabulary, calendar=self.calendar)

    def on(self, events: EventDataset | pl.DataFrame) -> Timeline:
        """This timeline with what the data set says of itself: its calendar (shifted dates say nothing of the year, whatever the vocabulary
        was fitted on) and its ontology. A bare table has neither: it takes the vocabulary's calendar and no code is written as another.
        """
        calendar = events.calendar if isinstance(events, EventDataset) else self.calendar
        return self.knowing(events) if calendar == self.calendar else Timeline(self.vocabulary, calendar=calendar).knowing(events)

    def knowing(self, events: EventDataset | pl.DataFrame) -> Timeline:
        """This timeline with the data set's ontology, by which codes are rolled up and backed off if the vocabulary was fitted so."""
        if not isinstance(events, EventDataset):
            return self
        return Timeline(self.vocabulary, calendar=self.calendar, aliases=aliases(self.vocabulary, events.codes))

    def encode_frame(self, events: pl.DataFrame, *, key: Sequence[str] = ("subject_id",)) -> EncodedHistories:
        """Events to tokens, one history per key; see `encode.Encoder.encode`."""
        return self._encoder.encode(self.aliases.apply(events), key=key)

    def results(self, events: pl.DataFrame, histories: EncodedHistories) -> tuple[int, int]:
        """Dated rows that carry a number or a text result, and how many of them their `histories` say with it (as a bin or a category)."""
        result = pl.col("time").is_not_null() & (pl.col("numeric_value").is_finite() | is_category(pl.col("text_value")))
        said = np.isfinite(histories.value) | (self.vocabulary.kind[histories.token_id] == Kind.CATEGORY)
        return int(events.select(result.sum()).item() or 0), int(said.sum())

    def save(self, folder: str | Path) -> None:
        """Write the vocabulary (settings inside) and a readable copy of the settings into an existing folder."""
        self.vocabulary.save(folder)
        facts = {"calendar": self.calendar, "tokens": len(self.vocabulary), "settings": self.vocabulary.settings}
        (Path(folder) / SETTINGS_FILE).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Timeline:
        """Read what `save` wrote; a folder that holds only a vocabulary (a model's) will do.

        Raises:
            InputError: there is no vocabulary, or a file is damaged.
        """
        vocabulary = Vocabulary.load(folder)
        path = Path(folder) / SETTINGS_FILE
        if not path.exists():
            return cls(vocabulary)
        try:
            return cls(vocabulary, calendar=str(json.loads(path.read_text(encoding="utf-8"))["calendar"]))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: not the settings of a timeline (damaged file?); tokenize again") from error
