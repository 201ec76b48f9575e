"""The error of an unusable image, with a stable reason code for quarantine tables and ledgers."""

from typing import Final, Literal, TypeAlias, get_args

from diffbfr.errors import DiffBFRError

Reason: TypeAlias = Literal[
    "empty",
    "not_an_image",
    "unsupported_format",
    "too_many_pixels",
    "too_small",
    "truncated",
    "corrupt",
    "unsupported_pixels",
    "has_alpha",
    "not_square",
]

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""Every reason code; tables store them, so none is ever renamed."""


class ImageRefused(DiffBFRError):  # noqa: N818 - a refusal is an outcome with its own row, not a fault of the program
    """An image cannot be used; `reason_code` is a stable word, the message a sentence."""

    def __init__(self, reason_code: Reason, message: str) -> None:
        super().__init__(message)
        self.reason_code = reason_code

    def __reduce__(self) -> tuple[type["ImageRefused"], tuple[Reason, str]]:
        return type(self), (self.reason_code, str(self))
