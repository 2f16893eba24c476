// Markdown blocks → DOM nodes, for text that grows. No HTML: tags are shown as text.

import { copyButton, el } from "./dom.js";
import { inline } from "./inline.js";

const DEPTH = 12; // of quotes and lists in each other; deeper ones are paragraphs

const FENCE = /^( {0,3})(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(\S.*)$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+|$)/;

/** Shows Markdown in an element and keeps, as the text grows, the nodes that did not change. */
export class Markdown {
  constructor(root) {
    this.root = root;
    this.shown = []; // {block, node}
  }

  /** @param {boolean} open more text will follow */
  update(text, open = false) {
    const blocks = parse(text.replace(/\r\n?/g, "\n").split("\n"));
    blocks.forEach((block, i) => {
      block.open = open && i === blocks.length - 1;
      const old = this.shown[i];
      if (old && old.block.open === block.open && old.block.source === block.source) return;
      if (old && old.block.kind === "code" && block.kind === "code" && !block.depth) {
        fillCode(old.node, block); // in place: a focused copy button stays where it is
        this.shown[i] = { block, node: old.node };
        return;
      }
      const node = render(block);
      if (old) old.node.replaceWith(node);
      else this.root.append(node);
      this.shown[i] = { block, node };
    });
    for (const { node } of this.shown.splice(blocks.length)) node.remove();
  }
}

// Parsing: lines → [{kind, source, ...}]

function parse(lines, depth = 0) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const reader = READERS.find((read) => read.starts(lines, at, depth)) ?? paragraph;
    const [block, end] = reader.read(lines, at, depth);
    block.source = lines.slice(at, end).join("\n");
    blocks.push(block);
    at = end;
  }
  return blocks;
}

const code = {
  starts: (lines, at) => {
    const match = FENCE.exec(lines[at]);
    return match && !(match[2][0] === "`" && match[3].includes("`"));
  },
  read: (lines, at) => {
    const [, indent, fence, info] = FENCE.exec(lines[at]);
    const isEnd = (line) => {
      const mark = line.trim();
      return mark.length >= fence.length && mark === fence[0].repeat(mark.length);
    };
    let end = at + 1;
    while (end < lines.length && !isEnd(lines[end])) end++;
    const body = lines.slice(at + 1, end).map((line) => dedent(line, indent.length));
    const language = info.trim().split(/\s/)[0];
    return [{ kind: "code", language, text: body.join("\n") }, Math.min(end + 1, lines.length)];
  },
};

const heading = {
  starts: (lines, at) => HEADING.test(lines[at]),
  read: (lines, at) => {
    const [, marks, text] = HEADING.exec(lines[at]);
    return [{ kind: "heading", level: marks.length, text: withoutClosing(text.trim()) }, at + 1];
  },
};

function withoutClosing(text) {
  let end = text.length;
  while (text[end - 1] === "#") end--;
  return end < text.length && (end === 0 || text[end - 1] === " ") ? text.slice(0, end) : text;
}

const rule = {
  starts: (lines, at) => RULE.test(lines[at]),
  read: (lines, at) => [{ kind: "rule" }, at + 1],
};

const quote = {
  starts: (lines, at, depth) => depth < DEPTH && QUOTE.test(lines[at]),
  read: (lines, at, depth) => {
    const inner = [];
    let end = at;
    for (; end < lines.length && lines[end].trim(); end++) {
      if (QUOTE.test(lines[end])) inner.push(lines[end].replace(/^ {0,3}> ?/, ""));
      else if (!interrupts(lines, end, depth)) inner.push(lines[end]);
      else break;
    }
    return [{ kind: "quote", blocks: parse(inner, depth + 1) }, end];
  },
};

const list = {
  starts: (lines, at, depth) => depth < DEPTH && ITEM.test(lines[at]),
  read: (lines, at, depth) => {
    const first = ITEM.exec(lines[at]);
    const type = first[2].at(-1);
    const items = [];
    let loose = false;
    let end = at;
    while (end < lines.length) {
      const match = ITEM.exec(lines[end]);
      if (!match || match[2].at(-1) !== type || RULE.test(lines[end])) break;
      const next = itemEnd(lines, end, depth);
      const width = indent(lines[end]) + match[2].length + (match[3].length || 1);
      const body = [lines[end].slice(match[0].length)];
      for (const line of lines.slice(end + 1, next)) body.push(dedent(line, width));
      loose ||= hasGap(body) || (items.length > 0 && !lines[end - 1].trim());
      items.push(parse(body, depth + 1));
      end = next;
    }
    while (end > at && !lines[end - 1].trim()) end--;
    const start = /\d/.test(first[2]) ? Number.parseInt(first[2], 10) : null;
    return [{ kind: "list", start, items, loose }, end];
  },
};

/** The line after an item: its own text, what is indented under it, and lazy lines. */
function itemEnd(lines, at, depth) {
  // Models often indent by two under "1." where three would be right.
  const least = indent(lines[at]) + 2;
  let end = at + 1;
  for (; end < lines.length; end++) {
    const line = lines[end];
    if (!line.trim()) continue;
    if (indent(line) >= least) continue;
    const lazy = lines[end - 1].trim() && !interrupts(lines, end, depth) && !ITEM.test(line);
    if (!lazy) break;
  }
  return end;
}

/** Whether blank lines part the blocks of an item (those at its end do not count). */
function hasGap(body) {
  const last = body.findLastIndex((line) => line.trim());
  let fence = false;
  return body.slice(0, last).some((line) => {
    if (FENCE.test(line)) fence = !fence;
    return !fence && !line.trim();
  });
}

const table = {
  starts: (lines, at) => {
    if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
    const marks = cells(lines[at + 1]);
    return marks.every((c) => /^:?-+:?$/.test(c)) && marks.length === cells(lines[at]).length;
  },
  read: (lines, at, depth) => {
    const align = cells(lines[at + 1]).map(
      (c) => (c.endsWith(":") && (c.startsWith(":") ? "center" : "right")) || null,
    );
    let end = at + 2;
    while (end < lines.length && lines[end].includes("|") && !interrupts(lines, end, depth)) end++;
    const rows = lines.slice(at + 2, end).map(cells);
    return [{ kind: "table", head: cells(lines[at]), rows, align }, end];
  },
};

function cells(line) {
  const row = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return row.split(/(?<!\\)\|/).map((cell) => cell.replaceAll("\\|", "|").trim());
}

const paragraph = {
  read: (lines, at, depth) => {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && !interrupts(lines, end, depth)) end++;
    const text = lines.slice(at, end).map((line) => line.trimStart()).join("\n").trimEnd();
    return [{ kind: "paragraph", text }, end];
  },
};

const READERS = [code, heading, rule, quote, list, table];

/** Whether a block begins here even without a blank line before it. */
function interrupts(lines, at, depth) {
  const item = ITEM.exec(lines[at]);
  if (item && indent(lines[at]) < 4) return depth < DEPTH && item[3] && /^([-*+]|1[.)])$/.test(item[2]);
  return [code, heading, rule, quote, table].some((read) => read.starts(lines, at, depth));
}

/** Columns before the text; a tab goes to the next multiple of four. */
function indent(line) {
  let column = 0;
  for (const char of line) {
    if (char === " ") column++;
    else if (char === "\t") column += 4 - (column % 4);
    else break;
  }
  return column;
}

/** The line without its first `width` columns of space, or as many as there are. */
function dedent(line, width) {
  let [at, column] = [0, 0];
  for (; column < width && (line[at] === " " || line[at] === "\t"); at++) {
    column += line[at] === "\t" ? 4 - (column % 4) : 1;
  }
  return " ".repeat(Math.max(0, column - width)) + line.slice(at);
}

// Rendering

function render(block) {
  return RENDER[block.kind](block);
}

function renderAll(blocks, open) {
  return blocks.map((block, i) => {
    block.open = open && i === blocks.length - 1;
    return render(block);
  });
}

const RENDER = {
  paragraph: (block) => el("p", {}, inline(block.text, block.open)),
  heading: (block) => el(`h${Math.min(6, block.level + 2)}`, {}, inline(block.text, block.open)),
  rule: () => el("hr"),
  quote: (block) => el("blockquote", {}, ...renderAll(block.blocks, block.open)),
  list: renderList,
  table: renderTable,
  code: (block) => {
    const text = el("code");
    const head = el("div", { class: "code-head" }, el("span", { class: "language" }));
    head.append(copyButton(() => text.textContent));
    return fillCode(el("div", { class: "code-block" }, head, el("pre", { tabindex: "0" }, text)), block);
  },
};

function fillCode(node, block) {
  node.querySelector(".language").textContent = block.language;
  node.querySelector("pre code").textContent = block.text;
  return node;
}

function renderList({ start, items, loose, open }) {
  const tag = start === null ? "ul" : "ol";
  const node = el(tag, { start: start !== null && start !== 1 ? start : null });
  items.forEach((blocks, i) => {
    const growing = open && i === items.length - 1;
    const box = taskBox(blocks[0]);
    const item = el("li", { class: box && "task" }, box ?? "");
    for (const [j, block] of blocks.entries()) {
      block.open = growing && j === blocks.length - 1;
      const bare = block.kind === "paragraph" && !loose;
      item.append(bare ? inline(block.text, block.open) : render(block));
    }
    node.append(item);
  });
  return node;
}

function taskBox(block) {
  const match = block?.kind === "paragraph" && /^\[([ xX])\] /.exec(block.text);
  if (!match) return null;
  block.text = block.text.slice(4);
  return match[1] === " " ? "\u2610 " : "\u2611 ";
}

function renderTable({ head, rows, align }) {
  const row = (tag, texts) =>
    el("tr", {}, ...head.map((_, i) => el(tag, { class: align[i] }, inline(texts[i] ?? ""))));
  const body = el("tbody", {}, ...rows.map((texts) => row("td", texts)));
  const node = el("table", {}, el("thead", {}, row("th", head)), body);
  return el("div", { class: "table", tabindex: "0" }, node);
}
