"""One contender in a process of its own: it answers over its pipes, line by line.

The first line is what it is. Each line after it is a request, {"do": "prepare"} or
{"do": "run"}, and gets one line of JSON back. Whatever a library prints goes to stderr.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Spec = dict[str, Any]
Run = Callable[[], dict[str, Any]]

WARM_STEPS = 4


def memory() -> dict[str, int]:
    """Bytes of memory resident now and at the peak, mapped files included."""
    status = Path("/proc/self/status")
    if not status.exists():  # a Mac: the peak is all that the standard library knows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak": peak, "resident": peak}
    kept = {"VmHWM": "peak", "VmRSS": "resident"}
    lines = (line.split() for line in status.read_text().splitlines())
    return {
        kept[words[0][:-1]]: int(words[1]) * 1024
        for words in lines
        if words and words[0][:-1] in kept
    }


class Worker:
    """Loads at the first request that needs the model, and keeps what was prepared."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.model: Any = None
        self.runs: dict[str, Run] = {}
        self.load_seconds = 0.0

    def prepare(self, name: str, case: Spec) -> dict[str, Any]:
        """Load, if that is still to do; get ready for a case; run it once, untimed."""
        if self.model is None:
            start = time.perf_counter()
            self.model = _load(self.spec, case)
            self.load_seconds = time.perf_counter() - start
        loaded = memory()
        start = time.perf_counter()
        self.runs[name], facts = getattr(self, "_" + case["kind"])(case)
        facts |= {"load_seconds": self.load_seconds, "loaded": loaded}
        return facts | {"first_seconds": time.perf_counter() - start}

    def run(self, name: str) -> dict[str, Any]:
        return self.runs[name]() | memory()

    def _decode(self, case: Spec) -> tuple[Run, dict[str, Any]]:
        context, new, batch = case["context"], case["new"], case.get("batch", 1)
        warm = case.get("warm", WARM_STEPS)
        room = context + max(new, warm) + 1
        state = self.model.read(case["ids"][:context], batch, room)

        def run(steps: int = new) -> dict[str, Any]:
            tokens = self.model.rewind(state)
            ids = [tokens[0]]
            start = time.perf_counter()
            for _ in range(steps):
                tokens = self.model.step(state, tokens)
                ids.append(tokens[0])
            seconds = time.perf_counter() - start
            return {"seconds": seconds / steps / batch, "ids": ids}

        if warm:
            run(warm)
        bytes_a_step = self.model.bytes_a_step(context + new // 2, batch)
        return run, {"bytes": bytes_a_step / batch, "context": context}

    def _prefill(self, case: Spec) -> tuple[Run, dict[str, Any]]:
        ids = case["ids"][: case["tokens"]]
        state = self.model.read(ids, 1, len(ids) + 1)

        def run() -> dict[str, Any]:
            start = time.perf_counter()
            self.model.again(state, ids)
            seconds = time.perf_counter() - start
            return {"seconds": seconds / len(ids), "ids": state.first}

        return run, {}

    def _train(self, case: Spec) -> tuple[Run, dict[str, Any]]:
        def run() -> dict[str, Any]:
            start = time.perf_counter()
            losses = [self.model.step() for _ in range(case["steps"])]
            seconds = time.perf_counter() - start
            return {"seconds": seconds / case["steps"], "loss": losses[-1]}

        return run, {"first_loss": run()["loss"]}

    def _probe(self, case: Spec) -> tuple[Run, dict[str, Any]]:
        import torch

        def run() -> dict[str, Any]:
            return {
                "bandwidth": self.model.bandwidth(),
                "float32": self.model.flops(torch.float32),
                "bfloat16": self.model.flops(torch.bfloat16),
            }

        run()
        return run, {}

    def _call(self, case: Spec) -> tuple[Run, dict[str, Any]]:
        call = self.model[case["row"]][case["contender"]]

        def run() -> dict[str, Any]:
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            return {"seconds": seconds / (case["size"] / 1e6)}

        run()
        return run, {}


def _load(spec: Spec, case: Spec) -> Any:
    from benchmarks import contenders

    if case["kind"] == "probe":
        return contenders.Probe()
    if case["kind"] == "train":
        return contenders.Training(spec)
    if case["kind"] == "call":
        from benchmarks import tokenizers_speed

        return tokenizers_speed.cases(case["bytes"])
    return contenders.LIBRARIES[spec["library"]](spec)


def answer(worker: Worker, request: Spec) -> dict[str, Any]:
    do = request.pop("do")
    try:
        return worker.prepare(**request) if do == "prepare" else worker.run(**request)
    except Exception:
        return {"error": traceback.format_exc()}


def main() -> None:
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        worker = Worker(json.loads(sys.stdin.readline()))
        for line in sys.stdin:
            print(
                json.dumps(answer(worker, json.loads(line))), file=replies, flush=True
            )


if __name__ == "__main__":
    main()
