// The settings of a continuation; the page remembers them.

import { $, count, el, memory } from "./dom.js";

const SETTINGS = [
  {
    name: "temperature",
    label: "Temperature",
    value: 0.8,
    min: 0,
    max: 2,
    step: 0.05,
    help: "0 takes the likeliest token, above 1 is wilder",
  },
  {
    name: "top_p",
    label: "Top p",
    value: 1,
    min: 0.01,
    max: 1,
    step: 0.01,
    help: "draw from the likeliest tokens of this probability together",
  },
  {
    name: "top_k",
    label: "Top k",
    value: 0,
    min: 0,
    max: 200,
    step: 1,
    help: "draw from this many likeliest tokens; 0: from all",
  },
  {
    name: "max_tokens",
    label: "Max tokens",
    value: 200,
    min: 1,
    max: 1000,
    step: 1,
    help: "length of a continuation",
  },
];

/** By name; seed is a string, empty for any. */
export const values = {
  seed: "",
  ...Object.fromEntries(SETTINGS.map((s) => [s.name, s.value])),
  ...memory.get("settings", {}),
};

/** What is known of the model. */
function drawFacts() {
  const { parameters, context } = $("model").selectedOptions[0]?.dataset ?? {};
  const size = parameters >= 1e6 ? `${(parameters / 1e6).toFixed(2)}M` : count(Number(parameters));
  $("facts").textContent = parameters
    ? `${size} parameters, a context of ${count(Number(context))} tokens`
    : "";
}

export function drawSettings() {
  $("model").addEventListener("change", drawFacts);
  drawFacts();
  const rows = SETTINGS.map(({ name, label, min, max, step, help }) => {
    const options = { min, max, step, value: values[name] };
    const range = el("input", { type: "range", ...options, tabindex: -1, "aria-hidden": true });
    const number = el("input", {
      type: "number",
      id: `set-${name}`,
      ...options,
      max: null,
      "aria-describedby": `help-${name}`,
    });
    const set = (from, to) => {
      if (from.value === "" || !from.validity.valid) return;
      values[name] = Number(from.value);
      to.value = from.value;
      memory.set("settings", values);
    };
    range.addEventListener("input", () => set(range, number));
    number.addEventListener("input", () => set(number, range));
    number.addEventListener("change", () => (number.value = values[name]));
    return setting(name, label, help, number, range);
  });
  const seed = el("input", {
    type: "text",
    inputmode: "numeric",
    id: "set-seed",
    value: values.seed,
    placeholder: "any",
    pattern: "\\d*",
    "aria-describedby": "help-seed",
  });
  seed.addEventListener("input", () => {
    if (!seed.validity.valid) return;
    values.seed = seed.value;
    memory.set("settings", values);
  });
  rows.push(
    setting("seed", "Seed", "the same seed writes the same text; empty: a new one each time", seed),
  );
  $("settings").replaceChildren(...rows);
  $("settings").addEventListener("submit", (e) => e.preventDefault());
  $("settings-toggle").addEventListener("click", () => {
    const open = $("settings-toggle").getAttribute("aria-expanded") !== "true";
    $("settings-toggle").setAttribute("aria-expanded", open);
  });
}

function setting(name, label, help, input, range = null) {
  return el(
    "div",
    { class: "setting" },
    el("div", { class: "setting-head" }, el("label", { for: `set-${name}` }, label), input),
    range,
    el("p", { class: "hint", id: `help-${name}` }, help),
  );
}
