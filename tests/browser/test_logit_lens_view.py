"""The logit lens in a browser: by mouse, by keyboard, in the light and in the dark."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from view_speed import frame_after

from minillama.widgets import LogitLensView

TOKENS = ["the", " dog", " barks"]
CELLS = [
    [[("the", 0.5), ("a", 0.25)], [(" dog", 0.3), ("b", 0.2)], [("e", 0.2)]],
    [[(" cat", 0.4), (" dog", 0.3)], [("b", 0.6), (" barks", 0.05)], [("!", 0.3)]],
    [[(" dog", 0.9), ("c", 0.01)], [(" barks", 0.6), ("b", 0.4)], [("!", 0.7)]],
]
TRUTH = [[0.0001, 0.001, None], [0.3, 0.05, None], [0.9, 0.6, None]]


def lens(**more: Any) -> LogitLensView:
    return LogitLensView(TOKENS, CELLS, truth=TRUTH, layers=["in", "1", "2"], **more)


def shades(page: Page) -> list[str]:
    cells = page.locator(".mll-lens-grid td").all()
    return [c.evaluate("e => getComputedStyle(e).backgroundColor") for c in cells]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_by_mouse(
    saved: Callable[..., Page], shot: Any, serious: Any, theme: str
) -> None:
    page = saved(lens(), theme=theme)
    cells = page.locator(".mll-lens-grid td")
    # The last layer is on top, as the stream flows upwards.
    expect(cells).to_have_text(
        ["·dog", "·barks", "!", "·cat", "b", "!", "the", "·dog", "e"]
    )
    expect(page.locator(".mll-lens-grid thead")).to_have_text("follows·dog·barks")
    expect(page.locator(".mll-lens-right")).to_have_text(["·dog", "·barks"])
    about = page.locator(".mll-lens-about")
    expect(about.locator("h3")).to_have_text("layer 2, position 2, after ·barks")
    cells.nth(3).hover()
    expect(about.locator("h3")).to_have_text("layer 1, position 0, after the")
    expect(about.locator("tr")).to_have_text(["1·cat40 %", "2·dog30 %"])
    expect(about).to_contain_text("really follows: ·dog: 30 %, rank 2")
    expect(about).to_contain_text("from layer 1 on, and first from layer 2 on")
    cells.nth(7).click()
    page.locator(".mll-note").last.hover()
    expect(about.locator("h3")).to_have_text("in, position 1, after ·dog")
    expect(about).to_contain_text("0.1 %, beyond the first 2")
    expect(cells.nth(7)).to_have_attribute("aria-selected", "true")
    assert serious(page) == []
    # The surest cell differs most from the page's ground.
    light = [sum(int(n) for n in s[4:-1].split(",")) for s in shades(page)]
    extreme = min if theme == "light" else max
    assert light[0] == extreme(light)
    shot(page, f"lens_{theme}")


def test_the_shade_of_the_real_token(saved: Callable[..., Page], serious: Any) -> None:
    page = saved(lens())
    bars = "e => getComputedStyle(e).backgroundSize.split(' ')[0]"
    first = page.locator(".mll-lens-grid td").first
    lowest = page.locator(".mll-lens-grid td").nth(6)
    assert (first.evaluate(bars), lowest.evaluate(bars)) == ("90%", "50%")
    page.get_by_label("shade").select_option("truth")
    assert (first.evaluate(bars), lowest.evaluate(bars)) == ("90%", "0%")
    page.get_by_label("shade").select_option("rank")
    assert (first.evaluate(bars), lowest.evaluate(bars)) == ("100%", "0%")
    second = page.locator(".mll-lens-grid td").nth(3)
    assert second.evaluate(bars) == "90%"
    expect(second).to_have_attribute(
        "aria-label", "·cat, 40 %, layer 1, after the; really ·dog, 30 %, rank 2"
    )
    assert serious(page) == []


def test_the_keyboard_alone(saved: Callable[..., Page]) -> None:
    page = saved(lens())
    page.keyboard.press("Tab")
    expect(page.get_by_label("shade")).to_be_focused()
    page.keyboard.press("Tab")
    cells = page.locator(".mll-lens-grid td")
    expect(cells.nth(2)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    expect(cells.nth(4)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("[aria-live]")).to_have_text("b 60 %, ·barks 5.0 %")
    page.keyboard.press("PageDown")
    page.keyboard.press("Home")
    expect(page.locator(".mll-lens-about h3")).to_have_text("in, position 0, after the")
    assert page.locator(".mll-lens-grid td[tabindex='0']").count() == 1
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


def test_many_tokens_stay_quick(saved: Callable[..., Page], shot: Any) -> None:
    cell = [(f" word{i}", 0.5**i) for i in range(1, 11)]
    tokens = [f"t{i}" for i in range(128)]
    page = saved(LogitLensView(tokens, [[cell] * 128] * 31), width=420)
    page.locator(".mll-lens-grid td[tabindex='0']").focus()
    times = [frame_after(page, None, "keydown", "ArrowDown") for _ in range(10)]
    assert sorted(times)[5] < 200
    times = [frame_after(page, None, "keydown", "Home")]
    expect(page.locator("output")).to_have_text("0 to 31 of 128")
    expect(page.locator(".mll-lens-about h3")).to_contain_text("position 0, after t0")
    times += [frame_after(page, None, "keydown", "End")]
    expect(page.locator("output")).to_have_text("96 to 127 of 128")
    assert max(times) < 400
    room = "e => e.scrollWidth <= e.clientWidth"
    assert page.locator(".mll").evaluate(room)
    shot(page, "lens_narrow")


def test_text_stays_text(saved: Callable[..., Page]) -> None:
    bad = ["<img src=x onerror=document.title='taken'>", "שלום", "\u0301", ""]
    cells = [[[(t, 0.5), ("</script>", 0.1)] for t in bad]]
    page = saved(LogitLensView(bad, cells, layers=["<b>top</b>"]))
    expect(page.locator(".mll-lens-grid td")).to_have_text(
        [bad[0].replace(" ", "·"), "שלום", "◌\u0301", "∅"]
    )
    assert page.locator(".mll img, .mll b, .mll script").count() == 0
    assert page.title() == "Logit lens · minillama"


def test_a_sentence_in_its_place(saved: Callable[..., Page]) -> None:
    page = saved(LogitLensView(["a"] * 2000, []))
    expect(page.get_by_role("alert")).to_contain_text("2,000 tokens")
