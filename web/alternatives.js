// What else a token could have been: below it, or at the bottom of a phone's screen.

import { $, bits, el, percent, short, visibleToken } from "./dom.js";

let popup = null; // at most one: { box, anchor }

/**
 * Show the alternatives of a token. anchor: its element; i: its place; token: { id, text, logprob,
 * top: [{ id, text, logprob }] }; onpick gets the one of `top` that was picked.
 */
export function open(anchor, i, token, onpick) {
  close();
  const options = [...token.top].sort((a, b) => b.logprob - a.logprob);
  const others = 1 - options.reduce((sum, o) => sum + Math.exp(o.logprob), 0);
  const label = visibleToken(token.text);
  const chance = `${percent(Math.exp(token.logprob))}, ${short(bits(token.logprob))} bits`;
  const box = el(
    "div",
    { class: "popup", role: "dialog", "aria-label": `Token ${i + 1}: ${label}` },
    el(
      "header",
      {},
      el("strong", { class: "mono" }, label),
      el("span", { class: "hint" }, chance),
      el(
        "button",
        { class: "quiet icon", type: "button", "aria-label": "Close", onclick: () => close(true) },
        "×",
      ),
    ),
    el(
      "ul",
      {},
      options.map((o) => row(o, o.id === token.id, onpick)),
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
      `Token ${i + 1}, id ${token.id}. Probabilities before temperature and filters. ` +
        "Pick another token to go on from it.",
    ),
  );
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
  const first = box.querySelector("li button:enabled") ?? box.querySelector("button");
  first.focus({ preventScroll: true });
}

function row(option, chosen, onpick) {
  const p = Math.exp(option.logprob);
  const button = el(
    "button",
    {
      type: "button",
      class: "option",
      disabled: chosen,
      title: `id ${option.id}`,
      vars: { "--p": `${(100 * p).toFixed(2)}%` },
      onclick: () => onpick(option),
    },
    el("span", { class: "mono" }, visibleToken(option.text)),
    chosen && el("small", {}, "chosen"),
    el("span", { class: "number" }, percent(p)),
  );
  return el("li", {}, button);
}

function place() {
  const { box, anchor } = popup;
  if (getComputedStyle(box).position === "fixed") {
    // at the bottom of the screen: keep the token in sight above
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

/** Whether there was something to close. refocus: the focus goes back to the token. */
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
