// Tokens and characters as text: to be read, to be heard, and put together from bytes.

// ---- to be read ----

const SIGNS = { "\n": "↵", "\t": "→", "\r": "␍", " ": "·" };
// Control characters and what looks like nothing or turns text around are shown by their code.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Zl}\p{Zp}]/u;

/** A token as a word that can be read: white space as signs, unprintable characters as codes. */
export function visible(text) {
  if (text === "") return "∅";
  return Array.from(text, (c) => SIGNS[c] ?? (UNSEEN.test(c) ? code(c) : c)).join("");
}

function code(c) {
  const n = c.codePointAt(0);
  return n < 256 ? `\\x${n.toString(16).padStart(2, "0")}` : `\\u{${n.toString(16)}}`;
}

// Control characters, and those that turn the direction of a text.
const HARMFUL = /[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;
// What has no width; what joins emoji (U+200D) is left to do so.
const EMPTY = /^(?!\u200d)[\p{Cf}\p{Zl}\p{Zp}]*$/u;

/** A text as it is, but for characters that would disturb what stands around it, or not be seen. */
export const harmless = (text) =>
  EMPTY.test(text)
    ? visible(text)
    : text.replace(HARMFUL, (c) => (c === "\n" || c === "\t" ? c : code(c)));

export const hex = (bytes) => bytes.map((b) => b.toString(16).padStart(2, "0")).join(" ");

// ---- to be heard ----

const SAID = { " ": "space", "\n": "line break", "\t": "tab", "\r": "carriage return" };
const MANY = /^(?:space|line break|tab)$/;

/** "  \n" -> "2 spaces, line break"; null for a text that a screen reader can say as it is. */
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

/** Length in bytes of the character that a byte begins. */
const length = (byte) => (byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4);

/** Bytes as text; those that are no whole character as \xe4. */
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

/** The bytes of a token as the API writes it: its text, or bytes:\xe4 for half a character. */
export function tokenBytes(text) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(text)) return [...new TextEncoder().encode(text)];
  return text
    .slice(8)
    .split("\\x")
    .map((h) => parseInt(h, 16));
}

/** Such a token as a word that can be read. */
export const visibleToken = (text) => visible(bytesText(tokenBytes(text)));

/** Whether bytes are the beginning of a character, or one. */
function begins(bytes) {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes), { stream: true });
    return true;
  } catch {
    return false;
  }
}

/** The bytes at the end that begin a character and do not complete it: at most three, often none. */
export function unfinished(bytes) {
  for (let n = 1; n <= Math.min(3, bytes.length); n++) {
    const tail = bytes.slice(-n);
    if (tail[0] < 0x80) return [];
    if (tail[0] >= 0xc0) return n < length(tail[0]) && begins(tail) ? tail : [];
  }
  return [];
}

/** Tells of tokens, one after another, which belong together because they share a character. */
export class Characters {
  open = []; // bytes of a character that is not complete yet

  /** Whether a token of these bytes goes on with the character that the token before it began. */
  joins(bytes) {
    const joined = this.open.length > 0 && bytes.length > 0 && begins([...this.open, bytes[0]]);
    this.open = unfinished(joined ? [...this.open, ...bytes] : bytes);
    return joined;
  }
}

/** [[0, 1], [1, 4], ...]: from where to where the tokens of these bytes belong together. */
export function groups(tokens) {
  const found = [];
  const characters = new Characters();
  tokens.forEach((bytes, i) => {
    if (characters.joins(bytes)) found.at(-1)[1] = i + 1;
    else found.push([i, i + 1]);
  });
  return found;
}

/** Names for tokens that must be told apart: the parts of a character as 漢₁ 漢₂ 漢₃. */
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

/**
 * A number below n for each id: the same for the same token, unless its neighbour has it already.
 */
export function colours(ids, n) {
  const chosen = [];
  for (const id of ids) {
    const repeats = chosen.length > 0 && id % n === chosen[chosen.length - 1];
    chosen.push((id + (repeats ? 1 : 0)) % n);
  }
  return chosen;
}
