"""The generator: equal to the slow oracle, exact in its conditioning, complete in its output, honest in its stops."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from signal import SIGINT, default_int_handler, pthread_kill, signal
from threading import Barrier, Lock, get_ident, main_thread
from time import sleep

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.errors import ConfigError, InputError, MismatchError
from cehrxgpt.model import cache
from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.documents import LIKE_LENGTH
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout import Prompt, rollout, sampler
from cehrxgpt.rollout.engine import Share, _Engine
from cehrxgpt.rollout.reader import Reader
from cehrxgpt.timeline.grammar import Grammar, Phase
from cehrxgpt.timeline.kinds import Kind
from oracle_rollout import Oracle, hashed_uniform, toy_vocabulary

VOCABULARY = toy_vocabulary()
DEMOGRAPHICS = "[BOS] year:2011 month:7 age:71 age_months:5 gender:8532 race:8527"
DAY = 1440
INSIDE = (Phase.IN_VISIT, Phase.IN_VISIT_DRUG, Phase.IN_ICU, Phase.IN_ICU_DRUG)


def make_decoder(seed: int = 0, context: int = 48, dtype: torch.dtype = torch.float64, sharpness: float = 12.0) -> Decoder:
    torch.manual_seed(seed)
    shape = {"vocabulary_size": len(VOCABULARY), "care_settings": VOCABULARY.care_settings, "context": context}
    decoder = Decoder(ModelConfig(width=16, layers=2, heads=2, kv_heads=2, **shape))
    with torch.no_grad():
        decoder.embedding.weight.mul_(sharpness)
        decoder.care_setting.embedding.weight.mul_(sharpness)
    return decoder.to(dtype).eval()


def ids(text: str) -> np.ndarray:
    return np.array([VOCABULARY.id_of(token) for token in text.split()])


def make_prompt(history: str, subject: int = 1, **facts) -> Prompt:
    return Prompt(token_id=ids(f"{DEMOGRAPHICS} {history}"), subject_id=subject, **facts)


def stops(*tokens: str) -> np.ndarray:
    stop = np.zeros(len(VOCABULARY), dtype=bool)
    stop[[VOCABULARY.id_of(token) for token in tokens]] = True
    return stop


def words(tokens) -> list[str]:
    return [VOCABULARY.token[token] for token in tokens]


# What a history can end with, and prediction times that exercise every row of the table in `constraints`.
ENDINGS = [
    ("condition/1", None),
    ("condition/1", 5 * 60),  # same day: nothing is known to have been missed
    ("condition/1", DAY - 1),  # the last minute of the day: the day is over
    ("condition/1 condition/2", 31 * DAY + 600),
    ("condition/1", 400 * DAY),
    ("condition/1", (3 * 365 + 200) * DAY + 700),  # a year token on the boundary
    ("condition/1", 9000 * DAY),  # longer than the vocabulary can say
    ("[VS] Visit/outpatient condition/0 [VE]", 2 * DAY + 60),
    ("[VS] Visit/outpatient condition/0", 2 * DAY + 60),  # an open visit without hours
    ("[VS] Visit/inpatient i-H9 condition/0", 9 * 60 + 30),
    ("[VS] Visit/inpatient i-H9 condition/0", 17 * 60 + 5),
    ("[VS] Visit/inpatient i-H9 condition/0", 9 * 60 + 59),  # the last minute of the hour
    ("[VS] Visit/inpatient i-H9 condition/0", 2 * DAY + 10 * 60),  # i-D on the boundary
    ("[VS] Visit/inpatient i-H9 condition/0", 2 * DAY - 1),  # the goal's hour is midnight
    ("[VS] Visit/inpatient i-H9", 10 * 60),  # only admitted
    ("[VS] Visit/inpatient", 3 * 60 + 1),  # admitted in the first hour of a day
    ("[VS] Visit/inpatient", DAY + 3 * 60),
    ("[VS] Visit/inpatient i-H9 condition/0", 40 * DAY + 60),  # beyond the longest step
    ("[VS] Visit/inpatient i-H9 condition/0 discharge/8536 [VE]", 12 * DAY),
    ("[VR] Visit/inpatient stay:3 i-H3 condition/2", DAY + 10 * 60),
    ("[VS] Visit/inpatient i-H9 [ICU]", 9 * 60 + 30),  # intensive care begins in the hour of the prediction
    ("[VS] Visit/inpatient i-H9 [ICU] condition/0 drug/1", DAY + 10 * 60),
    ("[VS] Visit/inpatient i-H9 [ICU] condition/0 [/ICU]", 2 * DAY + 10 * 60),
    ("[VR] Visit/inpatient [ICU] stay:3 i-H3 drug/1 days:8", DAY + 10 * 60),
    ("[VR] Visit/inpatient [ICU] stay:0", 3 * 60 + 1),
    ("drug/1", 5 * 60),
    ("drug/1 days:1", 31 * DAY + 600),
    ("measurement/1[..] bin:2", 5 * 60),
    ("[VS] Visit/inpatient i-H9 drug/2[..] bin:0", 17 * 60 + 5),
]
PROMPTS = [
    make_prompt(history, subject, prediction_clock_minutes=clock, horizon_minutes=700 * DAY) for subject, (history, clock) in enumerate(ENDINGS)
]
PROMPTS.append(Prompt(token_id=ids("[BOS]"), subject_id=-5))
PROMPTS.append(make_prompt("[VS] Visit/inpatient [ICU] measurement/2[..]", subject=-6, horizon_minutes=700 * DAY))  # a window of a future ends here


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_futures_equal_the_oracle_token_for_token_whatever_the_batch(data):
    decoder = make_decoder(data.draw(st.integers(0, 3)))
    chosen = data.draw(st.lists(st.sampled_from(range(len(PROMPTS))), min_size=1, max_size=5, unique=True))
    samples, rows, seed = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9)), data.draw(st.integers(0, 2**63 - 1))
    stop = data.draw(st.sampled_from([None, stops("condition/3"), stops("Visit/inpatient", "MEDS_DEATH")]))
    until = data.draw(st.sampled_from([None, Kind.VISIT_END, Kind.ICU_END]))
    prompts = [replace(PROMPTS[index], until=until) for index in chosen]
    result = rollout(decoder, VOCABULARY, prompts, samples=samples, seed=seed, max_new_tokens=7, batch_rows=rows, stop_tokens=stop)
    oracle = Oracle(decoder, VOCABULARY)
    assert result.prompt_index.tolist() == np.repeat(np.arange(len(prompts)), samples).tolist()
    for row in range(len(result)):
        prompt, sample = prompts[result.prompt_index[row]], int(result.sample_id[row])
        tokens, reason, log_probability = oracle.generate(prompt, sample, seed=seed, max_new_tokens=7, stop_tokens=stop)
        assert words(result.tokens_of(row)) == words(tokens)
        assert result.stop_reason[row] == reason
        assert result.log_probability[row] == pytest.approx(log_probability, abs=1e-9)


def test_futures_that_say_an_hour_that_is_past_are_drawn_anew_as_the_oracle_does():
    decoder, stop = make_decoder(5, sharpness=2.0), stops("Visit/inpatient")
    oracle = Oracle(decoder, VOCABULARY)
    clocks = (DAY + 600, 2 * DAY + 1370, 2 * DAY - 1)  # the last at the day's end, when nothing of the day is left to contradict
    prompts = [make_prompt("condition/1", subject, prediction_clock_minutes=clock) for subject, clock in enumerate(clocks)]
    options = {"seed": 4, "max_new_tokens": 12, "stop_tokens": stop}
    together = rollout(decoder, VOCABULARY, prompts, samples=200, batch_rows=170, **options)
    anew = np.flatnonzero(together.given_up)
    assert np.bincount(together.prompt_index[anew], minlength=3).astype(bool).tolist() == [True, True, False]
    assert together.conditioned.all()
    for row in (*anew, 7, 250, 450):
        prompt, sample = prompts[together.prompt_index[row]], int(together.sample_id[row])
        tokens, reason, log_probability = oracle.generate(prompt, sample, **options)
        assert words(together.tokens_of(row)) == words(tokens)
        assert together.stop_reason[row] == reason
        assert together.log_probability[row] == pytest.approx(log_probability, abs=1e-9)
        assert (oracle.attempt(prompt, sample, 0, **options) is None) == (row in anew)
        alone = rollout(decoder, VOCABULARY, [prompt], samples=1, first_sample=sample, batch_rows=2, **options)
        assert alone.tokens_of(0).tolist() == together.tokens_of(row).tolist()
        assert alone.given_up[0] == together.given_up[row]


def test_a_future_does_not_depend_on_its_companions():
    decoder = make_decoder(1)
    together = rollout(decoder, VOCABULARY, PROMPTS, samples=6, seed=3, max_new_tokens=16, batch_rows=17)
    backwards = rollout(decoder, VOCABULARY, PROMPTS[::-1], samples=6, seed=3, max_new_tokens=16, batch_rows=64)
    for index, prompt in list(enumerate(PROMPTS))[::3]:
        alone = rollout(decoder, VOCABULARY, [prompt], samples=4, seed=3, max_new_tokens=16, batch_rows=2, first_sample=2)
        for row in range(4):
            expected = alone.tokens_of(row).tolist()
            assert together.tokens_of(6 * index + 2 + row).tolist() == expected
            assert backwards.tokens_of(6 * (len(PROMPTS) - 1 - index) + 2 + row).tolist() == expected


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_conditioning_on_the_gap_is_exact(index):
    """Total variation between the first token's distribution and brute-force enumeration, and the mass that was conditioned on."""
    decoder, prompt = make_decoder(2), PROMPTS[index]
    oracle, start = Oracle(decoder, VOCABULARY), prompt.token_id.tolist()
    expected = oracle.next(start, start, prompt.prediction_clock_minutes)
    with torch.inference_mode():
        engine = _Engine(Reader(decoder), VOCABULARY, [prompt], 1, 0, None, 4, None, 1.0, 0)
        following = engine._read(np.array([0])).next
    weights = following.weights[0].numpy()
    assert 0.5 * np.abs(weights / weights.sum() - expected / expected.sum()).sum() < 1e-12
    kept = 1.0 if prompt.prediction_clock_minutes is None else oracle.late_share(start, start, prompt.prediction_clock_minutes)
    result = rollout(decoder, VOCABULARY, [prompt], samples=5, seed=0, max_new_tokens=4)
    assert (result.conditioned == (kept > 0)).all()
    if kept > 0:
        assert result.gap_log_mass == pytest.approx(np.log(kept), abs=1e-9)


def test_whole_futures_follow_the_conditional_distribution():
    """A negative control with it: draws from a model that has one way to be late; frequencies against enumeration."""
    decoder = make_decoder(4, sharpness=4.0)
    prompt = make_prompt("condition/1", prediction_clock_minutes=(3 * 365 + 200) * DAY)
    result = rollout(decoder, VOCABULARY, [prompt], samples=4000, seed=1, max_new_tokens=2, batch_rows=512)
    oracle, start = Oracle(decoder, VOCABULARY), prompt.token_id.tolist()
    first = oracle.next(start, start, prompt.prediction_clock_minutes)
    drawn = np.bincount([result.tokens_of(row)[0] for row in range(len(result))], minlength=len(VOCABULARY)) / len(result)
    assert 0.5 * np.abs(drawn - first / first.sum()).sum() < 0.03
    plain = oracle.grammatical(start)
    assert 0.5 * np.abs(drawn - plain / plain.sum()).sum() > 0.3, "the control: without conditioning the distribution is another"
    three = VOCABULARY.id_of("Y3")
    second = np.array([result.tokens_of(row)[1] for row in range(len(result)) if result.tokens_of(row)[0] == three])
    assert set(words(second)) <= {"D200", "D364"}, "after the year on the boundary only late remainders come"
    late = oracle.next(start, [*start, three], prompt.prediction_clock_minutes)
    share = late[VOCABULARY.id_of("D200")] / late.sum()
    assert abs((second == VOCABULARY.id_of("D200")).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(second)) + 1e-9


def test_nothing_generated_lies_before_the_prediction_time():
    decoder = make_decoder(5, sharpness=3.0)
    result = rollout(decoder, VOCABULARY, PROMPTS, samples=20, seed=9, max_new_tokens=8)
    kinds = VOCABULARY.kind
    grammar = Grammar(VOCABULARY)
    events = [int(kind) for kind in (Kind.CODE, Kind.VISIT_TYPE, Kind.DEATH)]
    for row in range(len(result)):
        prompt = PROMPTS[result.prompt_index[row]]
        clock = prompt.prediction_clock_minutes
        if clock is None or not result.conditioned[row]:
            continue
        tokens = result.tokens_of(row)
        seen = np.flatnonzero(np.isin(kinds[tokens], events))
        if len(seen):
            state, _ = grammar.follow(np.concatenate([prompt.token_id, tokens[: seen[0] + 1]])[None])
            slot = 60 if state.phase[0] in INSIDE and kinds[tokens[0]] not in (Kind.VISIT_END, Kind.DAY_GAP, Kind.YEAR_GAP) else DAY
            assert state.clock_minutes[0] // slot >= (clock + 1) // slot, words(tokens)
            assert (result.clock_minutes[result.offsets[row] : result.offsets[row + 1]] > clock).all()


def test_every_future_asked_for_is_there_once_and_is_a_sentence():
    """Also prompts that end in death, leave no room or start beyond the horizon, and batches that do not divide the number of rows."""
    decoder = make_decoder(6, sharpness=3.0, context=24)
    prompts = [
        *PROMPTS,
        make_prompt("condition/1 D5 MEDS_DEATH", 100),
        make_prompt("condition/1 D5 MEDS_DEATH [END]", 101),
        make_prompt("condition/1 " * 17, 102),
        make_prompt("condition/1 D200 condition/2", 103, horizon_minutes=100 * DAY),
    ]
    grammar = Grammar(VOCABULARY)
    for rows, samples in ((1, 1), (5, 3), (64, 5)):
        done: dict[int, int] = {}  # futures done -> asked for, as they were told
        result = rollout(decoder, VOCABULARY, prompts, samples=samples, seed=2, batch_rows=rows, progress=done.__setitem__)
        assert len(result) == len(prompts) * samples == list(done)[-1] == list(done.values())[-1]
        assert result.subject_id.tolist() == [prompt.subject_id for prompt in prompts for _ in range(samples)]
        assert result.sample_id.tolist() == list(range(samples)) * len(prompts)
        assert sum(result.stopped().values()) == len(result)
        for row in range(len(result)):
            prompt, tokens = prompts[result.prompt_index[row]], result.tokens_of(row)
            state, age = grammar.follow(np.concatenate([prompt.token_id, tokens])[None])
            assert state.phase[0] >= 0
            assert VOCABULARY.id_of("[VR]") not in tokens
            assert result.phase[row] == state.phase[0]
            assert result.state_clock_minutes[row] == state.clock_minutes[0]
            assert result.age_minutes[row] == age[0, -1]
            assert len(prompt.token_id) + len(tokens) <= 24
    reasons = dict(zip(result.subject_id.tolist(), result.stop_reason.tolist(), strict=True))
    assert [reasons[subject] for subject in (100, 101, 102, 103)] == ["death", "end", "budget", "horizon"]
    assert (result.tokens[result.subject_id >= 100] == 0).all()


def test_no_event_lies_beyond_the_horizon():
    """Also not a visit whose hour, the token after its type, says that it began too late."""
    decoder = make_decoder(7, sharpness=3.0)
    horizon = 5 * DAY + 2 * 60
    prompts = [make_prompt("condition/1", subject, prediction_clock_minutes=DAY, horizon_minutes=horizon - DAY) for subject in range(20)]
    grammar = Grammar(VOCABULARY)
    result = rollout(decoder, VOCABULARY, prompts, samples=30, seed=5, max_new_tokens=24)
    trimmed = 0
    for row in range(len(result)):
        tokens = result.tokens_of(row)
        whole = np.concatenate([prompts[0].token_id, tokens])
        state, _ = grammar.follow(whole[None])
        assert state.clock_minutes[0] <= horizon
        assert result.end_clock_minutes[row] <= horizon
        if result.stop_reason[row] == "horizon":
            assert result.end_clock_minutes[row] == horizon
            trimmed += result.drawn[row] - len(tokens) == 3
        else:
            assert result.drawn[row] == len(tokens)
    assert trimmed > 0, "no visit was dropped for its hour: the test has lost its point"


def test_a_future_stops_at_the_first_outcome_and_a_visit_with_its_hour():
    decoder = make_decoder(8, sharpness=3.0)
    prompts = [make_prompt("condition/1", subject) for subject in range(20)]
    stop = stops("condition/3", "Visit/inpatient")
    result = rollout(decoder, VOCABULARY, prompts, samples=20, seed=5, stop_tokens=stop)
    free = rollout(decoder, VOCABULARY, prompts, samples=20, seed=5)
    assert 0 < (result.stop_reason == "outcome").sum() < len(result)
    for row in range(len(result)):
        tokens = result.tokens_of(row)
        first = np.flatnonzero(stop[free.tokens_of(row)])
        assert (result.stop_reason[row] == "outcome") == (len(first) > 0)
        if len(first):
            is_type = words(free.tokens_of(row))[first[0]] == "Visit/inpatient"
            assert tokens.tolist() == free.tokens_of(row)[: first[0] + 1 + is_type].tolist()


def test_ages_of_a_patient_written_from_nothing_follow_from_what_was_sampled():
    decoder = make_decoder(9, sharpness=2.0)
    prompts = [Prompt(token_id=ids("[BOS]"), subject_id=subject, horizon_minutes=1000 * DAY) for subject in range(60)]
    result = rollout(decoder, VOCABULARY, prompts, samples=1, seed=5)
    assert len({tuple(result.tokens_of(row)[:6]) for row in range(60)}) > 10
    for row in range(60):
        tokens = result.tokens_of(row)
        assert [Kind(int(kind)) for kind in VOCABULARY.kind[tokens[:6]]] == list(Kind)[2:8]
        _, age = Grammar(VOCABULARY).follow(np.concatenate([ids("[BOS]"), tokens])[None])
        assert result.age_minutes[row] == age[0, -1]
        years = VOCABULARY.amount[tokens[2]]
        assert result.age_minutes[row] >= max(years, 0) * 12 * 43830


def test_the_mass_that_the_grammar_takes_away_is_reported():
    decoder = make_decoder(0)
    with torch.no_grad():
        decoder.norm.weight.zero_()  # all logits 0: the model is uniform
    result = rollout(decoder, VOCABULARY, [make_prompt("condition/1")], samples=5, seed=0, max_new_tokens=1)
    allowed = Grammar(VOCABULARY).allowed[Phase.BARE].sum() / len(VOCABULARY)
    assert result.removed_mass == pytest.approx(1 - allowed)
    assert result.log_probability == pytest.approx(-np.log(Grammar(VOCABULARY).allowed[Phase.BARE].sum()))


def test_a_model_that_gives_no_mass_to_what_may_follow_still_draws_it():
    decoder = make_decoder(0, dtype=torch.float32)
    wrong = VOCABULARY.id_of("[PAD]")
    with torch.no_grad():
        direction = decoder.head(torch.eye(16))  # make [PAD] win by hundreds of nats everywhere
        decoder.embedding.weight[wrong] = 0
        decoder.norm.weight.zero_()
        decoder.norm.weight[0] = 1.0
    logits = torch.full((2, len(VOCABULARY)), -500.0)
    logits[:, wrong] = 500.0
    logits[:, VOCABULARY.id_of("condition/2")] = -499.0
    table, phase = torch.from_numpy(Grammar(VOCABULARY).allowed).float(), torch.tensor([Phase.BARE, Phase.BARE])
    allowed = table[phase]
    weights, share = sampler.masked_weights(logits, table, phase)
    assert share.tolist() == [0, 0]
    assert weights.argmax(-1).tolist() == [VOCABULARY.id_of("condition/2")] * 2
    assert weights.sum(-1) == pytest.approx(1 + (allowed[0].sum().item() - 1) * np.exp(-1))
    assert direction.shape == (16, len(VOCABULARY))
    weights, share = sampler.masked_weights(torch.full((2, len(VOCABULARY)), float("-inf")), table, phase)
    assert share.tolist() == [0, 0]
    assert weights.tolist() == allowed.double().tolist()


def test_temperature_sharpens_and_no_token_is_cut_off_at_one():
    decoder = make_decoder(3, sharpness=3.0)
    prompt = make_prompt("condition/1")
    full = Oracle(decoder, VOCABULARY).grammatical(prompt.token_id.tolist())
    hot = rollout(decoder, VOCABULARY, [prompt], samples=3000, seed=0, max_new_tokens=1)
    cold = rollout(decoder, VOCABULARY, [prompt], samples=3000, seed=0, max_new_tokens=1, temperature=0.3)
    assert len(np.unique(hot.token_id)) == (full > 0).sum(), "every allowed token of the toy vocabulary comes up"
    assert np.bincount(cold.token_id).max() > 1.5 * np.bincount(hot.token_id).max()
    expected = Oracle(decoder, VOCABULARY, temperature=0.3).grammatical(prompt.token_id.tolist())
    drawn = np.bincount(cold.token_id, minlength=len(VOCABULARY)) / 3000
    assert 0.5 * np.abs(drawn - expected / expected.sum()).sum() < 0.05


def test_float32_futures_rarely_part_from_float64(record_property):
    decoder = make_decoder(1, sharpness=6.0)
    prompts = [make_prompt("condition/1", subject, prediction_clock_minutes=31 * DAY) for subject in range(40)]
    exact = rollout(decoder, VOCABULARY, prompts, samples=10, seed=1, max_new_tokens=24)
    rough = rollout(decoder, VOCABULARY, prompts, samples=10, seed=1, max_new_tokens=24, dtype=torch.float32)
    assert decoder.embedding.weight.dtype == torch.float64, "the caller's model was changed"
    apart = np.mean([exact.tokens_of(row).tolist() != rough.tokens_of(row).tolist() for row in range(len(exact))])
    record_property("share_of_float32_futures_that_differ", float(apart))
    assert apart < 0.01


def test_bfloat16_futures_are_equal_in_distribution():
    """Another model in every digit, the same distribution: tokens of many futures differ no more than those of another seed do."""
    decoder = make_decoder(1, dtype=torch.float32, sharpness=6.0)
    prompts = [make_prompt("condition/1", subject, prediction_clock_minutes=31 * DAY) for subject in range(100)]
    exact, other = (rollout(decoder, VOCABULARY, prompts, samples=20, seed=seed, max_new_tokens=12) for seed in (1, 2))
    rough = rollout(decoder, VOCABULARY, prompts, samples=20, seed=1, max_new_tokens=12, dtype=torch.bfloat16)
    shares = [np.bincount(result.token_id, minlength=len(VOCABULARY)) / len(result.token_id) for result in (exact, other, rough)]
    apart, noise = (0.5 * np.abs(shares[0] - share).sum() for share in (shares[2], shares[1]))
    assert apart < 0.01 + noise
    assert decoder.embedding.weight.dtype == torch.float32


def test_threads_write_the_same_futures_and_leave_torch_as_it_was():
    decoder, threads = make_decoder(2), torch.get_num_threads()
    one = rollout(decoder, VOCABULARY, PROMPTS, samples=5, seed=4, max_new_tokens=10)
    torch.set_num_threads(3)
    try:
        done: list[int] = []
        three = rollout(decoder, VOCABULARY, PROMPTS, samples=5, seed=4, max_new_tokens=10, batch_rows=20, progress=lambda some, _: done.append(some))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert done[-1] == len(three) == len(one)
    assert np.array_equal(three.token_id, one.token_id)
    assert np.array_equal(three.stop_reason, one.stop_reason)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_futures_are_taken_in_whole_prompts_of_like_length_as_many_as_there_is_room_for(data):
    samples, more = data.draw(st.integers(1, 9)), np.array(data.draw(st.lists(st.integers(1, 38), min_size=1, max_size=12)))
    prompts = [make_prompt("condition/1 " + "condition/2 " * count, subject) for subject, count in enumerate(more)]
    engine = _Engine(Reader(make_decoder()), VOCABULARY, prompts, samples, 0, 1, 8, None, 1.0, 0)
    asked = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=samples * len(more), max_size=samples * len(more))))
    share = Share(engine._in_order(asked))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cehrxgpt.rollout.engine.PREFILL_TOKENS", 100)
        while len(share.untaken):
            free, divide = data.draw(st.integers(1, 60)), data.draw(st.booleans())
            first = share.untaken[share.untaken // samples == share.untaken[0] // samples]
            now = engine._take(share, free, divide=divide)
            assert len(now) <= free
            if len(first) > free:
                assert now.tolist() == first[: free if divide else 0].tolist(), "of a prompt that has no room a part, or nothing"
                continue
            length = engine.table.length[now // samples]
            assert length.min() * LIKE_LENGTH >= length[0]
            assert len(np.unique(now // samples)) * length[0] <= max(100, length[0])
            assert not np.isin(share.untaken // samples, now // samples).any(), "a prompt would be read twice"
        assert not len(engine._take(share, 3, divide=True))


def test_every_future_is_taken_once_the_longest_prompts_first():
    prompts = [make_prompt("condition/1 " + "condition/2 " * (7 * subject % 30), subject) for subject in range(9)]
    engine = _Engine(Reader(make_decoder()), VOCABULARY, prompts, 5, 0, 1, 8, None, 1.0, 0)
    share, taken = Share(engine._in_order(np.arange(45))), []
    while len(now := engine._take(share, 7, divide=len(taken) % 2 == 0)):
        taken += now.tolist()
    assert sorted(taken) == list(range(45))
    assert (np.diff(engine.table.length[np.array(taken) // 5]) <= 0).all()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_futures_are_dealt_to_threads_in_equal_parts_of_all_lengths(data):
    samples, prompts, writers = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    asked = [make_prompt("condition/1 " + "condition/2 " * (3 * subject), subject) for subject in range(prompts)]
    engine = _Engine(Reader(make_decoder()), VOCABULARY, asked, samples, 0, 1, 8, None, 1.0, 0)
    futures = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=samples * prompts, max_size=samples * prompts)))
    parts = [share.untaken for share in engine._shares(futures, writers)]
    assert sorted(np.concatenate(parts)) == futures.tolist()
    assert len(parts) == writers
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts[0]) == max(map(len, parts))
    whole = engine._shares(np.arange(samples * prompts), writers)
    length = [engine.table.length[share.untaken // samples].mean() for share in whole if len(share.untaken)]
    if prompts % writers == 0:
        assert max(length) - min(length) <= 3 * (writers - 1), "the longest prompts go to all of them"


def test_the_same_call_gives_the_same_bits_however_its_threads_are_held_up(monkeypatch):
    """In float32 sums round differently with what else is in a batch, so who writes what must not hang on who is free first."""
    generator, threads, step = np.random.default_rng(0), torch.get_num_threads(), _Engine._step
    chance = np.array([VOCABULARY.kind == int(Kind.CODE)])

    def held_up(self, *args):
        sleep(generator.uniform(0, 0.004))
        return step(self, *args)

    monkeypatch.setattr(_Engine, "_step", held_up)
    options = {"samples": 7, "seed": 4, "max_new_tokens": 24, "batch_rows": 33, "watched": chance}
    torch.set_num_threads(3)
    try:
        first, second = (rollout(make_decoder(dtype=torch.float32), VOCABULARY, PROMPTS, **options) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    for name in ("token_id", "log_probability", "removed_mass", "gap_log_mass", "chance"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize(("prompts", "samples", "threads", "rows"), [(16, 8, 2, 64), (1, 128, 2, 64), (3, 64, 3, 64), (3, 43, 2, 200)])
def test_no_thread_begins_a_second_batch_while_another_has_room(prompts, samples, threads, rows, monkeypatch):
    """Futures for a full batch each, all as long as each other, of prompts that in groups of like length fill none."""
    steps: Counter[int] = Counter()
    step, before, new, all_of_them = _Engine._step, torch.get_num_threads(), 6, Barrier(threads)

    def counted(self, *args):
        if get_ident() not in steps:
            all_of_them.wait(60)  # none is done before the others begin
        steps[get_ident()] += 1
        return step(self, *args)

    monkeypatch.setattr(_Engine, "_step", counted)
    asked = [make_prompt("condition/1 " + "condition/2 " * (2 * place), place) for place in range(prompts)]
    torch.set_num_threads(threads)
    try:
        result = rollout(make_decoder(), VOCABULARY, asked, samples=samples, seed=0, max_new_tokens=new, batch_rows=rows)
    finally:
        torch.set_num_threads(before)
    assert not result.given_up.any()
    assert max(steps.values()) <= new - 1


def test_an_error_in_one_thread_ends_the_rollout(monkeypatch):
    read, calls = Reader.read, []

    def fails(self, *args):
        calls.append(get_ident())
        if len(calls) == 3:
            raise OSError("this one")
        return read(self, *args)

    monkeypatch.setattr(Reader, "read", fails)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(OSError, match="this one"):
            rollout(make_decoder(), VOCABULARY, PROMPTS, samples=8, seed=0, max_new_tokens=6, batch_rows=16)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_ends_one_thread_or_the_wait_for_them_ends_all_with_the_step_they_are_at(error, monkeypatch):
    step, steps, once = _Engine._step, Counter(), Lock()

    def stopped(self, *args):
        steps[get_ident()] += 1
        enough = steps.total() >= 6
        if enough and once.acquire(blocking=False):
            if error is OSError:
                raise OSError
            pthread_kill(main_thread().ident, SIGINT)  # as Ctrl-C does
        sleep(0.1 if enough else 0.01)  # on a busy machine the main thread is not there at once
        return step(self, *args)

    monkeypatch.setattr(_Engine, "_step", stopped)
    threads, handler = torch.get_num_threads(), signal(SIGINT, default_int_handler)  # a shell lets what it starts in the background ignore it
    torch.set_num_threads(2)
    try:
        with pytest.raises(error):
            rollout(make_decoder(), VOCABULARY, PROMPTS, samples=40, seed=0, max_new_tokens=24, batch_rows=16)
    finally:
        torch.set_num_threads(threads)
        signal(SIGINT, handler)
    assert steps.total() < 40, "its share would take hundreds"


def test_futures_that_end_with_their_first_token_leave_a_batch_empty_and_the_next_is_begun(monkeypatch):
    begin = KVCache.__init__
    whole = rollout(make_decoder(), VOCABULARY, PROMPTS, samples=5, seed=4, max_new_tokens=1)
    monkeypatch.setattr(KVCache, "__init__", lambda self, *args, **options: begin(self, *args, **({"stays": True, "by_column": False} | options)))
    staying = rollout(make_decoder(), VOCABULARY, PROMPTS, samples=5, seed=4, max_new_tokens=1, batch_rows=20)
    assert np.array_equal(staying.token_id, whole.token_id)


@pytest.mark.parametrize("samples", [2, 6])
def test_memory_of_any_content_is_never_seen(samples, monkeypatch):
    """The cache asks for room without filling all of it at once."""
    options = {"samples": samples, "seed": 4, "max_new_tokens": 24, "batch_rows": 17}
    expected, room = rollout(make_decoder(), VOCABULARY, PROMPTS, **options), cache._any_memory
    monkeypatch.setattr(cache, "_any_memory", lambda *args: room(*args).fill_(float("nan")))
    found = rollout(make_decoder(), VOCABULARY, PROMPTS, **options)
    assert np.array_equal(found.token_id, expected.token_id)
    np.testing.assert_allclose(found.log_probability, expected.log_probability, atol=1e-9)


# -- the sampler -------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    subject=st.integers(-(2**63), 2**63 - 1),
    minutes=st.none() | st.integers(-(10**9), 10**9),
    sample=st.integers(0, 2**31 - 1),
    step=st.integers(0, 10**6),
)
def test_random_numbers_are_a_function_of_who_is_asked(seed, subject, minutes, sample, step):
    time = None if minutes is None else np.datetime64(minutes, "m")
    key = sampler.keys(seed, [subject], [time], [sample])
    number = sampler.uniform(key, [step])[0]
    assert number == hashed_uniform(seed % 2**64, subject % 2**64, time, sample, step)
    assert 0 <= number < 1


def test_random_numbers_look_uniform_and_uncorrelated():
    subjects = np.repeat(np.arange(200), 50)
    key = sampler.keys(0, subjects, [None] * 10_000, np.tile(np.arange(50), 200))
    numbers = np.stack([sampler.uniform(key, np.full(10_000, step)) for step in range(20)])
    counts = np.bincount((numbers * 100).astype(int).ravel(), minlength=100)
    assert ((counts - 2000) ** 2 / 2000).sum() < 150  # 99 degrees of freedom
    assert abs(np.corrcoef(numbers)[np.triu_indices(20, 1)]).max() < 0.05
    assert abs(np.corrcoef(numbers[0][:-1], numbers[0][1:])[0, 1]) < 0.05
    assert len(np.unique(numbers)) == numbers.size


def test_inverse_cdf_never_draws_a_token_without_weight():
    weights = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 7.0], [1e-30, 0.0, 0.0, 0.0, 0.0]])
    for uniform, expected in ((0.0, [1, 4, 0]), (0.6666, [1, 4, 0]), (0.6667, [3, 4, 0]), (1 - 2**-53, [3, 4, 0]), (1.0, [3, 4, 0])):
        token, log_probability = sampler.draw(weights, torch.full((3,), uniform, dtype=torch.float64))
        assert token.tolist() == expected
        assert log_probability.exp().tolist() == pytest.approx([2 / 3 if expected[0] == 1 else 1 / 3, 1, 1])


def test_inverse_cdf_in_blocks_is_the_inverse_cdf():
    """More tokens than a block, the last block not full, weights that span many orders and long runs without any."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(400, 3 * sampler.BLOCK + 7, generator=generator, dtype=torch.float64) ** 20
    weights *= torch.rand(weights.shape, generator=generator) < torch.linspace(0.02, 1, 400)[:, None]
    weights[:, -1] += 1e-3
    uniform = torch.rand(400, generator=generator, dtype=torch.float64)
    token, log_probability = sampler.draw(weights, uniform)
    whole = weights.numpy()
    expected = (np.cumsum(whole, axis=1) > (uniform.numpy() * whole.sum(1))[:, None]).argmax(1)
    assert token.tolist() == expected.tolist()
    chosen = whole[np.arange(400), expected] / whole.sum(1)
    assert log_probability.numpy() == pytest.approx(np.log(chosen))


# -- refusals ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt(token_id=np.array([], dtype=int), subject_id=7), "subject 7: a prompt of 0 tokens"),
        (make_prompt("condition/1 " * 60, 8), "subject 8: a prompt of 67 tokens; the model reads 1 to 48"),
        (Prompt(token_id=np.array([1, 999]), subject_id=9), "subject 9: .*outside the model's vocabulary"),
        (Prompt(token_id=np.array([1, 0]), subject_id=9), "subject 9: .*outside the model's vocabulary"),
        (make_prompt("[VE]", 10), "subject 10: the prompt is no sentence"),
        (Prompt(token_id=ids("[BOS] year:2011"), subject_id=11, age_minutes=np.array([0, 5])), "subject 11: age_minutes do not follow"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_by_name(prompt, words):
    with pytest.raises(InputError, match=words):
        rollout(make_decoder(), VOCABULARY, [PROMPTS[0], prompt], samples=1, seed=0)


def test_arguments_out_of_range_are_refused():
    decoder = make_decoder()
    for changes, words_of_it in (({"samples": 0}, "samples"), ({"batch_rows": 0}, "batch_rows"), ({"temperature": 0.0}, "temperature")):
        with pytest.raises(ConfigError, match=words_of_it):
            rollout(decoder, VOCABULARY, PROMPTS, **({"samples": 1, "seed": 0} | changes))
    with pytest.raises(ConfigError, match="max_new_tokens"):
        rollout(decoder, VOCABULARY, PROMPTS, samples=1, seed=0, max_new_tokens=0)
    with pytest.raises(MismatchError, match="stop_tokens has 3"):
        rollout(decoder, VOCABULARY, PROMPTS, samples=1, seed=0, stop_tokens=np.zeros(3, dtype=bool))
    with pytest.raises(InputError, match="repeat a subject"):
        rollout(decoder, VOCABULARY, [PROMPTS[0], PROMPTS[0]], samples=1, seed=0)
