"""The views that need no kernel once shown: in JupyterLab, in both its themes."""

from typing import Any

from playwright.sync_api import expect

CELL = """
import numpy as np
from IPython.display import display
from minillama.widgets import *
tokens, rng = ["the", " dog", " barks"], np.random.default_rng(0)
cells = [[[("cat", 0.5), ("dog", 0.25)]] * 3] * 2
display(LogitLensView(tokens, cells), RopeClocks([1.0, 0.1]), CacheView())
display(ValuesView(tokens, [1.0, -2.0, 0.0]))
display(QueryKeyView(tokens, *rng.random((2, 3, 4))), ValuesView(tokens, [1.0]))
"""


def test_in_jupyterlab(lab: Any, tab: Any, shot: Any, serious: Any) -> None:
    page = tab(width=1000, height=2400)
    lab.run(page, [CELL], "dark")
    views = page.locator(".mll")
    expect(views).to_have_count(6, timeout=20_000)
    expect(views.nth(0).locator(".mll-lens-grid td")).to_have_count(6)
    expect(views.nth(3).locator(".mll-value").nth(1)).to_have_text("·dog−−−")
    expect(views.nth(5).get_by_role("alert")).to_contain_text("shape (1,)")
    views.nth(0).locator(".mll-lens-grid td").first.click()
    page.keyboard.press("ArrowDown")  # which must not leave the notebook's cell
    expect(views.nth(0).locator("h3")).to_have_text("layer 0, position 0, after the")
    views.nth(1).get_by_label("query at m").fill("20")
    expect(views.nth(1).locator(".mll-clocks-dot")).to_contain_text("distance 13")
    views.nth(2).get_by_label("bytes each").select_option("4")
    expect(views.nth(2).locator(".mll-cache-size")).to_have_text("2.00 GiB")
    views.nth(4).get_by_label("query", exact=True).fill("0")
    expect(views.nth(4).locator(".mll-qk-keys li")).to_have_count(1)
    for theme in ("dark", "light"):
        lab.theme(page, theme)
        # Nothing is the page's own ground, in shades too: dark in the dark theme.
        for where in (views.nth(0), views.nth(3).locator(".mll-value").nth(2)):
            ground = where.evaluate("e => getComputedStyle(e).backgroundColor")
            bright = sum(int(n) for n in ground.strip("rgb()").split(",")[:3])
            assert bright < 150 if theme == "dark" else bright > 600
        assert serious(page) == []
        shot(page, f"array_views_lab_{theme}")
