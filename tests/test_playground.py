"""The page at `/`: one file that asks this server alone, and shows what it answers."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from needle.serve.app import create_app
from needle.serve.desk import ServeConfig
from tests.test_clients import Parrot, served  # noqa: F401  a fixture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_the_page_may_ask_this_server_and_nobody_else(exported: Path) -> None:
    with TestClient(create_app(Parrot(exported), ServeConfig())) as client:  # type: ignore[arg-type]
        response = client.get("/")
    page, allowed = response.text, response.headers["Content-Security-Policy"]
    assert response.headers["Content-Type"].startswith("text/html")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in allowed
    assert "default-src 'none'" in allowed
    assert "connect-src 'self'" in allowed
    elsewhere = set(re.findall(r"https?://[^\s'\"`<$]+", page)) - {"http://www.w3.org/2000/svg"}
    assert not elsewhere
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?!data:)", page)


@pytest.mark.skipif(not CHROMIUM, reason="chromium isn't installed")
def test_typing_shows_calls_and_a_link_brings_them_back(served: tuple[Parrot, str]) -> None:  # noqa: F811
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(served[1])
        page.get_by_role("button", name="Travel").click()
        page.fill("#request", "a flight to Oslo")
        page.wait_for_selector(".call h3:has-text('find_flights')")
        assert page.inner_text(".call dd >> nth=0") == '"Oslo"'
        link = page.url
        page.fill("#request", "good morning")
        page.wait_for_selector(".nothing")
        assert "No function fits" in page.inner_text("#calls")
        page.fill("#tools", "[")
        page.wait_for_selector('#error:has-text("aren\'t JSON")')
        other = browser.new_page()
        other.goto(link)
        other.wait_for_selector(".call h3:has-text('find_flights')")
        assert other.input_value("#request") == "a flight to Oslo"
        browser.close()
    assert not wrong
