// Reading the documents, with progress and a way to cancel, and the readings that are kept.

import * as api from "./api.js";
import { fits, plans } from "./budget.js";
import { changes, chosen, chosenIds, replaceDocuments } from "./documents.js";
import { announce, button, byId, bytes, confirmed, counted, duration, element, number, showProblem, tokens } from "./page.js";

const start = byId("read");
const cancel = byId("cancel-reading");
const state = byId("reading-state");
const HINT = state.textContent; // while there is nothing else to say

let running = null; // the AbortController of a reading
let maxNewTokens = () => undefined;
let saves = false;
let kept = []; // readings of the server
let isSaid = false; // something that a list of readings does not change

/** Begin: reading by button, and the list of kept readings. */
export function startReading(info, givenMaxNewTokens) {
  saves = info.saves;
  maxNewTokens = givenMaxNewTokens;
  start.addEventListener("click", read);
  cancel.addEventListener("click", () => running?.abort());
  changes.add(() => showWhetherRead());
  changes.add(allow);
  plans.add(allow);
  byId("saved").addEventListener("toggle", () => byId("saved").open && refreshSaved());
  allow();
  refreshSaved();
}

function allow() {
  const count = chosen().length;
  start.disabled = running !== null || count === 0 || !fits();
  start.textContent = count > 1 ? `Read ${counted(count, "document")}` : "Read the document";
}

/** Show it where the chosen documents are kept as they were read, for a question or by the button. */
function showWhetherRead() {
  const files = chosenIds();
  const reading = kept.find((each) => files.length > 0 && String(each.files) === String(files));
  isSaid = false;
  state.textContent = reading ? `Read: ${tokens(reading.tokens)}, kept in ${bytes(reading.nbytes)}. Questions begin at once.` : HINT;
}

async function read() {
  running = new AbortController();
  const { signal } = running;
  let done = null;
  showProblem(byId("reading-problem"), null);
  begin();
  try {
    const files = chosenIds();
    for await (const { name, data } of api.read({ files, max_new_tokens: maxNewTokens() }, signal)) {
      if (name === "progress") showProgress(data);
      if (name === "read") done = data;
    }
    if (done === null) throw new api.ServerError("the reading broke off before its end; read again");
    announce(`Read: ${tokens(done.tokens)} in ${duration(done.seconds)}.`);
  } catch (error) {
    if (signal.aborted) say("Cancelled.");
    else {
      say("");
      showProblem(byId("reading-problem"), error);
    }
  } finally {
    running = null;
    end();
  }
  refreshSaved();
}

function begin() {
  cancel.hidden = false;
  byId("reading-progress").hidden = false;
  byId("reading-bar").removeAttribute("value"); // until the first figures it is not known
  byId("reading-figures").textContent = "Waiting for the model …";
  state.textContent = "";
  isSaid = false;
  allow();
  announce("Reading.");
}

function end() {
  const hadFocus = document.activeElement === cancel;
  cancel.hidden = true;
  byId("reading-progress").hidden = true;
  allow();
  if (hadFocus) start.focus();
}

function say(message) {
  isSaid = true;
  state.textContent = message;
  announce(message);
}

/** Show how far a reading is: `{done, total, seconds_left}`; also while a question reads. */
function showProgress({ done, total, seconds_left: left }) {
  const bar = byId("reading-bar");
  bar.max = Math.max(1, total);
  bar.value = done;
  byId("reading-figures").textContent = progressText({ done, total, seconds_left: left });
}

/** How far a reading is, as text. */
export function progressText({ done, total, seconds_left: left }) {
  const figures = `${number(done)} of ${tokens(total)} read`;
  return left === null || left === undefined ? figures : `${figures}, about ${duration(left)} left`;
}

// Kept readings

/** Fetch the kept readings again and show them. */
export async function refreshSaved() {
  try {
    const { readings } = await api.readings();
    kept = readings;
    showSaved(readings);
    if (running === null && !isSaid) showWhetherRead();
    showProblem(byId("saved-problem"), null);
  } catch (error) {
    showProblem(byId("saved-problem"), error);
  }
}

function showSaved(readings) {
  byId("saved-count").textContent = String(readings.length);
  byId("saved-list").replaceChildren(...readings.map(savedItem));
  byId("saved-hint").textContent = saves
    ? "Opening one puts its documents back; its questions need no reading. Those on disk outlast the server."
    : "Opening one puts its documents back. This server keeps them in memory, while it runs.";
}

function savedItem(reading) {
  const name = reading.titles.join(", ") || "without title";
  const made = new Date(reading.created * 1000);
  const figures = [tokens(reading.tokens), bytes(reading.nbytes), (reading.where ?? []).join(" and ")];
  if (reading.created) figures.push(made.toLocaleString("en", { dateStyle: "medium", timeStyle: "short" }));
  return element("li", {},
    element("p", { class: "name", text: name }),
    element("p", { class: "figures", text: figures.filter(Boolean).join(" · ") }),
    element("p", { class: "buttons" },
      button("Open", () => openSaved(reading), { "aria-label": `Open ${name}` }),
      button("Delete", () => deleteSaved(reading, name), { class: "quiet", "aria-label": `Delete ${name}` })));
}

async function openSaved(reading) {
  try {
    const { files } = await api.openReading(reading.id);
    replaceDocuments(files);
    say(`Opened: ${counted(files.length, "document")}, ${tokens(reading.tokens)}, read before.`);
    showProblem(byId("saved-problem"), null);
  } catch (error) {
    showProblem(byId("saved-problem"), error);
  }
}

async function deleteSaved(reading, name) {
  if (!(await confirmed(`Delete the reading of ${name}? Its documents stay; they would have to be read again.`))) return;
  try {
    await api.deleteReading(reading.id);
    announce("Reading deleted.");
  } catch (error) {
    showProblem(byId("saved-problem"), error);
    return;
  }
  byId("saved").querySelector("summary").focus();
  refreshSaved();
}
