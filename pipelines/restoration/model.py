"""What a restoration needs of a cascade: a reference that travels to workers, and the loaded networks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from diffbfr.stages import Mode

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from diffbfr.cascade import Restoration


class LoadedModel(Protocol):
    """What a worker needs of a loaded cascade (`diffbfr.cascade.Cascade`)."""

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the number of faces in a batch changes no bit of any of them."""
        ...

    def restore(
        self,
        x_0: 'Float[Tensor, "b 3 lq lq"]',
        noise_keys: Sequence[str],
        mode: Mode,
        fidelity: Sequence[float] | None = None,
    ) -> "Restoration":
        """Restore a batch of faces in [-1, 1], with one noise key and one fidelity a face.

        The result's `tem` is b 3 hq hq.
        """
        ...


class RestorationModel(Protocol):
    """A cascade identified by its digest; it is picklable, and each worker loads it."""

    @property
    def digest(self) -> str:
        """Digest of the cascade's files."""
        ...

    @property
    def lq_px(self) -> int:
        """Side of the input in pixels."""
        ...

    @property
    def hq_px(self) -> int:
        """Side of the output in pixels."""
        ...

    @property
    def licences(self) -> tuple[str, ...]:
        """Licences of the weights in it that others trained."""
        ...

    def load(self) -> LoadedModel:
        """Load the cascade on this machine."""
        ...
