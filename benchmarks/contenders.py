"""Each library behind the same few calls, as its own documentation uses it.

`read` takes a prompt into an empty cache and says which token comes next, `step` adds
one token a row, `rewind` goes back to the end of the prompt. All are greedy, and all
compute the logits of the last token alone when they read, where the library can.
"""

import copy
import json
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

Spec = dict[str, Any]


class Decoder(Protocol):
    """What the worker asks of a library that decodes."""

    def read(self, ids: list[int], batch: int, room: int) -> Any: ...
    def again(self, state: Any, ids: list[int]) -> None: ...
    def rewind(self, state: Any) -> list[int]: ...
    def step(self, state: Any, tokens: list[int]) -> list[int]: ...
    def bytes_a_step(self, context: int, batch: int) -> int: ...


class State:
    """A prompt that was read: its length, the tokens after it, the library's cache."""

    def __init__(self, length: int, first: list[int], cache: Any) -> None:
        self.length, self.first, self.cache = length, first, cache


def rows(ids: list[int], batch: int) -> Tensor:
    return torch.tensor([ids] * batch)


class Minillama:
    """This library: `load`, `prefill`, `decode_step`."""

    def __init__(self, spec: Spec) -> None:
        from minillama.api import load_model
        from minillama.bench import bytes_a_token
        from minillama.generate import decode_step, new_caches, prefill

        self.bytes_a_token = bytes_a_token
        self.decode_step, self.prefill = decode_step, prefill
        self.new_caches = new_caches
        dtype = spec.get("dtype") and getattr(torch, spec["dtype"])
        options = {k: spec[k] for k in ("quantize", "compile") if k in spec}
        self.model = load_model(spec["model"], dtype=dtype, device="cpu", **options)

    def read(self, ids: list[int], batch: int, room: int) -> State:
        caches = self.new_caches(self.model, batch, room)
        state = State(len(ids), [], caches)
        self.again(state, ids)
        return state

    def again(self, state: State, ids: list[int]) -> None:
        for cache in state.cache:
            cache.truncate(0)
        batch = state.cache[0].keys.shape[0]
        logits = self.prefill(self.model, rows(ids, batch), state.cache)
        state.first = logits.argmax(-1).tolist()

    def rewind(self, state: State) -> list[int]:
        for cache in state.cache:
            cache.truncate(state.length)
        return state.first

    def step(self, state: State, tokens: list[int]) -> list[int]:
        ids = torch.tensor(tokens)
        logits = self.decode_step(self.model, ids, state.cache)
        return logits.argmax(-1).tolist()

    def bytes_a_step(self, context: int, batch: int) -> int:
        weights = self.bytes_a_token(self.model, 0)
        once = self.bytes_a_token(self.model, context)
        return weights + batch * (once - weights)


class Transformers:
    """Hugging Face: `AutoModelForCausalLM` with its own cache that grows."""

    def __init__(self, spec: Spec) -> None:
        from transformers import AutoModelForCausalLM, DynamicCache, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.new_cache = DynamicCache
        dtype = getattr(torch, spec["dtype"])
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            spec["model"], dtype=dtype
        )

    def read(self, ids: list[int], batch: int, room: int) -> State:
        state = State(len(ids), [0] * batch, None)
        self.again(state, ids)
        return state

    @torch.inference_mode()
    def again(self, state: State, ids: list[int]) -> None:
        state.cache = self.new_cache(config=self.model.config)
        logits = self.model(
            rows(ids, len(state.first)),
            past_key_values=state.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        state.first = logits[:, -1].argmax(-1).tolist()

    def rewind(self, state: State) -> list[int]:
        longer = state.cache.get_seq_length() - state.length
        if longer:
            state.cache.crop(-longer)
        return state.first

    @torch.inference_mode()
    def step(self, state: State, tokens: list[int]) -> list[int]:
        ids = torch.tensor(tokens)[:, None]
        out = self.model(ids, past_key_values=state.cache, use_cache=True)
        return out.logits[:, -1].argmax(-1).tolist()

    def bytes_a_step(self, context: int, batch: int) -> int:
        c, weights = self.model.config, list(self.model.parameters())
        total = sum(w.nbytes for w in weights)
        if not c.tie_word_embeddings:  # one row alone is looked up
            total -= self.model.get_input_embeddings().weight.nbytes
        size = weights[0].element_size()
        head = c.head_dim or c.hidden_size // c.num_attention_heads
        a_token = 2 * c.num_hidden_layers * c.num_key_value_heads * head * size
        return total + batch * context * a_token


class LlamaCpp:
    """llama.cpp by its Python package, with the package's defaults but for threads.

    The C functions are called as `Llama.eval` calls them, and the greedy token is
    numpy's argmax of the logits where they lie: no sampler chain costs anything.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.first: Any = self._open(512)  # the package's default context

    def _open(self, room: int) -> Any:
        from llama_cpp import Llama

        return Llama(
            self.spec["model"],
            n_ctx=room,
            n_threads=self.spec["threads"],
            n_threads_batch=self.spec["threads"],
            flash_attn=self.spec.get("flash", False),
            verbose=False,
        )

    def read(self, ids: list[int], batch: int, room: int) -> State:
        if batch > 1:
            raise ValueError("one sequence is what this contender decodes")
        fits = self.first is not None and room <= self.first.n_ctx()
        llama = self.first if fits else self._open(room)
        if fits:
            self.first = None
        state = State(len(ids), [], llama)
        self.again(state, ids)
        return state

    def again(self, state: State, ids: list[int]) -> None:
        state.cache.n_tokens = 0
        state.first = self._eval(state.cache, ids)

    def rewind(self, state: State) -> list[int]:
        state.cache.n_tokens = state.length
        return state.first

    def step(self, state: State, tokens: list[int]) -> list[int]:
        return self._eval(state.cache, tokens)

    @staticmethod
    def _eval(llama: Any, ids: list[int]) -> list[int]:
        import numpy as np
        from llama_cpp import llama_get_logits_ith

        llama.eval(ids)
        logits = llama_get_logits_ith(llama.ctx, -1)
        return [int(np.ctypeslib.as_array(logits, (llama.n_vocab(),)).argmax())]

    def bytes_a_step(self, context: int, batch: int) -> int:
        from minillama.gguf_file import read_gguf_header
        from minillama.weights import read_config

        path = Path(self.spec["model"])
        header, config = read_gguf_header(path), read_config(path)
        skipped = "output.weight" in header.tensors and "token_embd.weight"
        total = sum(t.nbytes for n, t in header.tensors.items() if n != skipped)
        return total + config.kv_cache_bytes(tokens=context, dtype=torch.float16)


class FromScratch:
    """The Llama classes of `llms-from-scratch`, with its KV cache or without one."""

    def __init__(self, spec: Spec) -> None:
        from llms_from_scratch import llama3
        from llms_from_scratch.kv_cache import llama3 as cached
        from llms_from_scratch.kv_cache.utils import KVCache
        from safetensors.torch import load_file

        folder = Path(spec["model"])
        c = json.loads((folder / "config.json").read_text())
        self.dtype = getattr(torch, spec["dtype"])
        config = {
            "vocab_size": c["vocab_size"],
            "context_length": c["max_position_embeddings"],
            "emb_dim": c["hidden_size"],
            "n_heads": c["num_attention_heads"],
            "n_layers": c["num_hidden_layers"],
            "hidden_dim": c["intermediate_size"],
            "n_kv_groups": c["num_key_value_heads"],
            "rope_base": c.get("rope_theta") or c["rope_parameters"]["rope_theta"],
            "rope_freq": None,
            "dtype": self.dtype,
        }
        self.new_cache, self.with_cache = KVCache, spec["cache"]
        module = cached if self.with_cache else llama3
        self.model: Any = module.Llama3Model(config).eval()
        params = {n: w.to(self.dtype) for n, w in _tensors(folder, load_file).items()}
        llama3.load_weights_into_llama(self.model, config, params)

    def read(self, ids: list[int], batch: int, room: int) -> State:
        state = State(len(ids), [0] * batch, None)
        self.again(state, ids)
        return state

    @torch.inference_mode()
    def again(self, state: State, ids: list[int]) -> None:
        tokens = rows(ids, len(state.first))
        if self.with_cache:
            cache = self.new_cache(n_layers=self.model.cfg["n_layers"])
            self.model.reset_kv_cache()
            logits = self.model(tokens, cache=cache)
            state.cache = (cache, list(cache.get_all()))
        else:
            logits = self.model(tokens)
            state.cache = [tokens, tokens]
        state.first = logits[:, -1].argmax(-1).tolist()

    def rewind(self, state: State) -> list[int]:
        if self.with_cache:
            cache, kept = state.cache
            self.model.current_pos = state.length
            for layer, value in enumerate(kept):
                cache.update(layer, value)
        else:
            state.cache[1] = state.cache[0]
        return state.first

    @torch.inference_mode()
    def step(self, state: State, tokens: list[int]) -> list[int]:
        ids = torch.tensor(tokens)[:, None]
        if self.with_cache:
            logits = self.model(ids, cache=state.cache[0])
        else:
            state.cache[1] = torch.cat([state.cache[1], ids], 1)
            logits = self.model(state.cache[1])
        return logits[:, -1].argmax(-1).tolist()

    def bytes_a_step(self, context: int, batch: int) -> int:
        # Its table of embeddings and its output are two, even where the file ties them.
        total = sum(w.nbytes for w in self.model.parameters())
        total -= self.model.tok_emb.weight.nbytes
        c = self.model.cfg
        head, size = c["emb_dim"] // c["n_heads"], self.dtype.itemsize
        a_token = 2 * c["n_layers"] * c["n_kv_groups"] * head * size
        return total + batch * context * a_token


def _tensors(folder: Path, load_file: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


class Training:
    """One library's training step: forward, loss, backward, clipping, AdamW."""

    def __init__(self, spec: Spec) -> None:
        from minillama.config import LlamaConfig
        from minillama.model import Llama
        from minillama.train import TrainSettings, init_weights, make_optimizer

        c = LlamaConfig(**spec["config"])
        settings = TrainSettings(steps=1000, learning_rate=1e-3)
        ours = Llama(c)
        init_weights(ours, c.n_layers)
        self.clip, self.theirs = settings.max_grad_norm, spec["library"] != "minillama"
        self.model: Any = _as_transformers(ours) if self.theirs else ours
        self.optimizer = make_optimizer(self.model, settings)
        shape = (spec["batch"], spec["context"] + 1)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(c.vocab_size, shape, generator=generator)
        self.batch = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        self.model.train()

    def step(self) -> float:
        if not self.theirs:
            from minillama.train import train_step

            return train_step(self.model, self.optimizer, self.batch, self.clip)[0]
        tokens, targets = self.batch
        self.optimizer.zero_grad()
        out = self.model(
            input_ids=tokens, labels=tokens, shift_labels=targets, use_cache=False
        )
        out.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        # Ours looks at both numbers in every step; so that the work is the same:
        if not (out.loss.isfinite() and norm.isfinite()):
            raise ValueError("the loss or its gradient is no number")
        self.optimizer.step()
        return out.loss.item()


def _as_transformers(ours: Any) -> Any:
    """transformers' Llama with the shape and the weights of ours."""
    import tempfile

    from transformers import AutoModelForCausalLM, logging

    from minillama.weights import save_weights

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_weights(ours, Path(folder) / "model")
        model = AutoModelForCausalLM.from_pretrained(Path(folder) / "model")
        return copy.deepcopy(model)  # out of the file's map


class Probe:
    """What the machine can do: memory read, and multiplications, in a second."""

    def bandwidth(self) -> float:
        from minillama.bench import memory_bandwidth

        return memory_bandwidth(size=1 << 28, repeats=5)

    def flops(self, dtype: torch.dtype) -> float:
        """By square matrices: smaller ones where the processor emulates `dtype`."""
        best = 0.0
        for size in (256, 512, 1024):
            a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
            seconds: list[float] = []
            for _ in range(5):
                start = time.perf_counter()
                torch.mm(a, b)
                seconds.append(time.perf_counter() - start)
            took = sorted(seconds)[2]
            best = max(best, 2 * size**3 / took)
            if took > 0.01:  # eight times as long for the next size
                break
        return best


LIBRARIES: dict[str, Any] = {
    "minillama": Minillama,
    "transformers": Transformers,
    "llama.cpp": LlamaCpp,
    "llms-from-scratch": FromScratch,
}
