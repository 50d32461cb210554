// From the rows of metrics.jsonl to curves.

import { smooth } from "./chart.js";
import { compact, count, short } from "./dom.js";

// The metrics. step, evaluation: their keys in metrics.jsonl for logged steps and for evaluations;
// exact: without noise, so it is never smoothed.
export const METRICS = {
  loss: { label: "Loss", unit: "loss (nats per token)", step: "loss", evaluation: "val_loss" },
  bpb: { label: "Bits per byte", unit: "validation, bits per byte", evaluation: "val_bpb" },
  accuracy: { label: "Accuracy", unit: "share of the questions answered right", evaluation: "accuracy" },
  core: { label: "CORE", unit: "CORE, 0: as by guessing", evaluation: "core" },
  lr: { label: "Learning rate", unit: "learning rate", step: "lr", exact: true },
  grad: { label: "Gradient norm", unit: "gradient norm", step: "grad_norm" },
  speed: { label: "Tokens/s", unit: "tokens per second", step: "tokens_per_s" },
};

// The x axes. of: x of a row, from the row and its place (see placed); scale: from the largest x to
// a divisor of x and the name of that unit.
export const BY = {
  step: { label: "Step", of: (row) => row.iter, scale: () => [1, "step"], show: count },
  tokens: { label: "Tokens", of: (row, at) => at.tokens, scale: () => [1, "tokens"], show: compact },
  time: {
    label: "Time",
    of: (row, at) => at.seconds,
    scale: (most) =>
      most < 180
        ? [1, "training time, seconds"]
        : most < 10800
          ? [60, "training time, minutes"]
          : [3600, "training time, hours"],
    show: short,
  },
};

/**
 * For each row how many tokens and seconds of training came before it. Rows of evaluations have
 * both numbers; between two of them they are summed up from the rates of the logged steps.
 */
export function placed(rows) {
  let at = { iter: 0, tokens: 0, seconds: 0 };
  return rows.map((row) => {
    const steps = Math.max(0, (row.iter ?? 0) - at.iter);
    const seconds = row.seconds ?? at.seconds + (steps * (row.ms ?? 0)) / 1000;
    const rate = ((row.tokens_per_s ?? 0) * (row.ms ?? 0)) / 1000; // tokens per step
    const tokens = row.tokens ?? at.tokens + steps * rate;
    at = {
      iter: row.iter ?? at.iter,
      tokens: Math.max(at.tokens, tokens),
      seconds: Math.max(at.seconds, seconds),
    };
    return at;
  });
}

/**
 * The argument of Chart.draw. runs: [{ name, colour, rows }]; options: metric, by, smoothing, log,
 * clip. Runs without numbers of this metric have empty series.
 */
export function curves(runs, options) {
  const metric = METRICS[options.metric];
  const by = BY[options.by];
  const several = runs.length > 1;
  const series = [];
  for (const { name, colour, rows } of runs) {
    const places = options.by === "step" ? [] : placed(rows);
    const points = (key, wanted) =>
      rows.flatMap((row, i) => {
        const x = wanted(row) && Number.isFinite(row[key]) ? by.of(row, places[i]) : NaN;
        return Number.isFinite(x) ? [[x, row[key]]] : [];
      });
    const label = (kind) =>
      metric.step && metric.evaluation ? { name: several ? name : "", kind } : { name };
    if (metric.step) {
      // an evaluation repeats the learning rate
      const raw = points(metric.step, (row) => !("val_loss" in row));
      const weight = metric.exact ? 0 : options.smoothing;
      if (weight > 0) series.push({ name, colour, points: raw, style: "faint" });
      const found = smooth(raw, weight);
      series.push({ ...label("training"), colour, points: found, style: "line" });
    }
    if (metric.evaluation) {
      const found = points(metric.evaluation, () => true);
      series.push({ ...label("validation"), colour, points: found, style: "dots" });
    }
  }
  const most = series.reduce((a, s) => Math.max(a, s.points.at(-1)?.[0] ?? 0), 0);
  const [unit, x] = by.scale(most);
  for (const s of series) if (unit !== 1) s.points = s.points.map(([x, y]) => [x / unit, y]);
  const { log, clip } = options;
  return { series, log, clip, x, y: metric.unit, show: by.show };
}
