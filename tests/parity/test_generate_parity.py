"""Decoding against transformers' own `generate`, on the same loud random weights.

The library writes its model as a folder, transformers opens it. In float64, where two
ways to compute the same thing do not take different tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from loud import loud_model
from transformers import AutoModelForCausalLM, GenerationConfig

from minillama.chat import ChatFormat
from minillama.config import RopeScaling
from minillama.generate import generate, left_pad, stream
from minillama.model import Llama
from minillama.sampling import Sampler
from minillama.tokenizer import Tokenizer
from minillama.weights import load_model, save_weights

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

NEW = 24
PROMPT = [3, 17, 88, 101, 5, 5, 64, 23, 9]
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied and scaled": {
        "tied_embeddings": True,
        "rope_scaling": RopeScaling(factor=4.0, original_max_seq_len=16),
    },
}


@pytest.fixture(autouse=True, scope="module")
def _in_float64() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture(params=SHAPES.values(), ids=SHAPES, scope="module")
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Llama, Any]:
    ours = loud_model(**request.param)
    folder = tmp_path_factory.mktemp("model")
    save_weights(ours, folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    theirs.generation_config = GenerationConfig(pad_token_id=0)
    return ours, theirs


def their_ids(theirs: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    tokens, pad = left_pad(prompts)
    seen = torch.arange(tokens.shape[1]) >= (0 if pad is None else pad[:, None])
    out = theirs.generate(
        tokens,
        attention_mask=seen.expand_as(tokens).long(),
        max_new_tokens=NEW,
        **({"do_sample": False} | options),
    )
    return out[:, tokens.shape[1] :].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_ids(both: tuple[Llama, Any], penalty: float) -> None:
    ours, theirs = both
    [want] = their_ids(theirs, [PROMPT], repetition_penalty=penalty)
    assert len(set(want)) > 3, "a quiet model proves nothing"
    sampler = Sampler(temperature=0, repetition_penalty=penalty)
    assert generate(ours, PROMPT, max_new_tokens=NEW, sampler=sampler) == want


def test_greedy_ids_of_a_batch(both: tuple[Llama, Any]) -> None:
    ours, theirs = both
    prompts = [PROMPT, PROMPT[:1], [44] * 20, [7, 8, 9]]
    want = their_ids(theirs, prompts)
    assert generate(ours, prompts, max_new_tokens=NEW) == want


def test_greedy_ids_up_to_a_stop_id(both: tuple[Llama, Any]) -> None:
    ours, theirs = both
    prompts = [PROMPT, [7, 8, 9]]
    first, second = their_ids(theirs, prompts)
    stop = second[6]
    padded = their_ids(theirs, prompts, eos_token_id=stop, pad_token_id=130)
    got = generate(ours, prompts, max_new_tokens=NEW, stop_ids={stop})
    assert got[1] == second[: second.index(stop) + 1]
    assert len(got[0]) > len(got[1]) or stop in first
    longest = max(map(len, padded))
    assert [row + [130] * (longest - len(row)) for row in got] == padded


SETTINGS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.02}


def test_distributions_along_a_sampled_text(both: tuple[Llama, Any]) -> None:
    """transformers samples; each of its steps has the distribution that ours has."""
    ours, theirs = both
    torch.manual_seed(5)
    out = theirs.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=NEW,
        do_sample=True,
        repetition_penalty=1.2,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **SETTINGS,
    )
    new = out.sequences[0, len(PROMPT) :].tolist()
    sampler = Sampler(repetition_penalty=1.2, **SETTINGS)
    seen: list[torch.Tensor] = []

    def follow(logits: torch.Tensor, history: list[list[int]]) -> torch.Tensor:
        seen.append(sampler.limit(logits, history).softmax(-1))
        return torch.tensor([new[len(history[0]) - len(PROMPT)]])

    steps = list(stream(ours, PROMPT, max_new_tokens=NEW, sampler=follow))
    # transformers rounds logits to float32 before it samples.
    for got, scores in zip(seen, out.scores, strict=True):
        want = scores.double().softmax(-1)
        assert torch.equal(got > 0, want > 0)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    raw = torch.cat(out.logits).double().log_softmax(-1)
    logprobs = [float(row[id]) for row, id in zip(raw, new, strict=True)]
    assert [step.logprob for step in steps] == pytest.approx(logprobs, abs=1e-5)


# The real model


@pytest.mark.model
def test_the_real_model_answers(smollm2_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(2)
    try:
        model = load_model(smollm2_path)
        tokenizer = Tokenizer.from_gguf(smollm2_path)
        chat = ChatFormat(tokenizer)
        ids = chat.encode(
            [{"role": "user", "content": "What is the capital of France?"}]
        )
        steps = list(
            stream(
                model,
                ids,
                max_new_tokens=20,
                stop_ids=chat.stop_ids,
                tokenizer=tokenizer,
            )
        )
        assert "".join(s.text for s in steps) == "The capital of France is Paris."
        assert steps[-1].id in chat.stop_ids
        cut = stream(
            model, ids, max_new_tokens=20, stop_strings=["ce is"], tokenizer=tokenizer
        )
        assert "".join(step.text for step in cut) == "The capital of Fran"
    finally:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
