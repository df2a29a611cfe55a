"""A live ring under the distribution's Prometheus: what dashboards ask has answers, and every alert
fires when its reason is there.

    live.py --programs FOLDER --model PATH --prometheus PROGRAM [--long]

Without --long: the dashboards and those alerts that are quick to provoke. With it every alert, and
panels of what goes wrong must have shown it. Prints a row of JSON for each figure.
"""

import argparse
import json
import pathlib
import re
import signal
import sys
import tempfile
import time

import compat
from prometheus import WINDOW, Prometheus
from ring import ROWS, Load, Ring, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
MONITORING = ROOT / "ops/monitoring"
sys.path.insert(0, str(MONITORING / "grafana"))
import dashboards  # noqa: E402

HEALTHY_SECONDS = 25
# Alerts that say how this ring is made, or that the machine is busy with other things too.
STANDING = {"TandemPagesByTcp", "TandemSlowFirstToken", "TandemSlowTokens", "TandemTransferExposed"}


class Watch:
    """Which alerts have fired, and for what."""

    def __init__(self, prometheus):
        self.prometheus, self.fired = prometheus, {}

    def wait(self, reason, *alerts):
        for alert in alerts:
            wait_for(f"{alert} when {reason}", lambda: alert in self.prometheus.firing())
            self.fired.setdefault(alert, reason)
            say(f"{alert} fires: {reason}")

    def wait_calm(self, *alerts):
        """Until these do not fire any more."""
        wait_for(f"the end of {alerts}", lambda: not set(alerts) & self.prometheus.firing())


def say(text):
    print(f"· {text}", flush=True)


def healthy(ring, watch):
    """Plain load: nothing is wrong, and no alert says so."""
    with Load(ring.url, 2 * ROWS + 3, 24) as load:
        time.sleep(HEALTHY_SECONDS)
        firing = watch.prometheus.firing()
        watch.wait("prefill-1 is told to use TCP", "TandemPagesByTcp")
    assert load.answered > 10 and load.refused == 0, vars(load)
    assert firing <= STANDING, firing
    say(f"{load.answered} answers under plain load")


def queued(ring, watch, start):
    """More long answers than rows, until Prometheus has seen that some wait; then there are none. How
    fast the engine is only says how long that takes. What is seen is what panels see that begin at
    `start`: a range has a point a second, and its last may be older than the last scrape."""
    def seen(metric):
        found = watch.prometheus.samples(f"sum (tandem_{metric})", start, time.time())
        return found[0] if found else []

    with Load(ring.url, 2 * ROWS + 3, 600) as load:
        wait_for("a request that waits", lambda: any(seen("queue_depth")))
    assert load.refused == 0, vars(load)
    for metric in ("queue_depth", "gateway_requests_in_flight"):
        wait_for(f"no {metric}", lambda: seen(metric)[-1:] == [0])


def dead(ring, watch):
    """Both decode servers die by SIGKILL under load, and come back; then one does so again."""
    with Load(ring.url, 4, 200):
        time.sleep(1)
        for name in ring.named("decode"):
            ring[name].kill()
        watch.wait("all decode servers are killed under load", "TandemFailing",
                   "TandemRingNotReady", "TandemProcessDown", "TandemServerUnlinked")
    for _ in range(2):
        for name in ring.named("decode"):
            ring.restart(name)
        ring.wait_whole()
        time.sleep(1.5)
    watch.wait("decode servers are started three times", "TandemServerRestarting")
    watch.wait_calm("TandemRingNotReady", "TandemProcessDown", "TandemServerUnlinked")


def quarantined(ring, watch):
    """A writer through shared memory stops in mid-transfer; only its death proves its end."""
    ring.restart("prefill-0", "--stop-at", "prefill-writing:2")
    ring.wait_whole()
    with Load(ring.url, 4, 8):
        wait_for("a stopped prefill server", ring["prefill-0"].is_stopped)
        watch.wait("a prefill server is stopped while it writes", "TandemPagesQuarantined")
    ring.restart("prefill-0")
    ring.wait_whole()
    watch.wait_calm("TandemPagesQuarantined")


def full(ring, watch):
    """Decode takes one request at a time, and twenty clients ask."""
    for name in ring.named("decode"):
        ring.restart(name, "--max-running-requests", "1")
    ring.wait_whole()
    with Load(ring.url, 20, 600):
        watch.wait("20 clients ask for more than two rows", "TandemQueueFilling", "TandemRefusing",
                   "TandemSlowFirstToken")
    for name in ring.named("decode"):
        ring.restart(name)
    ring.wait_whole()


def short(ring, watch):
    """Decode's pools hold a few long outputs, and reserve next to nothing for their growth."""
    for name in ring.named("decode"):
        ring.restart(name, "--max-total-tokens", "1024", "--num-reserved-decode-tokens", "16",
                     "--context-length", "1024", "--max-running-requests", "16")
    ring.wait_whole()
    with Load(ring.url, 12, 500):
        watch.wait("outputs outgrow the pools", "TandemRetracting", "TandemPagesShort")
    for name in ring.named("decode"):
        ring.restart(name)
    ring.wait_whole()


def slow(ring, watch):
    """Decode servers stop for half a second at a time: their sockets and their steps wait. Prefill
    computes little at a time and queues hardly anything, so that it refuses."""
    for name in ring.named("prefill"):
        ring.restart(name, "--chunked-prefill-size", "64", "--max-queued", "1")
    ring.wait_whole()
    with Load(ring.url, 8, 24), ring["decode-0"].hiccups(0.6, 0.3), \
            ring["decode-1"].hiccups(0.6, 0.3):
        watch.wait("decode stands still for 0.6 s at a time", "TandemSlowTokens",
                   "TandemTransferExposed")


def panels(prometheus, window, long):
    """How many queries of panels have what they should, of how many; says which have not."""
    good = total = 0
    start, end = window
    for name, _, panels_of, role_metric in dashboards.DASHBOARDS:
        servers = prometheus.values_of(role_metric, "server") if role_metric else []
        for panel in panels_of:
            for expr, legend in panel.targets:
                query = substituted(expr, end - start, {"server": "|".join(servers)})
                series = prometheus.samples(query, start, end, instant=panel.kind == "table")
                expects = panel.expects(legend)
                if long and expects == "quiet":
                    expects = "changing"
                problem = missing(series, expects)
                total, good = total + 1, good + (problem is None)
                if problem:
                    say(f"{name} / {panel.title} / {legend}: {problem}: {query}")
    return good, total


def compat_queries(prometheus, window):
    """The same of the queries that others' dashboards have."""
    good = total = 0
    start, end = window
    values = {"model_name": "monitored", "Deployment_id": "monitored"}
    for name, queries in compat.DASHBOARDS.items():
        for expr in queries:
            query = substituted(expr, end - start, values)
            problem = missing(prometheus.samples(query, start, end), "changing")
            total, good = total + 1, good + (problem is None)
            if problem:
                say(f"{name}: {problem}: {query}")
    return good, total


def substituted(query, seconds, variables):
    """A query as Grafana sends it."""
    query = query.replace("$__rate_interval", WINDOW).replace("$__range", f"{round(seconds)}s")
    for name, value in variables.items():
        query = query.replace(f"${name}", value)
    assert "$" not in query, query
    return query


def missing(series, expects):
    """What these series lack of what is expected, if they do."""
    if not series:
        return "no data"
    if expects != "quiet" and not any(any(values) for values in series):
        return "always 0"
    if expects == "changing" and len({value for values in series for value in values}) < 2:
        return "does not change"
    return None


def row(name, what, found, unit, command):
    good, total = found
    print(json.dumps({
        "row": name, "what": what, "bar": total, "bar_text": f"≥ {total}", "stretch": None,
        "value": good, "unit": unit, "command": command, "holds": good == total,
    }), flush=True)
    return good == total


def run(arguments, folder):
    ring = Ring(arguments.programs, arguments.model, folder)
    prometheus = Prometheus(arguments.prometheus, MONITORING, folder, ring)
    watch = Watch(prometheus)
    try:
        ring.start()
        prometheus.start()
        prometheus.wait_scraped(ring)
        start = time.time()
        healthy(ring, watch)
        queued(ring, watch, start + 2)
        window = (start + 2, time.time())
        others = compat_queries(prometheus, window)
        for provoke in (dead, quarantined):
            provoke(ring, watch)
        if arguments.long:
            for provoke in (full, short, slow):
                provoke(ring, watch)
            window = (start, time.time())
        ours = panels(prometheus, window, arguments.long)
    except BaseException:
        for log in sorted(folder.glob("*.log")):
            print(f"---- end of {log.name}", *log.read_text().splitlines()[-8:], sep="\n")
        raise
    finally:
        prometheus.process.kill()
        ring.close()
    alerts = set(re.findall(r"alert: (\w+)", (MONITORING / "prometheus/rules.yml").read_text()))
    assert watch.fired.keys() <= alerts, watch.fired
    due = alerts if arguments.long else watch.fired.keys()
    command = "TANDEM_LONG=1 tests/monitoring/run" if arguments.long else "tests/monitoring/run"
    held = [
        row("panels-with-data", "queries of our panels that had data, not 0 and changing where it "
            "should be", ours, "queries", command),
        row("alerts-fired", "alerts that fired when provoked", (len(watch.fired), len(due)),
            "alerts", command),
        row("compat-queries-with-data", "queries of the dashboards of SGLang and vLLM that had "
            "data, not 0 and changing", others, "queries", command),
    ]
    return all(held)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--prometheus", required=True)
    parser.add_argument("--long", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` ends what runs
    with tempfile.TemporaryDirectory(prefix="tandem-monitoring-") as folder:
        began = time.monotonic()
        holds = run(arguments, pathlib.Path(folder))
        say(f"{time.monotonic() - began:.0f} s")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
