"""Rules, dashboard and runbook name what the product exports and prints."""

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.metrics import NAMES
from tests.docs.pages import name_of
from tests.docs.test_doc_pages import headings, strings
from tests.infra.manifests import COMPOSE, INFRA, LOCK, load_yaml, run_tool, tool

MONITORING = INFRA / "monitoring"
RULES = load_yaml("monitoring/rules.yml")["groups"]
DASHBOARD = json.loads((MONITORING / "grafana/dashboard.json").read_text())
RUNBOOK = INFRA / "RUNBOOK.md"
EXPORTED = {
    f"ray_{name}{'_total' if kind == 'counter' else ''}": labels for name, (kind, labels, _) in NAMES.items()
}


def expressions() -> list[str]:
    rules = [rule["expr"] for group in RULES for rule in group["rules"]]
    return rules + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_every_metric_that_is_drawn_is_exported_or_recorded_and_every_exported_one_is_drawn() -> None:
    text = "\n".join(expressions())
    drawn = set(re.findall(r"ray_diffbfr_\w+", text))
    assert drawn <= set(EXPORTED)
    assert drawn == set(EXPORTED), "what nobody draws need not be exported"
    recorded = {rule["record"] for group in RULES for rule in group["rules"] if "record" in rule}
    assert set(re.findall(r"diffbfr:\w+", text)) <= recorded


def test_every_label_of_a_selector_is_one_of_its_metric() -> None:
    for expression in expressions():
        for name, selector in re.findall(r"(ray_diffbfr_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=", selector)) <= set(EXPORTED[name])


def test_the_dashboard_shows_what_the_room_promises() -> None:
    titles = " ".join(panel["title"] for panel in DASHBOARD["panels"])
    for word in (
        "Faces per second",
        "Images per second",
        "Waiting",
        "Goodput",
        "Failures",
        "Quarantine rate",
    ):
        assert word in titles


def test_the_dashboard_is_the_one_that_the_script_writes() -> None:
    made: Any = runpy.run_path(str(MONITORING / "grafana/make_dashboard.py"))["dashboard"]()
    assert made == DASHBOARD


def test_every_alert_leads_to_a_heading_of_the_runbook() -> None:
    alerts = [rule for group in RULES for rule in group["rules"] if "alert" in rule]
    assert len(alerts) >= 6
    for alert in alerts:
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert INFRA.parent / page == RUNBOOK
        assert anchor in headings(RUNBOOK), alert["alert"]
        assert alert["labels"]["severity"] in ("page", "warn")


def test_prometheus_scrapes_the_port_and_the_services_that_ray_serves_at() -> None:
    (scrape,) = (
        job for job in load_yaml("monitoring/prometheus.yml")["scrape_configs"] if job["job_name"] == "ray"
    )
    (found,) = scrape["dns_sd_configs"]
    for name in found["names"]:
        assert f"--metrics-export-port={found['port']}" in str(COMPOSE["services"][name]["command"])
    nodes = {
        name
        for name, service in COMPOSE["services"].items()
        if "start" in str(service.get("command"))
        and "ray" in str(service.get("entrypoint")) + name + str(service)
        and "--metrics-export-port" in str(service.get("command"))
    }
    assert set(found["names"]) == nodes


def test_promtool_takes_the_rules_and_their_test(tmp_path: Path) -> None:
    promtool = tool("promtool")
    run_tool(promtool, "check", "rules", "rules.yml", cwd=MONITORING)
    run_tool(promtool, "test", "rules", "rules_test.yml", cwd=MONITORING)
    shutil.copy(MONITORING / "rules.yml", tmp_path)
    config = (MONITORING / "prometheus.yml").read_text().replace("/etc/prometheus/", f"{tmp_path}/")
    (tmp_path / "prometheus.yml").write_text(config)
    run_tool(promtool, "check", "config", str(tmp_path / "prometheus.yml"), cwd=tmp_path)


def rows() -> list[list[str]]:
    """The cells of the runbook's tables of symptoms."""
    body = RUNBOOK.read_text().partition("## Stop, move, remove")[0]
    found = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| ")]
    return [cells for cells in found if cells[0] != "symptom"]


def test_every_symptom_has_a_command_and_a_remedy() -> None:
    assert len(rows()) >= 25
    for cells in rows():
        assert len(cells) == 3, cells
        assert all(cells)


def test_every_printed_symptom_of_the_runbook_is_in_the_source() -> None:
    symptoms = [cells[0][1:-1] for cells in rows() if cells[0].startswith("`")]
    assert len(symptoms) >= 20
    messages = re.sub(r"%(?:\.\d)?[sdf]", "\0", "\n".join(strings()))
    missing = []
    for symptom in symptoms:
        parts = symptom.removeprefix("...").removesuffix("...").split("...")
        if not re.search("[^\n]*".join(map(re.escape, parts)), messages):
            missing.append(symptom)
    assert missing == [], f"{name_of(RUNBOOK)} quotes lines that the product does not print"


@pytest.mark.parametrize("name", ["ray_diffbfr_done_total", "ray_diffbfr_goodput"])
def test_the_prefix_and_suffix_are_those_of_the_locked_ray(name: str) -> None:
    """Measured with this version; `test_run_entrypoints.py` reads them from a real cluster."""
    assert name in EXPORTED
    assert LOCK["ray"].startswith("2.60")
