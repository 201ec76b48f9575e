"""Procedural faces as a source: `synthetic:count=640,seed=0,px=128`."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import ClassVar, Final

from diffbfr.documents import abridged
from diffbfr.errors import UsageError
from pipelines.sources.source import PhotoRef, PhotoSource

SYNTHETIC: Final = "synthetic:"
_FACES_PER_SEED: Final = 1_000_000
_DEFAULTS: Final = MappingProxyType({"count": 640, "seed": 0, "px": 128})
_LIMITS: Final = MappingProxyType(
    {"count": (1, _FACES_PER_SEED), "seed": (0, 1_000_000_000), "px": (16, 512)}
)
# never to be changed: the bytes of a photo determine its split, and the packaged cascade has a test split
_COMPRESS_LEVEL: Final = 6
_MAX_DIGITS: Final = 20
_EXAMPLE: Final = SYNTHETIC + ",".join(f"{name}={value}" for name, value in _DEFAULTS.items())


@dataclass(frozen=True)
class SyntheticSource(PhotoSource):
    """Face i of seed s is `synthetic.render_face(1_000_000 s + i, px)` as PNG, rendered where it is read."""

    encodes_itself: ClassVar[bool] = True
    uri: str
    count: int
    seed: int
    px: int

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the faces in order."""
        for number in range(self.count):
            face = self.seed * _FACES_PER_SEED + number
            yield PhotoRef(
                f"{SYNTHETIC}{face}", f"synthetic-{self.seed}-{number:06d}.png", 0, f"face:{face}:{self.px}"
            )

    def read(self, ref: PhotoRef) -> bytes:
        """Render one face."""
        from diffbfr.images import encode_png
        from diffbfr.synthetic import render_face

        return encode_png(render_face(int(ref.uri.removeprefix(SYNTHETIC)), self.px).pixels, _COMPRESS_LEVEL)


def parse_synthetic(text: str) -> SyntheticSource:
    """Parse the options, each optional and in any order; UsageError names the nearest known option."""
    values = dict(_DEFAULTS)
    for option in filter(None, text.removeprefix(SYNTHETIC).split(",")):
        name, _, value = (part.strip() for part in option.partition("="))
        if name not in values:
            near = get_close_matches(name[:20], values, n=1, cutoff=0.0)[0]
            raise UsageError(
                f"{abridged(text)} has the option {abridged(name)}; expected {', '.join(values)}, the "
                f"nearest is {near!r}; write {_EXAMPLE}"
            )
        low, high = _LIMITS[name]
        if not (
            len(value) < _MAX_DIGITS and value.isascii() and value.isdigit() and low <= int(value) <= high
        ):
            raise UsageError(
                f"{abridged(text)} has {name}={abridged(value)}; expected a whole number in {low}..{high}; "
                f"write {_EXAMPLE}"
            )
        values[name] = int(value)
    uri = SYNTHETIC + ",".join(f"{name}={value}" for name, value in values.items())
    return SyntheticSource(uri, values["count"], values["seed"], values["px"])
