// The ring, drawn: gateway → prefill → decode → gateway. What is drawn moves only where the numbers
// did: a dot for each handoff, some for requests and tokens.

import { count, rate, say, svg } from "./dom.js";

const CARD = 244;
const GATEWAY_WIDTH = 208;
const EDGE = 14;
/** Of the way that tokens take back, below the cards. */
const FOOT = 34;
const BEND = 8;
/** More servers of a role than this have small cards. */
const LARGE_MAX = 4;
/** Links of more pairs than this are drawn once they are used. */
const LINKS_MAX = 64;
/** Dots a link and look. */
const DOTS_MAX = 6;
const UNITS_PER_MS = 0.55;
const FLIGHT_MS = [500, 1600];

const STATES = { joined: "up", joining: "joining", draining: "draining", lost: "lost" };
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 640px)");

/** A bar of pages: in use, and those in quarantine. */
class Pages {
  constructor(x, y, width) {
    this.width = width;
    const rect = (name) => svg("rect", { class: name, x, y, width: 0, height: 7, rx: 2 });
    [this.all, this.used, this.held] = ["pages-all", "pages-used", "pages-held"].map(rect);
    this.all.setAttribute("width", width);
    this.element = svg("g", {}, this.all, this.used, this.held);
  }

  show(total, used, held) {
    const part = (pages) => (total ? (this.width * Math.min(pages, total)) / total : 0);
    const set = (rect, name, value) => rect.setAttribute(name, value.toFixed(1));
    set(this.used, "width", used > 0 ? Math.max(part(used), 2) : 0);
    set(this.held, "width", part(held));
    set(this.held, "x", this.all.x.baseVal.value + part(used - held));
  }
}

/** A box with a name, a state, a bar and two lines of numbers. */
class Card {
  constructor(x, y, width, large) {
    Object.assign(this, { x, y, width, height: large ? 88 : 46, shownState: null });
    const text = (name, dx, dy, end) => svg("text", { class: name, x: x + dx, y: y + dy,
      "text-anchor": end ? "end" : "start" });
    this.dot = svg("circle", { class: "lamp", cx: x + 17, cy: y + 17, r: 4.5 });
    this.name = text("title", 30, 21.5);
    this.right = text("value", width - 12, 21.5, true);
    this.pages = new Pages(x + 12, y + (large ? 36 : 31), width - 24);
    this.left = text("small", 12, 60);
    this.middle = text("small", width - 12, 60, true);
    this.below = text("small faint", 12, 77);
    this.work = text("small", width - 12, 77, true);
    const lines = large ? [this.left, this.middle, this.below, this.work] : [];
    this.element = svg("g", { class: "card", role: "img" },
      svg("rect", { class: "box", x, y, width, height: this.height, rx: 8 }),
      this.dot, this.name, this.right, this.pages.element, ...lines);
  }

  get entry() { return [this.x, this.y + this.height / 2]; }
  get exit() { return [this.x + this.width, this.y + this.height / 2]; }
}

/** A line along which dots fly. */
class Link {
  /** All of the way, and the part of it that is this link's alone. */
  constructor(path, name, own = path) {
    this.path = path;
    this.element = svg("path", { class: `link ${name}`, d: own });
    this.kind = name;
    const length = svg("path", { d: path }).getTotalLength();
    this.flight = Math.min(Math.max(length / UNITS_PER_MS, FLIGHT_MS[0]), FLIGHT_MS[1]);
  }

  /** Sends so many dots, spread over the time until the next look. */
  fly(dots, layer, over) {
    if (calm.matches || document.hidden) return;
    for (let at = 0; at < Math.min(dots, DOTS_MAX); at++) {
      const dot = svg("circle", { class: `dot ${this.kind}`, r: this.kind === "pages" ? 4 : 2.5 });
      dot.style.offsetPath = `path("${this.path}")`;
      layer.append(dot);
      const flight = dot.animate(
        [{ offsetDistance: "0%", opacity: 1 }, { offsetDistance: "100%", opacity: 1 }],
        { duration: this.flight, delay: (over * at) / Math.min(dots, DOTS_MAX) });
      flight.onfinish = () => dot.remove();
    }
  }
}

/** Height of a card, and of its place. */
const sizes = (large) => (large ? [88, 104] : [46, 56]);

/** Roles beside each other, curves between them, and tokens go back below. */
function beside(now, large) {
  const [size, step] = sizes(large);
  const width = 960;
  const body = Math.max(Math.max(now.prefill.length, now.decode.length) * step, 120);
  const [height, bus] = [EDGE + body + FOOT, width - EDGE];
  const foot = height - EDGE;
  const column = (role, x) => now[role].map((_, at) =>
    new Card(x, EDGE + (body - now[role].length * step) / 2 + at * step + (step - size) / 2, CARD, large));
  const gateway = new Card(EDGE, EDGE + (body - 88) / 2, GATEWAY_WIDTH, true);
  const cards = { prefill: column("prefill", 318), decode: column("decode", 672) };
  const middle = gateway.x + gateway.width / 2;
  const between = (from, to) => {
    const [[x1, y1], [x2, y2]] = [from.exit, to.entry];
    const half = (x1 + x2) / 2;
    return `M${x1},${y1}C${half},${y1} ${half},${y2} ${x2},${y2}`;
  };
  const back = `V${foot - BEND}Q${bus},${foot} ${bus - BEND},${foot}H${middle + BEND}`
    + `Q${middle},${foot} ${middle},${foot - BEND}V${gateway.y + gateway.height}`;
  return { width, height, bus, gateway, ...cards, between, back, turn: BEND, far: cards.decode[0] };
}

/** Roles below each other, each a little to the right of the last, and tokens go back beside them. */
function below(now, large) {
  const [size, step] = sizes(large);
  const [width, indent] = [400, 56];
  const bus = width - EDGE;
  const gateway = new Card(EDGE, EDGE, GATEWAY_WIDTH, true);
  let y = gateway.y + gateway.height + step - size;
  const column = (role, x) => now[role].map(() => {
    const card = new Card(x, y, CARD, large);
    y += step;
    return card;
  });
  const cards = { prefill: column("prefill", EDGE + indent), decode: column("decode", EDGE + 2 * indent) };
  const between = (from, to) => {
    const [x1, [x2, y2]] = [from.x + indent / 2, to.entry];
    return `M${x1},${from.y + from.height}V${y2 - BEND}Q${x1},${y2} ${x1 + BEND},${y2}H${x2}`;
  };
  const [x, top] = gateway.exit;
  const back = `V${top + BEND}Q${bus},${top} ${bus - BEND},${top}H${x}`;
  return { width, height: y - step + size + EDGE, bus, gateway, ...cards, between, back,
    turn: -BEND, far: cards.decode.at(-1) };
}

export class Ring {
  #shape = "";
  #before = null;

  constructor(root, announce) {
    this.root = root;
    this.announce = announce;
  }

  /** Shows a snapshot. */
  show(now) {
    const shape = `${now.prefill.length} ${now.decode.length} ${narrow.matches}`;
    if (shape !== this.#shape) this.#build(now);
    this.#shape = shape;
    const before = this.#before?.epoch === now.epoch ? this.#before : null;
    const seconds = before ? (now.now_us - before.now_us) / 1e6 : 0;
    const grown = (role, at, what) =>
      before ? Math.max(0, now[role][at][what] - (before[role][at]?.[what] ?? 0)) : 0;
    for (const role of ["prefill", "decode"]) {
      now[role].forEach((server, at) => {
        const card = this.cards[role][at];
        const tokens = grown(role, at, "tokens");
        card.smooth = seconds ? smooth(card.smooth, tokens / seconds, seconds) : 0;
        this.#server(card, server, role);
        const [link, dots] = role === "prefill"
          ? [this.requests[at], grown(role, at, "requests")]
          : [this.tokens[at], Math.ceil(Math.log2(1 + tokens))];
        link.element.classList.toggle("lost", server.state === "lost");
        link.fly(dots, this.dots, seconds * 1e3);
      });
    }
    this.#links(now, before, seconds);
    this.#gateway(now);
    this.#before = now;
  }

  #build(now) {
    const large = Math.max(now.prefill.length, now.decode.length) <= LARGE_MAX;
    const layout = (narrow.matches ? below : beside)(now, large);
    const { width, height, bus, gateway, prefill, decode, between, back, turn, far } = layout;
    [this.gateway, this.cards, this.between] = [gateway, { prefill, decode }, between];
    this.requests = prefill.map((card) => new Link(between(gateway, card), "request"));
    this.tokens = decode.map(({ exit: [x, y] }) => {
      const own = `M${x},${y}H${bus - BEND}Q${bus},${y} ${bus},${y + turn}`;
      return new Link(own + back, "token", own);
    });
    this.pages = new Map();
    const start = far ? far.exit[1] + turn : EDGE;
    this.lines = svg("g", { "aria-hidden": "true" },
      svg("path", { class: "link", d: `M${bus},${start}${back}` }),
      [...this.requests, ...this.tokens].map((link) => link.element));
    this.dots = svg("g", { "aria-hidden": "true" });
    const cards = [gateway, ...prefill, ...decode];
    this.root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.root.replaceChildren(this.lines, this.dots, ...cards.map((card) => card.element));
  }

  #server(card, server, role) {
    const name = server.name ?? server.address;
    const lost = server.state === "lost";
    card.element.setAttribute("class", `card ${role} ${server.state}`);
    if (card.shownState !== null && card.shownState !== server.state) {
      this.announce(`${name} is ${STATES[server.state]}`);
    }
    card.shownState = server.state;
    say(card.name, name);
    say(card.right,
      server.state === "joined" ? `${rate(card.smooth)} tok/s` : STATES[server.state]);
    card.pages.show(server.pages, server.pages_used, server.pages_quarantined);
    const pages = lost ? "no link" : `${count(server.pages_used)} / ${count(server.pages)} pages`;
    const work = lost ? "" : `queue ${server.queued} · run ${server.running}`;
    const held = server.pages_quarantined ? `${count(server.pages_quarantined)} quarantined` : "";
    say(card.left, pages);
    say(card.middle, held);
    say(card.below, server.epoch ? `epoch ${server.epoch.slice(0, 8)}` : server.address);
    say(card.work, work);
    card.element.setAttribute("aria-label",
      `${role} server ${name}: ${STATES[server.state]}, ${lost ? server.why : `${pages} in use, `
      + `${held && `${held}, `}${work}, ${rate(card.smooth)} tokens a second`}`);
  }

  #links(now, before, seconds) {
    const key = (prefill, decode) => `${prefill} ${decode}`;
    const used = new Map(now.links.map((link) => [key(link.prefill, link.decode), link]));
    const old = new Map((before?.links ?? []).map((link) => [key(link.prefill, link.decode), link]));
    const joined = new Set(now.prefill.flatMap((server, prefill) =>
      server.joined.map((decode) => key(prefill, decode))));
    const few = now.prefill.length * now.decode.length <= LINKS_MAX;
    for (let prefill = 0; prefill < now.prefill.length; prefill++) {
      for (let decode = 0; decode < now.decode.length; decode++) {
        const name = key(prefill, decode);
        if (!few && !used.has(name)) continue;
        let link = this.pages.get(name);
        if (!link) {
          const ends = [this.cards.prefill[prefill], this.cards.decode[decode]];
          link = new Link(this.between(...ends), "pages");
          this.pages.set(name, link);
          this.lines.append(link.element);
        }
        const { handoffs = 0, coming = 0 } = used.get(name) ?? {};
        link.element.classList.toggle("lost", !joined.has(name));
        link.element.classList.toggle("busy", coming > 0);
        if (before) link.fly(handoffs - (old.get(name)?.handoffs ?? 0), this.dots, seconds * 1e3);
      }
    }
  }

  #gateway(now) {
    const card = this.gateway;
    const handoffs = now.links.reduce((sum, link) => sum + link.handoffs, 0);
    const coming = now.links.reduce((sum, link) => sum + link.coming, 0);
    card.element.setAttribute("class", `card gateway ${now.draining ? "draining" : "joined"}`);
    say(card.name, "gateway");
    say(card.right, `${now.requests} in flight`);
    card.pages.show(now.queued_max, now.queued, 0);
    say(card.left, `queue ${now.queued}`);
    say(card.middle, `${count(handoffs)} handoffs`);
    say(card.below, `epoch ${now.epoch.slice(0, 8)}`);
    say(card.work, now.draining ? "draining" : coming ? `${coming} in prefill` : "");
    card.element.setAttribute("aria-label",
      `gateway: ${now.requests} requests in flight, ${now.queued} in the queue, `
      + `${handoffs} handoffs so far`);
  }
}

/** A mean that forgets half within a second, so that numbers can be read. */
export function smooth(mean, value, seconds) {
  const keep = 0.5 ** seconds;
  const next = (mean ?? 0) * keep + value * (1 - keep);
  return next < 0.05 ? 0 : next;
}
