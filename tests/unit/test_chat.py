"""Dialogues on small vocabularies: what may be said, what is refused, and back."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama.chat import ChatFormat
from minillama.tokenizer import SMOLLM2_PATTERN, Tokenizer, train_bpe

TEXT = "system\nuser\nassistant\nipython\n\nYou are a llama. What do you eat?\n" * 20
LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
]
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou eat grass<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
)


def llama3_tokenizer() -> Tokenizer:
    return train_bpe(TEXT, 350, special_tokens=LLAMA3)


def chatml_tokenizer(template: str | None = None) -> Tokenizer:
    trained = train_bpe(TEXT, 350, special_tokens=CHATML, pattern=SMOLLM2_PATTERN)
    return Tokenizer(replace(trained.vocabulary, chat_template=template))


llama3, chatml = ChatFormat(llama3_tokenizer()), ChatFormat(chatml_tokenizer())


def specials_in(tokenizer: Tokenizer, ids: list[int]) -> int:
    return sum(id in tokenizer.special_tokens.values() for id in ids)


both = pytest.mark.parametrize("chat", [llama3, chatml], ids=["llama3", "chatml"])


def test_the_llama_3_format() -> None:
    tokenizer = llama3_tokenizer()
    chat = ChatFormat(tokenizer)
    assert chat.dialect == "llama3"
    ids = chat.encode(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
        ]
    )
    assert tokenizer.decode(ids) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind."
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert specials_in(tokenizer, ids) == 1 + 3 + 3 + 2
    assert chat.stop_ids == {
        tokenizer.special_tokens[name]
        for name in ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
    }


def test_tools_in_the_llama_3_format() -> None:
    tokenizer = llama3_tokenizer()
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "2 + 2?"},
        {
            "role": "assistant",
            "content": "print(2 + 2)",
            "python_tag": True,
            "eom": True,
        },
        {"role": "ipython", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ]
    ids = llama3.encode(messages, add_generation_prompt=False)
    assert tokenizer.decode(ids).endswith(
        "<|start_header_id|>assistant<|end_header_id|>\n\n<|python_tag|>print(2 + 2)"
        "<|eom_id|><|start_header_id|>ipython<|end_header_id|>\n\n4<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is 4.<|eot_id|>"
    )
    assert llama3.decode(ids) == messages
    tool = [*messages[:2], {"role": "tool", "content": "4"}, messages[3]]
    assert llama3.encode(tool, add_generation_prompt=False) == ids


def test_the_chatml_format_and_its_default_system_line() -> None:
    tokenizer = chatml_tokenizer(TEMPLATE)
    chat = ChatFormat(tokenizer)
    assert (chat.dialect, chat.default_system) == ("chatml", "You eat grass")
    user = {"role": "user", "content": "Hi"}
    assert tokenizer.decode(chat.encode([user])) == (
        "<|im_start|>system\nYou eat grass<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    own = {"role": "system", "content": ""}
    ids = chat.encode([own, user], add_generation_prompt=False)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )
    assert chat.decode(ids) == [own, user]
    assert chat.decode(chat.encode([user])) == [
        {"role": "system", "content": "You eat grass"},
        user,
    ]
    stops = ("<|endoftext|>", "<|im_end|>")
    assert chat.stop_ids == {tokenizer.special_tokens[name] for name in stops}
    assert chatml.default_system is None
    assert chatml.decode(chatml.encode([user])) == [user]


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{ '<|im_start|>system\\nIt\\'s me<|im_end|>\\n' }}", "It's me"),
        ('{{ "<|im_start|>system\n+ 1\n2<|im_end|>" }}', "+ 1\n2"),
        # Put together from parts: there is no literal line to read.
        ("{{ '<|im_start|>system\\n' + m['content'] + '<|im_end|>' }}", None),
        ("{{ '<|im_start|>system\n' }}{{ m }}{{ '<|im_end|>' }}", None),
        ("{{ '<|im_start|>' + m.role }}", None),
        # Data: an instruction in a template does nothing.
        ("{% set x = [].__class__.__mro__ %}{{ 1 / 0 }}", None),
        ("{% unclosed", None),
    ],
)
def test_default_system_lines(template: str, line: str | None) -> None:
    assert ChatFormat(chatml_tokenizer(template)).default_system == line


@both
def test_a_special_token_that_a_user_types_stays_text(chat: ChatFormat) -> None:
    for name in (*LLAMA3, *CHATML):
        message = {"role": "user", "content": f"stop{name}<|im_end|>\n<|eot_id|>"}
        ids = chat.encode([message], add_generation_prompt=False)
        assert chat.decode(ids) == [message]
        tokenizer = llama3_tokenizer() if chat is llama3 else chatml_tokenizer()
        plain = chat.encode([{"role": "user", "content": "x"}], False)
        assert specials_in(tokenizer, ids) == specials_in(tokenizer, plain)


content = st.text(max_size=20) | st.sampled_from(
    ["", "\n", "\n\n", " ", "\n\nx", "x\n", "<|eot_id|>", "<|im_end|>", "🙂"]
)


@both
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_dialogue_comes_back(chat: ChatFormat, data: st.DataObject) -> None:
    roles = ["system", "user", "assistant"]
    roles += ["ipython"] if chat.dialect == "llama3" else []
    message = st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(roles),
        content,
    )
    if chat.dialect == "llama3":
        marks = st.sampled_from([{}, {"eom": True}, {"python_tag": True}])
        message |= st.builds(
            lambda content, marks: {"role": "assistant", "content": content, **marks},
            content,
            marks,
        )
    messages = data.draw(st.lists(message, min_size=1, max_size=5))
    for prompt in (True, False):
        assert chat.decode(chat.encode(messages, prompt)) == messages


@both
def test_an_answer_that_was_cut_off(chat: ChatFormat) -> None:
    tokenizer = llama3_tokenizer() if chat is llama3 else chatml_tokenizer()
    user = {"role": "user", "content": "Hi"}
    ids = chat.encode([user]) + tokenizer.encode("Hello th")
    assert chat.decode(ids) == [user, {"role": "assistant", "content": "Hello th"}]
    assert chat.decode([]) == []


def test_an_answer_that_ends_the_text() -> None:
    tokenizer = llama3_tokenizer()
    user = {"role": "user", "content": "Hi"}
    ids = llama3.encode([user]) + tokenizer.encode("Hello", eos=True)
    assert llama3.decode(ids) == [user, {"role": "assistant", "content": "Hello"}]


@both
@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "dialogue is empty"),
        ([{"role": "wizard", "content": "x"}], r"message 0 has role 'wizard': use sys"),
        ([{"content": "x"}], "role None"),
        ([{"role": ["user"], "content": "x"}], "role"),
        (
            [{"role": "user", "content": "x"}, {"role": "user"}],
            r"message 1 \(user\) has content None",
        ),
        ([{"role": "user", "content": None}], "content None"),
        ([{"role": "user", "content": ["x"]}], "must be text"),
        ([{"role": "user", "content": "x", "eom": True}], r"meaning: \['eom'\]"),
        ([{"role": "assistant", "content": "x", "name": "y"}], r"meaning: \['name'\]"),
        (["Hi"], "no dict"),
        ("Hi", "no dict"),
        ({"role": "user", "content": "x"}, "no dict"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
    ],
)
def test_what_is_no_dialogue(chat: ChatFormat, messages: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        chat.encode(messages)


def test_what_chatml_has_no_word_for() -> None:
    for message in (
        {"role": "ipython", "content": "4"},
        {"role": "assistant", "content": "x", "eom": True},
        {"role": "assistant", "content": "x", "python_tag": True},
    ):
        with pytest.raises(ValueError, match=r"role|meaning"):
            chatml.encode([message])


def test_a_llama_3_without_tools() -> None:
    chat = ChatFormat(train_bpe(TEXT, 350, special_tokens=LLAMA3[:5]))
    message = {"role": "assistant", "content": "x"}
    assert chat.decode(chat.encode([message])) == [message]
    with pytest.raises(ValueError, match="no such token"):
        chat.encode([message | {"eom": True}])


@both
def test_ids_that_are_no_dialogue(chat: ChatFormat) -> None:
    good = chat.encode([{"role": "user", "content": "Hi"}], False)
    for ids in ([97, 98], [*good, 97], good[1:] if chat is chatml else good[2:]):
        with pytest.raises(ValueError, match="no message begins at"):
            chat.decode(ids)


def test_a_tokenizer_without_chat_tokens() -> None:
    with pytest.raises(ValueError, match=r"no chat tokens.*plain text"):
        ChatFormat(train_bpe(TEXT, 300))


def test_where_both_dialects_have_tokens_the_template_decides() -> None:
    trained = train_bpe(TEXT, 350, special_tokens=LLAMA3 + CHATML[1:])
    assert ChatFormat(trained).dialect == "llama3"
    tuned = replace(trained.vocabulary, chat_template=TEMPLATE)
    assert ChatFormat(Tokenizer(tuned)).dialect == "chatml"
