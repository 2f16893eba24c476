// System prompt, tools, settings, theme and the API key's dialog.

import { parseTools } from "./conversation.js";
import { byId } from "./dom.js";

const EXAMPLE = [
  {
    name: "get_weather",
    description: "Get the weather forecast",
    parameters: {
      type: "object",
      properties: {
        city: { type: "string", description: "Name of the city" },
        days: { type: "integer", description: "How many days" },
      },
      required: ["city"],
    },
  },
];

/** Ties the fields to the conversation's setup; `changed()` is called after each change. */
export function bindSetup(conversation, changed) {
  const { settings } = conversation;
  bind("system", conversation, "system");
  bind("tools", conversation, "tools");
  bind("temperature", settings, "temperature");
  bind("max-tokens", settings, "maxTokens");
  bind("thinking", settings, "thinking");
  byId("tools-example").addEventListener("click", () => {
    conversation.tools = JSON.stringify(EXAMPLE, null, 2);
    byId("tools").value = conversation.tools;
    update();
  });

  function bind(id, target, name) {
    const field = byId(id);
    field.value = target[name];
    field.addEventListener("input", () => {
      target[name] = field.value;
      update();
    });
  }

  function update() {
    describe(conversation);
    changed();
  }

  describe(conversation);
}

/** Says beside each closed section what it holds. */
function describe({ system, tools, settings }) {
  byId("system-state").textContent = system.trim() ? "set" : "none";
  const set = Object.values(settings).filter(Boolean).length;
  byId("settings-state").textContent = set ? `${set} set` : "model's own";
  const message = byId("tools-message");
  const state = byId("tools-state");
  message.classList.remove("failed");
  try {
    const names = parseTools(tools).map((tool) => tool.function.name);
    message.textContent = names.join(", ");
    state.textContent = names.length || "none";
  } catch (error) {
    message.textContent = error.message;
    message.classList.add("failed");
    state.textContent = "not valid";
  }
  byId("tools").setAttribute("aria-invalid", message.classList.contains("failed"));
  byId("tools-example").hidden = Boolean(tools.trim());
}

/** The first field that cannot be sent, with what is wrong; null if all can. */
export function invalidField({ tools }) {
  for (const id of ["temperature", "max-tokens"]) {
    const field = byId(id);
    if (!field.checkValidity()) return [field, field.validationMessage];
  }
  try {
    parseTools(tools);
    return null;
  } catch (error) {
    return [byId("tools"), `Tools: ${error.message}`];
  }
}

/** Opens the section, and on a narrow screen the panel, that a field lies in. */
export function reveal(field) {
  field.closest("details").open = true;
  openPanel(true);
  field.focus();
}

export function openPanel(open) {
  document.body.classList.toggle("panel-open", open);
  byId("strip").setAttribute("aria-expanded", open);
}

/** The button that goes from the system's theme to light to dark; `changed()` repaints. */
export function bindTheme(changed) {
  const names = { "": "System", light: "Light", dark: "Dark" };
  const order = Object.keys(names);
  const root = document.documentElement;
  const button = byId("theme");
  const show = () => {
    const name = names[root.dataset.theme ?? ""];
    button.textContent = name;
    button.setAttribute("aria-label", `Theme: ${name.toLowerCase()}`);
  };
  button.addEventListener("click", () => {
    const next = order[(order.indexOf(root.dataset.theme ?? "") + 1) % order.length];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    try {
      localStorage.setItem("headgate.theme", next);
    } catch {
      // chosen for this visit only
    }
    show();
    changed();
  });
  show();
}

/** Asks for the API key: the key, or null if the user would rather not. */
export function askKey(refused) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  byId("key-text").textContent = refused
    ? "The server did not accept that key."
    : "This server asks for a key. It is kept until this tab is closed.";
  field.value = "";
  dialog.returnValue = "";
  byId("key-cancel").onclick = () => dialog.close("");
  byId("key-form").onsubmit = (event) => {
    event.preventDefault();
    dialog.close(field.value.trim());
  };
  dialog.showModal();
  return new Promise((answer) => {
    dialog.addEventListener("close", () => answer(dialog.returnValue || null), { once: true });
  });
}
