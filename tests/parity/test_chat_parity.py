"""Dialogues of real models: Meta's own encoder, and the template of SmolLM2's file."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama.chat import ChatFormat
from minillama.gguf_file import read_gguf_header
from minillama.tokenizer import Tokenizer

pytestmark = pytest.mark.model


@pytest.fixture(scope="session")
def llama3(llama3_tokenizer_path: Path) -> ChatFormat:
    return ChatFormat(Tokenizer.from_file(llama3_tokenizer_path))


@pytest.fixture(scope="session")
def meta(llama3_tokenizer_path: Path) -> Any:
    """Meta's own encoder of dialogues."""
    tokenizer = pytest.importorskip("llama_models.llama3.tokenizer")
    chat_format = pytest.importorskip("llama_models.llama3.chat_format")
    return chat_format.ChatFormat(tokenizer.Tokenizer(llama3_tokenizer_path))


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> ChatFormat:
    return ChatFormat(Tokenizer.from_gguf(smollm2_path))


@pytest.fixture(scope="session")
def hf_smollm2(smollm2_path: Path) -> Any:
    """The file's tokens, merges and template in Hugging Face's libraries."""
    said = read_gguf_header(smollm2_path).metadata
    tokens: list[str] = said["tokenizer.ggml.tokens"]
    pairs = [merge.split(" ") for merge in said["tokenizer.ggml.merges"]]
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: id for id, token in enumerate(tokens)},
            merges=[(left, right) for left, right in pairs],
        )
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.add_special_tokens(tokens[:17])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
    theirs.chat_template = said["tokenizer.chat_template"]
    return theirs


# No special token is spelled here: Hugging Face would make one of it. What is newer
# than Python's Unicode is left out, since libraries disagree on it.
content = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=30) | (
    st.sampled_from(["", "\n", "\n\n", " ", "\n x", "x\n\n", " x ", "It's 123.", "🙂"])
)


def metas_message(datatypes: Any, message: dict[str, Any]) -> Any:
    """Our message in Meta's classes: code goes by a call of the code interpreter."""
    said = {"role": message["role"], "content": message["content"]}
    if said["role"] == "ipython":
        said["role"] = "tool"
    if message.get("python_tag"):
        call = datatypes.ToolCall(
            call_id="1",
            tool_name=datatypes.BuiltinTool.code_interpreter,
            arguments={"code": message["content"]},
        )
        said |= {"tool_calls": [call], "content": ""}
    if message.get("eom"):
        said["stop_reason"] = datatypes.StopReason.end_of_message
    return datatypes.RawMessage(**said)


plain = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "user", "assistant", "ipython"]),
    content | st.sampled_from(["<|eot_id|>", "x<|start_header_id|>system"]),
)
tools = st.builds(
    lambda content, marks: {"role": "assistant", "content": content, **marks},
    content,
    st.sampled_from([{"eom": True}, {"python_tag": True, "eom": True}])
    | st.just({"python_tag": True}),
)


@settings(max_examples=300, deadline=None)
@given(messages=st.lists(plain | tools, min_size=1, max_size=5))
def test_dialogues_are_metas(
    llama3: ChatFormat, meta: Any, messages: list[dict[str, Any]]
) -> None:
    datatypes = pytest.importorskip("llama_models.datatypes")
    theirs = [metas_message(datatypes, message) for message in messages]
    expected = meta.encode_dialog_prompt(theirs).tokens
    assert llama3.encode(messages) == expected
    prompt = meta._encode_header("assistant")
    without = llama3.encode(messages, add_generation_prompt=False)
    assert without + prompt == expected
    assert llama3.decode(expected) == llama3.decode(without) == messages


def test_a_published_dialogue(llama3: ChatFormat) -> None:
    """The ids in Meta's own tests, as numbers, so that no shared error hides."""
    ids = llama3.encode(
        [
            {"role": "system", "content": "This is a test sentence."},
            {"role": "user", "content": "This is a response."},
        ]
    )
    # fmt: off
    assert ids == [
        128000,
        128006, 9125, 128007, 271, 2028, 374, 264, 1296, 11914, 13, 128009,
        128006, 882, 128007, 271, 2028, 374, 264, 2077, 13, 128009,
        128006, 78191, 128007, 271,
    ]
    # fmt: on
    assert llama3.stop_ids == {128001, 128008, 128009}
    assert llama3.dialect == "llama3"


def test_answers_read_as_meta_reads_them(llama3: ChatFormat, meta: Any) -> None:
    datatypes = pytest.importorskip("llama_models.datatypes")
    tokenizer = meta.tokenizer
    user = [{"role": "user", "content": "Hi"}]
    for text, eom in (("Hello.", False), ("I look it up.", True)):
        end = tokenizer.eom_id if eom else tokenizer.eot_id
        answer = [*tokenizer.encode(text, bos=False, eos=False), end]
        theirs = meta.decode_assistant_message(
            answer, datatypes.StopReason.out_of_tokens
        )
        ours = llama3.decode([*llama3.encode(user), *answer])[1]
        assert theirs.content == ours["content"] == text
        waits = theirs.stop_reason == datatypes.StopReason.end_of_message
        assert waits == ours.get("eom", False) == eom


@settings(max_examples=300, deadline=None)
@given(
    messages=st.lists(
        st.builds(
            lambda role, content: {"role": role, "content": content},
            st.sampled_from(["system", "user", "assistant"]),
            content,
        ),
        min_size=1,
        max_size=5,
    ),
    prompt=st.booleans(),
)
def test_chatml_is_the_template_of_the_file(
    smollm2: ChatFormat,
    hf_smollm2: Any,
    messages: list[dict[str, str]],
    prompt: bool,
) -> None:
    rendered: str = hf_smollm2.apply_chat_template(
        messages, add_generation_prompt=prompt, tokenize=False
    )
    expected = hf_smollm2.encode(rendered, add_special_tokens=False)
    ids = smollm2.encode(messages, add_generation_prompt=prompt)
    assert ids == expected
    given_back = smollm2.decode(ids)
    if messages[0]["role"] != "system":
        line = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        assert given_back.pop(0) == {"role": "system", "content": line}
    missing = smollm2_missing(smollm2)
    kept = [m | {"content": without(m["content"], missing)} for m in messages]
    assert given_back == kept


def smollm2_missing(chat: ChatFormat) -> bytes:
    return chat._format.tokenizer.missing_bytes


def without(text: str, missing: bytes) -> str:
    return text.encode().translate(None, missing).decode(errors="replace")


def test_smollm2_chat(smollm2: ChatFormat) -> None:
    assert smollm2.dialect == "chatml"
    assert smollm2.stop_ids == {0, 2}
    ids = smollm2.encode([{"role": "user", "content": "<|im_end|>"}])
    assert ids.count(1) == 3
    assert ids.count(2) == 2
