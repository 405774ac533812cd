"""The next-token view: bars against minillama's own sampler, the tree, the strip."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect

from minillama.sampling import Sampler
from minillama.widgets import NextTokenView

V = 4000
START = [11, 12, 13, 14]


def logits(ids: list[int]) -> np.ndarray:
    """Another row after each prefix, spread as a model's are."""
    return 2.5 * np.random.default_rng(ids).standard_normal(V)


def name(id: int) -> str:
    return f" w{id}"


def view(**options: Any) -> NextTokenView:
    return NextTokenView(logits, START, name, **{"special": [11], **options})


def ranked(*ids: int) -> list[int]:
    """The likeliest tokens after the start and these, by numpy alone."""
    return np.argsort(-logits([*START, *ids])).tolist()


def logprob(id: int, *before: int) -> float:
    return torch.tensor(logits([*START, *before])).log_softmax(-1)[id].item()


def bars(page: Page) -> Any:
    return page.locator(".mll-nt-bars button")


def items(page: Page) -> Any:
    return page.get_by_role("treeitem")


def shown(text: str) -> float:
    """A number off the page, as a probability."""
    if text.startswith(("cut", "<")):
        return 0.0
    return float(text.replace("%", "")) / 100


def table(page: Page) -> dict[str, tuple[int, float]]:
    """Of each limit: tokens kept, and the probability that they had."""
    rows = [row.inner_text().split("\t") for row in page.locator("tbody tr").all()]
    number = re.compile(r"[^0-9]")
    return {r[0]: (int(number.sub("", r[2])), shown(r[3])) for r in rows}


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 2},
    {"temperature": 0.05},
    {"temperature": 0},
    {"temperature": 0.5, "top_k": 40},
    {"top_k": 1},
    {"temperature": 1.9, "top_k": 1000},
    {"top_p": 0.9},
    {"top_p": 0.01},
    {"temperature": 1.5, "top_p": 0.99},
    {"min_p": 0.05},
    {"min_p": 1},
    {"temperature": 1.4, "top_k": 20, "top_p": 0.8, "min_p": 0.15},
    {"temperature": 0.7, "top_k": 300, "top_p": 0.95, "min_p": 0.02},
]
COUNTS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300]
COUNTS += [500, 750, 1000]


def set_to(page: Page, setting: dict[str, Any]) -> None:
    page.get_by_role("button", name="reset sliders").click()
    for key, value in setting.items():
        label = key.replace("top_", "top-").replace("min_", "min-")
        value = COUNTS.index(value) if key == "top_k" else value
        page.get_by_label(label, exact=True).fill(str(value))


def test_bars_equal_the_sampler(saved: Callable[..., Page]) -> None:
    page = saved(view())
    row = torch.tensor(logits(START), dtype=torch.float32)[None]
    order = row[0].argsort(descending=True).tolist()
    model = row.softmax(-1)[0]
    for setting in SETTINGS:
        set_to(page, setting)
        sampler = Sampler(**setting)
        limited = sampler.limit(row)[0]
        if sampler.temperature == 0:
            limited = limited.where(torch.arange(V) == sampler(row), -torch.inf)
        drawn = limited.softmax(-1)
        kept = limited.isfinite()
        cells = bars(page).evaluate_all(
            "rows => rows.map(r => [...r.children].slice(-2).map(c => c.textContent))"
        )
        assert len(cells) == 50
        for id, (before, after) in zip(order, cells, strict=False):
            assert abs(shown(before) - model[id].item()) <= 1e-4, setting
            assert abs(shown(after) - drawn[id].item()) <= 1e-4, setting
            assert after.startswith("cut") != kept[id].item(), (setting, after)
        others = page.get_by_text("more tokens: model").inner_text()
        far = drawn.sum() - drawn[order[:50]].sum()
        assert abs(shown(others.split("drawn ")[1]) - far.item()) <= 1e-4, setting
        # What it keeps of the tempered distribution, in tokens and in probability.
        count, mass = table(page)["together"]
        tempered = (row[0] / max(sampler.temperature, 1e-6)).softmax(-1)
        expected = int(kept.sum())
        in_bins = expected > 1000 and len(setting) == 2
        assert abs(count - expected) <= (8 if in_bins else 0), setting
        if sampler.temperature:
            assert abs(mass - tempered[kept].sum().item()) <= 1e-4, setting
        assert f"Sampler({', '.join(f'{k}={v}' for k, v in setting.items())})" == (
            page.locator("code").inner_text()
        )


def test_each_limit_by_itself(saved: Callable[..., Page]) -> None:
    page = saved(view())
    setting = {"temperature": 1.3, "top_k": 12, "top_p": 0.7, "min_p": 0.1}
    set_to(page, setting)
    row = torch.tensor(logits(START), dtype=torch.float32)[None]
    heat = (row / 1.3).softmax(-1)
    for label, key in (("top-k", "top_k"), ("top-p", "top_p"), ("min-p", "min_p")):
        sampler = Sampler(temperature=1.3, **{key: setting[key]})  # type: ignore[arg-type]
        kept = sampler.limit(row).isfinite()
        count, mass = table(page)[label]
        assert count == int(kept.sum())
        assert abs(mass - heat[kept].sum().item()) <= 1e-4
        marks = page.locator(".mll-nt-bars .mll-nt-marks").evaluate_all(
            "all => all.map(m => [...m.children].map(c => c.matches('.mll-nt-on')))"
        )
        column = "kpm".index(label[-1] if label != "min-p" else "m")
        column = {"top-k": 0, "top-p": 1, "min-p": 2}[label]
        assert sum(mark[column] for mark in marks) == min(50, count)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_by_mouse(
    saved: Callable[..., Page], shot: Any, serious: Any, theme: str
) -> None:
    page = saved(view(), theme=theme, width=1200, height=900)
    a, b = ranked()[1], ranked(ranked()[1])[2]
    expect(items(page)).to_have_count(1)
    bars(page).nth(1).click()
    expect(items(page)).to_have_count(2)
    expect(items(page).nth(1)).to_have_text(f"··w{a}{logprob(a):.2f}".replace("-", "−"))
    expect(page.get_by_text(f"After ·w{a}: entropy")).to_be_visible()
    bars(page).nth(2).click()
    total = f"{logprob(a) + logprob(b, a):.2f}".replace("-", "−")
    expect(page.get_by_text(f"Chosen: 2 tokens, ln p {total} together")).to_be_visible()
    # Back, and another branch.
    page.get_by_role("button", name="back").click()
    page.get_by_role("button", name="back").click()
    expect(bars(page).nth(1)).to_have_attribute(
        "aria-label", re.compile("in the tree$")
    )
    expect(page.get_by_text("Chosen: 2 tokens")).to_be_visible()  # the path stays
    bars(page).nth(0).click()
    expect(items(page)).to_have_count(4)
    levels = [item.get_attribute("aria-level") for item in items(page).all()]
    assert levels == ["1", "2", "3", "2"]
    expect(page.get_by_text("Chosen: 1 token,")).to_be_visible()
    items(page).nth(2).click()
    expect(page.get_by_text(f"After ·w{b}: entropy")).to_be_visible()
    expect(items(page).nth(2)).to_have_attribute("aria-selected", "true")
    set_to(page, {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05})
    expect(page.locator(".mll-nt-cut").first).to_be_visible()
    assert serious(page) == []
    shot(page, f"next_token_{theme}")


def test_by_keyboard_alone(saved: Callable[..., Page]) -> None:
    page = saved(view())
    focused = page.locator(":focus")

    def press(*keys: str) -> None:
        for key in keys:
            page.keyboard.press(key)

    press("Tab")  # the strip, at its chosen token
    expect(focused).to_have_attribute("aria-label", re.compile(r"token 4: ·w14, surp"))
    expect(page.locator(".mll-note", has_text="token 4: ·w14")).to_be_visible()
    press("Home")
    expect(focused).to_have_attribute("aria-label", re.compile("special token, the fi"))
    press("Tab", "ArrowLeft", "ArrowLeft")
    expect(page.get_by_label("temperature", exact=True)).to_have_attribute(
        "aria-valuetext", "0.90"
    )
    expect(page.locator("[aria-live]")).to_contain_text("4,000 tokens kept")
    press("Tab", "Home")
    expect(page.locator("[aria-live]")).to_contain_text("1 tokens kept, ")
    expect(page.get_by_label("top-k", exact=True)).to_have_attribute(
        "aria-valuetext", "1"
    )
    press(*["Tab"] * 3, "Enter")  # take the likeliest
    expect(items(page)).to_have_count(2)
    press(*["Tab"] * 4)
    expect(focused).to_have_text("reset sliders")
    press("Tab", "ArrowDown", "ArrowDown")
    expect(focused).to_have_attribute("aria-label", re.compile(r"3: .*cut by top-k"))
    press("Enter")  # a token that is cut can be taken all the same
    expect(items(page)).to_have_count(3)
    expect(focused).to_have_attribute("aria-label", re.compile("^1: "))
    press("Tab")
    expect(focused).to_have_attribute("role", "treeitem")
    expect(focused).to_have_attribute("aria-level", "3")
    press("ArrowLeft")
    expect(focused).to_have_attribute("aria-level", "2")
    expect(page.get_by_text(f"After ·w{ranked()[0]}: entropy")).to_be_visible()
    press("ArrowLeft")
    expect(focused).to_have_attribute("aria-expanded", "false")
    expect(items(page)).to_have_count(2)
    press("ArrowRight")
    expect(items(page)).to_have_count(3)
    press("ArrowRight")
    expect(focused).to_have_attribute("aria-level", "3")
    press("Home")
    expect(focused).to_have_attribute("aria-level", "1")
    press("ArrowDown")
    expect(focused).to_have_attribute("aria-level", "2")
    press("End")
    expect(focused).to_have_attribute("aria-level", "3")
    expect(focused).to_have_attribute("aria-selected", "true")
    assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"


def dart(seed: int, n: int) -> float:
    """mulberry32, the n-th number of a seed."""
    low = 0xFFFFFFFF
    a = (seed + (n + 1) * 0x6D2B79F5) & low
    t = ((a ^ a >> 15) * (a | 1)) & low
    t = (t ^ (t + (t ^ t >> 7) * (t | 61))) & low
    return ((t ^ t >> 14) & low) / 2**32


def test_sample_one(saved: Callable[..., Page]) -> None:
    page = saved(view())
    set_to(page, {"top_k": 3})
    p = np.exp(logits(START)[ranked()[:3]])
    taken = set()
    for seed in range(8):
        page.get_by_label("seed").fill(str(seed))
        page.get_by_role("button", name="sample one").click()
        wanted = int(np.searchsorted(np.cumsum(p / p.sum()), dart(seed, 0)))
        expect(page.get_by_text(f"After ·w{ranked()[wanted]}: ent")).to_be_visible()
        taken.add(wanted)
        page.get_by_role("button", name="back").click()
        expect(page.get_by_text("After ·w14: ent")).to_be_visible()
    assert taken == {0, 1, 2}
    # Same seed, same token; a token far down was not recorded, and that is said.
    expect(items(page)).to_have_count(4)
    set_to(page, {"temperature": 2})
    far = next(s for s in range(99) if dart(s, 0) > 0.99)
    page.get_by_label("seed").fill(str(far))
    page.get_by_role("button", name="sample one").click()
    expect(page.get_by_role("alert")).to_contain_text("has no Python behind it")
    expect(items(page)).to_have_count(4)
    page.get_by_role("button", name="take the likeliest").click()
    expect(page.locator(".mll-sentence")).to_be_hidden()


def test_surprise_along_the_text(saved: Callable[..., Page]) -> None:
    page = saved(view())
    bars(page).nth(2).click()
    a = ranked()[2]
    chips = page.locator(".mll-nt-chip")
    expect(chips).to_have_count(5)
    rows = [torch.tensor(logits([*START, a][:n])).log_softmax(-1) for n in range(1, 5)]
    for i, (row, id) in enumerate(zip(rows, [*START, a][1:], strict=True), 2):
        bits = -row[id].item() / np.log(2)
        entropy = -(row.exp() * row).sum().item() / np.log(2)
        said = f"surprise {bits:.2f} bits, entropy before it {entropy:.2f} bits"
        label = re.compile(rf"token {i}: ·w{id}, {said}")
        expect(chips.nth(i - 1)).to_have_attribute("aria-label", label)
    heights = page.locator(".mll-nt-two .mll-nt-surprise").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().height)"
    )
    bits = np.array([-rows[i][id].item() for i, id in enumerate([*START, a][1:])])
    np.testing.assert_allclose(
        np.array(heights[1:]) / max(heights), bits / max(bits), atol=0.03
    )
    # A prefix of the start can be looked at, and a branch can leave it there.
    chips.nth(1).click()
    expect(page.get_by_text("After ·w12: entropy")).to_be_visible()
    expect(bars(page).first).to_contain_text(f"·w{np.argmax(logits(START[:2]))}")


def test_branches_that_were_opened_are_in_the_page(saved: Callable[..., Page]) -> None:
    it = view()
    far = ranked()[2345]
    it.answer("after", {"at": 4, "branch": [far]})
    it.answer("after", {"at": 4, "branch": [far, 5]})
    it.answer("after", {"at": 2, "branch": [9]})
    page = saved(it, width=420, height=900)
    expect(items(page)).to_have_count(5)
    texts = [
        re.sub("^[▾·]", "", t).split("−")[0] for t in items(page).all_inner_texts()
    ]
    assert [re.sub(r"\s", "", t) for t in texts] == [
        "·w11·w12given", "·w13·w14given", f"·w{far}", "·w5", "·w9"
    ]  # fmt: skip
    items(page).nth(3).click()
    expect(page.get_by_text("After ·w5: entropy")).to_be_visible()
    expect(items(page).nth(2)).to_contain_text(f"{logprob(far):.2f}".replace("-", "−"))
    p = torch.tensor(logits([*START, far])).softmax(-1)
    entropy = torch.distributions.Categorical(p).entropy() / np.log(2)
    label = re.compile(f"entropy before it {entropy:.2f} bits")
    expect(page.locator(".mll-nt-chip").last).to_have_attribute("aria-label", label)
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= 420


def test_sliders_are_instant(
    saved: Callable[..., Page], record_property: Callable[[str, object], None]
) -> None:
    size, start = 32_000, list(range(128))
    row = 2.5 * np.random.default_rng(0).standard_normal(size)
    page = saved(NextTokenView(lambda ids: row, start, name))
    worst = page.evaluate(
        """async () => {
            const frame = () => new Promise(requestAnimationFrame);
            let worst = 0;
            for (const name of ["temperature", "top-p", "min-p"])
                for (let i = 1; i < 8; i++) {
                    const field = document.querySelector(`[aria-label="${name}"]`);
                    await frame();
                    const begun = performance.now();
                    field.value = 0.1 * i;
                    field.dispatchEvent(new Event("input"));
                    document.body.offsetHeight;
                    worst = Math.max(worst, performance.now() - begun);
                    await frame();
                }
            return worst;
        }"""
    )
    print(f"input to picture: {worst:.1f} ms at worst")
    record_property("milliseconds", worst)
    assert worst < 200


TEXTS = [
    "<script>document.title='taken'</script>",
    "<img src=x onerror=document.title='taken'>",
    "</script><!-- {{esm}}",
    "שלום",
    "\u0301\u0301",
    "\u202eabc",
    "\n\t\x00",
    "",
]


def test_text_stays_text(saved: Callable[..., Page], serious: Any) -> None:
    row = -np.arange(len(TEXTS)) / 4
    page = saved(NextTokenView(lambda ids: row, range(8), TEXTS.__getitem__))
    for i in range(2):
        bars(page).nth(i).click()
        expect(items(page)).to_have_count(i + 2)
    labels = [bar.get_attribute("aria-label") or "" for bar in bars(page).all()]
    for label, start in zip(
        labels,
        [
            "<script>doc",
            "<img·src",
            "</script><!--·{{esm}}",
            "שלום",
            "◌́",
            "\\u{202e}abc",
            "⏎⇥\\u{0}",
            "∅",
        ],
        strict=True,
    ):
        assert label.split(": ", 1)[1].startswith(start)
    assert page.locator(".mll img, .mll script").count() == 0
    assert page.title() == "Next token · minillama"
    assert serious(page) == []


def test_a_sentence_in_its_place(saved: Callable[..., Page]) -> None:
    page = saved(NextTokenView(lambda ids: [1.0, float("nan")], [0], name))
    expect(page.get_by_role("alert")).to_contain_text("NaN or infinity 1 times in 2")


def test_2000_tokens(saved: Callable[..., Page]) -> None:
    page = saved(NextTokenView(lambda ids: [0.0, 1.0], [0, 1] * 1000, name))
    expect(page.locator(".mll-nt-chip")).to_have_count(128)
    expect(page.get_by_text("1,872 tokens, then")).to_be_visible()
    expect(page.locator(".mll-nt-chip").first).to_have_attribute(
        "aria-label", re.compile(r"token 1873: ·w0, surprise 1.89 bits")
    )
    bars(page).nth(1).click()
    expect(page.get_by_text("After ·w0: entropy")).to_be_visible()


def test_in_jupyterlab(lab: Any, tab: Any, shot: Any, serious: Any) -> None:
    page = tab(width=1000, height=1000)
    cells = [
        "from minillama.widgets import NextTokenView\n"
        "import numpy as np\n"
        "def logits(ids):\n"
        "    if ids[-1] == 2: raise KeyError('no two')\n"
        "    next = np.arange(2000) == ids[-1] + 1\n"
        "    return np.log(np.arange(1, 2001.)) + 12 * next\n"
        "v = NextTokenView(logits, [0, 1, 3, 4], lambda id: f' w{id}')\n"
        "v",
        "v",
    ]
    lab.run(page, cells, "dark")
    one, _ = page.locator(".mll").all()
    label = re.compile(r"token 3: ·w3, surprise \d")
    expect(one.locator(".mll-nt-chip").nth(2)).to_have_attribute("aria-label", label)
    one.get_by_label("temperature", exact=True).fill("2")
    one.get_by_label("seed").fill("6")
    # So hot that a token without a text of its own here is drawn: Python names it.
    one.get_by_role("button", name="sample one").click()
    expect(one.get_by_role("treeitem")).to_have_count(2)
    p = np.sqrt(np.exp(np.log(np.arange(1, 2001.0)) + 12 * (np.arange(2000) == 5)))
    order = np.argsort(-p, kind="stable")
    exact = order[np.searchsorted(np.cumsum(p[order] / p.sum()), dart(6, 0))]
    drawn = int(
        re.findall(r"w(\d+)", one.get_by_role("treeitem").nth(1).inner_text())[0]
    )
    assert abs(drawn - exact) <= 3
    one.locator(".mll-nt-bars button").nth(0).click()
    expect(one.get_by_role("treeitem")).to_have_count(3)
    assert serious(page) == []
    shot(page, "next_token_lab_dark")
    lab.theme(page, "light")
    assert serious(page) == []
    # The notebook's own keys (down: the next cell, a: a cell above) do not act here.
    one.locator(".mll-nt-bars button").nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("a")
    expect(one.locator(".mll-nt-bars button").nth(1)).to_be_focused()
    assert page.locator(".jp-Cell").count() == len(cells)
    # The kernel's own error, and the view goes on.
    one.locator(".mll-nt-chip").nth(1).click()
    expect(one.get_by_text("After ·w1: entropy")).to_be_visible()
    one.locator(".mll-nt-bars button", has_text="w2").first.click()
    sentence = "next_logits raised KeyError: 'no two'"
    expect(one.get_by_role("alert")).to_have_text(sentence)
    expect(one.get_by_text("After ·w1: entropy")).to_be_visible()
    one.get_by_role("button", name="take the likeliest").click()
    expect(one.get_by_role("alert")).to_have_text(sentence)
    one.get_by_role("button", name="back").click()
    expect(one.get_by_text("After ·w0: entropy")).to_be_visible()
    expect(one.locator(".mll-sentence")).to_be_hidden()
