"""What the reader of a forecast ought to know and no figure shows, in lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MUCH_REMOVED = 0.05  # of the probability of a token, by the grammar: a model that was trained for minutes is below a hundredth
_COMPLETE = 0.95  # share of answers that are known, below which one is told


def notes_of(summary: Mapping[str, Any]) -> list[str]:
    """What the reader ought to know of a forecast by futures with such a `Forecast.summary`, a line each."""
    instead = [f"{task}: by Monte Carlo, as {why}" for task, why in summary["monte_carlo_instead"].items()]
    unmet = [
        f"{task}: no future meets {', '.join(sets)}, which should compete: not in the vocabulary"
        for task, sets in summary["idle_competitors"].items()
    ]
    coarse = [
        f"{task}: bins of values lie across the bounds of {', '.join(asked)}, and count whole or not (tokenize --task FILE ends them there)"
        for task, asked in summary["across_bounds"].items()
        if task not in summary["monte_carlo_instead"]  # where the reason says so
    ]
    none, missed = summary["none_finished"], summary["error_above_target"]
    guessed = [f"no future was finished in {none:,} of {summary['rows']:,} rows: these risks are extrapolations"] if none else []
    completion = 1.0 if summary["completion"] is None else summary["completion"]
    if completion < _COMPLETE:
        guessed.append(f"{1 - completion:.0%} of futures end before the answer is known (completion): report the bounds{_remedy(summary['stopped'])}")
    if missed:
        used_up = summary["samples_used_up"]
        needed = summary["samples_needed"]
        enough = "more futures would have to be finished" if needed is None else f"about {needed:,} are enough"
        why = f"in {used_up:,} of them --samples were used up, some of which only decide how many are drawn: {enough}"
        small = "a smaller target would do"
        guessed.append(f"the standard error is above --target-std-error in {missed:,} of {summary['rows']:,} rows; {why if used_up else small}")
    removed = (summary["removed_by_grammar"] or {"per_token": 0.0})["per_token"]
    untaught = (
        [f"the model gave {removed:.0%} of its probability to tokens that cannot follow: it is hardly trained, and these risks say little"]
        if removed > _MUCH_REMOVED
        else []
    )
    return [*instead, *coarse, *unmet, *guessed, *untaught, *unanswered(summary)]


def _remedy(stopped: Mapping[str, int]) -> str:
    """What lets more futures end: where none ran out of tokens, it is stays that last longer than they are followed."""
    return (
        "; a larger --max-tokens (max_new_tokens) would help" if stopped["budget"] else "; stays go on for longer than they are simulated (stay_days)"
    )


def unanswered(summary: Mapping[str, Any]) -> list[str]:
    """A line where no row at all has a forecast: why not."""
    if not summary["rows"]:
        return [] if summary.get("left_to_other_shares") else ["there is nothing to forecast: the labels have no row that was asked for"]
    if summary["predicted"]:
        return []
    return [f"no row has a forecast: {'; '.join(f'{why} ({count:,})' for why, count in summary['refused'].items())}"]
