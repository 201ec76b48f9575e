# %% [markdown]
# # Lineage, promotion, rollback
#
# Two runs of the whole pipeline, reduced to seconds, register two cascades. The first becomes champion. The
# second is worse: the gate refuses it; it is promoted all the same, and then rolled back. Each model can be
# traced to its photos.

# %%
import os
import tempfile
from dataclasses import replace

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import torch

from diffbfr.errors import DiffBFRError
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.flows import train_cascade
from pipelines.flows.lineage import format_chain, trace
from pipelines.flows.promote import promote
from pipelines.recipes.presets import smoke
from pipelines.registry import CASCADE, get_version, list_versions, rollback
from pipelines.tracking.connection import open_registry

torch.set_num_threads(1)
root = tempfile.mkdtemp(prefix="diffbfr-notebook-")

# %% [markdown]
# ## A recipe of seconds
#
# `smoke` with a few faces and two steps a stage, in this process. A run is a recipe and a root.


# %%
def brief(init):
    recipe = smoke()

    def fewer(stage):
        training = replace(
            stage.training,
            num_samples=8,
            global_batch=4,
            warmup_samples=0,
            decay_samples=0,
            checkpoint_samples=8,
        )
        return replace(stage, training=training)

    return replace(
        recipe,
        init=init,
        data=replace(
            recipe.data,
            faces="synthetic:count=12,seed=0,px=128",
            shard_size=6,
            variants=1,
            val_fraction=0.0,
            test_fraction=0.3,
        ),
        irm1=fewer(recipe.irm1),
        irm2=fewer(recipe.irm2),
        tem=fewer(recipe.tem),
        evaluate=replace(recipe.evaluate, num_panels=1),
        restore=replace(recipe.restore, num_photos=2),
        cluster=replace(recipe.cluster, num_workers=0),
    )


good = brief("packaged")
report = train_cascade.run(good, root)
print(report.scores)
assert [step.action for step in report.steps] == ["RUN"] * len(report.steps)

# %% [markdown]
# ## Nothing is made twice

# %%
again = train_cascade.run(good, root)
assert [step.action for step in again.steps] == ["HIT"] * len(again.steps)

# %% [markdown]
# ## The first champion

# %%
registry = open_registry(root)
promote(registry, f"{CASCADE}@candidate", force=False, why="the first one", recipe=good, root=root)
champion = get_version(registry, f"{CASCADE}@champion")
print(champion.ref, champion.digest[:16])
assert champion.version == get_version(registry, f"{CASCADE}@1").version

# %% [markdown]
# ## Its lineage
#
# The chain from the registered version back to the photos. Every file on the way is read and compared with
# its record; a `!` would mark a difference.

# %%
chain = trace(registry, ArtifactStore(root), f"{CASCADE}@champion")
print(format_chain(chain))
assert not any(link.problems for link in chain.all())
assert any("shard" in link.title for link in chain.all())

# %% [markdown]
# ## A worse candidate
#
# The same recipe from random weights. The dataset has not changed and is not made again; what follows from
# the weights is.

# %%
bad = brief("scratch")
report = train_cascade.run(bad, root)
actions = {step.name: step.action for step in report.steps}
print({name: action for name, action in actions.items() if action == "HIT"})
assert actions["shard"] == "HIT"
assert actions["train-irm1"] == "RUN"
assert len(list_versions(registry, CASCADE)) == 2

# %% [markdown]
# ## The gate
#
# Promotion compares both face by face on the frozen hold-out, and refuses what may be worse.

# %%
try:
    promote(registry, f"{CASCADE}@candidate", force=False, why="newer", recipe=bad, root=root)
    refused = ""
except DiffBFRError as error:
    refused = str(error)
print(refused)
assert "may be worse than the champion" in refused
assert get_version(registry, f"{CASCADE}@champion").version == champion.version

# %% [markdown]
# ## Forced, and rolled back

# %%
promote(registry, f"{CASCADE}@candidate", force=True, why="to show a rollback", recipe=bad, root=root)
assert get_version(registry, f"{CASCADE}@champion").version != champion.version
assert get_version(registry, f"{CASCADE}@previous").version == champion.version

rollback(registry, CASCADE, "faces are noise")
assert get_version(registry, f"{CASCADE}@champion").version == champion.version
print("champion again:", get_version(registry, f"{CASCADE}@champion").ref)
