"""Write `dashboard.json`: one page of panels from the metrics of `pipelines/cluster/metrics.py`.

`python infra/monitoring/grafana/make_dashboard.py` writes the file again; a test compares them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parent / "dashboard.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 3


@dataclass(frozen=True)
class Panel:
    """A graph over time: `queries` are pairs of PromQL and legend, `unit` is one of Grafana's."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    description: str
    highest: float | None = None


PANELS = (
    Panel(
        "Images per second",
        "short",
        [("diffbfr:images_per_s", "{{work}}")],
        "Sharded photos and training samples.",
    ),
    Panel(
        "Photos per second",
        "short",
        [("diffbfr:photos_per_s", "{{work}}")],
        "Photos of an archive, by stage.",
    ),
    Panel("Faces per second", "short", [("diffbfr:faces_per_s", "{{work}}")], "Faces sharded or restored."),
    Panel(
        "Photos by outcome",
        "short",
        [("sum by (work, outcome) (rate(ray_diffbfr_outcomes_total[2m]))", "{{work}} {{outcome}}")],
        "Per second.",
    ),
    Panel(
        "Quarantine rate",
        "percentunit",
        [("diffbfr:quarantine_rate", "{{work}}")],
        "Share of the photos of the last ten minutes that were refused.",
        1,
    ),
    Panel(
        "Failures",
        "short",
        [
            ("sum by (work) (ray_diffbfr_restarts)", "{{work}} restarts"),
            ("sum by (work) (ray_diffbfr_worker_deaths_total)", "{{work}} actors that died"),
            ("sum by (work) (ray_diffbfr_tasks_failed_total)", "{{work}} tasks that failed for good"),
        ],
        "Since the driver began.",
    ),
    Panel(
        "Goodput",
        "percentunit",
        [("diffbfr:goodput", "{{work}}")],
        "Share of a training's time that made steps for the first time.",
        1,
    ),
    Panel(
        "Waiting",
        "percentunit",
        [
            ("diffbfr:data_wait", "{{work}} data"),
            ("max by (work) (ray_diffbfr_write_wait)", "{{work}} checkpoint writer"),
        ],
        "Share of the last window of steps.",
        1,
    ),
    Panel(
        "Loss and samples per second of each training",
        "short",
        [("ray_diffbfr_loss", "{{work}} loss"), ("ray_diffbfr_images_per_s", "{{work}} img/s")],
        "Of the last window of steps.",
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's model."""
    panels = [_panel(panel, number) for number, panel in enumerate(PANELS)]
    return {
        "uid": "diffbfr",
        "title": "DiffBFR",
        "tags": ["diffbfr"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": []},
        "panels": panels,
    }


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.highest is not None:
        defaults["max"] = panel.highest
    targets = [
        {"datasource": SOURCE, "expr": expr, "legendFormat": legend, "refId": chr(ord("A") + i)}
        for i, (expr, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }


if __name__ == "__main__":
    OUTPUT.write_text(json.dumps(dashboard(), indent=1) + "\n")
