"""The values view in a browser: by mouse, by keyboard, in light and dark."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from view_speed import frame_after

from minillama.widgets import ValuesView

TOKENS = ["the", " dog", " barks", "\n", "!"]
VALUES = np.array(
    [
        [[1.0, -2.0, 0.0, 0.5, 0.4], [5.0, 6.0, 7.0, 8.0, 9.0]],
        [[0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, 1.0, -1.0, 1.0, -0.125]],
    ]
)


def values() -> ValuesView:
    return ValuesView(TOKENS, VALUES, {"layer": ["0", "1"], "head": ["a", "b"]})


def colours(page: Page) -> list[tuple[int, ...]]:
    script = "all => all.map((e) => getComputedStyle(e).backgroundColor)"
    found = page.locator(".mll-value").evaluate_all(script)
    return [tuple(int(n) for n in c[4:-1].split(",")) for c in found]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_by_mouse(
    saved: Callable[..., Page], shot: Any, serious: Any, theme: str
) -> None:
    page = saved(values(), theme=theme)
    chips = page.locator(".mll-value")
    # The marks beneath say the sign and the size.
    expect(chips).to_have_text(["the++", "·dog−−−", "·barks", "⏎+", "!+"])
    (red, _, blue), (dark_red, _, dark_blue) = colours(page)[:2]
    assert blue > red  # above nothing: blue
    assert dark_red > dark_blue  # below it: orange
    about = page.locator(".mll-values-about")
    chips.nth(1).hover()
    expect(about).to_contain_text("token 2 of 5, ·dog: −2, number 5 from above")
    expect(about).to_contain_text(
        "largest 6 (layer 0, head b), smallest −2 (layer 0, head a)"
    )
    top, bottom = page.locator(".mll-values-top").all()
    expect(top.locator("button").first).to_have_text("1the·dog·barks")
    expect(bottom.locator("button").first).to_have_text("−2the·dog·barks⏎")
    page.get_by_label("layer").select_option("1")
    page.get_by_label("head").select_option("b")
    expect(chips.first).to_have_attribute("aria-label", "the −1")
    expect(chips).to_have_text(["the−−−", "·dog+++", "·barks−−−", "⏎+++", "!"])
    page.get_by_label("scale").select_option("all")  # 1 of 9 is hardly a shade
    expect(chips).to_have_text(["the", "·dog", "·barks", "⏎", "!"])
    expect(page.locator(".mll-values-legend")).to_contain_text("−9")
    page.get_by_label("layer").select_option("0")
    bottom.locator("button").nth(1).click()
    expect(chips.nth(1)).to_be_focused()
    expect(about).to_contain_text("·dog: 6, number 4")
    page.get_by_label("listed").fill("2")
    expect(top.locator("button")).to_have_text(["9·dog·barks⏎!", "8the·dog·barks⏎!"])
    assert serious(page) == []
    shot(page, f"values_{theme}")


def test_the_keyboard_alone(saved: Callable[..., Page]) -> None:
    page = saved(values())
    for _ in range(4):
        page.keyboard.press("Tab")
    chips = page.locator(".mll-value")
    expect(chips.first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator("[aria-live]")).to_contain_text("token 2 of 5, ·dog: −2")
    page.keyboard.press("End")
    expect(page.locator("[aria-live]")).to_contain_text("token 5 of 5, !: 0.4")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")  # the second of the largest
    expect(chips.nth(3)).to_be_focused()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


def test_several_texts(saved: Callable[..., Page]) -> None:
    page = saved(ValuesView([["a", "b"], ["c"]], [[0.5, 1.0], [3.0]]))
    top = page.locator(".mll-values-top button")
    expect(top.first).to_have_text("32: c")
    expect(page.locator(".mll-value")).to_have_text(["a+", "b+"])
    top.first.click()
    expect(page.locator(".mll-value")).to_have_text(["c+++"])
    expect(page.get_by_label("text")).to_have_value("1")


@pytest.mark.parametrize("width", [420, 1200])
def test_quick_and_within_its_cell(
    saved: Callable[..., Page], shot: Any, width: int
) -> None:
    many = np.random.default_rng(0).standard_normal((30, 64, 128))
    page = saved(ValuesView([" token"] * 128, many), width=width)
    times = [frame_after(page, "select", "change", k) for k in range(1, 12)]
    assert sorted(times)[5] < 200
    label = page.locator(".mll-value").nth(127).get_attribute("aria-label") or ""
    assert float(label.split()[1].replace("−", "-")) == pytest.approx(
        many[11, 0, 127], rel=1e-3
    )
    assert page.locator(".mll").evaluate("e => e.scrollWidth <= e.clientWidth")
    shot(page, f"values_{width}")


def test_text_stays_text(saved: Callable[..., Page]) -> None:
    bad = ["<img src=x onerror=document.title='taken'>", "</script>", "שלום", "\u0301"]
    page = saved(ValuesView(bad, [[0.0] * 4], {"<b>": ["<i>x</i>"]}))
    expect(page.locator(".mll-value")).to_have_count(4)
    assert page.locator(".mll img, .mll b > b, .mll i > i, .mll script").count() == 0
    assert page.title() == "Values of tokens · minillama"
    page = saved(ValuesView(["a"], [float("nan")]))
    expect(page.get_by_role("alert")).to_contain_text("1 of 1 values are NaN")
