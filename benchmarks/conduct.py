"""Start the contenders of a row, and let them take turns.

Every contender is prepared and warmed first. Then come the rounds: in each, everybody
runs once, in an order that the seed shuffles, and the machine itself is measured too.
"""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
PROBE = "the machine"
FEWEST = 5

Spec = dict[str, Any]
Say = Callable[[str], None]


def environment(
    spec: Spec, threads: int, wait: str = "default", llama_wait: str = "default"
) -> dict[str, str]:
    """The same for every contender: threads, and no network.

    How idle threads wait is said by `wait` for PyTorch and by `llama_wait` for
    llama.cpp, whose threads meet far more often in a token.
    """
    changes = {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    policy = llama_wait if spec["library"] == "llama.cpp" else wait
    if policy != "default":
        changes["OMP_WAIT_POLICY"] = policy
    kept = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    return kept | changes


class Contender:
    """A worker process, and the pipe to it."""

    def __init__(self, key: str, spec: Spec, env: Mapping[str, str], log: Path) -> None:
        self.key, self.log = key, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env=env,
            )
        self._send(spec)

    def _send(self, message: Spec) -> None:
        to = self.process.stdin
        assert to is not None
        to.write(json.dumps(message) + "\n")
        to.flush()

    def ask(self, **request: Any) -> Spec:
        """One request, one reply; RuntimeError with the worker's own words."""
        replies: IO[str] | None = self.process.stdout
        assert replies is not None
        try:
            self._send(request)
            line = replies.readline()
        except BrokenPipeError:
            line = ""
        reply = json.loads(line) if line else {"error": self.log.read_text()[-2000:]}
        if "error" in reply:
            raise RuntimeError(f"{self.key}: {reply['error']}")
        return reply

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def measure(
    entries: Mapping[str, tuple[Spec, Spec]],
    *,
    rounds: int,
    env: Callable[[Spec], Mapping[str, str]],
    logs: Path,
    patience: float = math.inf,
    seed: int = 0,
    alone: bool = False,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Run a row: `entries` are contender and case by key. Returns its raw figures.

    With `alone` there is one contender at a time: it is started, loads, runs and ends
    in each of its turns, for models of which the memory holds but one. A contender that
    fails leaves its error in place of figures, and the others go on. After `patience`
    seconds of rounds there are no more of them than `FEWEST`.
    """
    entries = {**entries, PROBE: ({"library": PROBE}, {"kind": "probe"})}
    found: dict[str, Any] = {key: {"runs": []} for key in entries}
    here: dict[tuple[str, str], Contender] = {}

    def ready(key: str) -> Contender:
        spec, case = entries[key]
        # Cases of one contender share its process, and so its weights.
        at = (json.dumps(spec, sort_keys=True), key if alone else "")
        if at not in here:
            log = logs / f"{key.replace(' ', '_').replace('/', '_')}.txt"
            here[at] = Contender(key, spec, env(spec), log)
        facts = here[at].ask(do="prepare", name=key, case=case)
        found[key].setdefault("prepared", []).append(facts)
        return here[at]

    def close_all() -> None:
        for contender in here.values():
            contender.close()
        here.clear()

    def guarded(key: str, act: Callable[[], None]) -> None:
        if "error" in found[key]:
            return
        try:
            act()
        except RuntimeError as error:
            say(str(error))
            found[key]["error"] = str(error).strip().splitlines()[-1]

    processes: dict[str, Contender] = {}
    try:
        if not alone:
            for key in entries:
                say(f"preparing {key}")
                guarded(key, lambda key=key: processes.__setitem__(key, ready(key)))
        chance, began = random.Random(seed), time.monotonic()
        for number in range(rounds):
            if number >= FEWEST and time.monotonic() - began > patience:
                break
            order = list(entries)
            chance.shuffle(order)
            for key in order:

                def turn(key: str = key) -> None:
                    contender = ready(key) if alone else processes[key]
                    found[key]["runs"].append(contender.ask(do="run", name=key))

                guarded(key, turn)
                if alone:
                    close_all()
            say(f"round {number + 1} of {rounds}: {latest(found)}")
    finally:
        close_all()
    return found


def latest(found: Mapping[str, Any]) -> str:
    """The seconds of the last round, for those who wait."""
    shown: Sequence[str] = [
        f"{key} {raw['runs'][-1]['seconds'] * 1e3:.2f} ms"
        for key, raw in found.items()
        if raw["runs"] and "seconds" in raw["runs"][-1]
    ]
    return ", ".join(shown)
