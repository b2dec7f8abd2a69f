"use strict";
// Which completions the filter lets through, and in which order. Everything is computed from columns.

/** The ready-made questions: what a person looks for first. A sort is a column; - before it: highest first. */
const SHOWS = {
  all: { label: "All", hint: "every completion", test: () => true },
  wrong: {
    label: "Wrong but rewarded",
    hint: "a wrong answer above the mean of its group: what a hacked reward looks like",
    test: (table, row) => table.columns.right[row] === 0 && isRaised(table, row),
    sort: "-advantage",
  },
  highest: { label: "Highest reward", hint: "the highest totals", test: (table, row) => !Number.isNaN(table.columns.total[row]), sort: "-total" },
  gap: {
    label: "Worst gap",
    hint: "engine and learner differ most in their log-probs",
    test: (table, row) => !Number.isNaN(table.columns.gap[row]),
    sort: "-gap",
  },
  flat: { label: "Flat", hint: "groups without signal: all advantages are 0", test: (table, row) => table.flat[row] === 1 },
  cut: { label: "Cut", hint: "completions that ended at the token limit", test: (table, row) => table.columns.stopped[row] === 0 },
  failed: {
    label: "Failed",
    hint: "a reward failed, or there is no total",
    test: (table, row) => table.failed[row] === 1 || Number.isNaN(table.columns.total[row]),
  },
};

function isRaised(table, row) {
  const advantage = table.columns.advantage[row];
  return table.kind === "answers" ? table.columns.total[row] > 0 : advantage > 0;
}

let selected = { key: "" };

/** The rows that pass the filter, sorted. `without`: the name of a column whose own range is left aside. */
function selectRows(table, without = null) {
  const test = SHOWS[state.show] ? SHOWS[state.show].test : SHOWS.all.test;
  const off = new Set(state.off.split(",").filter(Boolean).map(Number));
  const [first, last] = stepRange();
  const bins = Object.entries(state.bins).filter(([name]) => name !== without && table.columns[name]);
  const sample = sampleTest();
  const rows = [];
  for (let row = 0; row < table.length; row += 1) {
    const step = table.step[row];
    if (step < first || step > last || off.has(table.run[row])) continue;
    if (!bins.every(([name, range]) => inRange(table.columns[name][row], range))) continue;
    if (state.category && categoryOf(table, row) !== state.category) continue;
    if (sample && !sample(sampleOf(table, row))) continue;
    if (test(table, row)) rows.push(row);
  }
  return rows;
}

/** A range holds its lower end, and its upper end where both are one value or the range is the last. */
function inRange(value, [low, high]) {
  return value >= low && (value < high || value === low);
}

function sampleTest() {
  const wanted = state.sample;
  if (!wanted) return null;
  if (wanted.startsWith("=")) return (id) => id === wanted.slice(1);
  const part = wanted.toLowerCase();
  return (id) => id.toLowerCase().includes(part);
}

/** The order that the state asks for: a column, with - before it for the highest first. */
function sortOrder() {
  const asked = state.sort || (SHOWS[state.show] && SHOWS[state.show].sort) || "";
  return { name: asked.replace(/^-/, ""), sign: asked.startsWith("-") ? -1 : 1 };
}

function sortRows(table, rows) {
  const { name, sign } = sortOrder();
  const values = name === "step" ? table.step : table.columns[name];
  if (!values) return rows;
  const rank = (row) => (Number.isNaN(values[row]) ? Infinity : sign * values[row]);
  return rows.sort((one, other) => rank(one) - rank(other) || one - other);
}

/** What the lists and histograms show now; computed once for each state and version of the store. */
function selection() {
  const { tab, group, beside, completion, shade, smooth, theme, ...filter } = state;
  const key = JSON.stringify([store.version, filter]);
  if (selected.key !== key) {
    const table = tableOf(state.kind);
    selected = { key, table, rows: sortRows(table, selectRows(table)) };
  }
  return selected;
}

function isFiltered() {
  return ["off", "show", "steps", "category", "sample"].some((name) => state[name] !== DEFAULTS[name])
    || Object.keys(state.bins).length > 0;
}

const NO_FILTER = { off: "", show: "all", steps: "", category: "", sample: "", sort: "", bins: {} };

// The bar of filters.

function showFilters() {
  const { table, rows } = selection();
  const bar = byId("filters");
  const focused = document.activeElement && bar.contains(document.activeElement) ? document.activeElement.name : null;
  bar.replaceChildren(...[
    kindSwitch(),
    el("div", { class: "chips", role: "group", "aria-label": "What to show" }, ...Object.entries(SHOWS).map(showChip)),
    el("span", { class: "grow" }),
    field("steps", "step", "10-20", 9),
    field("sample", "question", "part of its id", 14),
    categorySelect(table),
    el("output", { class: "count", text: countText(rows.length, table.length) }),
    el("button", { class: "quiet", text: "Clear", title: "Take all filters away", hidden: isFiltered() ? null : "", on: { click: () => go(NO_FILTER) } }),
    ...Object.keys(state.bins).map(binChip),
  ].filter(Boolean));
  if (focused) {
    const again = bar.querySelector(`[name="${focused}"]`);
    if (again) { again.focus(); if (again.setSelectionRange) again.setSelectionRange(again.value.length, again.value.length); }
  }
}

function countText(some, all) {
  return some === all ? `${all.toLocaleString("en")} completions` : `${some.toLocaleString("en")} of ${all.toLocaleString("en")}`;
}

function kindSwitch() {
  const kinds = [["rollouts", "Training"], ["answers", "Held-out"]];
  return el("div", { class: "switch" }, ...kinds.map(([kind, label]) => el("button", {
    text: label, "aria-pressed": state.kind === kind, data: { kind },
    on: { click: () => go({ ...NO_FILTER, off: state.off, kind }) },
  })));
}

function showChip([name, { label, hint }]) {
  return el("button", {
    class: "chip", text: label, title: hint, "aria-pressed": state.show === name, data: { show: name },
    on: { click: () => go({ show: name === state.show ? "all" : name, sort: "" }) },
  });
}

function binChip(name) {
  const [low, high] = state.bins[name];
  const { [name]: _, ...others } = state.bins;
  const range = high === Infinity || high === low ? number(low) : `${number(low)} to ${number(high)}`;
  return el("button", {
    class: "chip bin", text: `${columnLabel(name)}: ${range} ✕`, title: "Take this filter away",
    on: { click: () => go({ bins: others }) },
  });
}

function field(name, label, placeholder, size) {
  const change = settled((value) => go({ [name]: value }, { replaces: true }), 200);
  return el("label", {}, el("span", { text: label }), el("input", {
    name, placeholder, size, value: state[name], autocomplete: "off", spellcheck: "false",
    on: { input: (event) => change(event.target.value.trim()) },
  }));
}

function categorySelect(table) {
  const found = new Set(table.blocks.flatMap((block) => (
    table.kind === "answers" && block.pass ? block.set.map((_, group) => answersOf(block, group)) : block.groups.category)));
  if (found.size < 2 && !state.category) return null;
  const select = el("select", { name: "category", on: { change: (event) => go({ category: event.target.value }) } },
    el("option", { value: "", text: "all" }),
    ...[...found].sort().map((each) => el("option", { value: each, text: each })));
  select.value = state.category;
  return el("label", {}, el("span", { text: table.kind === "answers" ? "set" : "category" }), select);
}

/** A column's name as a person reads it. */
function columnLabel(name) {
  if (name.startsWith("raw/")) return name.slice(4);
  if (name.startsWith("part/")) return `${name.slice(5)} adds`;
  return { total: "total", advantage: "advantage", tokens: "tokens", gap: "gap", logp: "log-prob", stopped: "ended", right: "right" }[name] || name;
}
