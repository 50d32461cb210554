// Small helpers: elements, numbers, states, storage. No code in this folder makes HTML from a
// string, so a model's output reaches the page as text only.

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
      node.setAttribute(name, value); // booleans as the words "true" and "false"
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

/** A probability as a short percentage: 99.9+% 12.3% 0.041% <0.001% */
export function percent(p) {
  const x = 100 * p;
  if (x >= 99.95 && x < 100) return "99.9+%";
  if (x >= 10) return `${x.toFixed(1)}%`;
  if (x >= 1) return `${x.toFixed(2)}%`;
  if (x >= 0.001) return `${x.toFixed(3)}%`;
  return x > 0 ? "<0.001%" : "0%";
}

/** The surprise of a token in bits, from log p in nats. */
export const bits = (logprob) => Math.abs(logprob / Math.LN2);

/** Three or four significant digits, or an exponent if shorter: 1.234 0.0123 1.2e-5 12,345 */
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

/** Three digits of a large number: 1234567 -> 1.23M */
export function compact(x) {
  for (const [size, sign] of [
    [1e12, "T"],
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "k"],
  ])
    if (x >= size) return `${Number((x / size).toPrecision(3))}${sign}`;
  return String(Math.round(x));
}

// ---- states ----

/** A message about a view's state. kind: empty, error, cut or busy; actions: [label, handler]. */
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

/** Returns the node, and scrolls to it once it is on the page. */
export function inSight(node) {
  requestAnimationFrame(() => node.scrollIntoView({ block: "nearest" }));
  return node;
}

/** Radio buttons for exclusive choices. choices: [[value, label]]; returns their labels. */
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

/**
 * Values that the page stores. Each browser tab has its own, which a reload keeps; a new tab begins
 * with the latest ones of all tabs. If the browser forbids storage, nothing is kept.
 */
export const memory = {
  get(key, fallback) {
    for (const storage of ["sessionStorage", "localStorage"])
      try {
        const value = JSON.parse(window[storage].getItem(`bonsai.${key}`));
        if (value !== null) return value;
      } catch {
        // storage is forbidden, or the value is not from this page
      }
    return fallback;
  },
  set(key, value) {
    for (const storage of ["sessionStorage", "localStorage"])
      try {
        window[storage].removeItem(`bonsai.${key}`); // if setItem fails, no old value must remain
        window[storage].setItem(`bonsai.${key}`, JSON.stringify(value));
      } catch {
        // a private window, or the storage is full
      }
  },
};

/** Store what is typed into a field, so that a reload keeps it. */
export function remember(field, key, fallback = "") {
  if (field.value === "") field.value = memory.get(key, fallback); // else it was typed already
  let typed = false;
  const keep = () => typed && memory.set(key, field.value);
  const later = debounce(keep, 200);
  field.addEventListener("input", () => {
    typed = true;
    later();
  });
  addEventListener("pagehide", keep);
}

/** Copy a text to the clipboard; the button then says whether that worked. */
export async function copyText(text, button) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Only pages of this machine and of https may use it; for others there is the old way
    const field = el("textarea", { class: "visually-hidden" });
    field.value = text;
    document.body.append(field);
    field.select();
    copied = document.execCommand("copy");
    field.remove();
    button.focus();
  }
  const label = (button.dataset.label ??= button.textContent);
  button.textContent = copied ? "Copied" : "Cannot copy here";
  setTimeout(() => (button.textContent = label), 1500);
}

/** A function that calls f once there was no call for `ms` milliseconds. */
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
