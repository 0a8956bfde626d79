"""The dashboard and the alert rules of the documents name metrics and labels that the exporter emits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry

from socketio_postgres._bus.metrics import METRICS
from socketio_postgres.prometheus import PostgresCollector

FOLDER = Path(__file__).parents[2] / "docs" / "observability"
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())

_METRIC = re.compile(r"\bsocketio_postgres_\w+")
_SELECTED = re.compile(r"\{([^{}]*)\}")
_GROUPED = re.compile(r"\bby \(([^)]*)\)")
_SHOWN = re.compile(r"\$labels\.(\w+)|\{\{(\w+)\}\}")

ADDED_BY_PROMETHEUS = {"instance", "job"}


class Everything:
    """Statistics with a value for each metric."""

    def stats(self) -> dict[str, Any]:
        return dict.fromkeys((metric.key for metric in METRICS), 1) | {"peers": {"/": ["a"]}}


def emitted() -> dict[str, tuple[str, set[str]]]:
    """Kind and labels of each sample, by its name, as a scrape has them."""
    registry = CollectorRegistry()
    registry.register(PostgresCollector({"server": Everything()}))
    return {
        sample.name: (family.type, set(sample.labels))
        for family in registry.collect()
        for sample in family.samples
    }  # fmt: skip


def expressions() -> list[str]:
    """Every PromQL expression of both files."""
    of_panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return [*(rule["expr"] for rule in RULES), *of_panels]


@pytest.mark.parametrize("expression", expressions())
def test_expressions_parse(expression: str) -> None:
    # Grafana puts durations in place of its variables, and the regular expression that was chosen.
    promql_parser.parse(re.sub(r"\$__\w+", "5m", expression))


@pytest.mark.parametrize("expression", expressions())
def test_names_and_labels_exist(expression: str) -> None:
    samples = emitted()
    names = _METRIC.findall(expression)
    assert names
    assert set(names) <= samples.keys()
    known = set.union(*(samples[name][1] for name in names))
    wanted = {part.split("=")[0].rstrip("!~ ") for found in _SELECTED.findall(expression) for part in found.split(",")}
    wanted |= {label.strip() for found in _GROUPED.findall(expression) for label in found.split(",")}
    assert wanted <= known
    assert expression.count("(") == expression.count(")")
    for name in names:
        is_rate = bool(re.search(rf"(rate|increase)\({name}\b", expression))
        assert is_rate == (samples[name][0] == "counter"), f"{name}: a counter is shown as a rate, and nothing else is"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_rules_are_complete(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    samples = emitted()
    known = set.union(*(samples[name][1] for name in _METRIC.findall(rule["expr"]))) | ADDED_BY_PROMETHEUS
    shown = {first or second for first, second in _SHOWN.findall("".join(rule["annotations"].values()))}
    assert shown <= known
    assert not shown or not rule["expr"].startswith("max("), "an aggregate has no labels"


def test_the_dashboard_can_be_imported() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels), "no panel hides another"
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - variables <= {"__rate_interval", "__range"}
    shown = {first or second for first, second in _SHOWN.findall(json.dumps(panels))}
    assert shown <= {"name", "namespace"}


def test_every_alarm_of_the_documents_has_a_rule() -> None:
    told = "".join((FOLDER.parent / name).read_text() for name in ("operations.md", "event-store-reference.md"))
    alarms = set(re.findall(r"^\| `(\w+)` \|.*\*\*alarm\*\*", told, re.MULTILINE))
    assert alarms
    keys = {metric.key for metric in METRICS}
    ruled = "".join(rule["expr"] for rule in RULES)
    # `gaps` counts the same losses as `missing_messages` and reconnects, which are not all losses.
    missing = {key for key in alarms & keys if f"socketio_postgres_{key}" not in ruled}
    assert missing <= {"gaps"}
