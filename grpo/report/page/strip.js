"use strict";
// A clip as a film strip: the frames that the model saw, their times, and the moments that are annotated and cited.

/** Frames are as large as lets the whole clip be seen, within limits; a long clip is moved sideways. */
const FRAME_PX = { least: 38, most: 104 };

/** The strip of a clip. `annotated`: spans in seconds; `cited`: for each completion its label and its spans.
 * `marginPx`: what the page takes of the viewer's width beside frames; `each`: what a line of moments is of. */
function filmStrip(clip, annotated, cited = [], { marginPx = 60, each = "completion" } = {}) {
  const frame = frameSize(clip, marginPx);
  const width = clip.times.length * frame.width;
  const place = (time) => placeOf(clip, frame.width, time);
  const pointing = cited.filter(({ spans }) => spans.length);
  const reason = store.clipFailures.get(clip.name);
  const inner = el("div", { class: "film", style: { width: `${width}px` } },
    el("div", { class: "frames" }, ...clip.times.map((time, index) => frameOf(clip, frame, index, time, annotated, pointing))),
    ...annotated.map((span) => spanMark("annotated", span, place, `annotated: ${spanText(span)}`)),
    el("div", { class: "lanes" }, ...pointing.map((each) => lane(each, place))));
  const checked = checkPicture(clip, inner);
  return el("div", { class: "strip", data: { clip: clip.name } },
    el("div", { class: "facts muted" },
      el("span", { text: clip.picture ? `a picture of ${clip.size[0]}×${clip.size[1]} px` : `${clip.times.length} frames of ${clip.size[0]}×${clip.size[1]} px, ${seconds(clip.duration)}, ${number(clip.fps)} per second` }),
      annotated.length ? el("span", { class: "key-annotated", text: `annotated ${annotated.map(spanText).join(", ")}` }) : null,
      pointing.length ? el("span", { class: "key-cited", text: `cited, a line for each ${each}` }) : null,
      el("span", { class: "path", text: clip.path.split("/").pop(), title: clip.path })),
    reason ? el("p", { class: "problem", text: `No pictures: ${reason}` }) : checked,
    el("div", { class: "scroll" }, inner));
}

/** The strips of all that a question shows, in order: of several media, or of its clip; null if it shows nothing. */
function filmStrips({ clip, annotated, media }, cited, options) {
  if (!media.length) return clip ? filmStrip(clip, annotated, cited, options) : null;
  return el("div", { class: "media" }, ...media.filter((each) => each.clip).map((each) =>
    filmStrip(each.clip, each.annotated, each.video === null ? [] : cited.map((one) => ({ ...one, spans: one.byVideo[each.video] })), options)));
}

function frameSize(clip, marginPx) {
  const [width, height] = clip.thumbnail;
  const room = (byId("viewer").clientWidth || 800) - marginPx;
  const wanted = Math.min(FRAME_PX.most, Math.max(FRAME_PX.least, Math.floor(room / clip.times.length)));
  const scale = wanted / Math.max(width, height);
  return { width: Math.round(width * scale), height: Math.round(height * scale) };
}

function pictureOf(clip) {
  return `clips/${clip.name}.jpg`;
}

/** A notice where the picture can't be had, which is known when the browser has tried. */
function checkPicture(clip, film) {
  const notice = el("p", { class: "problem", hidden: "" });
  const picture = new Image();
  picture.onerror = () => {
    notice.hidden = false;
    notice.textContent = spelt(`No pictures: ${store.clipFailures.get(clip.name) || "the report was written without film strips, or the clip can't be read"}`);
    film.classList.add("blank");
  };
  picture.src = pictureOf(clip);
  return notice;
}

function frameOf(clip, size, index, time, annotated, pointing) {
  const isAnnotated = annotated.some((span) => touches(clip, index, span));
  const by = pointing.filter(({ spans }) => spans.some((span) => touches(clip, index, span)));
  const column = index % clip.columns;
  const row = Math.floor(index / clip.columns);
  const scale = size.width / clip.thumbnail[0];
  const picture = {
    "background-image": `url("${pictureOf(clip)}")`,
    "background-size": `${clip.columns * size.width}px auto`,
    "background-position": `${-column * size.width}px ${-row * clip.thumbnail[1] * scale}px`,
  };
  return el("button", {
    class: "frame" + (isAnnotated ? " annotated" : "") + (by.length ? " cited" : ""),
    title: `frame ${index + 1}, ${seconds(time)}${isAnnotated ? ", annotated" : ""}${by.length ? `, cited by ${by.map(({ label }) => label).join(" ")}` : ""}`,
    style: { width: `${size.width}px` }, on: { click: () => enlarge(clip, index) },
  }, el("span", { class: "picture", style: { ...picture, height: `${size.height}px` } }), el("span", { class: "time", text: seconds(time).replace(" s", "") }));
}

/** Whether a frame is the one shown during some of a span, or nearest to a moment. */
function touches(clip, index, [start, end]) {
  return index >= nearestFrame(clip, start) && index <= nearestFrame(clip, end) && start <= clip.duration && end >= 0;
}

function nearestFrame(clip, time) {
  let best = 0;
  clip.times.forEach((each, index) => { if (Math.abs(each - time) < Math.abs(clip.times[best] - time)) best = index; });
  return best;
}

/** Where a time lies along the strip: a frame's own time in its middle, straight lines between. */
function placeOf(clip, width, time) {
  const times = clip.times;
  const step = times.length > 1 ? (times[times.length - 1] - times[0]) / (times.length - 1) : clip.duration || 1;
  let index = times.findIndex((each) => each > time) - 1;
  if (index === -2) index = times.length - 1;
  const from = index < 0 ? times[0] - step : times[index];
  const to = index + 1 < times.length ? times[index + 1] : times[times.length - 1] + step;
  const share = to > from ? (time - from) / (to - from) : 0;
  return Math.min(times.length * width - 2, Math.max(0, (index + 0.5 + Math.min(share, 1)) * width));
}

function spanMark(kind, [start, end], place, title) {
  const left = place(start);
  return el("span", { class: `span ${kind}`, title, style: { left: `${left}px`, width: `${Math.max(4, place(end) - left)}px` } });
}

function lane({ label, spans, index, isRight }, place) {
  return el("div", { class: "lane " + (isRight === 1 ? "right" : isRight === 0 ? "wrong" : ""), data: { completion: index } },
    ...spans.map((span) => spanMark("cited", span, place, `${label} cites ${spanText(span)}`)),
    el("span", { class: "label", text: label }));
}

function spanText([start, end]) {
  return start === end ? seconds(start) : `${Number(start.toFixed(2))}–${seconds(end)}`;
}

/** A frame as large as its picture has it, over the page. */
function enlarge(clip, index) {
  const [width, height] = clip.thumbnail;
  const scale = Math.min((innerWidth * 0.8) / width, (innerHeight * 0.7) / height, 6);
  const show = (at) => {
    const column = at % clip.columns;
    const row = Math.floor(at / clip.columns);
    picture.style.setProperty("background-position", `${-column * width * scale}px ${-row * height * scale}px`);
    caption.textContent = `frame ${at + 1} of ${clip.times.length}, ${seconds(clip.times[at])}`;
    dialog.dataset.at = at;
  };
  const picture = el("div", {
    class: "enlarged",
    style: {
      width: `${width * scale}px`, height: `${height * scale}px`,
      "background-image": `url("${pictureOf(clip)}")`, "background-size": `${clip.columns * width * scale}px auto`,
    },
  });
  const caption = el("p", {});
  const dialog = el("dialog", { class: "lightbox", on: {
    click: () => dialog.close(),
    close: () => dialog.remove(),
    keydown: (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) show(Math.min(clip.times.length - 1, Math.max(0, Number(dialog.dataset.at) + by)));
    },
  } }, picture, caption);
  document.body.append(dialog);
  show(index);
  dialog.showModal();
}
