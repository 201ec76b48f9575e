"""A user's degradations before Eq. 13: any albumentations pipeline that keeps every pixel in its place.

A pipeline is plain values: a list such as `[{"MotionBlur": {"blur_limit": 9, "p": 0.3}}]`, where `OneOf` and
other compositions take their parts under `transforms`, or what `albumentations.save` writes. Its text form is
canonical JSON, which a spec carries and a digest covers. It is seeded by content.

Seeded by content does not mean portable: albumentations computes in floats and guarantees no bytes. With IPP,
AVX and NumPy's SIMD switched off, ten draws of albumentations 2.0.8 at 512 px differed for AdvancedBlur,
Defocus, GaussianBlur, MotionBlur, ZoomBlur, Emboss, RingingOvershoot, Sharpen, UnsharpMask, ColorJitter,
HEStain, HueSaturationValue, PlasmaBrightnessContrast, PlasmaShadow, RandomGravel, RandomSnow and Spatter, and
agreed for all others that may run here. So a spec with a pipeline never counts as portable.
"""

import json
import os
import random
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from diffbfr.degradation.spec import MAX_KERNEL_PX
from diffbfr.documents import abridged, check_values
from diffbfr.errors import UsageError, one_line

if TYPE_CHECKING:
    import albumentations as A

_CLASS: Final = "__class_fullname__"
_EXAMPLE: Final = "[{MotionBlur: {blur_limit: 9, p: 0.3}}]"
_MAX_NUMBER: Final = 65_536
_OF_A_KERNEL: Final = re.compile(r"blur|kernel|sigma|radius|iterations")
_PROBABILITY: Final = 0.5  # albumentations' own default
_IN_PLACE: Final = ("BaseDropout", "Morphological", "NoOp", "PixelDropout")
"""Transforms that albumentations also applies to masks and boxes, though they move no pixel."""


def describe_pipeline(values: Any) -> str:
    """Return the text form of a pipeline in plain values; UsageError if it is invalid or moves pixels."""
    if isinstance(values, Mapping) and isinstance(values.get("transform"), Mapping):
        tree = dict(values["transform"])
    elif isinstance(values, list):
        tree = {_CLASS: "Compose", "p": 1.0, "transforms": [_long(value) for value in values]}
    else:
        raise UsageError(
            f"the pipeline before Eq. 13 is {abridged(values)}; expected a list of transforms such as "
            f"{_EXAMPLE}; write it so"
        )
    _check_numbers(tree)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    _load(text)
    return text


def run_pipeline(text: str, pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Run a pipeline on a face, uint8 [h, w, 3] in and out, of the same size.

    The same seed gives the same face with the same versions of the libraries.
    """
    pipeline = _load(text)
    pipeline.set_random_state(np.random.Generator(np.random.Philox(key=seed)), random.Random(seed))
    done = np.asarray(pipeline(image=pixels)["image"])
    if done.dtype != np.uint8 or done.shape != pixels.shape:
        raise UsageError(
            f"the pipeline before Eq. 13 made {done.dtype} {done.shape} of uint8 {pixels.shape}; "
            "expected the same kind and size; leave out what changes them"
        )
    return np.ascontiguousarray(done)


def _long(value: Any) -> dict[str, Any]:
    """Turn `{Name: {argument: value}}` into the form that albumentations reads back."""
    if not (
        isinstance(value, Mapping)
        and len(value) == 1
        and isinstance(next(iter(value.values())), Mapping | None)
    ):
        raise UsageError(
            f"a transform is {abridged(value)}; expected one name with its arguments, such as {_EXAMPLE}; "
            "write it so"
        )
    (name, arguments), *_ = value.items()
    tree = {"p": _PROBABILITY, **(arguments or {}), _CLASS: str(name)}
    if "transforms" in tree:
        tree["transforms"] = [_long(part) for part in tree["transforms"]]
    return tree


def _check_numbers(tree: Mapping[str, Any]) -> None:
    """UsageError for a number that no transform needs: a blur of 10^8 px takes 10^16 operations a pixel."""
    check_values(tree)
    waiting: list[tuple[str, Any]] = list(tree.items())
    for name, value in waiting:  # grows while it is read
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, list | tuple):
            waiting += [(name, item) for item in value]
        elif isinstance(value, int | float):
            most = MAX_KERNEL_PX if _OF_A_KERNEL.search(name) else _MAX_NUMBER
            if not abs(value) <= most:
                raise UsageError(
                    f"the pipeline before Eq. 13 has {name}={abridged(value)}; expected at most {most}; "
                    "correct it"
                )


@lru_cache(maxsize=4)
def _load(text: str) -> "A.BaseCompose":
    # Without this, importing albumentations asks PyPI for a newer version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    from albumentations.core.serialization import SERIALIZABLE_REGISTRY

    tree = json.loads(text)
    for name in _names(tree):
        if name not in SERIALIZABLE_REGISTRY:
            near = get_close_matches(name, SERIALIZABLE_REGISTRY, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"albumentations {A.__version__} has no transform {name!r}; {hint}correct the pipeline "
                "before Eq. 13"
            )
        in_place = tuple(SERIALIZABLE_REGISTRY[kind] for kind in _IN_PLACE)
        if issubclass(SERIALIZABLE_REGISTRY[name], A.DualTransform) and not issubclass(
            SERIALIZABLE_REGISTRY[name], in_place
        ):
            raise UsageError(
                f"{name} is a geometric transform, so the low-quality face would no longer lie on its ground "
                "truth; "
                "expected transforms that leave every pixel in its place; transform the photos before they "
                "are sharded"
            )
    try:
        pipeline = A.from_dict({"transform": tree})
    except Exception as error:
        # Errors of pydantic and albumentations, and whatever a transform raises for its arguments.
        raise UsageError(
            f"albumentations refuses the pipeline before Eq. 13 ({one_line(error)}); correct its arguments"
        ) from error
    for part in _parts(pipeline):
        if part.targets_as_params:
            raise UsageError(
                f"{type(part).__name__} needs {', '.join(part.targets_as_params)} beside the image, which "
                "nothing here has; leave it out"
            )
    return pipeline if isinstance(pipeline, A.BaseCompose) else A.Compose([pipeline])


def _parts(pipeline: "A.BaseCompose | A.BasicTransform") -> "Iterator[A.BasicTransform]":
    if hasattr(pipeline, "transforms"):
        for part in pipeline.transforms:
            yield from _parts(part)
    else:
        yield pipeline


def _names(tree: Mapping[str, Any]) -> Iterator[str]:
    yield str(tree.get(_CLASS)).rpartition(".")[2]
    for part in tree.get("transforms", ()):
        yield from _names(part)
