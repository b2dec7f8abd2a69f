"use strict";
// A group: its clip, its question, and its completions side by side. Two groups can stand below each other.

let viewed = { key: "", turn: 0 };

async function showViewer() {
  const key = JSON.stringify([state.group, state.beside, state.shade, state.theme]);
  if (viewed.key === key && viewed.ready) return markCompletion();
  viewed = { key, turn: viewed.turn + 1, ready: false, scroll: viewed.group === state.group ? viewed.scroll : 0, group: state.group };
  const turn = viewed.turn;
  const keys = [state.group, state.beside].filter(Boolean);
  const parts = await Promise.all(keys.map((each, place) => groupView(each, place > 0)));
  if (turn !== viewed.turn) return;  // another one was asked for meanwhile
  viewed.ready = true;
  byId("viewer").replaceChildren(...(parts.length ? parts : [el("p", { class: "empty", text: "Choose a completion in the list; the arrow keys go on." })]));
  markCompletion();
}

function markCompletion() {
  for (const card of document.querySelectorAll("#viewer article:first-child .completion")) {
    const isHere = card.dataset.completion === state.completion;
    if (isHere && !card.classList.contains("here")) bringIntoView(card);
    card.classList.toggle("here", isHere);
  }
}

/** Move the row of completions sideways until a card is in it, and leave the rest where it is. */
function bringIntoView(card) {
  const row = card.parentElement;
  const left = card.offsetLeft - row.offsetLeft;
  if (left < row.scrollLeft || left + card.offsetWidth > row.scrollLeft + row.clientWidth) row.scrollLeft = left - 8;
}

async function groupView(key, isBeside) {
  const found = findGroup(key);
  if (!found) return el("article", {}, el("p", { class: "problem", text: "This group is not in the report." }));
  try {
    const content = await loadStep(found.block);
    return groupArticle(key, found, content, isBeside);
  } catch (error) {
    return el("article", {}, el("p", { class: "problem", text: error.message }));
  }
}

function groupArticle(key, found, content, isBeside) {
  const group = content.groups[found.group];
  const rights = rightsOf(found);
  const cited = group.completions.map((completion, index) => ({ label: `#${index + 1}`, index, spans: completion.cited, byVideo: completion.cited_by_video, isRight: rights[index] }));
  const article = el("article", { data: { key } },
    groupHead(key, found, group, isBeside),
    el("p", { class: "question", text: group.question }),
    options(group, found, rights),
    filmStrips(group, cited) || el("p", { class: "muted", text: "A question without a clip." }),
    shadeBar(found.run),
    el("div", { class: "completions" }, ...group.completions.map((completion, index) => completionCard(key, found, group, content.pieces, completion, index, rights[index]))),
    sharedCounterfactuals(group),
    more(group));
  article.addEventListener("mouseover", (event) => highlight(article, event.target.closest("[data-completion]")));
  article.addEventListener("mouseleave", () => highlight(article, null));
  return article;
}

function highlight(article, under) {
  for (const each of article.querySelectorAll("[data-completion]")) {
    each.classList.toggle("hot", Boolean(under) && each.dataset.completion === under.dataset.completion);
  }
}

function rightsOf({ block, group }) {
  const start = block.groups.size.slice(0, group).reduce((sum, size) => sum + size, 0);
  return block.columns.right.slice(start, start + block.groups.size[group]);
}

function groupHead(key, found, group, isBeside) {
  const { run, kind, block } = found;
  return el("header", {},
    el("i", { class: "dot", style: { background: runColour(run.number) } }),
    el("b", { text: run.name }), el("span", { text: `step ${block.step}` }),
    el("span", { class: "muted", text: kind === "answers" && block.pass ? `held-out, ${answersOf(block, found.group)}` : group.category }),
    el("button", { class: "plain id", text: group.sample, title: "All completions of this question, over the steps and runs", on: { click: () => go({ ...NO_FILTER, kind, sample: `=${group.sample}`, sort: "step" }) } }),
    sameQuestion(key, found, group.sample, isBeside),
    el("span", { class: "grow" }),
    isBeside ? el("button", { class: "quiet", text: "Close", on: { click: () => go({ beside: "" }) } })
      : el("button", { class: "quiet", text: "Keep for comparison", title: "Keep this group below while you choose another", data: { keep: "" }, on: { click: () => go({ beside: key }) } }));
}

/** The same question at other steps and in other runs, as a list to choose from. */
function sameQuestion(key, { kind }, sample, isBeside) {
  const places = [];
  for (const run of store.runs) {
    for (const block of [...run[kind].values()].sort((one, other) => one.step - other.step)) {
      block.groups.sample.forEach((id, group) => { if (id === sample) places.push({ run, block, group }); });
    }
  }
  if (places.length < 2) return null;
  const keys = places.map(({ run, block, group }) => groupKey(run.number, kind, block.step, group));
  const open = (chosen) => go(isBeside ? { beside: chosen } : { group: chosen, completion: "" });
  const at = keys.indexOf(key);
  const select = el("select", { name: "same", title: "The same question", on: { change: (event) => open(event.target.value) } },
    ...places.map(({ run, block, group }, place) => el("option", { value: keys[place], text: `${store.runs.length > 1 ? `${run.name}, ` : ""}step ${block.step}${meanTotal(block, group)}` })));
  select.value = key;
  const turn = (by, text) => {
    const made = el("button", { class: "quiet", text, title: by < 0 ? "The same question before" : "The same question after", on: { click: () => open(keys[at + by]) } });
    made.disabled = !keys[at + by];
    return made;
  };
  return el("span", { class: "same" }, turn(-1, "‹"), select, turn(1, "›"));
}

function meanTotal(block, group) {
  const start = block.groups.size.slice(0, group).reduce((sum, size) => sum + size, 0);
  const totals = block.columns.total.slice(start, start + block.groups.size[group]).filter((each) => each !== null);
  return totals.length ? `, total ${number(totals.reduce((sum, each) => sum + each, 0) / totals.length)}` : "";
}

function options(group, { block, group: place }, rights) {
  const answered = rights.filter((each) => each === 1).length;
  const known = rights.filter((each) => each !== null).length;
  const score = known ? el("span", { class: "muted", text: `${answered} of ${known} right` }) : null;
  if (!group.options.length) return el("p", { class: "options" }, el("span", { class: "right", text: `✓ ${group.answer}` }), score);
  return el("p", { class: "options" }, ...group.options.map((option, index) => {
    const letter = String.fromCharCode(65 + index);
    const isRight = letter === group.answer;
    return el("span", { class: isRight ? "right" : "", text: `${isRight ? "✓ " : ""}${letter} ${option}` });
  }), score);
}

function shadeBar(run) {
  const select = el("select", { name: "shade", on: { change: (event) => go({ shade: event.target.value }, { replaces: true }) } },
    ...Object.entries(SHADES).map(([name, { label }]) => el("option", { value: name, text: label })));
  select.value = state.shade;
  const lacks = !run.has_pieces ? "The model's tokenizer was not at hand: texts are not cut into tokens." : "";
  return el("div", { class: "tools" }, el("label", {}, el("span", { text: "Shade tokens by" }), select),
    el("span", { class: "muted", text: lacks || SHADES[state.shade].legend }));
}

function completionCard(key, found, group, pieces, completion, index, isRight) {
  const gapKnown = state.shade !== "gap" || completion.learner;
  return el("section", {
    class: "completion " + (isRight === 1 ? "is-right" : isRight === 0 ? "is-wrong" : ""), data: { completion: index },
    on: { click: () => { if (key === state.group && !String(getSelection())) go({ completion: String(index) }, { replaces: true }); } },
  },
  el("header", {},
    el("b", { text: `#${index + 1}` }),
    el("span", { class: isRight === 1 ? "right" : isRight === 0 ? "wrong" : "", text: `${isRight === 1 ? "✓ right" : isRight === 0 ? "✗ wrong" : ""}` }),
    el("span", { class: "grow" }),
    el("span", { class: "muted", text: `${completion.ids.length} tokens` }),
    completion.stopped ? null : el("span", { class: "cut", text: "cut ✂", title: "cut at the token limit" })),
  el("div", { class: "score" },
    el("span", {}, el("small", { text: "total" }), el("b", { text: number(completion.total) })),
    el("span", {}, el("small", { text: "advantage" }), el("b", { class: signName(completion.advantage), text: signed(completion.advantage) }))),
  rewardTable(found.run, group, completion, index),
  gapKnown ? null : el("p", { class: "muted", text: "The run stored no log-probs of the learner." }),
  tokenText(completion, pieces, found.run.limits, state.shade),
  ownCounterfactuals(group, completion));
}

/** Each reward's raw value, its gate, and what it added, as a bar from zero. */
function rewardTable(run, group, completion, index) {
  const names = Object.keys(completion.raw);
  const most = Math.max(0.001, ...group.completions.flatMap((each) => Object.values(each.part).map((part) => Math.abs(part || 0))));
  const others = Object.keys(completion.part).filter((name) => !names.includes(name));
  return el("table", { class: "rewards" },
    el("thead", {}, el("tr", {}, ...["reward", "raw", "adds", ""].map((text) => el("th", { text })))),
    el("tbody", {}, ...[...names, ...others].map((name) => {
      const part = completion.part[name];
      const gate = group.gates[name];
      const isShut = gate && !gate.open[index];
      return el("tr", { class: isShut ? "shut" : "", data: { reward: name } },
        el("td", {}, el("span", { text: name, title: weightText(run, name) }), gate ? el("span", { class: "gate", text: isShut ? " ⊘" : " ◦", title: `${isShut ? "shut" : "open"}: ${gateText(gate)}` }) : null),
        el("td", { text: number(completion.raw[name]) }),
        el("td", { text: part === undefined ? "–" : signed(part) }),
        el("td", { class: "bar-cell" }, el("span", { class: "part " + signName(part), style: { width: `${(100 * Math.abs(part || 0)) / most}%` } })));
    })));
}

function weightText(run, name) {
  const spec = run.rewards[name];
  return spec ? `weight ${number(spec.weight)}` : name;
}

function gateText({ only_if: onlyIf, only_unless: onlyUnless }) {
  return [onlyIf ? `only if ${onlyIf}` : "", onlyUnless ? `only unless ${onlyUnless}` : ""].filter(Boolean).join(", ");
}

/** Answers about changed frames: those that all completions share stand once, the others with their own. */
function isShared(group, number_) {
  return group.completions.length > 1 && group.completions.every((each) => each.counterfactuals.includes(number_));
}

function sharedCounterfactuals(group) {
  const shared = group.counterfactuals.filter((_, place) => isShared(group, place));
  return shared.length ? el("section", { class: "changed" }, el("h4", { text: "The same question about changed frames" }), ...shared.map(counterfactual)) : null;
}

function ownCounterfactuals(group, completion) {
  const own = completion.counterfactuals.filter((place) => !isShared(group, place)).map((place) => group.counterfactuals[place]);
  return own.length ? el("div", { class: "changed" }, ...own.map(counterfactual)) : null;
}

const FRAMES = { shuffled: "frames shuffled", blank: "black frames", reversed: "frames backwards", other_clip: "another clip", cited: "only the cited frames", cited_in_place: "all but the cited frames black" };

function counterfactual({ frames, answers }) {
  const known = answers.filter(({ right }) => right !== null);
  const right = known.filter((each) => each.right === 1).length;
  return el("details", {}, el("summary", {}, el("b", { text: FRAMES[frames] || frames }),
    el("span", { class: "muted", text: known.length ? ` ${right} of ${known.length} right` : "" }),
    ...answers.slice(0, 8).map((each) => el("span", { class: "answer " + (each.right === 1 ? "right" : each.right === 0 ? "wrong" : ""), text: (each.answer || "—").slice(0, 24) }))),
  ...answers.map((each) => el("div", { class: "text", text: each.text })));
}

function more(group) {
  return el("details", { class: "more" }, el("summary", { text: "Prompt and record" }),
    el("h4", { text: "Prompt" }), el("div", { class: "text", text: group.prompt }),
    el("h4", { text: "Record" }), el("div", { class: "text", text: `${group.source}\n${JSON.stringify(group.columns, null, 2)}` }));
}
