"""Oobleck, the convolutional autoencoder of Stable Audio, as it runs fastest: its layers and the names of its weights.

Public: ``presto_models.autoencoders.Oobleck`` is made of it, and so is what :func:`presto_kernels.accelerate` puts in
the place of other libraries' Oobleck.
"""

from presto_kernels.oobleck.chains import decoder_chain, encoder_chain, layout, whole
from presto_kernels.oobleck.layers import Conv, Down, ResidualUnit, Snake, Up, periodic
from presto_kernels.oobleck.stretches import Chain, Layer, channels_last, clip
from presto_kernels.oobleck.weights import Part, converted, factors, fold, parts

__all__ = [
    "Chain",
    "Conv",
    "Down",
    "Layer",
    "Part",
    "ResidualUnit",
    "Snake",
    "Up",
    "channels_last",
    "clip",
    "converted",
    "decoder_chain",
    "encoder_chain",
    "factors",
    "fold",
    "layout",
    "parts",
    "periodic",
    "whole",
]
