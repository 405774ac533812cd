"""The KV cache's view in a browser: the page's sums are those of LlamaConfig."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from view_speed import frame_after

from minillama.config import PRESETS
from minillama.widgets import CacheView

MODELS = {
    name: {**asdict(config), "weight_bytes": 2 * config.n_params()}
    for name, config in PRESETS.items()
}


def shown(page: Page) -> int:
    text = page.locator(".mll-cache-formula").inner_text()
    return int(text.split(" bytes")[0].replace(",", ""))


def slide(page: Page, label: str, value: int) -> None:
    """Move a slider until it says that value, as a hand does."""
    field = page.get_by_label(label, exact=True)
    for step in range(int(field.get_attribute("max") or 0) + 1):
        field.fill(str(max(step, int(field.get_attribute("min") or 0))))
        if field.get_attribute("aria-valuetext") == f"{value:,}":
            return
    raise AssertionError(f"{label} has no {value}")


def test_equal_to_the_config(saved: Callable[..., Page]) -> None:
    page = saved(CacheView(MODELS))
    for name, config in PRESETS.items():
        page.get_by_label("model").select_option(name)
        expected = config.kv_cache_bytes(tokens=8192, dtype=np.dtype("float16"))
        assert shown(page) == expected
    own = replace(
        PRESETS["llama3-8b"], n_layers=7, n_heads=24, n_kv_heads=6, head_dim=100
    )
    page.get_by_label("layers", exact=True).fill("7")
    page.get_by_label("query heads").fill("24")
    slide(page, "KV heads", 6)
    page.get_by_label("head size").fill("100")
    slide(page, "tokens", 49152)
    slide(page, "batch", 24)
    expect(page.get_by_label("model")).to_have_value("own numbers")
    for width, dtype in (("2", "float16"), ("4", "float32"), ("1", "int8")):
        page.get_by_label("bytes each").select_option(width)
        assert shown(page) == own.kv_cache_bytes(
            tokens=49152, dtype=np.dtype(dtype), batch=24
        )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_by_mouse(
    saved: Callable[..., Page], shot: Any, serious: Any, theme: str
) -> None:
    page = saved(CacheView(MODELS), theme=theme)
    expect(page.locator(".mll-cache-size")).to_have_text("1.00 GiB")
    kinds = page.locator(".mll-cache-kinds .mll-cache-row")
    expect(kinds).to_have_text(
        [
            "MHA, 32 KV heads4.00 GiB",
            "GQA, 8 KV heads1.00 GiB, 4 times less",
            "MQA, 1 KV head128 MiB, 32 times less",
        ]
    )
    widths = [
        bar.evaluate("e => e.getBoundingClientRect().width")
        for bar in page.locator(".mll-cache-kinds .mll-cache-fill").all()
    ]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    fits = page.locator(".mll-cache-fits .mll-cache-row")
    # Weights of 16,060,522,496 bytes, and 131,072 bytes a token.
    expect(fits).to_have_text(
        [
            "8 GiBthe weights alone are too much",
            "16 GiBfits, 43.49 MiB free; room for 8,539 tokens",
            re.compile("24 GiBfits, 8.04 GiB free; room for 74,0"),
            re.compile("80 GiBfits, 64.04 GiB free"),
        ]
    )
    shot(page, f"cache_{theme}")
    page.get_by_role("button", name="count the weights").click()
    expect(fits.first).to_have_text("8 GiBfits, 7.00 GiB free; room for 65,536 tokens")
    slide(page, "batch", 16)
    expect(fits.first).to_have_text(
        "8 GiB8.00 GiB too much; room for 4,096 tokens each"
    )
    expect(fits.first.locator(".mll-cache-over")).to_have_count(1)
    page.get_by_label("query heads").fill("12")  # 8 does not divide 12: the nearest
    expect(kinds.nth(1)).to_contain_text("GQA, 6 KV heads")
    assert serious(page) == []


def test_the_keyboard_alone(saved: Callable[..., Page]) -> None:
    page = saved(CacheView(MODELS))
    page.keyboard.press("Tab")
    expect(page.get_by_label("model")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.get_by_label("KV heads")).to_be_focused()
    page.keyboard.press("ArrowRight")  # 1, 2, 4, 8, 16, 32: the divisors
    expect(page.locator(".mll-cache-size")).to_have_text("2.00 GiB")
    expect(page.locator("[aria-live]")).to_contain_text("2.00 GiB. 8 GiB: fits, 6.00")
    page.keyboard.press("Home")
    expect(page.locator(".mll-cache-size")).to_have_text("128 MiB")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


@pytest.mark.parametrize("width", [420, 1200])
def test_quick_and_within_its_cell(
    saved: Callable[..., Page], shot: Any, width: int
) -> None:
    page = saved(CacheView(MODELS), width=width)
    times = [
        frame_after(page, '[aria-label="tokens"]', "input", i) for i in range(1, 20)
    ]
    assert sorted(times)[9] < 200
    assert page.locator(".mll").evaluate("e => e.scrollWidth <= e.clientWidth")
    shot(page, f"cache_{width}")


def test_text_stays_text(saved: Callable[..., Page]) -> None:
    name = "</script><img src=x onerror=document.title='taken'>"
    page = saved(CacheView({name: MODELS["llama3-8b"]}))
    expect(page.get_by_label("model")).to_have_value(name)
    assert page.locator(".mll img").count() == 0
    page = saved(CacheView({}))
    expect(page.get_by_role("alert")).to_contain_text("no model is given")
