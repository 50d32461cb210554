// The alternatives of a token, in a box below it, or at the bottom of a phone's screen.

import { $, bits, el, percent, short } from "./dom.js";
import { bytesText, spoken, tokenBytes, unfinished, visible, visibleToken } from "./text.js";

let popup = null; // the open box, at most one: { box, anchor }

/**
 * Show the alternatives of a part of a text. anchor: its element; first: the index of its first
 * token; tokens: one, or several that share a character, each as { id, text, logprob, top: [{ id,
 * text, logprob }] }. onpick is called with a token's index and the chosen entry of its `top`.
 */
export function open(anchor, first, tokens, onpick) {
  close();
  const bytes = tokens.map((t) => tokenBytes(t.text));
  const label = bytesText(bytes.flat());
  const name = spoken(label) ?? visible(label);
  const where =
    tokens.length === 1 ? `Token ${first + 1}` : `Tokens ${first + 1} to ${first + tokens.length}`;
  const box = el("div", { class: "popup", role: "dialog", "aria-label": `${where}: ${name}` });
  const content = el("div", {});
  const parts =
    tokens.length > 1 &&
    el(
      "div",
      { class: "parts", role: "group", "aria-label": "Parts of the character" },
      tokens.map((t, i) =>
        el("button", { type: "button", class: "mono", onclick: () => show(i) }, visibleToken(t.text)),
      ),
    );
  const chance = Math.exp(tokens.reduce((sum, t) => sum + t.logprob, 0));
  const surprise = tokens.reduce((sum, t) => sum + bits(t.logprob), 0);
  box.append(
    el(
      "header",
      {},
      el("strong", { class: "mono" }, visible(label)),
      el("span", { class: "hint" }, `${percent(chance)}, ${short(surprise)} bits`),
      el(
        "button",
        { class: "quiet icon", type: "button", "aria-label": "Close", onclick: () => close(true) },
        "×",
      ),
    ),
    ...[parts].filter(Boolean),
    content,
  );
  function show(i) {
    [...(parts ? parts.children : [])].forEach((b, j) => b.setAttribute("aria-pressed", i === j));
    const before = bytes.slice(0, i).flat();
    content.replaceChildren(...options(tokens[i], first + i, before, (o) => onpick(first + i, o)));
  }
  show(0);
  box.addEventListener("keydown", (e) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
    if (!step) return;
    e.preventDefault();
    const all = [...box.querySelectorAll("li button:enabled")];
    all[(all.indexOf(document.activeElement) + step + all.length) % all.length]?.focus();
  });
  popup = { box, anchor };
  anchor.classList.add("open");
  $("view-complete").append(box);
  place();
  const target = box.querySelector("li button:enabled") ?? box.querySelector("button");
  target.focus({ preventScroll: true });
}

/** The alternatives of a token. before: the bytes of its character in earlier tokens. */
function options(token, place, before, onpick) {
  const sorted = [...token.top].sort((a, b) => b.logprob - a.logprob);
  const others = 1 - sorted.reduce((sum, o) => sum + Math.exp(o.logprob), 0);
  return [
    el(
      "ul",
      {},
      sorted.map((o) => row(o, o.id === token.id, before, onpick)),
    ),
    others > 1e-5 &&
      el(
        "p",
        { class: "others" },
        el("span", {}, "all others"),
        el("span", { class: "number" }, percent(others)),
      ),
    el(
      "p",
      { class: "hint" },
      `Token ${place + 1}, id ${token.id}. Probabilities before temperature and filters. ` +
        "Pick another token to continue from it.",
    ),
  ].filter(Boolean);
}

function row(option, chosen, before, onpick) {
  const p = Math.exp(option.logprob);
  // a token that completes a character is shown as that character
  const whole = [...before, ...tokenBytes(option.text)];
  const text = unfinished(whole).length > 0 ? bytesText(tokenBytes(option.text)) : bytesText(whole);
  const button = el(
    "button",
    {
      type: "button",
      class: "option",
      disabled: chosen,
      title: `id ${option.id}`,
      "aria-label": spoken(text) && `${spoken(text)}${chosen ? ", chosen" : ""}, ${percent(p)}`,
      vars: { "--p": `${(100 * p).toFixed(2)}%` },
      onclick: () => onpick(option),
    },
    el("span", { class: "mono" }, visible(text)),
    chosen && el("small", {}, "chosen"),
    el("span", { class: "number" }, percent(p)),
  );
  return el("li", {}, button);
}

function place() {
  const { box, anchor } = popup;
  if (getComputedStyle(box).position === "fixed") {
    // the box is at the bottom of the screen: keep the token visible above it
    document.body.style.paddingBottom = `${box.offsetHeight}px`;
    const hidden = anchor.getBoundingClientRect().bottom + 24 - box.getBoundingClientRect().top;
    if (hidden > 0) scrollBy(0, hidden);
    return;
  }
  const token = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
  const view = $("view-complete").getBoundingClientRect();
  const { offsetWidth: w, offsetHeight: h } = box;
  const left = Math.max(0, Math.min(token.left - view.left - 12, view.width - w));
  const below = token.bottom + h + 12 < innerHeight || token.top < h + 12;
  box.style.left = `${left}px`;
  box.style.top = `${(below ? token.bottom + 6 : token.top - h - 6) - view.top}px`;
  box.scrollIntoView({ block: "nearest" });
}

/** Close the box; returns whether one was open. refocus: give the focus back to the token. */
export function close(refocus = false) {
  if (!popup) return false;
  const { box, anchor } = popup;
  popup = null;
  box.remove();
  document.body.style.paddingBottom = "";
  anchor.classList.remove("open");
  if (refocus) anchor.focus({ preventScroll: true });
  return true;
}
