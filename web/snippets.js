// The request that Complete would send, for a shell and for Python.

import { hasKey } from "./api.js";

// What OpenAI's client has no name for.
const BEYOND = ["top_k", "min_p", "repetition_penalty"];

/** A command for a POSIX shell. The key itself is not written into it. */
export function curl(body, base) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = hasKey() ? ` \\\n  -H "Authorization: Bearer $API_KEY"` : "";
  return `curl ${base}/v1/completions -H "Content-Type: application/json"${key} \\\n  -d '${quoted}'\n`;
}

/** A program that uses OpenAI's client. */
export function python(body, base) {
  // JSON writes strings, numbers and lists as Python does
  const line = (name, indent = "    ") => `${indent}${name}=${JSON.stringify(body[name])},\n`;
  const named = Object.keys(body).filter((name) => !BEYOND.includes(name));
  const beyond = Object.keys(body).filter((name) => BEYOND.includes(name));
  const extra = beyond.map((name) => `"${name}": ${JSON.stringify(body[name])}`).join(", ");
  return (
    (hasKey() ? "import os\n\n" : "") +
    "from openai import OpenAI\n\n" +
    `client = OpenAI(base_url="${base}/v1", api_key=${hasKey() ? 'os.environ["API_KEY"]' : '"any"'})\n` +
    "answer = client.completions.create(\n" +
    named.map((name) => line(name)).join("") +
    (extra ? `    extra_body={${extra}},\n` : "") +
    ")\n" +
    "for choice in answer.choices:\n    print(choice.text)\n"
  );
}
