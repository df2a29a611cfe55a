"""The page at the gateway's `/` in headless Chromium: it loads fast and alone, draws what happens
in the ring, and can be used by keyboard. Needs a ring of two decode servers at TANDEM_URL, whose
run folder is TANDEM_RUN_FOLDER, and the programs in TANDEM_BIN_DIR."""

import contextlib
import json
import os
import pathlib
import re
import select
import signal
import socket
import statistics
import subprocess
import time
import tomllib
import unittest
import urllib.error
import urllib.request

import axe_playwright_python
from playwright.sync_api import expect, sync_playwright

URL = os.environ["TANDEM_URL"]
FOLDER = pathlib.Path(os.environ["TANDEM_RUN_FOLDER"])
BINARIES = pathlib.Path(os.environ["TANDEM_BIN_DIR"])
SCREENSHOTS = pathlib.Path(os.environ["TANDEM_SCREENSHOTS"])
AXE = (pathlib.Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()

LARGE = {"width": 1440, "height": 900}
PATIENCE_MS = 60_000
LOADS = 9
ANSWER = ".said.model .legend"

# Axe does not judge text in drawings: the least contrast of any with the box that it stands in.
DRAWN_CONTRAST = """() => {
    const light = (color) => {
        const [r, g, b] = color.match(/[0-9.]+/g).map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const fill = (element) => light(getComputedStyle(element).fill);
    const ratio = (text) => {
        const pair = [fill(text), fill(text.parentNode.querySelector(".box"))];
        return Math.max(...pair) / Math.min(...pair);
    };
    return Math.min(...[...document.querySelectorAll("#ring text")].map(ratio));
}"""
CONTRAST_MIN = 4.5

# What of the table of requests is wider than what is seen of it.
CUT_OFF = """() => [...document.querySelectorAll(".scroll, .scroll th, .scroll td")]
    .filter((box) => box.scrollWidth > box.clientWidth)
    .map((box) => `${box.tagName}.${box.className} ${box.textContent.slice(0, 40)}`)"""


def row(name, value, unit, bar, holds):
    print(json.dumps({"row": name, "bar": bar, "value": value, "unit": unit, "holds": holds}),
          flush=True)
    return holds


def violations(page, where):
    """What axe finds."""
    page.evaluate(AXE)
    result = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [f"{where}: {each['id']} {node['target']} {node['failureSummary']}"
            for each in result["violations"] for node in each["nodes"]]


def table_roles(page):
    """How many tables, rows, headers and cells the browser tells a screen reader of."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    return {role: roles.count(role) for role in ("table", "row", "columnheader", "cell")}


def kill(pid):
    """Ends a process by SIGKILL; its sockets are closed when this returns."""
    ended = os.pidfd_open(pid)
    signal.pidfd_send_signal(ended, signal.SIGKILL)
    select.select([ended], [], [])
    os.close(ended)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def process(program, *options):
    """A process of the ring that this test starts; it has ended when the block is left."""
    with open(FOLDER / "page-test.log", "ab") as log:
        started = subprocess.Popen([BINARIES / program, *options], stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.playwright = sync_playwright().start()
        cls.addClassCleanup(cls.playwright.stop)
        cls.browser = cls.playwright.chromium.launch(
            executable_path=os.environ["TANDEM_CHROMIUM"], args=["--no-sandbox"])
        cls.addClassCleanup(cls.browser.close)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def open(self, url=URL, **options):
        """A page of its own; what it asks for and complains of is in `asked` and `said`."""
        context = self.browser.new_context(**{"viewport": LARGE, **options})
        self.addCleanup(context.close)
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page = context.new_page()
        self.asked, self.said = [], []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.goto(f"{url}/")
        return page

    def open_ready(self, **options):
        page = self.open(**options)
        expect(page.locator("#state")).to_have_text("ready")
        return page

    def complaints(self):
        return [said for said in self.said if not said.startswith(("log", "info", "debug"))]

    def check_calm(self):
        """Nothing was complained of and nothing was asked of anyone else."""
        self.assertEqual(self.complaints(), [])
        self.assertEqual([url for url in self.asked if not url.startswith(f"{URL}/")], [])


class Loading(Case):
    def test_it_is_small_and_painted_soon(self):
        paints, weights = [], []
        for _ in range(LOADS):
            page = self.open_ready()
            sizes = page.evaluate("""() => [
                ...performance.getEntriesByType("navigation"),
                ...performance.getEntriesByType("resource"),
            ].filter(({name}) => !new URL(name).pathname.startsWith("/ring"))
             .map(({transferSize}) => transferSize)""")
            paint = page.wait_for_function("""() => performance.getEntriesByType("paint")
                .find(({name}) => name === "first-contentful-paint")?.startTime""")
            paints.append(paint.json_value())
            weights.append(sum(sizes))
            self.assertGreater(len(sizes), 8)
            page.context.close()
        paint, weight = round(statistics.median(paints), 1), max(weights)
        self.assertTrue(row("page-bytes", weight, "bytes", 100_000, weight <= 100_000))
        row("page-first-paint", paint, "ms", 300, paint <= 300)  # no verdict hangs on a time

    def test_files_are_typed_tagged_and_fenced(self):
        kinds = {"/": "text/html", "/page/page.css": "text/css",
                 "/page/page.js": "text/javascript", "/page/icon.svg": "image/svg+xml"}
        for path, kind in kinds.items():
            with urllib.request.urlopen(URL + path) as answer:
                headers = answer.headers
            self.assertEqual(headers.get_content_type(), kind)
            policy = headers["content-security-policy"]
            self.assertIn("default-src 'none'", policy)
            self.assertNotIn("unsafe", policy)
            again = urllib.request.Request(URL + path, headers={"if-none-match": headers["etag"]})
            with self.assertRaises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(again)
            self.assertEqual(caught.exception.code, 304)

    def test_the_policy_holds(self):
        page = self.open_ready()
        outside = "() => fetch('http://192.0.2.1/').then(() => 'sent', () => 'refused')"
        self.assertEqual(page.evaluate(outside), "refused")
        self.assertTrue(any("Content Security Policy" in said for said in self.said), self.said)


class Chat(Case):
    def test_an_answer_streams_by_keyboard_alone_and_tells_its_phases(self):
        page = self.open_ready()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # the link that skips to the chat
        expect(page.locator("#chat-text")).to_be_focused()
        page.evaluate("""() => {
            window.lengths = [];
            new MutationObserver(() => {
                const body = document.querySelector(".said.model .body");
                if (body) window.lengths.push(body.textContent.length);
            }).observe(document.getElementById("log"), {childList: true, subtree: true});
        }""")
        before = self.numbers(page)
        page.keyboard.type("Write a long story about a lighthouse.")
        page.keyboard.press("Enter")
        expect(page.locator(ANSWER)).to_be_visible()
        grown = sorted(set(page.evaluate("() => window.lengths")) - {0})
        self.assertGreater(len(grown), 3, "the answer came in pieces")
        named = page.locator(f"{ANSWER} .name").all_text_contents()
        for phase in ("prefill", "handoff", "decode"):
            self.assertIn(phase, named)
        self.assertRegex(page.locator(".said.model .facts").inner_text(), r"first token .* tok/s")
        # The ring's numbers have moved, too.
        expect(page.locator("#requests tr").first).to_contain_text("finished")
        expect(page.locator("#charts")).to_contain_text("p95")
        after = self.numbers(page)
        self.assertGreater(after["finished"], before["finished"])
        self.assertGreater(sum(link["handoffs"] for link in after["links"]),
                           sum(link["handoffs"] for link in before["links"]))
        # A row opens by keyboard and says the same phases.
        page.locator("#requests button").first.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#requests .detail .legend")).to_contain_text("handoff")
        self.check_calm()

    def test_escape_stops_an_answer(self):
        page = self.open_ready()

        def without_end(route):
            route.continue_(post_data=json.dumps(route.request.post_data_json
                                                 | {"ignore_eos": True}))

        page.route("**/v1/chat/completions", without_end)
        page.locator("#max-tokens").fill("2000")
        page.locator("#chat-text").fill("Count to a thousand.")
        page.keyboard.press("Enter")
        expect(page.locator("#chat-send")).to_have_text("Stop")
        page.keyboard.press("Escape")
        expect(page.locator("#chat-send")).to_have_text("Send")
        # Of the call to abort and the browser's closed connection either may come first.
        row = page.locator("#requests tr").first
        expect(row).to_contain_text(re.compile("dropped|failed"))
        self.check_calm()

    def test_what_the_gateway_refuses_is_shown(self):
        page = self.open_ready()
        page.locator("#max-tokens").fill("100000000")
        page.locator("#chat-text").fill("Hi")
        page.keyboard.press("Enter")
        expect(page.locator(".said.model .error")).to_contain_text("tokens")

    @staticmethod
    def numbers(page):
        return page.evaluate("() => fetch('/ring').then((answer) => answer.json())")


class Servers(Case):
    def test_a_killed_server_turns_red_and_comes_back(self):
        page = self.open_ready()
        card = page.locator("#ring .card.decode").nth(1)
        name = card.locator(".title").text_content()
        color = "(card) => getComputedStyle(card.querySelector('.lamp')).fill"
        healthy = card.evaluate(color)
        kill(tomllib.loads((FOLDER / f"{name}.pid").read_text())["pid"])
        lost = page.locator("#ring .card.lost")
        expect(lost.locator(".title")).to_have_text(name)
        expect(page.locator("#announced")).to_have_text(f"{name} is lost")
        expect(page.locator("#state")).to_have_text("1 of 3 servers lost")
        self.assertGreaterEqual(page.evaluate(DRAWN_CONTRAST), CONTRAST_MIN)
        red = [int(part) for part in lost.evaluate(color).strip("rgb()").split(",")]
        self.assertGreater(red[0], 2 * max(red[1:]) - 30, red)
        page.screenshot(path=SCREENSHOTS / "lost.png")
        with process("tandem-decode", "--config", FOLDER / f"{name}.toml"):
            expect(page.locator("#state")).to_have_text("ready")
            expect(lost).to_have_count(0)
            expect(card.locator(".lamp")).to_have_css("fill", healthy)
            expect(page.locator("#announced")).to_have_text(f"{name} is up")
        self.check_calm()


class Key(Case):
    def test_a_gateway_with_a_key_asks_for_it(self):
        url = f"http://127.0.0.1:{(port := free_port())}"
        gateway = process("tandem-gateway", "--config", FOLDER / "gateway.toml", "--id", "keyed",
                          "--listen", f"127.0.0.1:{port}", "--api-key", "sesame")
        with gateway:
            self.wait_for(f"{url}/health")
            page = self.open(url)
            expect(page.locator("#key-dialog")).to_be_visible()
            page.keyboard.type("wrong")
            page.keyboard.press("Enter")
            expect(page.locator("#key-wrong")).to_be_visible()
            page.locator("#key").fill("sesame")
            page.keyboard.press("Enter")
            expect(page.locator("#key-dialog")).to_be_hidden()
            expect(page.locator("#ring .card.joined.prefill")).to_have_count(1)
            page.locator("#chat-text").fill("Hi")
            page.keyboard.press("Enter")
            expect(page.locator(ANSWER)).to_be_visible()

    def wait_for(self, url):
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError):
                return urllib.request.urlopen(url, timeout=5).close()
            time.sleep(0.05)
        self.fail(f"{url} does not answer")


class Looks(Case):
    def test_it_is_open_to_all_in_dark_and_light(self):
        found, complaints = [], []
        for scheme in ("dark", "light"):
            page = self.open_ready(color_scheme=scheme)
            page.locator("#max-tokens").fill("48")
            for text in ("What is a lighthouse?", "And who lives in one?"):
                before = page.locator(ANSWER).count()
                page.locator("#chat-text").fill(text)
                page.keyboard.press("Enter")
                expect(page.locator(ANSWER)).to_have_count(before + 1)
            page.locator("#requests button").first.click()
            expect(page.locator("#requests .detail")).to_be_visible()
            page.screenshot(path=SCREENSHOTS / f"{scheme}.png")
            found += violations(page, scheme)
            wide_table = table_roles(page)
            contrast = page.evaluate(DRAWN_CONTRAST)
            if contrast < CONTRAST_MIN:
                found.append(f"{scheme}: text in the drawing has a contrast of {contrast:.2f}")
            self.check_calm()
            complaints += self.complaints()
            page.set_viewport_size({"width": 390, "height": 900})
            # The next look at the ring draws its cards one below the other.
            page.wait_for_function("""() => [...document.querySelectorAll("#ring .card")]
                .map((card) => card.getBoundingClientRect())
                .every((card, at, all) => card.right <= innerWidth && card.width > innerWidth / 3
                    && (at === 0 || card.top >= all[at - 1].bottom))""")
            page.screenshot(path=SCREENSHOTS / f"{scheme}-narrow.png", full_page=True)
            found += violations(page, f"{scheme}, narrow")
            # It is laid out as a grid here and still told as a table, the same but for `.wide`.
            for role, kind in (("columnheader", "th"), ("cell", "td")):
                wide_table[role] -= page.locator(f"table {kind}.wide").count()
            self.assertEqual(table_roles(page), wide_table)
            wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
            self.assertLessEqual(page.evaluate(wide), 0, "nothing sticks out of a narrow window")
            self.assertEqual(page.evaluate(CUT_OFF), [], "nothing of the table is cut off")
        self.assertTrue(row("page-console-errors", len(complaints), "errors", 0, not complaints))
        holds = row("page-accessibility", len(found), "violations", 0, not found)
        self.assertTrue(holds, "\n".join(found))


if __name__ == "__main__":
    unittest.main()
