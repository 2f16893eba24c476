// The conversation as data: what is stored, what is sent, what is exported.

const PLACE = "headgate.conversation";

/**
 * {system, tools, settings: {temperature, maxTokens, thinking}, messages}. Messages are
 * {role: "user", content}, {role: "tool", callId, content} and
 * {role: "assistant", content, reasoning, calls: [{id, name, arguments}], finish, ...figures}
 * where `finish` is the server's reason, "stopped", "failed", or null while it grows.
 */
export function emptyConversation() {
  return {
    system: "",
    tools: "",
    settings: { temperature: "", maxTokens: "", thinking: "" },
    messages: [],
  };
}

/** The stored conversation; an empty one if there is none or it is not understood. */
export function restore() {
  const conversation = emptyConversation();
  try {
    const stored = JSON.parse(localStorage.getItem(PLACE));
    for (const name of ["system", "tools"]) {
      if (typeof stored[name] === "string") conversation[name] = stored[name];
    }
    for (const name of Object.keys(conversation.settings)) {
      const value = stored.settings[name];
      if (typeof value === "string") conversation.settings[name] = value;
    }
    conversation.messages = stored.messages.map(restoreMessage);
  } catch {
    // nothing stored, storage forbidden, or written by something else
  }
  return conversation;
}

function restoreMessage(message) {
  const text = (value) => (typeof value === "string" ? value : "");
  const { role } = message;
  if (role === "user") return { role, content: text(message.content) };
  if (role === "tool") {
    return { role, callId: text(message.callId), content: text(message.content) };
  }
  if (role !== "assistant") throw new TypeError("unknown role");
  return {
    ...message,
    content: text(message.content),
    reasoning: text(message.reasoning),
    calls: message.calls.map((call) => ({
      id: text(call.id),
      name: text(call.name),
      arguments: text(call.arguments),
    })),
    finish: text(message.finish) || "stopped", // the page was left while it grew
  };
}

/** Keeps the conversation for the next load; false if the browser does not allow that. */
export function store(conversation) {
  try {
    localStorage.setItem(PLACE, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

export function newAnswer() {
  return { role: "assistant", content: "", reasoning: "", calls: [], finish: null };
}

/** Adds a chunk of a streamed completion to an answer. */
export function addChunk(answer, chunk, now = performance.now()) {
  if (chunk.usage) answer.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const delta = choice.delta ?? {};
  const reasoning = delta.reasoning_content ?? delta.reasoning;
  if (reasoning) answer.reasoning += reasoning;
  if (delta.content) answer.content += delta.content;
  for (const part of delta.tool_calls ?? []) {
    const call = (answer.calls[part.index ?? 0] ??= { id: "", name: "", arguments: "" });
    call.id ||= part.id ?? "";
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
  if (reasoning || delta.content || delta.tool_calls) {
    answer.firstMs ??= now;
    if (reasoning) answer.thoughtMs = now;
    answer.lastMs = now;
  }
  // Not `finish` yet: usage follows the reason, and until it has come the answer grows.
  if (choice.finish_reason) answer.reason = choice.finish_reason;
}

/** The arguments of a call, or undefined while they are not a whole JSON document. */
export function callArguments(call) {
  try {
    return JSON.parse(call.arguments || "{}");
  } catch {
    return undefined;
  }
}

const isWhole = (call) => call.id && call.name && callArguments(call) !== undefined;

/** The last answer's calls that wait for a result typed by hand. */
export function openCalls({ messages }) {
  const at = messages.findLastIndex((message) => message.role !== "tool");
  const answer = messages[at];
  if (answer?.role !== "assistant" || answer.finish === null) return [];
  const answered = new Set(messages.slice(at + 1).map((message) => message.callId));
  return answer.calls.filter((call) => isWhole(call) && !answered.has(call.id));
}

/**
 * The functions of the tools editor as the API wants them.
 * @throws {Error} with one line that says what is wrong
 */
export function parseTools(text) {
  if (!text.trim()) return [];
  let list;
  try {
    list = JSON.parse(text);
  } catch (error) {
    throw new Error(`not JSON: ${error.message}`);
  }
  if (!Array.isArray(list)) throw new Error("a list of functions is needed: [{...}, ...]");
  const names = new Set();
  return list.map((entry, i) => {
    const tool = entry?.type === "function" ? entry.function : entry;
    if (typeof tool?.name !== "string" || !tool.name) {
      throw new Error(`function ${i + 1} has no name`);
    }
    if (names.has(tool.name)) throw new Error(`two functions are named ${tool.name}`);
    names.add(tool.name);
    return { type: "function", function: tool };
  });
}

/** The body of POST /v1/chat/completions, without what only matters for streaming. */
export function requestBody(conversation, model) {
  const { system, tools, settings, messages } = conversation;
  const body = { model, messages: [] };
  if (system.trim()) body.messages.push({ role: "system", content: system });
  for (const message of messages) {
    const sent = SENT[message.role](message);
    if (sent) body.messages.push(sent);
  }
  const list = parseTools(tools);
  if (list.length) body.tools = list;
  if (settings.temperature) body.temperature = Number(settings.temperature);
  if (settings.maxTokens) body.max_tokens = Number(settings.maxTokens);
  if (settings.thinking) {
    body.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  }
  return body;
}

const SENT = {
  user: ({ role, content }) => ({ role, content }),
  tool: ({ role, callId, content }) => ({ role, tool_call_id: callId, content }),
  assistant: ({ role, content, reasoning, calls }) => {
    const whole = calls.filter(isWhole).map(({ id, name, arguments: text }) => ({
      id,
      type: "function",
      function: { name, arguments: text || "{}" },
    }));
    if (!content && !whole.length) return null; // stopped before anything came
    const message = { role, content: content || null };
    if (reasoning) message.reasoning_content = reasoning;
    if (whole.length) message.tool_calls = whole;
    return message;
  },
};
