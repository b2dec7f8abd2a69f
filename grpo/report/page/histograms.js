"use strict";
// Small histograms of what the filter lets through; a click on a bar lets only its completions through.

const BARS = 20;
const HISTOGRAM = { width: 150, height: 44 };

function showHistograms() {
  const { table, rows } = selection();
  const raws = table.names.filter((name) => name.startsWith("raw/"));
  const names = ["total", ...raws, "advantage", "tokens", "gap", "logp"].filter((name) => table.columns[name]);
  byId("histograms").replaceChildren(...names.map((name) => histogram(table, name, rows)).filter(Boolean));
}

/** Equal bins over the values of the whole table, so that bars stay where they are when filters change. */
function binsOf(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return null;
  if (low === high) return { low, width: 0, count: 1 };
  return { low, width: (high - low) / BARS, count: BARS };
}

function binOf(bins, value) {
  return bins.width ? Math.min(bins.count - 1, Math.floor((value - bins.low) / bins.width)) : 0;
}

function binRange(bins, bin) {
  const from = bins.low + bin * bins.width;
  return [from, bin === bins.count - 1 ? Infinity : bins.low + (bin + 1) * bins.width];
}

function histogram(table, name, rows) {
  const values = table.columns[name];
  const bins = binsOf(values);
  if (!bins) return null;
  const own = state.bins[name] ? selectRows(table, name) : rows;
  const counts = new Array(bins.count).fill(0);
  let missing = 0;
  for (const row of own) {
    if (Number.isNaN(values[row])) missing += 1;
    else counts[binOf(bins, values[row])] += 1;
  }
  const high = bins.low + bins.width * bins.count;
  return el("figure", { class: "histogram", data: { column: name } },
    el("figcaption", {}, el("button", {
      class: "plain", text: columnLabel(name), title: "Sort by it",
      on: { click: () => go({ sort: state.sort === `-${name}` ? name : `-${name}` }) },
    }), sortMark(name), el("span", { class: "mean", text: meanText(values, own) })),
    bars(name, bins, counts),
    el("div", { class: "ends" }, el("span", { text: number(bins.low) }),
      missing ? el("span", { text: `${missing.toLocaleString("en")} without`, title: "completions without a value" }) : null,
      el("span", { text: number(high) })));
}

function sortMark(name) {
  const order = sortOrder();
  return order.name === name ? el("span", { class: "mark", text: order.sign < 0 ? "↓" : "↑" }) : null;
}

function meanText(values, rows) {
  let sum = 0;
  let size = 0;
  let count = 0;
  for (const row of rows) if (!Number.isNaN(values[row])) { sum += values[row]; size += Math.abs(values[row]); count += 1; }
  // What is left of values that cancel is rounding.
  return count ? `mean ${number(Math.abs(sum) < 1e-5 * size ? 0 : sum / count)}` : "";
}

function bars(name, bins, counts) {
  const most = Math.max(...counts, 1);
  return el("div", { class: "bars" }, ...counts.map((count, bin) => {
    const [from, to] = binRange(bins, bin);
    const isOn = state.bins[name] && state.bins[name][0] === from;
    return el("button", {
      class: "bar" + (isOn ? " on" : ""), "aria-pressed": Boolean(isOn), data: { bin },
      title: `${columnLabel(name)} ${number(from)}${bins.width ? ` to ${number(from + bins.width)}` : ""}: ${count.toLocaleString("en")}`,
      style: { "--share": count ? Math.max(0.04, count / most) : 0 },
      on: { click: () => toggleBin(name, [from, to]) },
    });
  }));
}

function toggleBin(name, range) {
  const { [name]: before, ...others } = state.bins;
  go({ bins: before && before[0] === range[0] ? others : { ...others, [name]: range } });
}
