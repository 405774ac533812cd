"""minillama: Llama 3, built step by step in notebooks, loaded with real weights.

The names below are the public face. They are imported when first used, so that
`import minillama` and the command's `--help` do not wait for torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillama.api import load, load_model
    from minillama.cache import KVCache
    from minillama.capture import capture
    from minillama.chat import ChatFormat
    from minillama.config import LlamaConfig
    from minillama.generate import generate, stream
    from minillama.model import Llama, Parts
    from minillama.sampling import Sampler
    from minillama.tokenizer import Tokenizer, train_bpe
    from minillama.weights import save_weights

__version__ = "0.1.0"

_HOME = {
    "load": "api",
    "load_model": "api",
    "save_weights": "weights",
    "stream": "generate",
    "generate": "generate",
    "Llama": "model",
    "LlamaConfig": "config",
    "Parts": "model",
    "KVCache": "cache",
    "Sampler": "sampling",
    "Tokenizer": "tokenizer",
    "train_bpe": "tokenizer",
    "ChatFormat": "chat",
    "capture": "capture",
}

__all__ = [  # noqa: RUF022 - in the order in which a reader meets them
    "load",
    "load_model",
    "save_weights",
    "stream",
    "generate",
    "Llama",
    "LlamaConfig",
    "Parts",
    "KVCache",
    "Sampler",
    "Tokenizer",
    "train_bpe",
    "ChatFormat",
    "capture",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minillama' has no attribute {name!r}")
    module = import_module(f"minillama.{_HOME[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


class _Face(ModuleType):
    """Keeps `minillama.generate` the function, though a submodule is called so too.

    Whoever imports `minillama.generate`, the import system then binds the submodule in
    the package, under a name that the public face has given to something else.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
