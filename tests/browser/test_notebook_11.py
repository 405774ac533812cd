"""Notebook 11 itself in JupyterLab: run as it is, and its views used where they stand.

What a view must show is asked of the notebook's own kernel: numbers of the real model.
"""

import json
from ast import literal_eval
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Locator, Page, expect

BOOK = Path(__file__).parents[2] / "notebooks" / "11_inside.ipynb"


def ask(page: Page, expression: str, code: str = "") -> Any:
    """The value of a Python expression in the kernel of the notebook that is open."""
    found = page.evaluate(
        """async ([code, x]) => {
            const { session } = window.jupyterapp.shell.currentWidget.sessionContext;
            const how = { user_expressions: { x }, store_history: false };
            const asked = session.kernel.requestExecute({ code, ...how });
            return (await asked.done).content;
        }""",
        [f"import json\n{code}", f"json.dumps({expression})"],
    )
    assert found.get("user_expressions", {}).get("x", {}).get("status") == "ok", found
    return json.loads(
        literal_eval(found["user_expressions"]["x"]["data"]["text/plain"])
    )


def errors(page: Page) -> list[str]:
    """What went wrong in cells that do not mean to."""
    return page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.model.sharedModel.toJSON().cells
            .filter((cell) => !cell.metadata.tags?.includes("raises-exception"))
            .flatMap((cell) => cell.outputs ?? [])
            .filter((output) => output.output_type === "error")
            .map((output) => `${output.ename}: ${output.evalue}`)"""
    )


def cell(page: Page, word: str) -> Locator:
    """The view that this cell makes, scrolled to: Lab draws only what is near."""
    cells = nbformat.read(BOOK, 4).cells
    index = next(
        i
        for i, c in enumerate(cells)
        if c.cell_type == "code" and f"{word}(" in c.source and "widget" in c.source
    )
    page.evaluate(
        """async (index) => {
            const { content } = window.jupyterapp.shell.currentWidget;
            content.activeCellIndex = index;
            await content.scrollToItem(index, "start");
        }""",
        index,
    )
    view = page.locator(".jp-Cell.jp-mod-active .mll")
    expect(view).to_be_visible(timeout=20_000)
    return view


def seen(token: str) -> str:
    return token.replace(" ", "·").replace("\n", "⏎")


def share(p: float) -> str:
    if p < 0.001:
        return "< 0.1 %"
    return f"{100 * p:.0f} %" if p >= 0.0995 else f"{100 * p:.1f} %"


def drag(page: Page, field: Locator, share: float) -> None:
    """Draw a slider with the mouse, from its left end to that share of its way."""
    field.scroll_into_view_if_needed()
    box = field.bounding_box()
    assert box is not None
    at = [box["x"] + 8 + s * (box["width"] - 16) for s in (0, share)]
    page.mouse.move(at[0], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(at[1], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()


def test_its_views(
    lab: Any, tab: Any, shot: Any, serious: Any, smollm2_path: Any
) -> None:
    page = tab(width=1200, height=1000)
    lab.run_book(page, nbformat.read(BOOK, 4), "light")
    assert errors(page) == []
    page.keyboard.press("Escape")

    attention = cell(page, "AttentionView")
    layer, said = attention.get_by_label("layer", exact=True), ".mll-att-cell"
    expect(layer).to_have_attribute("aria-valuetext", "16")
    # Later cells look into the model again: `seen` is not what this view shows.
    look = "with minillama.capture(model, 'attention') as ours: model(twice)"
    n = ask(page, "len(tokens)", f"import minillama\n{look}")
    attention.get_by_role("combobox", name="head", exact=True).select_option("1")
    attention.locator(".mll-att-panel canvas").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")

    def shown_of(number: int) -> str:
        weight = ask(page, f"ours.attention[{number}][0, 1, {n - 1}, {n - 2}].item()")
        texts = [*map(seen, ask(page, "tokens[-2:]"))]
        return f"query {n - 1} {texts[1]} → key {n - 2} {texts[0]}: {weight:.3f}"

    expect(attention.locator(said)).to_have_text(shown_of(16))
    drag(page, layer, 1)
    expect(layer).to_have_attribute("aria-valuetext", "18")
    expect(attention.locator(said)).to_have_text(shown_of(18))
    layer.focus()
    page.keyboard.press("Home")
    expect(layer).to_have_attribute("aria-valuetext", "17")
    expect(attention.locator(said)).to_have_text(shown_of(17))
    sink = "ours.attention[17][0, 1, 1:, 0].mean().item()"
    first = f"layer 17, head 1, first token takes {ask(page, sink):.2f}"
    expect(attention.locator(".mll-att-panel figcaption")).to_contain_text(first)
    shot(page, "notebook_11_attention")

    values = cell(page, "ValuesView")
    row = values.get_by_label("row").first
    losses = {
        name: ask(page, f"{name}[0].tolist()") for name in ("loss", "control_loss")
    }
    largest = values.get_by_role("list", name="largest values").locator("li")
    for index, name in enumerate(losses):
        row.select_option(str(index))
        at = max(range(len(losses[name])), key=losses[name].__getitem__)
        value = f"{losses[name][at]:.4g}"
        chip = values.locator(".mll-value").nth(at)
        chip.hover()
        expect(values.locator(".mll-values-about")).to_contain_text(value)
    listed = values.get_by_label("listed", exact=True)
    drag(page, listed, 1)
    expect(largest).to_have_count(20)
    listed.focus()
    page.keyboard.press("ArrowLeft")
    expect(largest).to_have_count(19)
    page.keyboard.press("Home")
    expect(largest).to_have_count(1)
    shot(page, "notebook_11_values")

    lens = cell(page, "LogitLensView")
    last = lens.locator(".mll-lens-grid tbody tr").first.locator("td").nth(4)
    last.click()
    expect(lens.locator("h3")).to_contain_text("position 4, after ·is")
    ten = lens.locator(".mll-lens-list tr")
    expect(ten).to_have_count(10)
    for presses in (0, 10):
        for _ in range(presses):
            page.keyboard.press("ArrowDown")
        guesses = ask(page, f"cells[{30 - presses}][4]")
        for i, (text, chance) in enumerate(guesses[:3]):
            expect(ten.nth(i)).to_have_text(f"{i + 1}{seen(text)}{share(chance)}")
    shot(page, "notebook_11_lens")
    assert serious(page) == []
