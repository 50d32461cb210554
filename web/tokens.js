// Tokens: a text's tokens by each tokenizer.

import { ApiError, connection, request } from "./api.js";
import { $, count, debounce, el, inSight, memory, notice, plural, remember, segments } from "./dom.js";
import { bytesText, colours, groups, hex, spoken, visible } from "./text.js";

const COLOURS = 6;
const SHOWN = 4000; // the most tokens on a card; with more, typing would be slow
const SAMPLE =
  "How long is a string?\n\ndef area(radius):\n    return 3.14159 * radius ** 2\n\n“Größe” — 12,345,678 日本語 🌳\n";

let names = [];
let off; // names of tokenizers that are not shown
let view; // text or ids
let asked = 0; // number of the latest request: late answers to earlier ones are dropped
let timer = null;

export function start() {
  off = new Set(memory.get("tokenizers-off", []));
  view = memory.get("token-view", "text");
  remember($("text"), "text", SAMPLE);
  $("text").addEventListener("input", debounce(ask, 150));
  $("token-view").append(
    ...segments(
      "token-view",
      [
        ["text", "Text"],
        ["ids", "Ids"],
      ],
      view,
      (value) => {
        view = value;
        memory.set("token-view", value);
        $("token-cards").dataset.view = value;
      },
    ),
  );
  $("token-cards").dataset.view = view;
  connection.addEventListener("change", () => {
    if (connection.up && $("view-tokens").checkVisibility()) load();
  });
}

export function show() {
  if (names.length === 0) load();
}

async function load() {
  if (names.length === 0)
    $("token-cards").replaceChildren(notice("busy", "Looking for tokenizers"));
  try {
    const [all, models] = await Promise.all([request("/tokenizers"), request("/v1/models")]);
    const own = new Set(models.data.map((m) => m.id));
    names = [...all.filter((n) => own.has(n)), ...all.filter((n) => !own.has(n))]; // the models' own first
  } catch (e) {
    return failed(e);
  }
  if (names.length === 0)
    return $("token-cards").replaceChildren(notice("empty", "This server has no tokenizer."));
  const chips = names.map((name) =>
    el(
      "label",
      { class: "chip" },
      el("input", {
        type: "checkbox",
        checked: !off.has(name),
        onchange: (e) => {
          if (e.target.checked) off.delete(name);
          else off.add(name);
          memory.set("tokenizers-off", [...off]);
          ask();
        },
      }),
      el("span", {}, name),
    ),
  );
  $("tokenizers").replaceChildren($("tokenizers").querySelector("legend"), ...chips);
  await ask();
}

function failed(e) {
  if (!(e instanceof ApiError)) throw e;
  const title = e.status === 0 ? "The server does not answer." : "The server refused this text.";
  $("token-cards").replaceChildren(
    inSight(
      notice(e.status === 0 ? "cut" : "error", title, e.status === 0 ? null : e.message, [
        ["Try again", load],
      ]),
    ),
  );
}

async function ask() {
  if (names.length === 0) return load(); // loading has failed before
  const mine = ++asked;
  const text = $("text").value;
  const wanted = names.filter((name) => !off.has(name));
  if (wanted.length === 0)
    return $("token-cards").replaceChildren(
      notice("empty", "No tokenizer is chosen.", "Tick one above."),
    );
  if (text === "")
    return $("token-cards").replaceChildren(
      notice("empty", "Nothing to show yet.", "Type a text above."),
    );
  clearTimeout(timer);
  timer = setTimeout(() => $("token-cards").classList.add("stale"), 400);
  // some tokenizers may not have all characters of the text: the others are still shown
  const answers = await Promise.all(
    wanted.map((name) => request("/tokenize", { text, tokenizer: name }).catch((e) => e)),
  );
  if (mine !== asked) return;
  clearTimeout(timer);
  $("token-cards").classList.remove("stale");
  const lost = answers.find((a) => a instanceof Error && !(a.status > 0));
  if (lost) return failed(lost);
  const most = Math.max(1, ...answers.map((a) => a.count ?? 0));
  $("token-cards").replaceChildren(...answers.map((answer, i) => card(wanted[i], answer, most)));
}

function card(name, answer, most) {
  if (answer instanceof ApiError)
    return el(
      "article",
      { class: "card" },
      el("h2", {}, name),
      notice("empty", "Cannot write this text.", answer.message),
    );
  const { tokens, bytes } = answer;
  const readout = el(
    "p",
    { class: "readout hint", "aria-live": "polite" },
    "Point at a token, or move through them with the arrow keys.",
  );
  const shades = colours(
    tokens.map((t) => t.id),
    COLOURS,
  );
  const parts = groups(tokens.slice(0, SHOWN).map((t) => t.bytes));
  const list = el(
    "div",
    { class: "tokens mono", tabindex: 0, role: "group", "aria-label": `Tokens of ${name}` },
    parts.map(([from, to], k) => partElement(tokens.slice(from, to), k, shades.slice(from, to))),
  );
  let at = -1;
  const point = (k) => {
    if (!parts[k]) return;
    list.children[at]?.classList.remove("at");
    at = k;
    list.children[at].classList.add("at");
    readout.replaceChildren(...described(tokens, ...parts[k]));
  };
  list.addEventListener("pointerover", (e) => {
    const part = e.target.closest("[data-k]");
    if (part) point(Number(part.dataset.k));
  });
  list.addEventListener("keydown", (e) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: parts.length - 1 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    point(to);
  });
  return el(
    "article",
    { class: "card" },
    el(
      "header",
      {},
      el("h2", {}, name),
      el(
        "p",
        { class: "numbers" },
        el("span", {}, el("b", {}, count(answer.count)), answer.count === 1 ? " token" : " tokens"),
        el("span", {}, el("b", {}, count(bytes)), bytes === 1 ? " byte" : " bytes"),
        el(
          "span",
          {},
          el("b", {}, answer.count ? (bytes / answer.count).toFixed(2) : "–"),
          " bytes per token",
        ),
      ),
    ),
    el("i", {
      class: "bar",
      vars: { "--p": `${(100 * answer.count) / most}%` },
      "aria-hidden": true,
    }),
    list,
    tokens.length > SHOWN &&
      el("p", { class: "hint" }, `The first ${count(SHOWN)} tokens are shown.`),
    readout,
  );
}

/** The description of the tokens from..to: one token, or several that share a character. */
function described(tokens, from, to) {
  const some = tokens.slice(from, to);
  const bytes = some.flatMap((t) => t.bytes);
  const text = bytesText(bytes);
  const heard = spoken(text);
  return [
    some.length === 1
      ? el("span", {}, "Token ", el("b", {}, count(from + 1)))
      : el("span", {}, "Tokens ", el("b", {}, `${count(from + 1)} to ${count(to)}`)),
    el("span", { class: "mono strong", role: heard && "img", "aria-label": heard }, visible(text)),
    el("span", {}, some.length === 1 ? "id " : "ids ", el("b", {}, some.map((t) => t.id).join(" "))),
    el("span", {}, `${plural(bytes.length, "byte")} `, el("b", { class: "mono" }, hex(bytes))),
  ];
}

/** The element of one token, or of several that share a character: a stripe of colour for each. */
function partElement(tokens, k, shades) {
  const text = bytesText(tokens.flatMap((t) => t.bytes));
  // signs for white space are faint; a real line break follows the sign for it
  const word = Array.from(text, (c) =>
    /\s/.test(c) ? el("i", {}, visible(c) + (c === "\n" ? "\n" : "")) : visible(c),
  );
  const stops = shades.map((shade, i) => {
    const [a, b] = [i, i + 1].map((x) => `${((100 * x) / shades.length).toFixed(2)}%`);
    return `var(--token-${shade}) ${a} ${b}`;
  });
  const stripes = stops.length > 1 && { background: `linear-gradient(90deg, ${stops.join(", ")})` };
  return el(
    "span",
    { class: "part", "data-k": k },
    el("span", { class: `as-text c${shades[0]}`, vars: stripes || {} }, word),
    tokens.map((t, i) => el("span", { class: `as-id c${shades[i]}` }, String(t.id))),
  );
}
