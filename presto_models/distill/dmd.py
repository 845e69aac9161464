"""Step distillation: Presto-S (2410.05167), distribution matching (DMD2, 2405.14867) with a GAN for EDM models.

Three networks start from the teacher: the generator G, the fake score mu_f, which learns to denoise what G makes, and
the frozen real score mu_r.  In each step the fake score and the discriminator on its hidden states move; in every fifth
G does:

    x_gen = G(y + sigma eps; sigma),   sigma ~ p_gen, the *inference* distribution, continuous; y real latents
    grad  = (mu_f(x) - mu_r(x)) / (mean |x_gen - mu_r(x)| + 1e-6),   x = x_gen + sigma' eps',   sigma' ~ p_DMD
    L_G   = 1/2 mean (x_gen - sg(x_gen - grad))^2  +  nu_1 L_adversarial
    L_f   = lambda |mu_f(x_gen + sigma'' eps''; sigma'') - x_gen|^2  +  nu_2 L_discriminator,   sigma'' ~ p_DSM

mu_r is guided (classifier-free), mu_f is not; the normaliser's mean is over a sample's positions and channels, fp32.
Roles are the paper's; constants are ours where METHODS could not read them, and every one is in :class:`StepConfig`.

Presto-LS is the same with a generator that starts from Presto-L's model and drops layers inside G by its schedule; the
real score stays the full-depth teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from presto_kernels import LayerSchedule
from presto_models.checkpoint import find_folder
from presto_models.components import DIFFUSION_FILE
from presto_models.conditioning import Conditioning
from presto_models.diffusion import EDM, edm_loss_weight
from presto_models.diffusion.sampling import Sampling
from presto_models.diffusion_config import DiffusionConfig, load_diffusion
from presto_models.distill.discriminator import SHORTEST, Discriminator, discriminator_loss, generator_loss
from presto_models.distill.draws import check_cleanest, check_strata, inference_sigmas, stratified, training_sigmas
from presto_models.distill.layers import check_share, train_what_runs
from presto_models.distill.ode import guided
from presto_models.distill.task import DistillBatch, DistillConfig, DistillTask
from presto_models.training.seeding import generator, seeded_weights
from presto_models.training.task import DivergedError, Player

GENERATE, MATCH, FAKE_DSM, ADVERSARIAL_FAKE, ADVERSARIAL_REAL = range(5)  # which of a sample's noises
COLLAPSED, PINNED, DIVERGED = 0.02, 0.02, 4.0


@dataclass(frozen=True)
class StepConfig(DistillConfig):
    """What Presto-S computes.  Where the paper's value could not be read it is our choice.

    Args:
        steps: of the walk the checkpoint is sampled with; any other number runs too.
        continuous: p_gen draws sigma from the continuous limit of the walk's noise levels; False: from the ``steps``
            levels themselves, the ablation.
        rho: of those levels.
        pure_noise: the share of samples that start from sigma_max and no music at all, as a walk does.
        guidance: w, of the real score; None: the teacher's own.
        p_dsm: the noise of the fake score's loss: the teacher's training distribution, the inference distribution, or
            half of each.
        matching: the weight of distribution matching; 0: off, the ablation.
        adversarial: nu_1; 0: no GAN.  discriminator: nu_2.
        relativistic: the GAN's losses compare pairs of one prompt.
        head_blocks: behind which blocks of the fake score a discriminator looks; none: behind the middle one.
        head_width, head_groups: of the heads.
        updates: fake and discriminator updates per generator update.
        warmup: steps before the generator first moves.
        fake_learning_rate: None: the run's.
        start: a checkpoint the generator starts from instead of the teacher (Presto-LS: a Presto-L model; the reverse
            order: a Presto-S one).
        drop_layers: whether blocks are dropped inside the generator, by the schedule of ``start`` where it has one.
        strata: as for :class:`LayerConfig`.
    """

    steps: int = 4
    continuous: bool = True
    rho: float = 7.0
    pure_noise: float = 0.1
    guidance: float | None = None
    p_dsm: Literal["training", "inference", "mixture"] = "training"
    matching: float = 1.0
    adversarial: float = 1e-2
    discriminator: float = 1e-2
    relativistic: bool = False
    head_blocks: tuple[int, ...] = ()
    head_width: int = 224
    head_groups: int = 32
    updates: int = 5
    warmup: int = 0
    fake_learning_rate: float | None = None
    start: str | None = None
    drop_layers: bool = False
    strata: int = 4

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("updates", 1), ("warmup", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.p_dsm not in ("training", "inference", "mixture"):
            raise ValueError(f"p_dsm must be training, inference or mixture; got {self.p_dsm!r}")
        if not 0 <= self.pure_noise <= 1 / self.strata:
            raise ValueError(
                f"pure_noise must be from 0 to 1 / strata = {1 / self.strata:g} (it is drawn within the noisiest "
                f"stratum), got {self.pure_noise}"
            )
        for name in ("matching", "adversarial", "discriminator"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.matching == 0 and self.adversarial == 0:
            raise ValueError("matching and adversarial are both 0: the generator would have nothing to learn from")
        short = [crop.latents for crop in self.crops if crop.latents < SHORTEST]
        if self.adversarial > 0 and short:
            raise ValueError(
                f"crops.latents must be at least {SHORTEST} for the patches of a discriminator, got {short[0]}"
            )


@dataclass
class StepBatch(DistillBatch):
    """``signal`` ``[B]``: 0 where the generator starts from noise alone, 1 elsewhere."""

    signal: Tensor = field(default_factory=lambda: torch.empty(0))


class Generator(nn.Module):
    """x_gen = G(x; sigma), with blocks dropped inside where the batch has budgets."""

    def __init__(self, student: EDM) -> None:
        super().__init__()
        self.student = student

    def forward(self, x: Tensor, sigma: Tensor, conditioning: Conditioning, budgets: list[int] | None) -> Tensor:
        return self.student(x, sigma, conditioning, budgets=budgets)


class FakeScore(nn.Module):
    """mu_f and the discriminator on its hidden states."""

    def __init__(self, score: EDM, discriminator: Discriminator | None, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.score, self.discriminator, self.blocks = score, discriminator, blocks

    def forward(
        self,
        generated: Tensor,
        noisy: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        judged: Tensor | None,
        sigma_judged: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(EDM's loss ``[B]`` of denoising what was generated, scores ``[2B, P]`` of generated and real)."""
        denoised = self.score(noisy, sigma, conditioning)
        dsm = edm_loss_weight(sigma, self.score.sigma_data) * (denoised - generated).square().mean((1, 2))
        if judged is None or sigma_judged is None:
            return dsm, None
        return dsm, self.scores(judged, sigma_judged, Conditioning.cat((conditioning, conditioning)))

    def scores(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """``[B, P]`` of latents at noise levels sigma."""
        assert self.discriminator is not None
        scores: Tensor = self.discriminator(self.score.hidden(x, sigma, conditioning, self.blocks))
        return scores


def matching_gradient(generated: Tensor, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """(fake - real) / (mean |generated - real| + 1e-6), and that mean ``[B]``, over a sample's positions and channels.

    DMD2's gradient in x0 space (2405.14867, eq. 4 and its code); all ``[B, N, C]``, fp32.
    """
    distance = (generated - real).abs().mean((1, 2))
    return (fake - real) / (distance[:, None, None] + 1e-6), distance


class PrestoS(DistillTask):
    """A few-step generator of a teacher."""

    def __init__(self, config: StepConfig) -> None:
        super().__init__(config)
        teacher = self.teacher.config
        self.guidance = teacher.sampling.guidance if config.guidance is None else config.guidance
        self.layers = self._start()
        self.student.dit.requires_grad_(True)
        largest = teacher.dit.num_blocks if self.layers is None else max(self.layers.budgets)
        train_what_runs(self.student, largest, conditioned=self.layers is not None)
        self.p_gen = inference_sigmas(teacher, rho=config.rho, levels=None if config.continuous else config.steps)
        self.p_training = training_sigmas(config.p_mean, config.p_std, teacher)
        check_strata(config.crops, config.strata, config.train.accumulate)
        if self.layers is not None:
            check_cleanest(self.p_gen, config.strata, self.layers)
        score = self.teacher.student()
        with seeded_weights(self.seed):
            discriminator = self._discriminator()
        self.blocks = self._head_blocks()
        self.fake = FakeScore(score, discriminator, self.blocks)
        self.generator = Generator(self.student)
        self.players = (
            Player("fake", self.fake, config.fake_learning_rate),
            Player("generator", self.generator, start=config.warmup, every=config.updates),
        )

    def batch(self, step: int, part: int, parts: int) -> StepBatch:
        config, teacher = self.config, self.teacher.config
        kind, _, mine = self.music.share(step, part, parts)
        check_share(mine, config.strata, parts)
        sigmas: dict[str, list[float]] = {"generator": [], "matching": [], "fake": [], "adversarial": []}
        signal = []
        for sample in mine:
            random = generator(self.seed, "sigma", step, sample)
            level = self.p_gen(stratified(sample, config.strata, random))
            pure, mixed, *quantiles = (torch.rand(5, generator=random) * 0.999998 + 1e-6).tolist()
            noisiest = sample % config.strata == config.strata - 1
            from_noise = noisiest and pure < config.pure_noise * config.strata
            inference = config.p_dsm == "inference" or (config.p_dsm == "mixture" and mixed < 0.5)
            sigmas["generator"].append(teacher.sampling.sigma_max if from_noise else level)
            sigmas["fake"].append((self.p_gen if inference else self.p_training)(quantiles[0]))
            sigmas["matching"].append(self.p_training(quantiles[1]))
            sigmas["adversarial"].append(self.p_training(quantiles[2]))
            signal.append(0.0 if from_noise else 1.0)
        budgets = None if self.layers is None else [self.layers.budget(sigma) for sigma in sigmas["generator"]]
        drawn = {name: torch.tensor(values) for name, values in (*sigmas.items(), ("signal", signal))}
        batch = self.batch_of(kind, step, mine, drawn, budgets)
        return StepBatch(**vars(batch) | {"signal": batch.sigmas.pop("signal")})

    def loss(self, player: Player, module: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        turn = self._fake_loss if player.name == "fake" else self._generator_loss
        return turn(module, batch, self.condition(batch))

    def _generate(self, module: nn.Module, batch: StepBatch, conditioning: Conditioning) -> Tensor:
        sigma = batch.sigmas["generator"]
        x = batch.noised(batch.clean * batch.signal[:, None, None], sigma, GENERATE)
        with self.low_precision():
            generated: Tensor = module(x, sigma, conditioning, batch.budgets)
        return generated

    def _fake_loss(
        self, module: nn.Module, batch: StepBatch, conditioning: Conditioning
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            generated = self._generate(self.generator, batch, conditioning)
        sigma, sigma_judged, judged = batch.sigmas["fake"], None, None
        if self.fake.discriminator is not None:
            level = batch.sigmas["adversarial"]
            fake, real = batch.noised(generated, level, ADVERSARIAL_FAKE), self._real(batch)
            judged, sigma_judged = torch.cat((fake, real)), torch.cat((level, level))
        with self.low_precision():
            noisy = batch.noised(generated, sigma, FAKE_DSM)
            dsm, scores = module(generated, noisy, sigma, conditioning, judged, sigma_judged)
        batch.seen = {"fake": dsm.detach()}
        loss, parts = dsm.mean(), {"dsm": dsm.detach().mean(), "rms": generated.square().mean().sqrt()}
        if scores is not None:
            of_fake, of_real = scores.chunk(2)
            adversarial = discriminator_loss(of_real, of_fake, relativistic=self.config.relativistic)
            loss = loss + self.config.discriminator * adversarial
            parts |= {"discriminator": adversarial.detach(), "margin": (of_real - of_fake).detach().mean()}
        return loss, parts

    def _generator_loss(
        self, module: nn.Module, batch: StepBatch, conditioning: Conditioning
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        generated = self._generate(module, batch, conditioning)
        loss = generated.new_zeros(())
        parts: dict[str, Tensor] = {}
        if config.matching > 0:
            gradient, distance = self._matching(generated.detach(), batch, conditioning)
            matching = 0.5 * (generated - (generated.detach() - gradient)).square().mean()
            loss = loss + config.matching * matching
            batch.seen = {"distance": distance}
            parts |= {"matching": matching.detach(), "distance": distance.mean()}
        if config.adversarial > 0:
            adversarial, gradient = self._adversarial(generated.detach(), batch, conditioning)
            # Its value, and the gradient that has passed through the frozen discriminator already.
            loss = loss + config.adversarial * (adversarial + ((generated - generated.detach()) * gradient).sum())
            parts["adversarial"] = adversarial
        return loss, parts

    @torch.no_grad()
    def _matching(self, generated: Tensor, batch: StepBatch, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        sigma = batch.sigmas["matching"]
        noisy = batch.noised(generated, sigma, MATCH)
        with self.low_precision():
            fake = self.fake.score(noisy, sigma, conditioning)
            if self.guidance == 1:
                real = self.real(noisy, sigma, conditioning)
            else:
                real = guided(self.real, conditioning, torch.full_like(sigma, self.guidance))(noisy, sigma)
        return matching_gradient(generated, real, fake)

    def _adversarial(self, generated: Tensor, batch: StepBatch, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """The generator's adversarial loss and its gradient in what was generated; the weights get none."""
        sigma, of_real = batch.sigmas["adversarial"], None
        with self.low_precision():
            if self.config.relativistic:
                with torch.no_grad():
                    of_real = self.fake.scores(self._real(batch), sigma, conditioning)
            generated = generated.requires_grad_()
            noisy = batch.noised(generated, sigma, ADVERSARIAL_FAKE)
            loss = generator_loss(of_real, self.fake.scores(noisy, sigma, conditioning))
        (gradient,) = torch.autograd.grad(loss, generated)
        return loss.detach(), gradient

    def _real(self, batch: StepBatch) -> Tensor:
        return batch.noised(batch.clean, batch.sigmas["adversarial"], ADVERSARIAL_REAL)

    def validate(self, rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
        """See :meth:`DistillTask.latent_distance`; every process computes all of it."""
        return {"latent_distance": (torch.tensor(self.latent_distance()), torch.tensor(1.0))}

    def watch(self, step: int, means: Mapping[str, float]) -> None:
        data = self.teacher.config.sigma_data
        rms, distance = means.get("fake/rms", data), means.get("generator/distance")
        if rms > DIVERGED * data:
            raise DivergedError(
                f"step {step}: what the generator makes has a root mean square of {rms:.3g}, the data {data:.3g}: it "
                "diverges. Lower train.learning_rate or guidance, or raise updates"
            )
        if distance is not None and distance < COLLAPSED * data:
            raise DivergedError(
                f"step {step}: mean |x_gen - m_real| is {distance:.3g}, next to nothing beside the data's {data:.3g}: "
                "the generator has collapsed to what the teacher leaves as it is. Raise adversarial or guidance, lower "
                "train.learning_rate"
            )
        if means.get("fake/discriminator", 1.0) < PINNED:
            raise DivergedError(
                f"step {step}: the discriminator's loss is {means['fake/discriminator']:.3g}: it tells every sample "
                "and has nothing to teach. Lower discriminator or fake_learning_rate, or raise adversarial"
            )

    def sampling(self) -> Sampling:
        config, levels = self.config, self.teacher.config.sampling
        return Sampling(
            "pingpong",
            steps=config.steps,
            guidance=1.0,
            sigma_min=levels.sigma_min,
            sigma_max=levels.sigma_max,
            rho=config.rho,
            spacing="interval",
        )

    def schedule(self) -> LayerSchedule | None:
        return self.layers

    def described(self) -> DiffusionConfig:
        return replace(super().described(), guidance_baked=self.guidance)

    def _start(self) -> LayerSchedule | None:
        """Makes ``self.student``; the schedule by which its blocks are dropped, or None."""
        config, schedule = self.config, None
        self.student = self.teacher.student()
        if config.start is not None:
            started, dit, _ = load_diffusion(find_folder(config.start) / DIFFUSION_FILE)
            self.teacher.check_architecture(f"start {config.start!r}", dit.config)
            self.student, schedule = EDM(dit.train(), self.teacher.config.sigma_data), started.schedule
        if not config.drop_layers:
            return None
        keep_last = self.student.dit.config.keep_last  # type: ignore[union-attr]
        return schedule or LayerSchedule.default(self.teacher.config.dit.num_blocks, keep_last=keep_last)  # type: ignore[arg-type]

    def _head_blocks(self) -> tuple[int, ...]:
        depth = self.teacher.config.dit.num_blocks
        blocks = self.config.head_blocks or (depth // 2 - (depth > 1),)
        if list(blocks) != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] >= depth:
            raise ValueError(f"head_blocks must be increasing indices of the teacher's {depth} blocks, got {blocks}")
        return tuple(blocks)

    def _discriminator(self) -> Discriminator | None:
        config = self.config
        if config.adversarial == 0:
            return None
        heads = len(config.head_blocks) or 1
        return Discriminator(self.teacher.config.dit.dim, heads, width=config.head_width, groups=config.head_groups)


class PrestoLS(PrestoS):
    """Presto-S whose generator is a Presto-L model and drops its layers as it generates; layers first, then steps."""

    def __init__(self, config: StepConfig) -> None:
        if not config.drop_layers:
            raise ValueError("drop_layers must be true for Presto-LS; without it the method is Presto-S")
        super().__init__(config)
