"""Model folders: what is saved is what is read, and damage is named in one line."""

from __future__ import annotations

import json

import pytest
import torch

from cehrxgpt.errors import ConfigError, InputError, MismatchError
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.hub import load_model, save_model
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.stages.loading import load
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.train.device import choose_device


def make_vocabulary(tokens: int) -> Vocabulary:
    rows = [{"token": "[PAD]", "kind": 0}] + [{"token": f"c{i}", "kind": int(Kind.CODE), "code": f"c{i}"} for i in range(tokens - 1)]
    return Vocabulary.from_rows(rows, {"calendar": "true"})


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig(vocabulary_size=30, width=32, layers=2, heads=4, kv_heads=2, context=64, tie=False))
    save_model(tmp_path, decoder, make_vocabulary(30), {"population.json": {"people": 12}})
    return tmp_path, decoder


def test_weights_vocabulary_and_population_come_back_as_they_were(saved):
    folder, decoder = saved
    state = torch.get_rng_state()
    loaded = load_model(folder)
    assert torch.equal(state, torch.get_rng_state()), "loading drew random numbers"
    assert loaded.config == decoder.config
    assert loaded.population == {"people": 12}
    assert loaded.vocabulary.fingerprint == make_vocabulary(30).fingerprint
    for name, weight in decoder.state_dict().items():
        assert torch.equal(weight, loaded.decoder.state_dict()[name])
    token = torch.randint(1, 30, (2, 7))
    position = torch.arange(7).expand(2, 7)
    args = {"position": position, "age_minutes": position * 5000}
    assert torch.equal(decoder(token, **args), loaded.decoder(token, **args))
    assert all(weight.requires_grad for weight in loaded.decoder.parameters())
    assert load_model(folder, torch.float64).decoder.norm.weight.dtype == torch.float64


def test_stages_read_the_model_on_the_device_that_training_takes(saved, monkeypatch):
    folder, _ = saved
    assert load(folder).decoder.embedding.weight.device == choose_device("auto")
    monkeypatch.setattr("cehrxgpt.train.device.choose_device", lambda name: torch.device("meta"))  # a device of another kind that is always there
    assert {weight.device.type for weight in load(folder).decoder.parameters()} == {"meta"}


def trained(**settings):
    """A decoder a few steps away from where it began, norms' gains included."""
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig(vocabulary_size=30, width=32, layers=2, heads=4, kv_heads=2, context=64, care_settings=(4, 9), **settings))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.01)
    token = torch.randint(1, 30, (4, 9))
    position = torch.arange(9).expand(4, 9)
    for _ in range(5):
        logits = decoder.head(decoder(token, position=position, age_minutes=position * 5000))
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), token[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(decoder.norm.weight, torch.ones_like(decoder.norm.weight))
    return decoder


@pytest.mark.parametrize("tie", [True, False])
def test_automodel_reads_the_folder_bit_for_bit(tmp_path, tie):
    from cehrxgpt.model import hub

    folder, decoder = tmp_path, trained(tie=tie)
    save_model(folder, decoder, make_vocabulary(30))
    hub.register()
    from transformers import AutoConfig, AutoModel

    model, facts = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(facts.values()), facts
    assert AutoConfig.from_pretrained(folder).hidden_size == 32
    for name, weight in decoder.state_dict().items():
        assert torch.equal(weight, model.decoder.state_dict()[name]), name
    token = torch.randint(1, 30, (2, 7))
    position = torch.arange(7).expand(2, 7)
    hidden = decoder(token, position=position, age_minutes=position * 1000)
    assert torch.equal(model(token, position * 1000).last_hidden_state, hidden)
    assert torch.equal(model.decoder.head(hidden), decoder.head(hidden)), "the head, tied or of its own"
    assert (model.decoder.untied is None) == tie
    again = tmp_path / "again"
    again.mkdir()
    model.save_pretrained(again)
    make_vocabulary(30).save(again)
    loaded = load_model(again)
    assert loaded.config == decoder.config
    assert all(torch.equal(a, b) for a, b in zip(decoder.state_dict().values(), loaded.decoder.state_dict().values(), strict=True))


def test_a_decoder_and_a_vocabulary_of_different_size_are_not_saved(tmp_path):
    with pytest.raises(MismatchError, match="30 tokens, the vocabulary has 29"):
        save_model(tmp_path, Decoder(ModelConfig(vocabulary_size=30)), make_vocabulary(29))
    assert not list(tmp_path.iterdir())


def damage_weights(folder, decoder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_weights(folder, decoder):
    torch.save(decoder.state_dict(), folder / "model.safetensors")


def change(**values):
    def apply(folder, decoder):
        facts = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(facts | values))

    return apply


def other_vocabulary(tokens):
    def apply(folder, decoder):
        make_vocabulary(tokens).save(folder)

    return apply


def renamed_vocabulary(folder, decoder):
    rows = [{"token": "[PAD]", "kind": 0}] + [{"token": f"d{i}", "kind": int(Kind.CODE), "code": f"d{i}"} for i in range(29)]
    Vocabulary.from_rows(rows, {}).save(folder)


def remove(name):
    return lambda folder, decoder: (folder / name).unlink()


def write(name, text):
    return lambda folder, decoder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        (remove("config.json"), InputError, "no config.json"),
        (remove("model.safetensors"), InputError, "no model.safetensors"),
        (remove("vocabulary.parquet"), InputError, "no vocabulary.parquet"),
        (damage_weights, InputError, "not a readable safetensors file"),
        (pickle_weights, InputError, "not a readable safetensors file"),
        (write("config.json", '{"model_type": "cehr'), InputError, "not readable JSON"),
        (write("config.json", "[1]"), InputError, "expected a JSON object"),
        (write("population.json", "{"), InputError, "not readable JSON"),
        (write("vocabulary.parquet", "nonsense"), InputError, "not a vocabulary"),
        (change(model_type="bert"), InputError, "a model of type 'bert'"),
        (change(width="wide"), ConfigError, "expected a whole number"),
        (change(width=33), ConfigError, "even width"),
        (change(layers=3), MismatchError, "lacks weight"),
        (change(layers=1), MismatchError, "has an unknown weight"),
        (change(feedforward=64), MismatchError, "asks for"),
        (other_vocabulary(31), MismatchError, "the vocabulary has 31"),
        (renamed_vocabulary, MismatchError, "not the one this model was trained with"),
    ],
)
def test_damage_is_named_in_one_line(saved, harm, error, words):
    folder, decoder = saved
    harm(folder, decoder)
    with pytest.raises(error, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
