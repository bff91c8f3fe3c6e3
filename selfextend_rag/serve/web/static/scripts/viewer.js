// The document view: a text as the model reads it, its passages marked, and beside it a strip of
// the attention over its length. Also the lists of passages that open it.
//
// The server counts characters as code points, JavaScript as UTF-16 units; `Offsets` converts.

import * as api from "./api.js";
import { documentOf, nameOf } from "./documents.js";
import { byId, counted, drawn, element, number, percent, sentence, showProblem } from "./page.js";

const BLOCK = 4000; // characters of text in an element, about; the browser lays out those in sight
const KEPT = 8; // texts in memory
const SLICES = 200; // of the strip, as the server counts them

const view = byId("view-text");
const back = byId("view-back");

const texts = new Map(); // of files, by id, latest last
let shown = null; // {file, offsets, blocks, heat, marks}
let opener = null; // the button that opened a passage
let request = 0; // the latest one wins

/** Begin: keys, scrolling, and the way back to the answer. */
export function startViewer() {
  view.addEventListener("scroll", () => requestAnimationFrame(showWindow), { passive: true });
  new ResizeObserver(() => showWindow()).observe(view);
  back.addEventListener("click", goBack);
  byId("view-part").addEventListener("keydown", (event) => event.key === "Escape" && goBack());
}

function goBack() {
  if (!opener?.isConnected) return;
  opener.scrollIntoView({ block: "center" });
  opener.focus();
}

/**
 * Show a document.
 * @param {string} id of its file.
 * @param {Object} shown `passages` of this document as `{start, end}`, the one to go to as `current`,
 *   and `attention`, the shares of its slices.
 */
export async function showDocument(id, { passages = [], current = null, attention = null } = {}) {
  const mine = (request += 1);
  byId("view-part").setAttribute("aria-busy", "true");
  try {
    const file = await fetched(id);
    if (mine !== request) return;
    showProblem(byId("view-problem"), null);
    if (shown?.file !== file) fill(file);
    setMarks(passages, current);
    setStrip(attention);
    describe(file, passages);
    if (current === null) view.scrollTop = 0;
    else goToMark();
  } catch (error) {
    if (mine === request) showProblem(byId("view-problem"), error);
  } finally {
    if (mine === request) byId("view-part").removeAttribute("aria-busy");
  }
}

async function fetched(id) {
  const file = texts.get(id) ?? (await api.fileWithText(id));
  texts.delete(id);
  texts.set(id, file);
  if (texts.size > KEPT) texts.delete(texts.keys().next().value);
  return file;
}

function describe(file, passages) {
  byId("view-heading").textContent = nameOf(file);
  const parts = [file.filename, `${number(file.characters)} characters`];
  if (file.tokens) parts.push(`${number(file.tokens)} tokens`);
  if (passages.length) parts.push(`${counted(passages.length, "passage")} marked`);
  byId("view-about").textContent = parts.join(" · ");
  back.hidden = opener === null;
}

/** Converts offsets in code points, as the server counts, to those of a JavaScript string. */
export class Offsets {
  constructor(text) {
    this.wide = []; // code point offsets of the characters that take two units
    let points = 0;
    for (let unit = 0; unit < text.length; unit += 1, points += 1) {
      if (text.codePointAt(unit) > 0xffff) {
        this.wide.push(points);
        unit += 1;
      }
    }
    this.points = points;
  }

  /** The unit at which the code point of this offset begins. */
  unit(point) {
    let low = 0;
    let high = this.wide.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.wide[middle] < point) low = middle + 1;
      else high = middle;
    }
    return point + low;
  }
}

// The text

function fill(file) {
  const offsets = new Offsets(file.text);
  shown = { file, offsets, blocks: blocksOf(file, offsets), marks: [] };
  byId("view-body").hidden = false;
  view.replaceChildren(...shown.blocks.map((block) => block.node));
}

/** Cut a text behind line ends, into about equal parts, and wherever another page or sheet begins. */
function blocksOf({ text, locations }, offsets) {
  const names = new Map();
  let last = null;
  for (const { start, name } of locations ?? []) {
    if (name && name !== last) names.set(offsets.unit(start), name);
    last = name;
  }
  const starts = new Set([0, ...names.keys()]);
  for (let at = BLOCK; at < text.length; at += BLOCK) {
    const line = text.indexOf("\n", at);
    if (line === -1) break;
    at = line + 1;
    starts.add(at);
  }
  const cuts = [...starts].filter((start) => start < text.length).sort((one, other) => one - other);
  return cuts.map((start, index) => {
    const part = text.slice(start, cuts[index + 1] ?? text.length);
    const node = element("div", { class: "block", text: part, "data-place": names.get(start) });
    return { start, end: start + part.length, text: part, node };
  });
}

function setMarks(passages, current) {
  for (const block of shown.blocks) if (block.node.childElementCount) block.node.textContent = block.text;
  shown.marks = passages.map((passage) => ({
    start: shown.offsets.unit(passage.start), end: shown.offsets.unit(passage.end), current: passage === current,
  }));
  shown.marks.sort((one, other) => one.start - other.start);
  for (const block of shown.blocks) {
    const inside = shown.marks.filter((mark) => mark.start < block.end && mark.end > block.start);
    if (inside.length) block.node.replaceChildren(...markedNodes(block, inside));
  }
}

function* markedNodes(block, marks) {
  let at = block.start;
  const upTo = (end) => block.text.slice(at - block.start, end - block.start);
  for (const { start, end, current } of marks) {
    const from = Math.max(start, at);
    const to = Math.min(end, block.end);
    if (from > at) yield upTo(from);
    at = from;
    if (to > from) yield element("mark", { class: current ? "current" : "", tabindex: current ? "-1" : false, text: upTo(to) });
    at = Math.max(at, to);
  }
  if (at < block.end) yield upTo(block.end);
}

function goToMark() {
  const mark = view.querySelector("mark.current");
  if (!mark) return;
  byId("view-part").scrollIntoView({ block: "nearest" });
  mark.scrollIntoView({ block: "center" });
  mark.focus({ preventScroll: true });
}

/** Go to the character at this share of the text. */
function goToShare(share) {
  const unit = Math.min(Math.floor(share * shown.file.text.length), shown.file.text.length - 1);
  const block = shown.blocks.findLast((candidate) => candidate.start <= unit);
  block.node.scrollIntoView({ block: "start" }); // so that the browser lays it out
  let rest = unit - block.start;
  const walker = document.createTreeWalker(block.node, NodeFilter.SHOW_TEXT);
  let node = walker.nextNode();
  while (node && rest >= node.length) {
    rest -= node.length;
    node = walker.nextNode();
  }
  const range = document.createRange();
  range.setStart(node, rest);
  range.setEnd(node, rest + 1);
  view.scrollTop += range.getBoundingClientRect().top - view.getBoundingClientRect().top - 40;
}

// The strip

function setStrip(attention) {
  const strip = byId("view-strip");
  const length = shown.file.text.length;
  const svg = drawn("svg", { viewBox: `0 0 20 ${SLICES}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  shown.heat = attention;
  const most = Math.max(...(attention ?? [0]), 1e-12);
  (attention ?? []).forEach((share, index) => {
    // the root makes small shares visible
    const strength = Math.sqrt(share / most).toFixed(3);
    svg.append(drawn("rect", { x: 0, width: 20, y: index, height: 1.02, class: "heat", "fill-opacity": strength }));
  });
  for (const { start, end, current } of shown.marks) {
    const y = (SLICES * start) / length;
    svg.append(drawn("rect", { x: 14, width: 6, y, height: Math.max(1.5, (SLICES * (end - start)) / length), class: current ? "tick current" : "tick" }));
  }
  svg.append(drawn("rect", { x: 0.5, width: 19, y: 0, height: SLICES, class: "window", id: "strip-window" }));
  strip.replaceChildren(svg, sliderOver(strip));
  byId("view-strip-hint").hidden = attention === null;
  showWindow();
}

function sliderOver(strip) {
  const slider = element("div", {
    class: "slider", role: "slider", tabindex: "0", "aria-orientation": "vertical", "aria-label": "Place in the text",
    "aria-valuemin": "0", "aria-valuemax": "100", "aria-controls": "view-text", id: "strip-slider",
  });
  const toPointer = (event) => {
    const { top, height } = strip.getBoundingClientRect();
    goToShare(Math.min(1, Math.max(0, (event.clientY - top) / height)));
  };
  slider.addEventListener("pointerdown", (event) => {
    slider.setPointerCapture(event.pointerId);
    toPointer(event);
  });
  slider.addEventListener("pointermove", (event) => slider.hasPointerCapture(event.pointerId) && toPointer(event));
  slider.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -SLICES, End: SLICES };
    if (!(event.key in steps)) return;
    event.preventDefault();
    goToShare(Math.min(1, Math.max(0, visibleShares()[0] + steps[event.key] / SLICES)));
  });
  return slider;
}

/** The first and last visible place, as shares of the text. */
function visibleShares() {
  const { top } = view.getBoundingClientRect();
  const at = (y) => {
    for (const block of shown.blocks) {
      const box = block.node.getBoundingClientRect();
      if (box.bottom <= y) continue;
      const inside = Math.min(1, Math.max(0, (y - box.top) / box.height));
      return (block.start + inside * (block.end - block.start)) / shown.file.text.length;
    }
    return 1;
  };
  return [at(top), at(top + view.clientHeight)];
}

function showWindow() {
  const slider = document.getElementById("strip-slider");
  if (!shown || !slider) return;
  const [first, last] = visibleShares();
  const frame = document.getElementById("strip-window");
  frame.setAttribute("y", SLICES * first);
  frame.setAttribute("height", Math.max(2, SLICES * (last - first)));
  slider.setAttribute("aria-valuenow", Math.round(100 * first));
  const share = shown.heat?.[Math.min(SLICES - 1, Math.floor(((first + last) / 2) * SLICES))];
  const heat = share === undefined ? "" : `, ${percent(share)} of the attention at its middle`;
  slider.setAttribute("aria-valuetext", `${percent(first)} to ${percent(last)} of the text in sight${heat}`);
}

// Lists of passages

/**
 * A list of passages; a click shows one in its document, with the others of that document.
 * @param {Array} passages evidence, or passages that were retrieved.
 * @param {Object} attention by file, the shares of its slices.
 * @param {Function} scored returns the element that shows a passage's score, or null.
 */
export function passageList(passages, attention = {}, label = "Evidence", scored = shareOfAttention) {
  const items = passages.map((passage) => passageItem(passage, passages, attention, scored(passage)));
  return element("ol", { class: "passages", "aria-label": label }, ...items);
}

const shareOfAttention = ({ score }) =>
  element("span", { class: "score", text: percent(score), title: "Share of the answer's attention to the documents" });

function passageItem(passage, passages, attention, score) {
  const known = documentOf(passage.file_id);
  const where = [passage.title || (known ? nameOf(known) : ""), passage.location].filter(Boolean).join(", ");
  const open = element("button", { type: "button", class: "passage", on: { click: () => openPassage(open, passage, passages, attention) } },
    element("span", { class: "where" }, element("span", { text: where || "document" }), score),
    element("span", { class: "quote" },
      passage.before ? element("span", { class: "around", text: tail(passage.before) }) : null,
      element("strong", { text: passage.text }),
      passage.after ? element("span", { class: "around", text: head(passage.after) }) : null));
  return element("li", {}, open);
}

const head = (text) => (text.length > 60 ? `${text.slice(0, 60)} …` : text);
const tail = (text) => (text.length > 60 ? `… ${text.slice(-60)}` : text);

function openPassage(from, passage, passages, attention) {
  opener = from;
  if (!passage.file_id) {
    showProblem(byId("view-problem"), new Error(sentence("the document of this passage is no longer there; add it again to see it")));
    return;
  }
  const same = passages.filter((other) => other.file_id === passage.file_id);
  showDocument(passage.file_id, { passages: same, current: passage, attention: attention?.[passage.file_id] ?? null });
}
