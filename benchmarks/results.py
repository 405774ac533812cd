"""The raw figures in one small JSON file: what the page and the plots are made from."""

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.conduct import PROBE
from benchmarks.rows import Inputs, Row

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "benchmarks" / "results.json"
PACKAGES = (
    "minillama",
    "torch",
    "transformers",
    "llama-cpp-python",
    "llms-from-scratch",
    "tokenizers",
    "tiktoken",
)
# What is kept of a run besides its seconds.
KEPT = ("seconds", "bandwidth", "float32", "bfloat16", "peak", "resident", "loss")


def read(path: Path = FILE) -> dict[str, Any]:
    if not path.exists():
        return {"rows": {}}
    return json.loads(path.read_text("utf-8"))


def add(
    path: Path, row: Row, inputs: Inputs, raw: Mapping[str, Any], about: dict[str, Any]
) -> None:
    """Put one row in, and leave the others as they are."""
    found = read(path)
    flops = row.flops(inputs) if row.flops else None
    found["rows"][row.name] = {
        **about,
        "machine": machine(),
        "versions": versions(),
        "entries": {key: series(entry, flops) for key, entry in raw.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1)
    path.write_text(_short(text) + "\n", "utf-8")


def series(entry: Mapping[str, Any], flops: float | None) -> dict[str, Any]:
    """One contender: a list for each quantity, with a number a round."""
    if "error" in entry:
        return {"error": entry["error"]}
    runs, prepared = entry["runs"], entry["prepared"]
    kept: dict[str, Any] = {}
    kept |= {k: [_round(r[k]) for r in runs] for k in KEPT if k in runs[0]}
    for name in ("load_seconds", "first_seconds"):
        kept[name] = [_round(facts[name]) for facts in prepared]
    kept["loaded"] = [facts["loaded"]["peak"] for facts in prepared]
    kept |= {k: prepared[0][k] for k in ("bytes", "context") if k in prepared[0]}
    if flops and "seconds" in kept:
        kept["flops"] = flops
    if "ids" in runs[0]:
        kept["ids"] = runs[0]["ids"]
    return kept


def _round(number: float) -> float:
    return float(f"{number:.5g}")


def _short(text: str) -> str:
    """Lists of numbers on one line each."""
    import re

    return re.sub(
        r"\[[^\[\]{}\"]*\]", lambda m: " ".join(m[0].split()).replace("[ ", "["), text
    ).replace(" ]", "]")


def machine() -> str:
    """Processor, cores, memory, system."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
        flags = next((x.split() for x in lines if x.startswith("flags")), [])
        has = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
        cpu = f"{names[0] if names else cpu} ({', '.join(has)})"
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = f", {size / 2**30:.0f} GiB of memory"
    return f"{cpu}, {os.cpu_count()} cores{memory}, {platform.system()}"


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def seconds_of(row: Mapping[str, Any]) -> dict[str, list[float]]:
    """All series of a row under one kind of name, for the targets of rows.py.

    A contender's own key has its seconds; "KEY bound" the seconds that the machine's
    measured bandwidth or FLOP/s allow; "KEY peak" and so on its other quantities.
    """
    probe = row["entries"][PROBE]
    found: dict[str, list[float]] = {}
    for key, entry in row["entries"].items():
        if "seconds" not in entry:
            continue
        count = len(entry["seconds"])
        found[key] = entry["seconds"]
        for name in ("peak", "resident"):
            if name in entry:
                found[f"{key} {name}"] = entry[name]
        load, first = (_spread(entry[f"{n}_seconds"], count) for n in ("load", "first"))
        found[f"{key} load"] = load
        found[f"{key} ready"] = [a + b for a, b in zip(load, first, strict=True)]
        bound = least_seconds(entry, probe)
        if bound:
            found[f"{key} bound"] = [bound] * count
    return found


def least_seconds(entry: Mapping[str, Any], probe: Mapping[str, Any]) -> float | None:
    """Seconds that the machine needs at least, by the best that it did in any round."""
    if "flops" in entry:
        return entry["flops"] / max(*probe["float32"], *probe["bfloat16"])
    if "bytes" in entry:
        return entry["bytes"] / max(probe["bandwidth"])
    return None


def _spread(values: list[float], count: int) -> list[float]:
    """One load for all rounds, or one a round."""
    return values if len(values) == count else [values[0]] * count
