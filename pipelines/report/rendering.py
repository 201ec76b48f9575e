"""Fill a page's template: text of others without controls and passwords; nothing is loaded from elsewhere."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from diffbfr.text import shown
from pipelines.sources.sandboxed_images import shown_image


def render_page(template: Path, **values: Any) -> str:
    """The page as text; `style_hash` is added, by which its policy allows its one style element."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    text = template.read_text(encoding="utf-8")
    return environment.from_string(text).render(style_hash=_style_hash(text), **values)


def image_uri(data: bytes) -> str:
    """An image file of our own as a data URI."""
    from markupsafe import Markup

    kind = "webp" if data[:4] == b"RIFF" else "jpeg" if data[:2] == b"\xff\xd8" else "png"
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def photo_uri(data: bytes | None, largest_px: int) -> str:
    """A photo of others as a data URI of at most `largest_px`, decoded in the sandbox; "" for none."""
    reduced = None if data is None else shown_image(data, largest_px)
    return "" if reduced is None else image_uri(reduced)


def _shown(value: object) -> object:
    """What the template writes for a value: text from others without controls and passwords."""
    # images are long and ours: they are marked as safe
    return shown(value) if type(value) is str else value


def _style_hash(template: str) -> str:
    """The source of the page's one style element, as a content security policy names it."""
    style = template.partition("<style>")[2].partition("</style>")[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}"
