"""The benchmarks' arithmetic, their pipes, and their page: no library is timed here."""

import json
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from loud import loud_model, small_config

from benchmarks import conduct, figures, render, results, rows, worker
from benchmarks.conduct import PROBE
from benchmarks.rows import Row, Target, times
from minillama.model import Llama
from minillama.weights import load_model, save_weights

PROBED = {"bandwidth": [1e9] * 3, "float32": [1e11] * 3, "bfloat16": [2e11] * 3}


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_quartiles_are_numpys(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count).tolist()
    expected = np.quantile(values, [0.25, 0.5, 0.75])
    assert figures.quartiles(values) == pytest.approx(expected)


def test_no_quartiles_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        figures.quartiles([])


def test_a_ratio_is_of_medians_and_above_one_is_faster() -> None:
    seconds = {"ours": [1.0, 1.0, 9.0], "peer": [2.0, 2.0, 2.0]}
    assert figures.speed_ratio(seconds, "ours", "peer") == 2.0


def test_rounds_are_resampled_whole() -> None:
    """Where each round is slow for both alike, the ratio is certain."""
    slow = [1.0, 5.0, 2.0, 8.0, 3.0]
    seconds = {"ours": slow, "peer": [3 * s for s in slow]}
    found = figures.bootstrap(seconds, lambda s: figures.speed_ratio(s, "ours", "peer"))
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


def test_the_interval_is_numpys_bootstrap() -> None:
    random = np.random.default_rng(0)
    values = random.lognormal(size=9)
    found = figures.bootstrap({"a": values.tolist()}, lambda s: median(s["a"]))
    samples = np.median(random.choice(values, (20_000, 9)), axis=1)
    low, high = np.quantile(samples, [0.025, 0.975])
    # Medians of nine values are one of the nine: the two must meet the same ones.
    assert found.low == pytest.approx(low, rel=0.15)
    assert found.high == pytest.approx(high, rel=0.15)
    assert found.low < found.value < found.high


def test_rounds_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="the same number of rounds"):
        figures.bootstrap({"a": [1.0], "b": [1.0, 2.0]}, lambda s: 1.0)


def test_forward_flops_by_counting_multiplications() -> None:
    """PyTorch's own counter, on the model itself; attention there is not halved."""
    from torch.utils.flop_counter import FlopCounterMode

    config = small_config(tied_embeddings=False)
    model, n = Llama(config), 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, n, dtype=torch.int64))
    linear = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    values = {name: getattr(config, name) for name in vars(config)}
    attention = config.n_layers * 2 * n * n * config.n_heads * config.head_dim
    assert rows.forward_flops(values, n, n) == linear + attention


def test_five_m_has_five_million_parameters() -> None:
    from minillama.config import LlamaConfig

    assert LlamaConfig(**rows.FIVE_M).n_params() == pytest.approx(5e6, rel=0.01)


def test_every_target_has_its_contenders() -> None:
    inputs = rows.Inputs(
        Path("a.gguf"),
        Path("a"),
        list(range(2048)),
        2,
        big={"gguf": "b.gguf", "folder": "b", "ids": list(range(64))},
    )
    for row in rows.ROWS:
        entries = row.entries(inputs)
        fake = {key: _entry(3, 1.0 + n) for n, key in enumerate(entries)}
        seconds = results.seconds_of({"entries": fake | {PROBE: PROBED}})
        for target in row.targets:
            assert figures.bootstrap(seconds, target.figure).value > 0, target.says
        for spec, case in entries.values():
            json.dumps([spec, case])  # fits through the pipe


def test_names_of_rows_are_apart() -> None:
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)


@pytest.mark.parametrize(
    ("least", "value", "reached"),
    [(False, 2.0, True), (False, 1.9, False), (True, 2.0, True), (True, 2.1, False)],
)
def test_reached(least: bool, value: float, reached: bool) -> None:
    target = Target("x", lambda s: value, 2.0, least_is_best=least)
    assert target.reached(value) is reached
    assert Target("x", lambda s: value).reached(value) is None


# The pipe


def _entry(count: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "seconds": [seconds] * count,
        "peak": [10**9] * count,
        "resident": [10**9] * count,
        "load_seconds": [1.0],
        "first_seconds": [2.0],
        "bytes": 1e6,
        **more,
    }


STUB = """
import json, sys
spec = json.loads(sys.stdin.readline())
print("noise", file=sys.stderr)
for line in sys.stdin:
    request = json.loads(line)
    if spec.get("fails") == request["do"]:
        print(json.dumps({"error": "Traceback\\nValueError: no such model"}))
    elif spec.get("dies") == request["do"]:
        sys.exit(3)
    elif request["do"] == "prepare":
        print(json.dumps({"load_seconds": 1, "first_seconds": 2}), flush=True)
    else:
        print(json.dumps({"seconds": spec.get("seconds", 1)}), flush=True)
    sys.stdout.flush()
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Workers that answer and do no work; the order in which they were started."""
    started: list[str] = []
    real = conduct.subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        started.append(options["env"]["LIBRARY"])
        options["cwd"] = tmp_path
        return real([sys.executable, "-c", STUB], **options)

    monkeypatch.setattr(
        conduct,
        "subprocess",
        SimpleNamespace(**vars(conduct.subprocess) | {"Popen": popen}),
    )
    return started


def _measure(tmp_path: Path, entries: rows.Entries, **options: Any) -> dict[str, Any]:
    return conduct.measure(
        entries,
        rounds=options.pop("rounds", 3),
        env=lambda spec: {"LIBRARY": spec["library"]},
        logs=tmp_path,
        **options,
    )


def test_everybody_runs_once_a_round(tmp_path: Path, stub: list[str]) -> None:
    entries: rows.Entries = {
        "a": ({"library": "a", "seconds": 1}, {}),
        "b": ({"library": "b", "seconds": 2}, {}),
    }
    found = _measure(tmp_path, entries)
    assert [run["seconds"] for run in found["a"]["runs"]] == [1, 1, 1]
    assert [run["seconds"] for run in found["b"]["runs"]] == [2, 2, 2]
    assert len(found[PROBE]["runs"]) == 3
    assert stub == ["a", "b", PROBE]


def test_cases_of_one_contender_share_a_process(
    tmp_path: Path, stub: list[str]
) -> None:
    spec = {"library": "a"}
    found = _measure(tmp_path, {"short": (spec, {}), "long": (spec, {})})
    assert stub == ["a", PROBE]
    assert len(found["short"]["runs"]) == len(found["long"]["runs"]) == 3


def test_alone_starts_a_process_a_turn(tmp_path: Path, stub: list[str]) -> None:
    _measure(tmp_path, {"a": ({"library": "a"}, {})}, alone=True)
    assert sorted(stub) == ["a"] * 3 + [PROBE] * 3


@pytest.mark.parametrize("how", ["fails", "dies"])
@pytest.mark.parametrize("when", ["prepare", "run"])
def test_one_failure_leaves_the_others(
    tmp_path: Path, stub: list[str], how: str, when: str
) -> None:
    entries: rows.Entries = {
        "bad": ({"library": "bad", how: when}, {}),
        "good": ({"library": "good"}, {}),
    }
    found = _measure(tmp_path, entries)
    assert ("no such model" if how == "fails" else "noise") in found["bad"]["error"]
    assert len(found["good"]["runs"]) == 3


def test_patience_ends_a_row_after_the_fewest_rounds(
    tmp_path: Path, stub: list[str]
) -> None:
    found = _measure(tmp_path, {"a": ({"library": "a"}, {})}, rounds=9, patience=0)
    assert len(found["a"]["runs"]) == conduct.FEWEST


def test_the_environment_is_the_same_but_for_llama_cpp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    ours, peer, other = (
        conduct.environment({"library": name}, 2, "PASSIVE")
        for name in ("minillama", "transformers", "llama.cpp")
    )
    assert ours == peer
    assert ours["OMP_NUM_THREADS"] == "2"
    assert ours["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in other


# The worker


def test_a_worker_decodes_what_the_model_decodes(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = loud_model()
    save_weights(model, tmp_path / "m")
    ids = list(range(1, 40))
    spec = {"library": "minillama", "model": str(tmp_path / "m"), "dtype": "float32"}
    case = {"kind": "decode", "ids": ids, "context": 30, "new": 6}
    one = worker.Worker(spec)
    facts = one.prepare("x", case)
    replies = [one.run("x") for _ in range(2)]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    wanted = theirs.generate(
        torch.tensor([ids[:30]]), do_sample=False, max_new_tokens=7, pad_token_id=0
    )[0, 30:].tolist()
    assert replies[0]["ids"] == replies[1]["ids"] == wanted  # each begins anew
    assert facts["bytes"] > sum(p.nbytes for p in model.layers.parameters())
    assert facts["load_seconds"] > 0
    assert replies[0]["peak"] >= facts["loaded"]["peak"] > 1e7


def test_transformers_goes_back_to_the_end_of_the_prompt(tmp_path: Path) -> None:
    model = loud_model()
    save_weights(model, tmp_path / "m")
    case = {"kind": "decode", "ids": list(range(1, 40)), "context": 30, "new": 6}
    ids = []
    for library in ("minillama", "transformers"):
        spec = {"library": library, "model": str(tmp_path / "m"), "dtype": "float32"}
        one = worker.Worker(spec)
        one.prepare("x", case)
        ids += [one.run("x")["ids"], one.run("x")["ids"]]
    assert ids[0] == ids[1] == ids[2] == ids[3]


def test_both_train_the_same_model() -> None:
    config = rows.FIVE_M | {"dim": 64, "n_layers": 2, "vocab_size": 131, "ffn_dim": 96}
    losses = []
    for library in ("minillama", "transformers"):
        spec = {"library": library, "config": config, "batch": 2, "context": 16}
        one = worker.Worker(spec)
        facts = one.prepare("x", {"kind": "train", "steps": 2})
        losses.append([facts["first_loss"], one.run("x")["loss"], one.run("x")["loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] > losses[0][-1] + 0.05


def test_a_worker_says_what_went_wrong() -> None:
    one = worker.Worker({"library": "minillama", "model": "no-such-model"})
    request = {"do": "prepare", "name": "x", "case": {"kind": "decode"}}
    assert "no-such-model" in worker.answer(one, request)["error"]


# The page


def _found(**rounds: list[float]) -> dict[str, Any]:
    """Raw figures of one row, "decode-4bit"."""
    about = {"when": "2026-11-25T10:00", "quick": False, "threads": 2, "load": 0.1}
    about |= {
        "wait": "PASSIVE",
        "llama_wait": "default",
        "machine": "a machine",
        "versions": {"x": "1"},
    }
    entries = {
        key.replace("_", " ").replace("llama cpp", "llama.cpp"): _entry(
            len(values), 1.0, ids=[1, 2, 3]
        )
        | {"seconds": values}
        for key, values in rounds.items()
    }
    return {"rows": {"decode-4bit": {**about, "entries": entries | {PROBE: PROBED}}}}


ROW = next(row for row in rows.ROWS if row.name == "decode-4bit")


@pytest.mark.parametrize(("seconds", "reached"), [(0.002, "yes"), (0.008, "**no**")])
def test_the_page_says_ratio_wish_and_verdict(seconds: float, reached: str) -> None:
    found = _found(minillama_int4=[seconds] * 3, llama_cpp=[0.004] * 3)
    ratio = 0.004 / seconds
    lines = list(render.target_lines(found, [ROW]))
    measured = f"{ratio:.2f} [{ratio:.2f}, {ratio:.2f}]"
    assert lines[0].endswith(f"| {measured} | at least 1 | {reached} |")
    # The contender with flash attention is not there, and the page says so.
    assert lines[1].endswith("| - | - | published |")


def test_the_page_shows_the_bound_beside_each_figure() -> None:
    """A megabyte at a gigabyte a second is a millisecond: half of two."""
    found = _found(minillama_int4=[0.002] * 3, llama_cpp=[0.004] * 3)
    text = render.page(found, [ROW], {"": "About all.", "decode-4bit": "By hand."})
    (line,) = [x for x in text.splitlines() if x.startswith("| minillama int4 | 2 ")]
    assert "| 500 | 1,000 tokens/s | 50% |" in line
    assert "| 3 of 3 |" in line
    assert text.index("About all.") < text.index("## The rows") < text.index("By hand.")
    assert "a machine" in text
    assert "2026-11-25" in text


def test_a_contender_that_failed_is_on_the_page() -> None:
    found = _found(minillama_int4=[0.002] * 3)
    found["rows"]["decode-4bit"]["entries"]["llama.cpp"] = {"error": "no such file"}
    text = render.page(found, [ROW], {})
    assert "| llama.cpp | failed: no such file |" in text
    assert "| at least 1 | not measured |" in text


def test_the_compute_bound_takes_the_faster_kind() -> None:
    assert results.least_seconds({"flops": 1e11}, PROBED) == 0.5


def test_the_bound_is_the_best_that_the_machine_did() -> None:
    probe = {"bandwidth": [1e9, 4e9, 2e9]}
    assert results.least_seconds({"bytes": 1e9}, probe) == 0.25
    assert results.least_seconds({}, probe) is None


def test_tokens_are_compared_after_the_same_context() -> None:
    found = _found(minillama_int4=[0.002] * 3, llama_cpp=[0.004] * 3)
    entries = found["rows"]["decode-4bit"]["entries"]
    entries["minillama int4"] |= {"context": 100}
    entries["llama.cpp"] |= {"context": 2000, "ids": [7, 8, 9]}
    text = render.section(ROW, found["rows"]["decode-4bit"])
    assert text.count("| 3 of 3 |") == 2


@pytest.mark.parametrize(
    ("ids", "others", "said"),
    [
        ([1, 2, 3], [1, 2, 3], "3 of 3"),
        ([1, 2, 3], [1, 9, 3], "1 of 3"),
        ([1], [], "-"),
    ],
)
def test_same_tokens(ids: list[int], others: list[int], said: str) -> None:
    assert render.same(ids, others) == said


@pytest.mark.parametrize(
    ("number", "said"), [(1234.5, "1,230"), (99.94, "99.9"), (0.01234, "0.0123")]
)
def test_three_digits(number: float, said: str) -> None:
    assert render.digits(number) == said


def test_plots_are_written(tmp_path: Path) -> None:
    from PIL import Image

    from benchmarks import plots

    found = _found(minillama_int4=[0.002, 0.003, 0.002], llama_cpp=[0.004] * 3)
    plots.write(found, [ROW], tmp_path)
    for name in ("ratios", "decode_4bit"):
        with Image.open(tmp_path / f"bench_{name}.png") as picture:
            assert picture.width > 600


def test_a_row_goes_into_the_file_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"rows": {"other": {"kept": 1}}}')
    prepared = {
        "load_seconds": 1.0,
        "first_seconds": 2.0,
        "bytes": 5,
        "loaded": {"peak": 7},
    }
    run = {"seconds": 0.123456789, "peak": 8, "resident": 8, "ids": [1]}
    raw = {"x": {"runs": [run, run], "prepared": [prepared]}}
    row = Row("r", "R", "token", lambda i: {}, [times("x", "x")])
    inputs = rows.Inputs(Path(), Path(), [], 2)
    results.add(path, row, inputs, raw, {"when": "now"})
    found = results.read(path)["rows"]
    assert found["other"] == {"kept": 1}
    assert found["r"]["entries"]["x"]["seconds"] == [0.12346, 0.12346]
    assert found["r"]["entries"]["x"]["load_seconds"] == [1.0]


# The files of the 8B rows


@pytest.mark.parametrize("packing", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_gguf_file_of_the_folder_has_its_weights(
    tmp_path: Path, packing: str
) -> None:
    from benchmarks import big

    model = loud_model(dim=96, ffn_dim=64, tied_embeddings=False).bfloat16()
    save_weights(model, tmp_path / "m")
    kind = gguf.GGMLQuantizationType[packing]
    big.CHUNK, before = 4096, big.CHUNK  # several pieces a tensor
    try:
        big.write_gguf(tmp_path / "m", tmp_path / "m.gguf", kind, None)
    finally:
        big.CHUNK = before
    found = dict(load_model(tmp_path / "m.gguf", device="cpu").named_parameters())
    for name, weight in model.named_parameters():
        whole = weight.detach().float().numpy()
        if whole.ndim > 1:
            whole = gguf.dequantize(gguf.quantize(whole, kind), kind)
        np.testing.assert_array_equal(found[name].detach().numpy(), whole)


@pytest.mark.model
def test_a_gguf_file_has_llama_3s_tokenizer(
    tmp_path: Path, llama3_tokenizer_path: Path
) -> None:
    from benchmarks import big
    from minillama.tokenizer import Tokenizer

    ours = Tokenizer.from_file(llama3_tokenizer_path)
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    big.add_tokenizer(writer, ours, 128_256)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = Tokenizer.from_gguf(tmp_path / "t.gguf")
    said = "This is a test sentence. Việt 1234567 \U0001f600"
    assert theirs.encode(said, bos=True) == ours.encode(said, bos=True)
    # llama.cpp merges in the order of the merges, not of the ids.
    assert theirs.merges == ours.merges
