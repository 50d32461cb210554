// Runs: the curves and the settings of the training runs beside the server, live while they train.

import { Chart, smooth } from "./chart.js";
import { ApiError, connection, request } from "./api.js";
import { $, count, el, memory, notice, short } from "./dom.js";

const COLOURS = 8; // --run-0 ... in style.css
const POLL = 2000; // ms between looks at runs that train
const LOOK = 6000; // ms between looks for new runs
const PAGE = 5000; // an answer of so many rows may not be all

// What can be drawn: keys of metrics.jsonl for every logged step, and for every evaluation.
const METRICS = {
  loss: { label: "Loss", unit: "loss (nats per token)", step: "loss", evaluation: "val_loss" },
  bpb: { label: "Bits per byte", unit: "validation, bits per byte", evaluation: "val_bpb" },
  lr: { label: "Learning rate", unit: "learning rate", step: "lr" },
  grad: { label: "Gradient norm", unit: "gradient norm", step: "grad_norm" },
  speed: { label: "Tokens/s", unit: "tokens per second", step: "tokens_per_s" },
};

let runs = null; // as the server lists them
const rows = new Map(); // name -> { rows, next }
const colour = new Map(); // name -> number, kept while the page lives
let picked = new Set();
let options;
let chart;
let visible = false;
let timer;
let looked = 0;

export function start() {
  options = { metric: "loss", log: false, smoothing: 0.6, all: false, ...memory.get("runs", {}) };
  if (!(options.metric in METRICS)) options.metric = "loss";
  $("runs-view").replaceChildren(notice("busy", "Looking for runs"));
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

/** Ask for what is new, draw it, and come again. */
async function update(all = false) {
  clearTimeout(timer);
  try {
    if (all || Date.now() - looked > LOOK) await list();
    const wanted = runs.filter((r) => picked.has(r.name) && (r.live || !rows.has(r.name)));
    const grown = await Promise.all(wanted.map((r) => read(r.name).catch(gone)));
    if (grown.some(Boolean)) drawChart();
  } catch (e) {
    if (!(e instanceof ApiError)) throw e;
    if (!chart) {
      const lost = e.status === 0;
      $("runs-view").replaceChildren(notice(lost ? "cut" : "error", lost ? "The server does not answer." : "The runs cannot be read.", lost ? null : e.message, [["Try again", () => update(true)]]));
    }
  }
  clearTimeout(timer);
  if (visible) timer = setTimeout(update, document.hidden ? LOOK : POLL);
}

async function list() {
  const before = JSON.stringify(runs);
  // the one last written to comes first; with several that train, rows would change places
  const places = new Map(runs?.map((r, i) => [r.name, i]));
  const place = (r) => places.get(r.name) ?? -1;
  runs = (await request("/runs")).sort((a, b) => place(a) - place(b));
  looked = Date.now();
  if (JSON.stringify(runs) === before) return;
  for (const run of runs) if (!colour.has(run.name)) colour.set(run.name, colour.size % COLOURS);
  if (picked.size === 0) {
    const remembered = runs.filter((r) => memory.get("runs-picked", []).includes(r.name));
    const first = remembered.length ? remembered : runs.slice(0, 3);
    picked = new Set(first.map((r) => r.name));
  }
  draw();
}

/** New rows of a run; true when there were any. */
async function read(name) {
  const known = rows.get(name) ?? { rows: [], next: 0 };
  const before = known.rows.length;
  let answer;
  do {
    answer = await request(`/runs/${encodeURIComponent(name)}?from=${known.next}`);
    const [first, last] = [answer.rows[0]?.iter, known.rows.at(-1)?.iter];
    if (known.next > 0 && (answer.next < known.next || first < last)) {
      Object.assign(known, { rows: [], next: 0 }); // begun anew, or gone back to an earlier step
      continue;
    }
    known.rows.push(...answer.rows);
    known.next = answer.next;
  } while (known.next < answer.next || answer.rows.length >= PAGE);
  rows.set(name, known);
  return known.rows.length !== before;
}

/** A run that was removed while it was looked at is no reason not to draw the others. */
function gone(e) {
  if (!(e instanceof ApiError) || e.status === 0) throw e;
  return false;
}

/** A run whose last row is new may also have ended just now. */
const trains = (run) => run.live && !(run.max_iters && run.step >= run.max_iters);

const css = (name) => `var(--run-${colour.get(name)})`;

// ---- the page ----

function draw() {
  const view = $("runs-view");
  if (runs.length === 0) {
    chart = null;
    view.replaceChildren(
      notice("empty", "There are no runs yet.", "A run appears here with its first logged step, from every out… folder beside the server."),
      el("pre", { class: "command mono" }, "python train.py config/quickstart.py"),
    );
    return;
  }
  if (!chart) {
    chart = new Chart();
    view.replaceChildren(
      el("div", { class: "columns runs-columns" },
        el("aside", { class: "run-list", "aria-label": "Runs" }, el("div", { id: "run-list" })),
        el("article", { class: "card" }, controls(), el("p", { id: "chart-empty", class: "notice empty", hidden: true }), chart.element, el("p", { class: "hint", id: "chart-key" })),
      ),
      el("article", { class: "card", id: "run-settings" }),
    );
  }
  const focused = document.activeElement?.dataset?.run;
  $("run-list").replaceChildren(...runs.map(runRow));
  if (focused) document.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
  drawChart();
  drawSettings();
}

function runRow(run) {
  const share = run.max_iters ? Math.min(1, run.step / run.max_iters) : 0;
  const input = el("input", {
    type: "checkbox",
    "data-run": run.name,
    checked: picked.has(run.name),
    onchange: (e) => {
      if (e.target.checked) picked.add(run.name);
      else picked.delete(run.name);
      memory.set("runs-picked", [...picked]);
      drawChart();
      drawSettings();
      update();
    },
  });
  return el(
    "label",
    { class: "run", vars: { "--c": css(run.name) } },
    input,
    el("span", { class: "run-name" }, run.name, trains(run) && el("em", { class: "live" }, "live")),
    el("span", { class: "run-numbers" },
      el("span", {}, "step ", el("b", {}, count(run.step ?? 0)), run.max_iters ? ` of ${count(run.max_iters)}` : ""),
      el("span", {}, "val ", el("b", {}, run.val_loss === null ? "–" : short(run.val_loss))),
    ),
    trains(run) && el("i", { class: "bar", vars: { "--p": `${100 * share}%` }, "aria-hidden": true }),
  );
}

function controls() {
  const changed = () => {
    memory.set("runs", options);
    drawChart();
  };
  const metric = el("select", { id: "metric", onchange: (e) => { options.metric = e.target.value; changed(); } },
    Object.entries(METRICS).map(([key, m]) => el("option", { value: key, selected: key === options.metric }, m.label)),
  );
  const log = el("input", { type: "checkbox", id: "log", checked: options.log, onchange: (e) => { options.log = e.target.checked; changed(); } });
  const value = el("output", { class: "number", for: "smoothing" }, options.smoothing.toFixed(2));
  const smoothing = el("input", {
    type: "range", id: "smoothing", min: 0, max: 0.98, step: 0.02, value: options.smoothing,
    oninput: (e) => {
      options.smoothing = Number(e.target.value);
      value.textContent = options.smoothing.toFixed(2);
      changed();
    },
  });
  return el("div", { class: "chart-controls" },
    el("label", {}, el("span", { class: "visually-hidden" }, "Show"), metric),
    el("label", {}, "Smoothing", smoothing, value),
    el("label", {}, log, "Log scale"),
  );
}

function drawChart() {
  const metric = METRICS[options.metric];
  const series = [];
  const several = picked.size > 1;
  for (const { name } of runs) {
    const found = picked.has(name) && rows.get(name)?.rows;
    if (!found) continue;
    const points = (key) => found.filter((r) => Number.isFinite(r[key])).map((r) => [r.iter, r[key]]);
    const label = (kind) => (metric.step && metric.evaluation ? `${several ? `${name} ` : ""}${kind}` : name);
    if (metric.step) {
      const raw = points(metric.step);
      if (options.smoothing > 0) series.push({ name, colour: css(name), points: raw, style: "faint" });
      series.push({ name: label("training"), colour: css(name), points: smooth(raw, options.smoothing), style: "line" });
    }
    if (metric.evaluation) series.push({ name: label("validation"), colour: css(name), points: points(metric.evaluation), style: "dots" });
  }
  const empty = series.every((s) => s.points.length === 0);
  $("chart-empty").hidden = !empty;
  $("chart-empty").textContent = picked.size === 0 ? "Tick a run to see its curve." : rows.size === 0 ? "Reading the curves …" : "These runs have no such numbers.";
  chart.element.hidden = empty;
  $("chart-key").textContent = { loss: `${metric.unit}. Line: training batches${options.smoothing > 0 ? ", smoothed" : ""}. Dots: validation.` }[options.metric] ?? metric.unit;
  if (!empty) chart.draw({ series, log: options.log, x: "step", y: metric.unit });
}

// ---- settings ----

function drawSettings() {
  const chosen = runs.filter((r) => picked.has(r.name));
  const box = $("run-settings");
  box.hidden = chosen.length === 0;
  const keys = [...new Set(chosen.flatMap((r) => Object.keys(r.settings ?? {})))];
  const written = (run, key) => (key in (run.settings ?? {}) ? String(run.settings[key]) : "–");
  const differs = (key) => new Set(chosen.map((r) => written(r, key))).size > 1;
  const compare = chosen.length > 1;
  const wanted = compare && !options.all ? keys.filter(differs) : keys;
  const toggle = compare && el("label", {},
    el("input", { type: "checkbox", checked: !options.all, onchange: (e) => { options.all = !e.target.checked; memory.set("runs", options); drawSettings(); } }),
    "Only what differs",
  );
  const table = el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "setting"), chosen.map((r) => el("th", { scope: "col" }, el("i", { class: "swatch", vars: { "--c": css(r.name) } }), r.name)))),
    el("tbody", {}, wanted.map((key) =>
      el("tr", { class: compare && options.all && differs(key) ? "differs" : null },
        el("th", { scope: "row", class: "mono" }, key),
        chosen.map((r) => el("td", { class: "mono" }, written(r, key))),
      ),
    )),
  );
  box.replaceChildren(
    el("header", { class: "row" }, el("h2", {}, "Settings"), toggle),
    wanted.length ? el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Settings of the runs" }, table) : el("p", { class: "hint" }, keys.length ? "These runs have the same settings." : "These runs left no settings."),
  );
}
