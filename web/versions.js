// A version is one continuation: the prompt, its tokens so far and how it ended. It outlives a reload.

import { bits } from "./dom.js";
import { bytesText, Characters, tokenBytes } from "./text.js";

const ALTERNATIVES = 5;
const STORED = [10, 3, 1]; // versions that a reload keeps: the first number that there is room for

export class Version {
  constructor(fields) {
    this.model = "";
    this.prompt = "";
    this.promptIds = null; // as the server cut it into tokens
    this.tokens = []; // { id, text, logprob, top: [{ id, text, logprob }], picked }
    this.seed = 0;
    this.dropping = false; // whether the beginning of what is too long for the context is left out
    this.state = "waiting"; // streaming, then done, stopped, cut or error
    this.finish = null; // stop or length
    this.fresh = 0; // tokens of the latest request
    this.asked = 0; // for so many
    this.beyond = 0; // characters of the last token after the place where a stop sequence began
    this.error = null; // { message, status, code, retryAfter }
    Object.assign(this, fields);
    this.together = [this]; // the versions of one request
    this.parts = []; // [from, to]: tokens that share a character
    this.characters = new Characters();
    this.tokens.forEach((token, i) => this.place(token, i));
  }

  /** A request for `more` tokens begins. */
  begin(more, together) {
    const began = performance.now();
    Object.assign(this, { state: "waiting", error: null, finish: null, fresh: 0, first: null });
    Object.assign(this, { began, last: began, asked: more, together, beyond: 0 });
    this.sent = this.decoded(true).length; // characters of the text, as the server counts
  }

  place(token, i) {
    if (this.characters.joins(tokenBytes(token.text))) this.parts.at(-1)[1] = i + 1;
    else this.parts.push([i, i + 1]);
  }

  /** A choice of a chunk of the stream: tokens with their alternatives. */
  take(choice) {
    this.last = performance.now();
    this.first ??= this.last;
    this.state = "streaming";
    this.promptIds ??= choice.prompt_token_ids; // in the first chunk
    this.sent += choice.text.length;
    for (const token of tokensOf(choice)) {
      this.place(token, this.tokens.length);
      this.tokens.push(token);
      this.fresh++;
    }
    if (!choice.finish_reason) return;
    this.finish = choice.finish_reason;
    this.state = "done";
    // a stop sequence may begin within a token: the text ends there
    if (this.finish === "stop") this.beyond = Math.max(0, this.decoded(true).length - this.sent);
  }

  /** The tokens of a part: one, or those that make up a character. */
  part(k) {
    return this.tokens.slice(...this.parts[k]);
  }

  /** What a part shows. */
  partText(k) {
    const text = bytesText(this.part(k).flatMap((t) => tokenBytes(t.text)));
    return k === this.parts.length - 1 ? text.slice(0, text.length - this.beyond) : text;
  }

  /** The text of the continuation, half characters as U+FFFD. */
  get text() {
    const text = this.decoded(false);
    return text.slice(0, text.length - this.beyond);
  }

  /** The text of all tokens; open: without half a character at its end. */
  decoded(open) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const bytes = this.tokens.flatMap((token) => tokenBytes(token.text));
    return decoder.decode(Uint8Array.from(bytes), { stream: open });
  }

  /** Tokens of the prompt and after it; null before the server has said how many the prompt has. */
  get length() {
    return this.promptIds && this.promptIds.length + this.tokens.length;
  }

  get surprise() {
    return this.tokens.reduce((sum, t) => sum + bits(t.logprob), 0);
  }

  /** The body of a request for more, with sampling as settings.js gives it. */
  request(sampling, context) {
    // go on after these very tokens: their text might be cut into others
    const prompt = this.promptIds
      ? [...this.promptIds, ...this.tokens.map((t) => t.id)]
      : this.prompt;
    const body = { model: this.model, prompt, ...sampling, seed: this.seed };
    Object.assign(body, { logprobs: ALTERNATIVES, return_token_ids: true });
    body.max_tokens = this.asked;
    // leave room for what is asked for, but keep half of the context at least
    if (this.dropping)
      body.truncate_prompt_tokens = Math.max(context - this.asked, Math.ceil(context / 2));
    return body;
  }
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

// ---- over a reload ----

const STORE = "bonsai.versions";
const KEPT = ["model", "prompt", "promptIds", "tokens", "seed", "dropping"];
const ENDED = ["state", "error", "finish", "fresh", "asked", "beyond", "began", "first", "last"];

/** Keep the latest versions, and which one is shown, for this tab. */
export function store(versions, shown) {
  for (const most of STORED) {
    const from = Math.max(0, Math.min(shown, versions.length - most));
    const kept = versions
      .slice(from, from + most)
      .map((v) => Object.fromEntries([...KEPT, ...ENDED].map((key) => [key, v[key]])));
    try {
      sessionStorage.removeItem(STORE); // what was kept before is old
      sessionStorage.setItem(STORE, JSON.stringify({ kept, shown: shown - from }));
      return;
    } catch {
      // more than there is room for, or forbidden
    }
  }
}

/** [versions, index of the one that was shown] of before a reload; what was under way is stopped. */
export function restore() {
  try {
    const { kept, shown } = JSON.parse(sessionStorage.getItem(STORE));
    const versions = kept.map((fields) => new Version(fields));
    for (const v of versions) if (["waiting", "streaming"].includes(v.state)) v.state = "stopped";
    return versions[shown] ? [versions, shown] : [[], -1];
  } catch {
    return [[], -1];
  }
}
