// One answer on the page: reasoning, text, tool calls, figures; as it grows and afterwards.

import { callArguments } from "./conversation.js";
import { autosize, copyButton, el, onEnter } from "./dom.js";
import { Markdown } from "./markdown.js";
import { count, duration, indentJson, short } from "./numbers.js";

export class AnswerView {
  /** @param {{regenerate: () => void, results: (texts: Map<string, string>) => void}} on */
  constructor(message, on) {
    this.message = message;
    this.on = on;
    this.calls = [];
    this.thoughtTime = el("span", { class: "state" });
    this.thought = el("div", { class: "thought" });
    const summary = el("summary", {}, "Reasoning ", this.thoughtTime);
    this.reasoning = el("details", { class: "reasoning", hidden: true }, summary, this.thought);
    this.content = el("div", { class: "content" });
    this.markdown = new Markdown(this.content);
    this.callList = el("div", { class: "calls" });
    this.send = el("button", { type: "button", class: "primary", hidden: true }, "Send results");
    this.send.addEventListener("click", () => this.#sendResults());
    this.figures = el("span", { class: "figures" });
    this.copy = copyButton(() => this.message.content);
    this.again = el("button", { type: "button", class: "quiet", click: on.regenerate }, "Regenerate");
    this.actions = el("span", { class: "actions" }, this.copy, this.again);
    this.node = el(
      "li",
      { class: "message answer" },
      el("span", { class: "who" }, "Answer"),
      el("div", { class: "body" }, this.reasoning, this.content, this.callList, this.send,
        el("footer", {}, this.figures, this.actions)),
    );
  }

  /**
   * Shows the message as it is now.
   * @param {Map<string, string>} results of calls that have been sent, by call id
   * @param {Set<string>} open ids of the calls whose results are typed here
   */
  update(results = new Map(), open = new Set()) {
    const { message } = this;
    const growing = message.finish === null;
    this.node.setAttribute("aria-busy", growing);
    this.node.classList.toggle("growing", growing);
    this.#showReasoning(growing);
    this.markdown.update(message.content, growing);
    message.calls.forEach((call, i) => {
      if (!this.calls[i]) {
        this.calls[i] = new CallView(() => this.#entered());
        this.callList.append(this.calls[i].node);
      }
      this.calls[i].update(call, growing, results.get(call.id), open.has(call.id));
    });
    this.send.hidden = open.size === 0;
    this.figures.textContent = growing ? "" : figuresOf(message);
    this.figures.classList.toggle("failed", message.finish === "failed");
    this.copy.hidden = growing || !message.content;
  }

  /** What the answer waits for, while nothing of it has come. */
  wait(text) {
    this.figures.textContent = text;
  }

  focusResult() {
    this.calls.find((call) => call.open && !call.entry.value)?.entry.focus();
  }

  #showReasoning(growing) {
    const { reasoning, firstMs, thoughtMs, content, calls } = this.message;
    this.reasoning.hidden = !reasoning;
    if (!reasoning) return;
    const following = this.thought.scrollTop + this.thought.clientHeight + 8 >= this.thought.scrollHeight;
    if (this.thought.textContent !== reasoning) this.thought.textContent = reasoning;
    if (growing && following) this.thought.scrollTop = this.thought.scrollHeight;
    const time = Number.isFinite(thoughtMs - firstMs) ? duration(thoughtMs - firstMs) : "";
    this.thoughtTime.textContent = growing && !content && !calls.length ? `${time} …` : time;
  }

  #entered() {
    const empty = this.calls.find((call) => call.open && !call.entry.value);
    if (empty) empty.entry.focus();
    else this.#sendResults();
  }

  #sendResults() {
    const open = this.calls.filter((call) => call.open);
    this.on.results(new Map(open.map((call) => [call.id, call.entry.value])));
  }
}

/** A tool call: its name, its arguments as they form, its result. */
class CallView {
  constructor(entered) {
    this.name = el("span", { class: "function" });
    this.state = el("span", { class: "state" });
    this.json = el("code");
    this.result = el("pre", { class: "result", tabindex: "0", "aria-label": "Result", hidden: true });
    this.entry = el("textarea", { class: "code", rows: "1", placeholder: "Result, as the tool would return it", spellcheck: "false" });
    this.label = el("label", { hidden: true }, el("span", { class: "hidden" }), this.entry);
    this.fit = autosize(this.entry);
    onEnter(this.entry, entered);
    this.node = el(
      "section",
      { class: "call", "aria-label": "Tool call" },
      el("header", {}, this.name, this.state),
      el("pre", { class: "arguments", tabindex: "0", "aria-label": "Arguments" }, this.json),
      this.result,
      this.label,
    );
  }

  get open() {
    return !this.label.hidden;
  }

  update(call, growing, result, open) {
    this.id = call.id;
    this.name.textContent = call.name;
    this.json.textContent = indentJson(call.arguments || (growing ? "" : "{}"));
    const whole = callArguments(call) !== undefined && call.arguments;
    this.state.textContent =
      result !== undefined ? "answered"
      : growing && !whole ? "forming"
      : growing ? "formed"
      : open ? "waits for its result"
      : callArguments(call) === undefined ? "incomplete, not sent"
      : "";
    this.result.hidden = result === undefined;
    this.result.textContent = result ?? "";
    this.label.firstChild.textContent = `Result of ${call.name}`;
    this.label.hidden = !open;
  }
}

const REASONS = {
  stopped: "stopped",
  length: "cut off at the token limit",
  content_filter: "withheld",
};

function figuresOf({ finish, usage, startMs, firstMs, lastMs, error }) {
  const parts = [];
  if (finish === "failed") parts.push(error || "the answer failed");
  if (REASONS[finish]) parts.push(REASONS[finish]);
  const tokens = usage?.completion_tokens;
  if (tokens) parts.push(`${count(tokens)} tokens`);
  const seconds = (lastMs - firstMs) / 1000;
  if (tokens > 1 && seconds > 0) parts.push(`${short((tokens - 1) / seconds)} tokens/s`);
  if (firstMs - startMs >= 0) parts.push(`first after ${duration(firstMs - startMs)}`);
  if (usage?.prompt_tokens) {
    const cached = usage.prompt_tokens_details?.cached_tokens;
    parts.push(`prompt ${count(usage.prompt_tokens)}${cached ? `, ${count(cached)} of it cached` : ""}`);
  }
  return parts.join(" · ");
}
