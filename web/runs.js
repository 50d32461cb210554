// Runs: the curves and the settings of the training runs beside the server, live while they train.

import { Chart, smooth } from "./chart.js";
import { ApiError, connection, request } from "./api.js";
import { $, count, el, memory, notice, short } from "./dom.js";

const COLOURS = 8; // --run-0 ... in style.css
const POLL = 2000; // ms between looks at runs that train
const LOOK = 6000; // ms between looks for new runs
const PAGE = 5000; // an answer of so many rows may not be all

// What can be drawn: keys of metrics.jsonl for every logged step, and for every evaluation. What is
// exact has no noise to smooth.
const METRICS = {
  loss: { label: "Loss", unit: "loss (nats per token)", step: "loss", evaluation: "val_loss" },
  bpb: { label: "Bits per byte", unit: "validation, bits per byte", evaluation: "val_bpb" },
  lr: { label: "Learning rate", unit: "learning rate", step: "lr", exact: true },
  grad: { label: "Gradient norm", unit: "gradient norm", step: "grad_norm" },
  speed: { label: "Tokens/s", unit: "tokens per second", step: "tokens_per_s" },
};

let runs = null; // as the server lists them
const rows = new Map(); // name -> { rows, next }
const colour = new Map(); // name -> number, kept while the page lives
const rowOf = new Map(); // name -> { element, refresh }: its row in the list
let picked = null; // names
let options;
let chart;
let visible = false;
let timer;
let looked = 0;
let busy = false; // with an update

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

/** Ask for what is new, draw it, and come again. all: also ask for new runs, whenever that was. */
async function update(all = false) {
  clearTimeout(timer);
  if (all) looked = 0;
  if (busy) return; // it comes again
  busy = true;
  try {
    if (!runs || Date.now() - looked > LOOK) await list();
    const wanted = runs.filter((r) => picked.has(r.name) && (r.live || !rows.has(r.name)));
    const grown = await Promise.all(wanted.map((r) => read(r.name).catch(gone)));
    if (grown.some(Boolean)) drawChart();
  } catch (e) {
    if (!(e instanceof ApiError)) throw e;
    if (!chart) {
      const lost = e.status === 0;
      $("runs-view").replaceChildren(
        notice(
          lost ? "cut" : "error",
          lost ? "The server does not answer." : "The runs cannot be read.",
          lost ? null : e.message,
          [["Try again", () => update(true)]],
        ),
      );
    }
  } finally {
    busy = false;
  }
  clearTimeout(timer);
  const pending = runs?.some((r) => picked.has(r.name) && !rows.has(r.name)); // ticked meanwhile
  if (visible) timer = setTimeout(update, pending ? 100 : document.hidden ? LOOK : POLL);
}

async function list() {
  const before = JSON.stringify(runs);
  // the one last written to comes first; with several that train, rows would change places
  const places = new Map(runs?.map((r, i) => [r.name, i]));
  const place = (r) => places.get(r.name) ?? -1;
  looked = Date.now();
  runs = (await request("/runs")).sort((a, b) => place(a) - place(b));
  if (JSON.stringify(runs) === before) return;
  for (const run of runs) if (!colour.has(run.name)) colour.set(run.name, colour.size % COLOURS);
  if (runs.length > 0 && picked === null) {
    const remembered = runs.filter((r) => memory.get("runs-picked", []).includes(r.name));
    picked = new Set((remembered.length ? remembered : runs.slice(0, 3)).map((r) => r.name));
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
      notice(
        "empty",
        "There are no runs yet.",
        "A run appears here with its first logged step, from every out… folder beside the server.",
      ),
      el("pre", { class: "command mono" }, "python train.py config/quickstart.py"),
    );
    return;
  }
  if (!chart) {
    chart = new Chart();
    view.replaceChildren(
      el(
        "div",
        { class: "columns runs-columns" },
        el("aside", { class: "run-list", "aria-label": "Runs" }, el("div", { id: "run-list" })),
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
  // rows stay the same elements: one that changed under the pointer would lose a click
  for (const run of runs) {
    if (!rowOf.has(run.name)) rowOf.set(run.name, runRow(run.name));
    rowOf.get(run.name).refresh(run);
  }
  const elements = runs.map((r) => rowOf.get(r.name).element);
  const there = $("run-list").children;
  if (there.length !== elements.length || elements.some((e, i) => e !== there[i]))
    $("run-list").replaceChildren(...elements);
  drawChart();
  drawSettings();
}

function runRow(name) {
  const input = el("input", {
    type: "checkbox",
    "data-run": name,
    checked: picked.has(name),
    onchange: (e) => {
      if (e.target.checked) picked.add(name);
      else picked.delete(name);
      memory.set("runs-picked", [...picked]);
      drawChart();
      drawSettings();
      update();
    },
  });
  const live = el("em", { class: "live" }, "live");
  const step = el("span");
  const val = el("b");
  const bar = el("i", { class: "bar", "aria-hidden": true });
  const element = el(
    "label",
    { class: "run", vars: { "--c": css(name) } },
    input,
    el("span", { class: "run-name" }, name, live),
    el("span", { class: "run-numbers" }, step, el("span", {}, "val ", val)),
    bar,
  );
  const refresh = (run) => {
    live.hidden = bar.hidden = !trains(run);
    step.replaceChildren(
      "step ",
      el("b", {}, count(run.step)),
      run.max_iters ? ` of ${count(run.max_iters)}` : "",
    );
    val.textContent = short(run.val_loss);
    bar.style.setProperty(
      "--p",
      `${run.max_iters ? Math.min(100, (100 * run.step) / run.max_iters) : 0}%`,
    );
  };
  return { element, refresh };
}

function controls() {
  const changed = () => {
    memory.set("runs", options);
    drawChart();
  };
  const metric = el(
    "select",
    {
      id: "metric",
      onchange: (e) => {
        options.metric = e.target.value;
        changed();
      },
    },
    Object.entries(METRICS).map(([key, m]) =>
      el("option", { value: key, selected: key === options.metric }, m.label),
    ),
  );
  const log = el("input", {
    type: "checkbox",
    id: "log",
    checked: options.log,
    onchange: (e) => {
      options.log = e.target.checked;
      changed();
    },
  });
  const value = el("output", { class: "number", for: "smoothing" }, options.smoothing.toFixed(2));
  const smoothing = el("input", {
    type: "range",
    id: "smoothing",
    min: 0,
    max: 0.98,
    step: 0.02,
    value: options.smoothing,
    oninput: (e) => {
      options.smoothing = Number(e.target.value);
      value.textContent = options.smoothing.toFixed(2);
      changed();
    },
  });
  return el(
    "div",
    { class: "chart-controls" },
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
    const points = (rows, key) =>
      rows.filter((r) => Number.isFinite(r[key])).map((r) => [r.iter, r[key]]);
    const steps = found.filter((r) => !("val_loss" in r)); // an evaluation repeats the learning rate
    const label = (kind) =>
      metric.step && metric.evaluation ? `${several ? `${name} ` : ""}${kind}` : name;
    if (metric.step) {
      const raw = points(steps, metric.step);
      const weight = metric.exact ? 0 : options.smoothing;
      if (weight > 0) series.push({ name, colour: css(name), points: raw, style: "faint" });
      series.push({
        name: label("training"),
        colour: css(name),
        points: smooth(raw, weight),
        style: "line",
      });
    }
    if (metric.evaluation)
      series.push({
        name: label("validation"),
        colour: css(name),
        points: points(found, metric.evaluation),
        style: "dots",
      });
  }
  const empty = series.every((s) => s.points.length === 0);
  $("chart-empty").hidden = !empty;
  $("chart-empty").textContent =
    picked.size === 0
      ? "Tick a run to see its curve."
      : rows.size === 0
        ? "Reading the curves …"
        : "These runs have no such numbers.";
  chart.element.hidden = empty;
  $("chart-key").textContent =
    {
      loss: `${metric.unit}. Line: training batches${options.smoothing > 0 ? ", smoothed" : ""}. Dots: validation.`,
    }[options.metric] ?? metric.unit;
  if (!empty) chart.draw({ series, log: options.log, x: "step", y: metric.unit });
}

// ---- settings ----

function drawSettings() {
  const chosen = runs.filter((r) => picked.has(r.name));
  const box = $("run-settings");
  box.hidden = chosen.length === 0;
  const keys = [...new Set(chosen.flatMap((r) => Object.keys(r.settings ?? {})))];
  const written = (run, key) => (key in (run.settings ?? {}) ? String(run.settings[key]) : "–");
  // a run's folder is its name, which stands above
  const differs = (key) =>
    key !== "out_dir" && new Set(chosen.map((r) => written(r, key))).size > 1;
  const compare = chosen.length > 1;
  const wanted = compare && !options.all ? keys.filter(differs) : keys;
  const toggle =
    compare &&
    el(
      "label",
      {},
      el("input", {
        type: "checkbox",
        checked: !options.all,
        onchange: (e) => {
          options.all = !e.target.checked;
          memory.set("runs", options);
          drawSettings();
        },
      }),
      "Only what differs",
    );
  const table = el(
    "table",
    {},
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col" }, "setting"),
        chosen.map((r) =>
          el(
            "th",
            { scope: "col" },
            el("i", { class: "swatch", vars: { "--c": css(r.name) } }),
            r.name,
          ),
        ),
      ),
    ),
    el(
      "tbody",
      {},
      wanted.map((key) =>
        el(
          "tr",
          { class: compare && options.all && differs(key) ? "differs" : null },
          el("th", { scope: "row", class: "mono" }, key),
          chosen.map((r) => el("td", { class: "mono" }, written(r, key))),
        ),
      ),
    ),
  );
  box.replaceChildren(
    el("header", { class: "row" }, el("h2", {}, "Settings"), toggle),
    wanted.length
      ? el(
          "div",
          { class: "scroll", tabindex: 0, role: "group", "aria-label": "Settings of the runs" },
          table,
        )
      : el(
          "p",
          { class: "hint" },
          keys.length ? "These runs have the same settings." : "These runs left no settings.",
        ),
  );
}
