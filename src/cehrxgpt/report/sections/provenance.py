"""Where it all comes from: the stages and their times, versions, seeds, fingerprints."""

from __future__ import annotations

import re
from typing import Any

from cehrxgpt.report.markup import Markup, Section, definitions, details, duration, is_number, join, number, paragraph, readable, shorten, table, tag
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.sections.data import flatten
from cehrxgpt.report.suppress import Teller


def stages(run: RunFolder) -> list[dict[str, Any]]:
    """The stages of `run.json`, as objects."""
    listed = (run.json("run.json") or {}).get("stages", [])
    return [stage for stage in listed if isinstance(stage, dict)] if isinstance(listed, list) else []


def section(run: RunFolder) -> Section:
    """The chapter.

    Raises:
        MissingInputs: neither run.json nor manifests.
    """
    facts = run.json("run.json")
    manifests = {name: run.json(f"manifests/{name}.json") or {} for name in run.stems("manifests", "*.json")}
    if facts is None and not manifests:
        raise MissingInputs("run.json, manifests/")
    parts: list[Any] = []
    if rows := _stage_rows(run):
        seconds = [stage["seconds"] for stage in stages(run) if is_number(stage.get("seconds"))]
        parts.append(
            paragraph(f"The stages took {duration(sum(seconds))} in all; a stage that still held from an earlier run counts the time it took then.")
        )
        parts.append(table(["Stage", "Status", "Finished", "Took", "Figures"], rows, caption="Stages of the run", left=5))
    versions: Any = (facts or {}).get("versions") or next((m["versions"] for m in manifests.values() if isinstance(m.get("versions"), dict)), {})
    if isinstance(versions, dict) and versions:
        parts += [tag("h3", "Versions"), definitions((name, str(version)) for name, version in versions.items())]
    parts += _recipe(facts)
    parts += _fingerprints(run, manifests)
    return Section("provenance", "Provenance", join(parts))


def _stage_rows(run: RunFolder) -> list[list[Any]]:
    rows = []
    for stage in stages(run):
        status = "still held" if stage.get("skipped") else str(stage.get("status", "–"))
        when = str(stage.get("finished") or "–").replace("T", " ")[:16]
        cells = [_whole(status), _whole(when), _whole(duration(stage.get("seconds")))]
        rows.append([readable(str(stage.get("name", "?"))), *cells, tag("span", _figures(run, stage), class_="figures")])
    return rows


def _whole(value: str) -> Markup:
    return tag("span", value, class_="whole")


_RESULTS = ("probe", "evaluate")  # what they found stands in its own chapter, with its interval or not at all
_NOBODYS = frozenset(("steps", "step", "seen", "parameters", "width", "codes", "vocabulary", "seed", "threads", "seconds", "notes"))
"""Words in the names of whole numbers that count neither people nor their rows."""


def _figures(run: RunFolder, stage: dict[str, Any]) -> str:
    """The first figures of a stage; of people and of their rows as everywhere else."""
    if stage.get("name") in _RESULTS:
        return ""
    tell = Teller(exact=True) if stage.get("name") == "synthesize" else run.tell  # whom the model wrote is nobody
    figures = [(name, value) for name, value in flatten(stage.get("figures") or {}, depth=2) if is_number(value)]
    return "; ".join(f"{readable(name)} {_figure(name, value, tell)}" for name, value in figures[:5])


def _figure(name: str, value: float, tell: Teller) -> str:
    """What is no whole number counts nobody: a loss on `train`."""
    if not isinstance(value, int):
        return number(value, 3)
    return f"{value:,}" if not _NOBODYS.isdisjoint(re.split(r"[^a-z]+", name.lower())) else tell(value)


def _recipe(facts: dict[str, Any] | None) -> list[Markup]:
    if not facts:
        return []
    recipe = facts.get("recipe")
    pairs = [(name, str(facts[name]).replace("T", " ")[:19]) for name in ("started", "finished") if facts.get(name)]
    seeds = [(name, value) for name, value in flatten(recipe) if name.split(" · ")[-1] == "seed"]
    found = [tag("h3", "Seeds and recipe"), definitions([*pairs, *((name, str(value)) for name, value in seeds)])]
    if isinstance(recipe, dict):
        found.append(details("The whole recipe", definitions((readable(name), shorten(str(value), 300)) for name, value in flatten(recipe, depth=4))))
    elif recipe:
        found.append(paragraph("Recipe: ", tag("code", str(recipe))))
    return found


def _fingerprints(run: RunFolder, manifests: dict[str, dict[str, Any]]) -> list[Markup]:
    rows = []
    for name, manifest in manifests.items():
        inputs = manifest.get("inputs")
        read = ", ".join(f"{key} {value}" for key, value in inputs.items()) if isinstance(inputs, dict) else ""
        rows.append([readable(name), tag("code", str(manifest.get("key", "–"))), tag("code", read) if read else "–"])
    extra = [
        ("vocabulary of the model", (run.json("model/config.json") or {}).get("vocabulary_fingerprint")),
        ("vocabulary of the token store", (run.json("timeline/meta.json") or {}).get("vocabulary")),
    ]
    rows += [[name, tag("code", str(value)), "–"] for name, value in extra if value]
    if not rows:
        return []
    rows.sort(key=lambda row: str(row[0]))
    inner = table(["Stage", "Key", "Inputs and the fingerprints of their contents"], rows, caption="A stage runs again when its key changes", left=3)
    return [details("Fingerprints", inner)]
