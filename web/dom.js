// Small helpers: elements, numbers and tokens as text. Nothing here, or anywhere in this folder,
// writes HTML from a string: what a model says reaches the page as text only.

export const $ = (id) => document.getElementById(id);

/** el("button", { class: "primary", onclick: f, "aria-label": "x" }, "text", child, ...) */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("aria-"))
      node.setAttribute(name, value); // "true" or "false", in words
    else if (value === false) continue;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "vars")
      for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

// ---- numbers ----

const grouped = new Intl.NumberFormat("en-US");

/** 12345 -> "12,345" */
export const count = (n) => grouped.format(n);

/** count(1) + " token", count(2) + " tokens" */
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

/** A probability as a percentage of a width that can be read: 99.98% 12.3% 0.041% <0.001% */
export function percent(p) {
  const x = 100 * p;
  if (x >= 99.95 && x < 100) return "99.9+%";
  if (x >= 10) return `${x.toFixed(1)}%`;
  if (x >= 1) return `${x.toFixed(2)}%`;
  if (x >= 0.001) return `${x.toFixed(3)}%`;
  return x > 0 ? "<0.001%" : "0%";
}

/** Bits of surprise. */
export const bits = (logprob) => Math.abs(logprob / Math.LN2);

/** Four significant digits, or an exponent where that says more: 1.234 0.01234 1.2e-5 12,345 */
export function short(x) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (x === 0) return "0";
  if (size >= 1e6) return x.toExponential(2).replace("e+", "e");
  if (size >= 1000) return count(Math.round(x));
  if (size >= 1) return String(Number(x.toPrecision(4)));
  if (size >= 1e-4) return String(Number(x.toPrecision(3)));
  return x.toExponential(1);
}

// ---- tokens as text ----

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

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Bytes as text; those that are no whole character as \xe4. */
export function bytesText(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length;) {
    const b = bytes[i];
    const n = b < 0x80 ? 1 : b < 0xe0 ? 2 : b < 0xf0 ? 3 : 4; // if it begins a character
    try {
      text += utf8.decode(Uint8Array.from(bytes.slice(i, i + n)));
      i += n;
    } catch {
      text += `\\x${b.toString(16).padStart(2, "0")}`;
      i++;
    }
  }
  return text;
}

/** The bytes of a token as the API writes it: its text, or bytes:\xe4 for half a character. */
export function tokenBytes(text) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(text)) return new TextEncoder().encode(text);
  return Uint8Array.from(text.slice(8).split("\\x"), (h) => parseInt(h, 16));
}

/** Such a token as a word that can be read. */
export const visibleToken = (text) => visible(bytesText([...tokenBytes(text)]));

export const hex = (bytes) => bytes.map((b) => b.toString(16).padStart(2, "0")).join(" ");

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

// Control characters, and those that turn the direction of a text.
const HARMFUL = /[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;

/** A text as it is, but for characters that would disturb what stands around it. */
export const harmless = (text) =>
  text.replace(HARMFUL, (c) => (c === "\n" || c === "\t" ? c : code(c)));

// ---- states ----

/** A state of a view in words: kind is empty, error, cut or busy; actions: [label, handler]. */
export function notice(kind, title, text, actions = []) {
  const alarm = kind === "error" || kind === "cut";
  return el(
    "div",
    { class: `notice ${kind}`, role: alarm ? "alert" : null },
    el("strong", {}, title),
    text && el("p", {}, text),
    actions.length > 0 &&
      el(
        "div",
        { class: "actions" },
        actions.map(([label, f]) => el("button", { type: "button", onclick: f }, label)),
      ),
  );
}

/** A row of exclusive choices as radio buttons. choices: [[value, label]]; returns the element. */
export function segments(name, choices, value, onchange) {
  return choices.map(([key, label]) =>
    el(
      "label",
      {},
      el("input", {
        type: "radio",
        name,
        value: key,
        checked: key === value,
        onchange: () => onchange(key),
      }),
      el("span", {}, label),
    ),
  );
}

/** What the page remembers between visits; a browser that forbids it forgets. */
export const memory = {
  get(key, fallback) {
    try {
      return JSON.parse(localStorage.getItem(`bonsai.${key}`)) ?? fallback;
    } catch {
      return fallback;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`bonsai.${key}`, JSON.stringify(value));
    } catch {
      // private windows
    }
  },
};

/** f, called once the calls have paused for `ms`. */
export function debounce(f, ms) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...args), ms);
  };
}

const resolved = new Map();
addEventListener("themechange", () => resolved.clear());

/** The colour of a CSS variable as [r, g, b], resolved for the current theme. */
export function rgb(variable) {
  if (!resolved.has(variable)) {
    const probe = el("i", { vars: { color: `var(${variable})` } });
    document.body.append(probe);
    resolved.set(
      variable,
      getComputedStyle(probe)
        .color.match(/[\d.]+/g)
        .slice(0, 3)
        .map(Number),
    );
    probe.remove();
  }
  return resolved.get(variable);
}
