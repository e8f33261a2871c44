"""Units as readers know them: OMOP stores a unit as a concept id, and most extracts lack its name."""

from __future__ import annotations

from collections.abc import Mapping

UNITS = {
    "8554": "%", "8840": "mg/dL", "8753": "mmol/L", "8876": "mmHg", "9531": "kg/m²", "9529": "kg", "8582": "cm", "8749": "µmol/L",
    "8713": "g/dL", "9557": "mEq/L", "8636": "g/L", "8842": "ng/mL", "8845": "pg/mL", "8647": "/µL", "8848": "10³/µL", "8961": "10³/mm³",
    "8541": "/min", "8795": "mL/min", "720870": "mL/min/1.73 m²", "9117": "mL/min/1.73 m²", "8645": "U/L", "8923": "IU/L", "8653": "°C",
    "586323": "°C", "9289": "°F", "8785": "/mm³", "8817": "ng/dL", "8583": "fL", "8564": "pg", "8751": "mg/L", "8859": "µg/mL",
}  # fmt: skip
"""The commonest OMOP unit concepts."""


def unit_name(names: Mapping[str, str], unit: str | None) -> str:
    """A unit for people: its common symbol, the concept's name where the data has one, else the text as it is; empty where unknown."""
    if not unit or unit == "0":
        return ""
    return UNITS.get(unit) or names.get(unit) or names.get(f"unit/{unit}") or (f"unit {unit}" if unit.isdigit() else unit)
