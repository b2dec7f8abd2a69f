"use strict";
// What failed, and how the runs were set up.

const MANY_FAILURES = 500;

function showFailures() {
  const rows = visibleRuns().flatMap((run) => run.failures.map((row) => ({ run, row })));
  const kinds = new Map();
  for (const { row } of rows) kinds.set(reasonOf(row), (kinds.get(reasonOf(row)) || 0) + 1);
  const common = [...kinds].sort((one, other) => other[1] - one[1]).slice(0, 12);
  byId("failures").replaceChildren(...(rows.length ? [
    el("h2", { text: `${rows.length.toLocaleString("en")} failures` }),
    el("table", { class: "plain-table" }, el("tbody", {}, ...common.map(([reason, count]) => el("tr", {}, el("td", { class: "num", text: count.toLocaleString("en") }), el("td", { text: reason }))))),
    el("h2", { text: rows.length > MANY_FAILURES ? `The latest ${MANY_FAILURES}` : "One by one" }),
    el("table", { class: "plain-table" },
      el("thead", {}, el("tr", {}, ...["run", "step", "kind", "sample", "what"].map((text) => el("th", { text })))),
      el("tbody", {}, ...rows.slice(-MANY_FAILURES).reverse().map(failureRow))),
  ] : [el("p", { class: "empty", text: "Nothing failed." })]));
}

function reasonOf(row) {
  const what = { reward: `reward ${row.reward}`, sample: "clip or question" }[row.kind] || row.kind;
  return `${what}: ${row.reason || JSON.stringify(row.figures || row.norm || "")}`;
}

function failureRow({ run, row }) {
  const open = row.sample_id ? el("button", {
    class: "plain", text: row.sample_id, title: "Its completions at this step",
    on: { click: () => go({ ...NO_FILTER, tab: "rollouts", kind: "rollouts", sample: `=${row.sample_id}`, steps: String(row.step), group: "" }) },
  }) : null;
  return el("tr", {}, el("td", {}, el("i", { class: "dot", style: { background: runColour(run.number) } }), el("span", { text: run.name })),
    el("td", { class: "num", text: row.step }), el("td", { text: row.kind }), el("td", {}, open),
    el("td", {}, el("span", { text: reasonOf(row) }), row.traceback ? el("details", {}, el("summary", { text: "traceback" }), el("div", { class: "text", text: row.traceback })) : null));
}

function showSettings() {
  byId("settings").replaceChildren(...visibleRuns().map((run) => el("article", {},
    el("h2", { text: run.name }), el("p", { class: "muted", text: run.path }),
    el("p", { text: `${run.metrics.length ? run.metrics[run.metrics.length - 1].step : 0} of ${run.num_steps} steps` }),
    el("div", { class: "text", text: run.config }))));
}
