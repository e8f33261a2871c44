"""The slow, obvious generator: one future at a time, the whole sequence read anew for every token, no cache, no batch.

It is what `cehrxgpt.rollout` must equal token for token in float64. It shares the grammar with it, and nothing else of the rollout.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from cehrxgpt.timeline.grammar import ADMITTED_PHASES, IN_VISIT_PHASES, Grammar, State
from cehrxgpt.timeline.kinds import TIME_KINDS, Kind
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.visits import SPAN_CLASSES, class_of

MASK = 2**64 - 1


def toy_vocabulary(codes: int = 4) -> Vocabulary:
    """Every kind of token, few of each: gaps around the edges that matter, all hours that a test's prediction time can tell apart."""
    rows = [{"token": "[PAD]", "kind": Kind.PAD}, {"token": "[BOS]", "kind": Kind.BOS}]
    rows += [{"token": f"year:{y}", "kind": Kind.YEAR, "amount": y} for y in (-1, 2010, 2011)]
    rows += [{"token": f"month:{m}", "kind": Kind.MONTH, "amount": m} for m in (1, 7)]
    rows += [{"token": f"age:{a}", "kind": Kind.AGE, "amount": a} for a in (-1, 40, 71)]
    rows += [{"token": f"age_months:{m}", "kind": Kind.AGE_MONTHS, "amount": m} for m in (0, 5)]
    rows += [{"token": f"gender:{g}", "kind": Kind.GENDER} for g in (0, 8532)]
    rows += [{"token": f"race:{r}", "kind": Kind.RACE} for r in (0, 8527)]
    rows += [{"token": "[VS]", "kind": Kind.VISIT_START}, {"token": "[VR]", "kind": Kind.VISIT_RESUME}, {"token": "[VE]", "kind": Kind.VISIT_END}]
    rows += [{"token": f"Visit/{c}", "kind": Kind.VISIT_TYPE, "code": f"Visit/{c}"} for c in ("inpatient", "outpatient")]
    rows += [{"token": f"stay:{d}", "kind": Kind.STAY_DAY, "amount": d} for d in (0, 3)]
    rows += [{"token": "discharge/8536", "kind": Kind.DISCHARGE, "code": "discharge/8536"}]
    rows += [{"token": f"D{d}", "kind": Kind.DAY_GAP, "amount": d, "minutes": d * 1440} for d in (0, 1, 2, 5, 30, 31, 200, 364, 365, 1079)]
    rows += [{"token": f"Y{y}", "kind": Kind.YEAR_GAP, "amount": y, "minutes": y * 365 * 1440} for y in (2, 3, 4)]
    rows += [{"token": f"i-D{d}", "kind": Kind.IN_VISIT_DAYS, "amount": d, "minutes": d * 1440} for d in (1, 2, 5, 31)]
    rows += [{"token": f"i-H{h}", "kind": Kind.IN_VISIT_HOURS, "amount": h, "minutes": h * 60} for h in (0, 1, 3, 9, 23)]
    rows += [{"token": f"condition/{c}", "kind": Kind.CODE, "code": f"condition/{c}"} for c in range(codes)]
    rows += [{"token": "MEDS_DEATH", "kind": Kind.DEATH, "code": "MEDS_DEATH"}, {"token": "[END]", "kind": Kind.END}]
    rows += [{"token": "[ICU]", "kind": Kind.ICU_START, "code": "VisitDetail/32037"}, {"token": "[/ICU]", "kind": Kind.ICU_END}]
    rows += [{"token": "drug/1", "kind": Kind.CODE, "code": "drug/1", "origin": "drug_exposure"}]
    rows += [{"token": f"days:{d}", "kind": Kind.DRUG_LENGTH, "amount": d} for d in (1, 8)]
    rows += [{"token": f"bin:{b}", "kind": Kind.BIN, "amount": b} for b in range(3)]
    for name, bins, origin in (("measurement/1", 3, "measurement"), ("measurement/2", 2, "measurement"), ("drug/2", 1, "drug_exposure")):
        inside = {"bin_edges": [float(b) for b in range(bins + 1)], "bin_quantiles": [[b, b + 0.5, b + 0.75] for b in range(bins)]}
        rows += [{"token": f"{name}[..]", "kind": Kind.LAB, "code": name, "origin": origin} | inside]
    return Vocabulary.from_rows([row | {"kind": int(row["kind"])} for row in rows], {})


def hashed_uniform(seed: int, subject_id: int, prediction_time, sample_id: int, step: int, attempt: int = 0) -> float:
    """The random number, in Python integers; `attempt` futures were given up before."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    when = -(2**63) if prediction_time is None else int(np.datetime64(prediction_time, "us").astype(np.int64))
    state = mix((seed + golden) & MASK)
    for word in (subject_id, when, sample_id, *([-attempt] if attempt else []), step):
        state = mix(state ^ mix(((word & MASK) + golden) & MASK))
    return (state >> 11) / 2**53


class Oracle:
    """Generates one future at a time."""

    def __init__(self, decoder, vocabulary, temperature=1.0):
        self.decoder, self.vocabulary, self.temperature = decoder, vocabulary, temperature
        self.grammar = Grammar(vocabulary)
        self.states: dict[tuple[int, ...], State] = {}

    def state(self, tokens) -> State:
        """The grammar's state after all of them, remembered for each beginning."""
        tokens = tuple(int(token) for token in tokens)
        if tokens not in self.states:
            last = np.array([tokens[-1:]]).reshape(-1)
            self.states[tokens] = self.grammar.advance(self.state(tokens[:-1]), last) if tokens else self.grammar.start(1)
        return self.states[tokens]

    def probabilities(self, tokens) -> np.ndarray:
        """The model's next-token distribution, float64[V], nothing masked."""
        _, age = self.grammar.follow(np.array([tokens]))
        with torch.no_grad():
            hidden = self.decoder(
                torch.tensor([tokens]), position=torch.arange(len(tokens))[None], age_minutes=torch.from_numpy(age.astype(np.int64))
            )
            logits = self.decoder.head(hidden[0, -1]) / self.temperature
        return torch.softmax(logits.double(), -1).numpy()

    def grammatical(self, tokens) -> np.ndarray:
        """The same, zero where the grammar (or the ban on resumed visits) forbids, not renormalised."""
        allowed = self.grammar.allowed[self.state(tokens).phase[0]] & (self.vocabulary.kind != Kind.VISIT_RESUME)
        return self.probabilities(tokens) * allowed

    def late_share(self, prompt, tokens, prediction_clock) -> float:
        """Probability that the first event after the prompt lies in a slot that reaches beyond the prediction time, given `tokens`
        (the prompt and perhaps time tokens), under the model and the grammar; what the table of `constraints` rules out counts 0."""
        verdict = self.verdict(prompt, tokens, prediction_clock)
        if verdict is not None:
            return verdict
        chances = self.grammatical(tokens)
        chances = chances / chances.sum()
        return sum(chances[t] * self.late_share(prompt, [*tokens, t], prediction_clock) for t in np.flatnonzero(chances > 0).tolist())

    def verdict(self, prompt, tokens, prediction_clock):
        """1 = late enough, 0 = not, None = not decided yet."""
        kinds, amounts = self.vocabulary.kind[tokens], self.vocabulary.amount[tokens]
        new = len(tokens) - len(prompt)
        before, here = self.state(tokens[:-1]), self.state(tokens)
        clock = int(here.clock_minutes[0])
        inside = int(here.phase[0]) in IN_VISIT_PHASES
        types = [t for t in prompt if self.vocabulary.kind[t] == Kind.VISIT_TYPE]
        hourly = bool(types) and class_of(self.vocabulary.code[types[-1]]) in SPAN_CLASSES
        slot = 60 if inside and hourly else 1440
        arrived = clock // slot >= (prediction_clock + 1) // slot
        if new == 0:
            return 1.0 if arrived else None
        kind, amount = int(kinds[-1]), int(amounts[-1])
        today = int(before.clock_minutes[0]) // 1440
        goal_day = (prediction_clock + 1) // 1440
        if int(before.phase[0]) in IN_VISIT_PHASES and not hourly:
            return None if kind == Kind.VISIT_END else 0.0
        if kind not in TIME_KINDS:
            return 0.0
        if kind == Kind.LONG_GAP:
            return 1.0
        if int(before.phase[0]) in ADMITTED_PHASES and kind == Kind.IN_VISIT_HOURS:
            return None if amount == 0 and today == goal_day else 0.0
        if arrived:
            return 1.0
        if kind == Kind.YEAR_GAP:
            return None
        if kind == Kind.IN_VISIT_DAYS:
            if clock // 1440 == goal_day:
                return None
            return None if amount == 31 and today + 31 < goal_day else 0.0
        return 0.0

    def next(self, prompt, tokens, prediction_clock) -> np.ndarray:
        """The distribution that the next token is drawn from, float64[V], not renormalised."""
        chances = self.grammatical(tokens)
        if prediction_clock is None or self.verdict(prompt, tokens, prediction_clock) is not None:
            return chances
        late = np.array([self.late_share(prompt, [*tokens, t], prediction_clock) if p > 0 else 0.0 for t, p in enumerate(chances)])
        return chances * late if (chances * late).sum() > 0 else chances

    def generate(self, prompt, sample_id: int, **options):
        """(new tokens, stop reason, log-probability) of one future of a `Prompt`: the first that does not say what is known not to have been."""
        for attempt in range(1000):
            written = self.attempt(prompt, sample_id, attempt, **options)
            if written is not None:
                return written
        return self.attempt(prompt, sample_id, 1000, **options, whatever=True)

    def said_to_be_past(self, prompt, tokens) -> bool:
        """Does the future among the tokens say of its last visit that it has hours and began on the prediction time's own date, before it?"""
        first, kinds = prompt.earliest_clock_minutes, self.vocabulary.kind[tokens]
        types = np.flatnonzero(kinds == Kind.VISIT_TYPE)
        if first is None or not len(types) or types[-1] < len(prompt.token_id) or types[-1] == len(tokens) - 1:
            return False
        inside = kinds[types[-1] + 1 :]
        if Kind.VISIT_END in inside[:-1] or not (
            class_of(self.vocabulary.code[tokens[types[-1]]]) in SPAN_CLASSES or inside[-1] in (Kind.IN_VISIT_HOURS, Kind.IN_VISIT_DAYS)
        ):
            return False
        said = types[-1] + 1 + (inside[0] == Kind.IN_VISIT_HOURS)
        begins = int(self.state(tokens[:said]).clock_minutes[0])
        return begins // 1440 == first // 1440 and begins // 60 < first // 60

    def attempt(self, prompt, sample_id: int, attempt: int, *, seed: int, max_new_tokens: int, stop_tokens=None, whatever: bool = False):
        """The same of one attempt; None where it is given up."""
        start = prompt.token_id.tolist()
        tokens, log_probability, unconfirmed, released = list(start), 0.0, False, False
        clock_at = prompt.prediction_clock_minutes
        horizon = math.inf if prompt.horizon_minutes is None else (clock_at or 0) + prompt.horizon_minutes
        event_seen = ended = False
        while True:
            new = len(tokens) - len(start)
            if new >= max_new_tokens or len(tokens) >= self.decoder.config.context:
                return tokens[len(start) :], "outcome" if unconfirmed else "budget", log_probability
            gap_is_open = not event_seen and clock_at is not None and self.verdict(start, tokens, clock_at) is None
            chances = self.next(start, tokens, clock_at if gap_is_open else None)
            released = released or (gap_is_open and self.late_share(start, tokens, clock_at) == 0)
            cumulative = np.cumsum(chances)
            uniform = hashed_uniform(seed, prompt.subject_id, prompt.prediction_time, sample_id, new, attempt)
            token = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
            log_probability += math.log(chances[token] / cumulative[-1])
            kind = int(self.vocabulary.kind[token])
            before = self.state(tokens)
            if not (whatever or released) and self.said_to_be_past(prompt, [*tokens, token]):
                return None
            if int(self.state([*tokens, token]).clock_minutes[0]) > horizon:
                if int(before.phase[0]) in ADMITTED_PHASES and kind == Kind.IN_VISIT_HOURS:
                    return tokens[len(start) : max(len(tokens) - 2, len(start))], "horizon", log_probability
                return tokens[len(start) :], "outcome" if unconfirmed else "horizon", log_probability
            tokens.append(token)
            if kind == prompt.until and not ended:
                ended, clock = True, max(int(self.state(tokens).clock_minutes[0]), -1 if clock_at is None else clock_at + 1)
                horizon = min(horizon, (clock // 1440 + 1) * 1440 - 1)
            event_seen = event_seen or kind not in (*TIME_KINDS, Kind.VISIT_END) or (kind == Kind.VISIT_END and self._hourly(start))
            if unconfirmed:
                return tokens[len(start) :], "outcome", log_probability
            if stop_tokens is not None and stop_tokens[token]:
                unconfirmed = kind == Kind.VISIT_TYPE
                if not unconfirmed:
                    return tokens[len(start) :], "outcome", log_probability
            if kind == Kind.DEATH:
                return tokens[len(start) :], "death", log_probability
            if kind == Kind.END:
                return tokens[len(start) :], "end", log_probability

    def _hourly(self, prompt) -> bool:
        types = [t for t in prompt if self.vocabulary.kind[t] == Kind.VISIT_TYPE]
        return bool(types) and class_of(self.vocabulary.code[types[-1]]) in SPAN_CLASSES
