"use strict";
// Puts the views together: reads the index, shows the view that the address asks for, and reads on while it is served.

const READ_EVERY_MS = 2000;
const VIEWS = {
  curves: showCurves,
  rollouts: () => { showFilters(); showHistograms(); showList(); showViewer(); },
  failures: showFailures,
  settings: showSettings,
};

function show() {
  document.documentElement.dataset.theme = state.theme;
  const tab = VIEWS[state.tab] ? state.tab : DEFAULTS.tab;
  for (const view of document.querySelectorAll(".view")) view.hidden = view.id !== tab;
  for (const button of document.querySelectorAll("#tabs button")) button.setAttribute("aria-current", button.dataset.tab === tab ? "page" : "false");
  document.title = store.runs.map((run) => spelt(run.name)).join(", ") || "Runs";
  showRuns();
  showWarnings();
  VIEWS[tab]();
}

function showRuns() {
  const off = new Set(state.off.split(",").filter(Boolean).map(Number));
  byId("runs").replaceChildren(...store.runs.map((run) => {
    const last = run.metrics.length ? run.metrics[run.metrics.length - 1].step : 0;
    return el("button", {
      class: "run", "aria-pressed": !off.has(run.number), title: `${run.path}\nClick to leave out or take in`, data: { run: run.number },
      on: { click: () => toggleRun(run.number, off) },
    }, el("i", { class: "dot", style: { background: runColour(run.number) } }), el("span", { text: run.name }),
    el("small", { text: last >= run.num_steps ? `${last} steps` : `${last}/${run.num_steps}` }));
  }));
}

/** What the figures of the runs say in words, with the way to the completions that it is about. */
function showWarnings() {
  const all = visibleRuns().flatMap((run) => run.warnings.map((warning) => ({ run, warning })));
  byId("warnings").hidden = !all.length;
  byId("warnings").replaceChildren(el("ul", {}, ...all.map(({ run, warning }) => el("li", { data: { warning: warning.name } },
    store.runs.length > 1 ? el("b", { text: `${run.name}: ` }) : null,
    el("span", { text: warning.text }),
    LOOKS[warning.name] ? el("button", { class: "quiet", text: "Look", on: { click: () => look(run, warning) } }) : null))));
}

/** The question that leads from a warning to completions. */
const LOOKS = {
  "accuracy falls": "wrong", "flat groups": "flat", "cut completions": "cut", "length without reward": "all",
  "equal rewards": "all", "all cut": "cut", "groups too small": "flat", "all equal": "all",
};

function look(run, { name, reward, from_step: from }) {
  const sort = name === "length without reward" ? "-tokens" : reward ? `-raw/${reward}` : "";
  go({ ...NO_FILTER, off: othersOff(run.number), tab: "rollouts", kind: "rollouts", show: LOOKS[name], steps: from ? `${from}-` : "", sort, group: "", completion: "" });
}

function toggleRun(run, off) {
  off.has(run) ? off.delete(run) : off.add(run);
  go({ off: off.size === store.runs.length ? "" : [...off].sort().join(",") });
}

function toggleTheme() {
  const isDark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  go({ theme: isDark ? "light" : "dark" }, { replaces: true });
}

/** Ask for what is new, again and again; a server that is gone is said so and asked less often. */
async function follow() {
  let wait = READ_EVERY_MS;
  try {
    if (await readIndexOn()) show();
    byId("live").textContent = "live";
    byId("live").className = "on";
  } catch (error) {
    byId("live").textContent = "not connected";
    byId("live").className = "off";
    byId("live").title = error.message;
    wait *= 5;
  }
  setTimeout(follow, document.hidden ? wait * 5 : wait);
}

async function start() {
  byId("tabs").addEventListener("click", (event) => { if (event.target.dataset.tab) go({ tab: event.target.dataset.tab }); });
  byId("theme").addEventListener("click", toggleTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawn.key = ""; show(); });
  addEventListener("resize", settled(() => { drawn.key = ""; show(); }, 150));
  startList();
  listeners.push(show);
  try {
    if (location.protocol === "file:") await readIndexFromDisk();
    else { await readIndexOn(); setTimeout(follow, READ_EVERY_MS); }
    show();
  } catch (error) {
    byId("warnings").hidden = false;
    byId("warnings").replaceChildren(el("p", { class: "problem", text: `The report can't be read: ${error.message}` }));
  }
  document.documentElement.dataset.ready = "yes";
}

start();
