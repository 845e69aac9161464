"""What the small text encoders of these tests are made of."""

import torch

from presto_models import Conditioning

WORDS = ["slow", "waltz", "rag", "organ", "for", "flute", "and", "harp", "in", "a", "major", "key"]


def save_tokenizer(folder, template, specials, **names):
    """A tokenizer of one token a word, with the special tokens' places as the model's own has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in specials if token in template]
    )
    # Left, as some models' tokenizers have it: the encoder must not take that over.
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", padding_side="left", **names)
    fast.save_pretrained(folder)
    return len(vocabulary)


CLAP_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 34,
    "projection_dim": 24,
    "pad_token_id": 1,
}


class WordLengths:
    """A text encoder of four dims that needs no package: a word's token is its length and place."""

    text_dim, pooled_dim, max_tokens = 4, 3, 6

    def __init__(self):
        self.spec = {"kind": "words"}
        self.asked = []

    def __call__(self, prompts):
        self.asked.append(list(prompts))
        tokens = torch.zeros(len(prompts), self.max_tokens, self.text_dim)
        pooled = torch.zeros(len(prompts), self.pooled_dim)
        lengths = torch.zeros(len(prompts), dtype=torch.int64)
        for sample, prompt in enumerate(prompts):
            words = prompt.split()[: self.max_tokens]
            for place, word in enumerate(words):
                tokens[sample, place] = torch.tensor([len(word), place + 1, 1.0, 0.5])
            pooled[sample], lengths[sample] = float(len(prompt)), len(words)
        return Conditioning(tokens, pooled, lengths)
