"""Names and ancestors of OMOP codes, from the vocabulary tables where there are any."""

from __future__ import annotations

import ibis
import polars as pl
from ibis.backends.duckdb import Backend

from cehrxgpt.sources.columns import Columns
from cehrxgpt.sources.database import fetch, reading
from cehrxgpt.sources.locate import SourceTable

CODES = {"code": pl.String(), "description": pl.String(), "parent_codes": pl.List(pl.String()), "origin": pl.String()}


def describe_codes(connection: Backend, codes: pl.DataFrame, concept: SourceTable | None, ancestor: SourceTable | None) -> pl.DataFrame:
    """`codes` (code, origin) with `description` and `parent_codes`.

    `parent_codes` lists *all* ancestors, not only the direct ones, so that a concept with its descendants is one look-up; an ancestor has
    the prefix of its descendant. Concept 0 and what is not `<prefix>/<number>` have neither.
    """
    parts = codes.with_columns(pl.col("code").str.extract_groups(r"^(?<prefix>[A-Za-z_]+/)(?<id>[0-9]+)$").alias("_parts")).unnest("_parts")
    parts = parts.with_columns(pl.col("id").cast(pl.Int64, strict=False))
    connection.con.register("used_concepts", parts.select("id").drop_nulls().unique().filter(pl.col("id") != 0).to_arrow())
    used = connection.table("used_concepts")
    names = pl.DataFrame(schema={"id": pl.Int64, "description": pl.String})
    parents = pl.DataFrame(schema={"id": pl.Int64, "ancestors": pl.List(pl.Int64)})
    if concept is not None:
        columns = Columns(concept)
        columns.require("concept_id")
        columns.require("concept_name")
        found = concept.relation.select(id=columns.integer("concept_id"), description=columns.text("concept_name"))
        columns.check()
        with reading(concept.where, "the OMOP table concept"):
            names = fetch(found.semi_join(used, "id").group_by("id").aggregate(description=ibis._.description.min()))
        names = names.cast({"id": pl.Int64, "description": pl.String})
    if ancestor is not None:
        columns = Columns(ancestor)
        columns.require("ancestor_concept_id")
        columns.require("descendant_concept_id")
        found = ancestor.relation.select(id=columns.integer("descendant_concept_id"), ancestor=columns.integer("ancestor_concept_id"))
        columns.check()
        with reading(ancestor.where, "the OMOP table concept_ancestor"):
            pairs = fetch(found.filter(found.id != found.ancestor).semi_join(used, "id"))
        pairs = pairs.cast({"id": pl.Int64, "ancestor": pl.Int64})
        parents = pairs.group_by("id").agg(pl.col("ancestor").unique().sort().alias("ancestors"))
    joined = parts.join(names, on="id", how="left").join(parents, on="id", how="left")
    prefixed = joined.explode("ancestors", empty_as_null=True).select(
        "code", pl.when(pl.col("ancestors").is_not_null()).then(pl.col("prefix") + pl.col("ancestors").cast(pl.String)).alias("parent")
    )
    lists = prefixed.group_by("code").agg(pl.col("parent").drop_nulls().alias("parent_codes"))
    return joined.join(lists, on="code", how="left").select(*CODES).cast(pl.Schema(CODES)).sort("code")
