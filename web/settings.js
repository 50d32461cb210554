// The settings of a continuation or an answer; the page stores them.

import { $, count, el, memory } from "./dom.js";

// from, to, step: of the slider; least, most: bounds for typed numbers (most null: none); neutral:
// the value without effect, if there is one; rare: whether it is under "More".
const SETTINGS = [
  {
    name: "temperature",
    label: "Temperature",
    value: 0.8,
    to: 2,
    step: 0.05,
    most: 100,
    help: "0: always the likeliest token; above 1: more random",
  },
  {
    name: "top_p",
    label: "Top p",
    value: 1,
    from: 0.01,
    to: 1,
    step: 0.01,
    neutral: 1,
    help: "draw from the likeliest tokens that together have this probability",
  },
  {
    name: "top_k",
    label: "Top k",
    value: 0,
    to: 200,
    step: 1,
    most: null,
    neutral: 0,
    help: "draw from so many of the likeliest tokens; 0: from all",
  },
  {
    name: "max_tokens",
    label: "Max tokens",
    value: 200,
    from: 1,
    to: 1000,
    step: 1,
    most: null,
    help: "length of a continuation",
  },
  {
    name: "n",
    label: "Continuations",
    value: 1,
    from: 1,
    to: 8,
    step: 1,
    most: 32,
    neutral: 1,
    rare: true,
    help: "how many are written at once, each as a version",
  },
  {
    name: "min_p",
    label: "Min p",
    value: 0,
    to: 1,
    step: 0.01,
    neutral: 0,
    rare: true,
    help: "leave out tokens with less than this share of the likeliest one's probability",
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    value: 1,
    from: 0.5,
    to: 2,
    step: 0.05,
    least: 0.01,
    most: 100,
    neutral: 1,
    rare: true,
    help: "above 1: tokens that occur in the text so far become less likely",
  },
  {
    name: "presence_penalty",
    label: "Presence penalty",
    value: 0,
    from: -2,
    to: 2,
    step: 0.1,
    neutral: 0,
    rare: true,
    help: "above 0: tokens that were already written become less likely",
  },
  {
    name: "frequency_penalty",
    label: "Frequency penalty",
    value: 0,
    from: -2,
    to: 2,
    step: 0.1,
    neutral: 0,
    rare: true,
    help: "above 0: tokens become less likely each time that they are written",
  },
];

const MOST_STOPS = 4; // the server's bounds
const LONGEST_STOP = 256; // characters

const DEFAULTS = { seed: "", stop: "", ...Object.fromEntries(SETTINGS.map((s) => [s.name, s.value])) };

/** Values by name. seed: a string, empty for a random seed. stop: a stop sequence per line, with
 * escapes. */
export const values = { ...DEFAULTS, ...memory.get("settings", {}) };

/** The settings as fields of a request, without those that have no effect. */
export function sampling() {
  const body = {};
  for (const { name, neutral } of SETTINGS)
    if (values[name] !== neutral) body[name] = values[name];
  const stop = stops(values.stop);
  return stop.length > 0 ? { ...body, stop } : body;
}

const ESCAPES = { "\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\" };

/** The stop sequences in a text with one per line, in which \n, \t, \r and \\ are escapes. */
export const stops = (text) =>
  text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replace(/\\[ntr\\]/g, (escape) => ESCAPES[escape]));

function set(name, value) {
  values[name] = value;
  memory.set("settings", values);
  mark();
}

/** Show the model's size and context. */
function drawFacts() {
  const { parameters, context } = $("model").selectedOptions[0]?.dataset ?? {};
  const size = parameters >= 1e6 ? `${(parameters / 1e6).toFixed(2)}M` : count(Number(parameters));
  $("facts").textContent = parameters
    ? `${size} parameters, a context of ${count(Number(context))} tokens`
    : "";
}

export function drawSettings() {
  if ($("settings").children.length > 0) return; // the other tab has drawn them
  $("model").addEventListener("change", drawFacts);
  $("settings").addEventListener("submit", (e) => e.preventDefault());
  $("settings-toggle").addEventListener("click", () => {
    const open = $("settings-toggle").getAttribute("aria-expanded") !== "true";
    $("settings-toggle").setAttribute("aria-expanded", open);
  });
  $("reset").addEventListener("click", () => {
    Object.assign(values, DEFAULTS);
    memory.set("settings", values);
    drawForm();
    $("settings").querySelector("input").focus();
  });
  drawFacts();
  drawForm();
}

function drawForm() {
  const open = $("more-settings")?.open ?? rareOnes() > 0;
  $("settings").replaceChildren(
    ...SETTINGS.filter((s) => !s.rare).map(numberRow),
    seedRow(),
    el(
      "details",
      { id: "more-settings", open },
      el("summary", {}, "More", el("span", { id: "more-count", class: "hint" })),
      el("div", {}, SETTINGS.filter((s) => s.rare).map(numberRow), stopRow()),
    ),
  );
  mark();
}

/** How many settings under "More" have an effect. */
const rareOnes = () =>
  SETTINGS.filter((s) => s.rare && values[s.name] !== s.neutral).length +
  (stops(values.stop).length > 0);

function mark() {
  $("more-count").textContent = rareOnes() > 0 ? ` (${rareOnes()} set)` : "";
  $("reset").hidden = Object.keys(DEFAULTS).every((name) => values[name] === DEFAULTS[name]);
}

function numberRow({ name, label, from = 0, to, step, least = from, most = to, help }) {
  const value = values[name];
  const range = el("input", {
    ...{ type: "range", min: from, max: to, step, value },
    ...{ tabindex: -1, "aria-hidden": true },
  });
  const number = el("input", {
    ...{ type: "number", id: `set-${name}`, min: least, max: most, value },
    step: step === 1 ? 1 : "any",
    "aria-describedby": `help-${name}`,
  });
  const take = (source, other) => {
    if (source.value === "" || !source.validity.valid) return;
    other.value = source.value;
    set(name, Number(source.value));
  };
  range.addEventListener("input", () => take(range, number));
  number.addEventListener("input", () => take(number, range));
  number.addEventListener("change", () => (number.value = values[name]));
  number.addEventListener("keydown", (e) => {
    const sign = { ArrowUp: 1, ArrowDown: -1 }[e.key];
    if (!sign || step === 1) return; // step is "any": here arrow keys move by the slider's step
    e.preventDefault();
    const next = Number((values[name] + sign * step).toFixed(6));
    number.value = Math.max(least, Math.min(most ?? Infinity, next));
    take(number, range);
  });
  return row(name, label, help, number, range);
}

function seedRow() {
  const input = el("input", {
    ...{ type: "text", inputmode: "numeric", id: "set-seed", value: values.seed },
    ...{ placeholder: "any", pattern: "\\d{1,15}", "aria-describedby": "help-seed" },
  });
  input.addEventListener("input", () => {
    if (input.validity.valid) set("seed", input.value);
  });
  const help = "the same seed gives the same text; empty: a new seed each time";
  return row("seed", "Seed", help, input);
}

function stopRow() {
  const field = el("textarea", {
    ...{ id: "set-stop", class: "field mono", rows: 2, spellcheck: "false" },
    ...{ placeholder: "\\n\\n", "aria-describedby": "help-stop" },
  });
  field.value = values.stop;
  field.addEventListener("input", () => {
    const found = stops(field.value);
    const long = found.some((stop) => [...stop].length > LONGEST_STOP);
    const wrong =
      found.length > MOST_STOPS
        ? `at most ${MOST_STOPS} stop sequences`
        : long && `at most ${LONGEST_STOP} characters each`;
    field.setCustomValidity(wrong || "");
    $("help-stop").textContent = wrong || STOP_HELP;
    if (!wrong) set("stop", field.value);
  });
  return row("stop", "Stop sequences", STOP_HELP, null, field);
}

const STOP_HELP = "one per line; the text ends before the first that occurs; \\n is a line break";

function row(name, label, help, input, wide = null) {
  return el(
    "div",
    { class: "setting" },
    el("div", { class: "setting-head" }, el("label", { for: `set-${name}` }, label), input),
    wide,
    el("p", { class: "hint", id: `help-${name}` }, help),
  );
}
