// Which experts of which layers are in memory, and which were just read: one cell each.

import { byId } from "./dom.js";
import { count } from "./numbers.js";

const FADE = 4; // messages of /live that a read stays visible, fading

export class HeatMap {
  constructor() {
    this.canvas = byId("heat-map");
    this.heat = null;
    this.age = new Uint8Array(0); // of the last read, in messages; FADE if longer ago
    this.pointed = null; // {layer, expert}
    this.keys = ["absent", "resident", "read"].map((name) => byId(`key-${name}`));
    this.#listen();
  }

  /** @param heat {layers, experts, resident, read}: bitmaps in base64, row by row, least bit first */
  show(heat) {
    byId("heat").hidden = !heat?.layers || !heat.experts;
    if (byId("heat").hidden) return;
    const cells = heat.layers * heat.experts;
    if (this.age.length !== cells) this.age = new Uint8Array(cells).fill(FADE);
    const resident = bits(heat.resident, cells);
    const read = bits(heat.read, cells);
    let held = 0;
    let fetched = 0;
    for (let i = 0; i < cells; i++) {
      held += resident[i];
      fetched += read[i];
      this.age[i] = read[i] ? 0 : Math.min(FADE, this.age[i] + 1);
    }
    this.heat = { ...heat, resident, read };
    const share = `${count(held)} of ${count(cells)} in memory`;
    byId("heat-count").textContent = share;
    const size = `${heat.layers} layers of ${heat.experts} experts`;
    this.canvas.setAttribute("aria-label", `${size}: ${share}, ${count(fetched)} just read`);
    this.draw();
    if (this.pointed) this.#tell();
  }

  /** Paints all cells in whole device pixels, so that each is as large as any other. */
  draw() {
    const room = this.canvas.parentElement.clientWidth;
    if (!this.heat || !room) return;
    const { layers, experts, resident } = this.heat;
    this.grid = gridOf(layers, experts, room, devicePixelRatio);
    const { strips, columns, width, height, gap, margin } = this.grid;
    const pixels = new Pixels(columns * width, layers * (strips * height + margin) - margin);
    const [absent, held, read] = this.keys.map(colorOf);
    const shades = [absent, held].map((base) =>
      Array.from({ length: FADE + 1 }, (_, age) => mix(read, base, age / FADE)),
    );
    for (let i = 0; i < layers * experts; i++) {
      const { x, y } = this.#place(Math.floor(i / experts), i % experts);
      pixels.fill(x, y, width - gap, height - gap, shades[resident[i]][this.age[i]]);
    }
    this.canvas.width = pixels.width;
    this.canvas.height = pixels.height;
    this.canvas.style.width = `${pixels.width / devicePixelRatio}px`;
    this.canvas.style.height = `${pixels.height / devicePixelRatio}px`;
    this.canvas.getContext("2d").putImageData(pixels.image, 0, 0);
    this.#drawPointer();
  }

  #place(layer, expert) {
    const { columns, width, height, strips, margin } = this.grid;
    return {
      x: (expert % columns) * width,
      y: layer * (strips * height + margin) + Math.floor(expert / columns) * height,
    };
  }

  #drawPointer() {
    if (!this.pointed) return;
    const { width, height, gap } = this.grid;
    const { x, y } = this.#place(this.pointed.layer, this.pointed.expert);
    const context = this.canvas.getContext("2d");
    context.strokeStyle = getComputedStyle(this.canvas).color;
    context.lineWidth = Math.max(1, Math.round(devicePixelRatio));
    context.strokeRect(x - 1.5, y - 1.5, width - gap + 3, height - gap + 3);
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("pointermove", (event) => {
      if (!this.grid) return;
      const scale = canvas.width / canvas.clientWidth;
      const { columns, width, height, strips, margin } = this.grid;
      const layer = Math.floor((event.offsetY * scale) / (strips * height + margin));
      const inLayer = event.offsetY * scale - layer * (strips * height + margin);
      const strip = Math.min(strips - 1, Math.floor(inLayer / height));
      this.#point(layer, strip * columns + Math.floor((event.offsetX * scale) / width));
    });
    canvas.addEventListener("pointerleave", () => this.#point(null));
    canvas.addEventListener("blur", () => this.#point(null));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      if (!step[event.key] || !this.heat) return;
      event.preventDefault();
      const { layer, expert } = this.pointed ?? { layer: 0, expert: 0 };
      const [down, right] = this.pointed ? step[event.key] : [0, 0];
      this.#point(layer + down, expert + right);
    });
    let drawn = 0; // drawing changes the height; only another width asks for it again
    new ResizeObserver(([{ contentRect }]) => {
      if (contentRect.width !== drawn) this.draw();
      drawn = contentRect.width;
    }).observe(canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  #point(layer, expert) {
    const { layers, experts } = this.heat ?? { layers: 0, experts: 0 };
    if (layer === null) this.pointed = null;
    else if (layer >= 0 && layer < layers && expert >= 0 && expert < experts) {
      this.pointed = { layer, expert };
    }
    this.#tell();
    this.draw();
  }

  #tell() {
    const line = byId("heat-cell");
    if (!this.pointed) {
      line.textContent = "rows are layers, columns experts";
      return;
    }
    const { layer, expert } = this.pointed;
    const i = layer * this.heat.experts + expert;
    const states = [this.heat.resident[i] ? "in memory" : "on the drive"];
    if (this.heat.read[i]) states.push("just read");
    line.textContent = `layer ${layer}, expert ${expert}: ${states.join(", ")}`;
  }
}

/**
 * Sizes in device pixels. Where there are more experts than pixels a layer takes several
 * strips, one under the other.
 */
function gridOf(layers, experts, cssWidth, ratio) {
  const room = Math.max(1, Math.floor(cssWidth * ratio));
  const strips = Math.ceil(experts / room);
  const columns = Math.ceil(experts / strips);
  const width = Math.min(Math.floor(room / columns), Math.round(8 * ratio));
  const wanted = Math.round((strips * layers <= 16 ? 8 : strips * layers <= 64 ? 5 : 3) * ratio);
  const gap = width >= 4 ? 1 : 0;
  return { strips, columns, width, height: wanted, gap, margin: gap ? 0 : 1 };
}

class Pixels {
  constructor(width, height) {
    [this.width, this.height] = [width, height];
    this.image = new ImageData(width, height);
    this.words = new Uint32Array(this.image.data.buffer);
  }

  fill(x, y, width, height, color) {
    for (let row = y; row < y + height; row++) {
      this.words.fill(color, row * this.width + x, row * this.width + x + width);
    }
  }
}

/** The colour of a legend's swatch as [r, g, b]; so the map and its legend always agree. */
const colorOf = (swatch) =>
  getComputedStyle(swatch).backgroundColor.match(/[\d.]+/g).slice(0, 3).map(Number);

const WORD = new DataView(new ArrayBuffer(4));

function mix(from, to, share) {
  from.forEach((value, i) => WORD.setUint8(i, Math.round(value + (to[i] - value) * share)));
  WORD.setUint8(3, 255);
  return new Uint32Array(WORD.buffer)[0];
}

function bits(base64, cells) {
  const packed = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  return Uint8Array.from({ length: cells }, (_, i) => (packed[i >> 3] >> (i & 7)) & 1);
}
