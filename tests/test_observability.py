"""The page about observability against the code: events, fields, spans, attributes and metrics; the dashboard, too."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY

from knouds_async import telemetry
from tests.trees import PACKAGE, nodes_of, tree_of, trees

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
DASHBOARD = ROOT / "docs" / "_static" / "grafana-dashboard.json"
OWN_LOGS = {"_cli", "testing"}  # they print to people, and log nothing of their own
DOTTED = re.compile(r"(?:knouds|error|server|http|url)(?:\.[a-z_]+)+")


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in the package, with its file."""
    for path, tree in trees(PACKAGE).items():
        name = path.relative_to(PACKAGE).as_posix()
        if name.partition("/")[0] not in OWN_LOGS:
            yield from ((name, node) for node in nodes_of(tree) if isinstance(node, ast.Call))


def called(call: ast.Call) -> str:
    """Return what is called, as it is written."""
    return ast.unparse(call.func)


def rows(heading: str, first: str) -> list[list[str]]:
    """Return the cells of the table under a heading whose first column is `first`, without backquotes."""
    section = PAGE.split(f"# {heading}\n")[1]
    found = re.search(rf"^\| {re.escape(first)} \|[^\n]*\n\|[-|]+\n(.*?)(?:\n\n|\Z)", section, re.MULTILINE | re.DOTALL)
    assert found is not None, first
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


def named(cells: list[str]) -> set[str]:
    """Return all names between backquotes."""
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def strings(tree: ast.AST) -> set[str]:
    """Return the strings of a module."""
    return {node.value for node in nodes_of(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


SPANS = {getattr(telemetry, name) for name in ("SUBMIT", "RUN", "WAIT", "POLL", "SWEEP", "BATCH", "WEBHOOK")}


def attributes() -> set[str]:
    """Return the dotted names that `telemetry` writes out: of attributes, spans and metrics."""
    return {text for text in strings(tree_of(PACKAGE / "telemetry.py")) if DOTTED.fullmatch(text)}


def metrics() -> dict[str, Any]:
    """Return the metrics by their names: all that the code creates."""
    found = {}
    for _, call in calls():
        made = re.fullmatch(r"(?:meter\.create_)?(counter|histogram|gauge|up_down_counter)", called(call))
        if made and call.args:
            name = call.args[0]
            is_client = isinstance(name, ast.Call)
            (text,) = strings(name)
            found[f"knouds.client.{text}" if is_client else text] = made[1]
    return found


def test_every_record_has_an_event() -> None:
    """Each call that logs passes fields, and each event has one name that is no other's."""
    logging = re.compile(r"logger\.(debug|info|warning|error|exception|critical|log)")
    made = [(name, call) for name, call in calls() if logging.fullmatch(called(call))]
    assert len(made) > 20
    assert [name for name, call in made if "extra" not in {each.arg for each in call.keywords}] == []


def test_the_page_has_every_event_and_field() -> None:
    """Every event that the code names stands on the page, and the page names no other; the same for fields."""
    made = [call for _, call in calls() if called(call) == "fields"]
    events = {call.args[0].value for call in made if isinstance(call.args[0], ast.Constant)}
    assert len(made) > 20
    assert named([row[0] for row in rows("Logs", "`event_name`")]) == events
    known = {each.arg for call in made for each in call.keywords}
    assert named([row[0] for row in rows("Logs", "Field")]) == known | {"event_name"}
    assert {row[1] for row in rows("Logs", "`event_name`")} <= {"DEBUG", "INFO", "WARNING", "ERROR", "INFO, WARNING"}


def test_the_page_has_every_span_and_attribute() -> None:
    """Every span and attribute that the code names stands on the page, and the page names no other."""
    assert len(SPANS) == 7
    assert named([row[0] for row in rows("Spans", "Span")]) == SPANS
    listed = named([row[0] for row in rows("Spans", "Attribute")])
    of_metrics = {name for row in rows("Metrics", "Metric") for name in named([row[3]])}
    assert listed | of_metrics == attributes() - SPANS - set(metrics())
    assert of_metrics - listed <= {"knouds.route"}


def test_the_page_has_every_metric() -> None:
    """Every metric stands on the page with its instrument, and the page names no other."""
    kinds = {"counter": "counter", "histogram": "histogram", "gauge": "observable gauge"}
    kinds["up_down_counter"] = "up-down counter"
    listed = {name: row[1] for row in rows("Metrics", "Metric") for name in named([row[0]])}
    assert len(listed) == 11
    assert listed == {name: kinds[kind] for name, kind in metrics().items()}


def exported() -> dict[str, str]:
    """Return the names and kinds of the series that Prometheus gets of the metrics on the page."""
    provider = MeterProvider([PrometheusMetricReader()])
    meter = provider.get_meter("page")
    for row in rows("Metrics", "Metric"):
        kind, (name, unit) = row[1], (row[0].strip("`"), row[2].strip("`"))
        if kind == "counter":
            meter.create_counter(name, unit).add(1)
        elif kind == "up-down counter":
            meter.create_up_down_counter(name, unit).add(1)
        elif kind == "histogram":
            meter.create_histogram(name, unit).record(1)
        else:
            meter.create_gauge(name, unit).set(1)
    found = {
        sample.name: family.type
        for family in REGISTRY.collect()
        for sample in family.samples
        if family.name.startswith("knouds")
    }
    provider.shutdown()
    return found


def panels(within: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield all panels, those in rows too."""
    for panel in within:
        yield panel
        yield from panels(panel.get("panels", []))


def test_the_dashboard_shows_what_is_exported() -> None:
    """Its panels have ids and places of their own; each query is of a series that Prometheus gets, by its labels."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    shown = list(panels(dashboard["panels"]))
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 36
    assert len({panel["id"] for panel in shown}) == len(shown) > 5
    assert len({tuple(sorted(panel["gridPos"].items())) for panel in shown}) == len(shown)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{(\w+)\}", json.dumps(dashboard))) <= variables
    queries = [target["expr"] for panel in shown for target in panel.get("targets", [])]
    series = exported()
    for query in queries:
        names = re.findall(r"\bknouds_(?:client|batch)_\w+", query)
        assert names
        assert set(names) <= set(series), query
        labels = set(re.findall(r"\bknouds_\w+", query)) - set(names)
        assert labels <= {name.replace(".", "_") for name in attributes()}, query
        assert not ("rate(" in query and not names[0].endswith(("_total", "_bucket"))), query
    of_page = {
        name.removesuffix("_total").removesuffix("_bucket") for query in queries for name in series if name in query
    }
    assert len(of_page) == len(metrics())
