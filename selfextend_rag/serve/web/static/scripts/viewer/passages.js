// Lists of passages; a click shows one in its document, marked, and Escape leads back to the list.

import { documentOf, nameOf } from "../documents.js";
import { byId, element, percent, sentence, showProblem } from "../page.js";
import { showDocument } from "./viewer.js";

const AROUND = 60; // characters that are shown before and behind a passage

const back = byId("view-back");

let opener = null; // the button that opened a passage

/** Begin: the way back to the answer. */
export function startPassages() {
  back.addEventListener("click", goBack);
  byId("view-part").addEventListener("keydown", (event) => event.key === "Escape" && goBack());
}

function goBack() {
  if (!opener?.isConnected) return;
  opener.scrollIntoView({ block: "center" });
  opener.focus();
}

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

// Cut between words, where there are any.
const head = (text) => (text.length > AROUND ? `${text.slice(0, AROUND).replace(/(\s)\S*$/, "$1")}…` : text);
const tail = (text) => (text.length > AROUND ? `…${text.slice(-AROUND).replace(/^\S*(\s)/, "$1")}` : text);

function openPassage(from, passage, passages, attention) {
  opener = from;
  back.hidden = false;
  if (!passage.file_id) {
    showProblem(byId("view-problem"), new Error(sentence("the document of this passage is no longer there; add it again to see it")));
    return;
  }
  const same = passages.filter((other) => other.file_id === passage.file_id);
  showDocument(passage.file_id, { passages: same, current: passage, attention: attention?.[passage.file_id] ?? null });
}
