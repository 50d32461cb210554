// The frame of the page: tabs, the model, the theme, the connection. Each tab is a module with
// start(), called when it is first shown, and, if it needs them, show() and hide().

import { ApiError, connection, ping, request, setKey } from "./api.js";
import { $, el, memory } from "./dom.js";
import * as chat from "./chat.js";
import * as complete from "./complete.js";
import * as inside from "./inside.js";
import * as runs from "./runs.js";
import * as tokens from "./tokens.js";

const TABS = { complete, chat, tokens, inside, runs };
const started = new Set();
let current = null;

// ---- tabs: the address names the tab; arrow keys move between them ----

function show(name) {
  if (!(name in TABS)) name = "complete";
  if (name === current) return;
  if (current) TABS[current].hide?.();
  current = name;
  for (const key of Object.keys(TABS)) {
    const tab = $(`tab-${key}`);
    tab.setAttribute("aria-selected", key === name);
    tab.tabIndex = key === name ? 0 : -1;
  }
  document.documentElement.dataset.tab = name; // style.css shows its view
  document.title = `${$(`tab-${name}`).textContent} – bonsai`;
  if (!started.has(name)) {
    started.add(name);
    TABS[name].start();
  }
  TABS[name].show?.();
}

const tabs = Object.keys(TABS).map((name) => $(`tab-${name}`));
tabs.forEach((tab, i) => {
  const go = (j) => {
    let next = tabs[(j + tabs.length) % tabs.length];
    if (next.hidden) next = tabs[(j + Math.sign(j - i) + tabs.length) % tabs.length];
    next.focus();
    location.hash = next.id.slice(4);
  };
  tab.addEventListener("click", () => go(i));
  tab.addEventListener("keydown", (e) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    go(to);
  });
});
addEventListener("hashchange", () => show(location.hash.slice(1)));

// ---- theme ----

const THEMES = {
  auto: ["Theme: like the system's", "◐"],
  light: ["Theme: light", "○"],
  dark: ["Theme: dark", "●"],
};

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  [$("theme").title, $("theme").textContent] = THEMES[theme];
  $("theme").setAttribute("aria-label", THEMES[theme][0]);
  memory.set("theme", theme);
  dispatchEvent(new Event("themechange")); // canvases have to be drawn again
}

$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(memory.get("theme", "auto")) + 1) % names.length]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  dispatchEvent(new Event("themechange")),
);

// ---- the models ----

async function loadModels() {
  const select = $("model");
  try {
    const { data } = await request("/v1/models");
    const wanted = select.disabled ? memory.get("model", "") : select.value;
    select.replaceChildren(
      ...data.map((m) =>
        el(
          "option",
          {
            value: m.id,
            "data-parameters": m.parameters,
            "data-context": m.context_length,
            "data-chat": m.chat,
          },
          m.id,
        ),
      ),
    );
    if (data.some((m) => m.id === wanted)) select.value = wanted;
    $("tab-chat").hidden = !data.some((m) => m.chat) && current !== "chat";
    select.disabled = data.length === 0;
    if (data.length === 0) select.append(el("option", {}, "no model"));
    say(data.length === 0 ? "This server has no model: start it with --out_dir or --models." : "");
    select.dispatchEvent(new Event("change"));
  } catch (e) {
    if (!(e instanceof ApiError)) throw e;
    if (e.status !== 0 && e.status !== 401) say(e.message);
  }
}

$("model").addEventListener("change", () => {
  if (!$("model").disabled) memory.set("model", $("model").value);
});

// ---- the connection ----

function say(message, ...more) {
  $("banner").replaceChildren(message, ...more);
  $("banner").hidden = message === "";
}

let timer;
function watch() {
  clearTimeout(timer);
  timer = setTimeout(
    async () => {
      if (!document.hidden) await ping();
      watch();
    },
    connection.up ? 10000 : 2000,
  );
}

connection.addEventListener("change", () => {
  const { up } = connection;
  $("connection").dataset.up = up;
  $("connection").textContent = up ? "Connected" : "Disconnected";
  if (up) {
    say("");
    loadModels();
  } else {
    say(
      "The server does not answer. Nothing on this page is lost; " +
        "it reconnects by itself when the server runs again: ",
      el("code", {}, "python serve.py"),
    );
  }
  watch();
});

connection.addEventListener("key", () => {
  if ($("key")) return;
  const input = el("input", {
    id: "key",
    type: "password",
    "aria-label": "API key",
    autocomplete: "off",
  });
  const form = el(
    "form",
    { class: "key", onsubmit: (e) => e.preventDefault() },
    input,
    el("button", {}, "Use this key"),
  );
  form.addEventListener("submit", () => {
    setKey(input.value);
    say("");
    loadModels();
    if (current) TABS[current].show?.();
  });
  say("This server asks for its API key.", form);
});

// ---- begin ----

setTheme(memory.get("theme", "auto"));
show(location.hash.slice(1));
ping(); // the result arrives as a "change" of the connection, see above
