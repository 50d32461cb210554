// A version is one continuation: the prompt, its tokens so far and how it ended. A reload keeps it.

import { bits } from "./dom.js";
import { bytesText, Characters, tokenBytes } from "./text.js";

const ALTERNATIVES = 5;
const STORED = [10, 3, 1]; // how many versions a reload keeps: the first of these that fits

export class Version {
  constructor(fields) {
    this.model = "";
    this.prompt = "";
    this.promptIds = null; // the prompt's tokens, from the server
    this.tokens = []; // { id, text, logprob, top: [{ id, text, logprob }], picked }
    this.seed = 0;
    this.dropping = false; // whether a text that is too long loses its beginning
    this.state = "waiting"; // streaming, then done, stopped, cut or error
    this.finish = null; // stop or length
    this.fresh = 0; // how many tokens the latest request has given
    this.asked = 0; // how many it asked for
    this.beyond = 0; // characters at the end that belong to a stop sequence
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
    this.sent = this.decoded(true).length; // length of the text that the server has sent
  }

  place(token, i) {
    if (this.characters.joins(tokenBytes(token.text))) this.parts.at(-1)[1] = i + 1;
    else this.parts.push([i, i + 1]);
  }

  /** Take a choice of a chunk of the stream: tokens with their alternatives. */
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
    // a stop sequence may begin within a token; the text ends there
    if (this.finish === "stop") this.beyond = Math.max(0, this.decoded(true).length - this.sent);
  }

  /** The tokens of a part: one, or several that share a character. */
  part(k) {
    return this.tokens.slice(...this.parts[k]);
  }

  /** The text of a part. */
  partText(k) {
    const text = bytesText(this.part(k).flatMap((t) => tokenBytes(t.text)));
    return k === this.parts.length - 1 ? text.slice(0, text.length - this.beyond) : text;
  }

  /** The text of the continuation, half characters as U+FFFD. */
  get text() {
    const text = this.decoded(false);
    return text.slice(0, text.length - this.beyond);
  }

  /** The text of all tokens. open: leave out half a character at the end. */
  decoded(open) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const bytes = this.tokens.flatMap((token) => tokenBytes(token.text));
    return decoder.decode(Uint8Array.from(bytes), { stream: open });
  }

  /** The number of tokens, with the prompt's; null before the server has sent the latter. */
  get length() {
    return this.promptIds && this.promptIds.length + this.tokens.length;
  }

  get surprise() {
    return this.tokens.reduce((sum, t) => sum + bits(t.logprob), 0);
  }

  /** The body of a request for more tokens. sampling: fields from settings.js. */
  request(sampling, context) {
    // continue after exactly these tokens: encoding their text might give others
    const prompt = this.promptIds
      ? [...this.promptIds, ...this.tokens.map((t) => t.id)]
      : this.prompt;
    const body = { model: this.model, prompt, ...sampling, seed: this.seed };
    Object.assign(body, { logprobs: ALTERNATIVES, return_token_ids: true });
    body.max_tokens = this.asked;
    // leave room for the answer, but keep at least half of the context for the text
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

// ---- reloads ----

const STORE = "bonsai.versions";
const KEPT = ["model", "prompt", "promptIds", "tokens", "seed", "dropping"];
const ENDED = ["state", "error", "finish", "fresh", "asked", "beyond", "began", "first", "last"];

/** Store the latest versions, and which one is shown, for this browser tab. */
export function store(versions, shown) {
  for (const most of STORED) {
    const from = Math.max(0, Math.min(shown, versions.length - most));
    const kept = versions
      .slice(from, from + most)
      .map((v) => Object.fromEntries([...KEPT, ...ENDED].map((key) => [key, v[key]])));
    try {
      sessionStorage.removeItem(STORE); // if setItem fails, no old versions must remain
      sessionStorage.setItem(STORE, JSON.stringify({ kept, shown: shown - from }));
      return;
    } catch {
      // they do not fit, or storage is forbidden
    }
  }
}

/** [versions, index of the one shown] from before a reload. Unfinished ones become stopped. */
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
