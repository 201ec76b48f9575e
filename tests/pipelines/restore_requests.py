"""The request of a restoration of aligned faces, as the flow makes it."""

from dataclasses import replace
from typing import Any

from pipelines.restoration.request import RestoreRequest
from tests.pipelines.fake_cascade import FakeModel

REQUEST = RestoreRequest("", FakeModel().digest, "fast", 0, 4, True, FakeModel().hq_px, 1)


def make_request(**changes: Any) -> RestoreRequest:
    """A request of the fake model with some fields changed."""
    return replace(REQUEST, **changes)
