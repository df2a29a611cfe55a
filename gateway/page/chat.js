// A chat with the model behind the ring; under each answer, where its time went.

import { ask, events, json } from "./api.js";
import { byId, html, rate, say, time } from "./dom.js";
import { bar, decodeRate, legend } from "./story.js";

/** How often a story is asked for until it has ended. */
const STORY_TRIES = 20;
const STORY_PAUSE_MS = 50;

export class Chat {
  #messages = [];
  #stop = null;

  constructor() {
    this.log = byId("log");
    this.form = byId("chat-form");
    this.text = byId("chat-text");
    this.button = byId("chat-send");
    this.intro = byId("chat-intro");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#stop) this.#stop.abort();
      else this.#send(this.text.value.trim());
    });
    this.text.addEventListener("keydown", (event) => {
      const plain = !event.shiftKey && !event.isComposing;
      if (event.key === "Enter" && plain && !this.#stop) {
        event.preventDefault();
        this.form.requestSubmit();
      }
      if (event.key === "Escape") this.#stop?.abort();
    });
    this.text.addEventListener("input", () => this.#fit());
    byId("chat-new").addEventListener("click", () => this.#clear());
    for (const sample of this.intro.querySelectorAll("button")) {
      sample.addEventListener("click", () => this.#send(sample.textContent));
    }
  }

  /** The model's name as the gateway serves it. */
  model = "";

  #fit() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight + 2, 160)}px`;
  }

  #clear() {
    this.#stop?.abort();
    this.#messages = [];
    this.log.replaceChildren(this.intro);
    this.text.focus();
  }

  async #send(content) {
    if (!content || this.#stop) return;
    this.intro.remove();
    this.text.value = "";
    this.#fit();
    this.#messages.push({ role: "user", content });
    this.log.append(html("article", { class: "said user", "aria-label": "You" }, content));
    const answer = new Answer(this.log);
    const stop = (this.#stop = new AbortController());
    this.#busy(true);
    try {
      await this.#stream(answer, stop.signal);
    } catch (error) {
      if (error.name !== "AbortError") answer.fail(error.message);
      else answer.abort();
    }
    if (answer.text) this.#messages.push({ role: "assistant", content: answer.text });
    else this.#messages.pop();
    answer.end(stop.signal.aborted);
    this.#stop = null;
    this.#busy(false);
    if (answer.call) await answer.tell();
  }

  #busy(busy) {
    say(this.button, busy ? "Stop" : "Send");
    this.log.setAttribute("aria-busy", busy);
  }

  async #stream(answer, signal) {
    const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
    const body = {
      model: this.model,
      messages: this.#messages,
      max_tokens: number("max-tokens"),
      temperature: number("temperature"),
      stream: true,
    };
    const response = await ask("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    answer.call = response.headers.get("x-request-id");
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const { choices, error } = JSON.parse(data);
      if (error) throw new Error(error.message);
      const delta = choices[0]?.delta ?? {};
      answer.add(delta.reasoning_content, true);
      answer.add(delta.content, false);
    }
  }
}

/** One answer in the log. */
class Answer {
  text = "";
  call = null;

  constructor(log) {
    this.log = log;
    this.thoughts = html("p", { class: "thoughts", hidden: true });
    this.body = html("p", { class: "body" });
    this.notes = html("div", { class: "notes" });
    this.element = html("article", { class: "said model waiting", "aria-label": "The model" },
      this.thoughts, this.body, this.notes);
    log.append(this.element);
    this.#follow(true);
  }

  add(text, isThought) {
    if (!text) return;
    const at = this.#atEnd();
    this.element.classList.remove("waiting");
    if (isThought) this.thoughts.hidden = false;
    else this.text += text;
    (isThought ? this.thoughts : this.body).append(text);
    this.#follow(at);
  }

  /** Ends it in the ring: a browser may read on for seconds before it closes the connection. */
  abort() {
    if (!this.call) return;
    const headers = { "content-type": "application/json" };
    const body = JSON.stringify({ rid: this.call });
    ask("/abort_request", { method: "POST", headers, body }).catch(() => {});
  }

  fail(message) {
    this.notes.append(html("p", { class: "error", role: "alert" }, message));
  }

  end(stopped) {
    this.element.classList.remove("waiting");
    if (stopped) this.notes.append(html("p", { class: "dim" }, "stopped"));
  }

  /** Shows where the time went, once the gateway knows the whole of it. */
  async tell() {
    let story = null;
    for (let at = 0; at < STORY_TRIES && story?.state !== "finished"; at++) {
      const told = await json(`/ring/requests/${this.call}`).catch(() => null);
      story = told?.requests[0] ?? null;
      if (!story || story.state !== "running") break;
      await new Promise((resume) => setTimeout(resume, STORY_PAUSE_MS));
    }
    if (!story) return;
    const at = this.#atEnd();
    const each = decodeRate(story);
    const cached = story.cached_tokens ? ` (${story.cached_tokens} cached)` : "";
    const facts = [
      `first token ${time(story.ttft_us)}`,
      each && `${rate(each)} tok/s`,
      `${story.prompt_tokens}${cached} → ${story.output_tokens} tokens`,
      story.attempts > 1 && `${story.attempts} attempts`,
    ];
    this.notes.append(
      bar(story.phases, story.us),
      legend(story.phases),
      html("p", { class: "facts" }, facts.filter(Boolean).join(" · ")));
    this.#follow(at);
  }

  #atEnd() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
  }

  #follow(wasAtEnd) {
    if (wasAtEnd) this.log.scrollTop = this.log.scrollHeight;
  }
}
