"use strict";
// The one state of all views, kept in the address: a link shows what its sender saw, and going back undoes a click.

const DEFAULTS = {
  tab: "curves",
  /** Numbers of runs that are left out, with commas. */
  off: "",
  kind: "rollouts",
  show: "all",
  /** First and last step, as 10-20. */
  steps: "",
  category: "",
  /** A part of a question's id, or with = before it all of it. */
  sample: "",
  sort: "",
  /** The group in the viewer, and one beside it: run.kind.step.group. */
  group: "",
  beside: "",
  completion: "",
  shade: "logp",
  smooth: "",
  theme: "",
};

/** Filters on columns, as from..to by the column's name; they are in the address with "in." before the name. */
const BIN = "in.";

let state = readAddress();
const listeners = [];

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const found = { ...DEFAULTS, bins: {} };
  for (const [name, value] of given) {
    if (name.startsWith(BIN)) {
      const range = value.split("..").map(Number);
      if (range.length === 2 && !range.some(Number.isNaN)) found.bins[name.slice(BIN.length)] = range;
    } else if (name in DEFAULTS) found[name] = value;
  }
  return found;
}

function addressOf(of) {
  const out = new URLSearchParams();
  for (const name of Object.keys(DEFAULTS)) if (of[name] !== DEFAULTS[name]) out.set(name, of[name]);
  for (const [name, [low, high]] of Object.entries(of.bins)) out.set(BIN + name, `${low}..${high}`);
  return "#" + out.toString();
}

/** Change the state and show it. `replaces`: whether it takes the place of the latest entry of the history. */
function go(changes, { replaces = false } = {}) {
  const next = { ...state, ...changes };
  const address = addressOf(next);
  if (address === addressOf(state)) return;
  state = next;
  history[replaces ? "replaceState" : "pushState"](null, "", address);
  changed();
}

function changed() {
  for (const listen of listeners) listen();
}

addEventListener("popstate", () => { state = readAddress(); changed(); });
addEventListener("hashchange", () => { state = readAddress(); changed(); });

function groupKey(run, kind, step, group) {
  return `${run}.${kind}.${step}.${group}`;
}

/** The run, block and number of a group's key; null if there is none. */
function findGroup(key) {
  const found = /^(\d+)\.(rollouts|answers)\.(\d+)\.(\d+)$/.exec(key);
  const run = found && store.runs[Number(found[1])];
  const block = run && run[found[2]].get(Number(found[3]));
  const group = found ? Number(found[4]) : 0;
  return block && group < block.groups.size.length ? { run, kind: found[2], block, group } : null;
}

/** The first and last step of the filter. */
function stepRange() {
  const found = /^(\d+)?(-)?(\d+)?$/.exec(state.steps);
  if (!found || !state.steps) return [0, Infinity];
  const first = found[1] ? Number(found[1]) : 0;
  return [first, found[2] ? (found[3] ? Number(found[3]) : Infinity) : first];
}
