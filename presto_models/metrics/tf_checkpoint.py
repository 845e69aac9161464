"""Reads the tensors of a TensorFlow checkpoint ("tensor bundle" V2) without TensorFlow.

A checkpoint is ``PREFIX.index``, a sorted-string table as in LevelDB from tensor name to a small protocol buffer
(dtype, shape, offset, size), and ``PREFIX.data-00000-of-00001``, the raw little-endian values.  Source:
tensorflow/core/util/tensor_bundle and tensorflow/core/lib/io/format.h.  Only what a single-file float32 checkpoint
holds is read; anything else says so.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_BLOCK_TRAILER_BYTES = 5  # compression kind, checksum
_FLOAT = 1  # DataType.DT_FLOAT


def read_tf_checkpoint(prefix: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All float32 tensors of a checkpoint, by name; ones of other dtypes (counters) are left out.

    Args:
        prefix: the path up to ``.index``; a folder's name with ``/`` behind it where the files have no stem.

    Raises:
        FileNotFoundError: one of the two files is missing.  ValueError: it is not such a checkpoint, is cut short, or
        uses something this reader does not know (compression, several data files).
    """
    index_path, data_path = Path(f"{os.fspath(prefix)}.index"), Path(f"{os.fspath(prefix)}.data-00000-of-00001")
    for path in (index_path, data_path):
        if not path.is_file():
            raise FileNotFoundError(f"no TensorFlow checkpoint here: {path} is missing")
    index, data = index_path.read_bytes(), data_path.read_bytes()
    if len(index) < _FOOTER_BYTES or struct.unpack("<Q", index[-8:])[0] != _MAGIC:
        raise ValueError(f"{index_path} is not the index of a TensorFlow checkpoint, or is cut short")
    try:
        return dict(_tensors(index, data))
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{index_path} is damaged: {error}") from error
    except _Refused as error:
        raise ValueError(f"{index_path}: {error}") from error


class _Refused(Exception):
    """The checkpoint uses something this reader does not know."""


def _tensors(index: bytes, data: bytes) -> Iterator[tuple[str, Tensor]]:
    footer, at = index[-_FOOTER_BYTES:], 0
    _, at = _varint(footer, at)  # the meta index: unused
    _, at = _varint(footer, at)
    offset, at = _varint(footer, at)
    size, at = _varint(footer, at)
    for _, handle in _block(index, offset, size):
        block_offset, at = _varint(handle, 0)
        block_size, at = _varint(handle, at)
        for key, value in _block(index, block_offset, block_size):
            entry = _message(value)
            if not key:  # the header: how many data files there are
                if _first(entry, 1, 1) != 1:
                    raise _Refused(f"its tensors lie in {_first(entry, 1, 1)} files, this reader knows one")
                continue
            if _first(entry, 1, 0) != _FLOAT:
                continue
            name, begin, length = key.decode(), _first(entry, 4, 0), _first(entry, 5, 0)
            shape = [_first(_message(d), 1, 0) for d in _message(_first(entry, 2, b"")).get(2, [])]
            if begin + length > len(data):
                raise _Refused(
                    f"{name} should end at byte {begin + length} of the data file, which is cut short at {len(data)}"
                )
            # A copy: frombuffer's tensor would not be writable.
            yield name, torch.frombuffer(bytearray(data[begin : begin + length]), dtype=torch.float32).reshape(shape)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A base-128 number, low bits first, and where the next thing begins."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a table's block.  A key is stored as what differs from the key before it."""
    if offset + size + _BLOCK_TRAILER_BYTES > len(data):
        raise _Refused("it is cut short")
    if data[offset + size] != 0:
        raise _Refused("its blocks are compressed, which this reader does not know")
    block = data[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end, at, key = len(block) - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        at += own
        yield key, block[at : at + length]
        at += length


def _message(data: bytes) -> dict[int, list]:
    """A protocol buffer's fields, by number: whole numbers for varints, bytes for everything else."""
    fields: dict[int, list] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, at = _varint(data, at)
        else:
            if kind == 2:
                length, at = _varint(data, at)
            elif kind in (1, 5):
                length = 8 if kind == 1 else 4
            else:
                raise _Refused(f"a protocol buffer's field has the unknown kind {kind}")
            value = data[at : at + length]
            at += length
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _first(fields: dict[int, list], number: int, default):
    return fields.get(number, [default])[0]
