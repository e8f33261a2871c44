"""What the model reads: histories as tokens, how long they are, what the tokens are spent on, what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from cehrxgpt.report.markup import (
    Markup,
    Section,
    count,
    definitions,
    details,
    is_number,
    join,
    paragraph,
    percent,
    readable,
    shorten,
    table,
    tag,
)
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import MissingInputs, budget
from cehrxgpt.report.sections.data import flatten, scalar
from cehrxgpt.report.sections.histories import histories, visit_starts
from cehrxgpt.report.sections.training import parameters
from cehrxgpt.report.suppress import Teller
from cehrxgpt.report.tokens import KINDS, open_store


def section(run: RunFolder) -> Section:
    """The chapter.

    Raises:
        MissingInputs: there is no token store.
    """
    facts = run.json("timeline/tokenize.json")
    vocabulary = run.parquet("timeline/vocabulary.parquet", ("token", "kind"))
    store = open_store(run.root / "timeline")
    if facts is None and vocabulary is None and store is None:
        raise MissingInputs("timeline/tokenize.json, timeline/vocabulary.parquet")
    parts: list[Any] = [
        paragraph("Each history is a sequence of tokens: a prompt of year, age, gender and race, then visits, codes, value bins and elapsed time.")
    ]
    children: list[tuple[str, str]] = []

    def add(identifier: str, title: str, content: Markup | None) -> None:
        if content:
            children.append((identifier, title))
            parts.extend([tag("h3", title, id=identifier), content])

    counts = store.counts(vocabulary.height) if store is not None and vocabulary is not None and vocabulary.height else None
    if store is not None:
        add("lengths", "How long histories are", histories(run, store, visit_starts(vocabulary) if vocabulary is not None else None))
    if vocabulary is not None and store is not None and counts is not None:
        add("budget", "Token budget", budget.spent(vocabulary, counts, store, run.tell))
    elif vocabulary is not None:
        add("budget", "The vocabulary", _kinds(vocabulary))
    if store is not None:
        add("epochs", "Tokens and training", budget.training(run, store, parameters(run)))
    if vocabulary is not None:
        add("left-out", "What the vocabulary leaves out", budget.left_out(run, store, vocabulary, facts or {}))
    parts += _account(run, facts or {})
    return Section("vocabulary", "Histories and tokens", join(parts), tuple(children))


def _kinds(vocabulary: pl.DataFrame) -> Markup:
    known = dict(vocabulary.group_by(pl.col("kind").cast(pl.Int64)).len().iter_rows())
    rows = [[name, count(sum(known.get(kind, 0) for kind in kinds))] for name, kinds in KINDS.items()]
    return table(["Kind of token", "Tokens"], [*rows, ["all", count(vocabulary.height)]], caption="The vocabulary by kind", class_="sum")


def _account(run: RunFolder, facts: dict[str, Any]) -> list[Markup]:
    """What else `tokenize.json` says, behind a line: plain entries, and lists of codes or changes as tables."""
    simple = [(readable(name), _said(run.tell, facts, name)) for name, v in facts.items() if not isinstance(v, (list, dict))]
    found = [definitions(simple[:24])] if simple else []
    for key, value in facts.items():
        if key == "splits":
            continue  # shown above
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            heads = list(dict.fromkeys(column for row in value[:15] for column in row))
            body = [[_cell(run, column, row.get(column)) for column in heads] for row in value[:15]]
            found.append(table([readable(head) for head in heads], body, caption=readable(key), left=1))
        elif isinstance(value, dict) and value:
            found.append(
                table(["What", "Value"], [[readable(name), scalar(item)] for name, item in flatten(value)[:60]], caption=readable(key), left=1)
            )
    return [details("The stage’s own account", *found)] if found else []


_SHARES = {"dropped_share": "events_dropped", "rolled_up_share": "events_rolled_up", "backed_off_share": "events_backed_off"}
_CODES = ("vocabulary", "codes_kept", "codes_dropped")  # counted, and nobody's


def _said(tell: Teller, facts: Mapping[str, Any], name: str) -> str:
    """One entry of the account: counts of people and of their rows as everywhere on the page."""
    value, of = facts[name], facts.get("events")
    if name in _SHARES and is_number(facts.get(_SHARES[name])) and is_number(of):
        return tell.share(facts[_SHARES[name]], of) or "–"
    if "share" in name and is_number(value):
        return percent(value)
    return scalar(value) if name in _CODES or isinstance(value, bool) or not isinstance(value, int) else tell(value)


def _cell(run: RunFolder, column: str, value: Any) -> Any:
    if column == "code" and isinstance(value, str):
        name = run.name(value)
        return join([shorten(name, 60), " ", tag("code", shorten(value, 60))]) if name != value else tag("code", shorten(value, 60))
    if column in ("events", "subjects", "patients") and is_number(value):
        return run.tell(value)
    return percent(value) if "share" in column and is_number(value) else scalar(value) if value is not None else None
