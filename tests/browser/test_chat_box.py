"""The chat box: a saved conversation, and one with a kernel behind it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from minillama.widgets import ChatBox


def talked(*texts: str) -> ChatBox:
    """A box in which one question was answered, a piece a text."""
    chances = [0.9, 0.3, 0.04, 1.0, 0.0]

    def reply(messages: Any) -> Any:
        for text, p in zip(texts, chances, strict=False):
            top = [(text, p), (" other", 0.25), ("<b>", 0.125)]
            yield {"text": text, "probability": p, "top": top}

    box = ChatBox(reply, messages=[{"role": "system", "content": "Be short."}])
    thread = box._answering("q", "Why\nso?")
    thread.start()
    thread.join(10)
    return box


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_saved_page(
    saved: Callable[..., Page], shot: Any, serious: Any, theme: str
) -> None:
    page = saved(talked("For", " the", " llama", "."), theme=theme, width=700)
    messages = page.locator(".mll-cb-body")
    expect(messages).to_have_text(["Be short.", "Why\nso?", "For the llama."])
    expect(page.get_by_role("log")).to_contain_text("assistant")
    pieces = page.locator(".mll-cb-log .mll-cb-piece")
    ranks = [one.get_attribute("data-rank") for one in pieces.all()]
    assert ranks == ["likely", "open", "rare", "likely"]
    # The less likely, the further from the page's own ground.
    light = "e => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3)"
    shades = [sum(map(int, one.evaluate(light))) for one in pieces.all()[:3]]
    assert shades == sorted(shades, reverse=theme == "light")
    pieces.nth(1).hover()
    about = page.locator(".mll-cb-about")
    expect(about).to_contain_text("·the had probability 30.0 %; the likeliest were")
    rows = about.locator("li")
    expect(rows).to_have_text(["·the30.0 %taken", "·other25.0 %", "<b>12.5 %"])
    expect(page.get_by_text("has no Python behind it")).to_be_visible()
    expect(page.get_by_role("textbox")).to_have_count(0)
    assert serious(page) == []
    shot(page, f"chat_box_{theme}")


def test_by_keyboard(saved: Callable[..., Page]) -> None:
    page = saved(talked("For", " the", " llama", "."), width=420)
    focused, live = page.locator(":focus"), page.locator("[aria-live]")
    page.keyboard.press("Tab")
    expect(focused).to_have_attribute("role", "log")
    page.keyboard.press("ArrowRight")
    expect(focused).to_have_text("For")
    page.keyboard.press("End")
    expect(focused).to_have_text(".")
    expect(live).to_have_text(re.compile(r"^\., probability 100.0 %; likeliest: "))
    page.keyboard.press("ArrowLeft")
    expect(focused).to_have_text(" llama")
    expect(live).to_contain_text("·llama, probability 4.00 %")
    assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_text_stays_text(saved: Callable[..., Page]) -> None:
    evil = "<img src=x onerror=document.title='taken'>"
    page = saved(talked("<script>document.title='taken'</script>", evil, "שלום\u202e"))
    expect(page.locator(".mll-cb-body").last).to_contain_text(evil)
    page.locator(".mll-cb-log .mll-cb-piece").nth(1).hover()
    expect(page.locator(".mll-cb-about li").first).to_contain_text("onerror")
    assert page.locator(".mll img, .mll script, .mll b b").count() == 0
    assert page.title() == "Chat · minillama"


def test_a_sentence_in_its_place(saved: Callable[..., Page]) -> None:
    page = saved(ChatBox(print, messages=["no"]))  # type: ignore[list-item]
    expect(page.get_by_role("alert")).to_contain_text("message 0 is 'no'")


REPLY = """
import time
from minillama.widgets import ChatBox
def reply(messages):
    said = messages[-1]["content"]
    if said == "fail":
        raise RuntimeError("no weights")
    for i in range(400 if said == "long" else 3):
        if said == "long":
            time.sleep(0.03)
        if said == "half" and i == 2:
            raise RuntimeError("in the middle")
        text = f" w{i}" if i else f"{len(messages)}"
        top = [(text, 0.5**i), (" x", 0.1)]
        yield {"text": text, "probability": 0.5**i, "top": top}
chat = ChatBox(reply, messages=[{'role': 'system', 'content': 'Be brief.'}])
chat
"""


def test_in_jupyterlab(lab: Any, tab: Any, shot: Any, serious: Any) -> None:
    page = tab(width=1000, height=1000)
    lab.run(page, [REPLY, "chat"], "dark")
    box, again = page.locator(".mll").nth(0), page.locator(".mll").nth(1)
    field = box.get_by_label("message", exact=True)
    said, alert = box.locator(".mll-cb-body"), box.get_by_role("alert")
    stop = box.get_by_role("button", name="Stop")
    # The shades are the theme's, though it is not known when the view is made.
    light = "e => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3)"
    assert sum(map(int, box.locator(".mll-cb-key span").first.evaluate(light))) < 200
    # Shift+Enter is a line end here, and does not run the cell; Enter sends.
    field.click()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(field).to_have_value("one\ntwo")
    page.keyboard.press("Enter")
    expect(said).to_have_text(["Be brief.", "one\ntwo", "2 w1 w2"])
    expect(field).to_have_value("")
    expect(field).to_be_focused()
    expect(stop).to_be_disabled()
    expect(box.locator(".mll-sentence")).to_be_hidden()
    assert page.locator(".jp-Cell").count() == 2
    # It streams; a second question has to wait; Stop ends it.
    field.fill("long")
    field.press("Enter")
    expect(said.nth(4)).to_contain_text("4 w1 w2 w3")
    expect(box.get_by_role("log")).to_have_attribute("aria-busy", "true")
    field.fill("more")
    field.press("Enter")
    expect(alert).to_contain_text("One answer is still being written")
    expect(field).to_have_value("more")
    early = len(said.nth(4).inner_text())
    expect(said.nth(4)).not_to_have_text(re.compile(rf"^.{{0,{early + 20}}}$"))
    shot(page, "chat_box_lab_dark")
    stop.click()
    expect(box.locator(".mll-cb-stopped")).to_have_text("stopped")
    length = len(said.nth(4).inner_text().split())
    assert 4 <= length < 400
    expect(field).to_be_focused()
    # Errors: at once, and the question comes back; midway, and what came stays.
    field.fill("fail")
    field.press("Enter")
    expect(alert).to_have_text("reply raised RuntimeError: no weights")
    expect(field).to_have_value("fail")
    expect(said).to_have_count(5)
    field.fill("half")
    box.get_by_role("button", name="Send").click()
    expect(alert).to_have_text("reply raised RuntimeError: in the middle")
    expect(said).to_have_count(7)
    expect(said.nth(6)).to_have_text("6 w1")
    assert serious(page) == []
    lab.theme(page, "light")
    assert serious(page) == []
    # The answer that was stopped is remembered as far as it came.
    field.fill("again")
    field.press("Enter")
    expect(said.nth(8)).to_have_text("8 w1 w2")
    box.get_by_role("button", name="Start over").click()
    expect(said).to_have_text(["Be brief."])
    # Another output of the same box: one conversation.
    asked = again.get_by_label("message", exact=True)
    asked.fill("here")
    asked.press("Enter")
    expect(again.locator(".mll-cb-body")).to_have_text(["Be brief.", "here", "2 w1 w2"])
