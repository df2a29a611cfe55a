// Elements in one expression, and numbers as people read them.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

/** An HTML element. Names that begin with "on" are listeners; null and false leave one out. */
export const html = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

/** An SVG element, likewise. */
export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

/** Sets text only where it differs, so that nothing is laid out anew for nothing. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const byId = (id) => document.getElementById(id);

const three = (value) =>
  value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);

/** Microseconds with three digits. */
export function time(us) {
  if (us == null) return "–";
  if (us < 1e3) return `${us.toFixed(0)} µs`;
  if (us < 1e6) return `${three(us / 1e3)} ms`;
  if (us < 600e6) return `${three(us / 1e6)} s`;
  return `${three(us / 60e6)} min`;
}

/** A count, short from ten thousand on. */
export function count(value) {
  if (value < 1e4) return value.toFixed(0);
  if (value < 1e6) return `${three(value / 1e3)} k`;
  return `${three(value / 1e6)} M`;
}

/** A count a second. */
export const rate = (value) => (value > 0 && value < 10 ? value.toFixed(1) : count(value));
