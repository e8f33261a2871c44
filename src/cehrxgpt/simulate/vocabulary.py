"""The small vocabulary that comes with the tables: real OMOP concept ids, names in plain words of our own (vocabularies carry licences)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from cehrxgpt.simulate.cdm import frame

RELEASED = np.datetime64("2024-01-01")


def frames(names: Mapping[int, tuple[str, str, str]], ancestors: Sequence[tuple[int, int, int]], *, source: str) -> dict[str, pl.DataFrame]:
    """concept, concept_ancestor, vocabulary, cdm_source.

    Args:
        names: concept id -> (name, domain, vocabulary).
        ancestors: (ancestor, descendant, levels between); each concept is its own ancestor too, which need not be said.
        source: name of the source.
    """
    rows = sorted(names.items())
    vocabularies = sorted({vocabulary for _, (_, _, vocabulary) in rows})
    concept = frame("concept", {
        "concept_id": [key for key, _ in rows], "concept_name": [name for _, (name, _, _) in rows], "domain_id": [d for _, (_, d, _) in rows],
        "vocabulary_id": [v for _, (_, _, v) in rows], "concept_class_id": pl.lit("Simulated subset"), "standard_concept": pl.lit("S"),
        "concept_code": [str(key) for key, _ in rows], "valid_start_date": pl.lit(np.datetime64("1970-01-01")),
        "valid_end_date": pl.lit(np.datetime64("2099-12-31")),
    })  # fmt: skip
    climbs = sorted([(key, key, 0) for key, _ in rows if key] + list(ancestors))
    ancestor = frame("concept_ancestor", {
        "ancestor_concept_id": [row[0] for row in climbs], "descendant_concept_id": [row[1] for row in climbs],
        "min_levels_of_separation": [row[2] for row in climbs], "max_levels_of_separation": [row[2] for row in climbs],
    })  # fmt: skip
    vocabulary = frame("vocabulary", {
        "vocabulary_id": vocabularies, "vocabulary_name": [f"A few concepts of {name}, named in plain words" for name in vocabularies],
        "vocabulary_version": pl.lit("simulated"), "vocabulary_concept_id": pl.lit(0),
    })  # fmt: skip
    about = frame("cdm_source", {
        "cdm_source_name": [source], "cdm_source_abbreviation": ["cehrxgpt-simulate"], "cdm_holder": ["nobody"],
        "source_description": ["No real patients; see docs/simulator.md"], "source_release_date": pl.lit(RELEASED),
        "cdm_release_date": pl.lit(RELEASED), "cdm_version": ["5.4"], "cdm_version_concept_id": [756265], "vocabulary_version": ["simulated"],
    })  # fmt: skip
    return {"concept": concept, "concept_ancestor": ancestor, "vocabulary": vocabulary, "cdm_source": about}
