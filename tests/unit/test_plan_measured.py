"""The plan against the kernel's own count of memory, in a process of its own."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from minillama import native

MEASURE = """
import gc, json, sys, torch
from minillama import Llama, plan, stream
from minillama.api import load_model
from minillama.config import LlamaConfig
from minillama.native import give_back
from minillama.weights import save_weights

path, kind, context, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(2)
how = {"quantize": kind} if kind[:3] == "int" else {"dtype": getattr(torch, kind)}

def memory(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

def answer(path, tokens):
    model = load_model(path, device="cpu", **how)
    ids = torch.arange(tokens - 8) % 500
    for _ in stream(model, ids.tolist(), max_new_tokens=6):
        pass
    return model.config

# All code that answering needs is in memory before the count begins.
small = LlamaConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16,
                    ffn_dim=128, vocab_size=512, max_seq_len=2048)
save_weights(Llama(small).bfloat16(), folder + "/small")
answer(folder + "/small", 900)
load_model(path, device="cpu", dtype=torch.bfloat16)  # a GGUF is opened, too
gc.collect()
give_back()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak
before = memory("VmRSS:")
config = answer(path, context)
need = plan.need(config, dtype=kind, context=context)
print(json.dumps({"planned": need.total, "peak": memory("VmHWM:") - before}))
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the count is Linux's"
)
@pytest.mark.parametrize(
    ("kind", "context", "runs"),
    # The heap's holes fall differently each time, most so in int8: 0.97 to 1.04 at 512
    # tokens. At 4,096 it takes 1.05 to 1.09 of its plan, so that case is not claimed.
    [("bfloat16", 2048, 1), ("float32", 512, 1), ("int8", 512, 3), ("int4", 2048, 1)],
)
def test_the_peak_is_planned_within_5_percent(
    kind: str, context: int, runs: int, smollm2_path: Path, tmp_path: Path
) -> None:
    if kind.startswith("int") and native.library() is None:
        pytest.skip(native.why_not())

    def ratio(run: int) -> float:
        folder = tmp_path / str(run)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, smollm2_path, kind, str(context), folder],
            capture_output=True,
            text=True,
            check=True,
        )
        seen = json.loads(done.stdout)
        return seen["peak"] / seen["planned"]

    assert 0.95 < statistics.median(map(ratio, range(runs))) < 1.05
