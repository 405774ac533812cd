"""All views under VS Code's own widget manager, in its themes, with a kernel behind.

The manager is the package that VS Code's Jupyter extensions bring along; `anywidget` is
loaded as they load it, from the environment's nbextensions through RequireJS, with no
network. VS Code itself is not here: `vscode_host.html` and `.js` play its part.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from npm_files import package
from playwright.sync_api import Locator, Page, expect

HERE = Path(__file__).parent
PACKAGES = {
    "ipywidgets.js": (
        "@vscode/jupyter-ipywidgets8",
        "1.0.9",
        "9c0680c126bae81427625a8dae4c9edfaa408c8c694a20641002b5d7d77d1ca8",
        "dist/ipywidgets.js",
    ),
    "services.js": (
        "@jupyterlab/services",
        "7.6.6",
        "7138fca315716f633ded0ee313dc0625efb1e14ec21cc27042d0d8e22581df35",
        "dist/dist/index.js",
    ),
    "require.js": (
        "requirejs",
        "2.3.8",
        "777158e89275e16bd51aec3ef714fbcb5dc45789e7078659933bc814916d7dec",
        "require.js",
    ),
}
# Dark Modern, Quiet Light, and the two of high contrast: ground and ink.
THEMES = {
    "vscode-dark": ("#1f1f1f", "#cccccc"),
    "vscode-light": ("#f5f5f5", "#333333"),
    "vscode-high-contrast": ("#000000", "#ffffff"),
    "vscode-high-contrast-light": ("#ffffff", "#292929"),
}
NAMES = [
    "attention",
    "next",
    "tokens",
    "clocks",
    "cache",
    "lens",
    "values",
    "qk",
    "chat",
]
WEIGHTS = np.tril(np.random.default_rng(1).random((2, 4, 5, 5))) + np.eye(5)
WEIGHTS /= WEIGHTS.sum(-1, keepdims=True)
Q, K = np.random.default_rng(2).standard_normal((2, 5, 8)).round(2)
CELL = f"""
import numpy as np
from IPython.display import display
from minillama.widgets import *
tokens = ["the", " dog", " saw", " the", " cat"]
def logits(ids):
    return np.log(np.arange(1, 51.0)) + 3 * (np.arange(50) == (ids[-1] + 1) % 50)
def reply(messages):
    for i, word in enumerate(["one", " two"]):
        yield {{"text": f"{{word}}", "probability": 0.5, "top": [(word, 0.5)]}}
cells = [[[("cat", 0.5), ("dog", 0.25)]] * 5] * 3
display(
    AttentionView({WEIGHTS.tolist()}, tokens, n_kv_heads=2),
    NextTokenView(logits, [1, 2], lambda i: f" w{{i}}"),
    TokensView("dog", {{"letters": lambda t: [(ord(c), c.encode()) for c in t]}}),
    RopeClocks([1.0, 0.1]), CacheView(), LogitLensView(tokens, cells),
    ValuesView(tokens, [[1.0, -2.0, 0.0, 3.0, 1.0], [0.0, 4.0, 1.0, 2.0, -1.0]]),
    QueryKeyView(tokens, {Q.tolist()}, {K.tolist()}), ChatBox(reply),
)
"""


def found_scripts() -> dict[str, Path]:
    """The modules of the environment's nbextensions, read off as the extension does."""
    share = Path(sys.prefix) / "share" / "jupyter"
    entry = re.compile(r"""["']?([@\w/-]+)["']?\s*:\s*["'](nbextensions/[^"']+)["']""")
    return {
        name: share / f"{path}.js"
        for script in share.glob("nbextensions/*/extension.js")
        if "requirejs?.config({" in (text := script.read_text("utf-8"))
        for name, path in entry.findall(text)
    }


@pytest.fixture
def code(lab: Any, tab: Any) -> Iterator[Callable[[str], tuple[Page, dict]]]:
    """Opens all views in a theme of VS Code: the page, and a locator a view."""
    files = {name: package(*p[:3]) / p[3] for name, p in PACKAGES.items()}
    files["host.html"], files["host.js"] = (
        HERE / f"vscode_host.{kind}" for kind in ("html", "js")
    )
    scripts = found_scripts()
    assert "anywidget" in scripts, "VS Code would have to ask the network for anywidget"
    files |= {f"nbextensions/{name}.js": path for name, path in scripts.items()}
    for name, path in files.items():
        copy = lab.static / "code" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    home = f"{lab.url}/static/code"
    opened: list[Page] = []

    def open_in(kind: str) -> tuple[Page, dict[str, Locator]]:
        page = tab(width=1000, height=1400)
        page.request.get(f"{lab.url}/lab")  # the cookie that starting a kernel takes
        page.goto(f"{home}/host.html")
        page.wait_for_function("window.host")
        set_theme(page, kind)
        paths = {name: f"{home}/nbextensions/{name}" for name in scripts}
        opened.append(page)
        page.evaluate("([url, s]) => host.start(url, s)", [lab.url, paths])
        page.evaluate("code => host.run(code)", CELL)
        assert page.evaluate("host.failed") == []
        views = page.locator(".mll")
        expect(views).to_have_count(len(NAMES))
        return page, dict(zip(NAMES, views.all(), strict=True))

    yield open_in
    for page in opened:
        page.evaluate("host.stop()")


def set_theme(page: Page, kind: str) -> None:
    ground, ink = THEMES[kind]
    colours = {
        "editor-background": ground,
        "editor-foreground": ink,
        "foreground": ink,
        "font-family": "sans-serif",
        "editor-font-family": "monospace",
    }
    page.evaluate("([kind, colours]) => host.theme(kind, colours)", [kind, colours])


def numbers(colour: str) -> list[int]:
    if colour.startswith("#"):
        return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return [int(n) for n in re.findall(r"\d+", colour)[:3]]


def check_theme(page: Page, kind: str, serious: Any) -> None:
    """The editor's ground and ink in every view, and shades that go with them."""
    ground, ink = map(numbers, THEMES[kind])
    dark = sum(ground) < 380
    style = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    for name, view in zip(NAMES, page.locator(".mll").all(), strict=True):
        assert [*map(numbers, view.evaluate(style))] == [ground, ink], name
        marked = "e => getComputedStyle(e).getPropertyValue('--mll-dark').trim()"
        assert view.evaluate(marked) == str(int(dark)), name
    # Drawn, not styled: what the mask hides, and a value of nothing.
    hidden = page.locator(".mll-att-panel canvas").first.evaluate(
        """c => {
        const r = devicePixelRatio, at = [c.width - 20 * r, 90 * r, 1, 1];
        return [...c.getContext("2d").getImageData(...at).data];
        }"""
    )
    assert (sum(hidden[:3]) < 380) == dark
    nothing = page.locator(".mll-value").nth(2)
    shade = numbers(nothing.evaluate("e => getComputedStyle(e).backgroundColor"))
    assert (sum(shade) < 380) == dark
    assert serious(page) == []


@pytest.mark.parametrize("kind", ["vscode-dark", "vscode-light"])
def test_every_view(code: Any, shot: Any, serious: Any, kind: str) -> None:
    page, view = code(kind)
    assert "AnyModel of anywidget" in page.evaluate("host.loaded")
    press = page.keyboard.press
    # A layer, which the kernel sends.
    attention = view["attention"]
    attention.get_by_role("combobox", name="head", exact=True).select_option("2")
    attention.locator(".mll-att-panel canvas").focus()
    press("ArrowLeft")
    press("ArrowLeft")
    attention.get_by_label("layer", exact=True).focus()
    for key, layer in (("Home", 0), ("ArrowRight", 1)):
        press(key)
        shown = f"query 4 ·cat → key 3 ·the: {WEIGHTS[layer, 2, 4, 3]:.3f}"
        expect(attention.locator(".mll-att-cell")).to_have_text(shown)
    # The next token's probabilities, and those after it, which the kernel computes.
    first = view["next"].locator(".mll-nt-bars button").first
    before = first.inner_text()
    view["next"].get_by_label("temperature", exact=True).focus()
    press("ArrowRight")
    expect(first).not_to_have_text(before)
    first.click()
    expect(view["next"].get_by_role("treeitem")).to_have_count(2)
    expect(view["next"].locator(".mll-nt-bars button").first).to_contain_text("w4")
    # Tokens of a text, from a function in the kernel.
    view["tokens"].get_by_label("text", exact=True).fill("cats")
    chips = view["tokens"].locator(".mll-chips li")
    expect(chips).to_have_text(["c99", "a97", "t116", "s115"])
    # What needs no kernel: sliders by the keyboard, lists and cells by the mouse.
    query = view["clocks"].get_by_label("query at m")
    query.fill("20")
    query.press("ArrowRight")
    expect(view["clocks"].locator(".mll-clocks-dot")).to_contain_text("distance 14")
    view["cache"].get_by_label("bytes each").select_option("4")
    expect(view["cache"].locator(".mll-cache-size")).to_have_text("2.00 GiB")
    view["lens"].locator(".mll-lens-grid td").first.click()
    press("ArrowDown")
    place = view["lens"].locator("h3")
    expect(place).to_have_text("layer 1, position 0, after the")
    dog = view["values"].locator(".mll-value").nth(1)
    expect(dog).to_have_text("·dog−−")
    view["values"].get_by_label("row").first.select_option("1")
    expect(dog).to_have_text("·dog+++")
    view["qk"].get_by_label("query", exact=True).focus()
    press("Home")
    expect(view["qk"].locator(".mll-qk-keys li")).to_have_count(1)
    # A conversation, which streams from a thread of the kernel.
    view["chat"].get_by_label("message", exact=True).fill("hi")
    press("Enter")
    expect(view["chat"].locator(".mll-cb-body")).to_have_text(["hi", "one two"])
    check_theme(page, kind, serious)
    page.evaluate("scrollTo(0, 0)")
    shot(page, f"in_vscode_{kind}")
    # The theme may change while the views are open.
    other = kind.replace("dark", "high-contrast").replace(
        "light", "high-contrast-light"
    )
    set_theme(page, other)
    page.wait_for_timeout(200)
    check_theme(page, other, serious)
    shot(page, f"in_vscode_{other}")
