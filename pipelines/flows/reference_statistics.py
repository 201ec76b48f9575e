"""Make the statistics of a set of pictures, for FID against it."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from diffbfr.errors import UsageError
from diffbfr.images import Pixels, to_tensor
from diffbfr.metrics.cards import ProtocolCard
from diffbfr.metrics.frechet import FID_EMBEDDING, NUM_FEATURES, FeatureStatistics, MomentAccumulator, to_npz
from pipelines import storage
from pipelines.evaluation.metric_table import SETUP, installed_files
from pipelines.evaluation.pairing import list_pictures, read_picture
from pipelines.flows.evaluate_pairs import reference_source
from pipelines.sources import PhotoRef, PhotoSource, open_source

if TYPE_CHECKING:
    from pipelines.cluster import Cluster

PICTURES_PER_TASK = 64


@dataclass(frozen=True)
class EmbedTask:
    """Some pictures of a source, whose features are written to `place`."""

    index: int
    source: PhotoSource
    refs: tuple[PhotoRef, ...]
    px: int | None
    place: storage.Uri


def make_embedder(weights: str) -> Callable[[EmbedTask], int]:
    """Load the network once; return the function that embeds the pictures of a task."""
    import torch

    from diffbfr.metrics.inception import InceptionFeatures

    network = InceptionFeatures(weights, "cuda" if torch.cuda.is_available() else "cpu")

    def run(task: EmbedTask) -> int:
        features = [network(to_tensor(_read(task, ref))).numpy() for ref in task.refs]
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(features))
        storage.write_atomic(task.place, buffer.getvalue())
        return len(features)

    return run


def make_statistics(
    reference: str, card: ProtocolCard, place: storage.Uri, cluster: "Cluster"
) -> FeatureStatistics:
    """Embed every picture of `reference`, and write mean and covariance to `place` (.npz).

    The features of finished tasks are beside it until all are done: the same command continues.
    """
    weights = installed_files(None, None).inception
    if not weights:
        raise UsageError(f"FID's Inception is not installed; expected its weights; {SETUP}")
    source = open_source(reference)
    pictures = sorted(list_pictures(source).items())
    identity = hashlib.sha256(repr([card.px, storage.digest(weights)]).encode())
    identity.update(repr([(ref.name, ref.fingerprint) for _, ref in pictures]).encode("utf-8", "replace"))
    parts = f"{place}.parts"
    folder = storage.join(parts, identity.hexdigest()[:20])
    refs = [ref for _, ref in pictures]
    tasks = [
        EmbedTask(
            index,
            source,
            tuple(refs[start : start + PICTURES_PER_TASK]),
            card.px,
            storage.join(folder, f"{index:06}.npy"),
        )
        for index, start in enumerate(range(0, len(refs), PICTURES_PER_TASK))
    ]
    done = set(storage.list_dir(folder))
    if waiting := [task for task in tasks if f"{task.index:06}.npy" not in done]:
        cluster.map_actors(
            partial(make_embedder, weights),
            waiting,
            label="embed",
            unit="pictures",
            weight=lambda task: len(task.refs),
        )
    moments = MomentAccumulator(NUM_FEATURES)
    for task in tasks:
        moments.add(np.load(io.BytesIO(storage.read_bytes(task.place)), allow_pickle=False))
    statistics = moments.statistics(FID_EMBEDDING, reference_source([key for key, _ in pictures]))
    storage.write_atomic(place, to_npz(statistics))
    storage.remove_tree(parts)
    return statistics


def _read(task: EmbedTask, ref: PhotoRef) -> Pixels:
    pixels = read_picture(task.source, ref)
    if task.px is not None and pixels.shape[:2] != (task.px, task.px):
        raise UsageError(
            f"{ref.name} of {task.source.uri} is {pixels.shape[1]} x {pixels.shape[0]}; the card wants "
            f"{task.px} x {task.px}; resize it, or choose another --protocol"
        )
    return pixels
