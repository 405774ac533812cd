"""A chat box: the answer streams in, each token with its probability, until stopped."""

import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from minillama.widgets.view import Answer, View, plain

Reply = Callable[[list[dict[str, str]]], Iterable[Mapping[str, Any]]]
BUSY = "one answer is still being written: wait for its end, or stop it"
_END = object()


class ChatBox(View):
    """A conversation with whatever `reply` asks, one piece after another.

    `reply` gets the messages so far, dicts of role and content, the last one the
    user's, and yields pieces: `{"text": ..., "probability": ..., "top": [(text, p),
    ...]}`, of which the text alone must be there. It runs in a thread of its own, so
    the notebook stays usable, and Stop ends it between two pieces. `messages` is what
    has been said before. The conversation can be read off `chat.messages`.

    An answer that fails before its first piece leaves the conversation as it was.
    """

    name = "chat_box"
    title = "Chat"

    def __init__(
        self, reply: Reply, *, messages: Sequence[Mapping[str, str]] = ()
    ) -> None:
        self._reply = reply
        self._before: list[dict[str, Any]] = []
        self._said: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._stop: threading.Event | None = None  # there is one while an answer runs
        super().__init__(lambda: self._begin(messages))

    def _begin(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        if not callable(self._reply):
            raise ValueError(
                f"reply is {self._reply!r}: it must be a function of the messages that "
                "yields pieces"
            )
        self._before = [_message(i, said) for i, said in enumerate(messages)]
        self._said = list(self._before)
        return {"messages": self._before}

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, as `reply` gets it."""
        with self._lock:
            return self._plain_messages()

    def _plain_messages(self) -> list[dict[str, str]]:
        return [{"role": m["role"], "content": m["content"]} for m in self._said]

    def answer(self, what: str, args: Mapping[str, Any]) -> Answer:
        if what == "conversation":
            with self._lock:
                said = [{**m, "pieces": list(m["pieces"])} for m in self._said]
            return {"messages": said}, []
        if what == "stop":
            if stop := self._stop:
                stop.set()
            return {}, []
        if what == "forget":
            with self._lock:
                if self._stop:
                    raise ValueError(BUSY)
                self._said = list(self._before)
            return {}, []
        return super().answer(what, args)

    def record(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        yield "conversation", {}

    def words(self) -> str:
        said = self.messages
        last = f", the last: {said[-1]['content'][:60]!r}" if said else ""
        return f"a chat of {len(said)} messages{last}"

    def _asked(self, _: Any, content: Mapping[str, Any], __: Any) -> None:
        if content.get("what") != "say":
            super()._asked(_, content, __)
            return
        try:
            thread = self._answering(content["id"], content["args"]["text"])
        except ValueError as error:
            self.send({"id": content["id"], "sentence": str(error)})
        else:
            self.send({"id": content["id"], "part": {"begun": True}})
            thread.start()

    def _answering(self, id: str, text: str) -> threading.Thread:
        """The thread that will answer, and send what it says under that id."""
        if not text.strip():
            raise ValueError("there is nothing to send: write a question first")
        with self._lock:
            if self._stop:
                raise ValueError(BUSY)
            stop = self._stop = threading.Event()
            self._said.append({"role": "user", "content": text, "pieces": []})
            messages = self._plain_messages()
        # The kernel finds the cell that output belongs to in its context.
        run = contextvars.copy_context().run
        return threading.Thread(
            target=run, args=(self._run, id, messages, stop), daemon=True
        )

    def _run(
        self, id: str, messages: list[dict[str, str]], stop: threading.Event
    ) -> None:
        last: dict[str, Any] = {"role": "assistant", "content": "", "pieces": []}
        end: dict[str, Any] = {"id": id}
        try:
            self._write(id, messages, stop, last)
            end["answer"] = {"stopped": stop.is_set()}
        except ValueError as error:
            end["sentence"] = str(error)
        except BaseException as error:  # whatever ends it: the box must not hang
            end["sentence"] = f"reply raised {type(error).__name__}: {error}"
        with self._lock:
            failed = "sentence" in end or stop.is_set()
            if failed and not last["pieces"]:
                self._said.pop()
            elif not last["pieces"]:
                self._said.append(last)
            self._stop = None
        self.send(end)

    def _write(
        self,
        id: str,
        messages: list[dict[str, str]],
        stop: threading.Event,
        last: dict[str, Any],
    ) -> None:
        pieces = iter(self._reply(messages))
        try:
            while not stop.is_set():
                piece = next(pieces, _END)
                if piece is _END or stop.is_set():
                    return
                piece = _piece(piece)
                with self._lock:
                    if not last["pieces"]:
                        self._said.append(last)
                    last["pieces"].append(piece)
                    last["content"] += piece["text"]
                self.send({"id": id, "part": piece})
        finally:
            if close := getattr(pieces, "close", None):
                close()

    def draw(self) -> Any:
        """The conversation as text, one line each, cut where the paper ends."""
        from matplotlib.figure import Figure

        said = self.messages
        lines = [line for message in said for line in _lines(message)][-24:]
        lines = lines or ["(nothing has been said yet)"]
        figure = Figure(figsize=(7, 0.3 + 0.22 * len(lines)))
        for i, line in enumerate(lines):
            y = 1 - (i + 0.8) / (len(lines) + 0.6)
            figure.text(0.01, y, line, family="monospace", fontsize=9, parse_math=False)
        return figure


def _message(i: int, message: Any) -> dict[str, Any]:
    said = dict(message) if isinstance(message, Mapping) else {}
    role, content = said.get("role"), said.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(
            f"message {i} is {message!r}: it must be a dict with a role and a content, "
            "both text"
        )
    return {"role": role, "content": content, "pieces": []}


def _piece(piece: Any) -> dict[str, Any]:
    """A piece with all three of its parts. Raises ValueError if it is none."""
    given = dict(piece) if isinstance(piece, Mapping) else {}
    try:
        text, p = given["text"], given.get("probability")
        top = [(str(other), _share(q)) for other, q in given.get("top", ())]
        p = None if p is None else _share(p)
        if isinstance(text, str):
            return plain({"text": text, "probability": p, "top": top})
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(
        f"reply gave {str(piece)[:80]}: each piece must be a dict of text, probability "
        "(from 0 to 1) and top, a list of (text, probability)"
    )


def _share(p: Any) -> float:
    if not -1e-6 <= float(p) <= 1 + 1e-6:
        raise ValueError
    return min(max(float(p), 0.0), 1.0)


def _lines(message: Mapping[str, str]) -> list[str]:
    import textwrap

    text = f"{message['role']}: {message['content']}"
    return [
        line
        for part in text.splitlines()
        for line in textwrap.wrap(part, 90, subsequent_indent="  ") or [""]
    ]
