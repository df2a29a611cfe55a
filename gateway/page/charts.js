// Rates over the last minute, and histograms of times.

import { count, html, rate, say, svg, time } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 64;
const MINUTE = 60e6;
const PLOT = { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" };

/** A word under a plot, at so many hundredths of its width. */
function tick(at, text, edge = "middle") {
  const word = html("span", { class: edge }, text);
  word.style.left = `${at}%`;
  return word;
}

/** A rate over the last minute. */
export class Rate {
  #points = []; // [now_us, rate]
  constructor(title, tone) {
    this.value = html("output", { class: "big" }, "0");
    this.peak = html("span", { class: "dim" }, "last minute");
    this.area = svg("path", { class: `area ${tone}` });
    this.line = svg("path", { class: `line ${tone}` });
    this.element = html("section", { class: "chart", "aria-label": title },
      html("div", { class: "chart-head" }, html("h3", {}, title), this.peak),
      html("p", {}, this.value, html("span", { class: "dim" }, " tok/s")),
      svg("svg", { ...PLOT, "aria-hidden": "true" }, this.area, this.line),
      html("div", { class: "ticks", "aria-hidden": "true" }, tick(0, "−60 s", "start"),
        tick(50, "−30 s"), tick(100, "now", "end")));
  }

  add(now, value) {
    if (this.#points.length && now < this.#points.at(-1)[0]) this.#points = [];
    this.#points.push([now, value]);
    while (this.#points[0][0] < now - MINUTE) this.#points.shift();
    const top = Math.max(...this.#points.map(([, each]) => each), 1);
    const x = (at) => (WIDTH * (1 - (now - at) / MINUTE)).toFixed(1);
    const y = (each) => (HEIGHT - 2 - (HEIGHT - 6) * (each / top)).toFixed(1);
    const path = this.#points.map(([at, each]) => `${x(at)},${y(each)}`).join("L");
    this.line.setAttribute("d", `M${path}`);
    this.area.setAttribute("d", `M${x(this.#points[0][0])},${HEIGHT}L${path}L${WIDTH},${HEIGHT}Z`);
    say(this.value, rate(value));
    say(this.peak, top > 1 ? `peak ${rate(top)}` : "last minute");
  }
}

/** A quantile of counts in buckets, between whose bounds times are spread by their ratio. */
export function quantile(from, counts, q) {
  const total = counts.reduce((sum, each) => sum + each, 0);
  let left = q * total;
  for (let at = 0; at < counts.length; at++) {
    if (left <= counts[at] && counts[at] > 0) {
      const next = from[at + 1] ?? from[at] * 1.5;
      return from[at] * (next / from[at]) ** (left / counts[at]);
    }
    left -= counts[at];
  }
  return null;
}

const TICKS = [[1e2, "100 µs"], [1e3, "1 ms"], [1e4, "10 ms"], [1e5, "100 ms"], [1e6, "1 s"],
  [1e7, "10 s"], [1e8, "100 s"]];
const BARS_MIN = 14;

/** How often times of which size were seen. */
export class Histogram {
  #seen = []; // [now_us, counts]
  #shown = "";
  constructor(title, explained) {
    this.median = html("output", { class: "big" }, "–");
    this.high = html("span", { class: "high" });
    this.note = html("span", { class: "dim" });
    this.plot = svg("svg", { ...PLOT, role: "img", "aria-label": `${title}: nothing yet` });
    this.ticks = html("div", { class: "ticks", "aria-hidden": "true" });
    this.title = title;
    this.element = html("section", { class: "chart", "aria-label": explained },
      html("div", { class: "chart-head" }, html("h3", { title: explained }, title), this.note),
      html("p", {}, this.median, html("span", { class: "dim" }, " p50"), this.high),
      this.plot, this.ticks);
  }

  /** Shows the last minute, or all since the gateway's start where that had none. */
  show(now, from, counts) {
    if (this.#seen.length && now < this.#seen.at(-1)[0]) this.#seen = [];
    this.#seen.push([now, counts]);
    while (this.#seen[1]?.[0] < now - MINUTE) this.#seen.shift();
    const old = this.#seen[0][1];
    const minute = counts.map((each, at) => each - old[at]);
    const isRecent = minute.some((each) => each > 0);
    const shown = isRecent ? minute : counts;
    const key = `${isRecent} ${shown}`;
    if (key !== this.#shown) this.#draw(from, shown, isRecent);
    this.#shown = key;
  }

  #draw(from, counts, isRecent) {
    const total = counts.reduce((sum, each) => sum + each, 0);
    const [p50, p95, p99] = [0.5, 0.95, 0.99].map((q) => quantile(from, counts, q));
    say(this.median, time(p50));
    say(this.high, total === 0 ? "" : `p95 ${time(p95)} · p99 ${time(p99)}`);
    say(this.note, total === 0 ? "" : `${count(total)} in ${isRecent ? "1 min" : "all"}`);
    this.plot.setAttribute("aria-label", total === 0 ? `${this.title}: nothing yet`
      : `${this.title}: half within ${time(p50)}, 95 % within ${time(p95)}, of ${total}`);
    if (total === 0) return;
    let [first, end] = [counts.findIndex((each) => each > 0) - 1,
      counts.findLastIndex((each) => each > 0) + 2];
    const widen = Math.max(0, BARS_MIN - (end - first)) / 2;
    first = Math.max(0, Math.floor(first - widen));
    end = Math.min(counts.length, Math.ceil(end + widen));
    const step = WIDTH / (end - first);
    // A bucket is the ratio of its bounds wide, so what lies between is by logarithms.
    const x = (us) => {
      const at = from.findLastIndex((bound) => bound <= us);
      const next = from[at + 1] ?? from[at] * 1.5;
      return (at + Math.log(us / from[at]) / Math.log(next / from[at]) - first) * step;
    };
    const top = Math.max(...counts);
    const bars = counts.slice(first, end).map((each, at) => {
      const height = each === 0 ? 0 : Math.max(1.5, (HEIGHT - 4) * (each / top));
      return svg("rect", { x: (at * step + 0.75).toFixed(1), width: (step - 1.5).toFixed(1),
        y: (HEIGHT - height).toFixed(1), height: height.toFixed(1) });
    });
    const inside = (us) => us >= from[first] && x(us) > 12 && x(us) < WIDTH - 12;
    this.ticks.replaceChildren(...TICKS.filter(([us]) => inside(us)).map(([us, name]) =>
      tick((100 * x(us)) / WIDTH, name)));
    const mark = (us, name) => svg("line", { class: name, x1: x(us), x2: x(us), y1: 0, y2: HEIGHT });
    this.plot.replaceChildren(
      svg("g", { class: isRecent ? "bars" : "bars old" }, bars),
      mark(p50, "p50"), mark(p95, "p95"));
  }
}
