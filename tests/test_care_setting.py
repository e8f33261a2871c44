"""Where the patient is: the last token that says so, in its own sequence, told with every token and known from the vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.care_setting import CareSetting
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from oracle_rollout import toy_vocabulary

SETTINGS = (2, 5, 7)
CONFIG = ModelConfig(vocabulary_size=9, width=8, layers=2, heads=2, kv_heads=2, care_settings=SETTINGS)


def slowly(tokens: list[int], before: int = 0) -> list[int]:
    """Of one sequence, token by token; `before`: where its past left it."""
    found = []
    for token in tokens:
        before = 1 + SETTINGS.index(token) if token in SETTINGS else before
        found.append(before)
    return found


@given(sequences=st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=9), min_size=1, max_size=4))
def test_it_is_the_last_that_was_said_in_the_same_sequence(sequences):
    care = CareSetting(CONFIG)
    row = torch.tensor([[token for one in sequences for token in one]])
    place = torch.tensor([[index for one in sequences for index in range(len(one))]])
    assert care.at(row, place, None)[0].tolist() == [setting for one in sequences for setting in slowly(one)]


@given(tokens=st.lists(st.integers(1, 8), min_size=1, max_size=9), before=st.integers(0, len(SETTINGS)))
def test_it_goes_on_from_the_past(tokens, before):
    """Several tokens at once, and one by one."""
    care, past = CareSetting(CONFIG), torch.tensor([before])
    expected = slowly(tokens, before)
    assert care.at(torch.tensor([tokens]), 3 + torch.arange(len(tokens))[None], past)[0].tolist() == expected
    one_by_one = []
    for token in tokens:
        past = care.at(torch.tensor([[token]]), torch.tensor([[3]]), past)[:, 0]
        one_by_one.append(int(past))
    assert one_by_one == expected


def test_a_token_is_read_differently_where_the_patient_is_elsewhere():
    """Also where attention passes nothing on; without care settings, or once both have come to the same one, it is not."""
    token = torch.tensor([[5, 1, 1, 7, 1], [2, 1, 1, 7, 1]])
    place = torch.arange(5).repeat(2, 1)
    for settings, expected in ((SETTINGS, [True, True, False, False]), ((), [False] * 4)):
        decoder = Decoder(replace(CONFIG, care_settings=settings))
        with torch.no_grad():
            for block in decoder.blocks:
                block.attention.output.weight.zero_()
            here, there = decoder(token, position=place, age_minutes=place)
        assert ((here - there).abs().amax(1) > 1e-3)[1:].tolist() == expected


def test_those_of_a_vocabulary_are_visits_and_intensive_care():
    vocabulary = toy_vocabulary()
    said = {vocabulary.token[index] for index in vocabulary.care_settings}
    assert said == {"Visit/inpatient", "Visit/outpatient", "[VE]", "[ICU]", "[/ICU]"}


@pytest.mark.parametrize("length", [1, 2, 5])
def test_padding_says_nothing(length):
    """Rows of unequal numbers of new tokens, one of them none."""
    torch.manual_seed(0)
    decoder = Decoder(CONFIG).double()
    cache = KVCache(CONFIG, 2, 8, torch.float64)
    first = torch.tensor([[5, 1], [7, 1]])
    place = torch.arange(2).repeat(2, 1)
    decoder(first, position=place, age_minutes=place, cache=cache)
    more = torch.full((2, length), 2)
    segment = torch.stack([torch.zeros(length), torch.ones(length)]).long()
    decoder(more, position=2 + torch.arange(length).repeat(2, 1), age_minutes=more, segment_id=segment, cache=cache)
    assert cache.setting.tolist() == [slowly([5, 1])[-1], slowly([7, 2])[-1]]
