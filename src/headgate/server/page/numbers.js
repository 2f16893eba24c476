// Numbers as they are read: few digits, units, never a jumping width.

const THIN = "\u2009";

/** 12345 → "12 345" (thin spaces). */
export const count = (value) => String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, THIN);

/** About three significant digits. */
export function short(value) {
  if (value >= 100) return value.toFixed(0);
  return value.toFixed(value >= 10 ? 1 : 2);
}

/** [number, unit] of an amount of memory or of bytes read, in powers of 1024. */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  for (; value >= 1024 && power < units.length - 1; power++) value /= 1024;
  return [power ? short(value) : String(Math.round(value)), units[power]];
}

/** [number, unit] of a drive's rate, in powers of 1000 as drives are specified. */
export function rate(value) {
  if (value >= 1e9) return [short(value / 1e9), "GB/s"];
  return [value >= 1e5 || value === 0 ? String(Math.round(value / 1e6)) : "<1", "MB/s"];
}

/** 840 → "0.84 s", 75000 → "1 min 15 s". */
export function duration(milliseconds) {
  const seconds = milliseconds / 1000;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(2) : seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

/** JSON with line breaks and indents; also the beginning of a document that still grows. */
export function indentJson(text) {
  let out = "";
  let depth = 0;
  let quoted = false;
  const newline = () => `\n${"  ".repeat(Math.max(0, depth))}`;
  for (let i = 0; i < text.length; i++) {
    const char = text[i];
    if (quoted) {
      out += char;
      if (char === "\\") out += text[++i] ?? "";
      else if (char === '"') quoted = false;
    } else if (char === "{" || char === "[") {
      const close = /^\s*[}\]]/.exec(text.slice(i + 1, i + 50));
      depth++;
      if (close) {
        out += char + close[0].trim();
        depth--;
        i += close[0].length;
      } else out += char + newline();
    } else if (char === "}" || char === "]") {
      depth--;
      out += newline() + char;
    } else if (char === ",") out += char + newline();
    else if (char === ":") out += ": ";
    else if (!/\s/.test(char)) {
      quoted = char === '"';
      out += char;
    }
  }
  return out;
}
