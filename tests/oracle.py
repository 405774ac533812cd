"""A Llama written from the formulas, in float64, with loops, and without torch.

Slow on purpose: each line is one term of an equation, and nothing here is shared with
the library. Positions, heads and pairs are walked one by one.
"""

import math

import numpy as np

from minillama.config import LlamaConfig

Array = np.ndarray


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / math.sqrt(sum(v * v for v in x) / len(x) + eps) * weight


def frequency(i: int, config: LlamaConfig) -> float:
    """Radians a token of pair i; arXiv 2104.09864, then Llama 3.1's rule in words."""
    f = config.rope_theta ** (-2 * i / config.head_dim)
    s = config.rope_scaling
    if s is None:
        return f
    wavelength = 2 * math.pi / f
    if wavelength < s.original_max_seq_len / s.high_freq_factor:
        return f
    if wavelength > s.original_max_seq_len / s.low_freq_factor:
        return f / s.factor
    blend = (s.original_max_seq_len / wavelength - s.low_freq_factor) / (
        s.high_freq_factor - s.low_freq_factor
    )
    return (1 - blend) * f / s.factor + blend * f


def rotate(x: Array, position: int, config: LlamaConfig) -> Array:
    out = np.empty_like(x)
    for i in range(config.head_dim // 2):
        angle = position * frequency(i, config)
        a, b = x[2 * i], x[2 * i + 1]
        out[2 * i] = a * math.cos(angle) - b * math.sin(angle)
        out[2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def attention(x: Array, w: dict[str, Array], config: LlamaConfig) -> Array:
    tokens, d = len(x), config.head_dim
    rows = []
    for t in range(tokens):
        heads = []
        for h in range(config.n_heads):
            kv = h // (config.n_heads // config.n_kv_heads)
            q = rotate(w["wq"][h * d : h * d + d] @ x[t], t, config)
            scores, values = [], []
            for s in range(t + 1):
                k = rotate(w["wk"][kv * d : kv * d + d] @ x[s], s, config)
                scores.append(float(q @ k) / math.sqrt(d))
                values.append(w["wv"][kv * d : kv * d + d] @ x[s])
            e = np.exp(np.array(scores) - max(scores))
            heads.append((e / e.sum()) @ np.array(values))
        rows.append(w["wo"] @ np.concatenate(heads))
    return np.array(rows)


def feed_forward(x: Array, w: dict[str, Array]) -> Array:
    gate = w["w_gate"] @ x
    silu = np.array([g / (1 + math.exp(-g)) for g in gate])
    return w["w_down"] @ (silu * (w["w_up"] @ x))


def logits(weights: dict[str, Array], config: LlamaConfig, tokens: list[int]) -> Array:
    """Logits of every position, T x V, from weights under their native names."""

    def under(prefix: str) -> dict[str, Array]:
        return {
            k.removeprefix(prefix).removesuffix(".weight"): v
            for k, v in weights.items()
            if k.startswith(prefix)
        }

    eps = config.norm_eps
    x = weights["tok_embeddings.weight"][tokens]
    for n in range(config.n_layers):
        w = under(f"layers.{n}.")
        h = np.array([rms_norm(v, w["attention_norm"], eps) for v in x])
        x = x + attention(h, under(f"layers.{n}.attention."), config)
        h = np.array([rms_norm(v, w["ffn_norm"], eps) for v in x])
        ffn = under(f"layers.{n}.feed_forward.")
        x = x + np.array([feed_forward(v, ffn) for v in h])
    x = np.array([rms_norm(v, weights["norm.weight"], eps) for v in x])
    head = "tok_embeddings.weight" if config.tied_embeddings else "output.weight"
    return x @ weights[head].T
