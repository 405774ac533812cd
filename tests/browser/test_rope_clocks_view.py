"""The clocks of RoPE in a browser: by mouse, by keyboard, in light and dark."""

import cmath
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from view_speed import frame_after

from minillama.widgets import RopeClocks

FREQUENCIES = [10_000 ** (-i / 4) for i in range(4)]
SCALED = [*FREQUENCIES[:3], FREQUENCIES[3] / 8]
Q = [0.5, -1.0, 0.25, 2.0, 1.0, 0.0, -0.5, 1.5]
K = [1.0, 1.0, -0.75, 0.5, 0.25, 1.0, 2.0, 1.0]


def dot(m: int, n: int, frequencies: list[float] = FREQUENCIES) -> str:
    """With complex numbers, one a pair: what the page does with sines."""
    q, k = ([complex(*v[i : i + 2]) for i in range(0, 8, 2)] for v in (Q, K))
    parts = (
        (a * cmath.exp(1j * m * f) * (b * cmath.exp(1j * n * f)).conjugate()).real
        for a, b, f in zip(q, k, frequencies, strict=True)
    )
    return f"{sum(parts):.4f}".replace("-", "−")


def clocks(**more: Any) -> RopeClocks:
    return RopeClocks(FREQUENCIES, (5, 2), scaled=SCALED, vectors=(Q, K), **more)


def shown(page: Page) -> str:
    return page.locator(".mll-clocks-dot b").inner_text()


def drag(page: Page, label: str, value: int) -> None:
    page.get_by_label(label).fill(str(value))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_by_mouse(
    saved: Callable[..., Page], shot: Any, serious: Any, theme: str
) -> None:
    page = saved(clocks(), theme=theme)
    assert shown(page) == dot(5, 2)
    drag(page, "query at m", 50)
    assert shown(page) == dot(50, 2) != dot(5, 2)
    drag(page, "query at m", 5)
    page.get_by_role("button", name="move both together").click()
    drag(page, "query at m", 68)
    expect(page.get_by_label("key at n")).to_have_value("65")
    assert shown(page) == dot(5, 2)
    drag(page, "key at n", 100)  # the query cannot go further than 100
    expect(page.get_by_label("key at n")).to_have_value("97")
    assert shown(page) == dot(5, 2)
    rows = page.locator(".mll-clocks-table tbody tr")
    both = f"{dot(5, 2)}{dot(5, 2, SCALED)}"
    expect(rows).to_have_text(
        [
            f"now10097{both}",
            f"+110198{both}",
            f"+10110107{both}",
            f"+1,00011001097{both}",
        ]
    )
    page.locator(".mll-clock").nth(3).hover()
    about = page.locator(".mll-clocks-about")
    expect(about).to_contain_text("Pair 3 turns 0.00100 rad a token")
    expect(about).to_contain_text("8.00 times slower")
    expect(about).to_contain_text("Query at 6°, key at 6°, between them 0°")
    assert serious(page) == []
    shot(page, f"clocks_{theme}")


def test_the_hands_point_where_the_angles_say(saved: Callable[..., Page]) -> None:
    page = saved(clocks())
    face = page.locator(".mll-face").first
    hands = [hand.get_attribute("style") for hand in face.locator(".mll-hand").all()]
    angles = [float(re.findall(r"rotate\((\S+)rad", style)[0]) for style in hands]
    assert angles == [-5, -2, -5, -2]  # two thin ones, then the two
    slow = page.locator(".mll-face").nth(3).locator(".mll-hand")
    found = slow.evaluate_all("all => all.map((one) => one.style.transform)")
    thin, full = (float(re.findall(r"rotate\((\S+)rad", found[i])[0]) for i in (0, 2))
    assert thin == pytest.approx(full / 8)
    # The query's hand of pair 0, 5 rad against the clock from three, ends bottom right.
    box, middle = face.locator(".mll-hand").nth(2).bounding_box(), face.bounding_box()
    assert box is not None
    assert middle is not None
    assert box["x"] >= middle["x"] + middle["width"] / 2 - 3
    assert box["y"] >= middle["y"] + middle["height"] / 2 - 3


def test_the_wedge_keeps_its_size(saved: Callable[..., Page]) -> None:
    page = saved(clocks())
    wedge = page.locator(".mll-wedge").first

    def opened() -> float:
        shade = wedge.evaluate("e => e.style.background")
        return float(re.findall(r"([\d.]+)rad", shade.split("from")[1])[1])

    assert opened() == pytest.approx(3)
    page.get_by_role("button", name="move both together").click()
    drag(page, "query at m", 40)
    assert opened() == pytest.approx(3)
    page.get_by_role("button", name="move both together").click()
    drag(page, "query at m", 50)  # a distance of 13 is two turns and 0.43
    assert opened() == pytest.approx(13 - 4 * cmath.pi)


def test_the_keyboard_alone(saved: Callable[..., Page]) -> None:
    page = saved(clocks())
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert shown(page) == dot(6, 2)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Home")  # the key goes to 0, the query with it
    expect(page.get_by_label("query at m")).to_have_value("4")
    assert shown(page) == dot(6, 2)
    expect(page.locator("[aria-live]")).to_have_text(
        f"m 4, n 0, difference 4, dot product {dot(6, 2)}"
    )
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".mll-clock").nth(1)).to_be_focused()
    expect(page.locator(".mll-clocks-about")).to_contain_text("Pair 1")
    page.keyboard.press("End")
    expect(page.locator(".mll-clock").nth(3)).to_be_focused()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


def test_the_plot_is_drawn_and_repainted(saved: Callable[..., Page]) -> None:
    page = saved(clocks())
    ink = """(canvas) => canvas.getContext("2d")
        .getImageData(0, 0, canvas.width, canvas.height).data
        .reduce((sum, v, i) => sum + (i % 4 < 3 ? v : 0), 0)"""
    canvas = page.locator("canvas")
    light = canvas.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector(".mll-night")
    page.evaluate("new Promise((done) => setTimeout(done, 60))")
    assert canvas.evaluate(ink) > light > 0
    expect(canvas).to_have_attribute(
        "aria-label",
        "dot product against the distance m − n, from -100 to 100; now 3",
    )


@pytest.mark.parametrize("width", [420, 1200])
def test_64_clocks_are_quick_and_fit(
    saved: Callable[..., Page], shot: Any, width: int
) -> None:
    many = [500_000 ** (-i / 64) for i in range(64)]
    page = saved(RopeClocks(many, scaled=many, longest=8000), width=width)
    times = [
        frame_after(page, '[aria-label="query at m"]', "input", 100 * i)
        for i in range(1, 10)
    ]
    assert sorted(times)[4] < 200
    expect(page.locator("canvas")).to_have_attribute("aria-label", re.compile("893$"))
    assert page.locator(".mll").evaluate("e => e.scrollWidth <= e.clientWidth")
    shot(page, f"clocks_{width}")


def test_a_sentence_in_its_place(saved: Callable[..., Page]) -> None:
    page = saved(RopeClocks([1.0, float("nan")]))
    expect(page.get_by_role("alert")).to_contain_text("finite and above 0")
