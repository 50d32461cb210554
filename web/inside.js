// Inside: attention maps of all heads for a prompt, and each layer's prediction of the next token.

import { ApiError, request } from "./api.js";
import { attentionCard, drawMap } from "./attention.js";
import { $, el, inSight, memory, notice, remember } from "./dom.js";
import { writable } from "./examples.js";
import { visibleToken } from "./text.js";

const EXAMPLES = ["How long is a string?", "how long is a string", "the "];

let data = null; // the latest answer
let controller = null;

export function start() {
  suggest();
  remember($("inside-prompt"), "inside");
  $("look").addEventListener("click", look);
  $("view-inside").addEventListener("keydown", (e) => {
    if (e.key !== "Enter" || !(e.ctrlKey || e.metaKey)) return;
    e.preventDefault();
    look();
  });
  $("model").addEventListener("change", () => {
    suggest();
    if (data && data.model !== $("model").value) look();
  });
  addEventListener("themechange", () => data && draw());
  $("inside-result").append(
    notice(
      "empty",
      "Nothing to look at yet.",
      "Give the model a short prompt to see which earlier tokens every head attends to, " +
        "and which next token every layer predicts.",
    ),
  );
}

/** On an empty page: put in an example that the model's vocabulary can encode. */
async function suggest() {
  const field = $("inside-prompt");
  const fresh = () =>
    field.value === "" && document.activeElement !== field && memory.get("inside", null) === null;
  if (!fresh() || $("model").disabled) return;
  const [first] = await writable(EXAMPLES, $("model").value);
  if (first && fresh()) field.value = first;
}

async function look() {
  controller?.abort();
  controller = new AbortController();
  const prompt = $("inside-prompt").value;
  const result = $("inside-result");
  if (prompt === "")
    return result.replaceChildren(
      notice("empty", "The prompt is empty.", "Type at least one character."),
    );
  if (!data) result.replaceChildren(notice("busy", "Reading the prompt"));
  else result.classList.add("stale");
  try {
    const model = $("model").value;
    data = { model, ...(await request("/inspect", { model, prompt }, controller.signal)) };
    draw();
  } catch (e) {
    if (e.name === "AbortError") return;
    if (!(e instanceof ApiError)) throw e;
    data = null;
    const lost = e.status === 0;
    result.replaceChildren(
      inSight(
        notice(
          lost ? "cut" : "error",
          lost ? "The server does not answer." : "The model cannot show this.",
          lost ? null : e.message,
          e.status === 400 ? [] : [["Try again", look]], // a 400 would only repeat itself
        ),
      ),
    );
  }
  result.classList.remove("stale");
}

function draw() {
  const cut =
    data.cut &&
    el(
      "p",
      { class: "hint" },
      `The prompt is long: its last ${data.tokens.length} tokens are shown.`,
    );
  $("inside-result").replaceChildren(...[cut].filter(Boolean), attentionCard(data), lensCard());
  drawMap();
}

// ---- next token, layer by layer ----

/** The server sends probabilities with four decimals, so no more are shown. */
const rounded = (p) => (p < 5e-5 ? "<0.01%" : `${(100 * p).toFixed(p < 0.1 ? 2 : 1)}%`);

function lensCard() {
  const last = data.layers.length - 1;
  const winner = data.layers[last][0].id;
  const rows = data.layers.map((top, l) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, l === 0 ? "embedding" : l === last ? `${l} (output)` : String(l)),
      top.map((t) =>
        el(
          "td",
          {
            vars: { "--shade": `${(45 * t.p).toFixed(1)}%` },
            class: t.id === winner ? "winner" : null,
            title: `id ${t.id}`,
          },
          el("span", { class: "mono" }, visibleToken(t.text)),
          el("span", { class: "number" }, rounded(t.p)),
        ),
      ),
    ),
  );
  return el(
    "article",
    { class: "card lens" },
    el(
      "header",
      {},
      el("h2", {}, "Next token, layer by layer"),
      el(
        "p",
        { class: "hint" },
        "The final norm and the head, applied after every layer (logit lens). " +
          "Framed: the likeliest token at the output.",
      ),
    ),
    el(
      "div",
      {
        class: "scroll",
        tabindex: 0,
        role: "group",
        "aria-label": "Likeliest next tokens by layer",
      },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col" }, "layer"),
            el("th", { scope: "col", colspan: data.layers[0].length }, "likeliest next tokens"),
          ),
        ),
        el("tbody", {}, rows),
      ),
    ),
  );
}
