"use strict";
// A completion's tokens, shaded by what the engine, the learner and the update made of each.

const SHADES = {
  none: { label: "no shading", legend: "" },
  logp: { label: "log-prob", legend: "the fuller, the less likely the engine thought the token" },
  gap: { label: "gap", legend: "learner's log-prob less the engine's: blue above, orange below" },
  advantage: { label: "advantage", legend: "green: made more likely; red: less likely; both for all tokens of a completion" },
  mask: { label: "clipped or masked", legend: "striped: left out of the loss; outlined: its weight was capped" },
};

const LOGP_FULL = 5;
const GAP_FULL = 0.2;

/** The completion as tokens, or as one text where the tokenizer was not at hand. */
function tokenText(completion, pieces, limits, shade) {
  const box = el("div", { class: `text shade-${shade}` });
  if (!pieces || !completion.ids.length) {
    box.append(el("span", { class: "tok", text: completion.text }));
    return box;
  }
  const ratio = sequenceRatio(completion, limits);
  completion.ids.forEach((id, at) => {
    const piece = pieces[id] === undefined ? `⟨${id}⟩` : pieces[id];
    const token = el("span", { class: "tok", text: piece, title: tokenTitle(completion, id, at) });
    shadeToken(token, completion, at, limits, shade, ratio);
    box.append(token);
  });
  return box;
}

function tokenTitle(completion, id, at) {
  const logp = completion.logps[at];
  const lines = [`token ${at + 1}: ${id}`, `log-prob ${number(logp)} (${percent(Math.exp(logp))})`];
  if (completion.learner) lines.push(`learner ${number(completion.learner[at])}, gap ${signed(gapAt(completion, at))}`);
  return lines.join("\n");
}

/** The learner's log-prob less the engine's; NaN where either is none that is finite. */
function gapAt(completion, at) {
  const [learner, engine] = [completion.learner[at], completion.logps[at]];
  return learner === null || engine === null ? NaN : learner - engine;
}

function shadeToken(token, completion, at, limits, shade, sequence) {
  const logp = completion.logps[at];
  const gap = completion.learner ? gapAt(completion, at) : null;
  if (shade === "logp") paint(token, "shade-unlikely", -logp / LOGP_FULL);
  else if (shade === "gap" && gap !== null) paint(token, gap > 0 ? "shade-above" : "shade-below", Math.abs(gap) / GAP_FULL);
  else if (shade === "advantage") paint(token, completion.advantage > 0 ? "up" : "down", Math.abs(completion.advantage || 0) / 2);
  else if (shade === "mask") {
    const ratio = sequence === null && gap !== null ? Math.exp(gap) : sequence;
    const kind = maskOf(completion, ratio, limits);
    if (kind) token.classList.add(kind);
  }
}

function paint(token, name, strength) {
  const share = Math.round(70 * Math.min(1, Math.max(0, strength)));
  if (share > 1) token.style.setProperty("background", `color-mix(in srgb, var(--${name}) ${share}%, transparent)`);
}

/** The ratio of the whole completion, where the run weighs by that; null where each token has its own. */
function sequenceRatio(completion, limits) {
  if (!limits || !limits.mode.startsWith("sequence") || !completion.learner) return null;
  return Math.exp(completion.learner.reduce((sum, _, at) => sum + gapAt(completion, at), 0));
}

/** What the update does with a token: "masked", "capped", or nothing special. */
function maskOf(completion, ratio, limits) {
  if (completion.advantage === null || completion.advantage === 0) return "masked";
  if (!limits || ratio === null) return "";
  const [low, high] = limits.clip;
  const isOutside = (high !== null && ratio > high) || (low !== null && ratio < low);
  return isOutside ? (limits.mode.endsWith("mask") ? "masked" : "capped") : "";
}
