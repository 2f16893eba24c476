// The list of messages.

import { AnswerView } from "./answer.js";
import { openCalls } from "./conversation.js";
import { autosize, el, onEnter } from "./dom.js";

export class MessageList {
  /**
   * @param {{edit: (text: string) => void, regenerate: () => void,
   *   results: (texts: Map<string, string>) => void}} on what the user does with messages
   */
  constructor(root, on) {
    this.root = root;
    this.on = on;
    this.views = [];
  }

  /** Shows all messages anew. */
  show({ messages }) {
    this.root.replaceChildren();
    this.views = [];
    for (const message of messages) this.add(message);
  }

  /** Shows one more message; results of tools appear in the call that they belong to. */
  add(message) {
    if (message.role === "tool") return null;
    const View = message.role === "user" ? UserView : AnswerView;
    const view = new View(message, this.on);
    this.views.push(view);
    this.root.append(view.node);
    return view;
  }

  /** Brings every answer, result field and action up to date with the conversation. */
  refresh(conversation, busy) {
    const { messages } = conversation;
    const open = new Set(busy ? [] : openCalls(conversation).map((call) => call.id));
    const lastUser = this.views.findLast((view) => view instanceof UserView);
    const last = this.views.at(-1);
    for (const view of this.views) {
      if (view instanceof UserView) {
        view.editable(view === lastUser && !busy);
        continue;
      }
      const at = messages.indexOf(view.message);
      view.update(resultsAfter(messages, at), view === last ? open : new Set());
      view.again.hidden = busy || view.message !== messages.at(-1);
    }
  }

  /** Opens the last message of the user for editing; false if that is not possible. */
  editLast() {
    const view = this.views.findLast((v) => v instanceof UserView);
    return Boolean(view?.edit());
  }

  focusResult() {
    this.views.findLast((view) => view instanceof AnswerView)?.focusResult();
  }
}

function resultsAfter(messages, at) {
  const results = new Map();
  for (let i = at + 1; messages[i]?.role === "tool"; i++) {
    results.set(messages[i].callId, messages[i].content);
  }
  return results;
}

class UserView {
  constructor(message, on) {
    this.message = message;
    this.on = on;
    this.text = el("div", { class: "text" }, message.content);
    this.button = el("button", { type: "button", class: "quiet", click: () => this.edit() }, "Edit");
    this.actions = el("span", { class: "actions" }, this.button);
    this.body = el("div", { class: "body" }, this.text, this.actions);
    this.node = el("li", { class: "message user" }, el("span", { class: "who" }, "You"), this.body);
  }

  editable(can) {
    this.button.hidden = !can;
  }

  edit() {
    if (this.button.hidden || this.form) return false;
    const area = el("textarea", { "aria-label": "Edit the message", rows: "1" });
    area.value = this.message.content;
    const submit = () => {
      if (area.value.trim()) this.on.edit(area.value.trim());
    };
    const cancel = () => {
      this.form.replaceWith(this.text, this.actions);
      this.form = null;
      this.button.focus();
    };
    onEnter(area, submit);
    area.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      cancel();
    });
    this.form = el(
      "div",
      { class: "editing" },
      area,
      el("button", { type: "button", class: "primary", click: submit }, "Send"),
      el("button", { type: "button", click: cancel }, "Cancel"),
    );
    this.body.replaceChildren(this.form);
    autosize(area)();
    area.focus();
    return true;
  }
}
