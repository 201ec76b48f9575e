"""The run's mirror in MLflow: one parent run, a child a step with its configuration, curves and pictures.

Nothing here is needed to go on: records and checkpoints are. A tracking server that is away is said once and does not stop the run.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from diffbfr.errors import DiffBFRError
from pipelines import registry as models
from pipelines import storage
from pipelines.artifacts import Record
from pipelines.flows.graph import Step
from pipelines.flows.journal import read_journal
from pipelines.recipes import Recipe
from pipelines.registry import Curve, Run


class Diary:
    """Writes what each step did; a context manager around the run."""

    def __init__(self, recipe: Recipe, root: str, plan_id: str) -> None:
        self._recipe, self._root, self._plan_id = recipe, root, plan_id
        self._stack = ExitStack()
        self._parent: Run | None = None

    def __enter__(self) -> Self:
        tracking = self._recipe.tracking
        tags = {"diffbfr.recipe": self._recipe.name, "diffbfr.faces": self._recipe.data.faces}
        try:
            registry = models.open_registry(self._root, tracking.uri, tracking.experiment)
            self._parent = self._stack.enter_context(models.pipeline_run(registry, self._recipe.name, self._plan_id, tags))
        except DiffBFRError as error:
            sys.stderr.write(f"tracking is away, the run goes on without it: {error}\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def around(self, step: Step, make: Callable[[], Record], folder: str) -> Record:
        """Make a step inside a run of its own."""
        if self._parent is None:
            return make()
        with models.step_run(self._parent, step.name, step.id) as run:
            run.log_params(step.identity.config)
            record = make()
            run.log_tags({f"output.{name}": output.sha256 for name, output in record.outputs.items() if not output.path.endswith(".tar")})
            run.log_metrics(_numbers(record.facts) | {"seconds": record.seconds})
            if step.name.startswith("train-"):
                run.log_curves(curves(folder))
            if step.name == "evaluate" and storage.exists(storage.join(folder, "panels.png")):
                run.log_bytes("panels.png", storage.read_bytes(storage.join(folder, "panels.png")))
        return record


def curves(folder: str) -> list[Curve]:
    """A training's curves over samples, from its journal."""
    posts = read_journal(storage.join(folder, "journal.json"))
    names = sorted({name for post in posts for name in post.values})
    return [Curve(name, tuple((post.samples, post.values[name]) for post in posts if name in post.values)) for name in names]


def _numbers(facts: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in facts.items() if isinstance(value, int | float) and not isinstance(value, bool)}
