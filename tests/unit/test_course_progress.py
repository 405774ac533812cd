"""Progress: one small file that no check may depend on, and no accident may lose."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minillama.course import progress
from minillama.course.checks import every
from minillama.course.checks.rope import check_apply_rope

TITLES = {check.name: check.title for check in every()}


@pytest.fixture
def file(monkeypatch, tmp_path):
    path = tmp_path / "of mine" / "progress.json"
    monkeypatch.setenv("MINILLAMA_PROGRESS", str(path))
    return path


def right(x, cos, sin):
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = even * cos - odd * sin, even * sin + odd * cos
    return check_apply_rope.reference(x, cos, sin) + 0 * turned[0].sum().type_as(x)


def wrong(x, cos, sin):
    return x + 1


def empty(x, cos, sin): ...


def test_where_it_is_kept(monkeypatch):
    for name in ("MINILLAMA_PROGRESS", "MINILLAMA_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/somebody")
    assert progress.path() == Path("/somebody/.local/share/minillama/progress.json")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert progress.path() == Path("/data/minillama/progress.json")
    monkeypatch.setenv("MINILLAMA_HOME", "/disk")
    assert progress.path() == Path("/disk/progress.json")
    monkeypatch.setenv("MINILLAMA_PROGRESS", "off")
    assert progress.path() is None


def test_checks_note_what_happened(file, capsys):
    check_apply_rope(empty)
    assert progress.load() == {}
    check_apply_rope(wrong)
    assert progress.load()["3.1"]["state"] == "tried"
    check_apply_rope(right, solution=True)
    assert progress.load()["3.1"]["state"] == "solution"
    check_apply_rope(right)
    assert progress.load()["3.1"]["state"] == "ok"
    check_apply_rope(wrong)  # what is solved stays solved
    entry = progress.load()["3.1"]
    assert (entry["state"], entry["tries"], entry["title"]) == ("ok", 4, "apply_rope")
    out = capsys.readouterr().out
    assert "progress" not in out
    assert str(file) not in out


def test_examine_notes_nothing(file):
    check_apply_rope.examine(wrong)
    assert not file.exists()


def test_the_table_has_every_exercise(file):
    progress.record("3.1", "apply_rope", "ok")
    progress.record("3.2", "rope_frequencies", "tried")
    progress.record("3.2", "rope_frequencies", "tried")
    progress.record("99.1", "of an older course", "solution")
    text = progress.render(TITLES)
    lines = text.splitlines()
    assert lines[0] == f"1 of {len(TITLES) + 1} exercises are solved."
    assert sum(line.startswith("  ") for line in lines) == len(TITLES) + 1
    assert any("3.1" in line and "solved, 1 try, 20" in line for line in lines)
    assert any("3.2" in line and "not yet, 2 tries, 20" in line for line in lines)
    assert any("99.1" in line and "solution read" in line for line in lines)
    assert any("3.3" in line and line.endswith("not attempted") for line in lines)
    numbers = [line.split()[0] for line in lines if line.startswith("  ")]
    assert numbers == sorted(numbers, key=lambda n: [int(x) for x in n.split(".")])
    assert lines[-1] == f"Kept in {file}."


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "",
        "[]",
        '{"checks": 3}',
        '{"checks": {"3.1": {"state": "great"}}}',
        '{"checks": {"three": {"state": "ok", "tries": 1, "title": "", "when": ""}}}',
        "\x00\xff",
    ],
)
def test_an_unreadable_file_is_set_aside_whole(file, content, capsys):
    file.parent.mkdir()
    file.write_text(content, encoding="latin-1")
    progress.record("3.1", "apply_rope", "ok")
    assert capsys.readouterr().out == ""
    assert list(progress.load()) == ["3.1"]
    aside = file.with_name("progress.json.broken-1")
    assert aside.read_text(encoding="latin-1") == content
    assert f"set aside as {aside}" in progress.render(TITLES)
    file.write_text("again")
    assert progress.load() == {}
    assert file.with_name("progress.json.broken-2").read_text() == "again"
    assert aside.exists()


def test_wiping_is_one_call(file):
    progress.record("3.1", "apply_rope", "ok")
    assert progress.wipe() == f"Progress is wiped: 1 exercise was noted in {file}."
    assert progress.load() == {}
    assert "0 of" in progress.render(TITLES)
    assert "0 exercises" in progress.wipe()


def test_off_means_off(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILLAMA_PROGRESS", "off")
    monkeypatch.chdir(tmp_path)
    progress.record("3.1", "apply_rope", "ok")
    assert list(tmp_path.iterdir()) == []
    assert progress.load() == {}
    assert "off" in progress.render(TITLES)
    assert "off" in progress.wipe()


def test_no_room_and_no_rights_are_no_matter(file, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    progress.record("3.1", "apply_rope", "tried")
    before = file.read_bytes()
    monkeypatch.setattr(os, "fdopen", full)
    check_apply_rope(right)
    assert capsys.readouterr().out == "ok: 3.1 apply_rope\n"
    assert file.read_bytes() == before
    assert {p.name for p in file.parent.iterdir()} <= {
        "progress.json",
        "progress.json.lock",
    }
    monkeypatch.setenv("MINILLAMA_PROGRESS", "/dev/null/no/progress.json")
    check_apply_rope(right)
    assert progress.load() == {}


def test_kernels_lose_nothing_of_each_other(file):
    code = (
        "import sys, time; from minillama.course import progress\n"
        "number, start = sys.argv[1], float(sys.argv[2])\n"
        "time.sleep(max(0, start - time.time()))\n"
        "for i in range(40): progress.record(f'{number}.{i}', 'many', 'ok')"
    )
    start = str(time.time() + 1)  # all at once
    command = [sys.executable, "-c", code]
    kernels = [subprocess.Popen([*command, number, start]) for number in "123"]
    assert [kernel.wait(60) for kernel in kernels] == [0, 0, 0]
    assert len(json.loads(file.read_text())["checks"]) == 120


def test_progress_needs_no_torch():
    code = (
        "import sys; from minillama.course import progress; progress.load(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
