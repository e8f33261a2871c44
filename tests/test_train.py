"""The training loop: it learns, stops, keeps the best weights, and goes on where it was cut off."""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.errors import ConfigError, InputError, OutputExistsError, TrainingError
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.hub import load_model
from cehrxgpt.objectives import NextToken
from cehrxgpt.store.format import TokenStore
from cehrxgpt.train import RECIPES, TrainConfig, device, load_recipe, pretrain
from cehrxgpt.train import trainer as trainer_module
from cehrxgpt.train.meter import Meter
from cehrxgpt.train.optim import HEAD_BETA2, make_optimizer, orthogonalise
from cehrxgpt.train.schedule import learning_rate
from cehrxgpt.train.sizes import SIZES
from cehrxgpt.train.summary import Counters
from toy_store import save_store, toy_histories, toy_store, toy_vocabulary
from train_samples import SMALL, lines, same, weights


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_store(tmp_path_factory.mktemp("train") / "timeline", train=50, tuning=12, days=61)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "matmul_rate", lambda *_: 1e11)


# -- learning -------------------------------------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_a_model_folder(store: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    summary = pretrain(store, tmp_path / "model", SMALL, steps=30, progress=lambda *facts: seen.append(facts))
    log = lines(tmp_path / "model")
    train = [line for line in log if line["kind"] == "train"]
    assert len(train) == 30
    assert train[0]["loss"]["next_token"] > 1.1 * train[-1]["loss"]["next_token"]
    assert {"learning_rate", "tokens_per_second", "tokens_seen", "mfu", "padding_share", "seconds"} <= set(train[0])
    tuning = [line["tuning_loss"] for line in log if line["kind"] == "tuning"]
    assert summary.tuning_loss == min(tuning) < 0.97 * tuning[0]
    assert summary.stop_reason == "steps"
    assert summary.steps == 30
    assert 0 < summary.mfu < 1
    assert summary.tokens_seen == train[-1]["tokens_seen"]
    assert [step for step, _, _ in seen] == list(range(1, 31))
    assert seen[-1][1] == 30
    assert "tokens/s" in seen[-1][2]
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {"config.json", "model.safetensors", "vocabulary.parquet", "manifest.json"}
    assert not list(tmp_path.glob(".*")), "checkpoints go when the model is there"
    loaded = load_model(tmp_path / "model")
    assert loaded.vocabulary.fingerprint == toy_vocabulary(days=61).fingerprint
    assert loaded.config.width == 16
    assert (
        repr(loaded)
        == f"Loaded('{tmp_path / 'model'}': 16 wide, {loaded.config.layers} layers, context {loaded.config.context}, {len(loaded.vocabulary)} tokens)"
    )
    assert json.loads((tmp_path / "model" / "manifest.json").read_text())["figures"]["tokens_seen"] == summary.tokens_seen


def test_a_number_that_is_none_is_refused() -> None:
    """A recipe's types are checked as it is read; in Python nothing else would say so."""
    with pytest.raises(ValueError, match=r"epochs is None; it must be a number \(as 10\)"):
        TrainConfig(epochs=None, steps=10)  # type: ignore[arg-type]


def test_the_decoder_is_told_the_care_settings_of_the_vocabulary_unless_the_recipe_names_its_own(store: Path, tmp_path: Path) -> None:
    own = TokenStore(store).vocabulary.care_settings
    for said, settings in (({}, own), ({"care_settings": []}, ()), ({"care_settings": own[:1]}, own[:1])):
        pretrain(store, tmp_path / "model", replace(SMALL, model=SMALL.model | said), steps=1, force=True)
        assert load_model(tmp_path / "model").config.care_settings == settings
    with pytest.raises(ConfigError, match=r"model: care_settings are .* different tokens"):
        pretrain(store, tmp_path / "model", replace(SMALL, model=SMALL.model | {"care_settings": [1, 1]}), steps=1, force=True)


def test_population_travels_with_the_model(tmp_path: Path) -> None:
    folder = toy_store(tmp_path / "timeline", train=20, tuning=0, days=61)
    (folder / "population.json").write_text('{"patients": 20}')
    summary = pretrain(folder, tmp_path / "model", SMALL, steps=2)
    assert load_model(tmp_path / "model").population == {"patients": 20}
    assert summary.tuning_loss is None
    assert summary.best_step == 2, "without a tuning split the last weights are kept"


def test_the_loss_is_told_where_an_objective_has_no_term() -> None:
    meter, counters = Meter({"next_token": 1.0, "contrastive": 0.5}, ModelConfig(vocabulary_size=9)), Counters(step=1, places=1)
    meter.add({"next_token": 6.0, "contrastive": 0.0}, {"next_token": 3, "contrastive": 0})
    assert meter.line(counters, 0.1, None)["loss"] == {"next_token": 2.0, "contrastive": None}
    assert counters.last_loss == 2.0
    meter.add({"next_token": 6.0, "contrastive": 4.0}, {"next_token": 3, "contrastive": 2})
    meter.line(counters, 0.1, None)
    assert counters.last_loss == 3.0
    meter.line(counters, 0.1, None)
    assert counters.last_loss == 3.0, "a window without any step says nothing new"


def test_too_few_pairs_of_windows_are_told(store: Path, tmp_path: Path) -> None:
    said: list[str] = []
    few = replace(SMALL, objectives={"next_token": 1.0, "contrastive": {"share": 0.05}}, trackers=[])
    summary = pretrain(store, tmp_path / "model", few, steps=2, say=said.append)
    assert len(said) == 1
    assert "contrastive gets about 0." in said[0]
    assert summary.train_loss is not None
    decoder, heads = load_model(tmp_path / "model").decoder, 16 * 64
    assert (summary.parameters, summary.head_parameters) == (sum(weight.numel() for weight in decoder.parameters()), heads)
    with pytest.raises(TrainingError, match=r"no objective \(contrastive\) found anything to learn in 2 steps"):
        pretrain(store, tmp_path / "model", replace(few, objectives={"contrastive": {"share": 1e-9}}), steps=2, force=True)
    said.clear()
    pretrain(store, tmp_path / "model", replace(few, objectives={"contrastive": {"share": 0.5}}), steps=1, force=True, say=said.append)
    assert not said


def test_best_weights_are_kept_and_training_stops_early(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([5.0, 4.0, 3.9999, 4.5, 3.9999])
    kept: list[dict[str, torch.Tensor]] = []

    def judge(self: trainer_module.Trainer, loss: float, original: object = trainer_module.Trainer._judge) -> None:
        original(self, next(losses))  # type: ignore[operator]
        kept.append({name: value.clone() for name, value in self.decoder.state_dict().items()})

    monkeypatch.setattr(trainer_module.Trainer, "_judge", judge)
    summary = pretrain(store, tmp_path / "model", replace(SMALL, patience=3, evaluate_every=2, steps=1000))
    assert (summary.stop_reason, summary.steps) == ("early_stopping", 10), "3.9999 is no improvement of a thousandth on 4.0"
    assert summary.best_step == 6
    assert summary.tuning_loss == 3.9999
    assert same(weights(tmp_path / "model"), kept[2])
    assert not same(kept[2], kept[-1])


def test_early_stopping_works_for_losses_below_zero(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([-1.0, -2.0, -2.001, -2.0, -2.0005, -9.0])
    judge = trainer_module.Trainer._judge
    monkeypatch.setattr(trainer_module.Trainer, "_judge", lambda self, loss: judge(self, next(losses)))
    summary = pretrain(store, tmp_path / "model", replace(SMALL, patience=3, evaluate_every=2, steps=12))
    assert (summary.stop_reason, summary.steps) == ("early_stopping", 10), "-2.001 is no improvement of a thousandth on -2.0"
    assert (summary.best_step, summary.tuning_loss) == (6, -2.001)


def test_time_limit_ends_the_run_at_the_low_rate(store: Path, tmp_path: Path) -> None:
    config = replace(SMALL, steps=None, epochs=100_000, max_minutes=0.02, checkpoint_minutes=10.0, evaluate_every=10_000)
    summary = pretrain(store, tmp_path / "model", config)
    assert summary.stop_reason == "minutes"
    assert summary.seconds >= 1.2
    rates = [line["learning_rate"] for line in lines(tmp_path / "model") if line["kind"] == "train"]
    assert rates[-1] < 0.2 * max(rates)


def test_loss_does_not_depend_on_accumulation(store: Path, tmp_path: Path) -> None:
    """Two micro-batches give the gradient of their union: sums are divided once."""
    config = replace(SMALL, steps=1, clip=0.0)
    trainers = []
    for accumulate in (1, 2):
        trainer = trainer_module.Trainer(
            trainer_module.TokenStore(store), replace(config, accumulate=accumulate), tmp_path / str(accumulate), "key", None
        )
        trainers.append(trainer)
    joined, parted = trainers
    batches = [parted.loader.batch(0), parted.loader.batch(1)]
    objective = NextToken(joined.store.vocabulary)
    total = sum((objective(joined.decoder, _hidden(joined.decoder, batch), batch)[0] for batch in batches), start=torch.zeros(()))
    (total / sum(int(objective.count(batch)) for batch in batches)).backward()
    expected = {name: parameter.grad.clone() for name, parameter in joined.parameters.items()}
    counts = {"next_token": sum(int(objective.count(batch)) for batch in batches)}
    for batch in batches:
        parted._loss(batch, counts)[0].backward()
    for name, parameter in parted.parameters.items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def _hidden(model: nn.Module, batch: trainer_module.PackedBatch) -> torch.Tensor:
    return model(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)


def test_decay_is_for_matrices_and_the_rate_warms_up_and_falls() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    groups = make_optimizer(model.named_parameters(), TrainConfig(weight_decay=0.3)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.3), (3, 0.0)]
    heads = nn.ModuleDict({"objectives": nn.Linear(4, 4)})
    assert [group["betas"] for group in make_optimizer(heads.named_parameters(), TrainConfig()).param_groups] == [(0.9, HEAD_BETA2)] * 2
    config = TrainConfig(learning_rate=1.0, warmup_share=0.1, final_share=0.05)
    rates = [learning_rate(step / 100, config) for step in range(101)]
    assert 0 < rates[0] < rates[5] < rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.05)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_warm_up_and_decay_may_be_the_whole_run() -> None:
    for warmup, decay in ((0.8, 0.2), (0.9, 0.1), (0.7, 0.3)):
        config = TrainConfig(schedule="wsd", warmup_share=warmup, decay_share=decay, learning_rate=1.0, final_share=0.0)
        assert learning_rate(warmup, config) == pytest.approx(1.0)
        assert learning_rate(1.0, config) == pytest.approx(0.0)


@pytest.mark.parametrize("decay", ["1-sqrt", "linear"])
def test_warm_up_stable_decay(decay: str) -> None:
    values = {"learning_rate": 2.0, "schedule": "wsd", "warmup_share": 0.1, "decay_share": 0.25, "decay": decay, "final_share": 0.1}
    config = from_dict(TrainConfig, values, where="test")
    rates = [learning_rate(step / 1000, config) for step in range(1001)]
    assert 0 < rates[0] < rates[50] < rates[100]
    assert rates[100:751] == [2.0] * 651
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[750:]))
    assert rates[-1] == pytest.approx(0.2)
    halfway = 1 - 0.5**0.5 if decay == "1-sqrt" else 0.5
    assert rates[875] == pytest.approx(2.0 * (0.1 + 0.9 * halfway))


@pytest.mark.parametrize(("dtype", "apart"), [(None, 1e-9), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 24)])
def test_orthogonalising_keeps_the_directions_and_levels_the_lengths(rows: int, columns: int, dtype: torch.dtype | None, apart: float) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    update = orthogonalise(matrix, dtype)
    assert update.dtype == matrix.dtype
    found = left.T @ update @ right.T  # diagonal where the singular vectors are the same
    torch.testing.assert_close(found, torch.diag(found.diagonal()), atol=apart, rtol=0)
    assert 0.6 < found.diagonal().min() < found.diagonal().max() < 1.3


def test_muon_steps_the_blocks_and_adamw_the_rest() -> None:
    torch.manual_seed(0)
    parts = {"embedding": nn.Parameter(torch.randn(5, 4)), "blocks.0.weight": nn.Parameter(torch.randn(6, 4)), "norm": nn.Parameter(torch.ones(4))}
    config = TrainConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.0)
    muon, adam = make_optimizer(parts.items(), config), make_optimizer(parts.items(), TrainConfig(learning_rate=0.1, weight_decay=0.0))
    steps = {}
    for name, optimizer in (("muon", muon), ("adamw", adam)):
        before = {key: part.detach().clone() for key, part in parts.items()}
        for part in parts.values():
            part.grad = torch.arange(part.numel(), dtype=torch.float32).reshape(part.shape).sin()
        optimizer.step()
        steps[name] = {key: part.detach() - before[key] for key, part in parts.items()}
    for key in ("embedding", "norm"):
        torch.testing.assert_close(steps["muon"][key], steps["adamw"][key], atol=1e-6, rtol=0)
    inner = steps["muon"]["blocks.0.weight"]
    gradient = parts["blocks.0.weight"].grad
    assert gradient is not None
    torch.testing.assert_close(inner, -0.1 * 0.2 * 6**0.5 * orthogonalise(gradient), atol=1e-5, rtol=0)


def test_steps_stand_in_place_of_epochs(store: Path, tmp_path: Path) -> None:
    one = from_dict(TrainConfig, {**to_dict(SMALL), "epochs": 1, "steps": None, "patience": 0}, where="test")
    epoch = pretrain(store, tmp_path / "epoch", one)
    longer = pretrain(store, tmp_path / "longer", one, steps=epoch.steps + 3)
    assert (longer.steps, longer.stop_reason) == (epoch.steps + 3, "steps")


# -- what goes wrong ------------------------------------------------------------------------------------------------------------------


def _poison(monkeypatch: pytest.MonkeyPatch, poisoned: set[int]) -> None:
    original = trainer_module.Trainer._loss

    def loss(self: trainer_module.Trainer, batch: trainer_module.PackedBatch, counts: dict[str, int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total, parts = original(self, batch, counts)
        return (total * math.nan if torch.is_grad_enabled() and self.counters.step in poisoned else total), {
            name: part * math.nan if torch.is_grad_enabled() and self.counters.step in poisoned else part for name, part in parts.items()
        }

    monkeypatch.setattr(trainer_module.Trainer, "_loss", loss)


def test_losses_that_are_not_finite_are_skipped_and_counted(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, {3, 4})
    said: list[str] = []
    summary = pretrain(store, tmp_path / "model", SMALL, say=said.append)
    assert summary.skipped_steps == 2
    assert summary.steps == 10
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "model").values())
    skipped = [line for line in lines(tmp_path / "model") if line["kind"] == "train" and line["step"] in (4, 5)]
    assert [line["loss"]["next_token"] for line in skipped] == [None, None]
    assert said == [f"step {step}: the loss is not finite; skipped, {step - 3} of at most 20 (train.jsonl names the subjects)" for step in (4, 5)]


def test_a_skipped_step_names_the_subjects_of_the_guilty_batch_and_nothing_else(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_module.Trainer(trainer_module.TokenStore(store), replace(SMALL, accumulate=3), tmp_path / "t", "key")
    original, calls = trainer._loss, []

    def loss(batch: trainer_module.PackedBatch, counts: dict[str, int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total, parts = original(batch, counts)
        calls.append(1)
        bad = torch.tensor(math.inf if len(calls) == 2 else 1.0)
        return total * bad, {name: part * bad for name, part in parts.items()}

    monkeypatch.setattr(trainer, "_loss", loss)
    before = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    trainer.folder.mkdir()
    trainer._step()
    assert same(before, trainer.module.state_dict()), "a skipped step changes no weight"
    assert not trainer.optimizer.state
    (line,) = [json.loads(text) for text in trainer.journal.path.read_text().splitlines() if '"skipped"' in text]
    guilty = trainer.store.histories.subject_id[trainer.loader.subjects(1)]
    assert line == {"kind": "skipped", "step": 1, "what": "loss", "subjects": sorted(guilty.tolist())}


def test_a_gradient_that_is_not_finite_is_skipped_too(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = iter([math.nan, 1.0, 1.0])
    monkeypatch.setattr(trainer_module, "clip_gradient", lambda *_: next(norms))
    summary = pretrain(store, tmp_path / "model", replace(SMALL, steps=3))
    assert summary.skipped_steps == 1
    (line,) = [line for line in lines(tmp_path / "model") if line["kind"] == "skipped"]
    assert (line["step"], line["what"]) == (1, "gradient")
    assert line["subjects"]


def test_too_many_of_them_end_the_training(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, set(range(100)))
    with pytest.raises(TrainingError, match=r"3 steps up to step 3 had a loss that is not finite \(limit 2\)"):
        pretrain(store, tmp_path / "model", replace(SMALL, skip_limit=2))
    assert not (tmp_path / "model").exists()


def test_a_run_that_skipped_most_of_its_steps_leaves_no_model(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _poison(patch, set(range(100)))
        with pytest.raises(TrainingError, match=r"10 of 10 steps had a loss or gradient that is not finite and were skipped"):
            pretrain(store, tmp_path / "model", SMALL)
    assert not (tmp_path / "model").exists()
    with monkeypatch.context() as patch:
        _poison(patch, set(range(6)))
        with pytest.raises(TrainingError, match="6 of 10 steps"):
            pretrain(store, tmp_path / "model", SMALL, force=True)
    _poison(monkeypatch, set(range(5)))
    assert pretrain(store, tmp_path / "model", SMALL, force=True).skipped_steps == 5


def test_the_token_store_is_never_replaced(tmp_path: Path) -> None:
    folder = toy_store(tmp_path / "timeline", train=20, tuning=0, days=61)
    files = sorted(path.name for path in folder.iterdir())
    for out, message in ((folder, "lies inside the output"), (tmp_path, "lies inside the output"), (folder / "model", "lies inside the input")):
        with pytest.raises(OutputExistsError, match=message):
            pretrain(folder, out, SMALL, steps=1, force=True)
    assert sorted(path.name for path in folder.iterdir()) == files


def test_output_is_never_replaced_silently(store: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").touch()
    with pytest.raises(OutputExistsError, match="--force"):
        pretrain(store, tmp_path / "model", SMALL)
    assert (tmp_path / "model" / "precious").exists()
    pretrain(store, tmp_path / "model", SMALL, steps=1, force=True)
    assert not (tmp_path / "model" / "precious").exists()


def test_input_that_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a token store"):
        pretrain(tmp_path, tmp_path / "model", SMALL)
    vocabulary = toy_vocabulary()
    empty = save_store(tmp_path / "empty", vocabulary, {"tuning": toy_histories(vocabulary, 3)})
    with pytest.raises(InputError, match="split 'train' has no histories"):
        pretrain(empty, tmp_path / "model", SMALL)
    assert not list(tmp_path.glob(".model*")), "nothing is left behind"


def test_precision_is_measured_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "_announces_bfloat16", lambda: True)
    cases = (({}, torch.float32), ({"bfloat16": 0.7}, torch.float32), ({"bfloat16": 3.0}, torch.bfloat16))
    for speeds, expected in cases:
        monkeypatch.setattr(device, "_cpu_speeds", lambda threads, speeds=speeds: {"float32": 1.0, **speeds})
        assert device.choose_precision(TrainConfig(), cpu) == expected
    monkeypatch.setattr(device, "_cpu_speeds", lambda threads: {"float32": 1.0})
    with pytest.raises(ConfigError, match="announces bfloat16 and cannot compute it"):
        device.choose_precision(TrainConfig(precision="bfloat16"), cpu)


def test_devices_that_are_not_there() -> None:
    assert device.choose_device("cpu").type == "cpu"
    for name in ("tpu9", "mps"):
        with pytest.raises(ConfigError, match=f"device '{name}'"):
            device.choose_device(name)


# -- recipes --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid(name: str) -> None:
    config = load_recipe(name)
    model = config.model_config(3000)
    assert config.tokens_per_batch >= model.context
    parameters = model.matmul_parameters
    low, high = {"tiny": (1e5, 4e5), "demo": (5e5, 2e6), "base": (80e6, 130e6), "large": (3e8, 6e8), "adapt": (0, 1e9)}[
        name
    ]  # its shape is the model's
    assert low < parameters < high, parameters
    assert name != "base" or (model.width, model.layers, config.learning_rate, config.tokens_per_batch) == (768, 14, 2e-4, 16384)


@pytest.mark.parametrize("name", SIZES)
def test_the_dial_gives_a_model_and_what_the_recipe_says_itself_wins(name: str) -> None:
    size = SIZES[name]
    config = from_dict(TrainConfig, {"size": name}, where="test")
    shape = config.model_config(3000)
    assert (shape.width, shape.layers, shape.heads, shape.kv_heads, shape.context) == (
        size.width,
        size.layers,
        size.heads,
        size.kv_heads,
        size.context,
    )
    assert (config.learning_rate, config.tokens_per_batch) == (size.learning_rate, size.tokens_per_batch)
    assert from_dict(TrainConfig, to_dict(config), where="test") == config, "settings that were written down are read back as they are"
    own = from_dict(TrainConfig, {"size": name, "model": {"layers": 1}, "learning_rate": 7e-4, "tokens_per_batch": 50_000}, where="test")
    assert own.model_config(3000) == replace(shape, layers=1)
    assert (own.learning_rate, own.tokens_per_batch) == (7e-4, 50_000)


def test_the_base_size_is_the_published_one() -> None:
    base = SIZES["base"]
    assert (base.width, base.layers, base.context, base.learning_rate, base.tokens_per_batch) == (768, 14, 4096, 2e-4, 16_384)
    rates = [size.learning_rate for size in SIZES.values()]
    assert rates == sorted(rates, reverse=True), "wider models learn at lower rates"


def test_without_the_dial_settings_are_the_plain_defaults() -> None:
    config = TrainConfig()
    assert (config.size, config.model, config.learning_rate, config.tokens_per_batch) == (None, {}, 1e-3, 4096)


def test_tiny_recipe_trains(store: Path, tmp_path: Path) -> None:
    started = time.perf_counter()
    summary = pretrain(store, tmp_path / "model", replace(load_recipe("tiny"), precision="float32", steps=2))
    assert summary.steps == 2
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ({"model": {"widht": 8}}, "unknown key 'widht'; did you mean 'width'"),
        ({"model": {"vocabulary_size": 8}}, "comes from the token store"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"objectives": {"next": 1.0}}, "unknown 'next'"),
        ({"precision": "float16"}, "expected 'auto' | 'float32' | 'bfloat16'"),
        ({"max_minutes": -1.0}, "must be positive"),
        ({"size": "huge"}, "expected 'tiny' | 'small' | 'base' | 'large', found 'huge'"),
        ({"learning_rate": -1e-3}, "it must be positive"),
        ({"tokens_per_batch": -1}, "it must be at least 1"),
        ({"schedule": "linear"}, "expected 'cosine' | 'wsd'"),
        ({"schedule": "wsd", "decay": "sqrt"}, "expected '1-sqrt' | 'linear'"),
        ({"schedule": "wsd", "decay_share": 0.95, "warmup_share": 0.1}, "both together at most 1"),
        ({"schedule": "wsd", "decay_share": 0.0}, "the first must be positive"),
        ({"clip": math.inf}, "clip is inf; it must be a finite number, or 0 for no clipping"),
        ({"learning_rate": math.inf}, "learning_rate is inf; it must be a finite number"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"max_minutes": math.nan}, "max_minutes is nan"),
        ({"checkpoint_minutes": math.inf}, "checkpoint_minutes is inf"),
        ({"objectives": {"next_token": math.inf}}, "next_token: weight is inf; it must be a finite number"),
        ({"objectives": {"contrastive": {"temperature": math.inf}}}, "contrastive: temperature is inf"),
        ({"model": {"norm_eps": math.inf}}, "norm_eps is inf"),
        ({"beta1": 1}, "beta1 is 1.0; it must be at least 0 and below 1"),
        ({"beta2": 1.0}, "beta2 is 1.0; it must be at least 0 and below 1"),
        ({"seed": 10**25}, "seed is 1e+25; it must be below 2^63"),
        ({"tokens_per_batch": 10**18}, "tokens_per_batch is 1000000000000000000; it must be at most 1073741824"),
        ({"accumulate": 10**6}, "accumulate is 1000000; it must be at most 65536"),
        ({"objectives": {"time_to_event": {"tasks": 10**6, "pieces": 1000}}}, "pieces is 1000; it must be at most 64"),
    ],
)
def test_recipes_are_read_strictly(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(TrainConfig, values, where="recipe.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_recipe_suggests_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        load_recipe("dmo")
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("model: {width: 32}\nepochs: 2\n")
    assert load_recipe(tmp_path / "mine.yaml").epochs == 2
