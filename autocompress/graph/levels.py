"""The numbers that quantization counts with, in one place for pricing, calibration, training and export.

Activations are uint8, affine; weights int8, symmetric; biases int32 (Jacob et al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

WEIGHT_LEVELS = 127
"""Integers of a weight reach from minus this to this."""

ACTIVATION_LEVELS = 255
"""Integers of an activation reach from 0 to this; so does its zero point."""

BIAS_LIMIT = 2.0**30
"""Integers of a bias stay below this magnitude, so that the products added to them still fit 32 bits."""

LEAST_SCALE = 1e-12
"""The smallest scale or step: of what is zero everywhere."""
