"""A slow, obvious labeler in plain Python: what the fast one must say."""

from __future__ import annotations

from datetime import datetime, timedelta

from cehrxgpt import schema as s
from cehrxgpt.visits import class_of
from task_samples import day_end


def after(event, moment):
    return event["time"] >= moment and event["available_time"] > moment


def in_set(task, name, event):
    return event["code"] in task.concept_sets[name].patterns


def allowed_by(event):
    """Some of the numbers that a result may stand for, all decisive ones among them; values and bounds are halves."""
    value = event["numeric_value"]
    if value is None or value != value:
        return []
    more, less = [value + step for step in (0.25, 0.5, 1, 100)], [value - step for step in (0.25, 0.5, 1, 100)]
    return {None: [value], ">": more, ">=": [value, *more], "<": less, "<=": [value, *less]}[event["operator"]]


def is_meant(task, asked, event):
    """Is the event of the concepts, and do all numbers that it may stand for lie in the range?"""
    if not in_set(task, asked.concepts, event):
        return False
    if (asked.above, asked.at_least, asked.below, asked.at_most) == (None, None, None, None):
        return True
    if asked.unit is not None and event["unit"] != asked.unit:
        return False
    numbers = allowed_by(event)
    return bool(numbers) and all(
        (asked.above is None or number > asked.above)
        and (asked.at_least is None or number >= asked.at_least)
        and (asked.below is None or number < asked.below)
        and (asked.at_most is None or number <= asked.at_most)
        for number in numbers
    )


def had(task, asked, events, moment):
    """Has the outcome been there at the moment?"""
    if asked.any or asked.all:
        return (any if asked.any else all)(had(task, part, events, moment) for part in asked.any or asked.all)
    before = [e for e in events if not after(e, moment)]
    if asked.concepts:
        return any(is_meant(task, asked, e) for e in before)
    return any(is_visit(e, asked.visit, moment) for e in before)


def first_time(task, asked, events, opens, closes):
    """When the outcome is first there in the window, or None."""
    if asked.any or asked.all:
        times = [first_time(task, part, events, opens, closes) for part in asked.any or asked.all]
        if asked.any:
            return min((time for time in times if time is not None), default=None)
        return None if None in times else max(times)
    hits = []
    for e in events:
        same_day = task.horizon_days == "stay" and e["code"] == s.DEATH and e["time"].date() == closes.date()
        if not after(e, opens) or not (e["time"] <= closes or same_day):
            continue
        if asked.death and e["code"] == s.DEATH:
            hits.append(e["time"])
        if asked.concepts and is_meant(task, asked, e):
            hits.append(e["time"])
        if asked.visit and is_visit(e, asked.visit):
            hits.append(e["time"])
    return min(hits, default=None)


def visit_minutes(event, until=None):
    if until is not None and (event["end_time"] is None or event["end_time"] > until):
        return (until - event["time"]).total_seconds() // 60 + 1
    return None if event["end_time"] is None else (event["end_time"] - event["time"]).total_seconds() / 60


def is_visit(event, classes, until=None):
    return event["code"].startswith("Visit/") and class_of(event["code"], visit_minutes(event, until)) in classes


def closed(events):
    """The events, visits without an end ending when their place of discharge is known."""
    known = {}
    for e in events:
        if e["code"].startswith("discharge/") and e["visit_id"] is not None:
            known[e["visit_id"]] = max(e["available_time"], known.get(e["visit_id"], e["available_time"]))
    return [
        e | {"end_time": max(e["time"], known[e["visit_id"]])}
        if e["code"].startswith("Visit/") and e["end_time"] is None and e["visit_id"] in known
        else e
        for e in events
    ]


def slow_index(task, events):
    """(prediction time, stay start, stay end) of one person."""
    index, found = task.index, []
    if index.visit:
        for event in events:
            if index.at == "end":
                if not is_visit(event, index.visit) or event["end_time"] is None:
                    continue
                moment = day_end(event["end_time"]) if event["time_precision"] == "day" else event["end_time"]
                places = [e for e in events if e["code"].startswith("discharge/") and e["visit_id"] == event["visit_id"] is not None]
                if index.discharge and not any(e["code"] in [f"discharge/{p}" for p in index.discharge] for e in places):
                    continue
                moment = max([moment] + [e["available_time"] for e in places])
            else:
                moment = max(event["time"] + timedelta(hours=index.hours_after), event["available_time"])
                if not is_visit(event, index.visit, moment) or not (event["end_time"] is None or event["end_time"] > moment):
                    continue
            inside = [e for e in events if e["visit_id"] == event["visit_id"] is not None and e["available_time"] <= moment]
            if index.contains and not any(in_set(task, index.contains, e) for e in inside):
                continue
            found.append((moment, event["time"], event["end_time"]))
    elif index.concepts and index.also:
        firsts = [[e["available_time"] for e in events if in_set(task, name, e)] for name in index.also]
        firsts.append([e["available_time"] for e in events if is_meant(task, index, e)])
        if all(firsts):
            found.append((max(min(times) for times in firsts), None, None))
    elif index.concepts:
        found = [(e["available_time"], None, None) for e in events if is_meant(task, index, e)]
    else:
        marks = (s.OBSERVATION_START, s.OBSERVATION_END, s.BIRTH)
        times = [e["time"] for e in events if e["code"] not in marks]
        if times:
            found.append((min(times) + timedelta(days=index.days_after_first_event), None, None))
    far = datetime(2100, 1, 1)
    found.sort(key=lambda one: (one[0], one[1] or far, one[2] or datetime(1900, 1, 1)))
    distinct = {}
    for one in found:
        distinct.setdefault(one[0], one)
    ordered = [distinct[moment] for moment in sorted(distinct)]
    if index.occurrence == "each" or not ordered:
        return ordered
    return [ordered[0] if index.occurrence == "first" else ordered[-1]]


def slow_label(task, events, moment, stay_start, stay_end):
    """The label of one row, or "drop"."""
    content = [e for e in events if e["code"] != s.BIRTH]
    until = max([e["available_time"] for e in content] + [e["end_time"] for e in content if e["code"].startswith("Visit/") and e["end_time"]])
    since = min(e["time"] for e in content)
    grace = timedelta(days=task.grace_days)
    died_in_stay = bool(task.index.visit) and task.index.at == "end" and not task.index.discharge
    for e in events:
        if e["code"] == s.DEATH and (not after(e, moment) or (died_in_stay and e["time"].date() == stay_end.date())):
            return "drop"
    if task.censoring != "closed_world" and until + grace < moment:
        return "drop"
    if task.history_days and since > moment - timedelta(days=task.history_days):
        return "drop"
    for one in task.inclusion:
        known = [e for e in events if is_meant(task, one, e) and e["available_time"] <= moment]
        if one.within_days:
            known = [e for e in known if e["time"] > moment - timedelta(days=one.within_days)]
        if len(known) < one.count:
            return "drop"
    if any(is_meant(task, one, e) and not after(e, moment) for one in task.exclusion for e in events):
        return "drop"
    if (task.first_onset or task.recurrence) and had(task, task.outcome, events, moment) != task.recurrence:
        return "drop"
    death = min([e["time"] for e in events if e["code"] == s.DEATH and after(e, moment)], default=None)
    opens = moment + timedelta(days=task.gap_days)
    outcome = None
    if task.outcome.stay_over_days is not None:
        if stay_end is None:
            return None
        limit = stay_start + timedelta(days=task.outcome.stay_over_days)
        closes = min(limit, stay_end)
        outcome = limit if stay_end > limit else None
    else:
        closes = stay_end if task.horizon_days == "stay" else opens + timedelta(days=task.horizon_days)
        if closes is None:
            return None
        outcome = first_time(task, task.outcome, events, opens, closes)
    if death is not None and outcome is not None and death < outcome:
        outcome = None
    others = [first_time(task, one, events, moment, closes) for one in task.competing]
    competing = min((time for time in others if time is not None), default=None)
    if competing is not None and (outcome is None or competing < outcome):
        return False
    if outcome is not None:
        return True
    if death is not None and death <= closes:
        return False
    if task.censoring == "closed_world" or until + grace >= closes:
        return False
    return None


def slow_labels(task, rows):
    labels = {}
    for subject in sorted({r["subject_id"] for r in rows}):
        events = closed([r for r in rows if r["subject_id"] == subject])
        for moment, stay_start, stay_end in slow_index(task, events):
            value = slow_label(task, events, moment, stay_start, stay_end)
            if value != "drop":
                labels[subject, moment] = value
    return labels
