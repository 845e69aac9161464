"""The state of an optimisation, and one step of it: on CUDA a graph, on disk a file to go on from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from presto_models.checkpoint import CheckpointError, load_weights, save_weights
from presto_models.ditto.control import Bound
from presto_models.ditto.scene import Scene

KIND = "ditto"


class Search:
    """Adam on the unit noise, everything on the device; a step asks it nothing.

    Args:
        walk: unit noise ``[B, N, C]`` to what the DiT works on, differentiable.

    Attributes:
        noise: ``[B, N, C]``, where Adam stands.  best_noise: where the weighted sum of errors was least, or where a
            sample reached every threshold.  best ``[B]``: that sum.
        history: ``[steps, controls, B]``, the errors before each step; NaN for steps not made.
        reached ``[B]``: which samples are good enough; they no longer move.
        done: steps made, on the device.
    """

    def __init__(
        self,
        walk: Callable[[Tensor], Tensor],
        scene: Scene,
        bound: Sequence[Bound],
        noise: Tensor,
        *,
        steps: int,
        learning_rate: float,
    ) -> None:
        self.walk, self.scene, self.bound, self.steps = walk, scene, list(bound), steps
        device, batch = noise.device, noise.shape[0]
        self.noise = noise.detach().clone().requires_grad_()
        self.best_noise = noise.detach().clone()
        self.best = torch.full((batch,), float("inf"), device=device)
        self.reached = torch.zeros(batch, dtype=torch.bool, device=device)
        self.history = torch.full((steps, len(self.bound), batch), float("nan"), device=device)
        self.done = torch.zeros((), dtype=torch.int64, device=device)
        self.weights = torch.tensor([b.weight for b in self.bound], device=device)[:, None]
        never = [float("inf") if b.threshold is None else b.threshold for b in self.bound]
        self.thresholds = torch.tensor(never, device=device)[:, None]
        self.stops = any(b.threshold is not None for b in self.bound)
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            [self.noise], lr=learning_rate, capturable=device.type == "cuda"
        )
        self._graph: Any = None
        self._eager = 0

    def errors(self, x: Tensor) -> Tensor:
        """Of every control, ``[controls, B]``."""
        made = self.scene.made(x)
        return torch.stack([bound.error(made).float() for bound in self.bound])

    def step(self) -> None:
        """One step of Adam.  On CUDA the third and later ones replay a graph; the first two warm up what it needs."""
        if self.noise.device.type != "cuda":
            self._step()
        elif self._graph is not None:
            self._graph.replay()
        elif self._eager < 2:
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                self._step()
            current.wait_stream(side)
            self._eager += 1
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()
            self._graph.replay()  # capturing has run nothing

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Where the noise stands: the errors ``[controls, B]``, and the gradient of their weighted sum."""
        errors = self.errors(self.walk(self.noise))
        (gradient,) = torch.autograd.grad((self.weights * errors).sum(), self.noise)
        return errors.detach(), gradient

    def move(self, gradient: Tensor) -> None:
        """The noise after a step down that gradient."""
        self.noise.grad = gradient
        self.optimizer.step()

    def _step(self) -> None:
        errors, gradient = self.evaluate()
        with torch.no_grad():
            total = (self.weights * errors).sum(0)
            self.history.index_copy_(0, self.done[None], errors[None])
            self.done += 1
            if self.stops:
                now = (errors <= self.thresholds).all(0) & ~self.reached
                better = now | ((total < self.best) & ~self.reached)
                self.reached |= now
            else:
                better = total < self.best
            self.best_noise.copy_(torch.where(better[:, None, None], self.noise, self.best_noise))
            self.best.copy_(torch.where(better, total, self.best))
            before = self.noise.detach().clone() if self.stops else None
            # A gradient that is not finite would spoil Adam's moments for good: such a sample stays where it is.
            usable = gradient.isfinite().flatten(1).all(1)[:, None, None]
            self.move(torch.where(usable, gradient, torch.zeros_like(gradient)))
            if before is not None:
                self.noise.copy_(torch.where(self.reached[:, None, None], before, self.noise))

    def save(self, path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
        """Everything another process needs to go on, beside ``path`` and renamed."""
        tensors = {name: getattr(self, name) for name in ("noise", "best_noise", "best", "reached", "history", "done")}
        for name, value in self.optimizer.state.get(self.noise, {}).items():
            tensors[f"adam.{name}"] = torch.as_tensor(value)
        save_weights(path, {name: tensor.cpu() for name, tensor in tensors.items()}, kind=KIND, config=config)

    def resume(self, path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
        """Go on from what :meth:`save` wrote.

        Raises:
            FileNotFoundError, CheckpointError: no such file, not whole.  ValueError: it is of another optimisation;
            says what differs.
        """
        tensors, saved = load_weights(path, kind=KIND)
        differs = sorted(name for name in {*config, *saved} if config.get(name) != saved.get(name))
        if differs:
            of = ", ".join(f"{name} ({saved.get(name)!r} there, {config.get(name)!r} here)" for name in differs)
            raise ValueError(f"resume: {path} is of another optimisation: {of}; give start= to begin from its noise")
        if tensors["noise"].shape != self.noise.shape or tensors["history"].shape[1:] != self.history.shape[1:]:
            raise CheckpointError(
                f"resume: {path} holds noise {tuple(tensors['noise'].shape)}, wanted {tuple(self.noise.shape)}"
            )
        with torch.no_grad():
            for name in ("noise", "best_noise", "best", "reached", "done"):
                getattr(self, name).copy_(tensors[name])
            known = min(int(tensors["done"]), self.steps)
            self.history[:known].copy_(tensors["history"][:known])
        adam = {name.removeprefix("adam."): t for name, t in tensors.items() if name.startswith("adam.")}
        if adam:
            state = self.optimizer.state_dict()
            state["state"] = {0: adam}
            self.optimizer.load_state_dict(state)


def load_noise(path: str | os.PathLike[str]) -> Tensor:
    """The best noise ``[B, N, C]`` of a saved optimisation, as a starting point for another."""
    return load_weights(path, kind=KIND)[0]["best_noise"]
