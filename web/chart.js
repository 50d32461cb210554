// A line chart in SVG: axes with round numbers, a cross-hair with the numbers of every series, and
// a log scale.

import { count, el, plural, short, svg } from "./dom.js";

const MARGIN = { top: 12, right: 12, bottom: 40, left: 56 };
const HEIGHT = 340;
const LINES = 10; // the most lines of the read-out
const FEW = 20; // fewer points than this have no outliers
const SAMPLED = 20000; // about the most points in which to look for outliers

/** Round numbers between low and high, about n of them. */
export function ticks(low, high, n) {
  if (!(high > low)) return [low];
  const raw = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) =>
    Number(((first + i) * step).toPrecision(12)),
  );
}

/** The same for a logarithmic axis; low > 0. */
export function logTicks(low, high, n) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const m of [1, 2, 5]) found.push(Number((m * 10 ** e).toPrecision(3)));
  const inside = found.filter((t) => t >= low * 0.999 && t <= high * 1.001);
  if (inside.length < 4) return ticks(low, high, n);
  return inside.length <= 2 * n ? inside : inside.filter((t) => Number.isInteger(Math.log10(t)));
}

/** Exponential moving average without the bias of its start (Kingma & Ba 2015, section 3). */
export function smooth(points, weight) {
  if (weight === 0) return points;
  let sum = 0;
  let norm = 0;
  return points.map(([x, y]) => {
    sum = weight * sum + (1 - weight) * y;
    norm = weight * norm + (1 - weight);
    return [x, sum / norm];
  });
}

/** At most about 2n of the points, in order: the lowest and the highest of each of n stretches. */
export function thin(points, n) {
  if (points.length <= 2 * n) return points;
  const kept = [];
  const size = points.length / n;
  for (let i = 0; i < n; i++) {
    const part = points.slice(Math.floor(i * size), Math.floor((i + 1) * size));
    const low = part.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = part.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  }
  if (kept.at(-1) !== points.at(-1)) kept.push(points.at(-1));
  return kept;
}

/** The index of the point nearest to x. points: sorted by x. */
export function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  if (low > 0 && x - points[low - 1][0] < points[low][0] - x) low--;
  return low;
}

/**
 * [low, high], outside of which values are outliers: further from the middle 90% than three times
 * its width. A few values, and values that are mostly equal, have no outliers.
 */
export function usual(values) {
  const every = Math.ceil(values.length / SAMPLED);
  const sorted = values.filter((_, i) => i % every === 0).sort((a, b) => a - b);
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const width = at(0.95) - at(0.05);
  if (values.length < FEW || !(width > 0)) return [-Infinity, Infinity];
  return [at(0.05) - 3 * width, at(0.95) + 3 * width];
}

/**
 * chart.draw({ series, log, clip, x, y, show }) shows series of { name, kind, colour, points: [[x,
 * y], ...], style: "line" | "faint" | "dots" }. x, y: names of the axes; show(x): a value of x as
 * text; clip: whether the axis leaves out outliers. The read-out has one line for each series that
 * is not faint; if these are too many, for the nearest to the pointer.
 */
export class Chart {
  constructor() {
    this.picture = svg("svg", { class: "chart", tabindex: 0, role: "img" });
    this.box = el("div", { class: "readout-box", hidden: true, "aria-live": "polite" });
    this.element = el("div", { class: "chart-frame" }, this.picture, this.box);
    this.options = null;
    this.at = null; // x of the cross-hair
    this.height = null; // y of the pointer; null: there is none
    this.last = false; // whether the cross-hair is at the last point; then it follows new points
    new ResizeObserver(() => this.options && this.draw(this.options)).observe(this.element);
    this.picture.addEventListener("pointermove", (e) => this.point(e));
    this.picture.addEventListener("pointerdown", (e) => this.point(e));
    this.picture.addEventListener("pointerleave", (e) => {
      if (e.pointerType !== "touch") this.read(null); // after a touch the numbers stay, to be read
    });
    this.picture.addEventListener("blur", () => this.read(null));
    this.picture.addEventListener("keydown", (e) => this.key(e));
  }

  draw(options) {
    this.options = options;
    const width = this.element.clientWidth;
    if (width === 0) return;
    const positive = (p) => !options.log || p[1] > 0;
    this.series = options.series
      .map((s) => ({ ...s, points: s.points.filter((p) => Number.isFinite(p[1]) && positive(p)) }))
      .filter((s) => s.points.length > 0);
    const { picture } = this;
    picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    picture.setAttribute("height", HEIGHT);
    picture.replaceChildren();
    if (this.series.length === 0) {
      this.read(null);
      return;
    }
    this.scales(width);
    const { left, right, top, bottom } = this;
    const { sx, sy, xTicks, yTicks } = this;
    const grid = svg("g", { class: "grid" });
    for (const t of yTicks) {
      grid.append(svg("line", { x1: left, x2: right, y1: sy(t), y2: sy(t) }));
      grid.append(svg("text", { x: left - 8, y: sy(t) + 4, "text-anchor": "end" }, short(t)));
    }
    for (const t of xTicks) {
      grid.append(svg("line", { x1: sx(t), x2: sx(t), y1: bottom, y2: bottom + 4 }));
      const anchor = sx(t) > right - 16 ? "end" : "middle"; // keeps the last label inside
      const x = anchor === "end" ? right + 8 : sx(t);
      grid.append(svg("text", { x, y: bottom + 18, "text-anchor": anchor }, options.show(t)));
    }
    grid.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    grid.append(
      svg("text", { class: "title", x: right, y: bottom + 35, "text-anchor": "end" }, options.x),
    );
    const frame = { x: left - 4, y: top - 4, width: right - left + 8, height: bottom - top + 4 };
    const plot = svg("g", { "clip-path": "url(#plot)" });
    picture.append(svg("clipPath", { id: "plot" }, svg("rect", frame)), grid, plot);
    for (const s of this.series) {
      const points = thin(s.points, right - left);
      const path = points.map(([x, y]) => `${sx(x).toFixed(1)} ${sy(y).toFixed(1)}`).join("L");
      // a colour as style: SVG attributes do not accept var() and light-dark()
      plot.append(svg("path", { class: s.style, d: `M${path}`, vars: { stroke: s.colour } }));
      const mark = ([x, y]) =>
        svg("circle", { cx: sx(x), cy: sy(y), r: 2.5, vars: { fill: s.colour } });
      if (s.style === "dots" && points.length < 60) plot.append(...points.map(mark));
      else if (points.length === 1) plot.append(mark(points[0]));
    }
    this.hair = svg("g", { class: "hair" });
    picture.append(this.hair);
    picture.setAttribute("aria-label", `${options.y} by ${options.x}; arrow keys read the curves`);
    if (this.last) this.end();
    else this.read(this.at, this.height);
  }

  scales(width) {
    const all = this.series.flatMap((s) => s.points);
    const xs = all.map((p) => p[0]);
    const ys = all.map((p) => p[1]);
    const bounds = (v) =>
      v.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
    const [x0, x1] = bounds(xs);
    const { log, clip } = this.options;
    const f = log ? Math.log : (v) => v;
    const [lowest, highest] = clip ? usual(ys.map(f)) : [-Infinity, Infinity];
    const inside = ys.filter((y) => f(y) >= lowest && f(y) <= highest);
    this.outside = ys.length - inside.length;
    let [y0, y1] = bounds(inside);
    if (y0 === y1)
      [y0, y1] = log
        ? [y0 / 2, y1 * 2]
        : [y0 - (Math.abs(y0) || 1) / 2, y1 + (Math.abs(y1) || 1) / 2];
    this.left = MARGIN.left;
    this.right = width - MARGIN.right;
    this.top = MARGIN.top;
    this.bottom = HEIGHT - MARGIN.bottom;
    const pad = 0.04 * (f(y1) - f(y0));
    const [low, high] = [f(y0) - pad, f(y1) + pad];
    const back = log ? Math.exp : (v) => v;
    this.sx = (x) => this.left + ((x - x0) / (x1 - x0 || 1)) * (this.right - this.left);
    this.sy = (y) => this.bottom - ((f(y) - low) / (high - low)) * (this.bottom - this.top);
    this.unx = (px) => x0 + ((px - this.left) / (this.right - this.left)) * (x1 - x0);
    this.xTicks = ticks(x0, x1, Math.max(2, Math.floor(width / 110)));
    this.yTicks = (log ? logTicks : ticks)(back(low), back(high), 6);
  }

  /** How many outliers are cut off, in words. */
  cut() {
    if (!this.series?.length || !this.outside) return "";
    const are = this.outside === 1 ? "lies outside and is" : "lie outside and are";
    return `${plural(this.outside, "value")} ${are} cut off`;
  }

  point(e) {
    if (this.series?.length) this.read(this.unx(e.offsetX), e.offsetY);
  }

  key(e) {
    if (
      !this.series?.length ||
      !["ArrowLeft", "ArrowRight", "Home", "End", "Escape"].includes(e.key)
    )
      return;
    e.preventDefault();
    if (e.key === "Escape") return this.read(null);
    const points = this.longest();
    const now = this.at === null ? -1 : nearest(points, this.at);
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: points.length - 1 }[e.key];
    if (to >= points.length - 1) this.end();
    else this.read(points[Math.max(0, to)][0]);
  }

  longest() {
    return this.series.reduce((a, b) => (b.points.length > a.points.length ? b : a)).points;
  }

  /** Put the cross-hair at the last point, and keep it there. */
  end() {
    this.read(this.longest().at(-1)[0]);
    this.last = true;
  }

  /** Put the cross-hair at x (null: nowhere), and show the numbers there. y: of the pointer. */
  read(x, y = null) {
    this.at = x;
    this.height = y;
    this.last = false;
    this.box.hidden = x === null || !this.series?.length;
    this.hair?.replaceChildren();
    if (this.box.hidden) return;
    const lines = this.series.filter((s) => s.style === "line");
    const steps = (lines.length ? lines : this.series).map(
      (s) => s.points[nearest(s.points, x)][0],
    );
    const step = steps.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
    const read = this.series
      .filter((s) => s.style !== "faint" && step >= s.points[0][0] && step <= s.points.at(-1)[0])
      .map((s) => ({ ...s, at: s.points[nearest(s.points, x)] }));
    const kept = this.nearestLines(read);
    const at = this.sx(step);
    this.hair.append(svg("line", { x1: at, x2: at, y1: this.top, y2: this.bottom }));
    for (const { at, colour } of kept)
      this.hair.append(
        svg("circle", { cx: this.sx(at[0]), cy: this.inside(at[1]), r: 4, vars: { fill: colour } }),
      );
    const { x: unit, show } = this.options;
    const rows = kept.map(({ name, kind, colour, at: [px, py] }) =>
      el(
        "tr",
        {},
        el(
          "th",
          {},
          el("i", { class: "swatch", vars: { "--c": colour } }),
          name && el("span", { class: "run-label" }, name),
          name && kind ? ` ${kind}` : kind,
        ),
        el("td", {}, short(py)),
        el("td", { class: "hint" }, px === step ? "" : `at ${show(px)}`),
      ),
    );
    const more = read.length - kept.length;
    this.box.replaceChildren(
      el("p", {}, `${unit} `, el("b", {}, show(step))),
      el("table", {}, el("tbody", {}, rows)),
      ...(more ? [el("p", { class: "more" }, `and ${count(more)} more`)] : []),
    );
    const width = this.element.clientWidth;
    const w = this.box.offsetWidth;
    const left = at + 14 + w < width ? at + 14 : at - 14 - w;
    this.box.style.left = `${Math.max(0, Math.min(width - w, left))}px`;
  }

  /** The pixel position of y; at the border if it is cut off. */
  inside(y) {
    return Math.max(this.top, Math.min(this.bottom, this.sy(y)));
  }

  /** As many series as there are lines for: the nearest to the pointer, sorted from the top. */
  nearestLines(read) {
    if (read.length < LINES) return read; // one line is the title
    const height = this.height ?? this.bottom;
    const far = (s) => Math.abs(this.inside(s.at[1]) - height);
    const kept = read.sort((a, b) => far(a) - far(b)).slice(0, LINES - 2); // and one: how many more
    return kept.sort((a, b) => b.at[1] - a.at[1]);
  }
}
