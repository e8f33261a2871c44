"""One training run: batches in, weights out.

The loss of a step is, over all its micro-batches,

    sum over objectives o of  weight_o * (sum of terms of o) / (number of terms of o)

where the numbers are counted before the model runs, so that each micro-batch's gradient is already divided by the whole. Batches are drawn
from (seed, step), weights from the seed, and the learning rate follows the step: nothing else decides the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cehrxgpt.errors import MismatchError, TrainingError
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives import build
from cehrxgpt.schema import TRAIN, TUNING
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.loader import Loader
from cehrxgpt.train import checkpoint
from cehrxgpt.train.config import TrainConfig
from cehrxgpt.train.device import autocast, choose_device, choose_precision, matmul_rate
from cehrxgpt.train.journal import LOG_FILE, Journal, Say, silent
from cehrxgpt.train.optim import clip_gradient, make_optimizer
from cehrxgpt.train.schedule import learning_rate
from cehrxgpt.train.signals import Interruption
from cehrxgpt.train.summary import Counters, TrainSummary
from cehrxgpt.train.trackers import Trackers

Progress = Callable[[int, int, str], None]
"""Called after every step with (step, steps expected, what to show beside them); under a limit of time the second is an estimate."""


class Trainer:
    """One run and its state; `loop.pretrain` is the way in.

    Args:
        folder: for checkpoints and the log; a checkpoint there is gone on from.
        key: fingerprint of settings and store, kept in the checkpoints.
        start: a decoder of the settings' shape whose weights the run begins with; None: new ones, drawn from the seed.
        say: told in one line what a reader should know and no figure shows.
        trackers: told the figures of the log.
    """

    def __init__(
        self,
        store: TokenStore,
        config: TrainConfig,
        folder: Path,
        key: str,
        progress: Progress | None = None,
        start: Decoder | None = None,
        say: Say = silent,
        trackers: Trackers | None = None,
    ):
        self.store, self.config, self.folder, self.key, self.progress = store, config, folder, key, progress
        self.journal = Journal(folder / LOG_FILE, say, trackers)
        self.device = choose_device(config.device)
        self.dtype = choose_precision(config, self.device)
        shape = config.model_config(len(store.vocabulary))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.decoder = Decoder(shape)
            self.objectives = build(config.objectives, store.vocabulary, shape)
        if start is not None:
            if start.config != shape:
                raise MismatchError("the decoder to start from is not of the shape that settings and token store ask for; give its own `model` keys")
            self.decoder.load_state_dict(start.state_dict())
        self.decoder.to(self.device)
        self.objectives.to(self.device)
        packed = config.packing == "packed" or (config.packing == "auto" and self.device.type != "cpu")
        make_loader = partial(Loader, store, tokens_per_batch=config.tokens_per_batch, context=shape.context, seed=config.seed, packed=packed)
        self.loader = make_loader(TRAIN)
        # Small data may have no tuning split: the last weights are kept then.
        self.tuning = make_loader(TUNING) if len(store.indices(TUNING)) else None
        self.module = nn.ModuleDict({"decoder": self.decoder, "objectives": self.objectives})
        self.parameters = dict(self.module.named_parameters())
        self.optimizer = make_optimizer(self.parameters.items(), config)
        self.steps_per_epoch = max(self.loader.batches_per_epoch // config.accumulate, 1)
        self.total_steps = config.steps or config.epochs * self.steps_per_epoch
        self.evaluate_every = config.evaluate_every or max(min(self.steps_per_epoch // 2, 500), 1)
        self.counters = Counters()
        self.best: dict[str, Tensor] | None = None
        self.resumed_from: int | None = None
        self._window: dict[str, list[float]] = {name: [0.0, 0.0] for name in config.objectives}  # sums and counts since the last line
        self._logged = (0, 0.0)  # tokens and seconds at the last line

    # -- the run ------------------------------------------------------------------------------------------------------------------

    def run(self) -> TrainSummary:
        """Train to the end; the decoder then holds the best weights."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return self._run()
        finally:
            self.journal.finish()

    def _run(self) -> TrainSummary:
        with Interruption() as interruption, torch.random.fork_rng():
            self._restore()
            self.rate = matmul_rate(self.device, self.dtype)
            self._began = time.perf_counter() - self.counters.seconds
            reason = self._loop(interruption)
        if self.counters.step % self.config.log_every:
            self._log_training(learning_rate(self._progress(), self.config), None)
        if self.counters.step % self.evaluate_every:
            self._evaluate()
        self._tick()
        if self.best is not None:
            self.module.load_state_dict(self.best)
        return self._summary(reason)

    def _loop(self, interruption: Interruption) -> str:
        """Step until there is a reason to stop.

        Raises:
            KeyboardInterrupt: the process was told to stop; a checkpoint of this moment is written.
        """
        saved_at = time.perf_counter()
        reason = self._reason_to_stop()
        while reason is None:
            facts = self._step()
            self._tick()
            if self.counters.step % self.evaluate_every == 0:
                self._evaluate()
            reason = self._reason_to_stop()
            if interruption.asked:
                self.save()
                raise KeyboardInterrupt(self._where_it_stands())
            if reason is None and time.perf_counter() - saved_at >= 60 * self.config.checkpoint_minutes:
                self.save()
                saved_at = time.perf_counter()
            self._tick()
            if self.progress is not None:
                self.progress(self.counters.step, self._expected_steps(), _say(facts))
        return reason

    def _tick(self) -> None:
        self.counters.seconds = time.perf_counter() - self._began

    def _where_it_stands(self) -> str:
        about = "about " if self.config.max_minutes is not None else ""
        return f"training stands at step {self.counters.step:,} of {about}{self._expected_steps():,}, saved; --resume goes on there"

    def _progress(self) -> float:
        """Share of the run that is behind, by steps or by time, whichever is further."""
        share = self.counters.step / self.total_steps
        if self.config.max_minutes is not None:
            share = max(share, self.counters.seconds / (60 * self.config.max_minutes))
        return min(share, 1.0)

    def _expected_steps(self) -> int:
        return max(round(self.counters.step / max(self._progress(), 1e-9)), self.counters.step)

    def _reason_to_stop(self) -> str | None:
        if self.config.patience and self.counters.stale >= self.config.patience:
            return "early_stopping"
        if self.counters.step >= self.total_steps:
            return "steps"
        if self.config.max_minutes is not None and self.counters.seconds >= 60 * self.config.max_minutes:
            return "minutes"
        return None

    def _step(self) -> dict[str, Any]:
        """One optimiser step; a step that is not finite changes nothing but the counters."""
        start = time.perf_counter()
        rate = learning_rate(self._progress(), self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        first = self.counters.step * self.config.accumulate
        batches = [self.loader.batch(first + index) for index in range(self.config.accumulate)]
        counts = {name: int(sum(objective.count(batch) for batch in batches)) for name, objective in self._cpu_objectives().items()}
        sums = dict.fromkeys(counts, 0.0)
        suspects = []  # micro-batches whose loss is not finite
        for index, batch in enumerate(batches):
            self._seed(first + index)
            total, parts = self._loss(batch, counts)
            total.backward()
            for name, part in parts.items():
                sums[name] += float(part)
            if not all(math.isfinite(part) for part in parts.values()):
                suspects.append(first + index)
        norm = float(clip_gradient(self.parameters.values(), self.config.clip))
        loss = sum(weight * sums[name] / max(counts[name], 1) for name, weight in self.config.objectives.items())
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
            for name, count in counts.items():
                self._window[name][0] += sums[name]
                self._window[name][1] += count
        else:
            self._skip("gradient" if math.isfinite(loss) else "loss", suspects or [*range(first, first + self.config.accumulate)])
        self.optimizer.zero_grad(set_to_none=True)
        self._count(batches, time.perf_counter() - start)
        facts = {
            "loss": loss,
            "tokens_per_second": self.counters.tokens_seen / self.counters.training_seconds,
            "best_tuning_loss": self.counters.best_loss,
        }
        if self.counters.step % self.config.log_every == 0:
            self._log_training(rate, norm)
        return facts

    def _seed(self, number: int) -> None:
        """What an objective draws belongs to the batch and not to what ran before, so that a resumed run draws the same."""
        torch.manual_seed((self.config.seed << 32) + number & (1 << 63) - 1)

    def _cpu_objectives(self) -> dict[str, Any]:
        return dict(self.objectives.items())

    def _loss(self, batch: PackedBatch, counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the loss, and each objective's sum (detached)."""
        batch = batch.to(self.device)
        with autocast(self.device, self.dtype):
            hidden = self.decoder(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
            sums = {name: objective(self.decoder, hidden, batch)[0] for name, objective in self.objectives.items()}
        weights = self.config.objectives
        total = torch.stack([weights[name] / max(counts[name], 1) * value for name, value in sums.items()]).sum()
        return total, {name: value.detach() for name, value in sums.items()}

    def _skip(self, what: str, batches: list[int]) -> None:
        """Write down which subjects' loss or gradient was not finite."""
        counters, limit, step = self.counters, self.config.skip_limit, self.counters.step + 1
        counters.skipped += 1
        histories = np.concatenate([self.loader.subjects(batch) for batch in batches])
        subjects = sorted({int(subject) for subject in self.store.histories.subject_id[histories]})
        self.journal.write({"kind": "skipped", "step": step, "what": what, "subjects": subjects})
        if counters.skipped > limit:
            raise TrainingError(
                f"{counters.skipped} steps up to step {step} had a {what} that is not finite (limit {limit}); "
                f"lower learning_rate, or use precision: float32; {self.journal.path} names the subjects"
            )
        self.journal.say(f"step {step:,}: the {what} is not finite; skipped, {counters.skipped} of at most {limit} ({LOG_FILE} names the subjects)")

    def _count(self, batches: list[PackedBatch], seconds: float) -> None:
        counters = self.counters
        counters.step += 1
        counters.training_seconds += seconds
        for batch in batches:
            counters.tokens_seen += batch.tokens
            counters.places += batch.token_id.numel()
            # positions 0 .. n-1 of a segment sum to n (n - 1) / 2
            counters.square_lengths += 2.0 * float(batch.position.sum()) + batch.tokens

    # -- the tuning split ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Loss on the tuning split; keeps the weights if they are the best so far."""
        if self.tuning is None:
            return
        sums = dict.fromkeys(self.config.objectives, 0.0)
        counts = dict.fromkeys(self.config.objectives, 0)
        self.module.eval()
        for index, batch in enumerate(self.tuning.evaluation(self.config.evaluation_batches)):
            self._seed(index)
            of_batch = {name: int(objective.count(batch)) for name, objective in self._cpu_objectives().items()}
            _, parts = self._loss(batch, of_batch)
            for name, part in parts.items():
                sums[name] += float(part)
                counts[name] += of_batch[name]
        self.module.train()
        losses = {name: sums[name] / max(counts[name], 1) for name in sums}
        loss = sum(self.config.objectives[name] * value for name, value in losses.items())
        self._judge(loss)
        best = self.counters.best_step == self.counters.step
        self.journal.write({"kind": "tuning", "step": self.counters.step, "tuning_loss": loss, "tuning": losses, "best": best})

    def _judge(self, loss: float) -> None:
        counters = self.counters
        if not math.isfinite(loss):
            counters.stale += 1
            return
        if counters.best_loss is None or loss < counters.best_loss:
            counters.best_loss, counters.best_step = loss, counters.step
            self.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.module.state_dict().items()}
        if counters.reference_loss is None or loss < counters.reference_loss * (1 - self.config.minimum_improvement):
            counters.reference_loss, counters.stale = loss, 0
        else:
            counters.stale += 1

    # -- log, checkpoints ---------------------------------------------------------------------------------------------------------

    def _log_training(self, rate: float, norm: float | None) -> None:
        counters = self.counters
        losses = {name: total / count if count else None for name, (total, count) in self._window.items()}
        if all(value is not None for value in losses.values()):
            self.counters.last_loss = sum(self.config.objectives[name] * value for name, value in losses.items() if value is not None)
        self._window = {name: [0.0, 0.0] for name in self._window}
        self.journal.write({
            "kind": "train",
            "step": counters.step,
            "loss": losses,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_seen": counters.tokens_seen,
            "tokens_per_second": (counters.tokens_seen - self._logged[0]) / max(counters.training_seconds - self._logged[1], 1e-9),
            "mfu": self._mfu(),
            "padding_share": 1 - counters.tokens_seen / counters.places,
            "seconds": counters.seconds,
            "skipped_steps": counters.skipped,
        })  # fmt: skip
        self._logged = (counters.tokens_seen, counters.training_seconds)

    def _mfu(self) -> float:
        """FLOP the model asks for (6 per weight and token, and attention) per second, as a share of the measured rate."""
        shape = self.decoder.config
        attention = 6 * shape.layers * shape.width * self.counters.square_lengths
        flop = 6 * shape.matmul_parameters * self.counters.tokens_seen + attention
        return flop / self.counters.training_seconds / self.rate

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        files = {
            checkpoint.WEIGHTS: dict(self.module.state_dict()),
            checkpoint.OPTIMIZER: checkpoint.optimizer_tensors(self.optimizer, names),
        }
        if self.best is not None:
            files[checkpoint.BEST] = self.best
        self.journal.flush()
        checkpoint.save(self.folder, self.counters.step, files, {"key": self.key, "counters": asdict(self.counters), "window": self._window})

    def _restore(self) -> None:
        checkpoint.clear_partial(self.folder)
        found, damaged = checkpoint.newest(self.folder)
        self.journal.start(0 if found is None else found.step)
        if found is not None:
            self.module.load_state_dict(found.tensors(checkpoint.WEIGHTS))
            checkpoint.restore_optimizer(self.optimizer, found.tensors(checkpoint.OPTIMIZER), self.parameters)
            self.best = found.tensors(checkpoint.BEST) or None
            self.counters = Counters(**found.state["counters"])
            self._window = found.state["window"]
            self.resumed_from = self.counters.step
            self._logged = (self.counters.tokens_seen, self.counters.training_seconds)
        if damaged:
            self.counters.damaged += damaged
            self.journal.write({"kind": "resumed", "step": self.counters.step, "damaged_checkpoints": damaged})
            where = f"going on from step {found.step:,}" if found is not None else "none is whole, beginning anew"
            self.journal.say(f"the checkpoint of step {', '.join(f'{step:,}' for step in damaged)} is damaged; {where}")

    def _summary(self, reason: str) -> TrainSummary:
        counters = self.counters
        kept_best = self.best is not None
        return TrainSummary(
            steps=counters.step,
            epochs=counters.step / self.steps_per_epoch,
            tokens_seen=counters.tokens_seen,
            seconds=counters.seconds,
            stop_reason=reason,
            train_loss=self.counters.last_loss,
            tuning_loss=counters.best_loss,
            best_step=counters.best_step if kept_best else counters.step,
            skipped_steps=counters.skipped,
            resumed_from=self.resumed_from,
            damaged_checkpoints=self.counters.damaged,
            parameters=sum(parameter.numel() for parameter in self.decoder.parameters()),
            tokens_per_second=counters.tokens_seen / max(counters.seconds, 1e-9),
            padding_share=1 - counters.tokens_seen / max(counters.places, 1),
            mfu=self._mfu() if counters.training_seconds else 0.0,
            matmul_rate=self.rate,
            precision=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            threads=torch.get_num_threads(),
        )


def _say(facts: dict[str, Any]) -> str:
    """One short line about a step."""
    best = facts.get("best_tuning_loss")
    return f"loss {facts['loss']:.3f}, {facts['tokens_per_second']:,.0f} tokens/s" + (f", best tuning loss {best:.3f}" if best is not None else "")
