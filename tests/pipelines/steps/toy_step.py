"""A step in one file: it counts the letters of some words, a task a word.

Run as a program it is a pipeline of its own: `python -m tests.pipelines.steps.toy_step ROOT WORD...`.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.execution import dag
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.execution.dag import Step, StepOutput
from pipelines.execution.decision import Decision
from pipelines.execution.runner import run_steps
from pipelines.recipes.recipe import Recipe
from pipelines.steps.context import RunContext
from pipelines.steps.definition import StepDef, driver_only
from tests.pipelines.flows.pocket import pocket

CODE = "tests.pipelines.steps.toy_step"
KILL_AT = "TOY_STEP_KILL_AT"


@dataclass(frozen=True)
class CountTask:
    word: str
    place: str


def count_letters(task: CountTask) -> bool:
    """Write the number of letters, once; returns whether this call did the work."""
    if storage.exists(task.place):
        return False
    if os.environ.get(KILL_AT) == task.word:
        os.kill(os.getpid(), signal.SIGKILL)
    storage.write_atomic(task.place, str(len(task.word)).encode())
    return True


@driver_only
def _config(recipe: Recipe) -> dict[str, object]:
    return {"words": list(recipe.name.split())}


@driver_only
def _build(ctx: RunContext, folder: str) -> StepOutput:
    words = ctx.recipe.name.split()
    tasks = [CountTask(word, storage.join(folder, f"{word}.txt")) for word in words]
    done = ctx.cluster.map(count_letters, tasks, label="toy", unit="words")
    return StepOutput({word: f"{word}.txt" for word in words}, {"new": sum(done)})


TOY = StepDef("toy", (CODE,), _config, _build, lambda recipe: f"{len(recipe.name.split())} words")


def pipeline(root: str, words: Sequence[str], cluster: Cluster) -> tuple[list[Step], ArtifactStore]:
    store = ArtifactStore(root)
    ctx = RunContext(replace(pocket(), name=" ".join(words)), store, cluster)
    ctx.add(TOY)
    return list(ctx.steps.values()), store


def plan(root: str, words: Sequence[str], cluster: Cluster) -> Decision:
    steps, store = pipeline(root, words, cluster)
    (decision,) = dag.plan(steps, store)
    return decision


def run(root: str, words: Sequence[str], cluster: Cluster) -> dag.StepResult:
    steps, store = pipeline(root, words, cluster)
    (result,) = run_steps(steps, store)
    return result


if __name__ == "__main__":
    with Cluster(pocket().cluster) as serial:
        run(sys.argv[1], sys.argv[2:], serial)
