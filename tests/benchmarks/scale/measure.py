"""What one photo costs the object store and the driver: requests, journal and memory, counted on a small
archive.

`python -m tests.benchmarks.scale.measure [--photos N]` restores N faces from S3 to S3 (moto behind a proxy
that counts) with a cascade that has next to no weights. Counts do not depend on the machine.
"""

import argparse
import os
import tempfile
import time
import tracemalloc
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from diffbfr.images import encode_png
from diffbfr.synthetic import render_face
from tests.pipelines.faulty_s3 import Fault, faulty


@dataclass(frozen=True)
class PhotoCost:
    """Of one photo: requests by method, and bytes of the journal."""

    gets: float
    heads: float
    puts: float
    lists: float
    deletes: float
    journal_bytes: float


def of_one_more(small: PhotoCost, photos: int, large: PhotoCost, more: int) -> PhotoCost:
    """The cost of one photo more, without what an archive of any size costs."""
    names = [field.name for field in fields(PhotoCost)]
    each = {
        name: (getattr(large, name) * more - getattr(small, name) * photos) / (more - photos)
        for name in names
    }
    return PhotoCost(**each)


def outcome_bytes(photos: int = 20_000) -> float:
    """Memory of the driver for one listed photo and its outcome, which it holds to the end."""
    from dataclasses import replace

    from pipelines.dataset.manifest import LedgerRow
    from pipelines.restoration.outcomes import Outcome
    from pipelines.sources import PhotoRef

    empty = {field.name: field.type for field in fields(LedgerRow)}
    blank = LedgerRow(
        **{
            name: 0.0 if "float" in str(kind) else 0 if "int" in str(kind) else ""
            for name, kind in empty.items()
        }
    )  # type: ignore[arg-type]
    tracemalloc.start()
    held = []
    for number in range(photos):
        name = f"album-{number // 1000:04d}/photo-{number:08d}.jpg"
        digest = f"{number:064x}"
        row = replace(
            blank,
            name=name,
            status="restored",
            sha256=digest,
            output=f"{name}.png",
            output_sha256=digest[::-1],
        )
        held.append(
            (
                PhotoRef(f"s3://bucket/archive/{name}", name, 100_000 + number, f"{number:032x}"),
                Outcome(row, f"{number:033x}", 200_000 + number),
            )
        )
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / len(held)


def measure(photos: int, endpoint: str, bucket: str, folder: Path) -> PhotoCost:
    """Restore `photos` faces, in units of 16, and count; AWS's variables must lead to `endpoint`."""
    from pipelines import storage
    from pipelines.cluster import Cluster, ClusterConfig
    from pipelines.execution.model_ref import pin_model
    from pipelines.flows.restore_archive import RestoreOptions, restore_archive
    from tests.pipelines.tiny_cascade import make_tiny_cascade

    source, output = f"{bucket}/archive-{photos}", f"{bucket}/restored-{photos}"
    for seed in range(photos):
        storage.write_atomic(f"{source}/{seed:05d}.png", encode_png(render_face(seed, 32).pixels))
    counted: Counter[str] = Counter()

    def count(method: str, path: str) -> Fault | None:
        counted["LIST" if method == "GET" and "list-type" in path else method] += 1
        return None

    model = pin_model(make_tiny_cascade(folder / "cascade"))
    with faulty(endpoint, count) as (proxy, _), Cluster(ClusterConfig(num_workers=0)) as cluster:
        os.environ["AWS_ENDPOINT_URL"] = proxy
        report = restore_archive(source, output, model, RestoreOptions(aligned=True), cluster)
        os.environ["AWS_ENDPOINT_URL"] = endpoint
    assert report.counts.restored == photos
    journal = sum(entry.num_bytes for entry in storage.walk(output) if "/commits/" in f"/{entry.path}")
    each = {name: number / photos for name, number in counted.items()}
    return PhotoCost(
        each.get("GET", 0.0),
        each.get("HEAD", 0.0),
        each.get("PUT", 0.0) + each.get("POST", 0.0),
        each.get("LIST", 0.0),
        each.get("DELETE", 0.0),
        journal / photos,
    )


def driver_seconds(in_flight: int = 1000, calls: int = 200) -> float:
    """Processor seconds of the driver for one report, while so many calls are in flight on a Ray of our
    own."""
    import ray

    from pipelines.cluster import Cluster, ClusterConfig

    with Cluster(ClusterConfig(num_workers=1)) as cluster:
        cluster.map(abs, [0], label="start ray")
        cls = ray.remote(num_cpus=0)(_Sleeper)
        sleeper, quick = cls.remote(), cls.remote()
        pending = [sleeper.sleep.remote() for _ in range(in_flight)]
        ray.get(quick.answer.remote())
        started = time.process_time()
        for _ in range(calls):
            reference = quick.answer.remote()
            ray.wait([*pending, reference], num_returns=1, timeout=5)
            ray.get(reference)
        return (time.process_time() - started) / calls


class _Sleeper:
    def sleep(self) -> None:
        time.sleep(3600)

    def answer(self) -> int:
        return 1


def main() -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=32)
    chosen = parser.parse_args()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="bucket")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DIFFBFR_CACHE"] = f"{folder}/cache"
        few, many = chosen.photos, 3 * chosen.photos
        costs = [measure(photos, endpoint, "s3://bucket", Path(folder)) for photos in (few, many)]
        for name, value in asdict(of_one_more(costs[0], few, costs[1], many)).items():
            print(f"{name:14} {value:10.2f}")
    print(f"{'driver_bytes':14} {outcome_bytes():10.0f}")
    server.stop()
    print(f"{'driver_ms':14} {driver_seconds() * 1e3:10.2f}")


if __name__ == "__main__":
    main()
