"""Consistency trajectory models (2310.02279): a network that jumps from any noise level to any lower one.

With g the student, told both levels, and t > u >= s of Karras' table, 0 behind its lowest level:

    G(x, t -> s) = (s / t) x + (1 - s / t) g(x, t, s)
    x_u  = Solver(x_t, t -> u), a few Heun steps of the guided teacher
    L_CTM = d(C(G(x_t, t -> s)), sg C(G-(x_u, u -> s))),    C(x) = G-(x, s -> 0), or nothing: compared at s itself
    L_DSM = lambda(sigma) |g(x0 + sigma eps, sigma, sigma) - x0|^2
    L     = L_CTM + w b L_DSM,    b = |grad L_CTM| / |grad L_DSM| of the last layer's weight

G- is the moving average; what the student jumped to passes through it with its gradient, where the two are carried to
the clean end.  The table ends at 0 and not at sigma_min, since that is where a walk's last jump goes; the teacher's
step from sigma_min to 0 is Euler's.  Where the teacher is guided and the data are not, the two terms disagree as s
nears t; small walks never go there.  The paper's GAN is left out.  How often s is 0, the bound of b and the numbers are
ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from presto_models.conditioning import Conditioning
from presto_models.diffusion import EDM, ctm_jump, edm_loss_weight
from presto_models.diffusion.sampling import Sampling
from presto_models.distill.consistency import ConsistencyBatch, ConsistencyConfig, ConsistencyTask, distance
from presto_models.distill.draws import training_sigmas
from presto_models.distill.target import Target
from presto_models.training.seeding import seeded_weights
from presto_models.training.task import Player

NOISE_OF_DENOISING = 1  # which of a sample's noises; the teacher's walk starts from number 0


@dataclass(frozen=True)
class TrajectoryConfig(ConsistencyConfig):
    """What a consistency trajectory model's run computes, beside what :class:`ConsistencyConfig` has.

    Args:
        solver_steps: the teacher's walk takes from one to this many steps of the table, each as often.
        compared: "clean": where both jumps are carried on to 0; "jump": where they end.
        to_clean: the share of samples whose jump ends at 0; the others end at any level of the table as often.
        denoising: w, the weight of denoising; 0: it is not computed.
        balanced: whether w is multiplied by b; largest_balance: where b ends.
    """

    solver_steps: int = 1
    compared: Literal["clean", "jump"] = "clean"
    to_clean: float = 0.25
    denoising: float = 1.0
    balanced: bool = True
    largest_balance: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.solver_steps < self.levels:
            raise ValueError(f"solver_steps must be from 1 to below levels = {self.levels}, got {self.solver_steps}")
        if self.compared not in ("clean", "jump"):
            raise ValueError(f"compared must be clean or jump, got {self.compared!r}")
        if not 0 <= self.to_clean <= 1:
            raise ValueError(f"to_clean must be from 0 to 1, got {self.to_clean}")
        if self.denoising < 0:
            raise ValueError(f"denoising must be at least 0, got {self.denoising}")
        if not self.largest_balance > 0:
            raise ValueError(f"largest_balance must be positive, got {self.largest_balance}")


def telling(
    edm: EDM, conditioning: Conditioning, guidance: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """g(x, sigma, sigma_to) for :func:`ctm_jump`."""

    def denoise(x: Tensor, sigma: Tensor, sigma_to: Tensor) -> Tensor:
        return edm(x, sigma, conditioning, sigma_to=sigma_to, guidance=guidance)

    return denoise


class TrajectoryLoss(nn.Module):
    """(L_CTM, L_DSM, mean square of g) of each sample, ``[B]`` each."""

    def __init__(self, config: TrajectoryConfig, student: EDM) -> None:
        super().__init__()
        self.config, self.student, self.target = config, student, Target(student, config.target_decay)

    def forward(
        self,
        x_t: Tensor,
        x_u: Tensor,
        sigmas: dict[str, Tensor],
        noisy: Tensor,
        clean: Tensor,
        conditioning: Conditioning,
        guidance: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        t, u, s, sigma = (sigmas[name] for name in ("t", "u", "s", "denoising"))
        denoise = telling(self.student, conditioning, guidance)
        target = partial(ctm_jump, telling(self.target.edm, conditioning, guidance))
        denoising = torch.zeros_like(t)
        if self.config.denoising > 0:
            # One call of twice the batch: no layer of it sees the other half.
            twice = Conditioning.cat((conditioning, conditioning))
            scale = None if guidance is None else torch.cat((guidance, guidance))
            both = telling(self.student, twice, scale)
            guess, denoised = both(torch.cat((x_t, noisy)), torch.cat((t, sigma)), torch.cat((s, sigma))).chunk(2)
            denoising = edm_loss_weight(sigma, self.student.sigma_data) * (denoised - clean).square().mean((1, 2))
        else:
            guess = denoise(x_t, t, s)
        jump = ctm_jump(lambda *_: guess, x_t, t, s)
        zero = torch.zeros_like(s)
        with torch.no_grad():
            other = target(x_u, u, s)
            if self.config.compared == "clean":
                other = target(other, s, zero)
        if self.config.compared == "clean":
            jump = target(jump, s, zero)
        return distance(self.config, jump, other), denoising, guess.detach().square().mean((1, 2))


def balance(trajectory: Tensor, denoising: Tensor, weight: Tensor, largest: float) -> Tensor:
    """|grad trajectory| / |grad denoising| with respect to ``weight``, at most ``largest``; of all processes together.

    The adaptive weight of 2310.02279, which has it from VQGAN (2012.09841).  The graph of both losses stays.
    """
    norms = []
    for loss in (trajectory, denoising):
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(gradient)  # a sum: the ratio has no unit
        norms.append(gradient.norm())
    return (norms[0] / norms[1].clamp(min=1e-12)).clamp(max=largest)


class ConsistencyTrajectoryModel(ConsistencyTask):
    """A student of jumps: deterministic walks and, with gamma, walks that draw part of the noise anew."""

    parameterization = "ctm"

    def __init__(self, config: TrajectoryConfig) -> None:
        super().__init__(config)
        self.training_sigmas = training_sigmas(config.p_mean, config.p_std, self.teacher.config)
        with seeded_weights(self.seed):
            self.student = self.teacher.student(takes_sigma_to=True, takes_guidance=config.told)
        self.play(TrajectoryLoss(config, self.student))

    def draw(self, quantile: float, random: torch.Generator) -> tuple[list[float], dict[str, float]]:
        table, config = self.table, self.config
        last = len(table) - 1
        steps, end, clean, noise = torch.rand(4, generator=random, dtype=torch.float64).tolist()
        t = int(quantile * last)
        u = min(t + 1 + int(steps * config.solver_steps), last)
        s = last if clean < config.to_clean else u + int(end * (last - u + 1))
        path = [table[min(t + step, u)] for step in range(config.solver_steps + 1)]
        return path, {"s": table[s], "denoising": self.training_sigmas(min(max(noise, 1e-9), 1 - 1e-9))}

    def loss(self, player: Player, module: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        self.follow(step)
        losses = self.losses(module, batch)
        trajectory = losses["trajectory"].mean()
        amplitude = batch.seen["mean square"].mean().sqrt() / self.student.sigma_data
        parts = {"trajectory": trajectory.detach(), "amplitude": amplitude}
        if config.denoising == 0:
            return trajectory, parts
        denoising, weight = losses["denoising"].mean(), trajectory.new_tensor(config.denoising)
        if config.balanced:
            last: Tensor = self.student.dit.proj_out.weight  # type: ignore[union-attr,assignment]
            weight = weight * balance(trajectory, denoising, last, config.largest_balance)
        parts |= {"denoising": denoising.detach(), "denoising_weight": weight.detach()}
        return trajectory + weight * denoising, parts

    def losses(self, module: nn.Module, batch: ConsistencyBatch) -> dict[str, Tensor]:
        conditioning = self.condition(batch)
        x_t, x_u = self.walked(batch, conditioning)
        noisy = batch.noised(batch.clean, batch.sigmas["denoising"], NOISE_OF_DENOISING)
        guidance = batch.guidance if self.config.told else None
        with self.low_precision():
            trajectory, denoising, squares = module(x_t, x_u, batch.sigmas, noisy, batch.clean, conditioning, guidance)
        batch.seen = {"trajectory": trajectory.detach(), "denoising": denoising.detach(), "mean square": squares}
        return {"trajectory": trajectory} | ({"denoising": denoising} if self.config.denoising > 0 else {})

    def sampling(self) -> Sampling:
        """Deterministic (gamma 0), our choice for few steps; any other gamma runs too."""
        return self.few_steps("ctm")
