// The panel of live figures, fed by GET /live.

import { watchLive } from "./api.js";
import { byId } from "./dom.js";
import { bytes, rate, short } from "./numbers.js";

const SPAN = 60; // messages in the trace, one a second
const DASH = "\u2013";

/** Follows /live for as long as the page is there. */
export function startLive(map) {
  const speeds = [];
  let before = null; // bytes_read and the time of the message before

  function show(message) {
    const now = performance.now();
    const read = before && (message.bytes_read - before.bytes) / ((now - before.now) / 1000);
    before = { bytes: message.bytes_read, now };
    fill("live-speed", [speedOf(message), ""]);
    fill("live-hits", isNumber(message.hit_rate) ? [(100 * message.hit_rate).toFixed(1), "%"] : null);
    fill("live-rate", isNumber(read) && read >= 0 ? rate(read) : null);
    fill("live-memory", isNumber(message.memory_bytes) ? bytes(message.memory_bytes) : null);
    fill("live-active", [`${message.active ?? DASH}, ${message.queued ?? DASH}`, ""]);
    fill("live-bytes", isNumber(message.bytes_read) ? bytes(message.bytes_read) : null);
    byId("live-model").textContent = message.model ?? DASH;
    showExact(message.lossy ?? []);
    showStrip(message);
    speeds.push(message.tokens_per_s || 0);
    if (speeds.length > SPAN) speeds.shift();
    drawTrace(speeds);
    map.show(message.heat);
  }

  watchLive(show, showState);
}

/** Tokens per second; null is a second in which none was generated. */
const speedOf = ({ tokens_per_s: speed }) => (speed ? short(speed) : "0");

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function fill(id, reading) {
  const cell = byId(id);
  cell.textContent = reading ? reading[0] : DASH;
  if (!reading?.[1]) return;
  const unit = document.createElement("small");
  unit.textContent = reading[1];
  cell.append(" ", unit);
}

const STATES = {
  connected: "live",
  lost: "connection lost, trying again",
  locked: "needs the API key",
};

function showState(state) {
  const panel = byId("engine");
  if (panel.dataset.state === state) return;
  panel.dataset.state = state;
  byId("strip").dataset.state = state;
  byId("live-state").textContent = STATES[state];
  if (state !== "connected") byId("strip-text").textContent = STATES[state];
}

/** Says that the model computes what it was trained to, or what was changed. */
function showExact(lossy) {
  const tag = byId("live-exact");
  tag.textContent = lossy.length ? lossy.join(", ") : "exact";
  tag.classList.toggle("lossy", lossy.length > 0);
  tag.title = lossy.length ? "Settings that change the model's output" : "Nothing changes the model's output";
}

function showStrip(message) {
  const busy = message.active || message.queued;
  const parts = [busy ? `${speedOf(message)} tokens/s` : "idle"];
  if (isNumber(message.hit_rate)) parts.push(`${(100 * message.hit_rate).toFixed(0)} % hits`);
  if (message.active) parts.push(`${message.active} active`);
  if (message.queued) parts.push(`${message.queued} queued`);
  byId("strip-text").textContent = parts.join("  ·  ");
}

function drawTrace(speeds) {
  const svg = byId("trace");
  const peak = Math.max(...speeds, 0);
  byId("trace-peak").textContent = peak ? `peak ${short(peak)}` : "";
  const points = speeds.map((speed, i) => {
    const x = SPAN - speeds.length + i + 1;
    return `${x},${(19 - 18 * (peak ? speed / peak : 0)).toFixed(2)}`;
  });
  let line = svg.firstElementChild;
  if (!line) {
    line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    svg.append(line);
  }
  line.setAttribute("points", points.join(" "));
}
