// Complete: a streamed continuation. A click on a token shows its alternatives; the model can
// continue from one of these. Each request and each chosen alternative makes a new version; earlier
// versions stay.

import * as alternatives from "./alternatives.js";
import { ApiError, stream } from "./api.js";
import { contextOf, startCounting } from "./context.js";
import { $, copyText, el, remember } from "./dom.js";
import { placeholder } from "./examples.js";
import { drawOutcome } from "./outcome.js";
import { drawParts, drawVersion, listen, partElement } from "./output.js";
import { drawSettings, sampling, values } from "./settings.js";
import { offer } from "./snippets.js";
import { restore, store, Version } from "./versions.js";

const KEPT = 50; // the most versions

let [versions, shown] = restore(); // shown: index of the version on the page
let running = null; // AbortController of the request under way

export function start() {
  drawSettings();
  remember($("prompt"), "prompt");
  fit();
  $("prompt").addEventListener("input", () => {
    fit();
    $("after").classList.add("read"); // an error must not cover the prompt that is being corrected
  });
  $("go").addEventListener("click", begin);
  const ready = () => {
    $("go").disabled = $("model").disabled;
    // the examples and buttons depend on the model, which may be known only later
    if (versions[shown]) refresh([versions[shown]]);
    else draw();
  };
  $("model").addEventListener("change", ready);
  $("stop").addEventListener("click", stop);
  $("copy").addEventListener("click", () => {
    const { prompt, text } = versions[shown];
    copyText(prompt + text, $("copy"));
  });
  $("view-complete").addEventListener("keydown", (e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) {
      e.preventDefault();
      begin();
    } else if (e.key === "Escape") {
      if (!alternatives.close(true)) stop();
    }
  });
  listen((k) => (k === null ? alternatives.close() : openPart(k)));
  document.addEventListener("pointerdown", (e) => {
    if (!e.target.closest(".popup") && !$("output").contains(e.target)) alternatives.close();
  });
  addEventListener("resize", () => alternatives.close());
  addEventListener("pagehide", () => store(versions, shown));
  draw();
  ready();
  startCounting();
}

export function show() {
  $("view-complete").querySelector(".columns").append($("settings-panel")); // Chat shows it, too
  offer(request);
}

export function hide() {
  alternatives.close();
}

function fit() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, 360)}px`;
}

// ---- asking for a continuation ----

/** The body of the request that Complete would send now. */
function request() {
  const { seed } = values;
  const body = { model: $("model").value, prompt: $("prompt").value, ...sampling() };
  return seed === "" ? body : { ...body, seed: Number(seed) };
}

function begin() {
  if ($("go").disabled) return; // the models are not known yet
  const { model, prompt } = request();
  const seed = values.seed === "" ? Math.floor(Math.random() * 1e6) : Number(values.seed);
  add(Array.from({ length: values.n }, () => new Version({ model, prompt, seed })));
}

/** Show the first of some new versions, and ask the model to continue them. */
function add(fresh) {
  stop();
  versions.push(...fresh);
  versions = versions.slice(-Math.max(KEPT, fresh.length));
  shown = versions.length - fresh.length;
  run(fresh);
  draw();
}

/** Ask for more tokens of some versions, which must have equal tokens so far. */
async function run(asked, more = values.max_tokens) {
  stop();
  alternatives.close();
  const controller = (running = new AbortController());
  $("after").classList.remove("read");
  for (const version of asked) version.begin(more, asked);
  refresh(asked);
  const { n, ...others } = sampling();
  const body = asked[0].request(others, contextOf(asked[0].model));
  if (asked.length > 1) body.n = asked.length;
  let [state, error] = ["done", null];
  try {
    await stream("/v1/completions", body, controller.signal, (chunk) => {
      if (controller.signal.aborted) return;
      for (const choice of chunk.choices ?? []) take(asked[choice.index ?? 0], choice);
    });
  } catch (e) {
    if (e.name === "AbortError") state = "stopped";
    else if (e instanceof ApiError) {
      state = e.status === 0 ? "cut" : "error";
      error = { ...e, message: e.message };
    } else throw e;
  }
  for (const version of asked)
    if (version.state !== "done") Object.assign(version, { state, error });
  if (running === controller) running = null;
  refresh(asked);
  store(versions, shown);
}

function stop() {
  running?.abort();
  running = null;
}

function take(version, choice) {
  const last = Math.max(0, version.parts.length - 1);
  const grew = version.parts[last]?.[1];
  version.take(choice);
  if (versions[shown] !== version) return;
  // the part that was the last one may have another token now, or have lost its end
  const changed = version.parts[last]?.[1] !== grew || version.beyond > 0;
  drawParts(version, changed ? last : last + 1);
  refresh([version]);
}

// ---- the page ----

function draw() {
  alternatives.close();
  const version = versions[shown];
  drawChooser();
  if (version) drawVersion(version);
  else $("output").replaceChildren(placeholder(tryOut));
  refresh([version]);
}

/** Draw what surrounds the text again, if the version on the page is one of these changed ones. */
function refresh(changed) {
  const version = versions[shown];
  $("stop").hidden = !running;
  if (!changed.includes(version)) return;
  $("copy").hidden = !version || version.tokens.length === 0;
  const writes = version?.state === "waiting" || version?.state === "streaming";
  $("output").classList.toggle("streaming", writes);
  drawOutcome(version, {
    start: begin,
    again: () => run(version.together, version.asked),
    on: (from, drop) => {
      const refused = from.state === "error"; // then so were all versions of that request
      const all = refused ? from.together : [from];
      for (const version of all) version.dropping ||= drop;
      const left = from.asked - (from.state === "cut" ? from.fresh : 0);
      run(all, from.state === "cut" || refused ? Math.max(1, left) : values.max_tokens);
    },
  });
}

/** Complete an example that was pressed. */
function tryOut(prompt) {
  $("prompt").value = prompt;
  $("prompt").dispatchEvent(new Event("input"));
  $("go").focus({ preventScroll: true }); // the pressed button is removed
  begin();
}

function drawChooser() {
  const box = $("versions");
  box.hidden = versions.length < 2;
  const button = (label, sign, to) =>
    el(
      "button",
      {
        class: "quiet icon",
        type: "button",
        "aria-label": label,
        disabled: !versions[to],
        onclick: () => {
          shown = to;
          draw();
          box.querySelector(`[aria-label="${label}"]:enabled`)?.focus();
        },
      },
      sign,
    );
  box.replaceChildren(
    button("Previous version", "‹", shown - 1),
    el("span", {}, `${shown + 1} of ${versions.length}`),
    button("Next version", "›", shown + 1),
  );
}

// ---- another token ----

function openPart(k) {
  const version = versions[shown];
  const first = version.parts[k][0];
  alternatives.open(partElement(k), first, version.part(k), (i, option) => {
    const token = { ...option, top: version.tokens[i].top, picked: true };
    const { model, prompt, promptIds, seed, dropping } = version;
    const tokens = [...version.tokens.slice(0, i), token];
    add([new Version({ model, prompt, promptIds, seed, dropping, tokens })]);
  });
}
