"""The demo's page in a real browser: Debian's Chromium, without a window, driven by Playwright.

Screenshots are kept in the folder that SIO_PG_TEST_SCREENSHOTS names, `.cache/screenshots` when it is absent.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import zlib
from pathlib import Path

from playwright.async_api import Browser, FilePayload, Page, expect

from socketio_postgres.demo.embedded import free_port
from socketio_postgres.demo.process import DSN_VARIABLE
from tests.fixtures.database import Database
from tests.fixtures.program import ROOT, Program
from tests.fixtures.waiting import TIMEOUT_S

SCREENSHOTS = Path(os.environ.get("SIO_PG_TEST_SCREENSHOTS", ROOT / ".cache" / "screenshots"))
WIDTH, HEIGHT = 300, 140


def picture() -> bytes:
    """A PNG with colours from blue to orange."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + bytes(value for x in range(WIDTH) for value in (x * 255 // WIDTH, 90 + y // 2, 255 - x * 200 // WIDTH))
        for y in range(HEIGHT)
    )
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


class ChatPage:
    """One page of the chat, as somebody uses it."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = name
        self.log = page.locator("#log")
        self.frames: list[str | bytes] = []
        """Everything received over websockets."""
        self.errors: list[str] = []
        page.on("websocket", lambda socket: socket.on("framereceived", self._keep_frame))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    @classmethod
    async def open(cls, browser: Browser, url: str, name: str) -> ChatPage:
        """Visit a server and introduce oneself."""
        page = await browser.new_page(viewport={"width": 860, "height": 560}, color_scheme="light")
        chat = cls(page, name)
        await page.goto(url)
        await chat.connected()
        await page.fill("#name", name)
        return chat

    async def connected(self) -> None:
        """Wait until the page says so."""
        await expect(self.page.locator("#state")).to_have_text("connected")

    async def say(self, text: str) -> None:
        """Type a message and press Enter."""
        await self.page.fill("#text", text)
        await self.page.press("#text", "Enter")

    async def reads(self, text: str) -> None:
        """Wait until a message is in the list."""
        await expect(self.log.locator(".text", has_text=text)).to_have_count(1)

    async def sees_picture(self) -> None:
        """Wait until the picture is in the list, as large as it is."""
        await expect(self.log.locator("img")).to_have_count(1)
        size = "([image]) => image?.naturalWidth ? [image.naturalWidth, image.naturalHeight] : null"
        found = await self.page.wait_for_function(
            f"() => ({size})(document.querySelectorAll('#log img'))", timeout=TIMEOUT_S * 1000
        )
        assert await found.json_value() == [WIDTH, HEIGHT]

    def _keep_frame(self, frame: str | bytes) -> None:
        self.frames.append(frame)

    async def keep(self, file: str) -> None:
        """Take a screenshot."""
        await self.page.screenshot(path=SCREENSHOTS / file)


async def test_two_pages_on_two_servers(browser: Browser, database: Database) -> None:
    ports = {"north": free_port(), "south": free_port()}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}

    def server(name: str, other: str) -> Program:
        command = ["-m", "socketio_postgres.demo.server", name, str(ports[name]), urls[other]]
        return Program(command, {DSN_VARIABLE: database.dsn}, urls[name], stdin=subprocess.PIPE)

    with server("south", "north"):
        with server("north", "south") as program:
            nora = await ChatPage.open(browser, urls["north"], "Nora")
            sara = await ChatPage.open(browser, urls["south"], "Sara")
            await expect(nora.page.locator("#server")).to_have_text("north")
            await expect(sara.page.locator("#server")).to_have_text("south")

            await nora.say("Hello south, are you there?")
            await sara.reads("Hello south, are you there?")
            await sara.say("Hello north! <b>Text</b> stays text, ¿no?")
            for page in (nora, sara):
                await page.reads("Hello north! <b>Text</b> stays text, ¿no?")

            file = FilePayload(name="sky.png", mimeType="image/png", buffer=picture())
            await nora.page.set_input_files("#picture", file)
            for page in (nora, sara):
                await page.sees_picture()
            assert picture() in sara.frames, "it travelled as binary, unchanged"
            await sara.say("What a sky. Which server was that?")
            await nora.reads("What a sky. Which server was that?")
            await nora.keep("north.png")
            await sara.keep("south.png")

            program.signal(signal.SIGKILL)
            await expect(nora.page.locator("#state.bad")).to_be_visible()
            await expect(nora.log).to_contain_text("Connection lost")
            await nora.keep("north-killed.png")
            await sara.say("said while north was away")
            await sara.reads("said while north was away")
            await program.wait()

        with server("north", "south"):
            await nora.connected()
            await expect(nora.log).to_contain_text("Connected again to north.")
            await sara.say("Are you back?")
            await nora.reads("Are you back?")
            await nora.say("Yes, without a reload.")
            await sara.reads("Yes, without a reload.")
            await nora.keep("north-back.png")
            assert nora.errors == sara.errors == []
            await expect(nora.log.locator(".text", has_text="while north was away")).to_have_count(0)
