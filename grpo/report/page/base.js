"use strict";
// Elements, numbers and colours. Whatever comes from data enters the page as text, here and nowhere else.

/** Text with controls, half surrogates and changes of the direction of writing spelt out. */
function spelt(text) {
  const unsafe = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
  return String(text).replace(unsafe, (each) => "\\u" + each.charCodeAt(0).toString(16).padStart(4, "0"));
}

/** An element. `fields`: class, title and the like, `text` for its text, `on` for listeners, `style` for properties. */
function el(tag, fields = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined || value === null) continue;
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = spelt(value);
    else if (name === "on") for (const [kind, handler] of Object.entries(value)) made.addEventListener(kind, handler);
    else if (name === "style") for (const [key, each] of Object.entries(value)) made.style.setProperty(key, each);
    else if (name === "data") for (const [key, each] of Object.entries(value)) made.dataset[key] = spelt(each);
    else made.setAttribute(name, spelt(value));
  }
  made.append(...children.filter((each) => each !== null && each !== undefined));
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

/** A number in a few characters; a dash where there is none. */
function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace("e+", "e").replace("-", "−").replace("e−", "e-");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

function signed(value, digits = 3) {
  return value > 0 ? "+" + number(value, digits) : number(value, digits);
}

function percent(frac) {
  return Number.isNaN(frac) || frac === null ? "–" : `${Number((100 * frac).toPrecision(3))} %`;
}

function seconds(value) {
  return `${Number(value.toFixed(2))} s`;
}

/** The colours of the style sheet, as they are in the theme that is on. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const NUM_COLOURS = 8;

function runColour(run) {
  return colour(`series-${run % NUM_COLOURS}`);
}

/** Call a function once, after a moment without further calls. */
function settled(call, ms = 60) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), ms);
  };
}
