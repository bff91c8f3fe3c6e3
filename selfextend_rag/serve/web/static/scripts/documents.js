// The documents: added by dropping, choosing or as samples, put in order, left out, removed.

import * as api from "./api.js";
import {
  Listeners, announce, button, byId, bytes, counted, element, number, recall, remember, sentence, tokens,
} from "./page.js";
import { takeFiles } from "./uploads.js";

const AT_ONCE = 2; // uploads at the same time; the server reads as many
const NO_SPACE = Symbol("no space"); // on the server, for a file

const list = byId("document-list");
const problems = byId("documents-problems");

/** Called when the documents that are chosen, or their order, changed. */
export const changes = new Listeners();

let documents = []; // file objects of the server, with `chosen` and, once counted, `tokens`
let coming = []; // names of files that are on their way
let mostBytes = Infinity; // of an upload
let open = () => {}; // shows a document's text

/** The documents to read, in order. */
export const chosen = () => documents.filter((document) => document.chosen);
export const chosenIds = () => chosen().map((document) => document.id);

/** The document of this id; undefined if it is not on the page. */
export const documentOf = (id) => documents.find((document) => document.id === id);

/** What a document is called. */
export const nameOf = (document) => document.title || document.filename;

/** Begin: what the server allows, its samples, and the documents that were here before. */
export async function startDocuments(info, openDocument) {
  mostBytes = info.max_body_bytes;
  open = openDocument;
  showSamples(info.samples);
  takeFiles(add, note);
  await keepThoseThere(recall("documents", []));
  if (!documents.length) await takeThoseOfServer();
}

/** Take the files that the server has, as when it was started with some. */
async function takeThoseOfServer() {
  try {
    replaceDocuments(await api.files());
  } catch (error) {
    note(error.message);
  }
}

/** Keep of some documents, `{id, chosen}`, those that the server still has, and say how many it lost. */
export async function keepThoseThere(before = documents) {
  const found = await Promise.all(before.map(({ id }) => api.file(id).catch((error) => error)));
  documents = found.flatMap((file, index) =>
    file instanceof Error ? [] : [{ ...file, chosen: before[index].chosen }],
  );
  const lost = found.filter((file) => file instanceof Error);
  if (lost.length) {
    const isGone = lost[0].details?.code === "file_not_found";
    const reason = isGone ? "the server keeps files only while it runs" : lost[0].message;
    note(`${counted(lost.length, "document")} of before can't be had any more: ${reason}`);
  }
  changed();
}

/** Put other documents in place of these, as when a reading is opened. */
export function replaceDocuments(files) {
  documents = files.map((file) => ({ ...file, chosen: true }));
  changed();
}

/** Choose the documents of these ids, and leave the others out. */
export function chooseOnly(ids) {
  for (const document of documents) document.chosen = ids.includes(document.id);
  changed();
}

/** Take the counted tokens of documents, `{id: tokens}`, and show them. */
export function noteTokens(counts) {
  for (const document of documents) document.tokens = counts[document.id] ?? document.tokens;
  show();
}

function changed() {
  remember("documents", documents.map(({ id, chosen }) => ({ id, chosen })));
  show();
  changes.call();
}

function note(message) {
  const line = element("div", { class: "problem" }, element("p", { text: sentence(message) }));
  line.append(button("Dismiss", () => line.remove(), { class: "quiet" }));
  problems.append(line);
}

// What comes in

async function add(files) {
  if (!files.length) return;
  coming.push(...files);
  show();
  const before = documents.length;
  const arrived = []; // at the places of their files, whichever is read first
  const rest = files.entries(); // of which each takes the next
  let left = 0; // for which the server has no space
  const take = async () => {
    for (const [place, file] of rest) {
      const got = left ? NO_SPACE : await uploaded(file);
      if (got === NO_SPACE) left += 1;
      else arrived[place] = got;
      coming = coming.filter((other) => other !== file);
      show();
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, take));
  arrived.filter(Boolean).forEach(include);
  if (left) note(`${counted(left, "file")} ${left === 1 ? "was" : "were"} left out: the server keeps no more; remove some`);
  changed();
  announce(`${counted(documents.length - before, "document")} added.`);
}

async function uploaded(file) {
  if (file.size > mostBytes) {
    note(`${file.name} has ${bytes(file.size)}; this server takes ${bytes(mostBytes)} at a time`);
    return null;
  }
  try {
    return await api.upload(file);
  } catch (error) {
    if (error.details?.code === "too_many_files") return NO_SPACE;
    note(error.message.includes(file.name) ? error.message : `${file.name}: ${error.message}`);
    return null;
  }
}

function include(file) {
  const known = documentOf(file.id);
  if (known) {
    known.chosen = true;
    note(`${nameOf(known)} is here already`);
  } else documents.push({ ...file, chosen: true });
}

function showSamples(samples) {
  byId("samples").hidden = samples.length === 0;
  byId("sample-list").replaceChildren(
    ...samples.map((sample) =>
      element("li", {}, button(sample.label, () => addSample(sample), {
        title: sample.name,
      })),
    ),
  );
}

async function addSample(sample) {
  try {
    include(await api.sample(sample.name));
    changed();
    announce(`${sample.label} added.`);
  } catch (error) {
    note(error.message);
  }
}

// The list

function show() {
  const focused = document.activeElement?.dataset?.focus;
  list.replaceChildren(...documents.map(item), ...coming.map(waiting));
  byId("documents-hint").hidden = documents.length < 2;
  if (focused) list.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
}

const waiting = (file) =>
  element("li", { class: "coming" }, element("span", { text: `${file.name}: its text is being read …` }));

function item(document, index) {
  const name = nameOf(document);
  const act = (key, label, run, disabled = false) =>
    button("", run, { class: `icon ${key}`, "aria-label": `${label}: ${name}`, title: label, disabled, "data-focus": `${key} ${document.id}` });
  const box = element("input", {
    type: "checkbox", checked: document.chosen, "aria-label": `Read ${name}`, "data-focus": `box ${document.id}`,
    title: "Read this document, or leave it out", on: { change: () => choose(document, box.checked) },
  });
  const row = element(
    "li",
    { class: document.chosen ? "" : "left-out", draggable: "true", on: { keydown: (event) => moveByKey(event, index) } },
    element("div", { class: "line" }, box,
      element("div", { class: "what" },
        button(name, () => open(document.id), { class: "name", title: `Show the text of ${document.filename}`, "data-focus": `name ${document.id}` }),
        element("p", { class: "figures", text: sizeOf(document) })),
      act("up", "Move up", () => move(index, index - 1), index === 0),
      act("down", "Move down", () => move(index, index + 1), index === documents.length - 1),
      act("remove", "Remove", () => remove(document))),
    remarksOf(document),
  );
  dragging(row, index);
  return row;
}

function sizeOf({ tokens: count, characters }) {
  return count === undefined ? `${number(characters)} characters` : tokens(count);
}

function remarksOf(document) {
  const remarks = document.remarks ?? [];
  if (!remarks.length) return null;
  const worst = ["loss", "warning", "note"].find((severity) => remarks.some((remark) => remark.severity === severity));
  return element("details", { class: `remarks ${worst}`, open: worst === "loss" },
    element("summary", { text: worst === "loss" ? "Not everything could be read" : counted(remarks.length, "remark") }),
    element("ul", {}, ...remarks.map((remark) =>
      element("li", { text: `${remark.location ? `${remark.location}: ` : ""}${remark.message}` }))));
}

function choose(document, isChosen) {
  document.chosen = isChosen;
  changed();
  announce(`${nameOf(document)} ${isChosen ? "will be read" : "is left out"}.`);
}

function move(from, to) {
  if (to < 0 || to >= documents.length || from === to) return;
  const [moved] = documents.splice(from, 1);
  documents.splice(to, 0, moved);
  changed();
  announce(`${nameOf(moved)} is number ${to + 1} of ${documents.length} now.`);
}

function moveByKey(event, index) {
  if (!event.altKey || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
  event.preventDefault();
  move(index, index + (event.key === "ArrowUp" ? -1 : 1));
}

async function remove(removed) {
  const index = documents.indexOf(removed);
  documents = documents.filter((other) => other !== removed);
  changed();
  announce(`${nameOf(removed)} removed.`);
  const next = documents[Math.min(index, documents.length - 1)];
  if (next) list.querySelector(`[data-focus="${CSS.escape(`remove ${next.id}`)}"]`)?.focus();
  else byId("choose-files").focus();
  try {
    await api.removeFile(removed.id);
  } catch (error) {
    if (error.details?.code !== "file_not_found") note(error.message);
  }
}

let dragged = null; // the place of the document that is dragged

function dragging(row, index) {
  row.addEventListener("dragstart", (event) => {
    dragged = index;
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", row.textContent);
  });
  row.addEventListener("dragend", () => (dragged = null));
  row.addEventListener("dragover", (event) => {
    if (dragged === null) return;
    event.preventDefault();
    row.classList.toggle("below", index > dragged);
    row.classList.toggle("above", index < dragged);
  });
  row.addEventListener("dragleave", () => row.classList.remove("above", "below"));
  row.addEventListener("drop", (event) => {
    if (dragged === null) return;
    event.preventDefault();
    move(dragged, index);
  });
}
