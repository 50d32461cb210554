// Chat: a conversation with a model that was trained on conversations. It uses the settings, and
// their form, of Complete.

import { ApiError, stream } from "./api.js";
import { $, copyText, el, inSight, memory, notice } from "./dom.js";
import { later } from "./outcome.js";
import { drawSettings, sampling, values } from "./settings.js";
import { offer } from "./snippets.js";
import { harmless } from "./text.js";

// Messages in the API's form. If an answer is not complete, its `cut` says why.
let messages = memory.get("chat", []);
let forgotten = 0; // how many of the first messages do not fit into the context any more
let running = null; // AbortController of the running request

export function start() {
  drawSettings();
  $("system").value = memory.get("system", "");
  $("system").addEventListener("input", () => memory.set("system", $("system").value));
  $("ask").addEventListener("submit", (e) => {
    e.preventDefault();
    say();
  });
  $("message").addEventListener("input", fit);
  $("message").addEventListener("keydown", (e) => {
    if (e.key !== "Enter" || e.shiftKey || e.isComposing) return;
    e.preventDefault();
    say();
  });
  $("view-chat").addEventListener("keydown", (e) => e.key === "Escape" && running?.abort());
  $("hush").addEventListener("click", () => running?.abort());
  $("anew").addEventListener("click", () => {
    running?.abort();
    [messages, forgotten] = [[], 0];
    keep();
    draw();
    $("message").focus();
  });
  $("model").addEventListener("change", () => draw());
  addEventListener("pagehide", keep);
}

export function show() {
  $("view-chat").querySelector(".columns").append($("settings-panel"));
  offer(() => {
    const typed = $("message").value.trim();
    const answered = messages.findLastIndex((message) => message.role === "user") + 1;
    return request(typed ? [...messages, { role: "user", content: typed }] : messages.slice(0, answered));
  });
  draw();
}

const keep = () => memory.set("chat", messages);

const chats = (option) => option !== undefined && "chat" in option.dataset;

/** Whether the chosen model can chat. */
const able = () => chats($("model").selectedOptions[0]);

function fit() {
  const field = $("message");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, 240)}px`;
}

// ---- asking ----

/** The body of a request for an answer to the last one of these messages. */
function request(all) {
  const { n, ...others } = sampling(); // without n: a conversation continues with one answer
  const system = $("system").value.trim();
  const body = {
    model: $("model").value,
    messages: [
      ...(system ? [{ role: "system", content: system }] : []),
      ...all.slice(forgotten).map(({ role, content }) => ({ role, content })),
    ],
    ...others,
  };
  return values.seed === "" ? body : { ...body, seed: Number(values.seed) };
}

function say() {
  const content = $("message").value.trim();
  if (!content || running || !able()) return;
  $("message").value = "";
  fit();
  messages.push({ role: "user", content });
  answer();
}

/** Ask for the answer to the last message. */
async function answer() {
  const controller = (running = new AbortController());
  const given = { role: "assistant", content: "", model: $("model").value, cut: null };
  let body = request(messages);
  const before = forgotten;
  messages.push(given);
  draw();
  let error = null;
  try {
    for (;;)
      try {
        await stream("/v1/chat/completions", body, controller.signal, (chunk) => {
          const [choice] = chunk.choices ?? [];
          given.content += choice?.delta?.content ?? "";
          if (choice?.finish_reason === "length") given.cut = "length";
          drawAnswer(given);
        });
        break;
      } catch (e) {
        // too long: the oldest question and its answer are left out
        const room = messages.length - forgotten > 3 && given.content === "";
        if (e.code !== "context_length_exceeded" || !room) throw e;
        forgotten += 2;
        messages.pop();
        body = request(messages);
        messages.push(given);
      }
  } catch (e) {
    if (e.name === "AbortError") given.cut = "stopped";
    else if (e instanceof ApiError) error = e;
    else throw e;
  }
  if (running === controller) running = null;
  if (!messages.includes(given)) return; // a new conversation has begun
  if (error && given.content === "") messages.pop();
  else if (error) given.cut = "broken";
  if (error?.status === 400) takeBack(before);
  keep();
  draw(error);
}

/** Put a message that the server has refused back into its field, to be changed. Messages that were
 * left out to make room for it count again. */
function takeBack(before) {
  const { content } = messages.pop();
  forgotten = Math.min(before, messages.length);
  if ($("message").value !== "") return;
  $("message").value = content;
  fit();
}

/** Ask for another answer in place of the last one. */
function again() {
  if (messages.at(-1)?.role === "assistant") messages.pop();
  answer();
}

// ---- the page ----

const CUT = {
  stopped: "stopped by you",
  length: "max tokens reached, or the context is full",
  broken: "the connection broke",
};

function draw(error = null) {
  const busy = running !== null;
  $("send").disabled = $("message").disabled = !able();
  $("send").hidden = busy;
  $("hush").hidden = !busy;
  $("anew").hidden = messages.length === 0;
  const follows = fieldInSight();
  $("talk").replaceChildren(...messages.map(drawMessage));
  $("talk").setAttribute("aria-busy", busy); // screen readers read an answer when it is complete
  if (messages.length === 0 && able()) $("talk").append(beginning());
  const last = messages.at(-1);
  const after = [];
  if ($("model").disabled) {
    // the models are not known yet
  } else if (!able()) after.push(otherModel());
  else if (error) after.push(drawError(error));
  else if (!busy && last?.role === "user")
    after.push(notice("cut", "This was not answered.", null, [["Ask again", again]]));
  else if (!busy && last)
    after.push(
      el(
        "div",
        { class: "actions" },
        el("button", { type: "button", class: "quiet", onclick: again }, "Another answer"),
        el(
          "button",
          { type: "button", class: "quiet", onclick: (e) => copyText(last.content, e.target) },
          "Copy",
        ),
      ),
    );
  $("after-talk").replaceChildren(...after);
  if (follows && messages.length > 0) inSight($("ask"));
}

/** Whether the message field is visible; then it is kept visible while text is added above it. */
const fieldInSight = () => $("ask").getBoundingClientRect().top < innerHeight;

function drawMessage({ role, content, model, cut }, i) {
  const waits = running !== null && i === messages.length - 1;
  return el(
    "div",
    { class: `message ${role}${i < forgotten ? " forgotten" : ""}${waits ? " streaming" : ""}` },
    el("span", { class: "label" }, role === "user" ? "You" : model),
    el("p", {}, harmless(content)),
    i === forgotten - 1 &&
      el("small", { class: "hint" }, "The model sees only the messages below."),
    cut && el("small", { class: "hint" }, CUT[cut]),
  );
}

function drawAnswer(given) {
  const text = $("talk").lastElementChild?.querySelector("p");
  if (!text || messages.at(-1) !== given) return;
  const follows = fieldInSight();
  text.textContent = harmless(given.content);
  if (follows) inSight($("ask"));
}

const beginning = () =>
  el(
    "p",
    { class: "hint" },
    "Your messages and the model's answers appear here. " +
      "The model knows only what it was trained on.",
  );

function otherModel() {
  const other = [...$("model").options].find(chats);
  const choose = () => {
    $("model").value = other.value;
    $("model").dispatchEvent(new Event("change"));
  };
  return notice(
    "empty",
    "This model does not chat.",
    "It was not trained on conversations, but it can continue a text: see Complete.",
    other ? [[`Choose ${other.value}`, choose]] : [],
  );
}

function drawError(error) {
  const title =
    { 0: "The server does not answer.", 429: "The server is busy." }[error.status] ??
    "The server refused this.";
  const more = error.status === 400 ? [] : [["Ask again", again]];
  return notice(error.status === 0 ? "cut" : "error", title, error.message + later(error), more);
}
