// The list of runs, with a filter, an order and a checkbox for each run.

import { count, el, short } from "./dom.js";

const worst = (loss) => (Number.isFinite(loss) ? loss : Infinity);
const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });

// "Latest first" keeps the order of runs.js.
export const ORDERS = {
  latest: { label: "Latest first", compare: () => 0 },
  name: { label: "By name", compare: byName },
  loss: { label: "By validation loss", compare: (a, b) => worst(a.val_loss) - worst(b.val_loss) },
  steps: { label: "By steps", compare: (a, b) => b.step - a.step },
};

/** Runs that match all words of a text: by name, by dataset, or by a setting such as n_layer=12. */
function matching(runs, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const says = (run, word) =>
    run.name.toLowerCase().includes(word) ||
    Object.entries(run.settings ?? {}).some(([key, value]) =>
      word.includes("=")
        ? `${key}=${value}`.toLowerCase() === word
        : key === "dataset" && String(value).toLowerCase().includes(word),
    );
  return runs.filter((run) => words.every((word) => says(run, word)));
}

/** Whether a run still trains: its last row is new, and it has not reached its last step. */
const trains = (run) => run.live && !(run.max_iters && run.step >= run.max_iters);

/**
 * list.element shows runs; list.draw(runs, picked, colourOf) updates it. options: filter and order,
 * which the list changes; then it calls onfilter(). onpick(names, wanted) is called when runs are
 * ticked or unticked.
 */
export class RunList {
  constructor(options, onfilter, onpick) {
    this.options = options;
    this.rowOf = new Map(); // name -> { element, refresh }
    this.onpick = onpick;
    this.rows = el("div", { id: "run-list" });
    this.said = el("span", { class: "hint", "aria-live": "polite" });
    const filter = el("input", {
      ...{ type: "search", id: "run-filter", placeholder: "Filter, also n_layer=12" },
      ...{ "aria-label": "Filter runs", value: options.filter, autocomplete: "off" },
    });
    filter.addEventListener("input", () => {
      options.filter = filter.value;
      onfilter();
    });
    const order = el(
      "select",
      { id: "run-order", "aria-label": "Order of the runs" },
      Object.entries(ORDERS).map(([key, o]) =>
        el("option", { value: key, selected: key === options.order }, o.label),
      ),
    );
    order.addEventListener("change", () => {
      options.order = order.value;
      onfilter();
    });
    const pick = (label, wanted) =>
      el(
        "button",
        { type: "button", class: "quiet", onclick: () => onpick(this.names, wanted) },
        label,
      );
    this.element = el(
      "aside",
      { class: "run-list", "aria-label": "Runs" },
      el("div", { class: "run-tools" }, filter, order),
      el("div", { class: "run-tools" }, this.said, pick("All", true), pick("None", false)),
      this.rows,
    );
  }

  draw(runs, picked, colourOf) {
    const found = matching(runs, this.options.filter).sort(ORDERS[this.options.order].compare);
    this.names = found.map((r) => r.name);
    this.said.textContent =
      `${count(picked.size)} shown of ${count(runs.length)}` +
      (found.length < runs.length ? `, ${count(found.length)} listed` : "");
    // the rows' elements are kept: replacing one under the pointer would lose a click
    for (const run of found) {
      if (!this.rowOf.has(run.name)) this.rowOf.set(run.name, this.row(run.name));
      this.rowOf.get(run.name).refresh(run, picked.has(run.name), colourOf(run.name));
    }
    const elements = found.map((r) => this.rowOf.get(r.name).element);
    const there = this.rows.children;
    if (there.length === elements.length && elements.every((e, i) => e === there[i])) return;
    const nothing = el("p", { class: "hint" }, "No run matches these words.");
    this.rows.replaceChildren(...(elements.length ? elements : [nothing]));
  }

  row(name) {
    const input = el("input", { type: "checkbox", "data-run": name });
    input.addEventListener("change", () => this.onpick([name], input.checked));
    const live = el("em", { class: "live" }, "live");
    const step = el("span");
    const val = el("b");
    const bar = el("i", { class: "bar", "aria-hidden": true });
    const element = el(
      "label",
      { class: "run" },
      input,
      el("span", { class: "run-name" }, name, live),
      el("span", { class: "run-numbers" }, step, el("span", {}, "val ", val)),
      bar,
    );
    const refresh = (run, picked, colour) => {
      input.checked = picked;
      if (colour) element.style.setProperty("--c", colour);
      live.hidden = bar.hidden = !trains(run);
      step.replaceChildren(
        "step ",
        el("b", {}, count(run.step)),
        run.max_iters ? ` of ${count(run.max_iters)}` : "",
      );
      val.textContent = short(run.val_loss);
      const done = run.max_iters ? Math.min(100, (100 * run.step) / run.max_iters) : 0;
      bar.style.setProperty("--p", `${done}%`);
    };
    return { element, refresh };
  }
}
