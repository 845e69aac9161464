"""Layer distillation: Presto-L (2410.05167), and ASE (2408.05927) as its baseline in the same class.

With D(x; sigma | b) the denoiser that runs the blocks a budget b keeps, lambda EDM's weight, and sg "no gradient":

    L = lambda |D(x; sigma | b) - x0|^2  +  w lambda |D(x; sigma | b) - sg D(x; sigma | all)|^2

b falls with the noise by a :class:`presto_kernels.LayerSchedule`.  Presto-L drops interior blocks and keeps the last
ones, so that what the final layer reads keeps its variance; the model is told its budget; the second term is its own
full depth as a teacher.  ASE drops the last blocks, is told nothing and has no second term.  That Presto-L drops
inside, keeps the variance and is conditioned on the budget is the paper's; the weights, the schedule and how budgets
are drawn are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from presto_kernels import LayerSchedule
from presto_models.conditioning import Conditioning
from presto_models.diffusion import EDM, edm_loss_weight
from presto_models.diffusion.sampling import Sampling
from presto_models.distill.draws import check_cleanest, check_strata, stratified, training_sigmas
from presto_models.distill.task import DistillBatch, DistillConfig, DistillTask
from presto_models.training.seeding import generator
from presto_models.training.task import Player, shares


@dataclass(frozen=True)
class LayerConfig(DistillConfig):
    """What Presto-L and ASE compute.

    Args:
        edges, budgets: of the schedule (:class:`presto_kernels.LayerSchedule`); none: the default one, scaled to the
            teacher's depth.
        keep_last: how many of the last blocks every budget keeps; 0 is ASE.
        self_teacher: w, the weight of the second term; 0: it is not computed.
        free_share: how many of the samples draw their budget evenly from a third of the blocks to all, whatever their
            noise, so that one checkpoint serves every budget; the others follow the schedule.  0 for ASE.
        conditioned: whether the model is told its budget.
        strata: noise levels are drawn evenly from this many equal parts of their distribution in turn, and one sample
            in as many runs at full depth (not for ASE), so that every process runs every block in every step.
    """

    edges: tuple[float, ...] = ()
    budgets: tuple[int, ...] = ()
    keep_last: int = 1
    self_teacher: float = 1.0
    free_share: float = 0.5
    conditioned: bool = True
    strata: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.free_share <= 1:
            raise ValueError(f"free_share must be from 0 to 1, got {self.free_share}")
        if self.self_teacher < 0:
            raise ValueError(f"self_teacher must be at least 0, got {self.self_teacher}")
        if self.keep_last == 0 and self.free_share > 0:
            raise ValueError(
                f"free_share must be 0 where keep_last is 0 (ASE): blocks behind the largest budget are not trained; "
                f"got {self.free_share}"
            )


def make_schedule(
    num_blocks: int, *, edges: tuple[float, ...], budgets: tuple[int, ...], keep_last: int
) -> LayerSchedule:
    """The schedule of a config, for a teacher of this depth.

    Raises:
        ValueError: it does not fit the depth, or itself.
    """
    if not budgets and not edges:
        return LayerSchedule.default(num_blocks, keep_last=keep_last)
    try:
        return LayerSchedule(num_blocks, edges, budgets, keep_last)
    except ValueError as error:
        raise ValueError(f"edges and budgets do not fit a teacher of {num_blocks} blocks: {error}") from error


class LayerLoss(nn.Module):
    """(denoising, self-teacher) losses ``[B]`` of a batch sorted by falling budget."""

    def __init__(self, student: EDM, *, self_teacher: bool) -> None:
        super().__init__()
        self.student, self.self_teacher = student, self_teacher

    def forward(
        self, clean: Tensor, noisy: Tensor, sigma: Tensor, conditioning: Conditioning, budgets: list[int]
    ) -> tuple[Tensor, Tensor]:
        kept = self.student(noisy, sigma, conditioning, budgets=budgets)
        weight = edm_loss_weight(sigma, self.student.sigma_data)
        denoising = weight * (kept - clean).square().mean((1, 2))
        if not self.self_teacher:
            return denoising, torch.zeros_like(denoising)
        with torch.no_grad():
            full = self.student(noisy, sigma, conditioning)
        return denoising, weight * (kept - full).square().mean((1, 2))


class PrestoL(DistillTask):
    """A student whose blocks are dropped by noise level; with :class:`LayerConfig`'s ``keep_last=0`` it is ASE."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        depth = self.teacher.config.dit.num_blocks
        self.layers = make_schedule(depth, edges=config.edges, budgets=config.budgets, keep_last=config.keep_last)
        self.sigmas = training_sigmas(config.p_mean, config.p_std, self.teacher.config)
        self.lowest = max(math.ceil(depth / 3), config.keep_last, 1)
        self.ase = config.keep_last == 0
        check_strata(config.crops, config.strata, config.train.accumulate)
        if self.ase:
            check_cleanest(self.sigmas, config.strata, self.layers)
        self.student = self.teacher.student(keep_last=config.keep_last)
        largest = max(self.layers.budgets) if self.ase else depth
        train_what_runs(self.student, largest, conditioned=config.conditioned)
        self.loss_module = LayerLoss(self.student, self_teacher=config.self_teacher > 0)
        self.players = (Player("student", self.loss_module),)

    def batch(self, step: int, part: int, parts: int) -> DistillBatch:
        config = self.config
        kind, _, mine = self.music.share(step, part, parts)
        check_share(mine, config.strata, parts)
        sigmas, budgets = [], []
        for sample in mine:
            random = generator(self.seed, "sigma", step, sample)
            quantile, free, which = stratified(sample, config.strata, random), *torch.rand(2, generator=random).tolist()
            sigma = self.sigmas(quantile)
            if not self.ase and sample % config.strata == step % config.strata:
                budget = self.layers.num_blocks
            elif free < config.free_share:
                budget = self.lowest + int(which * (self.layers.num_blocks - self.lowest + 1))
            else:
                budget = self.layers.budget(sigma)
            sigmas.append(sigma)
            budgets.append(budget)
        return self.batch_of(kind, step, mine, {"noise": torch.tensor(sigmas)}, budgets)

    def loss(self, player: Player, module: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        denoising, own = self._losses(module, batch, batch.budgets)
        batch.seen = {"loss": denoising.detach(), "self-teacher": own.detach()}
        parts = {"denoising": denoising.detach().mean(), "self_teacher": own.detach().mean()}
        return denoising.mean() + self.config.self_teacher * own.mean(), parts

    def validate(self, rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The denoising loss at noise levels spread evenly: by the schedule, at full depth, at a third of it.

        Beside each chunk stands a sample of the largest budget that does not count: under FSDP2 every process has to
        run the same blocks, whichever levels are in its share.
        """
        count = self.config.validation_crops
        levels = torch.tensor([self.sigmas((i + 0.5) / count) for i in range(count)])
        full = self.layers.num_blocks
        budgets = {"scheduled": None, "third": self.lowest} | ({} if self.ase else {"full": full})
        sums = {name: (torch.zeros(()), torch.zeros(())) for name in budgets}
        for samples, counts in shares(count, rank, world, max(1, self.config.crops[0].batch // world)):
            samples, counts = [*samples, samples[0]], torch.cat((counts, torch.zeros(1)))
            for name, fixed in budgets.items():
                each = [self.layers.budget(float(levels[s])) if fixed is None else fixed for s in samples]
                each[-1] = max(self.layers.budgets) if fixed is None else fixed
                order = sorted(range(len(samples)), key=lambda i: -each[i])
                examples = self.music.validation([samples[i] for i in order])
                batch = DistillBatch(
                    **vars(examples),
                    seeds=torch.tensor([samples[i] for i in order]),
                    sigmas={"noise": levels[[samples[i] for i in order]]},
                ).to(self.device)
                losses, _ = self._losses(self.loss_module, batch, [each[i] for i in order])
                total, number = sums[name]
                total += (losses.cpu() * counts[order]).sum()
                number += counts.sum()
        return sums

    def sampling(self) -> Sampling:
        return self.teacher.config.sampling

    def schedule(self) -> LayerSchedule | None:
        return self.layers

    def _losses(self, module: nn.Module, batch: DistillBatch, budgets: list[int] | None) -> tuple[Tensor, Tensor]:
        sigma = batch.sigmas["noise"]
        noisy, conditioning = batch.noised(batch.clean, sigma, 0), self.condition(batch)
        with self.low_precision():
            losses: tuple[Tensor, Tensor] = module(batch.clean, noisy, sigma, conditioning, budgets)
        return losses


def train_what_runs(student: EDM, largest: int, *, conditioned: bool) -> None:
    """Freeze the blocks that no budget up to ``largest`` keeps: they stay the teacher's.  A parameter that never has a
    gradient would stop DDP."""
    dit = student.dit
    kept = LayerSchedule(dit.config.num_blocks, (), (largest,), dit.config.keep_last).kept(0.0)  # type: ignore[union-attr,arg-type]
    for index, block in enumerate(dit.blocks):  # type: ignore[arg-type]
        block.requires_grad_(index in kept)
    dit.condition.budget.requires_grad_(conditioned)  # type: ignore[union-attr]


def check_share(mine: range, strata: int, parts: int) -> None:
    """Whether a process's share of a batch has a sample of every stratum."""
    if len(mine) < strata:
        raise ValueError(
            f"a batch split over {parts} processes and micro-batches gives each {len(mine)} samples; at least strata = "
            f"{strata} are needed, so that the blocks of the largest budget run in every process: raise crops.batch, "
            "or lower train.accumulate"
        )
