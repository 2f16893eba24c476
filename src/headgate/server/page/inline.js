// Markdown inside a block: emphasis, code, links. Returns DOM nodes; what is not understood
// stays as the text that it is.

import { el } from "./dom.js";

const PUNCTUATION = /[\p{P}\p{S}]/u;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'", nbsp: "\u00a0" };
const LABEL_LIMIT = 1000; // looking further for a closing bracket would be quadratic
const REACH = 200; // so would be looking for an opener of emphasis

/** The address if it is absolute and of a kind that runs nothing, else null. */
export function safeUrl(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * A fragment of a block's text.
 * @param {boolean} open the text still grows: emphasis, code and links that are not closed
 *   yet are shown as if they were, so that marks do not flicker.
 * @param {boolean} links false inside a link, where there can be no other
 */
export function inline(text, open = false, links = true) {
  const items = new Scanner(text, open, links).scan();
  emphasize(items);
  if (open) closeLast(items);
  const fragment = document.createDocumentFragment();
  fragment.append(...items.map(toNode));
  return fragment;
}

/** Cuts text into nodes ({node}), plain strings and runs of emphasis marks ({mark, ...}). */
class Scanner {
  constructor(text, open, links) {
    this.text = text;
    this.open = open;
    this.links = links;
    this.at = 0;
    this.items = [];
    this.plain = "";
    this.unclosed = new Set(); // lengths of backtick runs that nothing closes
  }

  scan() {
    while (this.at < this.text.length) {
      const char = this.text[this.at];
      const handler = HANDLERS[char] ?? (this.links ? LINKS[char] : null);
      if (handler && handler.call(this)) continue;
      this.plain += this.text[this.at++];
    }
    this.flush();
    return this.items;
  }

  flush() {
    if (this.plain) this.items.push(this.plain);
    this.plain = "";
  }

  put(node, end) {
    this.flush();
    this.items.push({ node });
    this.at = end;
    return true;
  }

  run(char) {
    let end = this.at;
    while (this.text[end] === char) end++;
    return end - this.at;
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === "\n") return this.put(el("br"), this.at + 2);
    if (!next || !/[!-/:-@[-`{-~]/.test(next)) return false;
    this.plain += next;
    this.at += 2;
    return true;
  }

  lineEnd() {
    if (!this.plain.endsWith("  ")) return false;
    this.plain = this.plain.trimEnd();
    return this.put(el("br"), this.at + 1);
  }

  entity() {
    const match = /^&(#39|[a-z]{2,4});/.exec(this.text.slice(this.at, this.at + 6));
    if (!match || !(match[1] in ENTITIES)) return false;
    this.plain += ENTITIES[match[1]];
    this.at += match[0].length;
    return true;
  }

  code() {
    const count = this.run("`");
    const start = this.at + count;
    let end = this.unclosed.has(count) ? -1 : closingRun(this.text, start, count);
    if (end < 0) {
      this.unclosed.add(count);
      if (!this.open) {
        this.plain += "`".repeat(count);
        this.at = start;
        return true;
      }
      end = this.text.length;
    }
    let code = this.text.slice(start, end).replaceAll("\n", " ");
    if (/^ .*[^ ].* $/.test(code)) code = code.slice(1, -1);
    if (!code) this.at = end + count; // just opened: nothing to show yet
    return code ? this.put(el("code", {}, code), end + count) : true;
  }

  marks() {
    const char = this.text[this.at];
    const count = this.run(char);
    if (char === "~" && count !== 2) {
      this.plain += char.repeat(count);
      this.at += count;
      return true;
    }
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + count] ?? " ";
    const [spaceBefore, spaceAfter] = [/\s/.test(before), /\s/.test(after)];
    const [markBefore, markAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
    const left = !spaceAfter && (!markAfter || spaceBefore || markBefore);
    const right = !spaceBefore && (!markBefore || spaceAfter || markAfter);
    const word = char === "_";
    this.flush();
    this.items.push({
      mark: char,
      count,
      opens: left && (!word || !right || markBefore),
      closes: right && (!word || !left || markAfter),
      last: this.at + count === this.text.length,
    });
    this.at += count;
    return true;
  }

  link() {
    const found = readLink(this.text, this.at, this.open);
    return found ? this.put(linkNode(found.url, inline(found.label, false, false)), found.end) : false;
  }

  image() {
    const found = this.text[this.at + 1] === "[" && readLink(this.text, this.at + 1, this.open);
    if (!found) return false;
    const label = `image: ${found.label || found.url}`;
    return this.put(linkNode(found.url, label), found.end);
  }

  angle() {
    const match = /^<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/.exec(
      this.text.slice(this.at, this.at + 2010),
    );
    return match ? this.put(linkNode(match[1], match[1]), this.at + match[0].length) : false;
  }

  bare() {
    if (/\w/.test(this.text[this.at - 1] ?? " ")) return false;
    const match = /^https?:\/\/[^\s<>"`]{1,2000}/.exec(this.text.slice(this.at, this.at + 2010));
    if (!match) return false;
    let url = match[0].replace(/[.,;:!?*_~'\]]+$/, "");
    while (url.endsWith(")") && url.split(")").length > url.split("(").length) {
      url = url.slice(0, -1).replace(/[.,;:!?*_~'\]]+$/, "");
    }
    return this.put(linkNode(url, url), this.at + url.length);
  }
}

const { escape, lineEnd, entity, code, marks, link, image, angle, bare } = Scanner.prototype;
const HANDLERS = {
  __proto__: null,
  "\\": escape, "\n": lineEnd, "&": entity, "`": code, "*": marks, _: marks, "~": marks,
};
const LINKS = { __proto__: null, "[": link, "!": image, "<": angle, h: bare };

function closingRun(text, from, count) {
  for (let at = text.indexOf("`", from); at >= 0; at = text.indexOf("`", at)) {
    let end = at;
    while (text[end] === "`") end++;
    if (end - at === count) return at;
    at = end;
  }
  return -1;
}

/** `[label](address "title")` at `at`: {label, url, end}, or null. */
function readLink(text, at, open) {
  let depth = 0;
  let close = at;
  const limit = Math.min(text.length, at + LABEL_LIMIT);
  for (; close < limit; close++) {
    if (text[close] === "\\") close++;
    else if (text[close] === "[") depth++;
    else if (text[close] === "]" && --depth === 0) break;
  }
  if (close >= limit || text[close + 1] !== "(") return null;
  const label = text.slice(at + 1, close);
  const rest = text.slice(close + 2, close + 2 + 4000);
  const match =
    /^\s{0,9}(?:<([^<>\n]*)>|((?:[^\s()]|\([^\s()]*\))*))(?:\s{1,9}(?:"[^"]*"|'[^']*'))?\s{0,9}\)/.exec(
      rest,
    );
  if (match) return { label, url: match[1] ?? match[2], end: close + 2 + match[0].length };
  return open && !rest.includes("\n") && /^\S*$/.test(rest)
    ? { label, url: "", end: text.length } // the address is still coming
    : null;
}

/** A link that opens apart and says where it leads; text alone if the address is not safe. */
function linkNode(address, label) {
  const href = safeUrl(address);
  if (!href) return el("span", { class: "unlinked" }, label);
  const attributes = { href, title: href, target: "_blank", rel: "noopener noreferrer" };
  return el("a", attributes, label);
}

/** Pairs runs of marks in place, innermost first (the rules of CommonMark 0.31, 6.2). */
function emphasize(items) {
  for (let close = 1; close < items.length; close++) {
    const closer = items[close];
    if (!closer.closes || !closer.count) continue;
    let at = close - 1;
    const limit = Math.max(0, close - REACH);
    while (at >= limit && !pairs(items[at], closer)) at--;
    if (at < limit) continue;
    const opener = items[at];
    const used = opener.count >= 2 && closer.count >= 2 ? 2 : 1;
    const tag = closer.mark === "~" ? "del" : used === 2 ? "strong" : "em";
    const inside = items.splice(at + 1, close - at - 1).map(toNode);
    items.splice(at + 1, 0, { node: el(tag, {}, ...inside) });
    opener.count -= used;
    closer.count -= used;
    close = at + 1; // the closer, now at `at + 2`, may close more
  }
}

function pairs(opener, closer) {
  if (!opener.opens || !opener.count || opener.mark !== closer.mark) return false;
  const both = (opener.opens && opener.closes) || (closer.opens && closer.closes);
  const sum = opener.count + closer.count;
  return !both || sum % 3 !== 0 || (opener.count % 3 === 0 && closer.count % 3 === 0);
}

/** Bold text whose closing marks have not come yet is bold already. */
function closeLast(items) {
  const last = items.at(-1);
  if (last?.mark && last.last) last.count = 0;
  const at = items.findIndex((item) => item.opens && item.count === 2 && item.mark !== "_");
  if (at < 0) return;
  const tag = items[at].mark === "~" ? "del" : "strong";
  const inside = items.splice(at + 1).map(toNode);
  items[at] = { node: el(tag, {}, ...inside) };
}

function toNode(item) {
  if (typeof item === "string") return document.createTextNode(item);
  return item.node ?? document.createTextNode(item.mark.repeat(item.count));
}
