// Below a continuation: how it ended, what the user can do next, and its numbers.

import { contextOf } from "./context.js";
import { $, count, el, notice, plural, short } from "./dom.js";

/** A sentence that says when to try again, if the server has said so. */
export const later = ({ retryAfter }) =>
  retryAfter ? ` Try again in ${plural(retryAfter, "second")}.` : "";

/**
 * Draw the outcome of a version. actions: { again(): repeat the request; start(): begin a new one;
 * on(version, drop): continue, if `drop` without the beginning of a text that is too long }.
 */
export function drawOutcome(version, actions) {
  const box = $("after");
  const held = box.contains(document.activeElement);
  const found = version && outcome(version, actions);
  box.replaceChildren(...[found].filter(Boolean));
  if (held) $("go").focus({ preventScroll: true }); // the focused button has been removed
  $("stats").setAttribute("aria-busy", version?.state === "streaming"); // read at the end only
  $("stats").replaceChildren(...(version ? stats(version) : []));
}

function outcome(version, { again, start, on }) {
  const { state, error, tokens } = version;
  const drop = ["Go on, dropping the beginning", () => on(version, true)];
  if (state === "waiting") return notice("busy", "Waiting for the first token");
  if (state === "cut") {
    const title = tokens.length
      ? `The connection broke after ${plural(tokens.length, "token")}. The text so far is kept.`
      : "The server does not answer.";
    const text = "Is the server still running? You can continue when it answers again.";
    const more = tokens.length ? [["Go on from here", () => on(version, false)]] : [];
    return notice("cut", title, text, [...more, ["Start over", start]]);
  }
  if (state === "error") {
    if (error.code === "context_length_exceeded")
      return notice("error", "This is longer than the model's context.", `${error.message}.`, [drop]);
    const title = error.status === 429 ? "The server is busy." : "The server refused this request.";
    const wrong = error.status === 400; // the same request would be refused again
    return notice("error", title, error.message + later(error), wrong ? [] : [["Try again", again]]);
  }
  if (state === "streaming") return null;
  if (tokens.length === 0)
    return notice(
      "empty",
      state === "stopped" ? "Stopped before the first token." : "The model ended the text at once.",
    );
  if (version.finish === "stop") return null;
  const context = contextOf(version.model);
  const fits = version.dropping || !context || version.length < context;
  const [label, handler] = fits ? ["Go on", () => on(version, false)] : drop;
  return el(
    "div",
    { class: "actions" },
    el("button", { id: "go-on", type: "button", onclick: handler }, label),
  );
}

function stats(version) {
  const { tokens, began, first, last, fresh, together } = version;
  if (tokens.length === 0) return [];
  const items = [plural(tokens.length, "token")];
  const seconds = Math.max(1, last - first) / 1000;
  if (fresh > 1) items.push(`${count(Math.round((fresh - 1) / seconds))} tokens/s`);
  if (first) items.push(`first after ${count(Math.round(first - began))} ms`);
  items.push(`${short(version.surprise / tokens.length)} bits per token`);
  const context = contextOf(version.model);
  if (version.length && context)
    items.push(`context ${count(Math.min(version.length, context))} of ${count(context)}`);
  if (version.dropping) items.push("beginning dropped");
  items.push(`seed ${version.seed}`);
  if (together.length > 1)
    items.push(`continuation ${together.indexOf(version) + 1} of ${together.length}`);
  const ended = ending(version);
  if (ended) items.push(ended);
  return items.map((item) => el("span", {}, item));
}

/** How a continuation ended, in words. */
function ending({ state, finish, fresh, asked }) {
  if (state === "stopped") return "stopped by you";
  if (state === "cut") return "cut off";
  if (state !== "done") return null;
  if (finish === "stop") return "the text ended";
  return fresh < asked ? "the context is full" : "max tokens reached";
}
