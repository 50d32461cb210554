// The text of a version: its tokens as buttons, with one button for tokens that share a character.
// Arrow keys move between them.

import { $, bits, el } from "./dom.js";
import { harmless, spoken } from "./text.js";

const MAX_BITS = 8; // a token of probability 1/256 or less has the full shade

/** Handle clicks and keys. onopen(k) is called with the index of the chosen part, or null. */
export function listen(onopen) {
  const output = $("output");
  output.addEventListener("click", (e) => onopen(index(e.target)));
  output.addEventListener("keydown", (e) => {
    const k = index(e.target);
    if (k === null) return;
    if ((e.key === "Enter" || e.key === " ") && !e.ctrlKey && !e.metaKey) {
      e.preventDefault();
      return onopen(k);
    }
    const all = output.querySelectorAll(".token");
    const to = { ArrowRight: k + 1, ArrowLeft: k - 1, Home: 0, End: all.length - 1 }[e.key];
    if (to === undefined || !all[to]) return;
    e.preventDefault();
    all[k].tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
  });
}

/** The element of a part. */
export const partElement = (k) => $("output").querySelectorAll(".token")[k];

export function drawVersion(version) {
  $("output").replaceChildren();
  if (version.prompt) $("output").append(el("span", { class: "prompt" }, version.prompt));
  drawParts(version, 0);
}

/** Draw the parts from k on; part k may have been drawn already, with fewer tokens. */
export function drawParts(version, k) {
  const output = $("output");
  const follows = innerHeight + scrollY >= document.body.scrollHeight - 40;
  partElement(k)?.remove();
  for (let i = k; i < version.parts.length; i++) output.append(element(version, i));
  if (follows && version.state === "streaming") scrollTo(0, document.body.scrollHeight);
}

function element(version, k) {
  const tokens = version.part(k);
  const text = version.partText(k);
  const surprise = Math.min(1, tokens.reduce((sum, t) => sum + bits(t.logprob), 0) / MAX_BITS);
  const broken = /^(\\x[89a-f][0-9a-f])+$/.test(text) && !tokens[0].text.startsWith("\\");
  const classes = [
    "token",
    tokens.some((t) => t.picked) && "picked",
    broken && "part",
  ];
  return el(
    "span",
    {
      class: classes.filter(Boolean).join(" "),
      role: "button",
      tabindex: k === 0 ? 0 : -1,
      "aria-label": spoken(text),
      "data-k": k,
      vars: { "--shade": `${(surprise * 45).toFixed(1)}%` },
    },
    // style.css shows a sign at line breaks, which is not part of the text
    harmless(text)
      .split(/(\n)/)
      .filter((piece) => piece !== "")
      .map((piece) => (piece === "\n" ? el("i", { class: "break" }, piece) : piece)),
  );
}

function index(node) {
  const token = node.closest?.(".token");
  return token ? Number(token.dataset.k) : null;
}
