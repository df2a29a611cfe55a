"""What the dashboards that SGLang and vLLM publish ask of Prometheus, query by query.

From sgl-project/sglang examples/monitoring/grafana/dashboards/json/sglang-dashboard.json, and
vllm-project/vllm examples/observability: prometheus_grafana/grafana.json and, of
dashboards/grafana, performance_statistics.json and query_statistics.json. Queries that differ in
their quantile only are made from one line here.
"""

QUANTILES = {"sglang": (0.99, 0.9, 0.5), "vllm": (0.99, 0.95, 0.9, 0.5), "range": (0.99, 0.9, 0.5)}
RATE, RANGE = "[$__rate_interval]", "[$__range]"
MODEL, DEPLOYMENT = '{model_name="$model_name"}', '{model_name=~"$Deployment_id"}'


def quantiles(qs, metric, chosen, window, by="le"):
    return [f"histogram_quantile({q}, sum by({by}) (rate({metric}_bucket{chosen}{window})))"
            for q in qs]


def mean(metric, chosen=""):
    return f"rate({metric}_sum{chosen}{RATE}) / rate({metric}_count{chosen}{RATE})"


def sglang():
    for name in ("e2e_request_latency_seconds", "time_to_first_token_seconds"):
        metric = f"sglang:{name}"
        yield from quantiles(QUANTILES["sglang"], metric, "", RATE)
        yield f"avg({mean(metric)})"
        yield f'sum by (le) (increase({metric}_bucket{{model_name=~"$model_name"}}{RATE}))'
    for name in ("num_running_reqs", "gen_throughput", "cache_hit_rate", "num_queue_reqs"):
        yield f"sglang:{name}"


def vllm():
    for name in ("e2e_request_latency_seconds", "inter_token_latency_seconds",
                 "time_to_first_token_seconds"):
        yield from quantiles(QUANTILES["vllm"], f"vllm:{name}", MODEL, RATE)
        yield mean(f"vllm:{name}", MODEL)
    for name in ("prompt_tokens_total", "generation_tokens_total", "request_queue_time_seconds_sum",
                 "request_prefill_time_seconds_sum", "request_decode_time_seconds_sum",
                 "request_max_num_generation_tokens_sum"):
        yield f"rate(vllm:{name}{MODEL}{RATE})"
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        yield f"vllm:{name}{MODEL}"
    for name in ("request_prompt_tokens", "request_generation_tokens"):
        yield f"sum by(le) (increase(vllm:{name}_bucket{MODEL}{RATE}))"
    yield f"sum by(finished_reason) (increase(vllm:request_success_total{MODEL}{RATE}))"


def vllm_performance():
    for name in ("e2e_request_latency_seconds", "time_to_first_token_seconds",
                 "inter_token_latency_seconds"):
        metric = f"vllm:{name}"
        yield mean(metric)
        yield from quantiles(QUANTILES["range"], metric, "", RANGE)
        yield f"sum(increase({metric}_sum{RANGE})) / sum(increase({metric}_count{RANGE}))"
    for name in ("generation_tokens_total", "prompt_tokens_total", "iteration_tokens_total_count"):
        yield f"rate(vllm:{name}{RATE})"


def vllm_queries():
    success, prompts = "vllm:request_success_total", "vllm:request_prompt_tokens"
    yield f"sum by (model_name) (rate({success}{DEPLOYMENT}{RATE}))"
    yield f"sum(rate({success}{DEPLOYMENT}{RATE}))"
    for metric in ("vllm:e2e_request_latency_seconds", prompts):
        yield from quantiles(QUANTILES["range"], metric, DEPLOYMENT, RATE, "le, model_name")
    yield f"sum by (le, model_name) (rate({prompts}_bucket{DEPLOYMENT}{RATE}))"
    for name in ("prompt_tokens_total", "generation_tokens_total"):
        yield f"sum by (model_name) (rate(vllm:{name}{DEPLOYMENT}{RATE}))"
        yield f"sum(rate(vllm:{name}{DEPLOYMENT}{RATE}))"
    tokens = f"sum(rate(vllm:prompt_tokens_total{DEPLOYMENT}{RATE}))"
    yield f"{tokens} / sum(rate({success}{DEPLOYMENT}{RATE}))"


DASHBOARDS = {
    "SGLang": list(sglang()), "vLLM": list(vllm()),
    "vLLM performance": list(vllm_performance()), "vLLM queries": list(vllm_queries()),
}
