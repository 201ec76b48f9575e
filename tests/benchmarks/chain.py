"""What the chain costs beside its arithmetic: the column beside the bare sampler, tracking beside the steps. Processor time, interleaved.

`.venv/bin/python -m tests.benchmarks.chain` prints both tables; the packaged IRM-1 makes the column of 16 procedural faces.
"""

import hashlib
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from diffbfr.cascade import packaged_cascade, sample
from diffbfr.checkpoint import load_stage
from diffbfr.images import lq_to_model, to_tensor
from diffbfr.keys import noise_key
from pipelines import storage
from pipelines.flows.journal import Journal
from pipelines.flows.teller import Teller
from pipelines.manifest import open_dataset
from pipelines.progress import Metrics
from pipelines.steps.condition import ConditionTask, make_conditioner, plan_condition
from tests.pipelines.tiny_dataset import CONFIG, build

ROUNDS = 5
POSTS = 2000


def column(folder: Path) -> None:
    """Print the processor time of the step and of the sampler alone, on the same pictures."""
    config = replace(CONFIG, hq_px=128, lq_px=32, variants=1, shard_size=16)
    build("synthetic:count=16,seed=0,px=128", folder / "data", config)
    dataset, stage = open_dataset(str(folder / "data")), load_stage(packaged_cascade(), "irm1")
    stage = stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    template = ConditionTask(0, str(folder / "data"), "irm1-bench", (), 1, stage.spec, str(packaged_cascade()), "d" * 64)
    (task,) = plan_condition(template)
    worker = make_conditioner(task)
    x_0 = to_tensor([lq_to_model(dataset.lq(key, 0), 32) for key in task.keys])
    keys = [noise_key(hashlib.sha256(dataset.lq_bytes(key, 0)).hexdigest()) for key in task.keys]
    ratios = []
    for round_ in range(ROUNDS + 1):
        storage.remove_tree(storage.join(task.dataset, task.column))
        started = time.process_time()
        sample(stage, keys, "fast", start_image=None, condition=x_0)
        bare = time.process_time() - started
        started = time.process_time()
        worker(task)
        whole = time.process_time() - started
        if round_:  # the first opens files and plans kernels
            ratios.append(whole / bare)
    print(f"column: {statistics.median(ratios):.3f} times the bare sampler ({min(ratios):.3f} to {max(ratios):.3f})")


def tracking(folder: Path) -> None:
    """Print what a post costs the thread that trains, with a server that answers and one that is away."""

    def away() -> None:
        raise ConnectionError

    for name, call in (
        ("warming up", None),
        ("no tracking", None),
        ("a server that answers", lambda: None),
        ("a server that is away", away),
    ):
        teller = Teller(pause_s=0.1)

        def hear(posts: object, call: object = call, teller: Teller = teller) -> None:
            if call is not None:
                teller.tell(call)  # type: ignore[arg-type]

        with Journal(str(folder / f"{name}.json"), hear, every_s=0.2) as journal:
            longest, began = 0.0, time.thread_time()
            for step in range(1, POSTS + 1):
                started = time.thread_time()
                journal.add(Metrics(step, step, {"loss": 0.5, "images_per_s": 10.0, "data_share": 0.0}))
                longest = max(longest, time.thread_time() - started)
            mean = (time.thread_time() - began) / POSTS
        print(f"{name}: {1e6 * mean:.1f} us a post, at most {1e3 * longest:.3f} ms")
        teller.close(0.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        column(Path(name))
        tracking(Path(name))
