"""The viewer's page in a real headless Chromium: pictures move, it fits, it asks nobody else, it asks for the key."""

import contextlib
import json
import os
import threading
import time

import numpy as np
import pytest
from test_server import Client, serving

pytestmark = pytest.mark.browser

WIDE = """
return [...document.querySelectorAll("body *")].filter(e => !e.closest("svg") &&
  e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName + "." + e.className);
"""


def show(browser, url, width=1280, *, dark=False, still=False):
    media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce" if still else ""}
    features = [{"name": name, "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # reading empties it
    browser.get(url.replace("ws:", "http:") + "/")


def wait(browser, script, seconds=25):
    """What the script returns, once it is true."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if value := browser.execute_script(f"return {script}"):
            return value
        time.sleep(0.05)
    raise AssertionError(f"{script} stayed false; the page says {browser.find_element('tag name', 'body').text!r}")


def console(browser):
    return [f"{entry['level']}: {entry['message']}" for entry in browser.get_log("browser")]


def asked_for(browser, url):
    """Addresses beyond this server's own that the page asked for."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked += [e["params"]["url"] for e in events if e["method"] == "Network.webSocketCreated"]
    own = (url, url.replace("ws:", "http:"), "data:", "about:")
    return [address for address in asked if not address.startswith(own)]


@contextlib.contextmanager
def robots(url, count=2, wide=6, long=""):
    """Clients that ask ten times a second, each with a picture in which a bar moves, and once for the future."""
    ended = threading.Event()

    def ask(number):
        with Client(url) as client:
            at = 0
            while not ended.wait(0.1):
                picture = np.full((96, 96, 3), (30, 60 + 60 * number, 110), np.uint8)
                picture[:, at % 96 : at % 96 + 12] = (250, 200, 80)
                state = np.sin(np.arange(wide) + at / 5) / 2
                about = {"session": long or "default", "imagine": at % 20 == 0}
                client.send(
                    {
                        "images": {"main": picture, "wrist" + long: picture.swapaxes(0, 1)},
                        "state": state,
                        "ideomotor": about,
                    }
                )
                for _ in range(4 if about["imagine"] else 1):
                    client.receive()
                at += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


LOADED = "[...document.querySelectorAll('.live img')].filter(i => i.complete && i.naturalWidth > 0).length"


def test_sessions_are_seen_live_and_the_page_is_silent(browser):
    with serving() as url:
        show(browser, url)
        wait(browser, "document.getElementById('state').textContent === 'Live.'")
        with robots(url):
            wait(browser, f"{LOADED} === 4")
            seen = {
                browser.execute_script("return document.querySelector('.live img').src")
                for _ in range(40)
                if not time.sleep(0.05)
            }
            assert len(seen) > 2  # it moves
            wait(browser, "document.querySelectorAll('.imagined img').length === 2")
            captions = set()
            for _ in range(40):
                captions.add(
                    browser.execute_script("return document.querySelector('.imagined figcaption').textContent")
                )
                time.sleep(0.05)
            assert len(captions) > 2 and "main, as imagined, frame 1 of 6" in captions
            assert browser.execute_script("return document.querySelectorAll('.chunk .line').length") == 2 * 2 * 6
            text = browser.find_element("tag name", "body").text
            assert "ms waiting" not in text and "computing in a batch of" in text and "99th percentile" in text
        wait(browser, "!document.getElementById('none').hidden && document.querySelectorAll('section').length === 0")
        assert console(browser) == [] and asked_for(browser, url) == []
    wait(browser, "document.getElementById('state').textContent.startsWith('The server is not there')")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits(browser, width, dark):
    with serving() as url:
        show(browser, url, width, dark=dark)
        wait(browser, "document.getElementById('state').textContent === 'Live.'")
        with robots(url, long="x" * 100):
            wait(browser, f"{LOADED} === 4 && document.querySelectorAll('.imagined img').length === 2")
            assert browser.execute_script("return innerWidth") == width
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.execute_script(WIDE) == []
            background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
            if folder := os.environ.get("IDEOMOTOR_SCREENSHOTS"):
                browser.save_screenshot(f"{folder}/viewer-{width}-{'dark' if dark else 'light'}.png")
        assert console(browser) == [] and asked_for(browser, url) == []


def test_who_wants_less_motion_sees_the_last_frame(browser):
    with serving() as url:
        show(browser, url, still=True)
        wait(browser, "document.getElementById('state').textContent === 'Live.'")
        with robots(url, count=1):
            wait(browser, "document.querySelector('.imagined figcaption')?.textContent.endsWith('frame 6 of 6')")
            time.sleep(0.5)
            assert browser.execute_script("return document.querySelector('.imagined figcaption').textContent").endswith(
                "6 of 6"
            )


def test_the_key_is_asked_for(browser):
    with serving(key="s3cret") as url:
        show(browser, url)
        form, field = browser.find_element("id", "ask"), browser.find_element("id", "key")
        for key, said in (("wrong", "That is not the key."), ("s3cret", "Live.")):
            wait(browser, "!document.getElementById('ask').hidden", seconds=40)
            field.send_keys(key)
            form.find_element("tag name", "button").click()
            wait(browser, f"document.getElementById('state').textContent === '{said}'")
        assert not form.is_displayed()


def test_texts_cannot_break_out(browser):
    nasty = "</script><img src=http://127.0.0.1:9/x onerror=alert(1)>"
    with serving() as url:
        show(browser, url)
        wait(browser, "document.getElementById('state').textContent === 'Live.'")
        with robots(url, count=1, long=nasty):
            wait(browser, f"{LOADED} === 2")
            assert nasty in browser.find_element("tag name", "h2").text
        assert console(browser) == [] and asked_for(browser, url) == []
