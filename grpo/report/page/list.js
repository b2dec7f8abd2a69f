"use strict";
// The completions that the filter lets through: only the rows in view are elements, whatever their number.

const ROW_PX = 30;
const SPARE_ROWS = 8;
/** No browser lays out a taller element; beyond it, rows are placed in proportion. */
const MAX_PX = 12_000_000;

function listColumns(table) {
  const sorted = sortOrder().name;
  // The reward that the list is sorted by stands first, where it is seen without moving the list.
  const raws = table.names.filter((name) => name.startsWith("raw/")).sort((one, other) => (other === sorted) - (one === sorted));
  return [
    { name: "step", label: "step", of: (row) => number(table.step[row]) },
    { name: "", label: "question", of: (row) => sampleOf(table, row) },
    { name: "right", label: "answer", of: (row) => answerCell(table, row) },
    { name: "tokens", label: "tok", of: (row) => tokensCell(table, row) },
    { name: "total", label: "total", of: (row) => number(table.columns.total[row]) },
    { name: "advantage", label: "adv", of: (row) => advantageCell(table.columns.advantage[row]) },
    ...raws.map((name) => ({ name, label: columnLabel(name), of: (row) => heatCell(table.columns[name][row], rangeOf(table, name)) })),
  ];
}

const ranges = new WeakMap();

function rangeOf(table, name) {
  if (!ranges.has(table)) ranges.set(table, {});
  const known = ranges.get(table);
  if (!known[name]) {
    const bins = binsOf(table.columns[name]) || { low: 0, width: 0, count: 1 };
    known[name] = [bins.low, bins.low + bins.width * bins.count];
  }
  return known[name];
}

function heatCell(value, [low, high]) {
  const share = Number.isNaN(value) || high === low ? 0 : (value - low) / (high - low);
  return el("span", { class: "heat", text: number(value), style: { "--share": share } });
}

function advantageCell(value) {
  return el("span", { class: "adv " + signName(value), text: signed(value, 2), style: { "--share": Math.min(1, Math.abs(value) / 2) || 0 } });
}

function signName(value) {
  return value > 0 ? "up" : value < 0 ? "down" : "zero";
}

function tokensCell(table, row) {
  const cut = table.columns.stopped[row] === 0;
  return el("span", { class: cut ? "cut" : "", title: cut ? "cut at the token limit" : null, text: number(table.columns.tokens[row]) + (cut ? " ✂" : "") });
}

function answerCell(table, row) {
  const block = blockAt(table, row);
  const right = table.columns.right[row];
  const given = block.columns.answer[rowInBlock(table, row)];
  const mark = right === 1 ? "✓" : right === 0 ? "✗" : "·";
  return el("span", { class: right === 1 ? "right" : right === 0 ? "wrong" : "" },
    el("b", { text: mark }), el("span", { text: given || "—" }));
}

/** The place of a row among the completions of its step. */
function rowInBlock(table, row) {
  if (!table.starts) {
    table.starts = [];
    let start = 0;
    for (const block of table.blocks) { table.starts.push(start); start += block.columns.total.length; }
  }
  return row - table.starts[table.blockOf[row]];
}

function keyOfRow(table, row) {
  return groupKey(table.run[row], table.kind, table.step[row], table.group[row]);
}

function showList() {
  const { table, rows } = selection();
  const columns = listColumns(table);
  const list = byId("list");
  byId("listing").style.setProperty("--columns", ["10px", "2.4rem", "minmax(5.6rem, 1fr)", "3.9rem", "2.7rem", "2.7rem", "3.5rem",
    // Rows are grids of their own, so that a column is as wide as its head everywhere.
    ...columns.slice(6).map(({ label }) => `${Math.min(Math.max(2.9, 0.5 + 0.43 * label.length), 6)}rem`)].join(" "));
  byId("head").replaceChildren(el("span", {}), ...columns.map(headCell));
  byId("spacer").style.height = `${Math.min(MAX_PX, rows.length * ROW_PX)}px`;
  list.dataset.rows = rows.length;
  if (list.dataset.key !== selected.key) {
    const isOnlyMore = list.dataset.filter === JSON.stringify(state.bins) + state.show + state.sort + state.steps;
    if (!isOnlyMore) list.scrollTop = 0;
    list.dataset.filter = JSON.stringify(state.bins) + state.show + state.sort + state.steps;
    list.dataset.key = selected.key;
  }
  fillList(table, rows, columns);
}

function headCell({ name, label }) {
  if (!name) return el("span", { text: label });
  return el("button", { class: "plain", title: `Sort by ${label}`, on: { click: () => go({ sort: state.sort === `-${name}` ? name : `-${name}` }) } },
    el("span", { text: label }), sortMark(name));
}

function fillList(table, rows, columns) {
  const list = byId("list");
  const height = Math.min(MAX_PX, rows.length * ROW_PX);
  const isHuge = height < rows.length * ROW_PX;
  const inView = Math.ceil(list.clientHeight / ROW_PX) || 20;
  const share = list.scrollTop / Math.max(1, height - list.clientHeight);
  const top = isHuge ? Math.round(share * (rows.length - inView)) : Math.floor(list.scrollTop / ROW_PX);
  const first = Math.max(0, top - SPARE_ROWS);
  const start = list.scrollTop - (top - first) * ROW_PX - (isHuge ? 0 : list.scrollTop % ROW_PX);
  const shown = rows.slice(first, top + inView + SPARE_ROWS);
  byId("shown").replaceChildren(...shown.map((row, place) => listRow(table, row, columns, start + place * ROW_PX)));
  if (!rows.length) byId("shown").append(el("p", { class: "empty", text: table.length ? "Nothing passes the filter." : "No completions are stored." }));
}

function listRow(table, row, columns, top) {
  const key = keyOfRow(table, row);
  const isOpen = state.group === key;
  return el("div", {
    class: "row" + (isOpen ? " open" : "") + (isOpen && Number(state.completion) === table.index[row] ? " here" : ""),
    role: "row", data: { row, key, completion: table.index[row] }, style: { transform: `translateY(${top}px)` },
    on: { click: () => go({ group: key, completion: String(table.index[row]) }) },
  }, el("i", { class: "dot", style: { background: runColour(table.run[row]) }, title: store.runs[table.run[row]].name }),
  ...columns.map((column) => {
    const content = column.of(row);
    return content instanceof Node ? el("span", { class: "cell" }, content) : el("span", { class: "cell", text: content, title: content });
  }));
}

/** Move to the row before or behind the one that is open, as the arrow keys do. */
function moveInList(by) {
  const { table, rows } = selection();
  const at = rows.findIndex((row) => keyOfRow(table, row) === state.group && String(table.index[row]) === state.completion);
  const row = rows[Math.min(rows.length - 1, Math.max(0, at + by))];
  if (row === undefined) return;
  go({ group: keyOfRow(table, row), completion: String(table.index[row]) }, { replaces: true });
  const list = byId("list");
  const top = rows.indexOf(row) * ROW_PX;
  if (rows.length * ROW_PX <= MAX_PX && (top < list.scrollTop || top > list.scrollTop + list.clientHeight - ROW_PX)) {
    list.scrollTop = top - list.clientHeight / 2;
  }
}

function startList() {
  const list = byId("list");
  let isAsked = false;
  list.addEventListener("scroll", () => {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      const { table, rows } = selection();
      fillList(table, rows, listColumns(table));
    });
  }, { passive: true });
  list.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    if (by) { event.preventDefault(); moveInList(by); }
  });
}
