// The request that Complete or Chat would send, as a shell command and as a Python program.

import { hasKey } from "./api.js";
import { $, copyText } from "./dom.js";

// Fields that OpenAI's client has no argument for.
const BEYOND = ["top_k", "min_p", "repetition_penalty"];

let current = null;

/** Make the buttons copy a request. request() returns its body when one is pressed. */
export function offer(request) {
  if (!current)
    for (const [name, write] of Object.entries({ curl, python }))
      $(`copy-${name}`).addEventListener("click", (e) =>
        copyText(write(current(), new URL(".", location).href.slice(0, -1)), e.target),
      );
  current = request;
}

const isChat = (body) => "messages" in body;

/** A command for a POSIX shell, without the key itself. */
export function curl(body, base) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = hasKey() ? ` \\\n  -H "Authorization: Bearer $API_KEY"` : "";
  const path = isChat(body) ? "/v1/chat/completions" : "/v1/completions";
  return `curl ${base}${path} -H "Content-Type: application/json"${key} \\\n  -d '${quoted}'\n`;
}

/** A program that uses OpenAI's client. */
export function python(body, base) {
  // Python reads strings, numbers and lists of JSON
  const line = (name, indent = "    ") => `${indent}${name}=${JSON.stringify(body[name])},\n`;
  const named = Object.keys(body).filter((name) => !BEYOND.includes(name));
  const beyond = Object.keys(body).filter((name) => BEYOND.includes(name));
  const extra = beyond.map((name) => `"${name}": ${JSON.stringify(body[name])}`).join(", ");
  return (
    (hasKey() ? "import os\n\n" : "") +
    "from openai import OpenAI\n\n" +
    `client = OpenAI(base_url="${base}/v1", api_key=${hasKey() ? 'os.environ["API_KEY"]' : '"any"'})\n` +
    `answer = client.${isChat(body) ? "chat." : ""}completions.create(\n` +
    named.map((name) => line(name)).join("") +
    (extra ? `    extra_body={${extra}},\n` : "") +
    ")\n" +
    `for choice in answer.choices:\n    print(choice.${isChat(body) ? "message.content" : "text"})\n`
  );
}
