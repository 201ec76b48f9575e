"""What a step of a pipeline is: its name, its code, its settings, and how it is built.

A step lives in one file: the worker function, which runs on the cluster, and beside it a `StepDef` whose
`build` runs in the driver and spreads the work. `pipelines/flows/train_cascade.py` puts steps in order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pipelines.execution.dag import StepOutput
    from pipelines.recipes.recipe import Recipe
    from pipelines.steps.context import RunContext

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class StepDef:
    """A step, before it has a recipe and inputs.

    `name` is also the folder under `artifacts/`. `code` names the modules where the code that decides the
    result begins; the fingerprint follows their imports. `config` returns the settings that decide the
    result, by dotted path. `build(ctx, folder)` fills the artifact's folder. `estimate` says in a line how
    much work that is, for `--plan`. Steps in `parallel_with` become ready at the same time: each of them
    takes its part of this machine's cores.
    """

    name: str
    code: tuple[str, ...]
    config: "Callable[[Recipe], Mapping[str, Any]]"
    build: "Callable[[RunContext, str], StepOutput]"
    estimate: "Callable[[Recipe], str]" = lambda recipe: ""
    parallel_with: frozenset[str] = frozenset()

    @property
    def num_parallel(self) -> int:
        """How many steps share the cores with this one, itself included.

        It does not depend on what is left to do: the number of threads decides the last bits of a sum.
        """
        return 1 + len(self.parallel_with)


def driver_only(function: Function) -> Function:
    """Mark a function that distributes work and decides nothing: it is not part of the code of a step.

    `pipelines.execution.fingerprint` leaves out the body of such a function, and what it imports.
    """
    return function


def without(settings: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """Return the settings without some paths, and without all settings in a path that is a group."""
    prefixes = tuple(f"{path}." for path in left_out)
    return {path: value for path, value in settings.items() if not f"{path}.".startswith(prefixes)}
