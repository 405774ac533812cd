"""Real vocabularies against those who made them: Meta's encoder, Hugging Face's.

The package `llama-models` holds Meta's own `Tokenizer`; `tokenizers` and `transformers`
are Hugging Face's. Published ids stand here as numbers, so that an error which they and
we share would show.
"""

import json
import random
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

from minillama.bpe import by_joined_rank, last_split
from minillama.gguf_file import read_gguf_header
from minillama.tokenizer import GPT2_PATTERN, LLAMA3_PATTERN, Tokenizer, train_bpe
from minillama.vocabulary import LLAMA3_SPECIAL_TOKENS

pytestmark = pytest.mark.model

PARTS = ["  ", "   ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\x1c", "\x85"]
PARTS += [" ", "1", "23", "4567", "٣", "½", "the", "Lama", "é", "ſ", "你", "🙂"]
PARTS += ["'", "'s", "'RE", "'ll", "!", "...", "-", "_", "\u0301", "\u200d", "\0", "\4"]
# Characters at random, and parts next to each other where the patterns differ.
any_text = st.text() | st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
# Where a version of Unicode matters, what Python knows is known to all.
assigned = any_text.map(
    lambda text: "".join(c for c in text if unicodedata.category(c) != "Cn")
)


@pytest.fixture(scope="session")
def llama3(llama3_tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.from_file(llama3_tokenizer_path)


@pytest.fixture(scope="session")
def llama3_ours(llama3: Tokenizer) -> Tokenizer:
    other = Tokenizer(llama3.vocabulary)
    other.engine = "ours"
    return other


@pytest.fixture(scope="session")
def meta(llama3_tokenizer_path: Path) -> Any:
    """Meta's own encoder."""
    module = pytest.importorskip("llama_models.llama3.tokenizer")
    return module.Tokenizer(llama3_tokenizer_path)


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(smollm2_path)


@pytest.fixture(scope="session")
def smollm2_ours(smollm2: Tokenizer) -> Tokenizer:
    other = Tokenizer(smollm2.vocabulary)
    other.engine = "ours"
    return other


@pytest.fixture(scope="session")
def hf_smollm2(smollm2_path: Path) -> tokenizers.Tokenizer:
    """Hugging Face's library over the tokens and merges of the file."""
    said = read_gguf_header(smollm2_path).metadata
    tokens: list[str] = said["tokenizer.ggml.tokens"]
    merges: list[str] = said["tokenizer.ggml.merges"]
    theirs = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: id for id, token in enumerate(tokens)},
            merges=[(merge.split(" ")[0], merge.split(" ")[1]) for merge in merges],
        )
    )
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return theirs


def engines(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fixture", names)


# -- Llama 3 -------------------------------------------------------------------------

ULTIMATE = (
    "the answer to the ultimate question of life, the universe, and everything is "
)
ULTIMATE_IDS = "1820 4320 311 279 17139 3488 315 2324 11 279 15861 11 323 4395 374 220"
PUBLISHED = {
    ULTIMATE: [int(id) for id in ULTIMATE_IDS.split()],
    "This is a test sentence.": [2028, 374, 264, 1296, 11914, 13],
    "1234567": [4513, 10961, 22],
    "\U0001f600": [76460, 222],
    "\n\n": [271],
    " Việt": [101798],
    "": [],
}


@engines("llama3", "llama3_ours")
def test_published_ids(request: pytest.FixtureRequest, fixture: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    for text, ids in PUBLISHED.items():
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode(ULTIMATE, bos=True)[:2] == [128000, 1820]
    assert tokenizer.encode("", eos=True) == [128001]


def test_bytes_have_permuted_ids(llama3: Tokenizer) -> None:
    ids = {0: 188, 32: 220, 65: 32, 97: 64, 255: 187}
    assert {byte: llama3.ranks[bytes([byte])] for byte in ids} == ids


def test_588_tokens_are_only_ever_found_whole(llama3: Tokenizer) -> None:
    rank_of = by_joined_rank(llama3.ranks)
    assert last_split(" Việt".encode(), rank_of) == [b" Vi", "ệ".encode(), b"t"]
    assert [llama3.ranks[part] for part in (b" Vi", "ệ".encode(), b"t")] == [
        11655,
        26298,
        83,
    ]
    longer = [token for token in llama3.ranks if len(token) > 1]
    assert len(longer) - len(llama3.merges) == 588
    assert llama3.merges[:2] == [(b" ", b" "), (b"  ", b"  ")]


def test_81_tokens_rank_below_one_of_their_parts(llama3: Tokenizer) -> None:
    ranks = llama3.ranks
    late = [
        (left, right)
        for left, right in llama3.merges
        if ranks[left + right] < max(ranks[left], ranks[right])
    ]
    assert len(late) == 81


def test_special_tokens_are_metas(llama3: Tokenizer, meta: Any) -> None:
    assert llama3.special_tokens == meta.special_tokens
    assert llama3.vocab_size == meta.n_words == 128_256
    assert (llama3.bos_id, llama3.eos_id) == (meta.bos_id, meta.eos_id)
    assert llama3.stop_ids == set(meta.stop_tokens)
    assert llama3.pattern == meta.pat_str
    assert llama3.adds_bos
    assert llama3.special_tokens["<|finetune_right_pad_id|>"] == 128004
    assert llama3.special_tokens["<|python_tag|>"] == 128010


@settings(max_examples=500, deadline=None)
@given(text=any_text)
def test_ids_are_metas_on_any_text(
    llama3: Tokenizer, llama3_ours: Tokenizer, meta: Any, text: str
) -> None:
    ids = meta.encode(text, bos=False, eos=False)
    assert llama3.encode(text) == ids
    assert llama3_ours.encode(text) == ids
    assert llama3.decode(ids) == text


@settings(max_examples=500, deadline=None)
@given(seed=st.randoms(use_true_random=False))
def test_ids_are_metas_on_text_made_of_tokens(
    llama3: Tokenizer, llama3_ours: Tokenizer, meta: Any, seed: random.Random
) -> None:
    """Neighbouring tokens are where a wrong order of merges shows."""
    ids = [seed.randrange(128_000) for _ in range(seed.randint(1, 6))]
    text = llama3.decode(ids)
    expected = meta.encode(text, bos=False, eos=False)
    assert llama3.encode(text) == expected
    assert llama3_ours.encode(text) == expected


def test_every_token_alone_is_metas(
    llama3: Tokenizer, llama3_ours: Tokenizer, meta: Any
) -> None:
    for id in range(0, 128_000, 7):
        text = llama3.decode([id])
        expected = meta.encode(text, bos=False, eos=False)
        assert llama3.encode(text) == expected
        assert llama3_ours.encode(text) == expected


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(LLAMA3_SPECIAL_TOKENS[:14])
        | st.sampled_from(["<|", "eot_id", "|>", " ", "word", "\n"]),
        max_size=6,
    ),
    allowed=st.sets(st.sampled_from(LLAMA3_SPECIAL_TOKENS[:14])),
)
def test_special_tokens_in_text_are_metas(
    llama3: Tokenizer, meta: Any, parts: list[str], allowed: set[str]
) -> None:
    text = "".join(parts)
    for names in (allowed, "all"):
        expected = meta.encode(text, bos=True, eos=True, allowed_special=names)
        ids = llama3.encode(text, bos=True, eos=True, allowed_special=names)
        assert ids == expected
    refuse: Any = {"allowed_special": allowed, "disallowed_special": "all"}
    try:
        expected = meta.encode(text, bos=False, eos=False, **refuse)
    except ValueError:
        with pytest.raises(ValueError, match="spells"):
            llama3.encode(text, **refuse)
    else:
        assert llama3.encode(text, **refuse) == expected


WORDS = "Ein Lama isst Gras, und 1234567 Lamas essen mehr.\n\n  "
LONG = {
    "more than a block": WORDS * 16_000,
    "a cut in a word": "x" + "abcdefg " * 60_000,
    "spaces": "a" + " " * 60_000 + "b",
    "white space of Python alone": " \x1c" * 20_000 + "b",
    "letters": "ab" * 30_000,
    "exactly at the limit": "c" * 25_000 + " " + "d" * 25_001,
    "a run across two blocks": "x " * 195_000 + "e" * 40_000,
    "a special token across two blocks": "y" * 24_000
    + " y" * (188_000 - 3)
    + "<|eot_id|> and on",
}


@engines("llama3", "llama3_ours")
@pytest.mark.parametrize("name", list(LONG))
def test_very_long_text_is_cut_as_meta_cuts_it(
    request: pytest.FixtureRequest, tmp_path: Path, meta: Any, fixture: str, name: str
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(fixture)
    text = LONG[name]
    expected = meta.encode(text, bos=False, eos=False, allowed_special="all")
    assert tokenizer.encode(text, allowed_special="all") == expected
    path = tmp_path / "long.txt"
    path.write_bytes(text.encode())
    assert list(tokenizer.encode_file(path, allowed_special="all")) == expected


# -- SmolLM2 -------------------------------------------------------------------------


def test_smollm2_is_the_file(smollm2: Tokenizer, smollm2_path: Path) -> None:
    said = read_gguf_header(smollm2_path).metadata
    assert smollm2.vocab_size == 49_152
    assert len(smollm2.special_tokens) == 17
    assert smollm2.special_tokens["<|im_start|>"] == smollm2.bos_id == 1
    assert smollm2.special_tokens["<|im_end|>"] == smollm2.eos_id == 2
    assert smollm2.stop_ids == {0, 2}
    assert not smollm2.adds_bos
    assert smollm2.chat_template == said["tokenizer.chat_template"]
    assert len(smollm2.missing_bytes) == 21
    assert len(smollm2.merges) == 48_900


@settings(max_examples=1000, deadline=None)
@given(text=assigned)
def test_ids_are_hugging_faces(
    smollm2: Tokenizer,
    smollm2_ours: Tokenizer,
    hf_smollm2: tokenizers.Tokenizer,
    text: str,
) -> None:
    ids = hf_smollm2.encode(text).ids
    assert smollm2.encode(text) == ids
    assert smollm2_ours.encode(text) == ids


@settings(max_examples=500, deadline=None)
@given(seed=st.randoms(use_true_random=False))
def test_ids_are_hugging_faces_on_text_made_of_tokens(
    smollm2: Tokenizer,
    smollm2_ours: Tokenizer,
    hf_smollm2: tokenizers.Tokenizer,
    seed: random.Random,
) -> None:
    ids = [seed.randrange(17, 49_152) for _ in range(seed.randint(1, 6))]
    text = smollm2.decode(ids)
    expected = hf_smollm2.encode(text).ids
    assert smollm2.encode(text) == expected
    assert smollm2_ours.encode(text) == expected


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_engines_agree_on_smollm2_on_any_text(
    smollm2: Tokenizer, smollm2_ours: Tokenizer, text: str
) -> None:
    ids = smollm2.encode(text)
    assert smollm2_ours.encode(text) == ids
    kept = text.encode().translate(None, smollm2.missing_bytes)
    assert smollm2.decode_bytes(ids) == kept


# -- Hugging Face's folders ----------------------------------------------------------


@pytest.fixture(scope="session")
def hf_llama3_folder(
    llama3_tokenizer_path: Path,
    llama3: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder that Hugging Face's own converter makes of Meta's file."""
    folder = tmp_path_factory.mktemp("hf_llama3")
    converter = TikTokenConverter(
        vocab_file=str(llama3_tokenizer_path),
        pattern=LLAMA3_PATTERN,
        extra_special_tokens=LLAMA3_SPECIAL_TOKENS,
    )
    theirs = converter.converted()
    whole = json.loads(theirs.to_str())
    whole["model"]["ignore_merges"] = True
    whole["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": False,
                "use_regex": True,
            },
            {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {
                    "<|begin_of_text|>": {
                        "id": "<|begin_of_text|>",
                        "ids": [128000],
                        "tokens": ["<|begin_of_text|>"],
                    }
                },
            },
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole), "utf-8")
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def test_a_llama_3_folder_is_metas_file(
    hf_llama3_folder: Path, llama3: Tokenizer
) -> None:
    read = Tokenizer.from_hf(hf_llama3_folder)
    # Each split of each token is a merge there, 280,147 of them.
    said = json.loads((hf_llama3_folder / "tokenizer.json").read_text("utf-8"))
    assert len(said["model"]["merges"]) == 280_147
    assert read.ranks == llama3.ranks
    assert read.merges == llama3.merges
    assert read.special_tokens == llama3.special_tokens
    assert read.pattern == llama3.pattern
    assert (read.bos_id, read.eos_id, read.adds_bos) == (128000, 128009, True)
    assert read.engine == "tiktoken"
    assert read.encode(" Việt") == [101798]


TEXTS = [
    "Hello, world! It's 12345 o'clock.",
    " Việt  \n\n\t x 你好 🙂 ' 're 'RE",
    "naïve café\r\n    indented\x1c\u3000",
    "<|eot_id|><|im_end|>literal",
    "",
    "  ",
    "०१२३ ½ ⅷ ²",
]


@pytest.mark.parametrize("which", ["llama3", "smollm2", "small", "gpt2", "words"])
def test_a_saved_folder_opens_in_transformers_with_the_same_ids(
    request: pytest.FixtureRequest, tmp_path: Path, which: str
) -> None:
    if which in ("llama3", "smollm2"):
        ours: Tokenizer = request.getfixturevalue(which)
    else:
        special = ["<|begin_of_text|>", "<|end_of_text|>", "<|x|>"]
        patterns = {"small": LLAMA3_PATTERN, "gpt2": GPT2_PATTERN, "words": r"\p{L}+"}
        pattern = patterns[which]
        text = " ".join(TEXTS) * 20
        ours = train_bpe(text, 400, special_tokens=special, pattern=pattern)
    ours.save_hf(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size
    assert theirs.bos_token_id == ours.bos_id
    assert theirs.eos_token_id == ours.eos_id
    assert theirs.chat_template == ours.chat_template
    for name, id in ours.special_tokens.items():
        assert theirs.convert_tokens_to_ids(name) == id
        assert theirs.encode(name, add_special_tokens=False) == [id]
        assert theirs.decode([id]) == name
        assert theirs.decode([id], skip_special_tokens=True) == ""
    for text in [*TEXTS, *(" ".join(TEXTS[:3]) + t for t in TEXTS)]:
        # Hugging Face turns every spelling of a special token into one.
        expected = ours.encode(text, bos=ours.adds_bos, allowed_special="all")
        assert theirs.encode(text) == expected
        kept = text.encode().translate(None, ours.missing_bytes).decode()
        assert theirs.decode(expected, skip_special_tokens=False).endswith(kept)
    assert Tokenizer.from_hf(tmp_path).vocabulary == replace(
        ours.vocabulary, meta_cuts=False
    )


@settings(max_examples=300, deadline=None)
@given(text=assigned)
def test_saved_llama_3_has_metas_ids_in_hugging_faces_library(
    saved_llama3: tokenizers.Tokenizer, llama3: Tokenizer, text: str
) -> None:
    ids = saved_llama3.encode(text, add_special_tokens=False).ids
    assert ids == llama3.encode(text, allowed_special="all")


@pytest.fixture(scope="session")
def saved_llama3(
    llama3: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tokenizers.Tokenizer:
    folder = tmp_path_factory.mktemp("saved_llama3")
    llama3.save_hf(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_saved_llama_3_has_the_merges_of_hugging_faces_converter(
    saved_llama3: tokenizers.Tokenizer, hf_llama3_folder: Path
) -> None:
    theirs = json.loads((hf_llama3_folder / "tokenizer.json").read_text("utf-8"))
    ours = json.loads(saved_llama3.to_str())
    assert ours["model"]["merges"] == theirs["model"]["merges"]
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    assert ours["pre_tokenizer"] == theirs["pre_tokenizer"]


def test_a_folder_that_hugging_face_wrote_itself(
    smollm2: Tokenizer, hf_smollm2: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    """Merges as pairs, special tokens within the vocabulary, a template beside it."""
    theirs = tokenizers.Tokenizer.from_str(hf_smollm2.to_str())
    names = sorted(smollm2.special_tokens, key=smollm2.special_tokens.__getitem__)
    theirs.add_special_tokens(names)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=theirs, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = smollm2.chat_template
    fast.save_pretrained(tmp_path)
    assert Tokenizer.from_hf(tmp_path).vocabulary == smollm2.vocabulary


def test_letters_for_bytes_are_hugging_faces() -> None:
    from minillama.tokenizer_files import byte_letters

    assert byte_letters() == bytes_to_unicode()
