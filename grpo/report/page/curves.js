"use strict";
// The curves: a panel for each figure, a line for each run. A click on a step gets its completions.

/** Panels by subject, in order: the figures whose names match, and what a click on one asks for. */
const SUBJECTS = [
  { title: "Rewards and held-out scores", isOpen: true, panels: rewardPanels },
  {
    title: "Who is paid", isOpen: true, panels: payPanels,
    note: "What each reward adds to the totals of right answers (solid) and of wrong ones (dotted), in the stored completions. A reward that pays wrong answers as well as right ones, or better, is one that a policy can live on without being right.",
  },
  { title: "Completions and groups", isOpen: true, match: /^(completion|groups)\// },
  { title: "Policy and update", isOpen: true, match: /^(policy\/|optim\/|loss$)/ },
  { title: "Engine against learner", match: /^sampler\// },
  { title: "Rewards: gates, abstentions, failures", match: /^rewards\/.*(open|abstained|failed|_frac|deaths)|^eval\/reward_failures/ },
  { title: "Held-out lengths and losses", match: /^eval\/.*\/(length|lost)$/ },
  { title: "Times", match: /^time\// },
  { title: "Tokens", match: /^tokens\// },
  { title: "Memory and clips", match: /^(memory|media)\// },
];

/** Beyond so many lines, their last values are no longer beside a panel's title. */
const MANY_LINES = 4;
const LATEST = 10;
const PANEL_PX = { width: 340, height: 172 };
let drawn = { key: "", charts: [] };

function visibleRuns() {
  const off = new Set(state.off.split(",").filter(Boolean).map(Number));
  return store.runs.filter((run) => !off.has(run.number));
}

function metricNames() {
  const names = new Set();
  for (const run of visibleRuns()) for (const row of run.metrics) for (const name of Object.keys(row)) names.add(name);
  names.delete("step");
  return [...names].sort();
}

/** A line: its label, run, and pairs of step and value. */
function metricLine(run, name, look = {}) {
  const points = run.metrics.filter((row) => typeof row[name] === "number").map((row) => [row.step, row[name]]);
  return { label: run.name, run: run.number, points, ...look };
}

function rewardPanels(names) {
  const panels = [totalPanel(names)];
  const rewards = names.filter((name) => /^rewards\/.*\/mean$/.test(name)).map((name) => name.slice(8, -5));
  for (const reward of rewards) panels.push(rewardPanel(reward, names));
  const known = new Set(rewards);
  const others = names.filter((name) => /^eval\//.test(name) && !/\/(length|lost)$|reward_failures/.test(name) && !known.has(name.split("/").pop()));
  for (const name of others) panels.push(metricPanel(name, { kind: "answers" }));
  if (names.includes("reward/std")) panels.push(metricPanel("reward/std"));
  return panels;
}

function totalPanel() {
  const lines = visibleRuns().map((run) => metricLine(run, "reward/mean"));
  return { title: "total", hint: "reward/mean: the mean total of the step's completions", lines, opens: { kind: "rollouts", sort: "-total" } };
}

/** A reward in training, and where it was measured, on held-out questions. */
function rewardPanel(reward, names) {
  const shown = visibleRuns().length === 1 ? ["training", "held out"] : ["", ""];
  const lines = visibleRuns().map((run) => metricLine(run, `rewards/${reward}/mean`, { name: shown[0] }));
  const heldOut = names.filter((name) => name.startsWith("eval/") && name.endsWith(`/${reward}`) && name.split("/").length === 3);
  for (const run of visibleRuns()) {
    for (const name of heldOut) {
      const set = name.split("/")[1];
      lines.push(metricLine(run, name, { label: `${run.name} · ${set}`, name: shown[1], dash: [5, 4], dots: true, opens: { kind: "answers" } }));
    }
  }
  return { title: reward, hint: `mean raw value of ${reward}; dashed: greedy answers to held-out questions`, lines, opens: { kind: "rollouts", sort: `-raw/${reward}` } };
}

function metricPanel(name, { kind = "rollouts" } = {}) {
  const sort = { "completion/length": "-tokens", "sampler/gap_mean": "-gap", "sampler/gap_max": "-gap" }[name] || "";
  const show = { "groups/no_signal": "flat", "completion/stopped": "cut", "rewards/error_frac": "failed" }[name] || "all";
  return { title: name, hint: name, lines: visibleRuns().map((run) => metricLine(run, name)), opens: { kind, sort, show } };
}

/** For each reward, its mean on right and on wrong answers; and how much of what is raised is wrong. */
function payPanels() {
  const table = tableOf("rollouts");
  const runs = visibleRuns().filter((run) => run.rollouts.size);
  const perRun = new Map(runs.map((run) => [run.number, payOf(table, run.number)]));
  if (!runs.length) return [];
  const panels = [{
    title: "wrong answers raised", hint: "share of the completions with a positive advantage whose answer is wrong",
    lines: runs.map((run) => ({ label: run.name, run: run.number, points: perRun.get(run.number).raisedWrong })),
    opens: { kind: "rollouts", show: "wrong" },
  }];
  const paid = (name) => Math.max(...runs.map((run) => latest(perRun.get(run.number).paid[name].wrong)));
  // What pays wrong answers most stands first.
  const names = table.names.filter((each) => each.startsWith("part/")).sort((one, other) => paid(other) - paid(one));
  for (const name of names) {
    const lines = runs.flatMap((run) => ["right", "wrong"].map((side) => ({
      label: `${run.name}: ${side}`, run: run.number, points: perRun.get(run.number).paid[name][side],
      dash: side === "wrong" ? [2, 3] : undefined, stroke: runs.length === 1 ? side : undefined, name: runs.length === 1 ? side : "",
    })));
    panels.push({
      title: `${name.slice(5)} adds`, hint: `what ${name.slice(5)} adds to the total, on average: solid for right answers, dotted for wrong ones`,
      lines, opens: { kind: "rollouts", show: "wrong", sort: `-raw/${name.slice(5)}` },
    });
  }
  return panels;
}

/** The mean of a line's last points. */
function latest(points) {
  const last = points.slice(-LATEST);
  return last.length ? last.reduce((sum, [, value]) => sum + value, 0) / last.length : -Infinity;
}

function payOf(table, run) {
  const names = table.names.filter((each) => each.startsWith("part/"));
  const steps = new Map();
  for (let row = 0; row < table.length; row += 1) {
    if (table.run[row] !== run || Number.isNaN(table.columns.right[row])) continue;
    const step = table.step[row];
    if (!steps.has(step)) steps.set(step, { raised: 0, wrong: 0, sums: names.map(() => [0, 0]), counts: names.map(() => [0, 0]) });
    const at = steps.get(step);
    const right = table.columns.right[row];
    if (table.columns.advantage[row] > 0) { at.raised += 1; at.wrong += right ? 0 : 1; }
    names.forEach((name, place) => {
      const value = table.columns[name][row];
      if (!Number.isNaN(value)) { at.sums[place][right] += value; at.counts[place][right] += 1; }
    });
  }
  const ordered = [...steps].sort((one, other) => one[0] - other[0]);
  const mean = (place, side) => ordered.filter(([, at]) => at.counts[place][side]).map(([step, at]) => [step, at.sums[place][side] / at.counts[place][side]]);
  return {
    raisedWrong: ordered.filter(([, at]) => at.raised).map(([step, at]) => [step, at.wrong / at.raised]),
    paid: Object.fromEntries(names.map((name, place) => [name, { right: mean(place, 1), wrong: mean(place, 0) }])),
  };
}

// Drawing.

function showCurves() {
  const key = JSON.stringify([store.version, state.off, state.smooth, state.theme]);
  if (drawn.key === key) return;
  drawn.charts.forEach((chart) => chart.destroy());
  const open = new Map([...document.querySelectorAll("#curves details")].map((each) => [each.dataset.subject, each.open]));
  drawn = { key, charts: [] };
  const names = metricNames();
  const taken = SUBJECTS.map((subject) => ({ ...subject, all: panelsOf(subject, names) })).filter(({ all }) => all.length);
  byId("curves").replaceChildren(curveTools(), ...taken.map((subject) => subjectBlock(subject, open)));
  if (!taken.length) byId("curves").append(el("p", { class: "empty", text: "No step is done yet." }));
}

function panelsOf(subject, names) {
  const panels = subject.panels ? subject.panels(names)
    : names.filter((name) => subject.match.test(name)).map((name) => metricPanel(name));
  return panels.filter(({ lines }) => lines.some(({ points }) => points.length));
}

function curveTools() {
  const select = el("select", { name: "smooth", on: { change: (event) => go({ smooth: event.target.value }, { replaces: true }) } },
    ...[["", "as they are"], ["5", "mean of 5 steps"], ["20", "mean of 20 steps"], ["100", "mean of 100 steps"]].map(([value, text]) => el("option", { value, text })));
  select.value = state.smooth;
  return el("div", { class: "tools" }, el("label", {}, el("span", { text: "Lines" }), select),
    el("span", { class: "muted", text: "Click a point for its completions; drag to zoom, double-click to zoom out." }));
}

function subjectBlock({ title, note, isOpen, all }, open) {
  const grid = el("div", { class: "panels" });
  const block = el("details", { data: { subject: title } }, el("summary", { text: title }), note ? el("p", { class: "muted", text: note }) : null, grid);
  block.open = open.has(title) ? open.get(title) : Boolean(isOpen);
  const fill = () => { if (block.open && !grid.childElementCount) all.forEach((panel) => grid.append(panelFigure(panel))); };
  block.addEventListener("toggle", fill);
  fill();
  return block;
}

function panelFigure(panel) {
  const lines = panel.lines.filter(({ points }) => points.length);
  const holder = el("div", { class: "chart" });
  const figure = el("figure", { class: "panel", data: { panel: panel.title } },
    el("figcaption", { title: panel.hint }, el("b", { text: panel.title }), legend(lines)), holder);
  requestAnimationFrame(() => drawChart(panel, lines, holder));
  return figure;
}

function strokeOf(line) {
  return line.stroke ? colour(line.stroke) : runColour(line.run);
}

function legend(lines) {
  if (lines.length > MANY_LINES) return null;
  return el("span", { class: "legend" }, ...lines.map((line) => el("span", {
    class: "key" + (line.dash ? " dashed" : ""), style: { "--key": strokeOf(line) }, title: line.label,
    text: `${line.name || ""} ${number(line.points[line.points.length - 1][1])}`,
  })));
}

function drawChart(panel, lines, holder) {
  const steps = [...new Set(lines.flatMap(({ points }) => points.map(([step]) => step)))].sort((one, other) => one - other);
  const data = [steps, ...lines.map((line) => column(smoothed(line), steps))];
  const width = Math.max(220, holder.clientWidth || PANEL_PX.width);
  const chart = new uPlot(chartOptions(panel, lines, steps, width), data, holder);
  drawn.charts.push(chart);
  chart.over.addEventListener("click", () => openStep(panel, lines, chart));
}

function column({ points }, steps) {
  const values = new Map(points);
  return steps.map((step) => (values.has(step) ? values.get(step) : null));
}

/** The mean of a line's last few points, where that is wanted; points that are far apart stay. */
function smoothed(line) {
  const width = Number(state.smooth) || 1;
  if (width === 1 || line.dots) return line;
  const points = line.points.map(([step], at) => {
    const part = line.points.slice(Math.max(0, at - width + 1), at + 1);
    return [step, part.reduce((sum, [, value]) => sum + value, 0) / part.length];
  });
  return { ...line, points };
}

function chartOptions(panel, lines, steps, width) {
  const axis = {
    stroke: colour("muted"), grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false },
    font: "11px system-ui, sans-serif", gap: 4,
  };
  return {
    width, height: PANEL_PX.height, legend: { show: false }, padding: [8, 10, 0, 0],
    cursor: { y: false, sync: { key: "steps", setSeries: false }, points: { size: 6 }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: { range: yRange } },
    axes: [
      { ...axis, size: 24, space: 46, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? number(tick) : "")) },
      { ...axis, size: 46, space: 30, values: (_, ticks) => ticks.map((tick) => number(tick)) },
    ],
    series: [{ label: "step" }, ...lines.map((line) => ({
      label: line.label, stroke: strokeOf(line), width: 1.75, dash: line.dash, spanGaps: true,
      points: { show: line.dots || steps.length < 3, size: 5 },
    }))],
    hooks: { setCursor: [(chart) => showTip(panel, lines, chart)] },
  };
}

/** The range of an axis; a line that stays at one value gets some room around it. */
function yRange(_, low, high) {
  if (low === null) return [0, 1];
  if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) / 10, high + Math.abs(high) / 10];
  return uPlot.rangeNum(low, high, 0.1, true);
}

/** The values under the mouse, in one floating box for all panels. */
function showTip(panel, lines, chart) {
  const tip = byId("tip") || document.body.appendChild(el("div", { id: "tip", role: "status" }));
  const at = chart.cursor.idx;
  const isHere = at !== null && at !== undefined && chart.over.matches(":hover");
  if (!isHere) { if (!document.querySelector(".u-over:hover")) tip.hidden = true; return; }
  tip.hidden = false;
  tip.replaceChildren(el("b", { text: `step ${chart.data[0][at]}` }), ...lines.map((line, place) => el("div", {
    class: "key" + (line.dash ? " dashed" : ""), style: { "--key": strokeOf(line) }, text: `${line.label} ${number(chart.data[place + 1][at], 4)}`,
  })));
  const box = chart.over.getBoundingClientRect();
  const left = box.left + chart.cursor.left + 14;
  tip.style.left = `${Math.min(left, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.max(4, box.top + chart.cursor.top - tip.offsetHeight - 10)}px`;
}

/** Show the completions of the step that was clicked, of the line that is nearest. */
function openStep(panel, lines, chart) {
  const at = chart.cursor.idx;
  if (at === null || at === undefined || chart.select.width > 2) return;
  const step = chart.data[0][at];
  const near = lines.map((line, place) => ({ line, value: chart.data[place + 1][at] })).filter(({ value }) => value !== null && value !== undefined)
    .sort((one, other) => Math.abs(chart.valToPos(one.value, "y") - chart.cursor.top) - Math.abs(chart.valToPos(other.value, "y") - chart.cursor.top))[0];
  if (!near) return;
  byId("tip").hidden = true;
  const opens = { show: "all", sort: "", ...panel.opens, ...near.line.opens };
  const stored = nearestStep(store.runs[near.line.run][opens.kind], step);
  go({ ...NO_FILTER, off: othersOff(near.line.run), tab: "rollouts", steps: String(stored), group: "", completion: "", ...opens });
}

/** The step whose completions are stored that is nearest: a run may store only some. */
function nearestStep(blocks, step) {
  const steps = [...blocks.keys()].sort((one, other) => Math.abs(one - step) - Math.abs(other - step));
  return steps.length ? steps[0] : step;
}

/** The filter that leaves one run. */
function othersOff(run) {
  return store.runs.map(({ number }) => number).filter((each) => each !== run).join(",");
}
