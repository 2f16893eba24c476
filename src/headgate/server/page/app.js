// The page: asks, shows the answer as it comes, keeps the conversation.

import { chat, modelName } from "./api.js";
import * as conv from "./conversation.js";
import { autosize, byId, el, onEnter } from "./dom.js";
import { HeatMap } from "./heat.js";
import { startLive } from "./live.js";
import { MessageList } from "./messages.js";
import { duration } from "./numbers.js";
import { askKey, bindSetup, bindTheme, invalidField, openPanel, reveal } from "./setup.js";

const conversation = conv.restore();
const prompt = byId("prompt");
const fitPrompt = autosize(prompt);
const list = new MessageList(byId("messages"), { edit, regenerate, results });

let running = null; // the AbortController of the answer that grows
let model = null;

// Asking

/** Whether a request can be sent; says what is wrong if not, where it is. */
function ready() {
  if (running) return false;
  const wrong = invalidField(conversation);
  if (!wrong) return true;
  notify(wrong[1]);
  reveal(wrong[0]);
  return false;
}

async function ask() {
  const body = conv.requestBody(conversation, model);
  const answer = { ...conv.newAnswer(), startMs: performance.now() };
  conversation.messages.push(answer);
  const view = list.add(answer);
  running = new AbortController();
  notify("");
  refresh();
  scrollDown();
  try {
    await receive(body, answer, view);
    answer.finish = answer.reason ?? "stop";
  } catch (error) {
    answer.finish = running.signal.aborted ? "stopped" : "failed";
    if (answer.finish === "failed") answer.error = describe(error);
  }
  running = null;
  const stick = atBottom();
  refresh();
  if (stick) scrollDown();
  save();
  const open = conv.openCalls(conversation).length;
  if (answer.finish === "failed") notify(answer.error);
  else notify(open ? "The model waits for the results of its calls." : "", "Answer complete.");
  if (open && document.activeElement === prompt) list.focusResult();
}

async function receive(body, answer, view) {
  const { signal } = running;
  let state = "waiting"; // or how far the prompt has been read
  const clock = setInterval(() => {
    if (answer.firstMs) clearInterval(clock);
    else view.wait(`${state}, ${duration(performance.now() - answer.startMs)}`);
  }, 100);
  let painting = 0;
  const paint = () => {
    painting = 0;
    if (answer.finish !== null) return;
    const stick = atBottom();
    view.update();
    if (stick) scrollDown();
  };
  let saved = performance.now();
  try {
    body.model = model = await modelName({ askKey, signal });
    const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
    const remark = (text) => (state = text);
    for await (const chunk of chat(streamed, { signal, askKey, remark })) {
      conv.addChunk(answer, chunk);
      painting ||= requestAnimationFrame(paint);
      if (performance.now() - saved < 1000) continue;
      saved = performance.now();
      save();
    }
  } finally {
    clearInterval(clock);
  }
}

function describe(error) {
  if (error instanceof TypeError) return "the server cannot be reached";
  return error.message || String(error);
}

function send() {
  const text = prompt.value.trim();
  if (!text || !ready()) return;
  if (conv.openCalls(conversation).length) {
    notify("The model waits for the results of its calls. Send them, or regenerate the answer.");
    list.focusResult();
    return;
  }
  prompt.value = "";
  fitPrompt();
  add({ role: "user", content: text });
  ask();
}

function results(texts) {
  if (!ready()) return;
  for (const [callId, content] of texts) add({ role: "tool", callId, content });
  prompt.focus();
  ask();
}

function regenerate() {
  if (!ready()) return;
  conversation.messages.pop();
  list.show(conversation);
  prompt.focus();
  ask();
}

function edit(text) {
  if (!ready()) return;
  const at = conversation.messages.findLastIndex((message) => message.role === "user");
  conversation.messages.splice(at);
  list.show(conversation);
  add({ role: "user", content: text });
  prompt.focus();
  ask();
}

function add(message) {
  conversation.messages.push(message);
  list.add(message);
}

// The page around it

function refresh() {
  list.refresh(conversation, Boolean(running));
  byId("send").hidden = Boolean(running);
  byId("stop").hidden = !running;
  byId("hint").hidden = conversation.messages.length > 0;
  for (const id of ["new", "export"]) {
    byId(id).disabled = conversation.messages.length === 0 || Boolean(running);
  }
}

function save() {
  if (!conv.store(conversation)) notify("This browser does not keep the conversation.");
}

/** A line above the message field; what is only `spoken` is for screen readers. */
function notify(text, spoken = "", ...nodes) {
  byId("notice").replaceChildren(text, ...nodes);
  if (!text && spoken) byId("notice").append(el("span", { class: "hidden" }, spoken));
}

function clear() {
  const { messages } = conversation;
  conversation.messages = [];
  list.show(conversation);
  refresh();
  save();
  const undo = () => {
    if (running) return;
    conversation.messages = messages;
    list.show(conversation);
    refresh();
    save();
    notify("");
    prompt.focus();
  };
  notify("Conversation cleared. ", "", el("button", { type: "button", click: undo }, "Undo"));
  prompt.focus();
}

function exportJson() {
  const body = conv.requestBody(conversation, model);
  const blob = new Blob([`${JSON.stringify(body, null, 2)}\n`], { type: "application/json" });
  const href = URL.createObjectURL(blob);
  const stamp = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
  el("a", { href, download: `headgate-${stamp}.json` }).click();
  URL.revokeObjectURL(href);
}

const scroller = byId("scroll");
const atBottom = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;
const scrollDown = () => (scroller.scrollTop = scroller.scrollHeight);

function bindKeys() {
  onEnter(prompt, send);
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowUp" || prompt.value || running) return;
    if (list.editLast()) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (running) running.abort();
    else if (document.body.classList.contains("panel-open")) {
      openPanel(false);
      byId("strip").focus();
    }
  });
}

async function start() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("stop").addEventListener("click", () => {
    running?.abort();
    prompt.focus();
  });
  byId("new").addEventListener("click", clear);
  byId("export").addEventListener("click", exportJson);
  byId("strip").addEventListener("click", () =>
    openPanel(!document.body.classList.contains("panel-open")),
  );
  bindKeys();
  bindSetup(conversation, save);
  list.show(conversation);
  refresh();
  scrollDown();
  if (matchMedia("(min-width: 60em)").matches) prompt.focus();
  const map = new HeatMap();
  bindTheme(() => map.draw());
  model = await modelName({ askKey }).catch(() => null);
  startLive(map); // now, because only one of the two asks for a key
}

addEventListener("pagehide", () => {
  if (!running) return;
  conv.store(conversation);
  running.abort(); // else the broken connection would be taken for a failure
});
start();
