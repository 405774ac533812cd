"""What the learner has solved, in one small local file.

It lies in ~/.local/share/minillama/progress.json (below XDG_DATA_HOME or MINILLAMA_HOME
where these are set). MINILLAMA_PROGRESS names another file, or says "off". No torch.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# A later state never takes away an earlier one of higher rank.
_RANK = {"tried": 1, "solution": 2, "ok": 3}


def path() -> Path | None:
    """Where progress is kept, or None if it is not kept."""
    own = os.environ.get("MINILLAMA_PROGRESS")
    if own == "off":
        return None
    if own:
        return Path(own).expanduser()
    home = os.environ.get("MINILLAMA_HOME")
    if home:
        return Path(home).expanduser() / "progress.json"
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "minillama" / "progress.json"


def record(name: str, title: str, state: str) -> None:
    """Note one run of a check. Never prints and never fails: a check goes before it.

    `state` is "tried", "solution" (the course's own was run) or "ok".
    """
    file = path()
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=1):
            noted = _read(file)
            entry = noted.get(name, {"state": state, "tries": 0})
            if _RANK[state] >= _RANK.get(entry["state"], 0):
                entry |= {"state": state, "when": _today()}
            entry |= {"title": title, "tries": entry["tries"] + 1}
            _write(file, noted | {name: entry})
    except (OSError, Timeout):
        return  # no room, a read-only disk, another kernel that hangs


def load() -> dict[str, dict[str, Any]]:
    """What is noted, by the name of the check: state, title, tries, when."""
    file = path()
    try:
        return _read(file) if file and file.exists() else {}
    except OSError:
        return {}


def wipe() -> str:
    """Forget all progress, and say so."""
    file = path()
    if file is None:
        return "Progress is not kept: MINILLAMA_PROGRESS is off."
    n = len(load())
    for each in (file, *_set_aside(file)):
        each.unlink(missing_ok=True)
    were = "exercise was" if n == 1 else "exercises were"
    return f"Progress is wiped: {n} {were} noted in {file}."


def render(exercises: Mapping[str, str]) -> str:
    """A plain table: every exercise (name to title), and how far the learner is."""
    noted, file = load(), path()
    titles = dict(exercises)
    titles |= {name: entry["title"] for name, entry in noted.items()}
    width = max(map(len, titles.values()), default=0)
    solved = sum(entry["state"] == "ok" for entry in noted.values())
    lines = [f"{solved} of {len(titles)} exercises are solved."]
    notebook = ""
    for name in sorted(titles, key=_order):
        if name.split(".")[0] != notebook:
            notebook = name.split(".")[0]
            lines += ["", f"notebook {notebook:0>2}"]
        lines.append(f"  {name:5} {titles[name]:{width}}  {_words(noted.get(name))}")
    lines += [
        "",
        f"Kept in {file}." if file else "Not kept: MINILLAMA_PROGRESS is off.",
    ]
    lines += [
        f"An unreadable file was set aside as {each}; nothing in it was changed."
        for each in (_set_aside(file) if file else ())
    ]
    return "\n".join(lines)


def _words(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "not attempted"
    tries = f"{entry['tries']} {'try' if entry['tries'] == 1 else 'tries'}"
    states = {"ok": "solved", "tried": "not yet", "solution": "solution read"}
    return f"{states[entry['state']]}, {tries}, {entry['when']}"


def _order(name: str) -> list[Any]:
    number, _, rest = name.partition(".")
    digits = "".join(c for c in rest if c.isdigit())
    return [int(number), int(digits or 0), rest]


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The notes; a file that makes no sense is set aside, and all begins anew."""
    if not file.exists():
        return {}
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))["checks"]
        if all(_makes_sense(name, entry) for name, entry in noted.items()):
            return noted
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    number = 1 + len(_set_aside(file))
    file.replace(file.with_name(f"{file.name}.broken-{number}"))
    return {}


def _makes_sense(name: Any, entry: Any) -> bool:
    number, _, rest = name.partition(".")
    return (
        number.isdecimal()
        and rest != ""
        and entry["state"] in _RANK
        and all(isinstance(entry[key], str) for key in ("title", "when"))
        and isinstance(entry["tries"], int)
    )


def _set_aside(file: Path) -> list[Path]:
    return sorted(file.parent.glob(f"{file.name}.broken-*"))


def _write(file: Path, noted: dict[str, Any]) -> None:
    text = json.dumps({"version": 1, "checks": noted}, indent=1, ensure_ascii=False)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text + "\n")
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _today() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")
