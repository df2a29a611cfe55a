// The phases of a request: a bar whose parts are as long as they took, and their names.

import { html, time } from "./dom.js";

const NAMES = {
  read: ["read", "read, checked, made tokens"],
  queue: ["queue", "waited for its turn and for room in the ring"],
  ticket: ["ticket", "decode promised pages"],
  prefill_queue: ["wait", "waited at the prefill server"],
  prefill: ["prefill", "computed the prompt"],
  handoff: ["handoff", "the rest of the pages travelled, after the first token"],
  wire: ["wire", "messages between processes"],
  decode: ["decode", "made the other tokens"],
};

/** Phases of one name and server that follow one another are one. */
function merged(phases) {
  const out = [];
  for (const phase of phases) {
    const last = out.at(-1);
    if (last && last.phase === phase.phase && last.server === phase.server) last.us += phase.us;
    else out.push({ ...phase });
  }
  return out;
}

const label = ({ phase, server, us }) =>
  `${NAMES[phase][0]} ${time(us)}${server ? ` at ${server}` : ""}`;

/** A bar of these phases; `span` is the microseconds that its whole width stands for. */
export function bar(phases, span, named = true) {
  const total = phases.reduce((sum, { us }) => sum + us, 0);
  const text = named ? phases.map(label).join(", ") : null;
  const role = named ? { role: "img", "aria-label": text } : { "aria-hidden": "true" };
  const inner = html("div", { class: "bar-inner" });
  inner.style.width = `${Math.min(100, (100 * total) / Math.max(span, 1))}%`;
  for (const phase of merged(phases)) {
    const part = html("span", { class: `part phase-${phase.phase}`, title: label(phase) });
    part.style.flexGrow = Math.max(phase.us, 1);
    inner.append(part);
  }
  return html("div", { class: "bar", ...role }, inner);
}

/** The names of a story's phases, each with its colour and its time. */
export function legend(phases) {
  const one = (phase) => html("li", { title: NAMES[phase.phase][1] },
    html("span", { class: `swatch phase-${phase.phase}`, "aria-hidden": "true" }),
    html("span", { class: "name" }, NAMES[phase.phase][0]),
    html("span", { class: "value" }, time(phase.us)),
    phase.server && html("span", { class: "at" }, phase.server));
  return html("ul", { class: "legend" }, merged(phases).map(one));
}

/** Phases up to the first token. */
export const untilFirst = (phases) => phases.filter(({ phase }) => phase !== "decode");

/** Tokens a second after the first, where there are any. */
export function decodeRate(story) {
  const us = story.us - (story.ttft_us ?? story.us);
  return us > 0 && story.output_tokens > 1 ? ((story.output_tokens - 1) * 1e6) / us : null;
}
