"""A browser for the tests of the page."""

import os
import re

import pytest
from helpers.browser import CHROMIUM, SECONDS, SHOTS


def sync_api():
    return pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def browser():
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # a container's root has no sandbox
    with sync_api().sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, request):
    """visit(url, ...) opens a page that remembers nothing of other tests. When the test ends, the
    page must not have thrown, nor asked anyone but its server."""
    opened, wrong = [], []

    def open_page(url: str, width: int = 1280, height: int = 860, **options):
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, reduced_motion="reduce", **options)
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.on("pageerror", lambda error: wrong.append(f"the page threw {error}"))
        host = url.split("/")[2]
        page.on("request", lambda r: wrong.append(r.url) if r.url.split("/")[2] != host else None)
        page.goto(url)
        opened.append((context, page))
        return page

    sync_api().expect.set_options(timeout=1000 * SECONDS)
    yield open_page
    SHOTS.mkdir(parents=True, exist_ok=True)
    for i, (context, page) in enumerate(opened):
        name = re.sub(r"\W+", "-", request.node.name).strip("-")
        page.screenshot(path=SHOTS / f"{name}{f'-{i}' if i else ''}.png")
        context.close()
    assert wrong == []
