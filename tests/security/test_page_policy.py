"""The report page states what it may load: the images in it, its one style element, nothing else."""

import base64
import hashlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines.report import (
    LineageLink,
    ReportData,
    RestoredFace,
    RestoredPhoto,
    StepLine,
    TrainingCurve,
)
from pipelines.report.data import ArchiveFacts, RefusedReason, SlowPhoto
from pipelines.report.page import render

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ACTIVE = (
    "script",
    "iframe",
    "object",
    "embed",
    "base",
    "form",
    "link",
    "audio",
    "video",
    "source",
    "template",
)


class Page(HTMLParser):
    """Collects the policy, the styles and all that a policy would have to allow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.policies: list[str] = []
        self.styles: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.before_policy: list[str] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(values["content"])
            self.before_policy = list(self.tags)
        self.tags.append(tag)
        self.attributes += values.items()
        self._in_style = tag == "style"
        if self._in_style:
            self.styles.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles[-1] += data


@pytest.fixture
def page() -> Page:
    evil = '"><img src=x onerror=alert(1)><style>*{background:url(//h/x)}</style>'
    return Page(
        render(
            ReportData(
                recipe=evil,
                command=evil,
                faces=evil,
                created=evil,
                seconds=1.0,
                evaluation=None,
                restored=(
                    RestoredPhoto(evil, "restored", PNG, PNG, evil, PNG),
                    RestoredPhoto(evil, "failed", None, None, evil),
                    RestoredPhoto(
                        evil,
                        "restored",
                        PNG,
                        PNG,
                        evil,
                        is_whole=True,
                        faces=(RestoredFace(evil, evil, PNG, PNG, True),),
                    ),
                ),
                counts=(("restored", 1), ("failed", 1)),
                archive=ArchiveFacts(
                    1.0,
                    ((evil, 1),),
                    (SlowPhoto(evil, 1.0, 1),),
                    (RefusedReason(evil, 1, evil, evil),),
                ),
                curves=(TrainingCurve("irm1", ((8, 0.5), (16, 0.4))),),
                lineage=((LineageLink(evil, evil, evil),),),
                steps=(StepLine("shard", "HIT", 2.0, evil), StepLine("train-irm1", "RUN", 60.0, evil)),
                notes=(evil,),
            )
        )
    )


def test_the_policy_allows_what_the_page_uses_and_nothing_else(page: Page) -> None:
    (policy,), (style,) = page.policies, page.styles
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert dict(rule.strip().split(" ", 1) for rule in policy.split(";")) == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_the_policy_comes_before_everything_that_it_is_about(page: Page) -> None:
    assert page.before_policy == ["html", "head", "meta"]


def test_the_page_needs_nothing_that_the_policy_forbids(page: Page) -> None:
    assert not {*page.tags} & {*ACTIVE}
    assert [value for name, value in page.attributes if name == "style" or name.startswith("on")] == []
    sources = [
        value for name, value in page.attributes if name in ("src", "srcset", "href", "data", "action")
    ]
    assert len(sources) == 7
    assert all(source.startswith("data:image/") for source in sources)


def test_the_template_marks_no_value_as_safe() -> None:
    template = Path(render.__code__.co_filename).with_name("report.html.j2").read_text()
    assert "|safe" not in template.replace(" ", "")
    assert "autoescape" not in template
