"""The Grafana dashboard and the alert rules of docs/monitoring: each metric is exported, each expression is PromQL."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgesan.transmit.prometheus import Exporter
from tests.support import ROOT, Running, free_port

MONITORING = ROOT / "docs" / "monitoring"
ALERTS = MONITORING / "alerts.yml"
DASHBOARD = json.loads((MONITORING / "grafana.json").read_text())
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]
REPORT: dict[str, Any] = {
    "name": "porch",
    "version": "9",
    "isolation": {"whole": True},
    "totals": {"sanitized": 5, "camera_lost": 1},
    "ms": {"detect": {"p50": 1.0, "p95": 2.0}},
    "encodes": {"h264": 3},
    "encode_errors": {"h264": 1},
    "outputs": [{"to": "rtsp://nas", "connected": True, "bytes": 1, "retries": 0, "dropped": 0, "viewers": 0}],
    "transmit": {"totals": {}, "viewers": 1, "ms": {"glass_to_wire": {"p95": 40.0}}},
}
# Two cameras: one is lost, and the other one is closed by its owner.
TWO_CAMERAS = """
rule_files: [{alerts}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'edgesan_camera_up{{instance="a", job="edgesan"}}', values: '1 0x20'}}
      - {{series: 'edgesan_privacy{{instance="a", job="edgesan"}}', values: '0x20'}}
      - {{series: 'edgesan_info{{instance="a", job="edgesan", name="porch", version="1"}}', values: '1x20'}}
      - {{series: 'edgesan_isolated{{instance="a", job="edgesan"}}', values: '1 1 0x20'}}
      - {{series: 'edgesan_camera_up{{instance="b", job="edgesan"}}', values: '0x20'}}
      - {{series: 'edgesan_privacy{{instance="b", job="edgesan"}}', values: '1x20'}}
      - {{series: 'edgesan_info{{instance="b", job="edgesan", name="hall", version="1"}}', values: '1x20'}}
      - {{series: 'up{{instance="c", job="edgesan"}}', values: '0x20'}}
    alert_rule_test:
      - eval_time: 10m
        alertname: EdgesanCameraLost
        exp_alerts:
          - exp_labels: {{severity: critical, instance: a, job: edgesan, name: porch}}
            exp_annotations:
              summary: porch (a) gives no pictures
              description: "It was not switched off by its owner. On the board: journalctl -u edgesan-sanitize"
      - eval_time: 10m
        alertname: EdgesanNotIsolated
        exp_alerts:
          - exp_labels: {{severity: critical, instance: a, job: edgesan, name: porch}}
            exp_annotations:
              summary: The kernel does not hold every restriction of porch
              description: "Which one, and the cure: the page's banner, or edgesan doctor"
      - eval_time: 10m
        alertname: EdgesanDown
        exp_alerts:
          - exp_labels: {{severity: critical, instance: c, job: edgesan}}
            exp_annotations:
              summary: c does not answer
              description: "Is the board on? On it: systemctl status edgesan-transmit"
      - {{eval_time: 10m, alertname: EdgesanSlow, exp_alerts: []}}
"""


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: apt install prometheus")
    return found


def exported() -> set[str]:
    """Names of series as Prometheus keeps them."""
    lines = Exporter(lambda: REPORT).text().decode().splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_that_is_asked_for_is_exported(expression: str) -> None:
    asked = set(re.findall(r"\bedgesan_\w+", expression))
    assert asked <= exported()
    assert asked or "up{" in expression


def test_every_alert_and_panel_says_what_it_is_about() -> None:
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert all(panel["title"] for panel in DASHBOARD["panels"])


def test_promtool_takes_the_rules_and_they_do_what_they_say(tmp_path: Path) -> None:
    promtool = program("promtool")
    checked = subprocess.run([promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    file = tmp_path / "rules_test.yml"
    file.write_text(TWO_CAMERAS.format(alerts=ALERTS))
    tried = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stdout + tried.stderr


@pytest.mark.slow
def test_a_real_prometheus_answers_every_panel_about_a_real_camera(tmp_path: Path) -> None:
    prometheus, port = program("prometheus"), free_port()
    run = Running("--camera", "demo", "--name", "porch")
    (tmp_path / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 1s}}\nrule_files: [{ALERTS}]\nscrape_configs:\n"
        f"  - {{job_name: edgesan, static_configs: [{{targets: ['127.0.0.1:{run.port}']}}]}}\n"
    )
    options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    server = subprocess.Popen(
        [prometheus, *options, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL
    )

    def ask(expression: str) -> list[Any]:
        question = urllib.parse.urlencode({"query": expression.replace("$camera", ".*")})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{question}", timeout=10) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
            return found

    try:
        run.until("camera_up", True)
        viewer = urllib.request.urlopen(f"http://127.0.0.1:{run.port}/stream.mjpg", timeout=10)
        deadline_s = time.monotonic() + 60
        while True:
            try:
                viewer.read(50_000)
                if ask("edgesan_frame_age_seconds") and ask("rate(edgesan_frames_total[1m])"):
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline_s, "prometheus has no frames"
            time.sleep(0.5)
        for panel in DASHBOARD["panels"]:
            for target in panel["targets"]:
                assert ask(target["expr"]) or "edgesan_output" in target["expr"], target["expr"]
        assert {each["metric"]["name"] for each in ask(DASHBOARD["panels"][4]["targets"][0]["expr"])} == {"porch"}
        for rule in RULES:
            ask(rule["expr"])
        viewer.close()
    finally:
        server.kill()
        server.wait()
        run.end()
