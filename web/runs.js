// Runs: curves and settings of the training runs beside the server, updated while they train.

import { ApiError, connection, request } from "./api.js";
import { Chart } from "./chart.js";
import { BY, curves, METRICS } from "./curves.js";
import { $, el, inSight, memory, notice } from "./dom.js";
import { colour, Numbers } from "./palette.js";
import { ORDERS, RunList } from "./runlist.js";
import { settingsTable } from "./runsettings.js";

const POLL = 2000; // ms between requests for new rows
const LOOK = 6000; // ms between requests for new runs
const PAGE = 5000; // after an answer with so many rows there may be more
const FIRST = 3; // how many runs are shown at first

const DEFAULTS = {
  ...{ metric: "loss", by: "step", log: false, clip: true, smoothing: 0.6 },
  ...{ all: false, filter: "", order: "latest" },
};

let runs = null; // the server's list
const rows = new Map(); // name -> { rows, next }
const numbers = new Numbers(); // colours of the runs that are shown, by number
let picked = null; // names of the runs that are shown
let options;
let chart;
let runList;
let visible = false;
let timer;
let looked = 0;
let busy = false; // whether an update is running

export function start() {
  options = { ...DEFAULTS, ...memory.get("runs", {}) };
  for (const [key, known] of Object.entries({ metric: METRICS, by: BY, order: ORDERS }))
    if (!(options[key] in known)) options[key] = DEFAULTS[key];
  addEventListener("themechange", () => chart && drawChart());
  connection.addEventListener("change", () => {
    if (visible && connection.up) update(true);
  });
}

export function show() {
  visible = true;
  update(true);
}

export function hide() {
  visible = false;
  clearTimeout(timer);
}

/** Get and draw new rows, then repeat later. all: get the list of runs in any case. */
async function update(all = false) {
  clearTimeout(timer);
  if (all) looked = 0;
  if (busy) return; // the running update will repeat
  busy = true;
  try {
    if (!runs || Date.now() - looked > LOOK) await list();
    const wanted = runs.filter((r) => picked.has(r.name) && (r.live || !rows.has(r.name)));
    const grown = await Promise.all(wanted.map((r) => read(r.name).catch(gone)));
    if (grown.some(Boolean)) drawChart();
    $("runs-error")?.remove();
  } catch (e) {
    if (!(e instanceof ApiError)) throw e;
    failed(e);
  } finally {
    busy = false;
  }
  clearTimeout(timer);
  const pending = runs?.some((r) => picked.has(r.name) && !rows.has(r.name)); // ticked meanwhile
  if (visible) timer = setTimeout(update, pending ? 100 : document.hidden ? LOOK : POLL);
}

/** Show an error above the curves. If the server does not answer, the banner says so already. */
function failed(e) {
  const lost = e.status === 0;
  if (chart && (lost || $("runs-error"))) return;
  const box = notice(
    lost ? "cut" : "error",
    lost ? "The server does not answer." : "The runs cannot be read.",
    lost ? null : e.message,
    [["Try again", () => update(true)]],
  );
  box.id = "runs-error";
  if (chart) $("runs-view").prepend(inSight(box));
  else $("runs-view").replaceChildren(box);
}

async function list() {
  const before = JSON.stringify(runs);
  // The server's first run is the most recently changed one. Known runs keep their places here:
  // else several running ones would keep swapping
  const places = new Map(runs?.map((r, i) => [r.name, i]));
  const place = (r) => places.get(r.name) ?? -1;
  looked = Date.now();
  runs = (await request("/runs")).sort((a, b) => place(a) - place(b));
  if (JSON.stringify(runs) === before) return;
  const there = new Set(runs.map((r) => r.name));
  if (runs.length > 0 && picked === null) {
    const remembered = memory.get("runs-picked", []).filter((name) => there.has(name));
    const first = runs.slice(0, FIRST).map((r) => r.name);
    picked = new Set(remembered.length ? remembered : first);
  }
  for (const name of picked ?? []) if (!there.has(name)) picked.delete(name); // removed runs
  draw();
}

/** Get the new rows of a run; returns whether there were any. */
async function read(name) {
  const known = rows.get(name) ?? { rows: [], next: 0 };
  const before = known.rows.length;
  let answer;
  do {
    answer = await request(`/runs/${encodeURIComponent(name)}?from=${known.next}`);
    const [first, last] = [answer.rows[0]?.iter, known.rows.at(-1)?.iter];
    if (known.next > 0 && (answer.next < known.next || first < last)) {
      Object.assign(known, { rows: [], next: 0 }); // restarted, or resumed at an earlier step
      continue;
    }
    known.rows.push(...answer.rows);
    known.next = answer.next;
  } while (known.next < answer.next || answer.rows.length >= PAGE);
  rows.set(name, known);
  return known.rows.length !== before;
}

/** Ignore the error for a run that was removed meanwhile, so that the others are drawn. */
function gone(e) {
  if (!(e instanceof ApiError) || e.status === 0) throw e;
  return false;
}

/** Show some runs or, if not `wanted`, hide them. */
function pick(names, wanted) {
  for (const name of names) {
    if (wanted) picked.add(name);
    else picked.delete(name);
  }
  memory.set("runs-picked", [...picked]);
  draw();
  update();
}

const colourOf = (name) => (numbers.of(name) === undefined ? null : colour(numbers.of(name)));

// ---- the page ----

function draw() {
  const view = $("runs-view");
  if (runs.length === 0) {
    chart = null;
    view.replaceChildren(
      notice(
        "empty",
        "There are no runs yet.",
        "Every run in an out… folder beside the server appears here with its first logged step.",
      ),
      el("pre", { class: "command mono" }, "python train.py config/quickstart.py"),
    );
    return;
  }
  if (!chart) {
    chart = new Chart();
    runList = new RunList(options, () => {
      memory.set("runs", options);
      runList.draw(runs, picked, colourOf);
    }, pick);
    view.replaceChildren(
      el(
        "div",
        { class: "columns runs-columns" },
        runList.element,
        el(
          "article",
          { class: "card" },
          controls(),
          el("p", { id: "chart-empty", class: "notice empty", hidden: true }),
          chart.element,
          el("p", { class: "hint", id: "chart-key" }),
        ),
      ),
      el("article", { class: "card", id: "run-settings" }),
    );
  }
  numbers.hold(picked);
  runList.draw(runs, picked, colourOf);
  drawChart();
  drawSettings();
}

function controls() {
  const set = (name, value) => {
    options[name] = value;
    memory.set("runs", options);
    drawChart();
  };
  const choice = (name, id, known) =>
    el(
      "select",
      { id, onchange: (e) => set(name, e.target.value) },
      Object.entries(known).map(([key, m]) =>
        el("option", { value: key, selected: key === options[name] }, m.label),
      ),
    );
  const tick = (name, label) =>
    el(
      "label",
      {},
      el("input", {
        ...{ type: "checkbox", id: name, checked: options[name] },
        onchange: (e) => set(name, e.target.checked),
      }),
      label,
    );
  const value = el("output", { class: "number", for: "smoothing" }, options.smoothing.toFixed(2));
  const smoothing = el("input", {
    ...{ type: "range", id: "smoothing", min: 0, max: 0.98, step: 0.02, value: options.smoothing },
    oninput: (e) => {
      value.textContent = Number(e.target.value).toFixed(2);
      set("smoothing", Number(e.target.value));
    },
  });
  return el(
    "div",
    { class: "chart-controls" },
    el("label", {}, el("span", { class: "visually-hidden" }, "Show"), choice("metric", "metric", METRICS)),
    el("label", {}, "by", choice("by", "by", BY)),
    el("label", {}, "Smoothing", smoothing, value),
    tick("log", "Log scale"),
    tick("clip", "Cut outliers off"),
  );
}

function drawChart() {
  const chosen = [...picked].filter((name) => rows.has(name));
  const found = chosen.map((name) => ({ name, colour: colourOf(name), rows: rows.get(name).rows }));
  const curve = curves(found, options);
  const empty = curve.series.every((s) => s.points.length === 0);
  $("chart-empty").hidden = !empty;
  $("chart-empty").textContent =
    picked.size === 0
      ? "Tick a run to see its curve."
      : chosen.length === 0
        ? "Reading the curves …"
        : "These runs have no numbers of this kind.";
  chart.element.hidden = empty;
  if (!empty) chart.draw(curve);
  const smoothed = options.smoothing > 0 ? ", smoothed" : "";
  const said = [METRICS[options.metric].unit];
  if (options.metric === "loss") said.push(`Line: training batches${smoothed}`, "Dots: validation");
  if (!empty && chart.cut()) said.push(chart.cut());
  $("chart-key").textContent = said.join(". ") + (said.length > 1 ? "." : "");
}

function drawSettings() {
  const chosen = runs.filter((r) => picked.has(r.name));
  $("run-settings").hidden = chosen.length === 0;
  const changed = () => {
    memory.set("runs", options);
    drawSettings();
  };
  const parts = settingsTable(chosen, options, colourOf, changed);
  $("run-settings").replaceChildren(...parts);
}
