// How much of the model's context the prompt takes, counted while it is typed.

import { ApiError, request } from "./api.js";
import { $, count, debounce, el } from "./dom.js";

let asked = 0; // number of the latest request: late answers to earlier ones are dropped

/** A model's context in tokens; 0 if it is not known. */
export function contextOf(model) {
  const option = [...$("model").options].find((o) => o.value === model);
  return Number(option?.dataset.context ?? 0);
}

export function startCounting() {
  const later = debounce(ask, 200);
  $("prompt").addEventListener("input", later);
  $("model").addEventListener("change", ask);
  ask();
}

async function ask() {
  const mine = ++asked;
  const model = $("model").value;
  const prompt = $("prompt").value;
  const context = $("model").disabled ? 0 : contextOf(model);
  if (!context) return draw(null, 0);
  let tokens = 0;
  try {
    if (prompt !== "") tokens = (await request("/tokenize", { prompt, tokenizer: model })).count;
  } catch (e) {
    if (!(e instanceof ApiError)) throw e;
    tokens = null; // a character that the vocabulary does not have; Complete will say which
  }
  if (mine === asked) draw(tokens, context);
}

function draw(tokens, context) {
  const box = $("room");
  box.hidden = tokens === null;
  if (tokens === null) return;
  const over = tokens > context;
  box.classList.toggle("over", over);
  box.replaceChildren(
    el("i", {
      class: "bar",
      "aria-hidden": true,
      vars: { "--p": `${Math.min(100, (100 * tokens) / context)}%` },
    }),
    el("b", {}, count(tokens)),
    ` of ${count(context)} tokens`,
    over ? `: ${count(tokens - context)} too many` : "",
  );
}
