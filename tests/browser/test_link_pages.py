"""A person's way through a link in a real browser: X's page, ours, and back out again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.async_playwright import Axe

from harness.gateway import API

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

    from harness.gateway import RunningGateway

PAYLOAD = "<img src=x onerror=\"document.title='owned'\">"


async def approve(running: RunningGateway, page: Page, username: str = "ada") -> None:
    """Open a new auth_url, choose the account and allow."""
    auth_url = (await running.call("auth_twitter")).json()["auth_url"]
    await page.goto(auth_url)
    await page.get_by_label(f"@{username}").check()
    await page.get_by_role("button", name="Authorize").click()


async def picture(page: Page, name: str) -> None:
    """A screenshot, if somebody wants to look: BIRDWIRE_TEST_PICTURES names a directory."""
    folder = os.environ.get("BIRDWIRE_TEST_PICTURES")
    if folder:
        await page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


async def test_a_person_links_an_account_by_two_clicks(running: RunningGateway, page: Page) -> None:
    """From X's page to ours, across both ports, without scripts; the key works then."""
    await approve(running, page)
    assert page.url.startswith(running.settings.base_url + API + "oauth_callback")
    assert await page.get_by_role("heading").inner_text() == "@ada is linked"
    assert await page.locator("strong", has_text="test key").count() == 1
    assert (await running.like()).status_code == 200


async def test_a_reload_keeps_the_button_and_another_browser_lacks_it(
    running: RunningGateway, page: Page, browser: Browser
) -> None:
    """The cookie of the first load comes along, though X sent the person here; elsewhere the way to X is named."""
    await approve(running, page)
    await page.reload()
    assert await page.get_by_role("heading").inner_text() == "@ada is linked"
    other = await (await browser.new_context(java_script_enabled=False)).new_page()
    await other.goto(page.url)
    assert await other.get_by_role("heading").inner_text() == "@ada is linked already"
    assert await other.get_by_role("button").count() == 0
    link = other.get_by_role("link", name="x.com/settings/connected_apps")
    assert await link.get_attribute("href") == "https://x.com/settings/connected_apps"
    await page.get_by_role("button", name="This was not me").click()
    assert await page.get_by_role("heading").inner_text() == "Undone"
    assert (await running.status())["linked"] is False


async def test_a_person_undoes_an_unwanted_link_with_one_click(running: RunningGateway, page: Page) -> None:
    """The button is a plain form that the page's own policy allows."""
    await approve(running, page)
    linked = page.url
    await page.get_by_role("button", name="This was not me").click()
    assert await page.get_by_role("heading").inner_text() == "Undone"
    assert (await running.status())["linked"] is False
    await page.reload()
    assert await page.get_by_role("heading").inner_text() == "Already undone"
    await page.goto(linked)
    assert await page.get_by_role("heading").inner_text() == "Already undone"


async def test_a_person_who_cancels_sees_that_nothing_was_linked(running: RunningGateway, page: Page) -> None:
    """And what to do if it was a mistake."""
    await page.goto((await running.call("auth_twitter")).json()["auth_url"])
    await page.get_by_role("button", name="Cancel").click()
    assert await page.get_by_role("heading").inner_text() == "Nothing was linked"


@pytest.mark.trust("#296")
@pytest.mark.trust("T15")
async def test_markup_in_a_label_is_read_and_not_run(running: RunningGateway, browser: Browser) -> None:
    """With scripts switched on, so that there is something to prevent."""
    _, raw_key = await running.gateway.keys.create("test", PAYLOAD, "growth")
    running.client.headers["authorization"] = f"Bearer {raw_key}"
    page = await browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    await approve(running, page)
    assert await page.title() == "Linked - Birdwire"
    assert await page.locator("strong").inner_text() == PAYLOAD
    assert await page.locator("img").count() == 0
    assert complaints == []


@pytest.mark.trust("T15")
async def test_a_script_that_got_into_a_page_would_not_run(running: RunningGateway, browser: Browser) -> None:
    """The policy is the second wall: markup put into the page from outside stays dead."""
    page = await browser.new_page()
    await approve(running, page)
    put = "html => { const e = document.createElement('div'); e.innerHTML = html; document.body.append(e); }"
    async with page.expect_console_message(lambda message: "inline event handler" in message.text):
        await page.evaluate(put, PAYLOAD)
    assert await page.title() == "Linked - Birdwire"


@pytest.mark.trust("O15")
async def test_the_page_requests_nothing_from_other_hosts(running: RunningGateway, page: Page) -> None:
    """One request a page, and no address of another host."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await approve(running, page)
    ours = [url for url in asked if url.startswith(running.settings.base_url)]
    theirs = [url for url in asked if url.startswith(str(running.x.base_url))]
    assert len(ours) == 1
    assert len(ours) + len(theirs) == len(asked)


async def test_no_other_site_can_frame_the_page(running: RunningGateway, browser: Browser) -> None:
    """No other site can trick a person into clicking the button."""
    page = await browser.new_page()
    redirect = await running.consent("ada")
    await page.goto(running.settings.base_url + "/livez")
    put = "url => { const e = document.createElement('iframe'); e.src = url; document.body.append(e); }"
    async with page.expect_event("requestfailed") as refused:
        await page.evaluate(put, redirect)
    assert (await refused.value).failure == "net::ERR_BLOCKED_BY_RESPONSE"


async def test_the_pages_fit_a_telephone(running: RunningGateway, page: Page) -> None:
    """Nothing is wider than the screen: X's page, ours, and the description of the calls."""
    await page.set_viewport_size({"width": 320, "height": 700})
    too_wide = "document.documentElement.scrollWidth > window.innerWidth"
    auth_url = (await running.call("auth_twitter")).json()["auth_url"]
    for url in (auth_url, running.settings.x_api_url, f"{running.settings.base_url}/docs"):
        await page.goto(url)
        assert await page.evaluate(too_wide) is False, url
    await approve(running, page)
    assert await page.evaluate(too_wide) is False


@pytest.mark.parametrize("width", [390, 1280])
async def test_every_page_is_accessible(running: RunningGateway, browser: Browser, width: int) -> None:
    """axe-core finds nothing on a telephone and on a desk, in light and dark: our pages, the sandbox's, and /docs."""
    context = await browser.new_context(viewport={"width": width, "height": 844})
    page, axe = await context.new_page(), Axe()
    found: dict[str, str] = {}

    async def run(name: str, **options: Any) -> None:
        results = await axe.run(page, options={"resultTypes": ["violations"]} | options)
        if results.violations_count:
            found[name] = results.generate_report()

    async def inspect(name: str) -> None:
        await picture(page, f"{name}-{width}")
        await run(name)
        if width > 1_000:
            await page.emulate_media(color_scheme="dark")
            await run(f"{name}, dark", runOnly=["color-contrast"])
            await page.emulate_media(color_scheme="light")

    await page.goto((await running.call("auth_twitter")).json()["auth_url"])
    await inspect("consent")
    await page.get_by_role("button", name="Cancel").click()
    await inspect("denied")
    await approve(running, page)
    await inspect("linked")
    linked = page.url
    cookies = await context.cookies()
    await context.clear_cookies()
    await page.goto(linked)
    await inspect("already")
    await context.add_cookies(cookies)  # type: ignore[arg-type]
    await page.goto(linked)
    await page.get_by_role("button", name="This was not me").click()
    await inspect("undone")
    await page.goto(linked)
    await inspect("already-undone")
    await page.goto(await running.consent("ada", scopes=["like.write"]))
    await inspect("scope-missing")
    await page.goto(running.settings.x_api_url)
    await inspect("sandbox")
    await page.goto(f"{running.settings.base_url}/docs")
    await picture(page, f"docs-{width}")
    await run("docs", rules={"color-contrast": {"enabled": False}})
    # 6,000 elements have a dozen pairs of colours between them: one article and a row show them all.
    await page.evaluate("document.querySelectorAll('main > article ~ article, tr ~ tr').forEach(e => e.remove())")
    await inspect("docs-cut")
    await context.close()
    assert found == {}


async def test_every_example_in_the_documentation_can_be_scrolled_by_keyboard(
    running: RunningGateway, page: Page
) -> None:
    """Each is reached with the tab key, and says what it shows."""
    await page.goto(f"{running.settings.base_url}/docs")
    examples = page.locator("pre")
    assert await examples.count() >= 24
    assert await page.locator('pre[tabindex="0"][role="group"][aria-label]').count() == await examples.count()
