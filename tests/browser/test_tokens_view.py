"""The tokens view: what it shows, by mouse, by keyboard, and from a kernel."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from minillama.widgets import TokensView


def letters(text: str) -> list[tuple[int, bytes]]:
    """A tokenizer that anybody can check: a token a character."""
    return [(ord(c), c.encode("utf-8", "replace")) for c in text]


def words(text: str) -> list[tuple[int, bytes]]:
    return [(len(w), w.encode()) for w in text.split()]


def view(text: str) -> TokensView:
    return TokensView(text, {"letters": letters, "words": words})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_saved_page(
    saved: Callable[..., Page], shot: Any, serious: Any, theme: str
) -> None:
    page = saved(view("the dog"), theme=theme)
    first, second = page.locator(".mll-chips").all()
    expect(first.locator("li")).to_have_text(
        ["t116", "h104", "e101", "·32", "d100", "o111", "g103"]
    )
    expect(second.locator("li")).to_have_count(2)
    expect(page.get_by_text("letters 7 tokens, 1.00 bytes a token")).to_be_visible()
    first.locator("li").nth(4).hover()
    expect(
        page.get_by_text("token 5 of 7 in letters: d, id 100, bytes 64")
    ).to_have_count(2)
    expect(page.get_by_label("text", exact=True)).to_be_disabled()
    assert serious(page) == []
    shot(page, f"tokens_{theme}")


def test_the_keyboard_alone(saved: Callable[..., Page]) -> None:
    page = saved(view("the dog"))
    page.keyboard.press("Tab")
    expect(page.locator(".mll-chips li").first).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("token 3 of 7 in letters: e")).to_have_count(2)
    page.keyboard.press("End")
    expect(page.get_by_text("token 7 of 7 in letters: g")).to_have_count(2)
    page.keyboard.press("Tab")
    expect(page.get_by_text("token 1 of 2 in words: the")).to_have_count(2)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


@pytest.mark.parametrize(
    "text",
    [
        "<script>document.title='taken'</script>",
        "<img src=x onerror=document.title='taken'>",
        "</script><!-- {{esm}} {{data}}",
        "שלום עולם",
        "e\u0301\u0301 \u202eabc",
        "\x00\x07\n\t",
        "",
    ],
)
def test_text_stays_text(saved: Callable[..., Page], text: str) -> None:
    page = saved(view(text))
    expect(page.get_by_label("text", exact=True)).to_have_value(text)
    assert page.locator(".mll-chips").first.locator("li").count() == len(text)
    assert page.locator(".mll img, .mll script").count() == 0
    assert page.title() == "Tokens · minillama"


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: TokensView("x", {}), "no tokenizer is given"),
        (lambda: view("x" * 30_000), "30,000 characters"),
    ],
)
def test_a_sentence_in_its_place(
    saved: Callable[..., Page], made: Any, sentence: str
) -> None:
    page = saved(made())
    expect(page.get_by_role("alert")).to_contain_text(sentence)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_jupyterlab(lab: Any, tab: Any, shot: Any, serious: Any, theme: str) -> None:
    page = tab(width=1000, height=900)
    lab.run(
        page,
        [
            "from minillama.widgets import TokensView\n"
            "def letters(text):\n"
            "    if 'q' in text: raise RuntimeError('no q today')\n"
            "    return [(ord(c), c.encode()) for c in text]\n"
            "TokensView('dog', {'letters': letters})"
        ],
        theme,
    )
    chips = page.locator(".mll-chips li")
    expect(chips).to_have_text(["d100", "o111", "g103"])
    field = page.get_by_label("text", exact=True)
    field.fill("cats")
    expect(chips).to_have_text(["c99", "a97", "t116", "s115"])
    field.press_sequentially("q")
    expect(page.get_by_role("alert")).to_have_text("RuntimeError: no q today")
    field.fill("ok")
    expect(chips).to_have_text(["o111", "k107"])
    expect(page.locator(".mll-sentence")).to_be_hidden()
    ground = page.locator(".mll").evaluate("e => getComputedStyle(e).backgroundColor")
    dark = sum(int(n) for n in ground.strip("rgb()").split(",")[:3]) < 380
    assert dark == (theme == "dark")
    assert serious(page) == []
    shot(page, f"tokens_lab_{theme}")
