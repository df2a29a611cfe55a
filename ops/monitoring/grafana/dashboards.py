#!/usr/bin/env python3
"""The Grafana dashboards, a line or two a panel; writes dashboards/*.json beside this file.

    python3 ops/monitoring/grafana/dashboards.py            writes them
    python3 ops/monitoring/grafana/dashboards.py --check    fails where they are not what this makes

Panels that may stand still, or at 0, while a ring serves say so by `steady` and `quiet`; the test of
tests/monitoring holds all others to values that are not 0 and change.
"""

import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RATE = "[$__rate_interval]"
OF = '{server=~"$server"}'
CACHED = '{source="cached"}'
CACHED_OF = '{source="cached",server=~"$server"}'


def quantiles(metric, by="", chosen=""):
    """p50, p90 and p99 of a histogram of seconds."""
    each = f"{by}, " if by else ""
    legend = f"{{{{{by}}}}} " if by else ""
    rate = f"sum by ({each}le) (rate({metric}_bucket{chosen}{RATE}))"
    return [(f"histogram_quantile({q}, {rate})", f"{legend}p{round(q * 100)}")
            for q in (0.5, 0.9, 0.99)]


def rate(metric, chosen="", by=""):
    sums = f"sum by ({by})" if by else "sum"
    return f"{sums} (rate({metric}{chosen}{RATE}))"


class Panel:
    def __init__(self, title, description, unit, targets, kind="timeseries", **more):
        self.title, self.description, self.unit, self.kind = title, description, unit, kind
        self.targets = [(targets, "")] if isinstance(targets, str) else targets
        self.width, self.height = more.pop("width", 8), more.pop("height", 8)
        # Quiet: 0 while nothing is wrong. Steady: does not change while nothing is wrong.
        # Quiet may also be the legends of the queries that are.
        self.quiet, self.steady = more.pop("quiet", False), more.pop("steady", False)
        self.stack = more.pop("stack", False)
        assert not more, more

    def expects(self, legend):
        quiet = self.quiet if isinstance(self.quiet, bool) else legend in self.quiet
        return "quiet" if quiet else "steady" if self.steady else "changing"

    def json(self, number, x, y):
        is_heatmap, is_table = self.kind == "heatmap", self.kind == "table"
        targets = [{
            "datasource": SOURCE, "editorMode": "code", "expr": expr,
            "format": "heatmap" if is_heatmap else "table" if is_table else "time_series",
            "instant": is_table, "range": not is_table,
            "legendFormat": legend or "__auto", "refId": chr(ord("A") + index),
        } for index, (expr, legend) in enumerate(self.targets)]
        defaults = {"unit": self.unit, "min": 0, "color": {"mode": "palette-classic"},
                    "mappings": [],
                    "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}]}}
        if self.kind == "timeseries":
            stacking = {"mode": "normal" if self.stack else "none", "group": "A"}
            defaults["custom"] = {
                "drawStyle": "line", "lineWidth": 1, "fillOpacity": 30 if self.stack else 8,
                "showPoints": "never", "spanNulls": False, "stacking": stacking}
        return {
            "id": number, "type": self.kind, "title": self.title, "description": self.description,
            "datasource": SOURCE, "targets": targets,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": OPTIONS[self.kind],
        }


OPTIONS = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "textMode": "auto",
        "orientation": "auto"},
    "heatmap": {
        "calculate": False, "cellGap": 1, "filterValues": {"le": 1e-9},
        "color": {"mode": "scheme", "scheme": "Spectral", "scale": "exponential", "exponent": 0.5,
                  "steps": 64, "reverse": False},
        "yAxis": {"axisPlacement": "left", "reverse": False}, "legend": {"show": True},
        "rowsFrame": {"layout": "auto"}, "tooltip": {"mode": "single", "yHistogram": True}},
    "table": {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}},
}

PHASES = ("tokenize", "queue", "ticket", "intake", "prefill", "handoff", "first_decode")
PAGES = "Pages by who has them: free; cached (full, and no request holds them); in use (full and " \
        "held); owned (being filled)"
DECODE_PAGES = f"{PAGES}; granted (promised); quarantined (a lost writer might still write them)."


def phase_mean(phase):
    chosen = f'{{phase="{phase}"}}'
    return (f"{rate('tandem_ttft_phase_seconds_sum', chosen)}"
            f" / {rate('tandem_ttft_phase_seconds_count', chosen)}", phase)


def phase_p90(phase):
    chosen = f'{{phase="{phase}"}}'
    return quantiles("tandem_ttft_phase_seconds", chosen=chosen)[1][0], phase


POOL_IN_USE = (f'1 - sum by (server) (tandem_pages{{server=~"$server",state=~"free|idle"}})'
               f" / sum by (server) (tandem_pool_pages{OF})")


def pages(*more):
    def state(name):
        return f'sum (tandem_pages{{server=~"$server",state="{name}"}})'
    return [(state("free"), "free"), (state("idle"), "cached"),
            (f'{state("sealed")} - {state("idle")}', "in use"),
            *((state(name), name) for name in ("owned", *more))]


OVERVIEW = [
    Panel("Ring ready", "1 where each gateway would serve a request now.", "none",
          [("min (tandem_ring_ready)", "ready")], "stat", width=4, height=4, steady=True),
    Panel("Servers up", "Servers that gateways have links to.", "none",
          [("sum (tandem_peer_up)", "up")], "stat", width=4, height=4, steady=True),
    Panel("Requests running", "Requests that servers are computing.", "none",
          [("sum (tandem_running_requests)", "running")], "stat", width=4, height=4),
    Panel("Output tokens", "Output tokens that reached gateways, a second.", "short",
          [(rate("tandem_generation_tokens_total"), "tokens/s")], "stat", width=4, height=4),
    Panel("TTFT p90", "Time to first token that one request in ten exceeds.", "s",
          [quantiles("tandem_ttft_seconds")[1]], "stat", width=4, height=4),
    Panel("Alerts", "Alerts of Tandem's rules that fire now.", "none",
          [('count (ALERTS{alertname=~"Tandem.*",alertstate="firing"}) or vector(0)', "firing")],
          "stat", width=4, height=4, quiet=True),
    Panel("Time to first token", "From arrival at the gateway to the first token there.", "s",
          quantiles("tandem_ttft_seconds")),
    Panel("Between tokens", "Gaps between tokens of one output, at the gateway.", "s",
          quantiles("tandem_itl_seconds")),
    Panel("End to end", "From arrival at the gateway to the last token there.", "s",
          quantiles("tandem_e2e_seconds")),
    Panel("Tokens", "Prompt tokens, those of them that were cached, and output tokens, a second.",
          "short", [(rate("tandem_prompt_tokens_total"), "prompt"),
                    (rate("tandem_cached_tokens_total"), "cached"),
                    (rate("tandem_generation_tokens_total"), "output")]),
    Panel("Outputs", "Outputs that ended, a second, by how.", "reqps",
          [(rate("tandem_outputs_total", by="finish"), "{{finish}}")]),
    Panel("Refused and failed", "Requests that ended without a result, a second, by why.", "reqps",
          [(rate("tandem_failures_total", by="reason"), "{{reason}}")], quiet=True),
    Panel("Calls and queue", "HTTP calls in flight, and requests that wait for a pair of servers.",
          "none", [("sum (tandem_gateway_requests_in_flight)", "calls"),
                   ("sum (tandem_queue_depth)", "waiting")]),
    Panel("HTTP answers", "Answers a second by status.", "reqps",
          [(rate("tandem_gateway_requests_total", by="code"), "{{code}}")]),
    Panel("Tried again", "Attempts after a request's first, a second, by what ended the last.",
          "reqps", [(rate("tandem_retries_total", by="reason"), "{{reason}}")], quiet=True),
    Panel("Links", "1 while the gateway has a link to the server.", "none",
          [("min by (role, address) (tandem_peer_up)", "{{role}} {{address}}")], steady=True),
    Panel("Credits free", "Pages that requests could get of each decode server.", "none",
          [("min by (server) (tandem_credits_free_pages)", "{{server}}")]),
    Panel("Traces dropped", "Traces that the collector did not take in time, a second.", "ops",
          [(rate("tandem_traces_dropped_total"), "dropped")], quiet=True),
    Panel("Incarnations", "Every server that is up; its epoch changes when it is started again.",
          "none", [("max by (role, server, address, epoch) (tandem_peer_info)", "")], "table",
          steady=True),
]

PREFILL = [
    Panel("Requests", "Computed, and waiting, at each server.", "none",
          [(f"tandem_running_requests{OF}", "{{server}} running"),
           (f"tandem_waiting_requests{OF}", "{{server}} waiting")]),
    Panel("Tokens computed", "Prompt tokens that steps computed, a second.", "short",
          [(rate("tandem_computed_tokens_total", OF, "server"), "{{server}}")]),
    Panel("Steps", "Engine steps a second.", "ops",
          [(rate("tandem_steps_total", OF, "server"), "{{server}}")]),
    Panel("Tokens a step", "Mean size of a step; its limit is chunked_prefill_size.", "none",
          [(f"{rate('tandem_step_tokens_sum', OF, 'server')}"
            f" / {rate('tandem_step_tokens_count', OF, 'server')}", "{{server}}")]),
    Panel("Until the first chunk", "Wait of a request at prefill (phase intake), all servers.", "s",
          quantiles("tandem_ttft_phase_seconds", chosen='{phase="intake"}')),
    Panel("Compute", "From the first chunk to the first token (phase prefill), all servers.", "s",
          quantiles("tandem_ttft_phase_seconds", chosen='{phase="prefill"}')),
    Panel("Prompt tokens admitted", "Found in the cache, or to be computed, a second.", "short",
          [(rate("tandem_admitted_tokens_total", OF, "source"), "{{source}}")], stack=True),
    Panel("Cache hits", "Part of the admitted prompt tokens that was in the cache.", "percentunit",
          [(f"{rate('tandem_admitted_tokens_total', CACHED_OF, 'server')}"
            f" / {rate('tandem_admitted_tokens_total', OF, 'server')}", "{{server}}")]),
    Panel("Pages", f"{PAGES}.", "none", pages(), stack=True),
    Panel("Handoffs", "Requests handed to decode, a second.", "reqps",
          [(rate("tandem_handoffs_total", OF, "server"), "{{server}}")]),
    Panel("Refused", "Requests not taken, a second, by why; gateways ask elsewhere.", "reqps",
          [(rate("tandem_refusals_total", OF, "reason"), "{{reason}}")], quiet=True),
    Panel("Pool in use", "Part of the pages that no new request could get.", "percentunit",
          [(POOL_IN_USE, "{{server}}")]),
]

DECODE = [
    Panel("Requests", "In the batch, and with a ticket, at each server.", "none",
          [(f"tandem_running_requests{OF}", "{{server}} running"),
           (f"tandem_waiting_requests{OF}", "{{server}} ticketed")]),
    Panel("Tokens made", "Tokens a second.", "short",
          [(rate("tandem_computed_tokens_total", OF, "server"), "{{server}}")]),
    Panel("Steps", "Engine steps a second; their inverse is the time of a step while busy.", "ops",
          [(rate("tandem_steps_total", OF, "server"), "{{server}}")]),
    Panel("Rows a step", "Mean batch; its limit is max_running_requests.", "none",
          [(f"{rate('tandem_step_tokens_sum', OF, 'server')}"
            f" / {rate('tandem_step_tokens_count', OF, 'server')}", "{{server}}")]),
    Panel("First step", "From landing to the first token made here (phase first_decode), all "
          "servers.", "s", quantiles("tandem_ttft_phase_seconds", chosen='{phase="first_decode"}')),
    Panel("Pool in use", "Part of the pages that no new request could get.", "percentunit",
          [(POOL_IN_USE, "{{server}}")]),
    Panel("Pages", DECODE_PAGES, "none", pages("granted", "quarantined"), stack=True,
          quiet={"quarantined"}),
    Panel("Credits free", "Pages that a request could get, as gateways last heard.", "none",
          [(f"min by (server) (tandem_credits_free_pages{OF})", "{{server}}")]),
    Panel("Tickets", "Granted (not opened yet), opened (with a writer), quarantined.", "none",
          [(f"sum by (state) (tandem_tickets{OF})", "{{state}}")]),
    Panel("Refused", "Tickets refused, a second, by why; no_pages is asked again.", "reqps",
          [(rate("tandem_refusals_total", OF, "reason"), "{{reason}}")], quiet=True),
    Panel("Retracted", "Requests whose pages were taken back for others, a second.", "reqps",
          [(rate("tandem_retracted_requests_total", OF, "server"), "{{server}}")], quiet=True),
    Panel("Pages spared", "Pages of prompts that were here already, a second: nobody shipped them.",
          "short", [(rate("tandem_transfer_spared_pages_total", OF, "server"), "{{server}}")]),
]

TRANSFER = [
    Panel("Exposed", "From the first token at prefill to all pages visible at decode: the part of a "
          "transfer that compute does not hide.", "s", quantiles("tandem_transfer_exposed_seconds")),
    Panel("Exposed, by size", "The same as a heatmap.", "s",
          [("sum by (le) (increase(tandem_transfer_exposed_seconds_bucket[$__rate_interval]))",
            "{{le}}")], "heatmap"),
    Panel("Exposed part of TTFT", "Mean exposed transfer over mean time to first token.",
          "percentunit",
          [(f"({rate('tandem_transfer_exposed_seconds_sum')}"
            f" / {rate('tandem_transfer_exposed_seconds_count')})"
            f" / ({rate('tandem_ttft_seconds_sum')} / {rate('tandem_ttft_seconds_count')})",
            "exposed")]),
    Panel("Shipped", "Bytes of pages a second, by prefill server.", "Bps",
          [(rate("tandem_transfer_bytes_total", by="server"), "{{server}}")]),
    Panel("Handoffs", "Requests handed to decode, a second.", "reqps",
          [(rate("tandem_handoffs_total", by="server"), "{{server}}")]),
    Panel("Bytes a handoff", "Mean size of what was shipped for a request.", "bytes",
          [(f"{rate('tandem_transfer_bytes_total')} / {rate('tandem_handoffs_total')}", "bytes")]),
    Panel("Self-test", "What each pair reached when it joined; 0 once it parted.", "Bps",
          [("tandem_transfer_bandwidth_bytes_per_second", "{{server}} to {{peer}} by {{transport}}")],
          steady=True),
    Panel("Pages kept for writers", "Granted (promised), opened (being written), quarantined.",
          "none", [("sum by (state) (tandem_remote_pages)", "{{state}}")]),
    Panel("Quarantined", "Pages that a lost writer might still write, by server.", "none",
          [('sum by (server) (tandem_pages{state="quarantined"})', "{{server}}")], quiet=True),
]

CACHE = [
    Panel("Prompt tokens cached", "Part of prompt tokens that did not have to be computed.",
          "percentunit", [(f"{rate('tandem_cached_tokens_total')}"
                           f" / {rate('tandem_prompt_tokens_total')}", "cached")]),
    Panel("Hits by server", "Part of the prompt tokens that each prefill server admitted.",
          "percentunit",
          [(f"{rate('tandem_admitted_tokens_total', CACHED, 'server')}"
            f" / {rate('tandem_admitted_tokens_total', by='server')}", "{{server}}")]),
    Panel("Tokens by source", "Prompt tokens admitted at prefill, a second.", "short",
          [(rate("tandem_admitted_tokens_total", by="source"), "{{source}}")], stack=True),
    Panel("Cached pages", "Full pages that no request holds: given up when pages are short.", "none",
          [('sum by (server) (tandem_pages{state="idle"})', "{{server}}")]),
    Panel("Free pages", "Pages with nothing in them.", "none",
          [('sum by (server) (tandem_pages{state="free"})', "{{server}}")]),
    Panel("Cached part of the pool", "Cached pages of all pages.", "percentunit",
          [('sum by (server) (tandem_pages{state="idle"}) / sum by (server) (tandem_pool_pages)',
            "{{server}}")]),
    Panel("Pages spared", "Pages that decode held already, a second: nobody shipped them.", "short",
          [(rate("tandem_transfer_spared_pages_total", by="server"), "{{server}}")]),
    Panel("Prompts", "Prompt tokens of a request.", "none",
          quantiles("tandem_request_prompt_tokens")),
]

REQUESTS = [
    Panel("Time to the first tokens", "Mean of each phase. The sum up to handoff is the mean time "
          "to first token; first_decode is on the way to the second.", "s",
          [phase_mean(phase) for phase in PHASES], width=12, stack=True),
    Panel("Phases, p90", "What one request in ten exceeds, phase by phase.", "s",
          [phase_p90(phase) for phase in PHASES], width=12),
    Panel("Time to first token", "From arrival at the gateway.", "s",
          [("sum by (le) (increase(tandem_ttft_seconds_bucket[$__rate_interval]))", "{{le}}")],
          "heatmap"),
    Panel("From the ticket to the first token", "Prefill, its queue, and the handoff, as the "
          "gateway sees them.", "s", quantiles("tandem_request_prefill_seconds")),
    Panel("From the first token to the last", "Decode, as the gateway sees it.", "s",
          quantiles("tandem_request_decode_seconds")),
    Panel("Prompt tokens", "Requests by prompt length.", "none",
          [("sum by (le) (increase(tandem_request_prompt_tokens_bucket[$__rate_interval]))",
            "{{le}}")], "heatmap"),
    Panel("Output tokens", "Outputs by length.", "none",
          [("sum by (le) (increase(tandem_request_generation_tokens_bucket[$__rate_interval]))",
            "{{le}}")], "heatmap"),
    Panel("Allowed output", "Requests by max_tokens.", "none",
          [("sum by (le) (increase(tandem_request_max_tokens_bucket[$__rate_interval]))",
            "{{le}}")], "heatmap"),
]

# File, title, panels, and the metric that only the chosen role's servers have.
DASHBOARDS = [
    ("overview", "Tandem: overview", OVERVIEW, None),
    ("prefill", "Tandem: prefill", PREFILL, "tandem_handoffs_total"),
    ("decode", "Tandem: decode", DECODE, "tandem_tickets"),
    ("transfer", "Tandem: transfer", TRANSFER, None),
    ("cache", "Tandem: cache", CACHE, None),
    ("phases", "Tandem: request phases", REQUESTS, None),
]


def variables(role_metric):
    found = [{"name": "datasource", "label": "Prometheus", "type": "datasource",
              "query": "prometheus", "refresh": 1, "hide": 0, "options": [], "current": {}}]
    if role_metric:
        query = f"label_values({role_metric}, server)"
        found.append({
            "name": "server", "label": "Server", "type": "query", "datasource": SOURCE,
            "definition": query, "query": {"query": query, "refId": "Servers"}, "refresh": 2,
            "includeAll": True, "multi": True, "sort": 1, "hide": 0, "options": [],
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]}})
    return found


def dashboard(name, title, panels, role_metric):
    placed, x, y, row = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > 24:
            x, y, row = 0, y + row, 0
        placed.append(panel.json(number, x, y))
        x, row = x + panel.width, max(row, panel.height)
    return {
        "uid": f"tandem-{name}", "title": title, "tags": ["tandem"], "schemaVersion": 39,
        "version": 1, "editable": True, "graphTooltip": 1, "refresh": "10s", "timezone": "browser",
        "time": {"from": "now-30m", "to": "now"}, "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Tandem", "tags": ["tandem"], "asDropdown": True,
                   "includeVars": False, "keepTime": True, "targetBlank": False, "icon": "",
                   "tooltip": "", "url": ""}],
        "templating": {"list": variables(role_metric)}, "panels": placed,
    }


def main(check):
    stale = []
    for name, *rest in DASHBOARDS:
        path, text = FOLDER / f"{name}.json", json.dumps(dashboard(name, *rest), indent=1) + "\n"
        if check and (not path.exists() or path.read_text() != text):
            stale.append(path.name)
        elif not check:
            path.write_text(text)
    if stale:
        sys.exit(f"not what dashboards.py makes, run it: {', '.join(stale)}")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
