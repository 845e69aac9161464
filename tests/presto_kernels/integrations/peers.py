"""The real classes of stable-audio-tools and Stable Audio 3, or a skip that says what to do for them."""

from types import SimpleNamespace

import pytest

from bench.open_models import peers


def stable_audio_tools() -> SimpleNamespace:
    """Its modules ``autoencoders``, ``blocks``, ``dit`` and ``transformer``; skips where it is not installed."""
    return _or_skip(peers.stable_audio_tools)


def stable_audio_3() -> SimpleNamespace:
    """The same modules of Stable Audio 3, which no index has; skips where PRESTO_STABLE_AUDIO_3 names no checkout."""
    return _or_skip(peers.stable_audio_3)


def _or_skip(found) -> SimpleNamespace:
    try:
        return found()
    except peers.NotThere as missing:
        pytest.skip(str(missing))
