// The document view: a text as the model reads it, with its passages marked.
//
// The server counts characters as code points, JavaScript as UTF-16 units; `Offsets` converts.

import * as api from "../api.js";
import { nameOf } from "../documents.js";
import { byId, counted, element, number, showProblem } from "../page.js";
import { drawStrip, startStrip } from "./strip.js";

const BLOCK = 4000; // characters of text in an element, about; the browser lays out those in sight
const KEPT = 8; // texts in memory

const view = byId("view-text");

const texts = new Map(); // of files, by id, latest last
let shown = null; // {file, offsets, blocks, marks}
let request = 0; // the latest one wins

/** Begin: the strip follows the text, and the text the strip. */
export function startViewer() {
  startStrip(goToShare);
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
    drawStrip(shown, attention);
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
