"""What the tests of the page do in a browser."""

from __future__ import annotations

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect

HEAT = {"layers": 3, "experts": 5}
RESIDENT = [i % 2 == 0 for i in range(15)]
READ = [i == 4 for i in range(15)]
LIVE = {
    "tokens_per_s": 12.34,
    "hit_rate": 0.8712,
    "bytes_read": 3 << 30,
    "active": 1,
    "queued": 2,
    "memory_bytes": 8 << 30,
    "lossy": [],
    "model": "demo",
}


class Watched:
    """A tab with storage of its own that must neither report an error, a violation of the
    Content-Security-Policy included, nor ask for anything outside ``url``."""

    def __init__(self, browser: Browser, url: str, width: int = 1280, height: int = 800) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.context.set_default_timeout(10_000)
        self.url = url
        self.errors: list[str] = []
        self.page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url))

    def check(self) -> None:
        errors, self.errors = self.errors, []
        assert errors == []

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            self.check()

    def _console(self, message: ConsoleMessage) -> None:
        # The browser itself reports refused requests, which some tests are about.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def _request(self, url: str) -> None:
        if not url.startswith((self.url, f"blob:{self.url}")):
            self.errors.append(f"{url} was asked for")


def prompt(page: Page) -> Locator:
    return page.get_by_label("Message", exact=True)


def ask(page: Page, question: str = "question") -> Locator:
    """Sends a question; the answer that grows."""
    prompt(page).fill(question)
    page.keyboard.press("Enter")
    return page.locator(".answer").last


def done(answer: Locator) -> Locator:
    """The answer when it is complete."""
    expect(answer).to_have_attribute("aria-busy", "false", timeout=20_000)
    return answer


def content(answer: Locator) -> Locator:
    return answer.locator(".content")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def open_setup(page: Page, section: str) -> None:
    """Opens "system", "tools" or "settings"."""
    page.locator(f"#setup-{section} summary").click()
