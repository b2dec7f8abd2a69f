"use strict";
// What the index says, as it grows, and the steps' files, loaded when they are needed.

/** Data scripts put their strings of JSON here; nothing in a string is run. */
const reportData = Object.create(null);

const FORMAT = 1;
const MAX_LOADED = 60;  // steps' files in memory

const store = {
  runs: [],
  clipFailures: new Map(),
  /** Raised with each change, so that what is computed from the store can be kept until then. */
  version: 0,
};

/** Take one line of the index. */
function takeLine(line) {
  const entry = JSON.parse(line);
  store.version += 1;
  if (entry.runs) return takeRuns(entry);
  if (entry.clip) return void store.clipFailures.set(entry.clip, entry.reason);
  if ("warnings" in entry) return void (store.runs[entry.warnings].warnings = entry.list);
  if ("forget" in entry) return forget(store.runs[entry.forget], entry.what, entry.after);
  for (const kind of ["metrics", "failures"]) {
    // One by one: a spread puts all of them on the stack.
    if (kind in entry) return void entry.rows.forEach((row) => store.runs[entry[kind]][kind].push(row));
  }
  for (const kind of ["rollouts", "answers"]) {
    if (kind in entry) return void store.runs[entry[kind]][kind].set(entry.step, entry);
  }
}

function takeRuns(entry) {
  if (entry.format !== FORMAT) throw new Error("The index is of another version: write the report again.");
  store.runs = entry.runs.map((run, number) => ({
    ...run, number, metrics: [], failures: [], warnings: [], rollouts: new Map(), answers: new Map(),
  }));
}

function forget(run, what, after) {
  if (Array.isArray(run[what])) run[what] = run[what].filter((row) => row.step <= after);
  else for (const step of [...run[what].keys()]) if (step > after) run[what].delete(step);
}

/** The index of a page that was opened from the disk. */
async function readIndexFromDisk() {
  const text = await loadData("index");
  text.split("\n").filter(Boolean).forEach(takeLine);
}

const followed = { offset: 0, rest: [] };

/** Read on in a served index, by byte offset; returns whether there was something new. */
async function readIndexOn() {
  const answer = await fetch("index.jsonl", { headers: { Range: `bytes=${followed.offset}-` }, cache: "no-store" });
  if (answer.status === 204) return false;
  if (answer.status === 416) {  // other servers than ours say so as well where there is nothing new
    const size = Number((answer.headers.get("Content-Range") || "").split("/")[1]);
    if (size < followed.offset) location.reload();  // the report was begun anew
    return false;
  }
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  let bytes = new Uint8Array(await answer.arrayBuffer());
  if (answer.status === 200) bytes = bytes.subarray(followed.offset);  // a server without ranges
  const end = bytes.lastIndexOf(10) + 1;
  new TextDecoder().decode(bytes.subarray(0, end)).split("\n").filter(Boolean).forEach(takeLine);
  followed.offset += end;
  return end > 0;
}

/** The value of a data file, by the script that assigns it. */
function loadData(name) {
  return new Promise((resolve, reject) => {
    const script = el("script", { src: `data/${name}.js?${store.version}` });
    script.onload = () => {
      script.remove();
      const text = reportData[name];
      delete reportData[name];
      text === undefined ? reject(new Error(`data/${name}.js is empty`)) : resolve(JSON.parse(text));
    };
    script.onerror = () => {
      script.remove();
      reject(new Error(`data/${name}.js can't be read`));
    };
    document.head.append(script);
  });
}

const loaded = new Map();

/** The groups of a step; those looked at longest ago are dropped when there are many. */
function loadStep(block) {
  const kept = loaded.get(block.file);
  const promise = kept && kept.block === block ? kept.promise : loadData(block.file);
  loaded.delete(block.file);
  loaded.set(block.file, { block, promise });
  promise.catch(() => loaded.delete(block.file));
  if (loaded.size > MAX_LOADED) loaded.delete(loaded.keys().next().value);
  return promise;
}

const tables = {};

/** All completions of a kind in columns: where each is, and its figures, NaN where there is none. */
function tableOf(kind) {
  if (tables[kind] && tables[kind].version === store.version) return tables[kind];
  const blocks = store.runs.flatMap((run) => [...run[kind].values()].sort((a, b) => a.step - b.step)
    .map((block) => ({ run: run.number, block })));
  const length = blocks.reduce((sum, { block }) => sum + block.columns.total.length, 0);
  const table = {
    kind, version: store.version, length, blocks: blocks.map(({ block }) => block),
    blockOf: new Int32Array(length), run: new Int32Array(length), step: new Int32Array(length),
    group: new Int32Array(length), index: new Int32Array(length), flat: new Uint8Array(length),
    columns: {}, names: columnNames(blocks),
  };
  for (const name of table.names) table.columns[name] = new Float64Array(length).fill(NaN);
  let row = 0;
  blocks.forEach(({ run, block }, number) => {
    fillRows(table, block, run, number, row);
    row += block.columns.total.length;
  });
  markFailed(table);
  tables[kind] = table;
  return table;
}

function columnNames(blocks) {
  const names = new Set();
  for (const { block } of blocks) for (const name of Object.keys(block.columns)) names.add(name);
  names.delete("answer");
  return [...names];
}

function fillRows(table, block, run, number, start) {
  let row = start;
  block.groups.size.forEach((size, group) => {
    const advantages = block.columns.advantage.slice(row - start, row - start + size);
    const isFlat = table.kind === "rollouts" && !advantages.some((each) => each);
    for (let index = 0; index < size; index += 1, row += 1) {
      table.blockOf[row] = number;
      table.run[row] = run;
      table.step[row] = block.step;
      table.group[row] = group;
      table.index[row] = index;
      table.flat[row] = isFlat ? 1 : 0;
    }
  });
  for (const name of table.names) {
    const values = block.columns[name];
    if (values) values.forEach((value, offset) => { if (value !== null) table.columns[name][start + offset] = value; });
  }
}

/** Completions on which a reward failed, as failures.jsonl has them. */
function markFailed(table) {
  table.failed = new Uint8Array(table.length);
  const failed = new Set();
  for (const run of store.runs) {
    for (const row of run.failures) {
      if (row.kind === "reward") failed.add(`${run.number}|${row.step}|${row.sample_id}|${row.rollout}`);
    }
  }
  if (!failed.size) return;
  for (let row = 0; row < table.length; row += 1) {
    const key = `${table.run[row]}|${table.step[row]}|${sampleOf(table, row)}|${table.index[row]}`;
    if (failed.has(key)) table.failed[row] = 1;
  }
}

function blockAt(table, row) {
  return table.blocks[table.blockOf[row]];
}

function sampleOf(table, row) {
  return blockAt(table, row).groups.sample[table.group[row]];
}

function categoryOf(table, row) {
  const block = blockAt(table, row);
  return table.kind === "answers" && block.pass ? answersOf(block, table.group[row]) : block.groups.category[table.group[row]];
}

/** The set and the pass of an answer to a held-out question; a group of answers has one. */
function answersOf(block, group) {
  return `${block.set[group]}, ${block.pass[group]}`;
}

function answerAt(table, row, start) {
  return blockAt(table, row).columns.answer[row - start];
}
