"""A real browser, with the network cut off, and JupyterLab for it to open."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
# What Lab itself asks for once in a while and does without.
HARMLESS = ("favicon", "ResizeObserver loop", "/lsp/", "workspaces")
OWN = ("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:")


def chromium() -> str:
    """Where a Chromium is; the test is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    sentence = (
        "no Chromium on this machine: install it, on Debian `apt install chromium`"
    )
    if os.environ.get("MINILLAMA_REQUIRE_BROWSER"):
        pytest.fail(sentence)
    pytest.skip(sentence)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages. Whatever asks the outside world, or fails, fails the test."""
    wrong: list[str] = []
    pages: list[Page] = []

    def open_tab(theme: str = "light", width: int = 900, height: int = 700) -> Page:
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme=theme
        )
        pages.append(page)
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on(
            "console",
            lambda said: said.type == "error" and wrong.append(f"said: {said.text}"),
        )
        page.on(
            "request",
            lambda asked: (
                asked.url.startswith(OWN)
                or wrong.append(f"asked the network: {asked.url}")
            ),
        )
        return page

    yield open_tab
    for page in pages:
        page.close()
    assert [w for w in wrong if not any(ok in w for ok in HARMLESS)] == []


@pytest.fixture
def saved(tab: Callable[..., Page], tmp_path: Path) -> Callable[..., Page]:
    """Saves a view as a file of its own, and opens it."""

    def show(view: Any, **how: Any) -> Page:
        page = tab(**how)
        page.goto(view.to_html(tmp_path / "view.html").as_uri())
        page.wait_for_selector(".mll")
        return page

    return show


@pytest.fixture
def serious() -> Callable[[Page], list[str]]:
    """What the axe scanner finds in the views of a page, if it is serious."""

    def scan(page: Page) -> list[str]:
        found = Axe().run(page, context=".mll").response["violations"]
        return [
            f"{f['impact']}: {f['help']} {[n['html'][:120] for n in f['nodes'][:2]]}"
            for f in found
            if f["impact"] in ("serious", "critical")
        ]

    return scan


class Lab:
    """JupyterLab on a free port, in folders of its own."""

    def __init__(self, home: Path) -> None:
        self.root = home / "notebooks"
        self.root.mkdir()
        self.static = home / "static"  # what lies there is served below /static
        self.static.mkdir()
        settings = home / "config" / "labconfig"
        settings.mkdir(parents=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        overrides = {
            "@jupyterlab/apputils-extension:notification": quiet,
            "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
        }
        (settings / "default_setting_overrides.json").write_text(json.dumps(overrides))
        folders = {
            f"JUPYTER{name}_DIR": str(home / name)
            for name in (
                "_CONFIG",
                "_DATA",
                "_RUNTIME",
                "LAB_SETTINGS",
                "LAB_WORKSPACES",
            )
        }
        folders["JUPYTER_CONFIG_DIR"] = str(home / "config")
        folders["OMP_WAIT_POLICY"] = "PASSIVE"  # as `minillama lab` sets it
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = home / "lab.log"
        options = [
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            f"--port={port}",
            "--ServerApp.port_retries=0",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={self.root}",
            f"--ServerApp.extra_static_paths={self.static}",
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.extension_manager=readonly",
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                env={**os.environ, **folders, "IPYTHONDIR": str(home / "ipython")},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait()

    def _wait(self) -> None:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{self.url}/api/status", timeout=1):
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                time.sleep(0.25)
        raise AssertionError(f"JupyterLab does not start: {self.log.read_text()}")

    def run(self, page: Page, cells: list[str], theme: str = "light") -> None:
        """Open a notebook of these cells in that theme, and run them all."""
        # Without a kernel's name Lab would ask for one, and wait.
        kernel = {"name": "python3", "display_name": "Python 3"}
        book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
        book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        self.run_book(page, book, theme)

    def run_book(self, page: Page, book: Any, theme: str = "light") -> None:
        """Open a copy of that notebook in that theme, and run all its cells."""
        name = f"n{len(list(self.root.iterdir()))}.ipynb"
        nbformat.write(book, self.root / name)
        page.goto(f"{self.url}/lab/tree/{name}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function(
            "window.jupyterapp?.shell?.currentWidget?.sessionContext"
        )
        # The indicator may say idle where there is no kernel yet: wait for its answer.
        page.evaluate(
            """async (theme) => {
                const app = window.jupyterapp;
                const ready = async () => {
                    await app.restored;
                    const notebook = app.shell.currentWidget;
                    await notebook.context.ready;
                    await notebook.sessionContext.ready;
                    await notebook.sessionContext.session.kernel.info;
                };
                const late = new Promise((_, no) => setTimeout(no, 60000, "no kernel"));
                await Promise.race([ready(), late]);
                await app.commands.execute("apputils:change-theme", { theme });
                await app.commands.execute("notebook:run-all-cells");
            }""",
            f"JupyterLab {theme.title()}",
        )

    def theme(self, page: Page, theme: str) -> None:
        """Change the theme below a notebook that is open."""
        page.evaluate(
            """async (theme) => {
                await window.jupyterapp.commands.execute(
                    "apputils:change-theme", { theme });
            }""",
            f"JupyterLab {theme.title()}",
        )
        light = str(theme == "light").lower()
        page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")
        page.wait_for_timeout(100)  # the views draw anew in the next frame

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="session")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture
def shot(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Keeps a picture where MINILLAMA_SHOTS names a folder, for people to look at."""

    def take(page: Page, name: str) -> None:
        if folder := os.environ.get("MINILLAMA_SHOTS"):
            page.screenshot(path=Path(folder) / f"{name}.png")

    return take
