"use strict";
// The list of questions, and what is chosen of it. The choice is in the address, so that a link shows the same.

const AT_ONCE = 20;
const UNREAD = ["unparsed", "truncated", "failed", "unjudged"];
const data = JSON.parse(reportData.items);
const chosen = new URLSearchParams(location.hash.slice(1));
let matching = [];
let numShown = 0;

/** Whether models differ: one is right on a question that another is not right on. */
function differs({ answers }) {
  return new Set(answers.map(({ score }) => score >= 1)).size > 1;
}

const KINDS = {
  all: () => true,
  right: ({ answers }) => answers.some(({ outcome }) => outcome === "right"),
  "not right": ({ answers }) => answers.some(({ outcome }) => outcome !== "right"),
  unread: ({ answers }) => answers.some(({ outcome }) => UNREAD.includes(outcome)),
  "models differ": differs,
};

function isChosen(item) {
  const isOfKind = KINDS[chosen.get("show") || "all"] || KINDS.all;
  const text = (chosen.get("text") || "").toLowerCase();
  return isOfKind(item)
    && data.groups.every((column) => !chosen.get(`in.${column}`) || chosen.get(`in.${column}`) === item.groups[column])
    && (!text || [item.id, item.question, ...item.answers.map((each) => each.text)].some((each) => each.toLowerCase().includes(text)));
}

function choice(name, label, values) {
  const select = el("select", { name, on: { change: () => choose(name, select.value) } },
    ...values.map(([value, text]) => el("option", { value, text })));
  select.value = chosen.get(name) || values[0][0];
  return el("label", {}, el("span", { text: label }), select);
}

function showChoices() {
  const kinds = Object.keys(KINDS).filter((kind) => kind !== "models differ" || data.models.length > 1);
  const text = el("input", { name: "text", type: "search", placeholder: "words in a question or an answer",
    on: { input: settled(() => choose("text", text.value)) } });
  text.value = chosen.get("text") || "";
  byId("choices").replaceChildren(
    choice("show", "show", kinds.map((kind) => [kind, kind])),
    ...data.groups.map((column) => choice(`in.${column}`, column,
      [["", "all"], ...[...new Set(data.items.map(({ groups }) => groups[column]))].sort().map((value) => [value, value || "(none)"])])),
    text);
  byId("choices").addEventListener("submit", (event) => event.preventDefault());
}

function choose(name, value) {
  value && value !== "all" ? chosen.set(name, value) : chosen.delete(name);
  history.replaceState(null, "", `#${chosen}`);
  showItems();
}

function showItems() {
  matching = data.items.filter(isChosen);
  numShown = 0;
  byId("items").replaceChildren();
  const rest = data.total > data.items.length ? `, of the first ${data.items.length} of ${data.total}` : "";
  byId("count").textContent = `${matching.length} questions${rest}`;
  showMore();
}

function showMore() {
  byId("items").append(...matching.slice(numShown, numShown + AT_ONCE).map(shownItem));
  numShown = Math.min(matching.length, numShown + AT_ONCE);
  byId("more").hidden = numShown >= matching.length;
}

function shownItem(item) {
  const cited = item.answers.map(({ cited, cited_by_video: byVideo, outcome }, index) =>
    ({ label: data.models[index], spans: cited, byVideo, index, isRight: outcome === "right" ? 1 : 0 }));
  return el("article", { class: "item", data: { id: item.id } },
    el("h2", { text: item.question }),
    el("p", { class: "muted", text: [item.id, ...data.groups.map((column) => `${column}: ${item.groups[column]}`)].join(" · ") }),
    filmStrips(item, cited, { marginPx: 100, each: "model" }),
    el("ol", { class: "options", type: "A" }, ...item.options.map((option, index) =>
      el("li", { class: String.fromCharCode(65 + index) === item.answer ? "right" : "", text: option }))),
    item.options.length ? null : el("p", { text: `Right: ${item.answer || "not published"}` }),
    el("div", { class: "answers" }, ...item.answers.map(shownAnswer)));
}

function shownAnswer(answer, index) {
  const official = answer.official === null ? "" : `, official ${number(answer.official)}`;
  return el("section", { class: `answer ${answer.outcome}` },
    el("h3", {}, el("span", { text: data.models[index] }), el("b", { class: "outcome", text: answer.outcome })),
    el("p", { class: "muted", text: `read: ${answer.read || "–"}, score ${number(answer.score)}${official}, ${answer.tokens} tokens` }),
    el("pre", { text: answer.text }));
}

byId("title").textContent = `${data.benchmark}: ${data.models.join(", ")}`;
byId("more").addEventListener("click", showMore);
showChoices();
showItems();
