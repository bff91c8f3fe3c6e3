// The conversation: a question is asked, its answer comes as it is made, with the passages it rests
// on; earlier ones stay, and go along as the history.

import * as api from "./api.js";
import { beginning, startBeginning } from "./beginning.js";
import { changes, chosen, chosenIds, nameOf } from "./documents.js";
import { ExchangeView } from "./exchange.js";
import { announce, byId, confirmed, counted, element, recall, remember, showProblem } from "./page.js";
import { progressText } from "./reading.js";

const SCHEMA = {
  type: "object",
  properties: { answer: { type: "string" }, certain: { type: "boolean" } },
  required: ["answer", "certain"],
  additionalProperties: false,
};
const SETTINGS = ["max-tokens", "temperature", "seed", "schema"];

const log = byId("conversation");
const question = byId("question");
const stop = byId("stop");

let exchanges = []; // of this conversation, as they are exported
let running = null; // the AbortController of the answer that comes
let afterAnswer = () => {};

/** The conversation, as it is exported. */
export const conversation = () => exchanges;

/**
 * Begin: the form, its settings, and the conversation that was here before.
 * @param {Function} onSettings called when the length of an answer, or the question, changed.
 * @param {Function} onAnswer called after an answer: documents may have been read for it.
 */
export function startQuestions(info, onSettings, onAnswer) {
  afterAnswer = onAnswer;
  byId("max-tokens").placeholder = String(info.max_new_tokens);
  startSettings(onSettings);
  question.addEventListener("input", onSettings);
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (running === null) byId("ask-form").requestSubmit();
  });
  byId("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running === null) ask();
  });
  stop.addEventListener("click", () => running?.abort());
  byId("clear").addEventListener("click", clear);
  startBeginning(info.samples);
  changes.add(() => exchanges.length || showAll());
  exchanges = recall("conversation", []);
  showAll();
}

// Settings

function startSettings(onSettings) {
  const before = recall("settings", {});
  for (const id of SETTINGS) byId(id).value = before[id] ?? "";
  byId("with-history").checked = before["with-history"] ?? true;
  const keep = () => {
    const values = Object.fromEntries(SETTINGS.map((id) => [id, byId(id).value]));
    remember("settings", { ...values, "with-history": byId("with-history").checked });
    checkSchema();
    onSettings();
  };
  byId("options").addEventListener("input", keep);
  byId("schema-example").addEventListener("click", () => {
    byId("schema").value = JSON.stringify(SCHEMA, null, 2);
    keep();
  });
  checkSchema();
}

function checkSchema() {
  const text = byId("schema").value.trim();
  let state = "";
  try {
    if (text) state = isObject(JSON.parse(text)) ? "Answers will be JSON." : "A schema is a JSON object.";
  } catch (error) {
    state = `This is no JSON yet: ${error.message}`;
  }
  byId("schema-state").textContent = state;
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** What the budget plans for: the question as it is typed, and the length of the answer. */
export const plannedFor = () => ({ question: question.value.trim() || undefined, max_new_tokens: maxNewTokens() });

/** The longest answer as it is set; undefined for the server's own. */
export const maxNewTokens = () => numberIn("max-tokens");

function numberIn(id) {
  const field = byId(id);
  return field.value.trim() === "" ? undefined : field.valueAsNumber;
}

/**
 * The settings of an answer, under the server's names.
 * @throws {Error} a number is out of its range, or the schema no JSON object.
 */
export function answerSettings() {
  const invalid = ["max-tokens", "temperature", "seed"].map(byId).find((field) => !field.checkValidity());
  if (invalid) {
    byId("options").open = true;
    invalid.focus();
    throw new Error(`${invalid.labels[0].textContent.trim()}: ${invalid.validationMessage}`);
  }
  const text = byId("schema").value.trim();
  const schema = text ? schemaOf(text) : undefined;
  return { max_new_tokens: maxNewTokens(), temperature: numberIn("temperature"), seed: numberIn("seed"), json_schema: schema };
}

function schemaOf(text) {
  let schema = null;
  try {
    schema = JSON.parse(text);
  } catch (error) {
    throw new Error(`the schema of the answer is no JSON: ${error.message}`);
  }
  if (!isObject(schema)) throw new Error("the schema of the answer must be a JSON object");
  return schema;
}

// Asking

async function ask() {
  const asked = question.value.trim();
  const problem = byId("ask-problem");
  showProblem(problem, null);
  const exchange = newExchange(asked);
  let body;
  try {
    if (!asked) throw new Error("type a question first");
    if (!exchange.files.length) throw new Error("add a document first, or choose one that is left out");
    body = { files: chosenIds(), question: asked, history: historyFor(exchange), ...answerSettings() };
  } catch (error) {
    showProblem(problem, error);
    return;
  }
  if (body.json_schema) exchange.schema = body.json_schema;
  setQuestion("");
  await answer(exchange, body);
  keep();
  afterAnswer();
}

function askAgain(text) {
  setQuestion(text);
  question.focus();
}

function askFor(text) {
  setQuestion(text);
  byId("ask-form").requestSubmit();
  question.focus();
}

function setQuestion(text) {
  question.value = text;
  question.dispatchEvent(new Event("input"));
}

const newExchange = (asked) =>
  ({ question: asked, answer: "", files: chosen().map((file) => ({ id: file.id, name: nameOf(file) })) });

const filesIn = (exchange) => exchange?.files.map((file) => file.id).join();

async function answer(exchange, body) {
  const view = new ExchangeView(exchange, askAgain);
  if (!exchanges.length) log.replaceChildren();
  log.append(...dividerBefore(exchange, exchanges.at(-1)), view.node);
  exchanges.push(exchange);
  allowActions();
  begin();
  try {
    await stream(body, running.signal, exchange, view);
    announce(`Answer: ${exchange.answer}`);
  } catch (error) {
    exchange.state = running.signal.aborted ? "stopped" : "failed";
    if (exchange.state === "failed") exchange.error = error.message;
    showProblem(byId("ask-problem"), error);
    announce(exchange.state === "stopped" ? "Stopped." : error.message);
  } finally {
    running = null;
    end();
    view.finish();
  }
}

/** Take an answer into an exchange; `view` is shown each part. */
async function stream(body, signal, exchange, view) {
  for await (const { name, data } of api.ask(body, signal)) {
    if (name === "progress") view.progress(data);
    if (name === "text") {
      exchange.answer += data.text;
      view.text();
    }
    if (name === "answer") {
      const { text, ...more } = data;
      Object.assign(exchange, { answer: text, state: "done" }, more);
    }
  }
  if (exchange.state !== "done") throw new api.ServerError("the answer broke off before its end; ask again");
}

/** Ask one question by itself; returns the exchange. */
export async function askAlone(asked, settings, signal, onProgress) {
  const exchange = newExchange(asked);
  const view = { progress: (data) => onProgress(progressText(data)), text: () => {} };
  await stream({ files: chosenIds(), question: asked, history: [], ...settings }, signal, exchange, view);
  return exchange;
}

/** The questions and answers since the documents were last changed. */
function historyFor(exchange) {
  if (!byId("with-history").checked) return [];
  const last = exchanges.findLastIndex((earlier) => filesIn(earlier) !== filesIn(exchange));
  const answered = exchanges.slice(last + 1).filter(({ state }) => state === "done");
  return answered.map((earlier) => [earlier.question, earlier.answer]);
}

function begin() {
  running = new AbortController();
  stop.hidden = false;
  byId("ask").disabled = true;
  announce("The model answers.");
}

function end() {
  const hadFocus = document.activeElement === stop;
  stop.hidden = true;
  byId("ask").disabled = false;
  if (hadFocus) question.focus();
}

function keep() {
  const kept = exchanges.map(({ attention, ...rest }) => ({ ...rest, attention: rounded(attention) }));
  if (remember("conversation", kept)) return;
  const without = exchanges.map(({ attention, ...rest }) => rest);
  if (!remember("conversation", without)) {
    showProblem(byId("ask-problem"), new Error("the browser has no space for this conversation: export it before you reload the page"));
  }
}

/** Shares with four digits, which a strip shows as well. */
function rounded(attention) {
  const short = (share) => Number(share.toPrecision(4));
  return attention && Object.fromEntries(Object.entries(attention).map(([id, shares]) => [id, shares.map(short)]));
}

async function clear() {
  if (!exchanges.length || !(await confirmed(`Delete this conversation of ${counted(exchanges.length, "question")}?`))) return;
  running?.abort();
  exchanges = [];
  keep();
  showAll();
  announce("Conversation deleted.");
  question.focus();
}

// How it looks

/** There is nothing to export or delete in an empty conversation. */
function allowActions() {
  for (const id of ["export-markdown", "export-json", "clear"]) byId(id).disabled = !exchanges.length;
}

function showAll() {
  log.replaceChildren();
  allowActions();
  if (!exchanges.length) {
    log.append(beginning(askFor));
  }
  exchanges.forEach((exchange, index) => {
    exchange.state ??= "stopped"; // the page was closed while it came
    const view = new ExchangeView(exchange, askAgain);
    log.append(...dividerBefore(exchange, exchanges[index - 1]), view.node);
    view.finish();
  });
}

function dividerBefore(exchange, previous) {
  if (filesIn(previous) === filesIn(exchange)) return [];
  return [element("p", { class: "divider", text: `About ${exchange.files.map((file) => file.name).join(", ")}` })];
}
