"""Files that are not what they should be: one clear sentence, nothing run or built."""

import gzip
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Packing
from loud import loud_model
from safetensors.torch import load_file, save_file
from weight_files import gguf_header, write_gguf, write_meta

from minillama.model import Llama
from minillama.weights import load_model, load_weights, read_config, save_weights

FORMS = ("hf", "meta", "gguf")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model in each format."""
    root = tmp_path_factory.mktemp("good")
    model = loud_model(n_layers=2, dim=96)
    save_weights(model, root / "hf")
    write_meta(root / "meta", model)
    (root / "gguf").mkdir()
    write_gguf(root / "gguf" / "model.gguf", model, Packing.F16)
    return root


@pytest.fixture
def model_in(good: Path, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """A copy to spoil: what to load, and the file of its weights."""

    def copy(form: str) -> tuple[Path, Path]:
        folder = shutil.copytree(good / form, tmp_path / form)
        file = {
            "hf": folder / "model.safetensors",
            "meta": folder / "consolidated.00.pth",
            "gguf": folder / "model.gguf",
        }[form]
        return (file if form == "gguf" else folder), file

    return copy


def sentence(path: Path, kind: type[Exception] = ValueError) -> str:
    """What is said on loading; no model of any size may have been built before."""
    with pytest.MonkeyPatch.context() as patch:

        def built(self: Llama, *args: Any, **kwargs: Any) -> None:
            where = torch.empty(0).device.type
            assert where == "meta", "a model was built before the file was checked"
            original(self, *args, **kwargs)

        original = Llama.__init__
        patch.setattr(Llama, "__init__", built)
        with pytest.raises(kind) as error:
            load_model(path)
    text = str(error.value)
    assert type(error.value) is kind, text
    assert text.isprintable()
    assert len(text) < 700
    return text


# Not there, or not weights


def test_missing(tmp_path: Path) -> None:
    assert "there is no" in sentence(tmp_path / "nothing", FileNotFoundError)
    text = sentence(tmp_path, FileNotFoundError)
    assert "neither config.json (Hugging Face) nor params.json (Meta)" in text


def test_folder_with_a_gguf_file_alone(model_in: Any) -> None:
    path, _ = model_in("gguf")
    text = sentence(path.parent, FileNotFoundError)
    assert text.endswith("name the file itself, model.gguf")


@pytest.mark.parametrize("form", ["hf", "meta"])
def test_file_of_weights_named_instead_of_its_folder(form: str, model_in: Any) -> None:
    assert "name its folder instead" in sentence(model_in(form)[1])


@pytest.mark.parametrize("form", ["hf", "meta"])
def test_config_without_weights(form: str, model_in: Any) -> None:
    path, file = model_in(form)
    file.unlink()
    text = sentence(path, FileNotFoundError)
    assert ("get the weights too" if form == "hf" else file.name) in text


def test_the_older_pickles_of_hugging_face(model_in: Any) -> None:
    path, file = model_in("hf")
    file.rename(path / "pytorch_model.bin")
    assert "pytorch_model.bin is the older pickle" in sentence(path, FileNotFoundError)


STRAYS = {
    "a web page": b"\n<!DOCTYPE html><html><body>Please log in</body></html>" * 50,
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4\n",
    "is empty": b"",
    "get it again": gzip.compress(b"something else" * 100),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", STRAYS)
def test_something_else_in_place_of_weights(
    form: str, what: str, model_in: Any
) -> None:
    path, file = model_in(form)
    file.write_bytes(STRAYS[what])
    text = sentence(path)
    assert what in text
    assert file.name in text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", [0.0001, 0.001, 0.01, 0.5, 0.99, 0.99999])
def test_truncated(form: str, part: float, model_in: Any) -> None:
    path, file = model_in(form)
    os.truncate(file, max(5, int(file.stat().st_size * part)))
    text = sentence(path)
    assert file.name in text
    assert "get it again" in text


# Config


@pytest.mark.parametrize(("form", "name"), [("hf", "config"), ("meta", "params")])
def test_configs_that_are_none(form: str, name: str, model_in: Any) -> None:
    path, _ = model_in(form)
    file = path / f"{name}.json"
    good = json.loads(file.read_text())
    size = "hidden_size" if form == "hf" else "dim"
    heads = "num_attention_heads" if form == "hf" else "n_heads"
    layers = "num_hidden_layers" if form == "hf" else "n_layers"
    cases: list[tuple[str | dict[str, Any], str]] = [
        ("{", "is not JSON"),
        ("[1, 2]", "holds no JSON object"),
        ("<html>", "is a web page"),
        ("[" * 100_000, "is not JSON"),
        (good | {"secret_sauce": 1}, "secret_sauce"),
        (good | {size: "wide"}, "wide" if form == "hf" else "wrong kind"),
        (good | {size: -96}, "must be a positive number"),
        (good | {heads: 0}, "n_heads" if form == "hf" else "wrong kind"),
        (good | {size: None}, f"lacks {size}"),
        (good | {layers: 10**9}, "more than any Llama has"),
        (good | {"vocab_size": 10**15}, "more than any Llama has"),
        ({}, "lacks"),
    ]
    for content, said in cases:
        text = content if isinstance(content, str) else json.dumps(content)
        file.write_text(text)
        told = sentence(path)
        assert said in told
        assert file.name in told


def test_read_config_says_the_same(model_in: Any) -> None:
    path, _ = model_in("hf")
    (path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json lacks hidden_size"):
        read_config(path)


# Names and shapes


def change(file: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(file)
    for name, value in changes.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    save_file(tensors, file)


def test_all_that_does_not_fit_is_named_at_once(model_in: Any) -> None:
    path, file = model_in("hf")
    one = "model.layers.1.self_attn.q_proj."
    change(
        file,
        **{
            f"{one}weight": None,
            "model.layers.0.mlp.up_proj.weight": None,
            "model.layers.1.mlp.up_proj.weight": None,
            f"{one}bias": torch.ones(96),
            "model.norm.weight": torch.ones(95),
            "lm_head.weight": torch.ones(130, 96),
            "model.embed_tokens.weight": torch.ones(131, 96, dtype=torch.int8),
        },
    )
    text = sentence(path)
    assert f"missing: model.layers.0-1.mlp.up_proj.weight, {one}weight; " in text
    assert f"not expected: {one}bias; " in text
    assert "lm_head.weight is (130, 96) in the file, (131, 96) in the model" in text
    assert "model.norm.weight is (95,) in the file, (96,) in the model" in text
    assert "no floating-point numbers: model.embed_tokens.weight." in text


HOSTILE = "a\x1b[2J\n{0}.{}.7.%s<script>\u202e" + "x" * 999


def test_a_hostile_name_becomes_no_command(model_in: Any) -> None:
    """Names out of files may hold a terminal's commands, line ends and format codes."""
    path, file = model_in("hf")
    change(file, **{HOSTILE: torch.ones(2)})
    text = sentence(path)
    assert text.isprintable()
    assert "not expected: a\\x1b[2J\\n{0}.{}.7.%s<script>\\u202exxx" in text
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {HOSTILE: 1}))
    assert sentence(path).isprintable()


@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_another_size_is_refused_and_kept(form: str, model_in: Any) -> None:
    path, _ = model_in(form)
    model = loud_model(n_layers=1, dim=96)
    before = [w.clone() for w in model.parameters()]
    with pytest.raises(ValueError, match="n_layers is 2 there, 1 here"):
        load_weights(model, path)
    assert all(map(torch.equal, model.parameters(), before))


def test_config_and_weights_of_two_models(model_in: Any) -> None:
    path, _ = model_in("hf")
    file = path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"num_hidden_layers": 12}))
    assert "missing: model.layers.2-11.input_layernorm.weight" in sentence(path)
    file.write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert "not expected: model.layers.1.input_layernorm.weight" in sentence(path)
    file.write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert "lm_head.weight differs from model.embed_tokens.weight" in sentence(path)


# Safetensors and its index


@pytest.mark.parametrize("length", [2**63, 2**40, 10**8 + 1, 3, 0])
def test_safetensors_header_of_absurd_length(length: int, model_in: Any) -> None:
    path, file = model_in("hf")
    with file.open("r+b") as f:
        f.write(struct.pack("<Q", length))
    assert "truncated or damaged" in sentence(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**50]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
    ],
)
def test_safetensors_header_of_absurd_tensors(
    entry: dict[str, Any], model_in: Any
) -> None:
    path, file = model_in("hf")
    header = json.dumps({"model.norm.weight": entry}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert "truncated or damaged" in sentence(path)


def sharded(path: Path, file: Path, **weight_map: Any) -> None:
    """Make the one file into a shard of an index."""
    names = dict.fromkeys(load_file(file), "model-00001-of-00001.safetensors")
    file.rename(path / "model-00001-of-00001.safetensors")
    index = {"weight_map": names | weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "elsewhere",
    [
        "../hf/model-00001-of-00001.safetensors",
        "/etc/passwd.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "..",
        "model.bin",
        "",
        7,
        None,
    ],
)
def test_an_index_that_points_outside_its_folder(
    elsewhere: object, model_in: Any
) -> None:
    path, file = model_in("hf")
    sharded(path, file, **{"model.norm.weight": elsewhere})
    text = sentence(path)
    assert f"names {elsewhere!r}" in text
    assert "refused" in text


def test_an_index_whose_files_are_not_there(model_in: Any) -> None:
    path, file = model_in("hf")
    sharded(path, file, a="b.safetensors", c="a.safetensors")
    text = sentence(path, FileNotFoundError)
    assert "lacks 2 of 3 files of weights: a.safetensors, b.safetensors" in text


def test_an_index_that_promises_too_much(model_in: Any) -> None:
    path, file = model_in("hf")
    sharded(path, file, more="model-00001-of-00001.safetensors")
    assert "lacks more, which the index says it holds" in sentence(path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map(content: str, model_in: Any) -> None:
    path, file = model_in("hf")
    file.unlink()
    (path / "model.safetensors.index.json").write_text(content)
    assert "has no weight_map" in sentence(path)


# Meta's pickles


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.proof}",))


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "in torch.save's archive"])
def test_a_pickle_that_tries_to_run_code(
    bare: bool, model_in: Any, tmp_path: Path
) -> None:
    path, file = model_in("meta")
    content = {"tok_embeddings.weight": Evil(tmp_path / "proof")}
    if bare:
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    text = sentence(path)
    assert "refused" in text
    assert "bare pickle" in text if bare else "posix.system" in text
    assert not (tmp_path / "proof").exists()
    if bare:  # the trap works, where nobody refuses
        pickle.loads(file.read_bytes())
        assert (tmp_path / "proof").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.ones(2)}, "text"])
def test_a_pickle_of_something_else(content: object, model_in: Any) -> None:
    path, file = model_in("meta")
    torch.save(content, file)
    assert "something other than named tensors" in sentence(path)


def test_a_zip_file_of_something_else(model_in: Any) -> None:
    path, file = model_in("meta")
    with zipfile.ZipFile(file, "w") as z:
        z.writestr("readme.txt", "hello")
    assert "truncated or damaged" in sentence(path)


def test_meta_shards_that_are_not_there_or_not_alike(model_in: Any) -> None:
    path, file = model_in("meta")
    file.rename(path / "consolidated.02.pth")
    text = sentence(path, FileNotFoundError)
    assert "lacks consolidated.00.pth, consolidated.01.pth" in text
    tensors = torch.load(path / "consolidated.02.pth")
    (path / "consolidated.02.pth").unlink()
    torch.save(tensors, file)
    del tensors["norm.weight"]
    torch.save(tensors, path / "consolidated.01.pth")
    assert "do not hold the same tensors, they differ in norm.weight" in sentence(path)
    tensors["norm.weight"] = torch.tensor(1.0)
    tensors["layers.0.attention.wo.weight"] = torch.ones(3)
    torch.save(tensors, path / "consolidated.01.pth")
    assert "cannot be joined" in sentence(path)


def test_two_shards_of_llama_2(model_in: Any) -> None:
    """Llama 2 cuts the embeddings along dim, Llama 3 along the vocabulary."""
    path, file = model_in("meta")
    whole = loud_model(n_layers=2, dim=96)
    shutil.rmtree(path)
    write_meta(path, whole, 2)
    for n in range(2):
        file = path / f"consolidated.{n:02}.pth"
        tensors = torch.load(file)
        cut = whole.tok_embeddings.weight.detach().chunk(2, 1)[n].clone()
        tensors["tok_embeddings.weight"] = cut
        torch.save(tensors, file)
    assert "Llama 2" in sentence(path)


# GGUF


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor_row(
    *dims: int, name: str = "token_embd.weight", kind: int = 0, offset: int = 0
) -> bytes:
    row = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + row + struct.pack("<IQ", kind, offset)


HEADERS = {
    "2^63 tensors": gguf_header(2**63, 0, bytes(100)),
    "2^63 metadata": gguf_header(0, 2**63, bytes(100)),
    "2^40 tensors": gguf_header(2**40, 0, bytes(100)),
    "a key of 2^62 bytes": gguf_header(0, 1, struct.pack("<Q", 2**62) + bytes(99)),
    "a string of 2^62 bytes": gguf_header(
        0, 1, text("a") + struct.pack("<IQ", 8, 2**62) + bytes(99)
    ),
    "an array of 2^61 numbers": gguf_header(
        0, 1, text("a") + struct.pack("<IIQ", 9, 4, 2**61) + bytes(99)
    ),
    "an array of 2^61 strings": gguf_header(
        0, 1, text("a") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(99)
    ),
    "an array of arrays": gguf_header(
        0, 1, text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(99)
    ),
    "a value of type 77": gguf_header(0, 1, text("a") + struct.pack("<I", 77)),
    "alignment 3": gguf_header(
        0, 1, text("general.alignment") + struct.pack("<II", 4, 3)
    ),
    "alignment 0": gguf_header(
        0, 1, text("general.alignment") + struct.pack("<II", 4, 0)
    ),
    "two keys alike": gguf_header(0, 2, 2 * (text("a") + struct.pack("<II", 4, 3))),
    "a key that is no UTF-8": gguf_header(
        0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 3)
    ),
    "a tensor of 2^80 numbers": gguf_header(1, 0, tensor_row(2**40, 2**40)),
    "a tensor of 2^32 dimensions": gguf_header(
        1, 0, text("a") + struct.pack("<I", 2**32 - 1) + bytes(99)
    ),
    "a tensor of no dimensions": gguf_header(1, 0, tensor_row()),
    "a tensor of unknown packing": gguf_header(1, 0, tensor_row(32, kind=999)),
    "a tensor beyond the end": gguf_header(1, 0, tensor_row(1, offset=2**50)),
    "a row of half a block": gguf_header(1, 0, tensor_row(48, 2, kind=8) + bytes(999)),
    "two tensors alike": gguf_header(2, 0, 2 * tensor_row(1) + bytes(99)),
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "the other byte order": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
}


@pytest.mark.parametrize("what", HEADERS)
def test_gguf_header_that_claims_the_absurd(what: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(HEADERS[what])
    assert "truncated or damaged" in sentence(tmp_path / "model.gguf")


def test_gguf_of_integers_or_in_parts(model_in: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_header(1, 0, tensor_row(32, 1, kind=24) + bytes(200)))
    assert "packed as I8" in sentence(path)
    split = text("split.count") + struct.pack("<IH", 2, 3)
    path.write_bytes(gguf_header(0, 1, split))
    assert "one of 3 parts: join them" in sentence(path)


def test_gguf_of_another_architecture(model_in: Any) -> None:
    path, file = model_in("gguf")
    file.write_bytes(file.read_bytes().replace(b"llama", b"mamba"))
    assert "architecture 'mamba'" in sentence(path)


def test_gguf_with_a_foreign_scaling(tmp_path: Path) -> None:
    factors = np.linspace(1, 5, 8, dtype=np.float32)
    write_gguf(
        tmp_path / "model.gguf",
        loud_model(dim=96),
        Packing.F16,
        **{"rope_freqs.weight": factors},
    )
    assert "no scaling of Llama 3.1" in sentence(tmp_path / "model.gguf")


# Whatever else


@pytest.mark.parametrize("form", FORMS)
def test_damage_anywhere_in_the_header_is_told(form: str, model_in: Any) -> None:
    """A few bytes changed at random: a sentence, or a model where only numbers, names
    or values that are free were hit. Never another exception, never a crash."""
    path, file = model_in(form)
    whole = file.read_bytes()
    # Meta's archive has its pickle at the beginning and its directory at the end.
    places = range(1500) if form != "meta" else [*range(2500), *range(-2000, 0)]
    places = [p % len(whole) for p in places]
    rng = random.Random(0)
    told: list[str] = []
    for _ in range(150):
        spoiled = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            spoiled[rng.choice(places)] = rng.randrange(256)
        file.write_bytes(spoiled)
        try:
            load_model(path)
        except (ValueError, FileNotFoundError) as error:
            told.append(str(error))
    assert len(told) > 50
    assert all(sentence.isprintable() for sentence in told)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["safetensors", "gguf"])
def test_absurd_headers_take_no_memory(what: str, model_in: Any) -> None:
    """4 GB of holes, with a header that claims as much as such a file could hold."""
    path, file = model_in("hf" if what == "safetensors" else "gguf")
    if what == "safetensors":
        file.write_bytes(struct.pack("<Q", 2**31))
    else:
        claim = struct.pack("<IIQ", 9, 0, 2**32 - 2**20)
        file.write_bytes(gguf_header(0, 1, text("a") + claim))
    os.truncate(file, 2**32)
    code = (
        "import resource, sys\n"
        "from minillama.weights import load_model\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    load_model(sys.argv[1])\nexcept ValueError:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100_000  # KiB
