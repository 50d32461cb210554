// Attention on the Inside tab: a small picture per head, a map of the chosen head with readable
// cells, and the prompt shaded by one token's attention weights.

import { $, el, percent, plural, rgb } from "./dom.js";
import { names, spoken, tokenBytes } from "./text.js";

const LABELS = 36; // up to so many tokens the map has labels
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

let data = null; // the latest answer: tokens and attention[layer][head][row][column]
let layer = 0;
let head = 0;
let cell = null; // [row, column] under the pointer
let chosen = 0; // the token whose weights are shown

let shown = []; // the tokens' names

const name = (i) => shown[i];

/** The card for an answer of /inspect. Call drawMap() once it is on the page. */
export function attentionCard(answer) {
  if (data !== answer) {
    data = answer;
    shown = names(data.tokens.map((t) => tokenBytes(t.text)));
    layer = Math.min(layer, data.attention.length - 1);
    head = Math.min(head, data.attention[layer].length - 1);
    chosen = data.tokens.length - 1;
    cell = null;
  }
  const { attention, tokens } = data;
  return el(
    "article",
    { class: "card attention" },
    el(
      "header",
      {},
      el("h2", {}, "Attention"),
      el(
        "p",
        { class: "hint" },
        `${plural(attention.length, "layer")}, ${plural(attention[0].length, "head")} each, ` +
          plural(tokens.length, "token"),
      ),
    ),
    el(
      "div",
      { class: "attention-columns" },
      headGrid(),
      el(
        "div",
        { class: "map-frame" },
        el("p", { id: "map-title", class: "map-title" }),
        el("p", { id: "map-readout", class: "readout", "aria-live": "polite" }),
        mapCanvas(),
        el(
          "div",
          { class: "legend map-legend", "aria-hidden": true },
          el("span", {}, "0"),
          el("i", { class: "ramp" }),
          el("span", {}, "1"),
          el("span", {}, "(shade grows with the square root)"),
        ),
      ),
      el("div", { class: "looks" }, el("p", { class: "label", id: "looks-label" }), strip()),
    ),
  );
}

/** A small picture per head; rows are layers. */
function headGrid() {
  const heads = data.attention[0].length;
  const cells = data.attention.flatMap((row, l) => [
    el("span", { class: "hint" }, String(l + 1)),
    ...row.map((weights, h) =>
      el(
        "button",
        {
          type: "button",
          class: "head",
          "aria-label": `Layer ${l + 1}, head ${h + 1}`,
          "aria-pressed": l === layer && h === head,
          "data-l": l,
          "data-h": h,
          onclick: () => select(l, h),
        },
        picture(weights),
      ),
    ),
  ]);
  const top = [
    el("span", { class: "hint corner" }, "layer"),
    ...Array.from({ length: heads }, (_, h) => el("span", { class: "hint" }, `head ${h + 1}`)),
  ];
  if (heads > 8) top.forEach((t, h) => h && (t.textContent = h));
  const grid = el(
    "div",
    { class: "heads", role: "group", "aria-label": "Heads", vars: { "--heads": heads } },
    top,
    cells,
  );
  grid.addEventListener("keydown", (e) => {
    const step = STEPS[e.key];
    if (!step) return;
    e.preventDefault();
    const l = Math.max(0, Math.min(data.attention.length - 1, layer + step[0]));
    const h = Math.max(0, Math.min(heads - 1, head + step[1]));
    select(l, h);
    grid.querySelector(`[data-l="${l}"][data-h="${h}"]`).focus();
  });
  return el("div", { class: "scroll" }, grid);
}

function select(l, h) {
  [layer, head] = [l, h];
  for (const b of document.querySelectorAll(".head"))
    b.setAttribute("aria-pressed", Number(b.dataset.l) === l && Number(b.dataset.h) === h);
  drawMap();
}

/** Weights (T rows of at most T) as a canvas of T x T pixels: rows attend to columns. */
function picture(weights) {
  const n = weights.length;
  const canvas = el("canvas", { width: n, height: n });
  const context = canvas.getContext("2d");
  const image = context.createImageData(n, n);
  const [r, g, b] = rgb("--accent");
  weights.forEach((row, i) =>
    row.forEach((w, j) =>
      image.data.set([r, g, b, 255 * Math.sqrt(Math.max(0, Math.min(1, w)))], 4 * (i * n + j)),
    ),
  );
  context.putImageData(image, 0, 0);
  return canvas;
}

function mapCanvas() {
  const canvas = el("canvas", { id: "map", tabindex: 0, role: "img" });
  canvas.addEventListener("pointermove", (e) => point(e));
  canvas.addEventListener("pointerdown", (e) => {
    point(e);
    if (cell) choose(cell[0]);
  });
  canvas.addEventListener("pointerleave", (e) => {
    if (e.pointerType !== "touch") set(null); // after a touch the number stays, to be read
  });
  canvas.addEventListener("keydown", (e) => {
    const step = STEPS[e.key];
    if (!step) return;
    e.preventDefault();
    const n = data.tokens.length;
    const i = Math.max(0, Math.min(n - 1, (cell ?? [chosen, 0])[0] + step[0]));
    const j = Math.max(0, Math.min(i, (cell ?? [chosen, 0])[1] + step[1]));
    set([i, j]);
    choose(i);
  });
  new ResizeObserver(() => data && drawMap()).observe(canvas);
  return canvas;
}

let geometry = null; // of the map: left and top margin, size of a cell, in CSS pixels

export function drawMap() {
  const canvas = $("map");
  if (!canvas) return;
  const n = data.tokens.length;
  const width = canvas.clientWidth;
  if (width === 0) return;
  const context = canvas.getContext("2d");
  const font = getComputedStyle(canvas).fontFamily;
  const labelled = n <= LABELS;
  context.font = `11px ${font}`;
  const widest = labelled
    ? Math.min(84, Math.max(...data.tokens.map((_, i) => context.measureText(name(i)).width)))
    : 0;
  const margin = labelled ? Math.ceil(widest) + 8 : 2;
  const size = Math.min(34, (width - margin - 2) / n);
  const upright = widest <= size; // whether labels fit without rotation
  const top = upright ? Math.min(20, margin) : margin;
  const height = Math.ceil(top + size * n + 2);
  const scale = devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  context.scale(scale, scale);
  geometry = { left: margin, top, size };
  const colour = (v, alpha = 1) => `rgb(${rgb(v).join(" ")} / ${alpha})`;

  context.imageSmoothingEnabled = false;
  context.fillStyle = colour("--sunken");
  context.beginPath(); // tokens do not attend to later ones: only the lower triangle is filled
  for (let i = 0; i < n; i++) context.rect(margin, top + i * size, (i + 1) * size, size);
  context.fill();
  context.drawImage(picture(data.attention[layer][head]), margin, top, size * n, size * n);

  if (labelled) {
    context.font = `${Math.min(11, Math.max(7, size - 1))}px ${font}`;
    context.textBaseline = "middle";
    const [row, column] = cell ?? [chosen, -1];
    for (let i = 0; i < n; i++) {
      context.fillStyle = colour(i === row ? "--accent" : "--muted");
      context.textAlign = "right";
      context.fillText(name(i), margin - 6, top + (i + 0.5) * size, margin - 8);
      context.save();
      context.translate(margin + (i + 0.5) * size, top - 7);
      if (!upright) context.rotate(-Math.PI / 2);
      context.textAlign = upright ? "center" : "left";
      context.fillStyle = colour(i === column ? "--accent" : "--muted");
      context.fillText(name(i), 0, 0, upright ? size : margin - 8);
      context.restore();
    }
  }
  context.strokeStyle = colour("--text");
  if (cell) context.strokeRect(margin + cell[1] * size, top + cell[0] * size, size, size);
  context.strokeStyle = colour("--text", 0.35);
  context.strokeRect(margin, top + chosen * size, size * (chosen + 1), size);

  $("map-title").textContent = `Layer ${layer + 1}, head ${head + 1}`;
  canvas.setAttribute(
    "aria-label",
    `Attention of layer ${layer + 1}, head ${head + 1}; arrow keys read its numbers`,
  );
  readout();
  drawLooks();
}

function point(e) {
  const { left, top, size } = geometry;
  const j = Math.floor((e.offsetX - left) / size);
  const i = Math.floor((e.offsetY - top) / size);
  set(i >= 0 && j >= 0 && i < data.tokens.length && j <= i ? [i, j] : null);
}

function set(next) {
  if (String(next) === String(cell)) return;
  cell = next;
  drawMap();
}

function readout() {
  const box = $("map-readout");
  if (!cell)
    return box.replaceChildren(
      el("span", { class: "hint" }, "Rows attend to columns. Point at a cell for its weight."),
    );
  const [i, j] = cell;
  box.replaceChildren(
    el("b", { class: "mono" }, name(i)),
    el("span", { class: "hint" }, ` (${i + 1}) attends to `),
    el("b", { class: "mono" }, name(j)),
    el("span", { class: "hint" }, ` (${j + 1}): `),
    el("b", { class: "number" }, (data.attention[layer][head][i][j] ?? 0).toFixed(4)),
  );
}

/** The prompt again, shaded by the chosen token's attention weights. */
function strip() {
  const box = el("div", { class: "strip mono", id: "looks" });
  data.tokens.forEach((t, i) =>
    box.append(
      el(
        "button",
        {
          ...{ type: "button", "data-i": i, onclick: () => choose(i) },
          "aria-label": spoken(t.text),
        },
        name(i),
        t.text.includes("\n") && "\n",
      ),
    ),
  );
  return box;
}

function choose(i) {
  chosen = i;
  drawMap();
}

function drawLooks() {
  const row = data.attention[layer][head][chosen];
  $("looks-label").replaceChildren(
    "What ",
    el("b", { class: "mono" }, name(chosen)),
    ` (token ${chosen + 1}) attends to`,
  );
  [...$("looks").children].forEach((b, j) => {
    const w = row[j] ?? 0;
    b.style.setProperty("--shade", `${(50 * Math.sqrt(w)).toFixed(1)}%`);
    b.classList.toggle("chosen", j === chosen);
    b.classList.toggle("later", j > chosen);
    b.title = j > chosen ? "later, not visible to it" : percent(w);
    b.setAttribute("aria-pressed", j === chosen);
  });
}
