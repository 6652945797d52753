"""A headless Chromium on loopback. Without Chromium the tests are skipped with a warning; in CI they fail."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    *("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--no-first-run", "--no-default-browser-check", "--disable-dev-shm-usage"),
]


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    """Start the browser, which connects to this machine only."""
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium, and CI must run the browser tests")
        pytest.skip("NOT RUN: there is no Chromium; install the package chromium")
    unboxed = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*OPTIONS, *unboxed])
        try:
            yield running
        finally:
            await running.close()


@pytest_asyncio.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """Open a fresh page without scripts: no page of Birdwire may need them."""
    context = await browser.new_context(java_script_enabled=False)
    yield await context.new_page()
    await context.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a warning in red, because a skipped test is easily missed."""
    skipped = [report for report in terminalreporter.getreports("skipped") if "tests/browser" in report.nodeid]
    if skipped:
        terminalreporter.write_line(
            f"WARNING: {len(skipped)} browser tests were NOT RUN: there is no Chromium.", red=True
        )
