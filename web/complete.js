// Complete: a streamed continuation whose tokens can be looked at, and continued from another one.
//
// A version is one continuation: the prompt, its tokens so far and how it ended. Asking again and
// picking another token make new versions; the old ones stay.

import * as alternatives from "./alternatives.js";
import { ApiError, stream } from "./api.js";
import {
  $,
  bits,
  count,
  el,
  harmless,
  memory,
  notice,
  plural,
  short,
  tokenBytes,
  visibleToken,
} from "./dom.js";
import { drawSettings, values } from "./settings.js";

const ALTERNATIVES = 5;
const KEPT = 50; // versions
const MAX_BITS = 8; // a token of 1/256 or less has the full shade

const versions = [];
let shown = -1; // index of the version on the page
let running = null; // AbortController of the request under way

export function start() {
  drawSettings();
  $("prompt").value = memory.get("prompt", "");
  fit();
  $("prompt").addEventListener("input", fit);
  $("go").addEventListener("click", begin);
  const ready = () => ($("go").disabled = $("model").disabled);
  $("model").addEventListener("change", ready);
  ready();
  $("stop").addEventListener("click", stop);
  $("copy").addEventListener("click", copy);
  $("view-complete").addEventListener("keydown", (e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) {
      e.preventDefault();
      begin();
    } else if (e.key === "Escape") {
      if (!alternatives.close(true)) stop();
    }
  });
  const output = $("output");
  output.addEventListener("click", (e) => {
    const i = index(e.target);
    if (i !== null) openAt(i);
    else alternatives.close();
  });
  output.addEventListener("keydown", moveBetweenTokens);
  document.addEventListener("pointerdown", (e) => {
    if (!e.target.closest(".popup") && !output.contains(e.target)) alternatives.close();
  });
  addEventListener("resize", () => alternatives.close());
  draw();
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

function begin() {
  if ($("go").disabled) return; // the models are not known yet
  stop();
  memory.set("prompt", $("prompt").value);
  const seed = values.seed === "" ? Math.floor(Math.random() * 1e6) : Number(values.seed);
  add({ prompt: $("prompt").value, tokens: [], seed });
}

/** Show a new version and let the model go on with it. */
function add(version) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // keeps what is half a character
  version = { model: $("model").value, text: "", state: "waiting", fresh: 0, decoder, ...version };
  version.tokens.forEach((t) => decode(version, t));
  versions.push(version);
  if (versions.length > KEPT) versions.shift();
  shown = versions.length - 1;
  draw();
  run(version);
}

/** What a token adds to the text: the characters that it completes, maybe none. */
function decode(version, token) {
  token.shown = version.decoder.decode(tokenBytes(token.text), { stream: true });
  version.text += token.shown;
}

async function run(version, more = values.max_tokens) {
  stop();
  alternatives.close();
  const controller = (running = new AbortController());
  Object.assign(version, {
    state: "waiting",
    error: null,
    began: performance.now(),
    first: null,
    finish: null,
    fresh: 0,
    asked: more,
  });
  buttons();
  after(version);
  const { temperature, top_p, top_k } = values;
  const body = {
    model: version.model,
    prompt: version.prompt,
    temperature,
    top_p,
    top_k,
    max_tokens: more,
    seed: version.seed,
    logprobs: ALTERNATIVES,
    return_token_ids: true,
  };
  if (version.promptIds) {
    // go on behind these very tokens: their text might be cut into others
    body.prompt = [...version.promptIds, ...version.tokens.map((t) => t.id)];
  }
  try {
    await stream("/v1/completions", body, controller.signal, (chunk) => {
      if (!controller.signal.aborted) take(version, chunk);
    });
    version.state = "done";
  } catch (e) {
    if (e.name === "AbortError") version.state = "stopped";
    else if (e instanceof ApiError)
      Object.assign(version, {
        state: e.status === 0 ? "cut" : "error",
        error: e,
        left: more - version.fresh,
      });
    else throw e;
  }
  if (running === controller) running = null;
  version.took = performance.now() - version.began;
  buttons();
  if (versions[shown] === version) after(version);
}

function stop() {
  running?.abort();
  running = null;
}

/** A chunk of the stream: text, and the tokens it came from with their alternatives. */
function take(version, chunk) {
  const choice = chunk.choices?.[0];
  if (!choice) return;
  if (version.first === null) version.first = performance.now();
  version.state = "streaming";
  version.last = performance.now();
  if (choice.finish_reason) version.finish = choice.finish_reason;
  version.promptIds ??= choice.prompt_token_ids; // in the first chunk
  const from = version.tokens.length;
  for (const token of tokensOf(choice)) {
    version.tokens.push(token);
    decode(version, token);
  }
  version.fresh += version.tokens.length - from;
  if (versions[shown] !== version) return;
  append(version, from);
  after(version);
}

function tokensOf({ token_ids: ids, logprobs: l }) {
  return l.tokens.map((text, i) => ({
    id: ids[i],
    text, // of half a character: bytes:\xe4
    logprob: l.token_logprobs[i],
    top: Object.entries(l.top_logprobs[i]).map(([t, logprob]) => ({
      id: l.top_token_ids[i][t],
      text: t,
      logprob,
    })),
  }));
}

// ---- the text ----

function draw() {
  alternatives.close();
  const output = $("output");
  const version = versions[shown];
  output.replaceChildren();
  drawVersions();
  buttons();
  if (!version) {
    $("after").replaceChildren();
    $("stats").textContent = "";
    output.append(
      el(
        "p",
        { class: "placeholder" },
        "The continuation appears here, token by token. Click a token to see what else " +
          "the model considered, and go on from there.",
      ),
    );
    return;
  }
  if (version.prompt) output.append(el("span", { class: "prompt" }, version.prompt));
  append(version, 0);
  after(version);
}

function append(version, from) {
  const output = $("output");
  const follows = innerHeight + scrollY >= document.body.scrollHeight - 40;
  for (let i = from; i < version.tokens.length; i++)
    output.append(tokenElement(version.tokens[i], i));
  if (follows && running) scrollTo(0, document.body.scrollHeight);
}

function tokenElement(token, i) {
  const surprise = Math.min(1, bits(token.logprob) / MAX_BITS);
  const classes = [
    "token",
    token.picked && "picked",
    token.shown.includes("\n") && "line-end",
    token.shown === "" && "part",
  ];
  return el(
    "span",
    {
      class: classes.filter(Boolean).join(" "),
      role: "button",
      tabindex: i === 0 ? 0 : -1,
      "data-i": i,
      vars: { "--shade": `${(surprise * 45).toFixed(1)}%` },
    },
    token.shown ? harmless(token.shown) : visibleToken(token.text),
  );
}

const index = (node) => {
  const token = node.closest?.(".token");
  return token ? Number(token.dataset.i) : null;
};

function moveBetweenTokens(e) {
  const i = index(e.target);
  if (i === null) return;
  if (e.key === "Enter" || e.key === " ") {
    if (e.ctrlKey || e.metaKey) return;
    e.preventDefault();
    openAt(i);
    return;
  }
  const all = $("output").querySelectorAll(".token");
  const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[e.key];
  if (to === undefined || !all[to]) return;
  e.preventDefault();
  all[i].tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
}

function drawVersions() {
  const box = $("versions");
  box.hidden = versions.length < 2;
  const go = (i) => () => {
    shown = i;
    draw();
  };
  box.replaceChildren(
    el(
      "button",
      {
        class: "quiet icon",
        type: "button",
        "aria-label": "Previous version",
        disabled: shown <= 0,
        onclick: go(shown - 1),
      },
      "‹",
    ),
    el("span", {}, `${shown + 1} of ${versions.length}`),
    el(
      "button",
      {
        class: "quiet icon",
        type: "button",
        "aria-label": "Next version",
        disabled: shown >= versions.length - 1,
        onclick: go(shown + 1),
      },
      "›",
    ),
  );
}

function buttons() {
  $("stop").hidden = !running;
  $("copy").hidden = !versions[shown] || versions[shown].text === "";
  $("output").classList.toggle("streaming", running !== null);
}

async function copy() {
  const { prompt, text } = versions[shown];
  try {
    await navigator.clipboard.writeText(prompt + text);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("output"));
    $("copy").textContent = "Selected";
  }
  setTimeout(() => ($("copy").textContent = "Copy"), 1500);
}

/** What stands behind the text: how it ended, what to do about it, and the numbers. */
function after(version) {
  const { state, error } = version;
  const box = $("after");
  box.replaceChildren();
  if (state === "waiting") box.append(notice("busy", "Waiting for the first token"));
  if (state === "cut") {
    const kept = version.tokens.length
      ? `The connection broke after ${plural(version.tokens.length, "token")}. What came is kept.`
      : "The server does not answer.";
    const actions = [["Start over", begin]];
    if (version.tokens.length)
      actions.unshift(["Go on from here", () => run(version, Math.max(1, version.left))]);
    box.append(
      notice("cut", kept, "Is the server still running? You can go on when it is back.", actions),
    );
  }
  if (state === "error") {
    const wait = error.retryAfter ? ` Try again in ${plural(error.retryAfter, "second")}.` : "";
    const title = error.status === 429 ? "The server is busy." : "The server refused this request.";
    box.append(notice("error", title, error.message + wait, [["Try again", () => run(version)]]));
  }
  if (state === "done" && version.tokens.length === 0)
    box.append(notice("empty", "The model ended the text at once."));
  $("stats").replaceChildren(...stats(version));
}

function stats(version) {
  const { tokens } = version;
  if (tokens.length === 0) return [];
  const items = [plural(tokens.length, "token")];
  const { began, first, last, fresh } = version;
  const seconds = Math.max(1, last - first) / 1000;
  if (fresh > 1) items.push(`${count(Math.round((fresh - 1) / seconds))} tokens/s`);
  if (first) items.push(`first after ${count(Math.round(first - began))} ms`);
  const surprise = tokens.reduce((sum, t) => sum + bits(t.logprob), 0);
  items.push(`${short(surprise / tokens.length)} bits per token`);
  items.push(`seed ${version.seed}`);
  const end = { stopped: "stopped by you", cut: "cut off" }[version.state];
  const length = fresh < version.asked ? "the context is full" : "as long as asked for";
  const finish = { stop: "the model ended the text", length }[version.finish];
  if (end || (version.state === "done" && finish)) items.push(end ?? finish);
  return items.map((item) => el("span", {}, item));
}

// ---- another token ----

function openAt(i) {
  const version = versions[shown];
  const anchor = $("output").querySelectorAll(".token")[i];
  alternatives.open(anchor, i, version.tokens[i], (option) => pick(version, i, option));
}

function pick(version, i, option) {
  const tokens = version.tokens.slice(0, i);
  tokens.push({ ...option, top: version.tokens[i].top, picked: true });
  const { prompt, promptIds, seed, model } = version;
  add({ prompt, promptIds, tokens, seed, model });
}
