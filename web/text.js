// Tokens and characters as text: for readers, for screen readers, and decoded from bytes.

// ---- for readers ----

const SIGNS = { "\n": "↵", "\t": "→", "\r": "␍", " ": "·" };
// Characters that are shown as codes: control characters, invisible ones, and those that change the
// direction of text.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Zl}\p{Zp}]/u;

/** A token with all characters visible: white space as signs, unprintable characters as codes. */
export function visible(text) {
  if (text === "") return "∅";
  return Array.from(text, (c) => SIGNS[c] ?? (UNSEEN.test(c) ? code(c) : c)).join("");
}

function code(c) {
  const n = c.codePointAt(0);
  return n < 256 ? `\\x${n.toString(16).padStart(2, "0")}` : `\\u{${n.toString(16)}}`;
}

// Control characters, and those that change the direction of text.
const HARMFUL = /[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;
// A text of characters without width, unless it begins with the joiner of emoji (U+200D).
const EMPTY = /^(?!\u200d)[\p{Cf}\p{Zl}\p{Zp}]*$/u;

/** A text in which codes replace characters that would disturb the text around it; a text without
 * any visible character becomes codes, too. */
export const harmless = (text) =>
  EMPTY.test(text)
    ? visible(text)
    : text.replace(HARMFUL, (c) => (c === "\n" || c === "\t" ? c : code(c)));

export const hex = (bytes) => bytes.map((b) => b.toString(16).padStart(2, "0")).join(" ");

// ---- for screen readers ----

const SAID = { " ": "space", "\n": "line break", "\t": "tab", "\r": "carriage return" };
const MANY = /^(?:space|line break|tab)$/;

/** "  \n" -> "2 spaces, line break"; null for a text that a screen reader can read itself. */
export function spoken(text) {
  if (text === "") return "nothing";
  if (!/^[\s\p{Cc}\p{Cf}\p{Zl}\p{Zp}]*$/u.test(text)) return null;
  const runs = []; // [name, how many in a row]
  for (const c of text) {
    const name = SAID[c] ?? `character U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    if (runs.at(-1)?.[0] === name && MANY.test(name)) runs.at(-1)[1]++;
    else runs.push([name, 1]);
  }
  return runs.map(([name, n]) => (n === 1 ? name : `${n} ${name}s`)).join(", ");
}

// ---- bytes ----

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The length in bytes of a character that begins with this byte. */
const length = (byte) => (byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4);

/** Bytes as text; bytes that are not a whole character are written as \xe4. */
export function bytesText(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length;) {
    const n = length(bytes[i]);
    try {
      text += utf8.decode(Uint8Array.from(bytes.slice(i, i + n)));
      i += n;
    } catch {
      text += `\\x${bytes[i].toString(16).padStart(2, "0")}`;
      i++;
    }
  }
  return text;
}

/** The bytes of a token from the API's form of it: its text, or bytes:\xe4 for half a character. */
export function tokenBytes(text) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(text)) return [...new TextEncoder().encode(text)];
  return text
    .slice(8)
    .split("\\x")
    .map((h) => parseInt(h, 16));
}

/** A token from the API with all characters visible. */
export const visibleToken = (text) => visible(bytesText(tokenBytes(text)));

/** Whether bytes are a character or the beginning of one. */
function begins(bytes) {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes), { stream: true });
    return true;
  } catch {
    return false;
  }
}

/** The bytes at the end that begin a character without completing it: at most three, often none. */
export function unfinished(bytes) {
  for (let n = 1; n <= Math.min(3, bytes.length); n++) {
    const tail = bytes.slice(-n);
    if (tail[0] < 0x80) return [];
    if (tail[0] >= 0xc0) return n < length(tail[0]) && begins(tail) ? tail : [];
  }
  return [];
}

/** Finds consecutive tokens that share a character; it gets them one after another. */
export class Characters {
  open = []; // bytes of a character that is not complete yet

  /** Whether a token with these bytes continues a character that the previous token has begun. */
  joins(bytes) {
    const joined = this.open.length > 0 && bytes.length > 0 && begins([...this.open, bytes[0]]);
    this.open = unfinished(joined ? [...this.open, ...bytes] : bytes);
    return joined;
  }
}

/** [[0, 1], [1, 4], ...]: the ranges of tokens that share a character. tokens: their bytes. */
export function groups(tokens) {
  const found = [];
  const characters = new Characters();
  tokens.forEach((bytes, i) => {
    if (characters.joins(bytes)) found.at(-1)[1] = i + 1;
    else found.push([i, i + 1]);
  });
  return found;
}

/** Names of tokens that show which is which: the parts of a character are 漢₁ 漢₂ 漢₃. */
export function names(tokens) {
  return groups(tokens).flatMap(([from, to]) => {
    const parts = tokens.slice(from, to);
    const whole = parts.flat();
    if (parts.length === 1 || unfinished(whole).length > 0)
      return parts.map((bytes) => visible(bytesText(bytes)));
    return parts.map((_, i) => visible(bytesText(whole)) + String.fromCodePoint(0x2081 + i));
  });
}

// ---- colours ----

/** A number below n for each id: equal for equal ids, but different for neighbours. */
export function colours(ids, n) {
  const chosen = [];
  for (const id of ids) {
    const repeats = chosen.length > 0 && id % n === chosen[chosen.length - 1];
    chosen.push((id + (repeats ? 1 : 0)) % n);
  }
  return chosen;
}
