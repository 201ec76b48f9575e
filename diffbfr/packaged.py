"""The cascades that come with the package: of drawn faces, and of real ones where it was built with them.

Nothing here imports torch, so that a command can name its default at no cost.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from diffbfr.stages import PACKAGED

FACES: Final = "faces"
"""The cascade of real faces, wherever a cascade is named; `PACKAGED` is the one of drawn faces."""
RECORD: Final = "cascade.json"
CARD: Final = "README.md"
"""The model card beside the weights: data, terms, people, limits and figures."""
_FOLDERS: Final[Mapping[str, str]] = MappingProxyType({PACKAGED: "tiny", FACES: "faces"})
_WEIGHTS: Final = Path(__file__).parent / "weights"


def packaged_folder(name: str) -> Path:
    """The folder of a packaged cascade by its name, which need not be there."""
    return _WEIGHTS / _FOLDERS[name]


def packaged_names() -> tuple[str, ...]:
    """The names of the packaged cascades that are there."""
    return tuple(name for name in _FOLDERS if (packaged_folder(name) / RECORD).is_file())


def named_folder(name: str) -> Path:
    """The folder that is meant where a cascade may be a packaged one, by name, or a folder."""
    return packaged_folder(name) if name in _FOLDERS else Path(name)


def default_cascade() -> str:
    """The cascade that a restoration takes if none is named: of real faces, if it is there."""
    return FACES if FACES in packaged_names() else PACKAGED


def read_card(name: str) -> str:
    """The model card of a packaged cascade; "" if it has none."""
    card = packaged_folder(name) / CARD
    return card.read_text() if card.is_file() else ""
