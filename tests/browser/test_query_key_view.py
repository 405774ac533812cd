"""Queries and keys in a browser: the page's own sums against numpy's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from view_speed import frame_after

from minillama.widgets import QueryKeyView

TOKENS = ["the", " dog", " barks"]
Q = np.array([[1.0, 0.5, 0, 0], [2.0, 0, -1, 0.5], [0.6, -2.0, 1.5, 3.0]])
K = np.array([[1.0, 1.0, 0, 0], [0.5, 0.25, -1, 2.0], [-1.0, 2.0, 0.5, 0.25]])
SCORES = Q @ K.T / 2  # the root of four numbers


def share(p: float) -> str:
    return f"{100 * p:.0f} %" if p >= 0.0995 else f"{100 * p:.1f} %"


def shown(query: int, seen: int) -> list[str]:
    """What the rows must say of the first `seen` keys, in their order."""
    raised = np.exp(SCORES[query, :seen])
    weights = raised / raised.sum()
    rows = zip(range(seen), TOKENS, SCORES[query], weights, strict=False)
    return [
        f"{i}{t.replace(' ', '·')}{s:.2f}".replace("-", "−") + share(w)
        for i, t, s, w in rows
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_by_mouse(
    saved: Callable[..., Page], shot: Any, serious: Any, theme: str
) -> None:
    page = saved(QueryKeyView(TOKENS, Q, K), theme=theme)
    rows = page.locator(".mll-qk-keys li")
    expect(rows).to_have_text(shown(2, 3))
    about = page.locator(".mll-qk-about")
    rows.nth(1).locator("canvas").nth(1).hover(position={"x": 190, "y": 5})
    expect(about).to_contain_text("query ·barks, key ·dog, number 3: 3 × 2 = 6")
    expect(about).to_contain_text("sum of 4 products is 4.3; over √4: 2.15")
    expect(about).to_contain_text("Largest products: 3 (6), 0 (0.3)")
    page.get_by_label("query", exact=True).fill("1")
    expect(rows).to_have_text(shown(1, 2))  # the third key lies ahead
    page.get_by_label("keys").first.select_option("weight")
    expect(rows.first).to_have_text(shown(1, 2)[1])
    assert serious(page) == []
    shot(page, f"query_key_{theme}")


def test_all_keys_without_a_mask(saved: Callable[..., Page]) -> None:
    page = saved(QueryKeyView(TOKENS, Q, K, causal=False))
    page.get_by_label("query", exact=True).fill("0")
    expect(page.locator(".mll-qk-keys li")).to_have_text(shown(0, 3))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_signs_do_not_hang_on_colour(
    saved: Callable[..., Page], theme: str
) -> None:
    page = saved(QueryKeyView(TOKENS, Q, K), theme=theme)
    pixels = """(canvas) => [canvas.height, Array.from(canvas.getContext("2d")
        .getImageData(0, 0, canvas.width, canvas.height).data)]"""
    strips = page.locator("canvas")  # of the query, then two of each key
    drawn = [Q[2], *(row for k in K for row in (k, Q[2] * k))]
    tops = [abs(Q).max(), *[abs(K).max(), abs(Q[2] * K).max()] * 3]
    for i, (values, most) in enumerate(zip(drawn, tops, strict=True)):
        high, found = strips.nth(i).evaluate(pixels)
        image = np.array(found).reshape(high, 4, 4).astype(int)
        painted, middle = image[..., 3] > 0, high // 2
        assert painted[middle].all()  # the line that stands for 0
        above, below = painted[:middle].sum(0), painted[middle + 1 :].sum(0)
        np.testing.assert_array_equal(np.sign(above - below), np.sign(values))
        assert (abs((above - below) / middle - values / most) < 0.1).all()
        # And the colour says it again: blue above, orange below.
        blue = (image[..., 2] - image[..., 0])[
            painted & (np.arange(high) != middle)[:, None]
        ]
        assert (blue > 0).sum() == above.sum()
        assert (blue < 0).sum() == below.sum()


def test_the_keyboard_alone(saved: Callable[..., Page]) -> None:
    page = saved(QueryKeyView(TOKENS, Q, K))
    for _ in range(3):
        page.keyboard.press("Tab")
    rows = page.locator(".mll-qk-keys li")
    expect(rows.nth(2)).to_be_focused()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    expect(rows.nth(1)).to_be_focused()
    expect(page.locator("[aria-live]")).to_contain_text(
        "key ·dog, number 1: −2 × 0.25 = −0.5"
    )
    page.keyboard.press("End")
    expect(page.locator("[aria-live]")).to_contain_text("number 3: 3 × 2 = 6")
    page.keyboard.press("Enter")
    expect(rows).to_have_text(shown(1, 2))
    expect(page.locator("[aria-live]")).to_contain_text("query 1 ·dog looks most at")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


@pytest.mark.parametrize("width", [420, 1200])
def test_quick_and_within_its_cell(
    saved: Callable[..., Page], shot: Any, width: int
) -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 128, 64))
    page = saved(QueryKeyView([" token"] * 128, q, k), width=width)
    times = [
        frame_after(page, '[aria-label="query"]', "input", 120 + i) for i in range(8)
    ]
    assert sorted(times)[4] < 200
    expect(page.locator(".mll-qk-keys li")).to_have_count(128)
    assert page.locator(".mll").evaluate("e => e.scrollWidth <= e.clientWidth")
    shot(page, f"query_key_{width}")


def test_text_stays_text(saved: Callable[..., Page]) -> None:
    bad = ["<img src=x onerror=document.title='taken'>", "</script>", "שלום"]
    page = saved(QueryKeyView(bad, Q, K))
    expect(page.locator(".mll-qk-keys li")).to_have_count(3)
    assert page.locator(".mll img, .mll script").count() == 0
    assert page.title() == "Query and keys · minillama"
    page = saved(QueryKeyView(bad, Q, K[:2]))
    expect(page.get_by_role("alert")).to_contain_text("k has the shape (2, 4)")
