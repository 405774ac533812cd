"""Checks of notebook 06: parameters counted, a config read, the whole Llama."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillama.attention import causal_mask
from minillama.config import LlamaConfig, RopeScaling
from minillama.course.check import Case, Check, fill
from minillama.course.guard import Look
from minillama.course.values import kind
from minillama.model import Block, Llama, Parts
from minillama.rope import rope_frequencies

# 6.1 how many parameters


def count(c: Any) -> int:
    """The parameters of a Llama, from the numbers of its config."""
    return _count(c)


def _count(
    c: Any,
    *,
    queries: int = 2,
    shared: int = 2,
    matrices: int = 3,
    norms: int | None = None,
    tables: int | None = None,
    layers: int | None = None,
) -> int:
    """Each piece may be counted a wrong number of times."""
    layers = c.n_layers if layers is None else layers
    norms = 2 * c.n_layers + 1 if norms is None else norms
    tables = 2 - c.tied_embeddings if tables is None else tables
    heads = queries * c.n_heads + shared * c.n_kv_heads
    layer = c.dim * c.head_dim * heads + matrices * c.dim * c.ffn_dim
    return layers * layer + norms * c.dim + tables * c.vocab_size * c.dim


def _matrix_by_matrix(c: Any) -> int:
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layer = [(q, c.dim), (kv, c.dim), (kv, c.dim), (c.dim, q), (c.dim,), (c.dim,)]
    layer += [(c.ffn_dim, c.dim), (c.ffn_dim, c.dim), (c.dim, c.ffn_dim)]
    ends = [(c.vocab_size, c.dim), (c.dim,)]
    if not c.tied_embeddings:
        ends.append((c.vocab_size, c.dim))
    return sum(map(math.prod, ends + c.n_layers * layer))


def _on_the_meta_device(c: Any) -> int:
    with torch.device("meta"):
        model = Llama(LlamaConfig(**vars(c)))
    return sum(weight.numel() for weight in model.parameters())


def _of_numbers(theirs: Callable[[Any], Any]) -> Callable[..., Any]:
    """A config that has its numbers alone: `c.n_params()` would be no exercise."""

    def count(
        dim: int,
        n_layers: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        ffn_dim: int,
        vocab_size: int,
        tied_embeddings: bool,
    ) -> Any:
        c = SimpleNamespace(dim=dim, n_layers=n_layers, ffn_dim=ffn_dim)
        c.n_heads, c.n_kv_heads, c.head_dim = n_heads, n_kv_heads, head_dim
        c.vocab_size, c.tied_embeddings = vocab_size, tied_embeddings
        c.max_seq_len = 64
        return theirs(c)

    return count


def _sizes(rng: torch.Generator) -> Iterable[Case]:
    yield 4, 1, 2, 1, 2, 10, 7, False
    yield 4, 1, 2, 1, 2, 10, 7, True
    yield 6, 3, 4, 2, 4, 16, 11, False  # heads x head_dim is not dim
    dim, ffn_dim, vocab_size = torch.randint(10, 99, (3,), generator=rng).tolist()
    yield dim, 5, 6, 2, 8, ffn_dim, vocab_size, True
    yield 4096, 32, 32, 8, 128, 14_336, 128_256, False  # Llama 3 8B


check_count = Check(
    name="6.1",
    title="count parameters",
    reference=count,
    adapt=_of_numbers,
    inputs=_sizes,
    solutions=(_matrix_by_matrix, _on_the_meta_device),
    mistakes={
        "The output matrix is always counted. With tied_embeddings it is the table of "
        "embeddings itself, and counts once.": lambda c: _count(c, tables=2),
        "The output matrix is never counted. Without tied_embeddings it is a second "
        "table, as large as the embeddings.": lambda c: _count(c, tables=1),
        "tied_embeddings is taken the wrong way round: True means one table, False "
        "means two.": lambda c: _count(c, tables=1 + c.tied_embeddings),
        "The embeddings are not counted. Llama has a row of dim numbers for each token "
        "of its vocabulary.": lambda c: _count(c, tables=0),
        "wk and wv are counted as large as wq. They have n_kv_heads heads, and wq has "
        "n_heads.": lambda c: _count(c, queries=4, shared=0),
        "wo is counted as large as wk. It takes in all n_heads heads, so it is as "
        "large as wq.": lambda c: _count(c, queries=1, shared=3),
        "wo is missing. Attention has four matrices: wq, wk, wv and wo.": lambda c: (
            _count(c, queries=1)
        ),
        "wk and wv are counted once together. They are two matrices.": (
            lambda c: _count(c, shared=1)
        ),
        "The feed-forward is counted with two matrices. SwiGLU has three: gate, up "
        "and down.": lambda c: _count(c, matrices=2),
        "The final norm is missing. Llama has one more after the last layer: 2 x "
        "n_layers + 1 in all.": lambda c: _count(c, norms=2 * c.n_layers),
        "One norm a layer is counted. Each layer has two, one before attention and "
        "one before the feed-forward.": lambda c: _count(c, norms=c.n_layers + 1),
        "The final norm is counted in every layer. It comes once, after the last.": (
            lambda c: _count(c, norms=3 * c.n_layers)
        ),
        "The norms are not counted. Each has a weight of dim numbers, and there are 2 "
        "x n_layers + 1.": lambda c: _count(c, norms=0),
        "The norms are counted twice as large, with a bias. RMSNorm has a weight of "
        "dim numbers and no bias.": lambda c: _count(c, norms=2 * (2 * c.n_layers + 1)),
        "Biases are counted. No matrix of a Llama has one.": lambda c: (
            _count(c)
            + c.n_layers
            * ((c.n_heads + 2 * c.n_kv_heads) * c.head_dim + 2 * c.dim + 2 * c.ffn_dim)
        ),
        "One layer is counted. There are n_layers of them.": lambda c: _count(
            c, layers=1, norms=3
        ),
        "wq and wo are counted as dim x dim. They are dim x (n_heads x head_dim), "
        "which is another number in some models.": lambda c: (
            _count(c, queries=0) + 2 * c.n_layers * c.dim**2
        ),
        "Attention is counted as four matrices of dim x dim, as before grouped "
        "queries. wk and wv are n_kv_heads x head_dim by dim.": lambda c: (
            _count(c, queries=0, shared=0) + 4 * c.n_layers * c.dim**2
        ),
        "head_dim is worked out as dim / n_heads. The config says it, and in some "
        "models it is another number.": lambda c: _count(
            SimpleNamespace(**vars(c) | {"head_dim": c.dim // c.n_heads})
        ),
        "Tables of RoPE are counted. They are computed, not learned: RoPE has no "
        "parameters.": lambda c: _count(c) + c.max_seq_len * c.head_dim,
    },
)

# 6.2 a config.json of Hugging Face


def read_config(hf: dict[str, Any]) -> LlamaConfig:
    """The values that a `config.json` stands for, without its RoPE scaling."""
    return LlamaConfig(**_values(hf))


def _values(hf: dict[str, Any]) -> dict[str, Any]:
    dim, n_heads = hf["hidden_size"], hf["num_attention_heads"]
    rope = hf.get("rope_parameters") or {}
    return {
        "dim": dim,
        "n_layers": hf["num_hidden_layers"],
        "n_heads": n_heads,
        "n_kv_heads": hf.get("num_key_value_heads") or n_heads,
        "head_dim": hf.get("head_dim") or dim // n_heads,
        "ffn_dim": hf["intermediate_size"],
        "vocab_size": hf["vocab_size"],
        "max_seq_len": hf["max_position_embeddings"],
        "rope_theta": rope.get("rope_theta", hf.get("rope_theta", 10_000.0)),
        "norm_eps": hf["rms_norm_eps"],
        "tied_embeddings": hf.get("tie_word_embeddings", False),
    }


def _step_by_step(hf: dict[str, Any]) -> LlamaConfig:
    theta = hf.get("rope_theta", 10_000.0)
    if hf.get("rope_parameters") is not None:
        theta = hf["rope_parameters"]["rope_theta"]
    kv_heads, head_dim = hf.get("num_key_value_heads"), hf.get("head_dim")
    if kv_heads is None:
        kv_heads = hf["num_attention_heads"]
    if head_dim is None:
        head_dim = hf["hidden_size"] // hf["num_attention_heads"]
    return LlamaConfig(
        dim=hf["hidden_size"],
        n_layers=hf["num_hidden_layers"],
        n_heads=hf["num_attention_heads"],
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=hf["intermediate_size"],
        vocab_size=hf["vocab_size"],
        max_seq_len=hf["max_position_embeddings"],
        rope_theta=theta,
        norm_eps=hf["rms_norm_eps"],
        tied_embeddings=bool(hf.get("tie_word_embeddings")),
    )


def _read(**own: Callable[[dict[str, Any]], Any]) -> Callable[[Any], LlamaConfig]:
    """A reader that takes some values in another way."""

    def reader(hf: dict[str, Any]) -> LlamaConfig:
        wrong = {name: value(hf) for name, value in own.items()}
        return LlamaConfig(**(_values(hf) | wrong))

    return reader


def _of_keys(theirs: Callable[[Any], Any]) -> Callable[..., Any]:
    def config(
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        vocab_size: int,
        max_position_embeddings: int,
        rms_norm_eps: float,
        other_keys: dict[str, Any],
    ) -> Any:
        hf: dict[str, Any] = {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "vocab_size": vocab_size,
            "max_position_embeddings": max_position_embeddings,
            "rms_norm_eps": rms_norm_eps,
        }
        found = theirs(hf | other_keys)
        if not isinstance(found, LlamaConfig):
            return found
        return {
            name: float(value) if name == "rope_theta" else value
            for name, value in asdict(found).items()
            if name != "rope_scaling"
        }

    return config


def _files(rng: torch.Generator) -> Iterable[Case]:
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    old = {"rope_theta": 100_000.0, "rope_parameters": None}
    yield 8, 20, 2, 4, 50, 64, 1e-6, {"num_key_value_heads": 2, **new}
    yield 8, 20, 2, 4, 50, 64, 1e-5, {"num_key_value_heads": 2, **old}
    yield 8, 20, 2, 4, 50, 64, 1e-5, {"rope_theta": 20_000.0}
    yield 8, 20, 2, 4, 50, 64, 1e-5, {"num_key_value_heads": None, **new}
    yield 8, 20, 2, 4, 50, 64, 1e-5, {"num_key_value_heads": 1, "head_dim": None}
    yield (
        *(8, 20, 2, 4, 50, 64, 1e-5),
        {"num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": True, **new},
    )
    layers, ffn_dim = torch.randint(3, 99, (2,), generator=rng).tolist()
    yield (
        *(576, ffn_dim, layers, 9, 49_152, 8192, 1e-5),
        {"num_key_value_heads": 3, "tie_word_embeddings": True, **old},
    )


check_read_config = Check(
    name="6.2",
    title="read a config.json",
    reference=read_config,
    adapt=_of_keys,
    inputs=_files,
    atol=0.0,
    solutions=(_step_by_step, lambda hf: LlamaConfig.from_hf(hf)),
    mistakes={
        "n_kv_heads is always n_heads. Where the file has num_key_value_heads, that "
        "is the number.": _read(n_kv_heads=lambda hf: hf["num_attention_heads"]),
        "A file without num_key_value_heads is refused. Files from before grouped "
        "queries have none: each query head has its own keys, n_heads of them.": _read(
            n_kv_heads=lambda hf: hf["num_key_value_heads"] or hf["num_attention_heads"]
        ),
        "num_key_value_heads is there, and it is null (None): .get(key, default) gives "
        "None then. It means n_heads; `or` catches both.": _read(
            n_kv_heads=lambda hf: hf.get(
                "num_key_value_heads", hf["num_attention_heads"]
            )
        ),
        "Without num_key_value_heads one KV head is taken. It means as many as there "
        "are query heads.": _read(
            n_kv_heads=lambda hf: hf.get("num_key_value_heads") or 1
        ),
        "head_dim is always dim / n_heads. Where the file has head_dim, that is the "
        "number.": _read(
            head_dim=lambda hf: hf["hidden_size"] // hf["num_attention_heads"]
        ),
        "A file without head_dim is refused. It means hidden_size divided by "
        "num_attention_heads.": _read(
            head_dim=lambda hf: (
                hf["head_dim"] or hf["hidden_size"] // hf["num_attention_heads"]
            )
        ),
        "head_dim is there, and it is null (None): .get(key, default) gives None then. "
        "It means dim / n_heads; `or` catches both.": _read(
            head_dim=lambda hf: hf.get(
                "head_dim", hf["hidden_size"] // hf["num_attention_heads"]
            )
        ),
        "head_dim is dim / n_kv_heads. It is dim / n_heads: keys are as long as "
        "queries, there are only fewer.": _read(
            head_dim=lambda hf: (
                hf.get("head_dim")
                or hf["hidden_size"]
                // (hf.get("num_key_value_heads") or hf["num_attention_heads"])
            )
        ),
        "rope_theta is looked for at the top alone. Newer files have it inside "
        "rope_parameters.": _read(rope_theta=lambda hf: hf.get("rope_theta", 10_000.0)),
        "rope_theta is looked for inside rope_parameters alone. Older files have it "
        "at the top.": _read(
            rope_theta=lambda hf: (hf.get("rope_parameters") or {}).get(
                "rope_theta", 10_000.0
            )
        ),
        "A file that says no rope_theta is given Llama 3's 500,000. It means 10,000, "
        "as in Llama 2.": _read(
            rope_theta=lambda hf: (hf.get("rope_parameters") or hf).get(
                "rope_theta", 500_000.0
            )
        ),
        "rope_theta is always 500,000, as in Llama 3. The file says what this model "
        "was trained with.": _read(rope_theta=lambda hf: 500_000.0),
        "tied_embeddings is always False. The file says tie_word_embeddings: small "
        "models share one table for both ends.": _read(
            tied_embeddings=lambda hf: False
        ),
        "Without tie_word_embeddings the model is taken as tied. A Llama that does not "
        "say so is not.": _read(
            tied_embeddings=lambda hf: hf.get("tie_word_embeddings", True)
        ),
        "ffn_dim is worked out as 4 x dim. intermediate_size says it.": _read(
            ffn_dim=lambda hf: 4 * hf["hidden_size"]
        ),
        "norm_eps is always 1e-5. The file says rms_norm_eps.": _read(
            norm_eps=lambda hf: 1e-5
        ),
    },
)

# 6.3 the whole

Whole = Callable[[LlamaConfig, dict[str, Tensor], Tensor], Tensor]


def _filled(cls: type[nn.Module]) -> Whole:
    def llama(
        config: LlamaConfig, weights: dict[str, Tensor], tokens: Tensor
    ) -> Tensor:
        module: Any = cls(config)
        if isinstance(module, nn.Module):
            _look(module, config)
            weights = _as_named(module, weights)
        return fill(module, weights)(tokens)

    return llama


def _look(module: Any, config: LlamaConfig) -> None:
    """What is wrong with how it is built, said better than by a parameter's name."""
    layers = getattr(module, "layers", None)
    if isinstance(layers, list | tuple):
        raise Look(
            "parameters",
            f"`layers` is {kind(layers)}, and PyTorch does not see the parameters in "
            "it. Llama keeps its blocks in an nn.ModuleList.",
        )
    if isinstance(layers, nn.ModuleList | nn.Sequential):
        if len(set(layers)) < len(layers):
            raise Look(
                "parameters",
                "`layers` holds one block several times: [Block(...)] * n does not "
                "copy it. Each layer of Llama has weights of its own.",
            )
        if len(layers) != config.n_layers:
            raise Look(
                "parameters",
                f"There are {len(layers)} layers, and config.n_layers is "
                f"{config.n_layers}.",
            )
    own = dict(module.named_parameters(remove_duplicate=False))
    ends = [own.get(f"{name}.weight") for name in ("tok_embeddings", "output")]
    if None not in ends and (ends[0] is ends[1]) != config.tied_embeddings:
        raise Look(
            "parameters",
            "The output has a matrix of its own, and this config says tied_embeddings: "
            "self.output.weight = self.tok_embeddings.weight makes them one."
            if config.tied_embeddings
            else "The output shares the embeddings' matrix, and this config is not "
            "tied: as Llama 3 8B, it has two.",
        )


def _as_named(module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights have one name in PyTorch: that of whichever was made first."""
    names = dict(module.named_parameters())
    ends = "tok_embeddings.weight", "output.weight"
    if ends[0] in names or ends[1] not in names or ends[1] in weights:
        return weights
    return {ends[1] if n == ends[0] else n: w for n, w in weights.items()}


Tables = tuple[Tensor, Tensor]


@lru_cache(maxsize=16)
def _built(config: LlamaConfig) -> Llama:
    """Built once for all mistakes, which fill it with the same weights each time."""
    return Llama(config)


def _tables(config: LlamaConfig, count: int, **own: Any) -> Tables:
    """Cosines and sines, from wrong numbers if `own` says so."""
    numbers = {
        "head_dim": config.head_dim,
        "theta": config.rope_theta,
        "scaling": config.rope_scaling,
    }
    places = torch.arange(count) * own.pop("step", 1)
    angles = torch.outer(places, rope_frequencies(**(numbers | own)))
    return angles.cos(), angles.sin()


def _through(model: Any, x: Tensor, rope: Tables, mask: Tensor | None) -> Tensor:
    for layer in model.layers:
        x = layer(x, rope, mask)
    return x


def _variant(
    *,
    embed: Callable[[Any, Tensor], Tensor] = lambda m, tokens: m.tok_embeddings(tokens),
    tables: Callable[[LlamaConfig, int], Tables] = _tables,
    mask: Callable[[int], Tensor | None] = lambda count: causal_mask(count, count),
    stack: Callable[[Any, Tensor, Tables, Tensor | None], Tensor] = _through,
    out: Callable[[Any, Tensor], Tensor] = lambda m, x: m.output(m.norm(x)),
    length: Callable[[Tensor], int] = lambda tokens: tokens.shape[1],
) -> Whole:
    """The forward of a Llama with one of its steps taken otherwise."""

    known: dict[Any, Tensor] = {}

    def llama(
        config: LlamaConfig, weights: dict[str, Tensor], tokens: Tensor
    ) -> Tensor:
        # A learner's result is held against every mistake on every input, and the
        # first inputs are always the same ones: compute each once.
        drawn = weights["tok_embeddings.weight"].sum().item()
        key = config, str(tokens.tolist()), drawn
        if key not in known:
            if len(known) >= 16:
                known.clear()
            model: Any = fill(_built(config), weights)
            count = length(tokens)
            x = stack(model, embed(model, tokens), tables(config, count), mask(count))
            known[key] = out(model, x)
        return known[key].clone()

    return llama


class _PlacesFromOne(Llama):
    """Right as well: RoPE knows distances alone."""

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        count = tokens.shape[1]
        rope = self.rope_tables(1, count + 1, tokens.device)
        mask = torch.ones(count, count, dtype=torch.bool).tril()
        x = _through(self, self.tok_embeddings(tokens), rope, mask)
        return self.output(self.norm(x))


class _OutputFirst(nn.Module):
    """Built in another order; tied by use, not by name."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        parts = Parts()
        self.norm = parts.norm(config)
        if not config.tied_embeddings:
            self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.layers = nn.ModuleList()
        for _ in range(config.n_layers):
            self.layers.append(Block(config, parts))
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        table = self.tok_embeddings.weight
        rope = _tables(self.config, tokens.shape[1])
        mask = causal_mask(tokens.shape[1], tokens.shape[1])
        x = self.norm(_through(self, table[tokens], rope, mask))
        return x @ (table if self.config.tied_embeddings else self.output.weight).T


class _TiedBackwards(Llama):
    """The table is made from the output: then PyTorch calls it `output.weight`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        if config.tied_embeddings:
            self._modules["tok_embeddings"] = self._modules.pop("tok_embeddings")

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(tokens)


def _random_weights(config: LlamaConfig, rng: torch.Generator) -> dict[str, Tensor]:
    with torch.device("meta"):
        names = dict(Llama(config).named_parameters())
    return {
        name: torch.rand(w.shape, generator=rng) + 0.5
        if w.dim() == 1
        else torch.randn(w.shape, generator=rng) / w.shape[1] ** 0.5
        for name, w in names.items()
    }


def _models(rng: torch.Generator) -> Iterable[Case]:
    one: dict[str, Any] = {
        "dim": 4,
        "n_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 1,
        "head_dim": 4,
        "ffn_dim": 6,
        "vocab_size": 4,
        "max_seq_len": 64,
    }
    two: dict[str, Any] = one | {
        "dim": 8,
        "n_layers": 2,
        "vocab_size": 11,
        "ffn_dim": 12,
    }
    deep: dict[str, Any] = two | {
        "n_layers": 3,
        "n_heads": 4,
        "n_kv_heads": 2,
        "rope_theta": 1000.0,
    }
    stretched = RopeScaling(factor=8.0, original_max_seq_len=16)
    long: dict[str, Any] = deep | {
        "n_layers": 2,
        "head_dim": 16,
        "rope_scaling": stretched,
        "rope_theta": 100.0,
    }
    batch = int(torch.randint(2, 5, (1,), generator=rng))
    for numbers, shape in (
        (one, (1, 2)),
        (deep | {"tied_embeddings": True, "norm_eps": 0.1}, (batch, 4)),
        (long, (1, 12)),
    ):
        config = LlamaConfig(**numbers)
        tokens = torch.randint(config.vocab_size, shape, generator=rng)
        yield config, _random_weights(config, rng), tokens


def _last_one_counts(model: Any, x: Tensor, rope: Tables, mask: Any) -> Tensor:
    return model.layers[-1](x, rope, mask)


def _first_one_counts(model: Any, x: Tensor, rope: Tables, mask: Any) -> Tensor:
    return model.layers[0](x, rope, mask)


def _normed_each_time(model: Any, x: Tensor, rope: Tables, mask: Any) -> Tensor:
    for layer in model.layers:
        x = model.norm(layer(x, rope, mask))
    return x


def _added_again(model: Any, x: Tensor, rope: Tables, mask: Any) -> Tensor:
    for layer in model.layers:
        x = x + layer(x, rope, mask)
    return x


check_llama = Check(
    name="6.3",
    title="the whole Llama",
    reference=Llama,
    adapt=_filled,
    inputs=_models,
    rtol=1e-4,
    atol=1e-5,
    solutions=(_PlacesFromOne, _OutputFirst, _TiedBackwards),
    mistakes={
        "The final norm is missing. Llama norms the stream once more after the last "
        "layer: output(norm(x)).": _variant(out=lambda m, x: m.output(x)),
        "The final norm has an eps of its own, 1e-5. Llama takes "
        "config.norm_eps.": _variant(
            out=lambda m, x: m.output(
                F.rms_norm(x, x.shape[-1:], m.norm.weight, eps=1e-5)
            )
        ),
        "The final norm stands before the layers. In Llama it comes after the last "
        "one.": _variant(
            embed=lambda m, tokens: m.norm(m.tok_embeddings(tokens)),
            out=lambda m, x: m.output(x),
        ),
        "The embeddings are normed. Llama norms nothing before the first "
        "layer, whose parts norm what they read.": _variant(
            embed=lambda m, tokens: m.norm(m.tok_embeddings(tokens))
        ),
        "The final norm is used after every layer. It comes once, after the last; in "
        "between the stream is never normed.": _variant(
            stack=_normed_each_time, out=lambda m, x: m.output(x)
        ),
        "There is no causal mask, or one that hides nothing: each token sees those "
        "after it. Llama hands down causal_mask(T, T).": _variant(
            mask=lambda count: None
        ),
        "The number of tokens is read off the first axis. Tokens are (B, T): the first "
        "is the batch, and T is tokens.shape[1].": _variant(
            length=lambda tokens: tokens.shape[0]
        ),
        "Each token sees one token ahead. In Llama it sees none after itself.": (
            _variant(
                mask=lambda count: torch.ones(count, count, dtype=torch.bool).tril(1)
            )
        ),
        "All tokens have the same angles: RoPE does nothing. The angles of token t "
        "are t times the frequencies, torch.outer(arange(T), frequencies).": _variant(
            tables=lambda c, count: _tables(c, count, step=0)
        ),
        "Sines and cosines are exchanged. The blocks take (cos, sin).": _variant(
            tables=lambda c, count: (_tables(c, count)[1], _tables(c, count)[0])
        ),
        "The frequencies are made for dim. RoPE turns heads: "
        "rope_frequencies(head_dim, ...).": _variant(
            tables=lambda c, count: _tables(c, count, head_dim=c.dim)
        ),
        "The base of the frequencies is always 10,000. Llama takes "
        "config.rope_theta.": _variant(
            tables=lambda c, count: _tables(c, count, theta=10_000.0)
        ),
        "The base of the frequencies is always 500,000. Llama takes "
        "config.rope_theta.": _variant(
            tables=lambda c, count: _tables(c, count, theta=500_000.0)
        ),
        "config.rope_scaling is not handed on. Llama 3.1 slows some of the "
        "frequencies: rope_frequencies(head_dim, theta, scaling).": _variant(
            tables=lambda c, count: _tables(c, count, scaling=None)
        ),
        "Every layer reads the embeddings, and only the last one's result counts. In "
        "Llama each reads what the one before gave: x = layer(x, ...).": _variant(
            stack=_last_one_counts
        ),
        "Only the first layer runs. Llama goes through all n_layers: is a `return` "
        "inside the loop?": _variant(stack=_first_one_counts),
        "What a layer gives is added to the stream. A Block has added it already: x = "
        "layer(x, ...).": _variant(stack=_added_again),
        "No layer runs. Between the embeddings and the final norm x goes through all "
        "of them.": _variant(stack=lambda m, x, rope, mask: x),
        "The embeddings are multiplied by the root of dim, as in the first Transformer "
        "and in Gemma. Llama takes them as they are.": _variant(
            embed=lambda m, tokens: m.tok_embeddings(tokens) * m.config.dim**0.5
        ),
        "Softmax is taken already. Llama gives logits: whoever needs probabilities "
        "takes it later.": _variant(out=lambda m, x: m.output(m.norm(x)).softmax(-1)),
        "Only the last token's logits come out. Llama gives those of every token, "
        "(B, T, V): training needs them all.": _variant(
            out=lambda m, x: m.output(m.norm(x))[:, -1]
        ),
        "The normed stream comes out, of dim numbers. The output matrix makes "
        "vocab_size logits of it.": _variant(out=lambda m, x: m.norm(x)),
    },
)

# 6.4 a test that a model does not look ahead

Forward = Callable[[Tensor], Tensor]


def is_causal(forward: Forward, tokens: Tensor, vocab_size: int) -> bool:
    """Whether no token moves logits before it: each is exchanged in turn."""
    return _searched(forward, tokens, vocab_size)


def _searched(
    forward: Forward,
    tokens: Tensor,
    vocab_size: int,
    *,
    exchanged: Callable[[int], Iterable[int]] = lambda count: range(1, count),
    seen: Callable[[int], slice] = lambda place: slice(0, place),
    new: Callable[[Tensor, int], Tensor] = lambda old, size: (old + 1) % size,
    leaks: Callable[[Tensor, Tensor], bool] = lambda a, b: bool(
        ((a - b).abs() > 1e-3).any()
    ),
) -> bool:
    """Each step of the search may be taken in a wrong way."""
    right = forward(tokens)
    for place in exchanged(tokens.shape[1]):
        other = tokens.clone()
        other[0, place] = new(other[0, place], vocab_size)
        if leaks(forward(other)[:, seen(place)], right[:, seen(place)]):
            return False
    return True


def _all_later_at_once(forward: Forward, tokens: Tensor, vocab_size: int) -> bool:
    for last in range(tokens.shape[1] - 1):
        other = torch.where(
            torch.arange(tokens.shape[1]) > last, (tokens + 3) % vocab_size, tokens
        )
        pair = forward(tokens)[0, last], forward(other)[0, last]
        if not torch.allclose(*pair, rtol=0, atol=1e-4):
            return False
    return True


def _in_one_batch(forward: Forward, tokens: Tensor, vocab_size: int) -> bool:
    count = tokens.shape[1]
    others = (tokens + torch.eye(count, dtype=tokens.dtype)) % vocab_size
    moved = (forward(others) - forward(tokens)).abs().amax(-1)  # exchanged, place
    return bool(moved.tril(-1).max() < 1e-3)


_MODELS = (
    "causal",
    "sees everything",
    "sees one ahead",
    "only the first place sees the second",
    "only the first place sees the last",
    "only the second place sees the third",
    "sees everything, faintly",
    "sees everything, and it adds up to nothing",
    "causal, but for rounding",
)


def _of_models(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """One answer for each of the models, all at once.

    A single True or False has only one way to be wrong: any mistake would explain it.
    """

    def is_causal(tokens: Tensor, vocab_size: int) -> Any:
        rng = torch.Generator().manual_seed(vocab_size)
        values = torch.randn(vocab_size, 6, generator=rng) + 1.0
        models = {name: partial(_logits, name, values) for name in _MODELS}
        return {m: theirs(models[m], tokens, vocab_size) for m in _MODELS}

    return is_causal


def _logits(model: str, values: Tensor, tokens: Tensor) -> Tensor:  # B T V
    x, count = values[tokens], tokens.shape[1]
    sees = torch.ones(count, count).tril()
    leak = torch.zeros(count, count)
    if model == "sees one ahead":
        leak = torch.ones(count, count).triu(1).tril(1)
    elif model == "only the first place sees the second":
        leak[0, 1] = 1
    elif model == "only the first place sees the last":
        leak[0, -1] = 1
    elif model == "only the second place sees the third":
        leak[1, 2] = 1
    elif model != "causal":
        leak = torch.ones(count, count).triu(1)
    # A few models hide their leak in another way.
    if model == "causal, but for rounding":
        leak = 1e-7 * leak
    more = leak @ x
    if model == "sees everything, faintly":
        more = 0.02 * more
        more[..., 0] += 100  # the same token stays the likeliest
    elif model == "sees everything, and it adds up to nothing":
        more = more - more.mean(-1, keepdim=True)
    return sees @ x + more


def _texts(rng: torch.Generator) -> Iterable[Case]:
    yield torch.randint(1, 10, (1, 4), generator=rng), 10
    yield torch.zeros(1, 5, dtype=torch.long), 7
    count = int(torch.randint(6, 9, (1,), generator=rng))
    yield torch.randint(12, (1, count), generator=rng), 12


check_is_causal = Check(
    name="6.4",
    title="a test for causality",
    reference=is_causal,
    adapt=_of_models,
    inputs=_texts,
    solutions=(_all_later_at_once, _in_one_batch),
    mistakes={
        "Only the last token is exchanged. A leak between two early places is not "
        "seen: exchange each token in turn.": lambda f, t, v: _searched(
            f, t, v, exchanged=lambda count: [count - 1]
        ),
        "Only the second token is exchanged. A leak further back is not seen: exchange "
        "each token in turn.": lambda f, t, v: _searched(
            f, t, v, exchanged=lambda count: [1]
        ),
        "Only the first place is looked at. All places before the exchanged token must "
        "stay as they are.": lambda f, t, v: _searched(
            f, t, v, seen=lambda place: slice(0, 1)
        ),
        "Only the place just before the exchanged token is looked at. A leak may reach "
        "further: look at all places before it.": lambda f, t, v: _searched(
            f, t, v, seen=lambda place: slice(place - 1, place)
        ),
        "The exchanged place is looked at, or those after it. There logits may move, "
        "and should: look at the places before it alone.": lambda f, t, v: _searched(
            f, t, v, seen=lambda place: slice(0, place + 1)
        ),
        "Only the likeliest tokens are compared, or with a wide tolerance. A faint "
        "leak is a leak: compare the logits, to 0.001 or so.": lambda f, t, v: (
            _searched(
                f,
                t,
                v,
                leaks=lambda a, b: bool((a.argmax(-1) != b.argmax(-1)).any()),
            )
        ),
        "Sums or means of logits are compared. What one logit gains another may lose: "
        "compare them one by one.": lambda f, t, v: _searched(
            f, t, v, leaks=lambda a, b: abs((a - b).sum(-1)).max().item() > 1e-3
        ),
        "The logits must be equal to the last bit. Another order of the same sums "
        "moves that bit in a causal model, too: allow 0.001 or so.": lambda f, t, v: (
            _searched(f, t, v, leaks=lambda a, b: not torch.equal(a, b))
        ),
        "Only the last token is exchanged, and the logits must be equal to the last "
        "bit. Exchange each token in turn, and allow 0.001.": lambda f, t, v: _searched(
            f,
            t,
            v,
            exchanged=lambda count: [count - 1],
            leaks=lambda a, b: not torch.equal(a, b),
        ),
        "The token is replaced by id 0. Where it was 0 already, nothing is exchanged: "
        "take one that differs.": lambda f, t, v: _searched(
            f, t, v, new=lambda old, size: old * 0
        ),
        "True and False are the wrong way round: True means that nothing before the "
        "exchanged token moves.": lambda f, t, v: not _searched(f, t, v),
        "It never finds anything. The exchanged token must be another one, and the "
        "places before it must be looked at.": lambda f, t, v: True,
    },
)
