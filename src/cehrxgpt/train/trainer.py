"""One training run: batches in, weights out.

The loss of a step is, over all its micro-batches,

    sum over objectives o of  weight_o * (sum of terms of o) / (number of terms of o)

where the numbers are counted before the model runs, so that each micro-batch's gradient is already divided by the whole. Batches are drawn
from (seed, step), weights from the seed, and the learning rate follows the step: nothing else decides the result. Several ranks deal the
micro-batches of a step out among them, in turn, and add up sums, counts and gradients: what is learned does not depend on their number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cehrxgpt.errors import ConfigError, MismatchError, TrainingError
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives import build, prepare
from cehrxgpt.schema import TRAIN, TUNING
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.loader import Loader
from cehrxgpt.train import checkpoint
from cehrxgpt.train.ahead import Ahead
from cehrxgpt.train.blocks import prepare_blocks, should_compile
from cehrxgpt.train.config import TrainConfig
from cehrxgpt.train.course import Course
from cehrxgpt.train.dealing import check_dealing, deal, sizes
from cehrxgpt.train.device import autocast, choose_precision, matmul_rate
from cehrxgpt.train.distributed import Ranks, connect
from cehrxgpt.train.journal import LOG_FILE, Journal, Say, silent
from cehrxgpt.train.loss import WeightedLoss
from cehrxgpt.train.meter import Meter
from cehrxgpt.train.optim import clip_gradient, make_optimizer
from cehrxgpt.train.schedule import learning_rate, settles
from cehrxgpt.train.signals import Interruption
from cehrxgpt.train.spread import layout_of, load_local, local, spread, whole, without_exchange
from cehrxgpt.train.summary import Counters, TrainSummary
from cehrxgpt.train.trackers import Trackers

FEWEST_PAIRS = 2  # in a batch, on average, that contrastive can make something of
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
        ranks: the processes that train together; None: as they were launched.

    Raises:
        ConfigError: the device or the precision is not to be had, the micro-batches cannot be dealt out, or no head is there to settle.
        MismatchError: `start` is of another shape.
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
        ranks: Ranks | None = None,
    ):
        self.store, self.config, self.folder, self.key, self.progress = store, config, folder, key, progress
        self.ranks = ranks if ranks is not None else connect(config.device)
        check_dealing(config, self.ranks)
        self.device = self.ranks.device
        self.journal = Journal(folder / LOG_FILE, say, trackers, active=self.ranks.first)
        # Measured, and so decided by one for all.
        self.dtype: torch.dtype = getattr(torch, self.ranks.first_does(lambda: str(choose_precision(config, self.device)).removeprefix("torch.")))
        shape = config.model_config(len(store.vocabulary), store.vocabulary.care_settings)
        wanted = config.objective_settings()
        self.facts = prepare(wanted, store, shape, self.journal.say)
        self.settings = {name: one for name, one in wanted.items() if name in self.facts}
        self.weights: dict[str, float] = {name: one.weight for name, one in self.settings.items()}
        self.module = self._make_module(shape)
        if start is not None:
            if start.config != shape:
                raise MismatchError("the decoder to start from is not of the shape that settings and token store ask for; give its own `model` keys")
            self.module.decoder.load_state_dict(start.state_dict())
        self.module.to(self.device)
        self.decoder, self.objectives = self.module.decoder, self.module.objectives
        if config.settle_share and not list(self.objectives.parameters()):
            raise ConfigError(f"settle_share is {config.settle_share:g}, and {', '.join(self.weights)} has no head that could settle: leave it out")
        packed = config.packing == "packed" or (config.packing == "auto" and self.device.type != "cpu")
        compiled = should_compile(config.compile, self.device)
        prepare_blocks(self.decoder, compiled=compiled, packed=packed, checkpointed=config.activation_checkpointing)
        self.spread = spread(self.module, self.ranks, config.parallel)
        self.layout = layout_of(self.module, self.ranks)
        make_loader = partial(
            Loader,
            store,
            tokens_per_batch=config.tokens_per_batch,
            context=shape.context,
            seed=config.seed,
            packed=packed,
            pair_share=getattr(self.settings.get("contrastive"), "share", 0.0),
            ahead=any(objective.looks_ahead for objective in self.objectives.values()),
        )
        self.loader = make_loader(TRAIN)
        self.ahead = Ahead(self.loader.batch, pinned=self.device.type == "cuda")
        # Small data may have no tuning split: the last weights are kept then.
        self.tuning = make_loader(TUNING) if len(store.indices(TUNING)) else None
        self.parameters = dict(self.module.named_parameters())
        self.optimizer = make_optimizer(self.parameters.items(), config, self.dtype)
        self.steps_per_epoch = max(self.loader.batches_per_epoch // config.accumulate, 1)
        self.course = Course(config, config.steps or config.epochs * self.steps_per_epoch)
        self.evaluate_every = config.evaluate_every or max(min(self.steps_per_epoch // 2, 500), 1)
        self.counters = Counters()
        self.meter = Meter(self.weights, shape)
        self.best: dict[str, Tensor] | None = None
        self.resumed_from: int | None = None

    def _make_module(self, shape: ModelConfig) -> WeightedLoss:
        """Decoder and objectives with new weights, drawn from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            decoder = Decoder(shape)
            objectives = build(self.settings, self.facts, self.store.vocabulary, shape)
        return WeightedLoss(decoder, objectives, self.weights)

    # -- the run ------------------------------------------------------------------------------------------------------------------

    def run(self) -> TrainSummary:
        """Train to the end; the decoder then holds the best weights."""
        try:
            return self._run()
        finally:
            self.ahead.close()
            self.journal.finish()

    def _run(self) -> TrainSummary:
        with Interruption() as interruption, torch.random.fork_rng():
            self._restore()
            self._warn_of_lone_pairs()
            self.meter.matmul_rate = self.ranks.sum([matmul_rate(self.device, self.dtype)])[0]
            self._began = time.perf_counter() - self.counters.seconds
            reason = self._loop(interruption)
            self.decoder.requires_grad_(True)  # it has rested
            self._check_learnt()
            self._conclude(interruption)
        if self.best is not None:
            load_local(self.module, self.best)
        if self.layout.lengths:
            self._bring_together()
        return self._summary(reason)

    def _warn_of_lone_pairs(self) -> None:
        pairs = self.loader.pairs_per_batch
        if 0 < pairs < FEWEST_PAIRS:
            self.journal.say(
                f"objectives: contrastive gets about {pairs:.2g} pairs of windows in a batch, and learns only where there are two or more: raise "
                "its share or tokens_per_batch, or leave it out"
            )

    def _conclude(self, interruption: Interruption) -> None:
        """Save what the last step left, then log and look once more.

        Raises:
            TrainingError: no step had a term of any objective.
            KeyboardInterrupt: a process was told to stop meanwhile; resumed, only this is done again.
        """
        self.save()
        if self.counters.step % self.config.log_every:
            self._log_training(learning_rate(self.course.behind(self.counters), self.config), None)
        if self.counters.last_loss is None:
            raise TrainingError(f"no objective ({', '.join(self.weights)}) found anything to learn in {self.counters.step} steps; add next_token")
        if self.counters.step % self.evaluate_every:
            self._evaluate()
        if self._agree(interruption):
            raise KeyboardInterrupt(self.course.where_it_stands(self.counters))

    def _check_learnt(self) -> None:
        """Raise `TrainingError` where more steps were skipped than taken: such a model has hardly been trained."""
        steps, skipped = self.counters.step, self.counters.skipped
        if 2 * skipped > steps:
            raise TrainingError(
                f"{skipped} of {steps} steps had a loss or gradient that is not finite and were skipped: no model worth keeping came of it; "
                f"lower learning_rate and the objectives' weights, or use precision: float32; {self.journal.path} names the subjects"
            )

    def _bring_together(self) -> None:
        """Decoder and objectives in one piece again, on the processor; their weights on the first rank alone."""
        module = self._make_module(self.decoder.config)
        for name, tensor in self.module.state_dict().items():
            brought = whole(tensor)
            if self.ranks.first:
                module.state_dict()[name].copy_(brought)
        self.decoder, self.objectives = module.decoder, module.objectives

    def _loop(self, interruption: Interruption) -> str:
        """Step until there is a reason to stop.

        Raises:
            KeyboardInterrupt: a process was told to stop; a checkpoint of this moment is written.
        """
        saved_at = self.counters.seconds
        reason = self.course.reason_to_stop(self.counters)
        while reason is None:
            if self.counters.settling_from is None and settles(self.course.behind(self.counters), self.config):
                self._begin_to_settle()
            facts = self._step()
            if self.counters.step % self.evaluate_every == 0:
                self._evaluate()
            asked = self._agree(interruption)
            reason = self.course.reason_to_stop(self.counters)
            if asked:
                self.save()
                raise KeyboardInterrupt(self.course.where_it_stands(self.counters))
            if reason is None and self.counters.seconds - saved_at >= 60 * self.config.checkpoint_minutes:
                self.save()
                saved_at = self.counters.seconds
            if self.progress is not None:
                self.progress(self.counters.step, self.course.expected_steps(self.counters), _say(facts))
        return reason

    def _begin_to_settle(self) -> None:
        """From here on the decoder rests, with the best weights so far."""
        if self.counters.step % self.evaluate_every:
            self._evaluate()
        if self.best is not None:
            load_local(self.module, self.best)
        self.counters.settling_from = self.counters.step

    def _agree(self, interruption: Interruption) -> bool:
        """Whether any rank was told to stop; the first one's clock counts for all."""
        seconds = time.perf_counter() - self._began if self.ranks.first else 0.0
        asked, self.counters.seconds = self.ranks.sum([float(interruption.asked), seconds])
        return asked > 0

    # -- a step -------------------------------------------------------------------------------------------------------------------

    def _step(self) -> dict[str, Any]:
        """One optimiser step; a step that is not finite changes nothing but the counters."""
        start = time.perf_counter()
        rate = learning_rate(self.course.behind(self.counters), self.config)
        settling = self.counters.settling_from is not None
        forwards_only = settling and self.ranks.count == 1
        if forwards_only:
            self.decoder.requires_grad_(False)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        numbers = range(self.counters.step * self.config.accumulate, (self.counters.step + 1) * self.config.accumulate)
        mine = numbers[self.ranks.rank :: self.ranks.count]
        following = range(numbers.stop, numbers.stop + len(numbers))[self.ranks.rank :: self.ranks.count]
        batches = [batch.to(self.device) for batch in self.ahead(mine, following)]
        counts = self._count_terms(batches)
        parts = self._gradients(mine, batches, counts)
        if settling:  # several ranks exchange the decoder's gradients all the same: what spreads a module does not forget a part of it
            self.decoder.zero_grad(set_to_none=True)
        norm = float(clip_gradient(self.parameters.values(), self.config.clip))
        told = iter(self.ranks.sum([*(sum(column) for column in zip(*parts, strict=True)), *self._not_finite(parts), *sizes(batches)]))
        sums = {name: next(told) for name in counts}
        suspects = [number for number in numbers if next(told)]
        loss = sum(weight * sums[name] / max(counts[name], 1) for name, weight in self.weights.items())
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
            self.meter.add(sums, counts)
        else:
            self._skip("gradient" if math.isfinite(loss) else "loss", suspects or list(numbers))
        self.optimizer.zero_grad(set_to_none=True)
        self._advance(told, time.perf_counter() - start, forwards_only=forwards_only)
        if self.counters.step % self.config.log_every == 0:
            self._log_training(rate, norm)
        return {
            "loss": loss,
            "tokens_per_second": self.counters.tokens_seen / self.counters.training_seconds,
            "best_tuning_loss": self.counters.best_loss,
        }

    def _gradients(self, numbers: Iterable[int], batches: list[PackedBatch], counts: dict[str, int]) -> list[list[float]]:
        """Add up the gradients of this rank's micro-batches and exchange them with the last; each one's sums of terms."""
        found = []
        for index, (number, batch) in enumerate(zip(numbers, batches, strict=True)):
            self._seed(number)
            with nullcontext() if index == len(batches) - 1 else without_exchange(self.spread):
                total, parts = self._loss(batch, counts)
                (total if self.ranks.count == 1 else total * self.ranks.count).backward()  # ranks' gradients are averaged
            found.append(torch.stack([part.double() for part in parts.values()]))
        return torch.stack(found).tolist()

    def _not_finite(self, parts: list[list[float]]) -> list[float]:
        """For every micro-batch of the step, 1 where it is this rank's and its loss is not finite."""
        found = [0.0] * self.config.accumulate
        found[self.ranks.rank :: self.ranks.count] = [float(not all(map(math.isfinite, row))) for row in parts]
        return found

    def _seed(self, number: int) -> None:
        """What an objective draws belongs to the batch and not to what ran before, so that a resumed run draws the same."""
        torch.manual_seed((self.config.seed << 32) + number & (1 << 63) - 1)

    def _count_terms(self, batches: list[PackedBatch]) -> dict[str, int]:
        """Terms of each objective in the whole step, on all ranks."""
        mine = [float(sum(objective.count(batch) for batch in batches)) for objective in self._by_name().values()]
        return {name: int(count) for name, count in zip(self.weights, self.ranks.sum(mine), strict=True)}

    def _by_name(self) -> dict[str, Any]:
        return dict(self.objectives.items())

    def _loss(self, batch: PackedBatch, counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the loss, and each objective's sum (detached)."""
        module: nn.Module = self.spread if torch.is_grad_enabled() else self.module
        with autocast(self.device, self.dtype):
            return module(batch, counts)

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

    def _advance(self, totals: Iterator[float], seconds: float, *, forwards_only: bool) -> None:
        counters = self.counters
        counters.step += 1
        counters.training_seconds += seconds
        tokens, places, square_lengths = totals
        counters.tokens_seen += int(tokens)
        counters.settling_tokens += int(tokens) if forwards_only else 0
        counters.places += int(places)
        counters.square_lengths += square_lengths / (3 if forwards_only else 1)

    # -- the tuning split ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Loss on the tuning split; keeps the weights if they are the best so far."""
        if self.tuning is None:
            return
        names = list(self.weights)
        sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
        self.module.eval()
        for number, made, counted in deal(self.tuning.evaluation(self.config.evaluation_batches), self.ranks):
            batch = made.to(self.device)
            of_batch = {name: int(objective.count(batch)) for name, objective in self._by_name().items()}
            self._seed(number)
            _, parts = self._loss(batch, of_batch)
            for name, part in parts.items() if counted else ():
                sums[name] += float(part)
                counts[name] += of_batch[name]
        self.module.train()
        told = self.ranks.sum([*sums.values(), *map(float, counts.values())])
        losses = {name: told[index] / max(told[len(names) + index], 1) for index, name in enumerate(names)}
        loss = sum(self.weights[name] * value for name, value in losses.items())
        self._judge(loss)
        best = self.counters.best_step == self.counters.step
        self.journal.write({"kind": "tuning", "step": self.counters.step, "tuning_loss": loss, "tuning": losses, "best": best})

    def _judge(self, loss: float) -> None:
        if self.counters.judge(loss, self.config.minimum_improvement):
            self.best = {name: local(tensor).detach().to("cpu", copy=True) for name, tensor in self.module.state_dict().items()}

    # -- log, checkpoints ---------------------------------------------------------------------------------------------------------

    def _log_training(self, rate: float, norm: float | None) -> None:
        self.journal.write(self.meter.line(self.counters, rate, norm))

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        if not self.ranks.first and not self.layout.lengths:
            return
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        files = {
            checkpoint.WEIGHTS: {name: local(tensor) for name, tensor in self.module.state_dict().items()},
            checkpoint.OPTIMIZER: checkpoint.optimizer_tensors(self.optimizer, names),
        }
        if self.best is not None:
            files[checkpoint.BEST] = self.best
        state = {"key": self.key, "counters": asdict(self.counters), "window": self.meter.window, "log_bytes": self.journal.flush()}
        checkpoint.save(self.folder, self.counters.step, files, state, self.layout if self.layout.lengths else checkpoint.WHOLE)

    def _restore(self) -> None:
        step, damaged = self.ranks.first_does(lambda: checkpoint.prepare(self.folder))
        log_bytes: int | None = 0
        if step is not None:
            found = checkpoint.opened(self.folder, step)
            load_local(self.module, found.tensors(checkpoint.WEIGHTS, self.layout))
            checkpoint.restore_optimizer(self.optimizer, found.tensors(checkpoint.OPTIMIZER, self.layout), self.parameters)
            self.best = found.tensors(checkpoint.BEST, self.layout) or None
            self.counters = Counters(**found.state["counters"])
            self.meter.restore(found.state["window"], self.counters)
            self.resumed_from = self.counters.step
            log_bytes = found.state["log_bytes"]
        self.journal.start(self.counters.step, log_bytes)
        damaged = [one for one in damaged if one not in self.counters.damaged]  # others were told of already
        if damaged:
            self.counters.damaged += damaged
            self.journal.write({"kind": "resumed", "step": self.counters.step, "damaged_checkpoints": damaged})
            where = f"going on from step {step:,}" if step is not None else "none is whole, beginning anew"
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
            head_parameters=sum(parameter.numel() for parameter in self.objectives.parameters()),
            tokens_per_second=counters.tokens_seen / max(counters.seconds, 1e-9),
            padding_share=1 - counters.tokens_seen / max(counters.places, 1),
            mfu=self.meter.mfu(counters),
            matmul_rate=self.meter.matmul_rate,
            precision=str(self.dtype).removeprefix("torch."),
            device=self.device.type if self.ranks.count > 1 else str(self.device),
            ranks=self.ranks.count,
            threads=torch.get_num_threads(),
        )


def _say(facts: dict[str, Any]) -> str:
    """One short line about a step."""
    best = facts.get("best_tuning_loss")
    return f"loss {facts['loss']:.3f}, {facts['tokens_per_second']:,.0f} tokens/s" + (f", best tuning loss {best:.3f}" if best is not None else "")
