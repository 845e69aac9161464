"""Is what an ablation computes still right, and is it what the product computes with everything on?

Right is judged by `presto_kernels.testing`'s rule against plain PyTorch in a wider dtype: the denoised latents of the
first and of the last step (with the blocks this variant keeps), from the same noisy ones, and a short stretch of what
the decoder makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from bench import checks, cuda
from bench.ablations import ALL_ON, BITWISE, CHANGED, OTHER_NOISE, PLAIN_SPECTRAL, Ablation, put
from bench.checks import WrongResult
from bench.product import DECODE, PARTS, Product
from presto_kernels import LayerSchedule
from presto_models import ReferenceDiT

Results = dict[str, Tensor]
Call = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Verdict:
    """``error``: why a variant is refused, or None.

    ``result``: what its output is beside that with everything on; where another is meant, by how much it differs, as
    the root mean square over that of the output.
    """

    error: Exception | None
    result: str


class Judge:
    """Judges variants of one product; the wide copies of the network are made once.

    Args:
        dtype: of the model, as a name: float64 is the oracle's for "fp32", fp32 (thousands of times finer) otherwise.
    """

    def __init__(self, product: Product, dtype: str) -> None:
        self.product, self.wide = product, torch.float64 if dtype == "fp32" else torch.float32
        with torch.device("meta"):
            self.network = ReferenceDiT(product.dit.config).eval()
        weights = {name: weight.to(self.wide) for name, weight in product.dit.state_dict().items()}
        self.network.load_state_dict(weights, assign=True)
        self._denoised: dict[LayerSchedule | None, tuple[Results, Results]] = {}
        self._decoded: tuple[Results, Results] | None = None
        self.with_all_on: Results = {}

    def __call__(self, name: str, ablation: Ablation) -> Verdict:
        """The first must be everything on."""
        parts = PARTS if name == ALL_ON else ablation.parts(self.product)
        try:
            with ablation.off(self.product) as made:
                results = _results(made, parts, _directly if ablation.eager else self._as_timed)
            oracles, plains = self._expected(made, parts)
            names = list(results)
            expected, plain = ([of[each] for each in names] for of in (oracles, plains))
            checks.check(name, list(results.values()), expected, plain, names, rowwise=False)
        except Exception as error:
            return Verdict(error, "wrong")
        if name == ALL_ON:
            self.with_all_on = results
            return Verdict(None, BITWISE)
        pairs = [(result, self.with_all_on[n]) for n, result in results.items()]
        same = all(torch.equal(*pair) for pair in pairs)
        if same and ablation.result != OTHER_NOISE:
            return Verdict(None, BITWISE)
        if ablation.result == BITWISE:
            return Verdict(WrongResult(f"{name}: not bitwise what it is with everything on"), "wrong")
        if ablation.result == CHANGED:
            return Verdict(None, f"changed {100 * max(_distance(*pair) for pair in pairs):.2g} %")
        return Verdict(None, ablation.result)

    def _expected(self, product: Product, parts: Sequence[str]) -> tuple[Results, Results]:
        """Oracle and plain PyTorch in the model's dtype."""
        oracles: Results = {}
        plains: Results = {}
        if tuple(parts) != (DECODE,):
            schedule = product.plan.schedule
            if schedule not in self._denoised:
                wide = product.plain_denoiser(self.network, self.wide)
                self._denoised[schedule] = (
                    {name: wide(x.to(self.wide), sigma) for name, x, sigma in _checked(product)},
                    {name: product.plain_denoiser()(x, sigma) for name, x, sigma in _checked(product)},
                )
            oracles, plains = (dict(results) for results in self._denoised[schedule])
        if DECODE in parts:
            if self._decoded is None:
                own = next(product.engine.autoencoder.parameters()).dtype
                wide_of = torch.float64 if own == torch.float32 else torch.float32
                with put(spectral=PLAIN_SPECTRAL)(product):
                    self._decoded = (_named(product.decoded_wide(wide_of)), _named(product.decoded_wide(own)))
            oracles |= self._decoded[0]
            plains |= self._decoded[1]
        return oracles, plains

    def _as_timed(self, call: Call) -> list[Tensor]:
        """On CUDA through a graph's replay, which is what is timed."""
        if self.product.engine.device.type != "cuda":
            return call()
        cuda.warm_up(call)
        graph, (results,) = cuda.capture([call])
        graph.replay()
        torch.cuda.synchronize()
        return [result.clone() for result in cast(list[Tensor], results)]


def _directly(call: Call) -> list[Tensor]:
    return call()


def _results(product: Product, parts: Sequence[str], run: Callable[[Call], list[Tensor]]) -> Results:
    found: Results = {}
    if tuple(parts) != (DECODE,):
        denoise = product.engine.prepare(product.plan, product.conditioning)
        for name, x, sigma in _checked(product):
            (found[name],) = run(lambda x=x, sigma=sigma: [denoise(x, sigma)])  # type: ignore[misc]
    if DECODE in parts:
        found |= _named(run(product.decoded))
    return found


def _checked(product: Product) -> list[tuple[str, Tensor, float]]:
    levels = product.plan.sampling.levels
    ends = dict.fromkeys((levels[0], levels[-1]))
    return [(f"denoised at {sigma:.3g}", product.noisy(sigma), sigma) for sigma in ends]


def _named(decoded: Sequence[Tensor]) -> Results:
    return {f"decoded {index}": t for index, t in enumerate(decoded)}


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt())
