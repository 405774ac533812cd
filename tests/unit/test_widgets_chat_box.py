"""The chat box without a browser: its thread, its conversation, its refusals."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from minillama.widgets import ChatBox

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def piece(text: str, p: float = 0.5) -> dict[str, Any]:
    return {"text": text, "probability": p, "top": [(text, p), ("x", 0.25)]}


class Talk:
    """A chat box, and what it sends to the browser."""

    def __init__(self, reply: Any, **options: Any) -> None:
        self.box = ChatBox(reply, **options)
        self.sent: list[dict[str, Any]] = []
        self.ended = threading.Event()
        self.box.send = self._hear  # type: ignore[method-assign]

    def _hear(self, message: dict[str, Any], buffers: Any = None) -> None:
        self.sent.append(message)
        if "part" not in message:
            self.ended.set()

    def ask(self, what: str, wait: bool = True, **args: Any) -> dict[str, Any]:
        self.ended.clear()
        self.box._asked(None, {"id": "q", "what": what, "args": args}, [])
        if wait:
            assert self.ended.wait(10)
        return self.sent[-1]

    @property
    def parts(self) -> list[str]:
        return [s["part"]["text"] for s in self.sent if "text" in s.get("part", {})]


def test_pieces_come_one_by_one_and_are_remembered() -> None:
    heard: list[Any] = []

    def reply(messages: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
        heard.append(messages)
        yield piece("The", 0.75)
        yield piece(" end")

    talk = Talk(reply, messages=HI)
    assert talk.ask("say", text="And?") == {"id": "q", "answer": {"stopped": False}}
    assert heard == [[*HI, {"role": "user", "content": "And?"}]]
    assert talk.sent[0] == {"id": "q", "part": {"begun": True}}
    assert talk.sent[1]["part"] == {
        "text": "The",
        "probability": 0.75,
        "top": [["The", 0.75], ["x", 0.25]],
    }
    assert talk.box.messages[-1] == {"role": "assistant", "content": "The end"}
    last = talk.ask("conversation")["answer"]["messages"][-1]
    assert [p["text"] for p in last["pieces"]] == ["The", " end"]
    assert talk.box.words() == "a chat of 4 messages, the last: 'The end'"
    talk.ask("forget")
    assert talk.box.messages == HI


def test_stop_between_two_pieces() -> None:
    step, closed = threading.Semaphore(0), threading.Event()

    def reply(messages: Any) -> Iterator[dict[str, Any]]:
        try:
            for i in range(1000):
                step.acquire()
                yield piece(f"{i} ")
        finally:
            closed.set()

    talk = Talk(reply)
    talk.ask("say", wait=False, text="Count")
    step.release(2)
    deadline = time.time() + 10
    while talk.parts != ["0 ", "1 "] and time.time() < deadline:
        time.sleep(0.005)
    assert talk.parts == ["0 ", "1 "]
    # While it writes: no second question, no new beginning.
    assert "still being written" in talk.ask("say", text="More?")["sentence"]
    assert "still being written" in talk.ask("forget")["sentence"]
    assert talk.ask("stop") == {"id": "q", "answer": {}}
    talk.ended.clear()
    step.release()
    assert talk.ended.wait(10)
    assert talk.sent[-1] == {"id": "q", "answer": {"stopped": True}}
    assert closed.is_set()
    assert talk.parts == ["0 ", "1 "]
    assert [m["content"] for m in talk.box.messages] == ["Count", "0 1 "]
    assert talk.ask("stop") == {"id": "q", "answer": {}}  # there is nothing to stop


def test_what_fails_at_once_changes_nothing() -> None:
    def reply(messages: Any) -> Any:
        raise KeyError("no model")

    talk = Talk(reply, messages=HI)
    assert talk.ask("say", text="x")["sentence"] == "reply raised KeyError: 'no model'"
    assert talk.box.messages == HI
    assert "nothing to send" in talk.ask("say", text=" \n")["sentence"]
    assert "nothing to send" in talk.ask("say", text="")["sentence"]  # not busy


def test_what_fails_midway_keeps_what_came() -> None:
    def reply(messages: Any) -> Iterator[dict[str, Any]]:
        yield piece("half")
        raise ValueError("the context is full: 2 of 2 tokens")

    talk = Talk(reply)
    sentence = talk.ask("say", text="x")["sentence"]
    assert sentence == "the context is full: 2 of 2 tokens"
    assert [m["content"] for m in talk.box.messages] == ["x", "half"]


def test_an_empty_answer_is_one() -> None:
    talk = Talk(lambda messages: iter(()))
    assert talk.ask("say", text="x")["answer"] == {"stopped": False}
    assert [m["content"] for m in talk.box.messages] == ["x", ""]


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        {},
        {"text": 3},
        {"text": "a", "probability": 1.5},
        {"text": "a", "probability": float("nan")},
        {"text": "a", "top": ["b"]},
        {"text": "a", "top": 5},
        {"text": "a", "top": [("b", -1)]},
    ],
)
def test_pieces_that_are_none(wrong: Any) -> None:
    talk = Talk(lambda messages: [wrong])
    assert "each piece must be a dict" in talk.ask("say", text="x")["sentence"]
    assert talk.box.messages == []


def test_the_text_alone_will_do() -> None:
    talk = Talk(lambda messages: [{"text": "\ud800"}])
    talk.ask("say", text="x")
    assert talk.sent[1]["part"] == {"text": "?", "probability": None, "top": []}


@pytest.mark.parametrize("wrong", ["Hi", {"role": "user"}, {"role": 1, "content": ""}])
def test_a_sentence(wrong: Any) -> None:
    assert "message 0 is" in str(ChatBox(print, messages=[wrong]).sentence)
    assert "must be a function" in str(ChatBox(None).sentence)  # type: ignore[arg-type]


def test_the_picture() -> None:
    box = ChatBox(
        print, messages=[*HI, {"role": "user", "content": "$\\frac\n<b>" * 9}]
    )
    texts = [t.get_text() for t in box.draw().texts]
    assert texts[:3] == ["user: Hi", "assistant: Hello", "user: $\\frac"]
    assert box._picture()
    assert "nothing" in ChatBox(print).draw().texts[0].get_text()
