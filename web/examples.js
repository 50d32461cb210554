// Examples of prompts on an empty page, of those that the model's vocabulary can encode.

import { ApiError, request } from "./api.js";
import { $, el } from "./dom.js";

const BEGINNINGS = ["Once upon a time", "ROMEO:", "def ", "the "];
const SHOWN = 3;

/** Those of the texts that a model's tokenizer can encode, in the same order. */
export async function writable(texts, model) {
  const knows = async (text) => {
    try {
      await request("/tokenize", { prompt: text, tokenizer: model });
      return true;
    } catch (e) {
      if (!(e instanceof ApiError)) throw e;
      return false;
    }
  };
  const known = await Promise.all(texts.map(knows));
  return texts.filter((_, i) => known[i]);
}

/** The content of an empty output. onpick is called with the example that is pressed. */
export function placeholder(onpick) {
  const chips = el("div", { id: "examples", class: "chips" });
  const chip = (text, label) =>
    el(
      "button",
      { type: "button", class: "example", disabled: $("go").disabled, onclick: () => onpick(text) },
      label,
    );
  chips.append(chip("", "Let the model begin"));
  if (!$("go").disabled)
    writable(BEGINNINGS, $("model").value).then((texts) =>
      chips.append(
        ...texts.slice(0, SHOWN).map((t) => chip(t, el("span", { class: "mono" }, t.trim()))),
      ),
    );
  return el(
    "div",
    { class: "placeholder" },
    el(
      "p",
      {},
      "The continuation appears here, token by token. Click a token to see its alternatives " +
        "and to continue from one of them.",
    ),
    el("p", {}, "For a start:"),
    chips,
  );
}
