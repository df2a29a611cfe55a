"""The files of ops/monitoring, without a ring: rules by promtool, dashboards by Grafana's rules, and
that they, the page of metrics and the runbook speak of the same things."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MONITORING = ROOT / "ops/monitoring"
RULES = MONITORING / "prometheus/rules.yml"
DASHBOARDS = sorted((MONITORING / "grafana/dashboards").glob("*.json"))
# Of Grafana's unit ids, those used here.
UNITS = {"none", "short", "s", "percentunit", "reqps", "ops", "bytes", "Bps"}
KINDS = {"timeseries", "stat", "heatmap", "table"}
PARTS = r"(_bucket|_sum|_count)?"


def documented():
    return set(re.findall(r"(?m)^\| `(tandem_\w+)`", (MONITORING / "metrics.md").read_text()))


def recorded():
    return set(re.findall(r"record: (\S+)", RULES.read_text()))


def names(text):
    """Our metrics that are named there, without the parts of histograms."""
    return {re.sub(rf"{PARTS}$", "", name) if name not in documented() else name
            for name in re.findall(r"\btandem_\w+", text)}


def lost_keys(before, after, path=""):
    """Where `after` has not what `before` has."""
    if isinstance(before, dict):
        for key, value in before.items():
            if key in after:
                yield from lost_keys(value, after[key], f"{path}/{key}")
            else:
                yield f"{path}/{key}"
    elif isinstance(before, list):
        for one, other in zip(before, after):
            yield from lost_keys(one, other, path)
    elif before != after:
        yield path


class Rules(unittest.TestCase):
    def promtool(self, *arguments):
        program = os.environ.get("PROMTOOL", "promtool")
        ran = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=ROOT)
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)

    def test_promtool_accepts_them_and_their_tests_pass(self):
        self.promtool("check", "config", str(MONITORING / "prometheus/prometheus.yml"))
        self.promtool("test", "rules", str(MONITORING / "prometheus/rules.test.yml"))

    def test_every_alert_is_tested_and_has_its_section_in_the_runbook(self):
        rules, runbook = RULES.read_text(), (ROOT / "ops/runbook.md").read_text()
        tested = (MONITORING / "prometheus/rules.test.yml").read_text()
        alerts = re.findall(r"alert: (\w+)", rules)
        self.assertEqual(len(alerts), len(set(alerts)))
        for alert in alerts:
            self.assertIn(f"runbook_url: ops/runbook.md#{alert.lower()}\n", rules)
            self.assertIn(f"\n### {alert}\n", runbook)
            self.assertIn(f"alertname: {alert}\n", tested)

    def test_they_name_metrics_that_exist(self):
        self.assertLessEqual(names(RULES.read_text()), documented())
        expressions = re.findall(r"\btandem:[\w:]+", RULES.read_text())
        self.assertLessEqual(set(expressions), recorded())


class Dashboards(unittest.TestCase):
    def test_they_are_what_is_written_for_them(self):
        made = subprocess.run([sys.executable, MONITORING / "grafana/dashboards.py", "--check"],
                              capture_output=True, text=True)
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(len(DASHBOARDS), 6)

    def test_every_panel_is_whole(self):
        for path in DASHBOARDS:
            board = json.loads(path.read_text())
            self.assertEqual(board["uid"], f"tandem-{path.stem}")
            taken, ids = set(), set()
            for panel in board["panels"]:
                with self.subTest(board=path.stem, panel=panel["title"]):
                    self.assertNotIn(panel["id"], ids)
                    ids.add(panel["id"])
                    self.assertIn(panel["type"], KINDS)
                    self.assertIn(panel["fieldConfig"]["defaults"]["unit"], UNITS)
                    self.assertTrue(panel["description"].endswith("."))
                    self.assertEqual(panel["datasource"]["uid"], "${datasource}")
                    letters = [target["refId"] for target in panel["targets"]]
                    self.assertEqual(len(letters), len(set(letters)))
                    at = panel["gridPos"]
                    self.assertLessEqual(at["x"] + at["w"], 24)
                    cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                             for y in range(at["y"], at["y"] + at["h"])}
                    self.assertFalse(cells & taken, "panels lie over each other")
                    taken |= cells

    @unittest.skipUnless(importlib.util.find_spec("grafana_foundation_sdk"), "of long tests")
    def test_grafanas_own_types_know_every_key(self):
        from grafana_foundation_sdk.cog import plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard

        plugins.register_default_plugins()
        # Grafana writes the first for its own editor; the second, the heatmap's, is newer there.
        beside = r"/templating/list/definition|/panels/options/tooltip/mode"
        for path in DASHBOARDS:
            board = json.loads(path.read_text())
            read = json.dumps(Dashboard.from_json(board).to_json(), default=lambda o: o.to_json())
            lost = set(lost_keys(board, json.loads(read)))
            self.assertFalse({key for key in lost if not re.fullmatch(beside, key)}, path.stem)

    def test_they_ask_for_metrics_that_exist_and_leave_none_out(self):
        asked = set()
        for path in DASHBOARDS:
            panels = json.loads(path.read_text())["panels"]
            asked |= names(" ".join(t["expr"] for panel in panels for t in panel["targets"]))
        self.assertLessEqual(asked, documented())
        # The alert's, and what people look up and do not watch.
        unwatched = {"tandem_queue_limit", "tandem_process_info", "tandem_tasks"}
        self.assertEqual(documented() - asked, unwatched)


if __name__ == "__main__":
    unittest.main()
