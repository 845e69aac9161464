"""Prompts and tags to :class:`presto_models.Conditioning`."""

from presto_models.text.cache import PromptCache
from presto_models.text.captions import EmbeddedCaptions, embed_captions
from presto_models.text.conditioner import Conditioner
from presto_models.text.dropout import drop_conditioning
from presto_models.text.encoder import TextEncoder, load_text_encoder
from presto_models.text.tags import TagEmbedding, TagVocabulary, parse_tags

__all__ = [
    "Conditioner",
    "EmbeddedCaptions",
    "PromptCache",
    "TagEmbedding",
    "TagVocabulary",
    "TextEncoder",
    "drop_conditioning",
    "embed_captions",
    "load_text_encoder",
    "parse_tags",
]
