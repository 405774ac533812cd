"""Rotary position embeddings: turn queries and keys by an angle that grows with place.

Functions, no module: RoPE has no parameters, and a table that lives in no buffer cannot
be forgotten when a model is built on the meta device. P in a shape: the pairs of a
head, Dh/2.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from minillama.config import RopeScaling


def scale_frequencies(
    frequencies: Float[Tensor, "P"], scaling: RopeScaling
) -> Float[Tensor, "P"]:
    """Slow the slow clocks, as Llama 3.1 does to reach a longer context.

    A clock that turns r times within the old context keeps its frequency if r is above
    `high_freq_factor`, is divided by `factor` if r is below `low_freq_factor`, and is a
    blend of the two in between. Source: Meta's released code; arXiv 2407.21783.
    """
    turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rope_frequencies(
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "P"]:
    """Radians by which each pair of a head turns from one token to the next.

    frequency_i = theta^(-2i / head_dim): the first pair turns by one radian a token,
    the last by about 1 / theta. Source: Su et al., arXiv 2104.09864, section 3.2.2.
    """
    pairs = torch.arange(0, head_dim, 2, device=device)
    frequencies = 1.0 / theta ** (pairs / head_dim)
    return scale_frequencies(frequencies, scaling) if scaling else frequencies


def apply_rope(
    x: Float[Tensor, "... T Dh"],
    cos: Float[Tensor, "T Dh/2"],
    sin: Float[Tensor, "T Dh/2"],
) -> Float[Tensor, "... T Dh"]:
    """Turn each pair of neighbours (x_2i, x_2i+1) by the angle of its token.

    Then the dot product of a query and a key depends on their distance alone. Meta
    pairs neighbours, Hugging Face pairs i with i + Dh/2: each needs weights whose rows
    are in its own order. Source: Su et al., arXiv 2104.09864, section 3.4.2.
    """
    even, odd = x[..., 0::2], x[..., 1::2]  # ... T Dh/2
    # cos and sin are float32: so is the product, and it is rounded once at the end.
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).type_as(x)  # ... T Dh
