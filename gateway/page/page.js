// Four times a second: a snapshot of the ring, and what it changes on the page.

import { json, onKeyWanted } from "./api.js";
import { Histogram, Rate } from "./charts.js";
import { Chat } from "./chat.js";
import { byId, count, html, rate, say, time } from "./dom.js";
import { Ring, smooth } from "./ring.js";
import { bar, decodeRate, legend, untilFirst } from "./story.js";

const LOOK_EVERY_MS = 250;
/** Stories are looked for less often: there are more of them than numbers. */
const STORIES_EVERY_MS = 1000;
const STORIES = 14;

const chat = new Chat();
const announce = (text) => say(byId("announced"), text);
const ring = new Ring(byId("ring"), announce);
const output = new Rate("Output", "decode");
const prompt = new Rate("Prompts computed", "prefill");
const ttft = new Histogram("Time to first token", "Time from a request's arrival to its first token");
const itl = new Histogram("Between tokens", "Time between two tokens of one output");
byId("charts").append(...[output, prompt, ttft, itl].map((chart) => chart.element));

let before = null;

const sum = (servers, what) => servers.reduce((total, server) => total + server[what], 0);

function show(now) {
  ring.show(now);
  if (before?.epoch !== now.epoch) before = null;
  const seconds = before ? (now.now_us - before.now_us) / 1e6 : 0;
  for (const [chart, role] of [[output, "decode"], [prompt, "prefill"]]) {
    const grown = before ? Math.max(0, sum(now[role], "tokens") - sum(before[role], "tokens")) : 0;
    chart.mean = seconds ? smooth(chart.mean, grown / seconds, seconds) : 0;
    chart.add(now.now_us, chart.mean);
  }
  ttft.show(now.now_us, now.times.from_us, now.times.ttft);
  itl.show(now.now_us, now.times.from_us, now.times.itl);
  before = now;
  chat.model = now.model;
  say(byId("model"), now.model);
  say(byId("version"), `v${now.version}`);
  say(byId("ended"), `${count(now.finished)} finished · ${count(now.failed)} failed · `
    + `${count(now.dropped)} dropped`);
  const servers = [...now.prefill, ...now.decode];
  const lost = servers.filter(({ state }) => state === "lost").length;
  const pairs = now.prefill.some(({ joined }) => joined.length > 0);
  if (now.draining) state("warn", "draining");
  else if (!pairs) state("bad", "not ready");
  else if (lost) state("warn", `${lost} of ${servers.length} servers lost`);
  else state("good", "ready");
}

function state(tone, text) {
  byId("state").className = `pill ${tone}`;
  say(byId("state"), text);
}

const opened = new Set();

/** Rows of the table of requests; the bars of all have one scale. */
function tell({ running, ended }) {
  const known = new Set(running.map(({ id }) => id));
  const stories = [...running, ...ended.filter(({ id }) => !known.has(id))].slice(0, STORIES);
  const span = Math.max(...stories.map((story) => story.ttft_us ?? story.us), 1);
  byId("span").textContent = stories.length ? `0 – ${time(span)}` : "";
  byId("no-requests").hidden = stories.length > 0;
  const focused = document.activeElement?.dataset?.story;
  byId("requests").replaceChildren(...stories.flatMap((story) => rows(story, span)));
  if (focused) byId("requests").querySelector(`[data-story="${focused}"]`)?.focus();
}

function rows(story, span) {
  const isOpen = opened.has(story.id);
  const toggle = () => {
    if (!opened.delete(story.id)) opened.add(story.id);
    stories();
  };
  const name = html("button", { class: "plain", "data-story": story.id, onclick: toggle,
    "aria-expanded": String(isOpen), title: story.call }, story.call.slice(0, 8));
  const each = decodeRate(story);
  const cells = [
    html("td", {}, name),
    html("td", {}, html("span", { class: `state ${story.state}` }, story.state)),
    html("td", { class: "number" }, count(story.prompt_tokens)),
    html("td", { class: "number wide" }, count(story.cached_tokens)),
    html("td", { class: "number" }, count(story.output_tokens)),
    html("td", { class: "line" }, bar(untilFirst(story.phases), span)),
    html("td", { class: "number" }, time(story.ttft_us)),
    html("td", { class: "number wide" }, each ? rate(each) : "–"),
    html("td", { class: "number" }, time(story.us)),
  ];
  const row = html("tr", {}, cells);
  if (!isOpen) return [row];
  const at = new Date(story.arrived_ms).toLocaleTimeString();
  const more = html("p", { class: "facts" }, `${story.call} · arrived ${at} · ${story.attempts} `
    + `attempt${story.attempts > 1 ? "s" : ""} · ${count(story.cached_tokens)} of `
    + `${count(story.prompt_tokens)} prompt tokens cached${each ? ` · ${rate(each)} tok/s` : ""}`);
  return [row, html("tr", { class: "detail" }, html("td", { colspan: cells.length },
    bar(story.phases, story.us), legend(story.phases), more))];
}

let told = "";

async function stories() {
  const found = await json(`/ring/requests?limit=${STORIES}`);
  // Nothing is built anew while nothing happens.
  const key = JSON.stringify([found, [...opened]]);
  if (key !== told) tell(found);
  told = key;
}

/** Asks for the key that the gateway wants. */
function keyWanted(wasGiven) {
  const dialog = byId("key-dialog");
  byId("key-wrong").hidden = !wasGiven;
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(byId("key").value), { once: true });
  });
}
onKeyWanted(keyWanted);
byId("key-dialog").addEventListener("cancel", (event) => event.preventDefault());

async function look() {
  for (let next = 0; ; ) {
    const began = performance.now();
    if (!document.hidden) {
      try {
        show(await json("/ring"));
        if (began >= next) {
          await stories();
          next = began + STORIES_EVERY_MS;
        }
        byId("silent").hidden = true;
      } catch {
        byId("silent").hidden = false;
        state("bad", "no answer");
      }
    }
    const pause = Math.max(20, LOOK_EVERY_MS - (performance.now() - began));
    await new Promise((resume) => setTimeout(resume, pause));
  }
}
look();
