"""Music at another loudness, so that an adaptor meets more than a corpus' own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_models.autoencoders import Autoencoder
from presto_models.ditto.adaptor.signals import signals

KNOTS = 3  # of a gain curve: rises, falls, swells and dips


@torch.no_grad()
def with_gain(autoencoder: Autoencoder, latents: Tensor, knots_db: Tensor) -> tuple[Tensor, Tensor]:
    """Latents ``[N, C]`` of the same music under a gain curve, and its signals ``[N, 13]``.

    Decoded, multiplied by 10^(g(t) / 20), encoded; g is linear between ``knots_db`` ``[knots]``, dB, spread evenly from
    the first to the last moment.  The signals are of what the new latents decode to.  Latents are in the autoencoder's
    own units.
    """
    audio = autoencoder.decode(latents[None])[0]
    gain = F.interpolate(knots_db[None, None], audio.shape[1], mode="linear", align_corners=True)[0]
    encoded = autoencoder.encode((audio * 10 ** (gain / 20))[None])[0]
    heard = autoencoder.decode(encoded[None])[0].mean(0)
    return encoded, signals(heard, autoencoder.sample_rate, len(encoded))
