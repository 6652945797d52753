"""From an agent's call to the post: a message on the phone, a tap on it, and a tap on the button."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from harness.approve_page import asking
from harness.notifying import Notifier
from harness.webhook_receiver import receiving

if TYPE_CHECKING:
    from playwright.async_api import Browser

    from harness.gateway import RunningGateway

SCREENS = Path(__file__).parents[2] / "build" / "screens"
PHONE = {"width": 390, "height": 844}
TEXT = "Doors open at 19:00 on Friday."


@pytest.mark.trust("#331")
async def test_a_message_a_tap_and_a_button_publish_a_post(running: RunningGateway, browser: Browser) -> None:
    """The message of an approval opens the page that decides; a second visit shows what was decided."""
    async with asking(running) as asked, receiving() as phone:
        await Notifier.of(asked.database, running.settings, running.clock).set(
            f"{phone.url}/my-topic", "ntfy", with_link=True
        )
        await asked.ask({"text": TEXT})
        [message] = await phone.wait_for(1)
        assert (message.method, message.target) == ("POST", "/my-topic")
        assert message.headers["title"]
        assert message.headers["priority"] in {"4", "high"}
        assert TEXT not in message.body.decode()
        link = message.headers["click"]
        assert link.startswith(f"{running.settings.base_url}/approve/")
        context = await browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True, java_script_enabled=False)  # type: ignore[arg-type]
        page = await context.new_page()
        SCREENS.mkdir(parents=True, exist_ok=True)
        # The first tap is on the message.
        await page.goto(link)
        await page.screenshot(path=SCREENS / "notified_question_390.png", full_page=True)
        assert TEXT in await page.locator("main").inner_text()
        # Nobody has to scroll: what a short post asks for and the buttons fit on one screen.
        await expect(page.get_by_role("button", name="Approve")).to_be_in_viewport(ratio=1)
        await page.get_by_role("button", name="Approve").tap()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Published", timeout=20_000)
        await page.screenshot(path=SCREENS / "notified_published_390.png", full_page=True)
        assert [post["text"] for post in (await running.state())["posts"]].count(TEXT) == 1
        await page.goto(link)
        assert await page.get_by_role("heading", level=1).inner_text() == "Published"
        assert await page.get_by_role("button", name="Approve").count() == 0
        await page.screenshot(path=SCREENS / "notified_again_390.png", full_page=True)
        [_, decided] = await phone.wait_for(2)
        assert "approved" in (decided.headers["title"] + decided.body.decode()).lower()
        await context.close()
