"""The container of text conditions."""

import pytest
import torch

from presto_models import Conditioning


def text(batch=2, length=3, pooled=True, lengths=None):
    torch.manual_seed(batch * 10 + length)
    return Conditioning(torch.randn(batch, length, 4), torch.randn(batch, 5) if pooled else None, lengths)


def test_null_keeps_shapes_and_holds_nothing():
    for condition in (text(), text(pooled=False), text(lengths=torch.tensor([1, 3]))):
        null = condition.null()
        assert null.tokens.shape == condition.tokens.shape and not null.tokens.any()
        assert (null.pooled is None) == (condition.pooled is None)
        assert (null.lengths is None) == (condition.lengths is None)
        assert null.lengths is None or not null.lengths.any()


def test_with_null_is_the_batch_twice():
    condition = text(lengths=torch.tensor([1, 3]))
    both = condition.with_null()
    assert both.batch_size == 4
    assert torch.equal(both.tokens[:2], condition.tokens) and not both.tokens[2:].any()
    assert both.lengths.tolist() == [1, 3, 0, 0]
    assert text().with_null().lengths is None


def test_cat_pads_shorter_texts_and_says_so():
    joined = Conditioning.cat([text(1, 2), text(2, 5), text(1, 5, lengths=torch.tensor([4], dtype=torch.int32))])
    assert joined.tokens.shape == (4, 5, 4) and joined.pooled.shape == (4, 5)
    assert joined.lengths.tolist() == [2, 5, 5, 4]
    assert torch.equal(joined.tokens[0, :2], text(1, 2).tokens[0]) and not joined.tokens[0, 2:].any()


def test_slices():
    condition = text(3, lengths=torch.tensor([1, 2, 3]))
    part = condition[1:]
    assert torch.equal(part.tokens, condition.tokens[1:]) and part.lengths.tolist() == [2, 3]
    with pytest.raises(TypeError, match="slice"):
        condition[0]


def test_to_casts_floats_and_leaves_lengths_whole():
    moved = text(lengths=torch.tensor([1, 3])).to("cpu", torch.bfloat16)
    assert (moved.tokens.dtype, moved.pooled.dtype, moved.lengths.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.int64,
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 3),), ValueError, "tokens"),
        ((torch.zeros(2, 0, 4),), ValueError, "tokens"),
        ((torch.zeros(2, 3, 4, dtype=torch.int64),), TypeError, "tokens"),
        (("a prompt",), TypeError, "tokens"),
        ((torch.zeros(2, 3, 4), torch.zeros(3, 5)), ValueError, "pooled"),
        ((torch.zeros(2, 3, 4), [1.0]), TypeError, "pooled"),
        ((torch.zeros(2, 3, 4), None, torch.zeros(2)), TypeError, "lengths"),
        ((torch.zeros(2, 3, 4), None, torch.zeros(3, dtype=torch.int64)), ValueError, "lengths"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 5, device="meta")), ValueError, "device"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Conditioning(*arguments)


def test_cat_refuses_parts_of_different_kinds():
    with pytest.raises(ValueError, match="at least one"):
        Conditioning.cat([])
    with pytest.raises(ValueError, match="pooled"):
        Conditioning.cat([text(), text(pooled=False)])
    with pytest.raises(ValueError, match="text_dim"):
        Conditioning.cat([Conditioning(torch.zeros(1, 2, 3)), Conditioning(torch.zeros(1, 2, 4))])
