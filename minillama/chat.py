"""Dialogue to token ids and back: Llama 3's format, and ChatML for SmolLM2.

A message is a dict with a `role` and its `content`. What marks its borders are special
tokens, put in as ids, so that a user who types `<|eot_id|>` has typed ten characters
and ended nothing. No template is executed: from a file's chat template only its
default system line is read.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from minillama.tokenizer import Tokenizer

Message = Mapping[str, Any]


class ChatFormat:
    """A model's dialogue format, found by the special tokens of its tokenizer.

    `dialect` is "llama3" or "chatml". The roles are system, user and assistant, and in
    Llama 3's also ipython (or tool), for what a tool returned. There an assistant's
    message may have `"python_tag": True`, when it is code to run, and `"eom": True`,
    when it waits for a tool and its turn goes on. ChatML takes the `default_system`
    line of the file's chat template for a dialogue that has no system message.
    Raises ValueError for a tokenizer without chat tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        has = tokenizer.special_tokens.keys()
        llama3, chatml = has >= set(_Llama3.NEEDS), has >= set(_ChatML.NEEDS)
        # A Llama 3 that was tuned further may have both.
        if llama3 and chatml:
            llama3 = "<|im_start|>" not in (tokenizer.chat_template or "")
        if not llama3 and not chatml:
            raise ValueError(
                "this tokenizer has no chat tokens, so its model knows no dialogue: "
                f"it needs {', '.join(_Llama3.NEEDS)} (Llama 3) or "
                f"{', '.join(_ChatML.NEEDS)} (ChatML); give the model plain text"
            )
        self.dialect = "llama3" if llama3 else "chatml"
        self.default_system = None if llama3 else _default_system(tokenizer)
        self._format = _Llama3(tokenizer) if llama3 else _ChatML(tokenizer)
        self.stop_ids = tokenizer.stop_ids

    def encode(
        self, messages: Iterable[Message], add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of a dialogue; the prompt at the end asks the assistant to go on.

        Raises ValueError for an empty dialogue, an unknown role or key, or content
        that is missing or not text.
        """
        dialogue = [self._checked(at, message) for at, message in enumerate(messages)]
        if not dialogue:
            raise ValueError("the dialogue is empty: give at least one message")
        if self.default_system is not None and dialogue[0]["role"] != "system":
            dialogue.insert(0, {"role": "system", "content": self.default_system})
        ids = list(self._format.begin)
        for message in dialogue:
            ids += self._format.message(message)
        return ids + self._format.header("assistant") if add_generation_prompt else ids

    def decode(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """The dialogue behind ids, a default system line included.

        A last message that was not ended is given as far as it goes; a prompt with
        nothing after it is none. Raises ValueError for ids that are no dialogue.
        """
        return self._format.dialogue(list(ids))

    def _checked(self, at: int, message: Any) -> Message:
        where = f"message {at}"
        if not isinstance(message, dict):
            raise ValueError(f"{where} is no dict with role and content: {message!r}")
        said = cast(dict[str, Any], message)
        role, roles = said.get("role"), self._format.ROLES
        if role not in roles:
            raise ValueError(f"{where} has role {role!r}: use {', '.join(roles)}")
        if not isinstance(said.get("content"), str):
            raise ValueError(
                f"{where} ({role}) has content {said.get('content')!r}: it must be "
                "text, an empty one if there is none"
            )
        marks = self._format.MARKS if role == "assistant" else ()
        unknown = sorted(said.keys() - {"role", "content", *marks})
        if unknown:
            raise ValueError(f"{where} ({role}) has keys without a meaning: {unknown}")
        return said


class _Llama3:
    """`<|start_header_id|>role<|end_header_id|>`, two line ends, content, `<|eot_id|>`.

    Held against Meta's own encoder. Content is taken as it is, its white space too;
    Hugging Face's template for Llama 3 strips it.
    """

    NEEDS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    ROLES = ("system", "user", "assistant", "ipython", "tool")
    MARKS = ("python_tag", "eom")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.special = tokenizer, tokenizer.special_tokens
        self.begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self.start, self.end_of_header, self.eot = (self.special[n] for n in self.NEEDS)
        self.eom = self.special.get("<|eom_id|>")
        self.ends = {self.eot, self.eom, self.special.get("<|end_of_text|>")}
        self.python_tag = self.special.get("<|python_tag|>")

    def header(self, role: str) -> list[int]:
        name = self.tokenizer.encode("ipython" if role == "tool" else role)
        line_ends = self.tokenizer.encode("\n\n")
        return [self.start, *name, self.end_of_header, *line_ends]

    def message(self, message: Message) -> list[int]:
        tag = self._mark(message, "python_tag", self.python_tag)
        end = self._mark(message, "eom", self.eom) or [self.eot]
        content = self.tokenizer.encode(message["content"])
        return [*self.header(message["role"]), *tag, *content, *end]

    def _mark(self, message: Message, key: str, id: int | None) -> list[int]:
        if not message.get(key):
            return []
        if id is None:
            raise ValueError(
                f"a message has {key}, and this tokenizer has no such token"
            )
        return [id]

    def dialogue(self, ids: list[int]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        at = len(self.begin) if ids[: len(self.begin)] == self.begin else 0
        while at < len(ids):
            header_end = _find(ids, {self.end_of_header}, at)
            if ids[at] != self.start or header_end == len(ids):
                raise _no_dialogue(at)
            end = _find(ids, self.ends, header_end)
            role = self.tokenizer.decode(ids[at + 1 : header_end])
            messages += self._read(role, ids[header_end + 1 : end], ids[end : end + 1])
            at = end + 1
        return messages

    def _read(self, role: str, body: list[int], end: list[int]) -> list[dict[str, Any]]:
        line_ends = self.tokenizer.encode("\n\n")
        if body[: len(line_ends)] == line_ends:
            body = body[len(line_ends) :]
        if not body and not end:
            return []
        message: dict[str, Any] = {"role": role}
        if body[:1] == [self.python_tag]:
            message["python_tag"], body = True, body[1:]
        if end == [self.eom]:
            message["eom"] = True
        return [message | {"content": self.tokenizer.decode(body)}]


class _ChatML:
    """`<|im_start|>role`, a line end, content, `<|im_end|>`, a line end.

    Role and content are encoded as one text, since a line end that content begins
    with may join the one before it.
    """

    NEEDS = ("<|im_start|>", "<|im_end|>")
    ROLES = ("system", "user", "assistant")
    MARKS = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.begin: list[int] = []
        self.start, self.end = (tokenizer.special_tokens[n] for n in self.NEEDS)
        self.line_end = tokenizer.encode("\n")

    def header(self, role: str) -> list[int]:
        return [self.start, *self.tokenizer.encode(f"{role}\n")]

    def message(self, message: Message) -> list[int]:
        text = f"{message['role']}\n{message['content']}"
        return [self.start, *self.tokenizer.encode(text), self.end, *self.line_end]

    def dialogue(self, ids: list[int]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        at = 0
        while at < len(ids):
            if ids[at] != self.start:
                raise _no_dialogue(at)
            end = _find(ids, {self.end}, at)
            role, newline, content = self.tokenizer.decode(ids[at + 1 : end]).partition(
                "\n"
            )
            if not newline:
                raise _no_dialogue(at)
            if content or end < len(ids):
                messages.append({"role": role, "content": content})
            at = end + 1
            if ids[at : at + len(self.line_end)] == self.line_end:
                at += len(self.line_end)
        return messages


def _find(ids: Sequence[int], wanted: set[int | None], start: int) -> int:
    """Where the next of some ids stands, or the length of `ids`."""
    return next((at for at in range(start, len(ids)) if ids[at] in wanted), len(ids))


def _no_dialogue(at: int) -> ValueError:
    return ValueError(f"these ids are no dialogue: no message begins at position {at}")


def _default_system(tokenizer: Tokenizer) -> str | None:
    """The system line that a ChatML template spells out for dialogues without one."""
    # Text within one pair of quotes: a quote and a plus would end the literal.
    literal = r"""<\|im_start\|>system(?:\n|\\n)((?:(?!["'] *[+~}]).)*?)<\|im_end\|>"""
    found = re.search(literal, tokenizer.chat_template or "", re.DOTALL)
    if found is None:
        return None
    letters = {"n": "\n", "t": "\t"}
    return re.sub(r"\\(.)", lambda m: letters.get(m[1], m[1]), found[1])
