"""The command: what a newcomer sees, and what happens when something is wrong."""

import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loud import loud_model
from typer.testing import CliRunner

from minillama import ChatFormat, Sampler, Tokenizer, generate, hub, train_bpe
from minillama.cli import app, machine, screen, talk
from minillama.fetch import Progress
from minillama.weights import save_weights

VERBS = ("pull", "list", "info", "plan", "generate", "chat", "doctor", "bench")
VERBS += ("lab", "progress", "test", "train")
TEXT = "It was a snowy night, and Lin was at the market. " * 20
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ESC, BELL, CSI = "\x1b", "\x07", "\x9b"


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees, or writes to, what this machine has."""
    for name in ("MINILLAMA_DEBUG", "MINILLAMA_OFFLINE", "MINILLAMA_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINILLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def real_home(
    empty_home: None, monkeypatch: pytest.MonkeyPatch, smollm2_path: Path
) -> None:
    """The machine's own cache, for tests with the real model."""
    monkeypatch.setenv("MINILLAMA_HOME", str(smollm2_path.parents[1]))


def run(*words: str, typed: str | None = None) -> Any:
    return CliRunner().invoke(app, list(words), input=typed)


def child(*words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "minillama", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, **options
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A little ChatML tokenizer."""
    return train_bpe(TEXT, 330, CHATML)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> str:
    """A small random model that knows no dialogue, and says strange things."""
    path = tmp_path_factory.mktemp("models") / "small"
    save_weights(loud_model(vocab_size=tokenizer.vocab_size), path, tokenizer)
    return str(path)


# Help


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from minillama.cli import main; sys.argv[1:] = ['--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(re.findall(r"'(\w+)[.\w]*'", out.stderr))
    heavy = "torch numpy huggingface_hub matplotlib transformers tiktoken safetensors"
    assert loaded >= {"typer", "minillama"}
    assert not loaded & {*heavy.split(), "gguf", "httpx", "jupyterlab", "psutil"}
    assert all(verb in out.stdout for verb in VERBS)


def test_help_answers_within_half_a_second() -> None:
    """In processor time, which other work on the machine does not stretch much."""
    times: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert child("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(
            after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        )
    assert min(times) < 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_each_command_has_help_with_an_example(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"Example: minillama {verb}" in result.stdout
    assert run(verb, "-h").stdout == result.stdout


def test_no_arguments_show_help() -> None:
    assert "Usage: minillama" in child().stdout


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["pull"],
        ["generate", "x"],
        ["plan", "llama3-8b", "--batch", "many"],
        ["pull", "smollm2-135m", "--source", "ftp"],
        ["list", "--nonsense"],
    ],
)
def test_wrong_usage_is_2(words: list[str]) -> None:
    result = child(*words)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Error" in result.stderr
    assert "Traceback" not in result.stderr


# Errors


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["pull", "smolm2-135m"],
            "no model is called 'smolm2-135m': did you mean smol",
        ),
        (["info", "nothing"], "nothing is no model, no folder and no file"),
        (["plan", "llama3-8b", "--dtype", "int3"], "no dtype is called 'int3'"),
        (["plan", "llama3-8b", "--context", "9000"], "9000 is more than this model's"),
        (["generate", "smollm2-135m", "Hi"], "run `minillama pull smollm2-135m`"),
        (["generate", "/no/such", "Hi"], "is no file, no folder, and no name"),
        (["generate", "smollm2-135m", " \n"], "the prompt is empty"),
        (["chat", "llama3-8b"], "run `minillama pull llama3-8b`"),
        (["bench", "llama3-8b"], "run `minillama pull llama3-8b`"),
        (["train", "no.txt", "out"], "there is no file no.txt"),
        (["train", "no.toml", "out"], "there is no file no.toml"),
        (["doctor", "--explain", "ML-READY-0000"], "not copied well"),
    ],
)
def test_an_error_is_one_sentence(words: list[str], sentence: str) -> None:
    result = run(*words)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.startswith("minillama: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = child("info", "nothing")
    assert plain.returncode == 1
    assert "Traceback" not in plain.stderr
    debug = child("info", "nothing", env=os.environ | {"MINILLAMA_DEBUG": "1"})
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("two\n lines"), "two lines"),
        (FileNotFoundError(2, "No such file", "a.txt"), "a.txt: No such file"),
        (FileNotFoundError("there is no a.txt"), "there is no a.txt"),
        (MemoryError(), "there is not enough memory: `minillama plan NAME` shows"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to"),
            "there is not enough memory",
        ),
        (ModuleNotFoundError("No module named 'torch'"), "run `minillama doctor`"),
        (KeyError("x"), "unexpected KeyError: 'x' (MINILLAMA_DEBUG=1 shows where)"),
        (ValueError(), "unexpected ValueError: no message"),
    ],
)
def test_sentences(error: Exception, sentence: str) -> None:
    assert sentence in screen.sentence(error)
    assert "\n" not in screen.sentence(error)


def test_a_bug_is_said_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "damage", lambda name: 1 / 0)
    result = run("list")
    assert result.exit_code == 1
    assert "unexpected ZeroDivisionError: division by zero" in result.stderr


@pytest.mark.parametrize("verb", ["list", "progress"])
def test_a_reader_that_goes_away(verb: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "minillama", verb],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


# Text of others


def test_control_characters_become_visible() -> None:
    nasty = f"a{ESC}]0;title{BELL}b{CSI}2Jc\rd\x7fe\u202ef\x00"
    assert screen.harmless(nasty) == (
        "a\u241b]0;title\u2407b<U+009B>2Jc\u240dd\u2421e<U+202E>f\u2400"
    )
    kept = "tabs\t, lines\n, ě 中文 Việt 😀 \u200d عربى"
    assert screen.harmless(kept) == kept


def test_a_model_cannot_command_the_terminal(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minillama.generate import Step

    steps = [Step(1, t, 0.0) for t in ("[bold]", f"{ESC}[2J", "\x9d0;x", "[/nope]")]
    monkeypatch.setattr(
        sys.modules["minillama.generate"], "stream", lambda *a, **k: steps
    )
    result = run("generate", folder, "Hi")
    assert result.stdout == "[bold]\u241b[2J<U+009D>0;x[/nope]\n"


def test_names_cannot_command_the_terminal() -> None:
    result = run("info", f"{ESC}[31m[red]x")
    assert result.exit_code == 1
    assert ESC not in result.stderr
    assert "\u241b[31m[red]x is no model" in result.stderr


# pull and list


@pytest.fixture
def pebble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model whose fetching is a stub."""
    entry = hub.Entry(
        about="a [bold]test[/bold]",
        licence="CC0-1.0",
        size=3,
        file="pebble.bin",
        sha256="no",
        wheel=hub.Wheel(requirement="pebble==1", member="x", size=3),
    )
    monkeypatch.setitem(hub.MODELS, "pebble", entry)
    place = tmp_path / "home" / "pebble" / "pebble.bin"

    def pull(name: str, *, source: str | None, progress: Progress) -> Path:
        progress("fetching", 1, 3)
        progress("fetching", 3, 3)
        progress("checking", 3, 3)
        place.parent.mkdir(parents=True)
        place.write_text("abc")
        return place

    monkeypatch.setattr(hub, "pull", pull)
    return place


def test_pull_names_the_licence_and_the_place(pebble: Path) -> None:
    result = run("pull", "pebble")
    assert result.exit_code == 0
    assert result.stdout == f"pebble is here: {pebble}\n"
    assert result.stderr == (
        "pebble: 3 bytes, licence CC0-1.0\n"
        "pebble: fetching, 3 bytes\n"
        "pebble: checking, 3 bytes\n"
    )
    again = run("pull", "pebble", "pebble")
    assert again.stdout == f"pebble is here already: {pebble}\n" * 2
    assert again.stderr == ""


def test_pull_checks_all_names_first(pebble: Path) -> None:
    assert run("pull", "pebble", "peble").exit_code == 1
    assert not pebble.exists()


def test_pull_says_what_is_kept_when_it_is_stopped(
    pebble: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(name: str, **options: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "pull", stop)
    result = run("pull", "pebble")
    assert result.exit_code == 130
    assert "stopped: nothing of pebble is kept; `minillama pull" in result.stderr
    monkeypatch.setattr(hub, "resumable", lambda name: 5_000_000_000)
    result = run("pull", "pebble")
    assert "5.00 GB of pebble are kept, and `minillama pull pebble`" in result.stderr


def test_list_shows_what_is_here(pebble: Path) -> None:
    before = run("list").stdout
    assert "llama3.2-3b-instruct" in before
    assert "a [bold]test[/bold]" in before  # markup in an entry is text
    assert not re.search(r"pebble +yes", before)
    run("pull", "pebble")
    assert re.search(r"pebble +yes", run("list").stdout)
    pebble.write_text("ab")
    assert re.search(r"pebble +damaged", run("list").stdout)


# info and plan


def test_info_of_a_preset_and_of_a_folder(folder: str) -> None:
    out = run("info", "llama3-8b").stdout
    for words in (
        "8,030,261,248 parameters",
        "16,060,522,496 bytes of weights in bfloat16",
        "131,072 bytes of KV cache a token in bfloat16",
        "licence: Llama 3 Community License",
    ):
        assert words in out
    small = run("info", folder).stdout
    assert re.search(r"dim +48", small)
    assert "licence" not in small


@pytest.mark.parametrize("name", ["llama3-8b", "smollm2-135m"])
def test_info_names_has_every_name_of_every_dialect(name: str) -> None:
    from minillama.config import PRESETS
    from minillama.names import DIALECTS

    lines = run("info", name, "--names").stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "Hugging Face" in line)
    rows = [re.split(r" {2,}", line.strip()) for line in lines[start:]]
    begins = next(row for row in rows if row[0] == "layers.N.")
    found: set[str] = set()
    whole = True
    for row in rows:
        whole = whole and row is not begins
        for begin, cell in zip(begins, row, strict=False):
            found.add(f"{cell}.weight" if whole else f"{begin}{cell}.weight")
    wanted = {n.replace("{}", "N") for names in DIALECTS.values() for n in names}
    if PRESETS[name].tied_embeddings:
        wanted -= {"output.weight", "lm_head.weight"}
        assert "output.weight" not in found
    assert wanted <= found


def test_plan_in_figures() -> None:
    out = run("plan", "llama3-8b", "--dtype", "bf16", "--context", "8192").stdout
    for words in ("16,060,522,496", "1,073,741,824", "free on", "--dtype int4"):
        assert words in out
    assert re.search(r"It (fits|does not fit): \d+% of the free memory", out)
    batch = run("plan", "llama3-8b", "--batch", "4", "--device", "cpu").stdout
    assert "4,294,967,296" in batch


# generate


def test_generate_streams_what_the_library_says(
    folder: str, tokenizer: Tokenizer
) -> None:
    from minillama import load

    model, _ = load(folder, device="cpu")
    prompt = "It was"
    options = ["--device", "cpu", "--max-new-tokens", "9"]
    ids = generate(model, tokenizer.encode(prompt), max_new_tokens=9)
    greedy = run("generate", folder, prompt, *options)
    assert greedy.exit_code == 0, greedy.stderr
    assert greedy.stdout == screen.harmless(tokenizer.decode(ids)) + "\n"
    assert greedy.stderr == ""
    hot = Sampler(temperature=1.5, top_k=50, top_p=0.9, min_p=0.01, seed=3)
    ids = generate(model, tokenizer.encode(prompt), max_new_tokens=9, sampler=hot)
    words = [
        "--temperature",
        "1.5",
        "--top-k",
        "50",
        "--top-p",
        "0.9",
        "--min-p",
        "0.01",
        "--seed",
        "3",
    ]
    sampled = run("generate", folder, prompt, *options, *words)
    assert sampled.stdout == screen.harmless(tokenizer.decode(ids)) + "\n"
    assert sampled.stdout != greedy.stdout


def test_a_stop_string_ends_the_answer(folder: str) -> None:
    options = ["--device", "cpu", "--max-new-tokens", "20"]
    whole = run("generate", folder, "It was", *options).stdout
    stop = whole[5:8]
    short = run("generate", folder, "It was", *options, "--stop", stop).stdout
    assert short == whole[: whole.index(stop)] + "\n"


def test_chat_or_raw(tokenizer: Tokenizer) -> None:
    """A template in the tokenizer says that the model was made to answer."""
    raw = tokenizer.encode("Hi")
    chat = ChatFormat(tokenizer).encode([{"role": "user", "content": "Hi"}])
    ask = talk.prompt_ids
    assert ask(tokenizer, "Hi", chat=None, system=None) == raw
    assert ask(tokenizer, "Hi", chat=True, system=None) == chat
    with pytest.raises(ValueError, match="--system goes with a chat"):
        ask(tokenizer, "Hi", chat=None, system="Be brief.")
    both = [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}]
    expected = ChatFormat(tokenizer).encode(both)
    assert ask(tokenizer, "Hi", chat=True, system="Be") == expected
    made = train_bpe(TEXT, 330, CHATML)
    made.chat_template = "{{ messages }}"
    assert ask(made, "Hi", chat=None, system=None) == chat
    assert ask(made, "Hi", chat=False, system=None) == raw


def test_raw_llama3_text_begins_with_the_begin_token() -> None:
    made = train_bpe(TEXT, 330, ("<|begin_of_text|>",))
    ids = talk.prompt_ids(made, "Hi", chat=None, system=None)
    assert ids == [made.bos_id, *made.encode("Hi")]


def test_generate_says_what_does_not_fit(folder: str) -> None:
    result = run("generate", folder, "It was " * 200, "--device", "cpu")
    assert result.exit_code == 1
    assert "and the context is 256: shorten the prompt" in result.stderr
    for words, sentence in (
        (["--temperature", "-1"], "temperature is -1.0: it must be"),
        (["--top-p", "2"], "top_p is 2.0: it must be"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--dtype", "int8"], "a model cannot run in int8: choose float32"),
        (["--chat", "--system", "x" * 3000], "the context is 256"),
    ):
        result = run("generate", folder, "It was", "--device", "cpu", *words)
        assert result.exit_code == 1
        assert sentence in result.stderr
        assert result.stdout == ""


def test_a_tokenizer_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    train_bpe(TEXT, 300).save(path)
    result = run("generate", str(path), "Hi")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


@pytest.mark.model
def test_the_capital_of_france(real_home: None) -> None:
    """The sentence that the README promises: real weights, no network."""
    environment = os.environ | {"MINILLAMA_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    asked = ("generate", "smollm2-135m", "What is the capital of France?")
    result = child(*asked, env=environment)
    assert result.stderr == ""
    assert result.stdout == "The capital of France is Paris.\n"
    assert result.returncode == 0


# chat


class Counting:
    """A model that notes how many tokens each call reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.model = loud_model(vocab_size=tokenizer.vocab_size)
        self.read: list[int] = []
        hidden = self.model.hidden

        def count(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.read.append(tokens.shape[1])
            return hidden(tokens, *rest)

        self.model.hidden = count  # type: ignore[method-assign]


def spoken(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode([i for i in ids if i not in tokenizer.stop_ids])


GREEDY = Sampler(temperature=0)


def test_each_turn_says_what_a_fresh_model_would(tokenizer: Tokenizer) -> None:
    counting = Counting(tokenizer)
    conversation = talk.Conversation(counting.model, tokenizer, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}]
    for turn, text in enumerate(("Lin?", "It was a night", "and so on")):
        counting.read.clear()
        said = "".join(conversation.reply(text, GREEDY, 8))
        read = counting.read[0]
        messages.append({"role": "user", "content": text})
        ids = ChatFormat(tokenizer).encode(messages)
        fresh = generate(
            counting.model, ids, max_new_tokens=8, stop_ids=tokenizer.stop_ids
        )
        assert said == tokenizer.decode(
            [i for i in fresh if i not in tokenizer.stop_ids]
        )
        messages.append({"role": "assistant", "content": said})
        assert conversation.messages == messages
        assert read == len(ids) if turn == 0 else read < len(ids) / 1.5


def test_an_answer_that_was_broken_off(tokenizer: Tokenizer) -> None:
    """Ctrl-C can come between two layers, whose caches then differ in length."""
    counting = Counting(tokenizer)
    conversation = talk.Conversation(counting.model, tokenizer)
    answer = conversation.reply("Lin?", GREEDY, 20)
    pieces = [next(answer) for _ in range(4)]
    layer = counting.model.layers[1]
    whole = layer.forward

    def interrupted(*inputs: Any) -> Any:
        layer.forward = whole
        raise KeyboardInterrupt

    layer.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        next(answer)
    lengths = {cache.length for cache in conversation.past.caches}
    assert len(lengths) == 2
    assert conversation.messages[-1]["content"] == "".join(pieces)
    said = "".join(conversation.reply("and?", GREEDY, 8))
    ids = ChatFormat(tokenizer).encode(conversation.messages[:-1])
    fresh = generate(counting.model, ids, max_new_tokens=8)
    assert said == spoken(tokenizer, fresh)


def test_an_answer_is_not_read_again(tokenizer: Tokenizer) -> None:
    """Only its last token, which no cache holds yet."""
    counting = Counting(tokenizer)
    conversation = talk.Conversation(counting.model, tokenizer)
    answer = tokenizer.encode(" and Lin was at the market")
    left = iter(answer)

    def recite(logits: torch.Tensor, history: list[list[int]]) -> torch.Tensor:
        return torch.tensor([next(left)])

    list(conversation.reply("Who?", recite, len(answer)))  # type: ignore[arg-type]
    first = counting.read[0]
    counting.read.clear()
    list(conversation.reply("Where?", GREEDY, 2))
    ids = ChatFormat(tokenizer).encode(conversation.messages[:-1])
    assert counting.read[0] == len(ids) - first - len(answer) + 1


@pytest.mark.parametrize("layers", [2, 3])
def test_turns_with_a_draft_say_the_same(tokenizer: Tokenizer, layers: int) -> None:
    from minillama.speculate import first_layers, prompt_lookup

    model = loud_model(vocab_size=tokenizer.vocab_size)
    alone = talk.Conversation(model, tokenizer)
    options: dict[str, Any] = {"draft": first_layers(model, layers)}
    drafted = talk.Conversation(model, tokenizer, **options)
    looked_up = talk.Conversation(model, tokenizer, draft=prompt_lookup)
    for text in ("Lin?", "It was a night", "and so on"):
        said = "".join(alone.reply(text, GREEDY, 8))
        assert "".join(drafted.reply(text, GREEDY, 8)) == said
        assert "".join(looked_up.reply(text, GREEDY, 8)) == said
    assert drafted.messages == looked_up.messages == alone.messages


def test_a_draft_in_the_commands(folder: str, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--max-new-tokens", "12"]
    plain = run("generate", folder, "It was", *options).stdout
    for draft in ("lookup", folder):
        words = ["--draft", draft, "--draft-tokens", "3"]
        result = run("generate", folder, "It was", *options, *words)
        assert (result.stdout, result.stderr) == (plain, "")
    options += ["--temperature", "0"]
    plain = run("chat", folder, *options, typed="It was\nand\n").stdout
    words = ["--draft", folder]
    result = run("chat", folder, *options, *words, typed="It was\nand\n")
    assert (result.stdout, result.stderr) == (plain, "")


def test_a_draft_with_other_tokens(
    folder: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Of another number, or of the same number and other bytes."""
    size = tokenizer.vocab_size
    for other in (train_bpe(TEXT, 300), train_bpe(TEXT[::-1], size - 2, CHATML)):
        path = str(tmp_path / f"draft{other.vocab_size}")
        save_weights(loud_model(vocab_size=other.vocab_size), Path(path), other)
        result = run("generate", folder, "Hi", "--device", "cpu", "--draft", path)
        assert result.exit_code == 1
        assert result.stdout == ""
        words = f"its {other.vocab_size} tokens are not the {size} of {folder}"
        assert words in result.stderr
    result = run("generate", folder, "Hi", "--draft", "/no/such")
    assert "is no file, no folder, and no name" in result.stderr


def test_a_full_conversation_says_so_and_begins_anew(tokenizer: Tokenizer) -> None:
    model = loud_model(vocab_size=tokenizer.vocab_size)
    conversation = talk.Conversation(model, tokenizer, context=60)
    list(conversation.reply("Lin?", GREEDY, 50))
    before = list(conversation.messages)
    with pytest.raises(ValueError, match="and there is room for 60: begin anew with /"):
        list(conversation.reply("It was a snowy night. " * 9, GREEDY, 50))
    assert conversation.messages == before
    conversation.restart()
    assert list(conversation.reply("Lin?", GREEDY, 5))
    assert len(conversation.messages) == 2


def test_chat_reads_lines_until_they_end(folder: str) -> None:
    options = ["--device", "cpu", "--max-new-tokens", "5", "--temperature", "0"]
    result = run("chat", folder, *options, typed="It was\n\n/new\nIt was\n")
    assert result.exit_code == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == second != ""  # /new forgot the first
    assert result.stderr == ""


def test_chat_wants_chat_tokens(tmp_path: Path) -> None:
    plain = train_bpe(TEXT, 300)
    save_weights(loud_model(vocab_size=plain.vocab_size), tmp_path / "m", plain)
    result = run("chat", str(tmp_path / "m"), "--device", "cpu", typed="Hi\n")
    assert result.exit_code == 1
    assert "this tokenizer has no chat tokens" in result.stderr


class Terminal:
    """A command in a terminal of its own, with somebody who types."""

    def __init__(self, *words: str) -> None:
        import pty

        self.master, slave = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minillama", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=self.own_terminal,
            # On a busy machine two threads wait for each other longer than this test.
            env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )
        os.close(slave)

    @staticmethod
    def own_terminal() -> None:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def expect(self, pattern: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    data = os.read(self.master, 4096)
                except OSError:  # the other side has closed
                    data = b""
                if not data:
                    assert re.search(pattern, self.seen), self.seen
                self.seen += data.decode("utf-8", "replace")
        found = re.search(pattern, self.seen)
        assert found is not None
        self.seen = self.seen[found.end() :]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@pytest.fixture
def terminal(folder: str) -> Iterator[Terminal]:
    pytest.importorskip("pty")
    made = Terminal("chat", folder, "--device", "cpu", "--max-new-tokens", "200")
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.master)


def test_chat_in_a_terminal(terminal: Terminal) -> None:
    """Ctrl-C stops the answer, then the program still talks, and Ctrl-D leaves."""
    terminal.expect("Ctrl-D leaves")
    terminal.expect("> $")
    terminal.type("It was\n")
    terminal.expect(r"It was\r\n.+")
    terminal.type("\x03")
    terminal.expect(r"(\(stopped\)|\n)[\s\S]*> $")
    terminal.type("\x03")
    terminal.expect("Ctrl-D leaves")
    terminal.type("/new\n")
    terminal.expect("> $")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0


# doctor, lab, test, progress


def test_doctor_ends_in_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("doctor")
    assert result.exit_code == 1  # the cache of this test is empty
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"ML-FIX-[0-9A-F]{4}", lines[-1])
    assert lines[-2].startswith("not ready")
    assert re.search(
        r"smollm2-135m +FIX +not pulled +minillama pull smoll", result.stdout
    )
    explained = run("doctor", "--explain", lines[-1])
    assert explained.exit_code == 0
    assert re.search(r"smollm2-135m +no +yes", explained.stdout)
    assert re.search(r"Python +yes +yes", explained.stdout)


@pytest.mark.model
def test_doctor_on_a_machine_that_is_ready(
    real_home: None, llama3_tokenizer_path: Path
) -> None:
    result = run("doctor", "--deep")
    assert result.exit_code == 0, result.stdout
    assert re.search(r"ready\nML-READY-[0-9A-F]{4}\n$", result.stdout)
    assert len(result.stdout.splitlines()) <= 24  # one screen


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one notebook, and a Python that only notes what it is asked."""
    from minillama import doctor

    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_welcome.ipynb").touch()
    monkeypatch.setattr(doctor, "checkout", lambda: tmp_path)
    monkeypatch.setattr(machine, "_fetch_missing", lambda: None)
    return tmp_path


def test_lab_and_test_run_in_the_checkout(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def note(arguments: list[str], folder: str, **environment: str) -> int:
        asked.append((arguments, folder, environment))
        return 7

    monkeypatch.setattr(machine, "_run", note)
    notebook = str(checkout / "notebooks" / "00_welcome.ipynb")
    for user, options in ((1000, []), (0, ["--allow-root"])):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert run("lab").exit_code == 7
        arguments = ["-m", "jupyterlab", *options, notebook]
        assert asked.pop() == (arguments, str(checkout), {})
    assert run("test").exit_code == 7
    required = {"MINILLAMA_REQUIRE_MODELS": "1"}
    whole = ["-m", "pytest", "--nbval", "tests", "notebooks"]
    assert asked.pop() == (whole, str(checkout), required)
    run("test", "--", "-k", "hub", "-x")
    assert asked.pop()[0] == ["-m", "pytest", "-k", "hub", "-x"]


def test_lab_and_test_want_a_checkout(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "notebooks" / "00_welcome.ipynb").unlink()
    assert "is this checkout whole?" in run("lab").stderr
    from minillama import doctor

    monkeypatch.setattr(doctor, "checkout", lambda: None)
    for verb in ("lab", "test"):
        result = run(verb)
        assert result.exit_code == 1
        assert "clone the repository" in result.stderr


def test_without_a_network_lab_still_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINILLAMA_OFFLINE", "1")
    machine._fetch_missing()


def test_a_child_gets_its_exit_code_and_its_environment(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.exit(int(os.environ['X']) + (os.getcwd() == sys.argv[1]))"
    )
    assert machine._run(["-c", code, str(tmp_path)], str(tmp_path), X="4") == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_progress_and_wiping_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINILLAMA_PROGRESS", str(tmp_path / "progress.json"))
    assert "exercises are solved" in run("progress").stdout
    assert "wiped" in run("progress", "--wipe").stdout


# train


CORPUS = "\n\n".join(f"It was night number {n}. Lin slept." for n in range(200))
QUICK = ("--steps", "6", "--dim", "32", "--layers", "1", "--heads", "4", "--batch", "4")
QUICK += ("--kv-heads", "2", "--vocab-size", "300", "--context", "32")


def test_train_on_a_text(tmp_path: Path) -> None:
    corpus, out = str(tmp_path / "corpus.txt"), tmp_path / "models" / "own"
    Path(corpus).write_text(CORPUS)
    result = run("train", corpus, str(out), *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "held out" in result.stderr
    assert [p.name for p in out.parent.iterdir()] == ["own"]
    answer = run("generate", str(out), "It was", "--max-new-tokens", "4")
    assert answer.exit_code == 0, answer.stderr
    again = tmp_path / "again"
    run("train", corpus, str(again), *QUICK)
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (out / weights).read_bytes()


RECIPE = Path(__file__).parents[2] / "data" / "tales.toml"


def test_train_hands_a_recipe_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minillama import recipe

    asked: list[Any] = []

    class Ended:
        finished = False

    def note(path: Path, out: Path, on_step: object, changes: object) -> type[Ended]:
        asked.append((path, out, changes))
        return Ended

    monkeypatch.setattr(recipe, "train_from_toml", note)
    out = tmp_path / "out"
    result = run("train", str(RECIPE), str(out), "--kv-heads", "1")
    assert "the same command goes on from there" in result.stdout
    assert asked.pop() == (RECIPE, out, {"model.n_kv_heads": 1})
    whole = recipe.read_recipe(RECIPE)["training"]
    steps = whole["steps"] // 10
    run("train", str(RECIPE), str(out), "--steps", str(steps))
    assert asked.pop()[2] == {
        "training.steps": steps,
        "training.warmup_steps": whole["warmup_steps"] // 10,
        "training.anneal_steps": whole["anneal_steps"] // 10,
    }
    for option in ("--dim 8 --layers 1 --heads 2 --seed 3", "--context 9 --batch 7"):
        run("train", str(RECIPE), str(out), *option.split())
        recipe.read_recipe(RECIPE, asked.pop()[2])  # every key is one that it knows


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty: there is nothing to learn from"),
        (b"It was \xff night", "is not UTF-8 text (byte 7): save it as UTF-8 first"),
        (b"One text alone.", "give"),
    ],
)
def test_what_cannot_be_trained_on(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "corpus.txt").write_bytes(content)
    result = run("train", str(tmp_path / "corpus.txt"), str(tmp_path / "out"), *QUICK)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert not (tmp_path / "out").exists()


def test_train_never_writes_over_other_things(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(CORPUS)
    result = run("train", str(tmp_path / "corpus.txt"), str(tmp_path), *QUICK)
    assert "holds other things: name a new folder" in result.stderr
    out = tmp_path / "corpus.txt"
    assert "is a file" in run("train", str(out), str(out), *QUICK).stderr
    assert out.read_text() == CORPUS


# bench


def test_bench_shows_the_bound(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from minillama import bench

    monkeypatch.setattr(bench, "memory_bandwidth", lambda device: 31e9)
    words = ["--prompt", "16", "--new", "4", "--repeats", "1", "--device", "cpu"]
    result = run("bench", folder, *words)
    assert result.exit_code == 0, result.stderr
    for row in ("new tokens a second", "31.00 GB/s", "share of that bound"):
        assert row in result.stdout
    every = run("bench", "tiny", *words, "--random", "--every")
    assert every.exit_code == 0, every.stderr
    for kind in ("bfloat16", "int8", "int4"):
        assert kind in every.stdout
    assert "more than the context" in run("bench", folder, "--prompt", "300").stderr
