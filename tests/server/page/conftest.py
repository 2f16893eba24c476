"""A browser, and a server with answers written in advance."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.server.fake_backend import Backend, bitmap, serving
from tests.server.page.browsing import HEAT, LIVE, READ, RESIDENT, Watched

BINARIES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None:
        pytest.skip("there is no chromium binary")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def served() -> Iterator[tuple[Backend, str]]:
    backend = Backend()
    with serving(backend.app()) as url:
        yield backend, url


@pytest.fixture(scope="package")
def url(served: tuple[Backend, str]) -> str:
    return served[1]


@pytest.fixture
def backend(served: tuple[Backend, str]) -> Backend:
    """The server, as new."""
    backend, _ = served
    backend.reset()
    heat = {**HEAT, "resident": bitmap(RESIDENT), "read": bitmap(READ)}
    backend.live.update(LIVE, heat=heat)
    return backend


@pytest.fixture(scope="package")
def tab(browser: Browser, url: str) -> Iterator[Watched]:
    with Watched(browser, url) as tab:
        yield tab


@pytest.fixture
def page(tab: Watched, backend: Backend) -> Iterator[Page]:
    """The page as at a first visit; ``backend`` answers it."""
    page = tab.page
    page.goto(f"{tab.url}icon.svg")  # same storage, but nothing there that could write to it
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.emulate_media(color_scheme="light")
    page.goto(tab.url)
    yield page
    page.unroute_all()
    tab.check()
