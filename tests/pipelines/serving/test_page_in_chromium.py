"""A person's way through the app in a headless Chromium: a real upload, the result, its comparison, a refusal."""

import hashlib
from pathlib import Path

import pytest

from tests.pipelines.dot_photos import encoded, find_dots, photo_of_dots
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.serving.browser import headless_chromium
from tests.pipelines.serving.served import served

SHOWN = "return document.querySelectorAll('.result:not([hidden]) .face').length"


@pytest.mark.slow
def test_a_photo_is_dropped_restored_compared_and_another_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_dots(monkeypatch)
    evil = tmp_path / "<img src=x onerror=alert(1)>.png"
    evil.write_bytes(encoded(photo_of_dots(1, 2), "PNG"))
    (tmp_path / "note.jpg").write_bytes(b"this is no photo")
    with served(FakeModel()) as server, headless_chromium(tmp_path) as browser:
        browser.open(server.address)
        browser.wait("return document.getElementById('takes').textContent")
        browser.run(
            "const s = document.getElementById('samples'); s.value = 3; s.dispatchEvent(new Event('input'))"
        )
        assert browser.run("return document.querySelector('output[for=samples]').value") == "3"
        for is_own in ("true", "false"):
            browser.run("document.getElementById('adaptive').click()")
            assert str(browser.run("return document.getElementById('fidelity').disabled")).lower() == is_own
        browser.choose_files("#choose", evil)
        assert browser.wait(f"{SHOWN} === 2")
        assert browser.run("return document.querySelector('.name').textContent") == evil.name
        assert "2 faces restored" in browser.run("return document.querySelector('.summary').textContent")
        tabs = "return [...document.querySelectorAll('.tabs button')].map((it) => it.textContent)"
        assert browser.run(tabs) == ["restoration 1", "restoration 2", "restoration 3", "where they differ"]
        widths = "return [...document.querySelectorAll('.compare img')].map((it) => it.naturalWidth)"
        assert browser.run(widths) == [240, 240]
        browser.run(
            "const s = document.querySelector('.compare input'); s.value = 20; s.dispatchEvent(new Event('input'))"
        )
        clip = "return getComputedStyle(document.querySelector('.after')).clipPath"
        assert browser.run(clip) == "inset(0px 0px 0px 20%)"
        browser.run("document.querySelectorAll('.tabs button')[3].click()")
        assert browser.wait("return document.querySelector('.compare.single .after').complete")

        link = browser.run("return document.querySelector('.downloads a').getAttribute('href')")
        job = server.restorer.store.get(link.split("/")[3])
        assert job is not None
        assert server.ask(link.lstrip("/")).body == job.files[0][1]
        assert len(job.files) == 4

        browser.choose_files("#choose", tmp_path / "note.jpg")
        refusal = "return document.querySelector('.card .trouble:not([hidden])')?.textContent"
        assert "expected PNG" in browser.wait(refusal)
        # a breach of the policy, or a script of a name, would be told here
        assert browser.console() == []
        browser.run("document.querySelectorAll('.close').forEach((it) => it.click())")
        browser.wait("return document.querySelectorAll('.card').length === 0")


@pytest.mark.slow
def test_on_a_phone_nothing_is_cut_off_and_a_face_that_failed_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_dots(monkeypatch)
    photos = [encoded(photo_of_dots(seed, 2), "PNG") for seed in range(2)]
    for number, photo in enumerate(photos):
        (tmp_path / f"{number}.png").write_bytes(photo)
    broken = hashlib.sha256(photos[0]).hexdigest()
    with served(FakeModel(broken=(broken,))) as server, headless_chromium(tmp_path, 500, 900) as browser:
        browser.open(server.address)
        browser.wait("return document.getElementById('takes').textContent")
        fits = "return document.documentElement.scrollWidth <= innerWidth"
        assert browser.run(fits)
        browser.choose_files("#choose", tmp_path / "0.png")
        browser.wait(f"{SHOWN} === 2")
        assert browser.run("return document.querySelector('.chip').textContent") == "a face failed"
        summary = browser.run("return document.querySelector('.summary').textContent")
        assert "0 faces restored, 2 failed and kept as in the photo" in summary
        assert browser.run("return document.querySelectorAll('.face.doubt').length") == 2
        browser.run("document.querySelector('.close').click()")
        browser.run("document.getElementById('samples').value = 2")
        browser.choose_files("#choose", tmp_path / "1.png")
        browser.wait(f"{SHOWN} === 2")
        browser.run("document.querySelectorAll('.tabs button')[1].click()")
        browser.wait("return document.querySelector('.after').complete")
        browser.run("document.querySelectorAll('.tabs button')[0].click()")
        assert browser.run("return document.querySelectorAll('.boxes i').length") == 2
        assert browser.run(fits)
        assert browser.console() == []
