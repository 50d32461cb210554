// Complete: a streamed continuation whose tokens can be looked at, and continued from another one.
//
// A version is one continuation: the prompt, its tokens so far and how it ended. Asking again and
// picking another token make new versions; the old ones stay.

import { ApiError, stream } from "./api.js";
import { $, count, el, harmless, memory, notice, percent, plural, short, tokenBytes, visibleToken } from "./dom.js";

const SETTINGS = [
  // name, label, default, min, max, step, explanation
  ["temperature", "Temperature", 0.8, 0, 2, 0.05, "0 takes the likeliest token, above 1 is wilder"],
  ["top_p", "Top p", 1, 0.01, 1, 0.01, "draw from the likeliest tokens of this probability together"],
  ["top_k", "Top k", 0, 0, 200, 1, "draw from this many likeliest tokens; 0: from all"],
  ["max_tokens", "Max tokens", 200, 1, 1000, 1, "length of a continuation"],
];
const ALTERNATIVES = 5;
const KEPT = 50; // versions
const MAX_BITS = 8; // a token of 1/256 or less has the full shade

let values; // of the settings
const versions = [];
let shown = -1; // index of the version on the page
let running = null; // AbortController of the request under way
let popup = null;

export function start() {
  values = { seed: "", ...Object.fromEntries(SETTINGS.map((s) => [s[0], s[2]])), ...memory.get("settings", {}) };
  drawSettings();
  $("prompt").value = memory.get("prompt", "");
  fit();
  $("prompt").addEventListener("input", fit);
  $("go").addEventListener("click", begin);
  $("stop").addEventListener("click", stop);
  $("copy").addEventListener("click", copy);
  $("model").addEventListener("change", drawFacts);
  drawFacts();
  $("view-complete").addEventListener("keydown", (e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) {
      e.preventDefault();
      begin();
    } else if (e.key === "Escape") {
      if (popup) closePopup(true);
      else stop();
    }
  });
  const output = $("output");
  output.addEventListener("click", (e) => {
    const i = index(e.target);
    if (i !== null) openPopup(i);
    else closePopup(false);
  });
  output.addEventListener("keydown", moveBetweenTokens);
  document.addEventListener("pointerdown", (e) => {
    if (popup && !popup.contains(e.target) && !output.contains(e.target)) closePopup(false);
  });
  addEventListener("resize", () => closePopup(false));
  draw();
}

export function hide() {
  closePopup(false);
}

function fit() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, 360)}px`;
}

// ---- settings ----

function drawFacts() {
  const { parameters, context } = $("model").selectedOptions[0]?.dataset ?? {};
  const size = parameters >= 1e6 ? `${(parameters / 1e6).toFixed(2)}M` : count(Number(parameters));
  $("facts").textContent = parameters ? `${size} parameters, a context of ${count(Number(context))} tokens` : "";
}

function drawSettings() {
  const rows = SETTINGS.map(([name, label, , min, max, step, help]) => {
    const options = { min, max, step, value: values[name] };
    const range = el("input", { type: "range", ...options, tabindex: -1, "aria-hidden": true });
    const number = el("input", { type: "number", id: `set-${name}`, ...options, max: null, "aria-describedby": `help-${name}` });
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
  const seed = el("input", { type: "text", inputmode: "numeric", id: "set-seed", value: values.seed, placeholder: "any", pattern: "\\d*", "aria-describedby": "help-seed" });
  seed.addEventListener("input", () => {
    if (!seed.validity.valid) return;
    values.seed = seed.value;
    memory.set("settings", values);
  });
  rows.push(setting("seed", "Seed", "the same seed writes the same text; empty: a new one each time", seed));
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

// ---- asking for a continuation ----

function begin() {
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
  closePopup(false);
  const controller = (running = new AbortController());
  Object.assign(version, { state: "waiting", error: null, began: performance.now(), first: null, finish: null, fresh: 0, asked: more });
  buttons();
  after(version);
  const { temperature, top_p, top_k } = values;
  const body = {
    model: version.model,
    prompt: version.prompt,
    temperature, top_p, top_k,
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
    else if (e instanceof ApiError) Object.assign(version, { state: e.status === 0 ? "cut" : "error", error: e, left: more - version.fresh });
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
    top: Object.entries(l.top_logprobs[i]).map(([t, logprob]) => ({ id: l.top_token_ids[i][t], text: t, logprob })),
  }));
}

// ---- the text ----

function draw() {
  closePopup(false);
  const output = $("output");
  const version = versions[shown];
  output.replaceChildren();
  drawVersions();
  buttons();
  if (!version) {
    $("after").replaceChildren();
    $("stats").textContent = "";
    output.append(el("p", { class: "placeholder" }, "The continuation appears here, token by token. Click a token to see what else the model considered, and go on from there."));
    return;
  }
  if (version.prompt) output.append(el("span", { class: "prompt" }, version.prompt));
  append(version, 0);
  after(version);
}

function append(version, from) {
  const output = $("output");
  const follows = innerHeight + scrollY >= document.body.scrollHeight - 40;
  for (let i = from; i < version.tokens.length; i++) output.append(tokenElement(version.tokens[i], i));
  if (follows && running) scrollTo(0, document.body.scrollHeight);
}

function tokenElement(token, i) {
  const surprise = Math.min(1, bits(token.logprob) / MAX_BITS);
  const classes = ["token", token.picked && "picked", token.shown.includes("\n") && "line-end", token.shown === "" && "part"];
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

const bits = (logprob) => Math.abs(logprob / Math.LN2);

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
    openPopup(i);
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
    el("button", { class: "quiet icon", type: "button", "aria-label": "Previous version", disabled: shown <= 0, onclick: go(shown - 1) }, "‹"),
    el("span", {}, `${shown + 1} of ${versions.length}`),
    el("button", { class: "quiet icon", type: "button", "aria-label": "Next version", disabled: shown >= versions.length - 1, onclick: go(shown + 1) }, "›"),
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
    const kept = version.tokens.length ? `The connection broke after ${plural(version.tokens.length, "token")}. What came is kept.` : "The server does not answer.";
    const actions = [["Start over", begin]];
    if (version.tokens.length) actions.unshift(["Go on from here", () => run(version, Math.max(1, version.left))]);
    box.append(notice("cut", kept, "Is the server still running? You can go on when it is back.", actions));
  }
  if (state === "error") {
    const wait = error.retryAfter ? ` Try again in ${plural(error.retryAfter, "second")}.` : "";
    const title = error.status === 429 ? "The server is busy." : "The server refused this request.";
    box.append(notice("error", title, error.message + wait, [["Try again", () => run(version)]]));
  }
  if (state === "done" && version.tokens.length === 0) box.append(notice("empty", "The model ended the text at once."));
  $("stats").replaceChildren(...stats(version));
}

function stats(version) {
  const { tokens } = version;
  if (tokens.length === 0) return [];
  const items = [plural(tokens.length, "token")];
  if (version.fresh > 1) items.push(`${short(((version.fresh - 1) * 1000) / Math.max(1, version.last - version.first))} tokens/s`);
  if (version.first) items.push(`first after ${count(Math.round(version.first - version.began))} ms`);
  items.push(`${short(tokens.reduce((sum, t) => sum + bits(t.logprob), 0) / tokens.length)} bits per token`);
  items.push(`seed ${version.seed}`);
  const end = { stopped: "stopped by you", cut: "cut off" }[version.state];
  const full = version.fresh < version.asked;
  const finish = { stop: "the model ended the text", length: full ? "the context is full" : "as long as asked for" }[version.finish];
  if (end || (version.state === "done" && finish)) items.push(end ?? finish);
  return items.map((item) => el("span", {}, item));
}

// ---- the alternatives of a token ----

function openPopup(i) {
  closePopup(false);
  const version = versions[shown];
  const token = version.tokens[i];
  const anchor = $("output").querySelectorAll(".token")[i];
  anchor.classList.add("open");
  const options = [...token.top].sort((a, b) => b.logprob - a.logprob);
  const others = 1 - options.reduce((sum, o) => sum + Math.exp(o.logprob), 0);
  popup = el(
    "div",
    { class: "popup", role: "dialog", "aria-label": `Token ${i + 1}: ${visibleToken(token.text)}`, "data-i": i },
    el(
      "header",
      {},
      el("strong", { class: "mono" }, visibleToken(token.text)),
      el("span", { class: "hint" }, `${percent(Math.exp(token.logprob))}, ${short(bits(token.logprob))} bits`),
      el("button", { class: "quiet icon", type: "button", "aria-label": "Close", onclick: () => closePopup(true) }, "×"),
    ),
    el("ul", {}, options.map((o) => optionRow(version, i, o, o.id === token.id))),
    others > 1e-5 && el("p", { class: "others" }, el("span", {}, "all others"), el("span", { class: "number" }, percent(others))),
    el("p", { class: "hint" }, `Token ${i + 1}, id ${token.id}. Probabilities before temperature and filters. Pick another token to go on from it.`),
  );
  popup.addEventListener("keydown", (e) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
    if (!step) return;
    e.preventDefault();
    const all = [...popup.querySelectorAll("li button:not(:disabled)")];
    all[(all.indexOf(document.activeElement) + step + all.length) % all.length]?.focus();
  });
  $("view-complete").append(popup);
  place(anchor);
  // a phone has the alternatives at the bottom of the screen: keep the token in sight above them
  if (getComputedStyle(popup).position === "fixed") {
    document.body.style.paddingBottom = `${popup.offsetHeight}px`;
    const hidden = anchor.getBoundingClientRect().bottom + 24 - popup.getBoundingClientRect().top;
    if (hidden > 0) scrollBy(0, hidden);
  }
  (popup.querySelector("li button:not(:disabled)") ?? popup.querySelector("button")).focus({ preventScroll: true });
}

function optionRow(version, i, option, chosen) {
  const p = Math.exp(option.logprob);
  const button = el(
    "button",
    {
      type: "button",
      class: "option",
      disabled: chosen,
      title: `id ${option.id}`,
      vars: { "--p": `${(100 * p).toFixed(2)}%` },
      onclick: () => pick(version, i, option),
    },
    el("span", { class: "mono" }, visibleToken(option.text)),
    chosen && el("small", {}, "chosen"),
    el("span", { class: "number" }, percent(p)),
  );
  return el("li", {}, button);
}

function pick(version, i, option) {
  const tokens = version.tokens.slice(0, i);
  tokens.push({ ...option, top: version.tokens[i].top, picked: true });
  const { prompt, promptIds, seed, model } = version;
  add({ prompt, promptIds, tokens, seed, model });
}

/** Below the token, inside the window; on a phone the style sheet puts it at the bottom. */
function place(anchor) {
  const box = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
  const panel = $("view-complete").getBoundingClientRect();
  const { offsetWidth: w, offsetHeight: h } = popup;
  const left = Math.max(0, Math.min(box.left - panel.left - 12, panel.width - w));
  const fits = box.bottom + h + 12 < innerHeight || box.top < h + 12;
  popup.style.left = `${left}px`;
  popup.style.top = `${(fits ? box.bottom + 6 : box.top - h - 6) - panel.top}px`;
}

function closePopup(refocus) {
  if (!popup) return;
  const token = $("output").querySelectorAll(".token")[Number(popup.dataset.i)];
  popup.remove();
  popup = null;
  document.body.style.paddingBottom = "";
  token?.classList.remove("open");
  if (refocus) token?.focus({ preventScroll: true });
}
