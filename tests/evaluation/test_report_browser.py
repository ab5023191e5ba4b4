"""The report in a real headless Chromium: it plays, it is silent, it asks for nothing, it fits."""

import dataclasses
import json

import pytest
from made_up import NO_VIDEO

from ideomotor.evaluation.report import write_report
from ideomotor.evaluation.study import Study, StudyRow
from ideomotor.evaluation.study_page import study_page
from ideomotor.evaluation.study_summary import summarize_study

pytestmark = pytest.mark.browser


# Scrolls to a video and waits until it has data and its time moves (a short one may loop in between).
PLAYS = """
const [video, done] = arguments, began = performance.now(), times = new Set();
video.scrollIntoView({block: "center", behavior: "instant"});
(function look() {
  times.add(video.currentTime);
  const plays = video.readyState >= 2 && !video.paused && times.size > 2 && video.videoWidth > 0;
  if (plays || performance.now() - began > 15000) {
    const error = video.error?.message;
    done({plays, ready: video.readyState, paused: video.paused, times: [...times].slice(0, 5), error});
  } else setTimeout(look, 30);
})();
"""
# Names what is cut off or sticks out at the right; what scrolls within itself may.
WIDE = """
return [...document.querySelectorAll("body *")].filter(e => !e.closest("pre, caption, svg") &&
  e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName + "." + e.className);
"""


@pytest.fixture(scope="module")
def page(playable_report, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report"), playable_report)


def show(browser, page, width=1280, *, dark=False, still=False):
    media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce" if still else ""}
    features = [{"name": name, "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get("about:blank")  # ends the page before, whose videos' controls may still be loading their icons
    for log in ("browser", "performance"):
        browser.get_log(log)  # reading empties it
    browser.get(page.as_uri())


def console(browser):
    return [f"{entry['level']}: {entry['message']}" for entry in browser.get_log("browser")]


def asked_for(browser):
    """Addresses that the page asked for, beside itself and the data it holds, and why each was refused."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    refused = {e["params"]["requestId"]: e["params"] for e in events if e["method"] == "Network.loadingFailed"}
    rest = [request for request in requests if not request["request"]["url"].startswith("data:")]
    own = [request for request in rest if request["request"]["url"] == browser.current_url]
    assert len(own) == 1, "the log must hold the page itself, once"
    return [
        (request["request"]["url"], refused.get(request["requestId"], {}).get("blockedReason"))
        for request in rest
        if request is not own[0]
    ]


def test_every_video_plays_and_the_page_is_silent(browser, page):
    show(browser, page)
    videos = browser.find_elements("tag name", "video")
    assert len(videos) == 18
    for video in videos:
        state = browser.execute_async_script(PLAYS, video)
        assert state["plays"], (video.get_attribute("aria-label"), state)
    assert console(browser) == []
    assert asked_for(browser) == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits(browser, page, width, dark):
    show(browser, page, width, dark=dark)
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(WIDE) == []
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
    assert console(browser) == []


def test_truth_and_imagination_run_in_step(browser, page):
    show(browser, page)
    apart = browser.execute_async_script(
        """
        const done = arguments[0], [a, b] = document.querySelectorAll(".trio .together");
        a.scrollIntoView({block: "center", behavior: "instant"});
        b.currentTime = a.duration / 2;  // put out of step on purpose
        const began = performance.now();
        (function look() {
          const gap = Math.abs(a.currentTime - b.currentTime), apart = Math.min(gap, a.duration - gap);
          if ((performance.now() - began > 1000 && apart < 0.2) || performance.now() - began > 15000) done(apart);
          else setTimeout(look, 20);
        })();
        """
    )
    assert apart < 0.2


def test_the_button_stops_and_starts_all(browser, page):
    show(browser, page)
    button = browser.find_element("id", "motion")
    first = browser.find_element("tag name", "video")
    assert browser.execute_async_script(PLAYS, first)["plays"]
    browser.execute_script("arguments[0].click()", button)
    assert button.text == "Play videos"
    assert browser.execute_script("return [...document.querySelectorAll('video')].every(v => v.paused)")
    browser.execute_script("arguments[0].click()", button)
    assert button.text == "Pause videos"
    assert browser.execute_async_script(PLAYS, first)["plays"]


def test_who_wants_less_motion_gets_none(browser, page):
    show(browser, page, still=True)
    assert browser.find_element("id", "motion").text == "Play videos"
    browser.execute_async_script("setTimeout(arguments[0], 400)")
    assert browser.execute_script("return [...document.querySelectorAll('video')].every(v => v.paused)")


def test_texts_cannot_break_out_nor_overflow(browser, playable_report, tmp_path):
    nasty = "</title></style><script>document.title='broken'</script><img src=http://127.0.0.1:9/x onerror=alert(1)>"
    long = nasty + "x" * 200
    clip = dataclasses.replace(playable_report.imagination.clips[0], text=long, source=long)
    shown = dataclasses.replace(playable_report.rollouts[0].result, task=long, arm=long)
    arm = playable_report.arms["pretrained"]
    arm = dataclasses.replace(arm, tasks={long: arm.tasks["door-open"]})
    data = dataclasses.replace(
        playable_report,
        title=long,
        subtitle=long,
        command=long,
        protocol={long: long},
        arms={"pretrained": arm},
        imagination=dataclasses.replace(playable_report.imagination, clips=[clip]),
        rollouts=[dataclasses.replace(playable_report.rollouts[0], result=shown)],
        curves=[dataclasses.replace(playable_report.curves[0], stage=long, name=long)],
        stages=[dataclasses.replace(playable_report.stages[0], name=long, note=long)],
        settings={long: long},
    )
    show(browser, write_report(tmp_path, data), 390)
    assert browser.title == long
    assert browser.execute_script(WIDE) == []
    assert console(browser) == []
    assert asked_for(browser) == []


def test_the_policy_refuses_what_the_page_does_not_hold(browser, page):
    show(browser, page)
    browser.execute_async_script(
        "const image = new Image(); image.onerror = () => arguments[0](); image.src = 'http://127.0.0.1:9/x';"
    )
    assert any("Content Security Policy" in line for line in console(browser))
    assert asked_for(browser) == [("http://127.0.0.1:9/x", "csp")]


def test_a_video_that_cannot_be_decoded_would_be_noticed(browser, playable_report, tmp_path):
    """The check of this file's own check."""
    broken = dataclasses.replace(playable_report.rollouts[0], video=NO_VIDEO)
    show(browser, write_report(tmp_path, dataclasses.replace(playable_report, rollouts=[broken], imagination=None)))
    script = PLAYS.replace("15000", "1500")
    assert not browser.execute_async_script(script, browser.find_element("tag name", "video"))["plays"]


@pytest.mark.parametrize("metric", ["success", "total_reward"])
@pytest.mark.parametrize("at", [(0,), (0, 20_000)])
def test_the_page_of_a_study_fits_and_is_silent(browser, tmp_path, metric, at):
    study = Study(
        title="x" * 90,
        question="Which arm is better?",
        recipe="r",
        seeds=(0, 1, 2),
        tasks=("button-press-topdown-wall", "plate-slide"),
        episodes=2,
        arms={"mbpo": {}, "drqv2": {"rate": 0.5}, "a" * 60: {}},
        control="drqv2",
        at=at,
        metric=metric,
    )
    rows = [
        StudyRow(
            study=study.digest,
            arm=arm,
            seed=seed,
            task=task,
            at=steps,
            episode=episode,
            success=(seed + episode) % 2 == 0 or arm == "mbpo",
            steps=100,
            total_reward=-123.4 * seed,
            seconds=10.0,
        )
        for arm, seed, task, steps, episode in study.keys(study.arms, study.seeds, study.tasks)
    ]
    page = tmp_path / "study.html"
    page.write_text(study_page(summarize_study(study, rows[:-1]), {"numpy": "2.0"}))
    for width, dark in ((390, True), (1280, False)):
        show(browser, page, width, dark=dark)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script(WIDE) == []
        assert console(browser) == [] and asked_for(browser) == []
