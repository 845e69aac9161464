"""The training loop, one for every task: Lightning Fabric for processes and devices, the rest in the open."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from presto_models.training.config import TrainConfig
from presto_models.training.ema import EMA
from presto_models.training.journal import Journal
from presto_models.training.run_folder import RunFolder
from presto_models.training.schedule import learning_rate_factor
from presto_models.training.sharding import whole
from presto_models.training.state import capture, restore
from presto_models.training.task import NonFiniteError, Player, Task

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.wrappers import _FabricModule

AHEAD = THREADS = 4  # batches made while the one before is computed
STOP, CHECKPOINT = 2.0, 1.0


class Trainer:
    """Trains a task's players up to ``config.steps``, from the folder's newest checkpoint where there is one.

    After it was stopped or killed at any moment, the run that goes on from its checkpoint computes bitwise what an
    uninterrupted one computes (same machine, same number of processes and threads): whatever is random comes from the
    seed and the position, and the state is weights, averages, optimisers and the step, nothing else.
    """

    def __init__(self, task: Task, config: TrainConfig, folder: RunFolder, fabric: Fabric, *, name: str) -> None:
        self.task, self.config, self.folder, self.fabric, self.name = task, config, folder, fabric, name
        task.to(fabric.device)
        self.modules: dict[str, _FabricModule] = {}
        self.optimizers: dict[str, torch.optim.AdamW] = {}
        self.averages: dict[str, EMA] = {}
        for player in task.players:
            self.modules[player.name] = fabric.setup_module(player.module)
            # After the module: sharding replaces its parameters.
            self.optimizers[player.name] = self._optimizer(player)
            self.averages[player.name] = EMA(player.module, config.ema_decay)
        self.step = 0
        self._stop = False

    def run(self, *, max_minutes: float | None = None) -> int:
        """Train; returns the steps that are done: fewer than ``config.steps`` after a signal or ``max_minutes``.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite; the checkpoint of before stays.
        """
        self._restore()
        deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        saved_at, saved_step = time.monotonic(), self.step
        with ExitStack() as stack:
            journal: Journal | None = None
            if self.fabric.is_global_zero:
                self.folder.create()
                journal = Journal(self.folder.path, task=self.name, start=self.step, steps=self.config.steps)
                stack.enter_context(journal)
            stack.enter_context(_signals(self))
            batches = stack.enter_context(self._batches())
            logged: dict[str, list[Tensor]] = {}
            while self.step < self.config.steps:
                minutes = (time.monotonic() - saved_at) / 60
                wish = CHECKPOINT if 0 < self.config.checkpoint_minutes <= minutes else 0.0
                if self._stop or (deadline is not None and time.monotonic() >= deadline):
                    wish = STOP
                parts, wish = self._one_step(next(batches), wish)
                for part, value in parts.items():
                    logged.setdefault(part, []).append(value)
                self.step += 1
                if journal is not None:
                    journal.advance(self.step)
                if self._due(self.config.log_every):
                    self._log(journal, logged)
                    logged = {}
                if self._due(self.config.validate_every):
                    self._validate(journal)
                if self._due(self.config.sample_every):
                    self._sample(journal)
                if wish or self._due(self.config.checkpoint_every):
                    self._save()
                    saved_at, saved_step = time.monotonic(), self.step
                if wish == STOP:
                    break
            if saved_step != self.step:
                self._save()
            if journal is not None:
                journal.say(f"{self.name}: {self.step} of {self.config.steps} steps, in {self.folder.path}")
        return self.step

    def stop(self) -> None:
        """Checkpoint and leave after the step that is running."""
        self._stop = True

    def _one_step(self, micro: list[Any], wish: float) -> tuple[dict[str, Tensor], float]:
        """One optimiser step of every player whose turn it is; the logged parts, and what any process wishes."""
        device = self.fabric.device
        logged: dict[str, Tensor] = {}
        micro = [batch.to(device) for batch in micro]
        for player in self.task.players:
            if not player.moves(self.step):
                continue
            module, optimizer = self.modules[player.name], self.optimizers[player.name]
            total = torch.zeros((), device=device)
            parts: dict[str, Tensor] = {}
            for index, batch in enumerate(micro):
                with self.fabric.no_backward_sync(module, enabled=index + 1 < len(micro)):
                    loss, named = self.task.loss(player, module, batch, self.step)
                    self.fabric.backward(loss / len(micro))
                total += loss.detach() / len(micro)
                for name, value in named.items():
                    parts[name] = parts.get(name, 0.0) + value / len(micro)
            norm = whole(torch.nn.utils.clip_grad_norm_(player.module.parameters(), self.config.clip))
            # One question to the device a step, before the weights change.
            bad = ~(total.isfinite() & norm.isfinite())
            flags = torch.stack((bad.float(), torch.full_like(total, wish)))
            stopped, wish = self._over_processes(flags, "max").tolist()
            if stopped:
                self._raise(player, micro, total, norm, parts)
            self._set_learning_rate(player)
            optimizer.step()
            optimizer.zero_grad()
            self.averages[player.name].update(player.moved(self.step))
            prefix = "" if len(self.task.players) == 1 else f"{player.name}/"
            logged |= {f"{prefix}loss": total, f"{prefix}gradient_norm": norm}
            logged |= {f"{prefix}{name}": value for name, value in parts.items()}
        return logged, wish

    def _raise(self, player: Player, micro: list[Any], loss: Tensor, norm: Tensor, parts: dict[str, Tensor]) -> None:
        named = ", ".join(f"{name} {float(value):.6g}" for name, value in parts.items())
        batches = "; ".join(self.task.describe(batch) for batch in micro)
        raise NonFiniteError(
            f"step {self.step}, {player.name}: loss {float(loss):.6g}, gradient norm {float(norm):.6g}"
            f"{f' ({named})' if named else ''}. Process {self.fabric.global_rank} had {batches}. "
            f"The last checkpoint, of step {self.folder.latest_step()}, stays in {self.folder.path}"
        )

    def _over_processes(self, values: Tensor, how: str) -> Tensor:
        return values if self.fabric.world_size == 1 else cast(Tensor, self.fabric.all_reduce(values, reduce_op=how))

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _optimizer(self, player: Player) -> torch.optim.AdamW:
        config = self.config
        trained = [weight for weight in player.module.parameters() if weight.requires_grad]
        groups = [
            {"params": [w for w in trained if w.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [w for w in trained if w.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=player.learning_rate or config.learning_rate,
            betas=player.betas or config.betas,
            eps=config.eps,
            fused=self.fabric.device.type in ("cpu", "cuda"),
        )

    def _set_learning_rate(self, player: Player) -> None:
        config = self.config
        factor = learning_rate_factor(
            self.step - player.start,
            steps=config.steps - player.start,
            warmup=config.warmup_steps,
            schedule=config.schedule,
            decay=config.decay_steps,
            floor=config.floor,
        )
        for group in self.optimizers[player.name].param_groups:
            group["lr"] = (player.learning_rate or config.learning_rate) * factor

    @contextmanager
    def _batches(self) -> Iterator[Iterator[list[Any]]]:
        """The micro-batches of every step from here on, made ahead in a thread."""
        rank, micro = self.fabric.global_rank, self.config.accumulate
        parts = self.fabric.world_size * micro

        def make(step: int) -> list[Any]:
            # Micro-batch m of all processes together is one stretch of the batch.
            return [self.task.batch(step, m * self.fabric.world_size + rank, parts) for m in range(micro)]

        with ThreadPoolExecutor(THREADS, "batches") as pool:

            def walk() -> Iterator[list[Any]]:
                waiting: list[Future[list[Any]]] = []
                for step in range(self.step, self.config.steps):
                    while len(waiting) < AHEAD and step + len(waiting) < self.config.steps:
                        waiting.append(pool.submit(make, step + len(waiting)))
                    yield waiting.pop(0).result()

            try:
                yield walk()
            finally:
                pool.shutdown(cancel_futures=True)

    def _log(self, journal: Journal | None, logged: dict[str, list[Tensor]]) -> None:
        """The means since the last time, over steps and processes."""
        means = torch.stack([torch.stack(values).float().mean() for values in logged.values()])
        values = dict(zip(logged, self._over_processes(means, "mean").tolist(), strict=True))
        if journal is not None:
            rate = self.optimizers[self.task.players[0].name].param_groups[0]["lr"]
            journal.log(self.step, {**values, "learning_rate": rate})
        self.task.watch(self.step, values)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Every player's module with its averaged weights, without gradients."""
        with torch.no_grad(), ExitStack() as stack:
            for player in self.task.players:
                stack.enter_context(self.averages[player.name].applied())
                stack.callback(player.module.train)
                player.module.eval()
            yield

    def _validate(self, journal: Journal | None) -> None:
        with self._averaged():
            sums = self.task.validate(self.fabric.global_rank, self.fabric.world_size)
        if not sums:
            return
        table = torch.stack([torch.stack(pair).double() for pair in sums.values()]).to(self.fabric.device)
        table = self._over_processes(table, "sum")
        values = (table[:, 0] / table[:, 1].clamp(min=1)).tolist()
        if journal is not None:
            journal.validated(self.step, dict(zip(sums, values, strict=True)))
            journal.resume_clock()

    def _sample(self, journal: Journal | None) -> None:
        with self._averaged():
            samples = self.task.sample()
        if journal is not None and samples is not None:
            journal.samples(self.step, samples)
            journal.resume_clock()

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {}
        for player in self.task.players:
            state = capture(player.module, self.optimizers[player.name], self.averages[player.name])
            tensors |= {f"{player.name}.{key}": value for key, value in state.items()}
        if self.fabric.is_global_zero:
            self.folder.save(self.step, tensors)
            averaged = {player.name: under(tensors, f"{player.name}.ema.") for player in self.task.players}
            self.task.export(self.folder.path, averaged)
        self.fabric.barrier()

    def _restore(self) -> None:
        loaded = self.folder.load()
        if loaded is None:
            return
        self.step, tensors = loaded
        for player in self.task.players:
            state = under(tensors, f"{player.name}.")
            restore(state, player.module, self.optimizers[player.name], self.averages[player.name])


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextmanager
def _signals(trainer: Trainer) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the step it is in; a second one ends it at once."""

    def stop(number: int, frame: object) -> None:
        trainer.stop()
        for name, handler in before.items():
            signal.signal(name, handler)

    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
