"""The distribution's Prometheus over a ring: the config and rules of ops/monitoring, made fast."""

import json
import math
import re
import urllib.parse

import ring

# A scrape a second instead of four a minute; windows and delays in proportion.
WINDOW = "10s"


def fast_rules(text):
    """Rules whose alerts fire after a second, over windows of ten; of restarts, two minutes."""
    text = re.sub(r"(?m)^(\s+for:) .*$", r"\1 1s", text)
    return text.replace("[5m]", f"[{WINDOW}]").replace("[15m]", "[2m]")


def config(text, addresses):
    """`prometheus.yml` with the addresses of this ring: targets of each job by its role."""
    text = text.replace("_interval: 15s", "_interval: 1s")
    for role in ("gateway", "prefill", "decode"):
        targets = json.dumps([at for name, at in addresses.items() if name.startswith(role)])
        pattern = rf"(job_name: tandem-{role}\n\s+static_configs:\n\s+- targets:) .*"
        text, found = re.subn(pattern, lambda match: f"{match[1]} {targets}", text)
        assert found == 1, f"prometheus.yml has no job tandem-{role} with targets"
    return text


class Prometheus:
    def __init__(self, program, monitoring, folder, the_ring):
        prometheus = monitoring / "prometheus"
        (folder / "rules.yml").write_text(fast_rules((prometheus / "rules.yml").read_text()))
        path = folder / "prometheus.yml"
        path.write_text(config((prometheus / "prometheus.yml").read_text(), the_ring.addresses))
        address = the_ring.address()
        self.url = f"http://{address}"
        self.process = ring.Process("prometheus", [
            program, f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}", "--log.level=warn"], folder)

    def start(self):
        self.process.start()
        ring.wait_for("Prometheus", lambda: ring.get(f"{self.url}/-/ready")[0] == 200)

    def ask(self, path, **parameters):
        query = urllib.parse.urlencode(parameters, doseq=True)
        status, body = ring.get(f"{self.url}/api/v1/{path}?{query}")
        answer = json.loads(body) if body else {"error": f"no answer, status {status}"}
        assert answer.get("status") == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    def samples(self, query, start, end, instant=False):
        """The values of every series of `query` that are numbers."""
        if instant:
            found = [[one["value"]] for one in self.ask("query", query=query, time=end)["result"]]
        else:
            found = [one["values"] for one in self.ask(
                "query_range", query=query, start=start, end=end, step="1s")["result"]]
        series = [[float(value) for _, value in values] for values in found]
        return [finite for values in series if (finite := [v for v in values if math.isfinite(v)])]

    def values_of(self, metric, label):
        return self.ask(f"label/{label}/values", **{"match[]": metric})

    def firing(self):
        alerts = self.ask("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def wait_scraped(self, the_ring):
        def all_up():
            up = {one["metric"]["instance"]: one["value"][1]
                  for one in self.ask("query", query="up")["result"]}
            return set(the_ring.addresses.values()) <= {at for at, one in up.items() if one == "1"}
        ring.wait_for("a scrape of every process", all_up)
