"""How long the views take from an input to the next picture; docs/views.md has them.

    python tools/view_speed.py            # prints the table
    python tools/view_speed.py --write    # puts it into docs/views.md

Each view is saved as a page of its own and opened in Chromium without a network. A
table row is the median and the worst of twenty inputs, in milliseconds, on 128 tokens
where nothing else is said. Run it on a machine that has nothing else to do.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

from minillama import widgets

DOCS = Path(__file__).resolve().parents[1] / "docs" / "views.md"
BEGIN, END = "<!-- speed -->\n", "<!-- /speed -->"
FLAGS = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
LAYERS, HEADS = 30, 9

# The picture is there when a task after the next animation frame runs.
FRAME = """async ([selector, kind, value]) => {
    const node = selector ? document.querySelector(selector) : document.activeElement;
    const begin = performance.now();
    if (kind === "keydown")
        node.dispatchEvent(new KeyboardEvent(kind, { key: value, bubbles: true }));
    else if (kind === "mousemove") {
        const { x, y } = node.getBoundingClientRect();
        const at = { clientX: x + value, clientY: y + value + 100 };
        node.dispatchEvent(new MouseEvent(kind, { ...at, bubbles: true }));
    } else {
        node.value = value;
        node.dispatchEvent(new Event(kind));
    }
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - begin;
}"""


def frame_after(page: Page, selector: str | None, kind: str, value: Any) -> float:
    """Milliseconds from an input to the picture. No selector: what has the focus."""
    return page.evaluate(FRAME, [selector, kind, value])


def attention(n: int) -> Any:
    """As many weights as SmolLM2 has, causal, each row adding up to one."""
    rng = np.random.default_rng(0)
    weights = np.tril(rng.exponential(size=(LAYERS, HEADS, n, n))).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    return widgets.AttentionView(weights, [" token"] * n, n_kv_heads=3)


def cases() -> Iterator[tuple[str, Any, str | None, str, Sequence[Any], str | None]]:
    """What is done, the view, where, the event, its values, what gets the focus."""
    rng = np.random.default_rng(0)
    layer, canvas = "input[type=range]", ".mll-att-panel canvas"
    for n in (128, 512):
        view, size = attention(n), f", {n} tokens"
        yield (
            f"AttentionView, another layer{size}",
            view,
            layer,
            "input",
            range(20),
            None,
        )
        yield (
            f"AttentionView, a move over the map{size}",
            view,
            canvas,
            "mousemove",
            range(20, 220, 10),
            None,
        )
    row = 2.5 * rng.standard_normal(49_152)
    view = widgets.NextTokenView(lambda ids: row, range(128), str)
    for name in ("temperature", "top-p", "min-p"):
        field, values = f'[aria-label="{name}"]', [0.05 * i for i in range(1, 21)]
        yield f"NextTokenView, {name}", view, field, "input", values, None
    cell = [(f" word{i}", 0.5**i) for i in range(1, 11)]
    view = widgets.LogitLensView([" token"] * 128, [[cell] * 128] * (LAYERS + 1))
    keys = ["ArrowDown", "ArrowLeft"] * 10
    yield "LogitLensView, another cell", view, None, "keydown", keys, "td[tabindex='0']"
    frequencies = 500_000.0 ** (-np.arange(64) / 64)
    view = widgets.RopeClocks(frequencies, scaled=frequencies / 8)
    yield (
        "RopeClocks, 64 clocks",
        view,
        '[aria-label="query at m"]',
        "input",
        range(20),
        None,
    )
    view = widgets.CacheView()
    yield (
        "CacheView, another context",
        view,
        '[aria-label="tokens"]',
        "input",
        range(20),
        None,
    )
    view = widgets.ValuesView([" token"] * 128, rng.standard_normal((LAYERS, 128)))
    yield "ValuesView, another row", view, "select", "change", range(20), None
    q, k = rng.standard_normal((2, 128, 64))
    view = widgets.QueryKeyView([" token"] * 128, q, k)
    yield (
        "QueryKeyView, another query",
        view,
        '[aria-label="query"]',
        "input",
        range(108, 128),
        None,
    )


def measure() -> str:
    """The table, in Markdown."""
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if path is None:
        sys.exit(
            "no Chromium on this machine: install it, on Debian `apt install chromium`"
        )
    lines = ["| input | median, ms | worst, ms |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        for name, view, where, kind, values, focus in cases():
            page = browser.new_page(viewport={"width": 1000, "height": 900})
            page.goto(view.to_html(Path(folder) / "view.html").as_uri())
            page.wait_for_selector(".mll")
            page.wait_for_timeout(2000)  # what comes by itself has come
            if focus:
                page.focus(focus)
            times = [frame_after(page, where, kind, value) for value in values]
            page.close()
            lines.append(
                f"| {name} | {statistics.median(times):.0f} | {max(times):.0f} |"
            )
            print(lines[-1], flush=True)
        browser.close()
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/views.md")
    write = parser.parse_args().write
    table = measure()
    if write:
        before, rest = DOCS.read_text("utf-8").split(BEGIN)
        DOCS.write_text(before + BEGIN + table + END + rest.split(END)[1], "utf-8")


if __name__ == "__main__":
    main()
