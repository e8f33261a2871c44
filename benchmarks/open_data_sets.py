"""What the open data sets come to: events kept, visits recovered, labels of every library task. Prints the tables of docs/open-data-sets.md.

Usage: python benchmarks/open_data_sets.py [FOLDER]   (default: $CEHRXGPT_DATA, else ../shared/data)
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from cehrxgpt.events import EventDataset
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.tasks import label, library_tasks

SETS = ("mimic_iv_demo_meds", "mimic_iv_demo_omop53", "gibleed_omop53", "synthea27nj_omop54")


def main() -> None:
    """Ingest and label each set; print two Markdown tables."""
    default = os.environ.get("CEHRXGPT_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    data = Path(sys.argv[1] if len(sys.argv) > 1 else default)
    if not data.is_dir():
        print(f"skipped: the open data sets are not at {data.name}/; set CEHRXGPT_DATA")
        return
    accounts, counts = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in SETS:
            started = time.perf_counter()
            dataset: EventDataset = ingest(data / name, Path(scratch) / name, IngestConfig())
            account = json.loads((dataset.root / "ingest.json").read_text(encoding="utf-8"))
            accounts[name] = account | {"seconds": time.perf_counter() - started}
            counts[name] = {task: label(dataset, task).counts for task in library_tasks()}
    print("| set | subjects | rows read | dropped | events | visits recovered | seconds |\n|---|---:|---:|---:|---:|---|---:|")
    for name, account in accounts.items():
        tables = account["tables"].values()
        dropped = sum(sum(table["dropped"].values()) for table in tables)
        visits = ", ".join(f"{count:,} {kind}" for kind, count in account["visits_recovered"].items() if kind != "total" and count)
        row = [name, f"{account['subjects']['total']:,}", f"{sum(table['read'] for table in tables):,}", f"{dropped:,}"]
        print("| " + " | ".join([*row, f"{account['events']['total']:,}", visits, f"{account['seconds']:.1f}"]) + " |")
    print("\n| task | " + " | ".join(SETS) + " |\n|---|" + "---:|" * len(SETS))
    for task in library_tasks():
        cells = [counts[name][task] for name in SETS]
        texts = [f"{cell['positive']} / {cell['negative']} / {cell['null']}" if cell["rows"] else "nobody" for cell in cells]
        print(f"| `{task}` | " + " | ".join(texts) + " |")


if __name__ == "__main__":
    main()
