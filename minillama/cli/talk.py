"""Commands that let a model speak: generate and chat."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minillama.cli import screen
from minillama.cli.loading import Compile, Dtype, How, Quantize, load
from minillama.cli.models import Device, Name

if TYPE_CHECKING:
    from minillama.generate import Step
    from minillama.model import Llama
    from minillama.sampling import Sampler
    from minillama.speculate import Guess
    from minillama.tokenizer import Tokenizer


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    panel = "Talking"
    app.command(rich_help_panel=panel, epilog=_GENERATE)(generate)
    app.command(rich_help_panel=panel, epilog=_CHAT)(chat)


_GENERATE = 'Example: minillama generate smollm2-135m "What is the capital of France?"'
_CHAT = "Example: minillama chat smollm2-135m"

Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest token; higher is more surprising.")
]
TopK = Annotated[int | None, typer.Option(help="Only the K likeliest tokens.")]
TopP = Annotated[
    float | None,
    typer.Option(help="Only the likeliest tokens that together have probability P."),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Only tokens at least P times as likely as the likeliest."),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same words.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="End before this text; may be given repeatedly."),
]
System = Annotated[
    str | None, typer.Option(help="Tell the model who it is, before the conversation.")
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A smaller model with the same tokenizer, which guesses tokens that the "
        "large one then judges; or `lookup`, to guess from the text so far.",
    ),
]
DraftTokens = Annotated[
    int, typer.Option(help="Tokens that the draft guesses at a time.")
]


def generate(
    name: Name,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to answer.")
    ],
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Answer the prompt as a message, or continue it as it stands. "
            "Without it: answer, if the model was made for that.",
            show_default=False,
        ),
    ] = None,
    system: System = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="End after so many tokens.")
    ] = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = 0,
    stop: Stop = None,
    draft: Draft = None,
    draft_tokens: DraftTokens = 4,
    dtype: Dtype = None,
    quantize: Quantize = None,
    compile: Compile = None,
    device: Device = None,
) -> None:
    """Answer one prompt, word by word, and end."""
    if not prompt.strip():
        raise ValueError("the prompt is empty: give the model something to go on from")
    from minillama.generate import stream

    sampler = _sampler(temperature, top_k, top_p, min_p, seed)
    model, tokenizer, guess = _load_two(
        name, draft, How(dtype, device, quantize, compile)
    )
    ids = prompt_ids(tokenizer, _text(prompt), chat=chat, system=system)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "sampler": sampler,
        "stop_ids": tokenizer.stop_ids,
        "stop_strings": stop or (),
        "tokenizer": tokenizer,
    }
    if guess is None:
        steps = stream(model, ids, **options)
    else:
        from minillama.speculate import speculate

        options["draft_tokens"] = draft_tokens
        steps = speculate(model, guess, ids, **options)
    try:
        for step in steps:
            screen.say(step.text, end="")
    finally:
        screen.say()


def chat(
    name: Name,
    system: System = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="End each answer after so many tokens.")
    ] = 512,
    context: Annotated[
        int, typer.Option(help="Tokens of the whole conversation.")
    ] = 4096,
    temperature: Temperature = 0.6,
    top_k: TopK = None,
    top_p: TopP = 0.9,
    min_p: MinP = None,
    seed: Seed = 0,
    draft: Draft = None,
    draft_tokens: DraftTokens = 4,
    dtype: Dtype = None,
    quantize: Quantize = None,
    compile: Compile = None,
    device: Device = None,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves."""
    sampler = _sampler(temperature, top_k, top_p, min_p, seed)
    model, tokenizer, guess = _load_two(
        name, draft, How(dtype, device, quantize, compile)
    )
    talk = Conversation(
        model,
        tokenizer,
        context=context,
        system=system,
        draft=guess,
        draft_tokens=draft_tokens,
    )
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):  # there is none on Windows
            import readline  # noqa: F401 - arrow keys in input()
        screen.note("Ctrl-C stops an answer, /new begins anew, Ctrl-D leaves.")
    while True:
        # Around all of it: a Ctrl-C that comes just after the answer must not leave.
        try:
            text = _ask("> " if typed else "")
            if text is None:
                return
            _turn(talk, text, sampler, max_new_tokens)
        except KeyboardInterrupt:
            screen.say(" (stopped)")


def _turn(
    talk: "Conversation", text: str, sampler: "Sampler", max_new_tokens: int
) -> None:
    if text.strip() == "/new":
        return talk.restart()
    if not text.strip():
        return None
    try:
        for piece in talk.reply(_text(text), sampler, max_new_tokens):
            screen.say(piece, end="")
    except ValueError as error:
        screen.complain(str(error))
    return screen.say()


class Conversation:
    """Messages so far, and what the model and its draft have read of them."""

    def __init__(
        self,
        model: "Llama",
        tokenizer: "Tokenizer",
        *,
        context: int | None = None,
        system: str | None = None,
        draft: "Llama | Guess | None" = None,
        draft_tokens: int = 4,
    ) -> None:
        from minillama.chat import ChatFormat
        from minillama.model import Llama
        from minillama.prefix import PrefixCache
        from minillama.speculate import DraftModel

        self.model, self.tokenizer = model, tokenizer
        self.format: ChatFormat = ChatFormat(tokenizer)
        self.context = min(context or sys.maxsize, model.config.max_seq_len)
        self.past = PrefixCache(model, self.context)
        self.draft: DraftModel | Guess | None = draft
        if isinstance(draft, Llama):  # one for all turns: it has a past, too
            room = min(self.context, draft.config.max_seq_len)
            self.draft = DraftModel(draft, room)
        self.draft_tokens = draft_tokens
        self.system = system
        self.restart()

    def restart(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages = _messages(self.system)

    def reply(
        self, text: str, sampler: "Sampler", max_new_tokens: int
    ) -> Iterator[str]:
        """Answer, piece by piece. Only what is new since the last turn is read.

        Whether it ends by itself or is broken off, the answer so far is kept. A turn
        that no longer fits raises ValueError, and is as if it had not been said.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = self.format.encode(asked)
        room = self.context - len(ids)
        if room < 1:
            raise ValueError(
                f"the conversation has {len(ids)} tokens with this message, and there "
                f"is room for {self.context}: begin anew with /new"
            )
        self.messages = asked
        answer = {"role": "assistant", "content": ""}
        self.messages.append(answer)
        for step in self._steps(
            ids,
            max_new_tokens=min(max_new_tokens, room),
            sampler=sampler,
            stop_ids=self.format.stop_ids,
            tokenizer=self.tokenizer,
        ):
            answer["content"] += step.text
            yield step.text

    def _steps(self, ids: list[int], **options: Any) -> "Iterator[Step]":
        if self.draft is None:
            return self.past.stream(ids, **options)
        from minillama.speculate import speculate

        options |= {"past": self.past, "draft_tokens": self.draft_tokens}
        return speculate(self.model, self.draft, ids, **options)


def prompt_ids(
    tokenizer: "Tokenizer", prompt: str, *, chat: bool | None, system: str | None
) -> list[int]:
    """The ids of a prompt: as a message where the model was made for it, else raw.

    A model was made for it if its tokenizer has a chat template.
    """
    from minillama.chat import ChatFormat

    if chat is None:
        chat = tokenizer.chat_template is not None
    if not chat and system is not None:
        raise ValueError("--system goes with a chat, and this model continues raw text")
    if chat:
        messages = [*_messages(system), {"role": "user", "content": prompt}]
        return ChatFormat(tokenizer).encode(messages)
    return tokenizer.encode(prompt, bos=tokenizer.adds_bos)


def _messages(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": _text(system)}]


def _ask(mark: str) -> str | None:
    """A line from the user; None at the end, by Ctrl-D."""
    while True:
        try:
            return input(mark)
        except EOFError:
            if mark:
                screen.say()
            return None
        except KeyboardInterrupt:
            screen.note("\nCtrl-D leaves.")


def _text(text: str) -> str:
    """What came from a command line in another encoding becomes question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _sampler(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int,
) -> "Sampler":
    from minillama.sampling import Sampler

    return Sampler(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )


def _load_two(
    name: str, draft: str | None, how: How
) -> "tuple[Llama, Tokenizer, Llama | Guess | None]":
    """A model, its tokenizer, and what guesses for it, if anything does."""
    from minillama import hub

    if draft not in (None, "lookup"):
        hub.resolve(draft)
    model, tokenizer = load(name, how)
    if draft is None:
        return model, tokenizer, None
    if draft == "lookup":
        from minillama.speculate import prompt_lookup

        return model, tokenizer, prompt_lookup
    smaller, words = load(draft, how)
    sizes = smaller.config.vocab_size, model.config.vocab_size
    if sizes[0] != sizes[1] or words.ranks != tokenizer.ranks:
        raise ValueError(
            f"{draft} cannot guess for {name}: its {sizes[0]} tokens are not the "
            f"{sizes[1]} of {name}. Take a draft with the same tokenizer, or --draft "
            "lookup"
        )
    return model, tokenizer, smaller
