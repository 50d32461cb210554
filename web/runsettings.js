// A table of the settings of several runs.

import { el } from "./dom.js";

/**
 * The content of the card of settings. runs: those that are shown; options.all: whether to list
 * settings that are equal in all of them; onchange() is called when that changes; colourOf(name): a
 * CSS colour.
 */
export function settingsTable(runs, options, colourOf, onchange) {
  const keys = [...new Set(runs.flatMap((r) => Object.keys(r.settings ?? {})))];
  const written = (run, key) => (key in (run.settings ?? {}) ? String(run.settings[key]) : "–");
  // out_dir is the run's name, which the table's head shows
  const differs = (key) => key !== "out_dir" && new Set(runs.map((r) => written(r, key))).size > 1;
  const compare = runs.length > 1;
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
          onchange();
        },
      }),
      "Only what differs",
    );
  const head = runs.map((r) =>
    el(
      "th",
      { scope: "col" },
      el("i", { class: "swatch", vars: { "--c": colourOf(r.name) } }),
      r.name,
    ),
  );
  const rows = wanted.map((key) =>
    el(
      "tr",
      { class: compare && options.all && differs(key) ? "differs" : null },
      el("th", { scope: "row", class: "mono" }, key),
      runs.map((r) => el("td", { class: "mono" }, written(r, key))),
    ),
  );
  const table = el(
    "table",
    {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "setting"), head)),
    el("tbody", {}, rows),
  );
  const none = keys.length ? "These runs have the same settings." : "These runs have no settings.";
  return [
    el("header", { class: "row" }, el("h2", {}, "Settings"), toggle),
    wanted.length
      ? el(
          "div",
          { class: "scroll", tabindex: 0, role: "group", "aria-label": "Settings of the runs" },
          table,
        )
      : el("p", { class: "hint" }, none),
  ];
}
