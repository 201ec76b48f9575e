"""An auditor of a restored archive: it reads the input and the output folder, and shares no code with the
product, so that an error in one is none in the other.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

OWN = {"ledger.parquet", "faces.parquet", "restore.json", "report.html"}
WITH_OUTPUT = {"restored", "no_face", "duplicate"}
LOSSLESS = {"PNG"}
REACH = 3.5
"""How far the square of a face can reach from the middle of its points, in sizes of the face (eye distances, or
eyes to mouth where that is more, as of a turned head); its half diagonal is 2.9."""


def audit(source: Path, output: Path) -> list[str]:
    """Everything that is wrong, in words; [] if each input has one row and each file is what its row says."""
    return list(_audit(source, output))


def contents(output: Path) -> dict[str, bytes]:
    """The restored files of an output, by name."""
    return {name: path.read_bytes() for name, path in _files(output).items() if not _is_own(name)}


def _audit(source: Path, output: Path) -> Iterator[str]:
    inputs, files = _files(source), _files(output)
    ledger = pq.read_table(output / "ledger.parquet").to_pylist()
    record = json.loads((output / "restore.json").read_text())
    if hashlib.sha256((output / "ledger.parquet").read_bytes()).hexdigest() != record["ledger_sha256"]:
        yield "restore.json names another ledger"
    if record["inputs"] != len(inputs) or sum(record["counts"].values()) != len(inputs):
        yield f"restore.json counts {record['inputs']} inputs of {len(inputs)}"
    statuses = Counter(row["status"] for row in ledger)
    if {name: number for name, number in record["counts"].items() if number} != dict(statuses):
        yield f"restore.json counts {record['counts']}, the ledger {dict(statuses)}"
    uses = Counter(row["name"] for row in ledger)
    yield from (f"{name} has {uses[name]} rows" for name in inputs if uses[name] != 1)
    yield from (f"{name} has a row and is no input" for name in uses if name not in inputs)
    rows = {row["name"]: row for row in ledger}
    named = Counter(row["output"] for row in ledger if row["output"])
    yield from (f"{name} is in {number} rows" for name, number in named.items() if number != 1)
    yield from (f"{name} is in no row" for name in files if not _is_own(name) and name not in named)
    faces = _faces(output)
    for name, row in rows.items():
        if name in inputs:
            yield from _audit_row(row, rows, inputs[name].read_bytes(), files, faces.get(name, []))


def _audit_row(
    row: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any]],
    data: bytes,
    files: Mapping[str, Path],
    faces: list[Mapping[str, Any]],
) -> Iterator[str]:
    name = row["name"]
    if row["status"] != "skipped" and row["sha256"] != hashlib.sha256(data).hexdigest():
        yield f"{name} has another sha256 than its row"
    if (row["output"] != "") != (row["status"] in WITH_OUTPUT):
        original = rows.get(row["duplicate_of"])
        if original is None or original["output"]:
            yield f"{name} is {row['status']} and has the output {row['output']!r}"
    if not row["output"]:
        return
    if row["output"] not in files:
        yield f"{row['output']} is missing"
        return
    made = files[row["output"]].read_bytes()
    if hashlib.sha256(made).hexdigest() != row["output_sha256"]:
        yield f"{row['output']} has another sha256 than its row"
    if row["status"] == "duplicate":
        original = rows[row["duplicate_of"]]
        if original["sha256"] != row["sha256"] or files[original["output"]].read_bytes() != made:
            yield f"{name} is no copy of {original['name']}"
    elif row["status"] == "no_face" and made != data:
        yield f"{row['output']} is not the photo without a face"
    with Image.open(io.BytesIO(made)) as image:
        image.load()
    if row["status"] == "restored" and faces:
        yield from _audit_outside(row["output"], data, made, faces)


def _audit_outside(output: str, data: bytes, made: bytes, faces: list[Mapping[str, Any]]) -> Iterator[str]:
    """Outside the faces a lossless output has the pixels of its photo."""
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(made)) as after:
        if before.format not in LOSSLESS or after.format not in LOSSLESS:
            return
        old, new = np.asarray(before), np.asarray(after)
    if old.shape != new.shape:
        yield f"{output} has the shape {new.shape}; expected {old.shape}"
        return
    free = np.ones(old.shape[:2], bool)
    for face in faces:
        points = np.asarray(face["points"]).reshape(-1, 2)
        height = np.linalg.norm(
            points[3:].mean(axis=0) - points[:2].mean(axis=0)
        )  # from the eyes to the mouth
        (x, y), reach = points.mean(axis=0), REACH * max(face["eyes_px"], float(height))
        top, left = max(0, int(y - reach)), max(0, int(x - reach))
        free[top : int(y + reach) + 1, left : int(x + reach) + 1] = False
    if (changed := int((old[free] != new[free]).sum())) > 0:
        yield f"{output} has {changed} changed values outside its faces"


def _faces(output: Path) -> dict[str, list[Mapping[str, Any]]]:
    by_photo: dict[str, list[Mapping[str, Any]]] = {}
    if (output / "faces.parquet").exists():
        for face in pq.read_table(output / "faces.parquet").to_pylist():
            by_photo.setdefault(face["photo"], []).append(face)
    return by_photo


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _is_own(name: str) -> bool:
    return name in OWN or name.startswith(".diffbfr/")
