// Several questions from a list, each by itself; the answers as a table, which can be downloaded.

import { chosen } from "./documents.js";
import { answersAsCsv, download } from "./export.js";
import { answerSettings, askAlone } from "./questions.js";
import { announce, byId, counted, duration, element, percent, recall, remember, sentence, showProblem } from "./page.js";
import { passageList } from "./viewer/passages.js";

const MARK = "\ufeff"; // by which spreadsheets know UTF-8

const field = byId("several-questions");
const stop = byId("several-stop");
const progress = byId("several-progress");

let running = null; // the AbortController of the questions
let results = [];

/** Begin. @param {Function} onEnd called when all are answered. */
export function startSeveral(onEnd) {
  field.value = recall("questions", "");
  field.addEventListener("input", () => remember("questions", field.value));
  stop.addEventListener("click", () => running?.abort());
  byId("several-csv").addEventListener("click", () => download("answers.csv", MARK + answersAsCsv(results), "text/csv"));
  byId("several-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running !== null) return;
    await run();
    onEnd();
  });
}

async function run() {
  const problem = byId("several-problem");
  const questions = field.value.split("\n").map((line) => line.trim()).filter(Boolean);
  let settings;
  showProblem(problem, null);
  try {
    if (!questions.length) throw new Error("write at least one question");
    if (!chosen().length) throw new Error("add a document first, or choose one that is left out");
    settings = answerSettings();
  } catch (error) {
    showProblem(problem, error);
    return;
  }
  begin(questions);
  try {
    for (const [index, question] of questions.entries()) {
      await one(index, question, settings);
      if (running.signal.aborted) break;
    }
  } finally {
    end(questions.length);
  }
}

async function one(index, question, settings) {
  const row = byId("several-rows").rows[index];
  const place = `Question ${index + 1} of ${byId("several-rows").rows.length}`;
  progress.textContent = `${place} …`;
  row.classList.add("running");
  try {
    const onProgress = (text) => (progress.textContent = `${place}: ${text}`);
    const exchange = await askAlone(question, settings, running.signal, onProgress);
    results.push(exchange);
    fillRow(row, exchange);
  } catch (error) {
    if (running.signal.aborted) return;
    results.push({ question, answer: "", error: error.message });
    row.cells[1].replaceChildren(element("p", { class: "problem", text: sentence(error.message) }));
  } finally {
    row.classList.remove("running");
  }
}

function begin(questions) {
  running = new AbortController();
  results = [];
  stop.hidden = false;
  byId("several-run").disabled = true;
  byId("several-csv").disabled = true;
  byId("several-scroll").hidden = false;
  byId("several-rows").replaceChildren(...questions.map((question) =>
    element("tr", {}, element("th", { scope: "row", text: question }), element("td"), element("td"), element("td"))));
}

function end(count) {
  const stopped = running.signal.aborted;
  const failed = results.filter((result) => result.error).length;
  running = null;
  stop.hidden = true;
  byId("several-run").disabled = false;
  byId("several-csv").disabled = results.length === 0;
  const answered = results.length - failed;
  progress.textContent = `${stopped ? "Stopped: " : ""}${answered} of ${counted(count, "question")} answered${failed ? `, ${failed} failed` : ""}.`;
  announce(progress.textContent);
}

function fillRow(row, exchange) {
  const [, answer, evidence, time] = row.cells;
  answer.textContent = exchange.answer;
  answer.classList.add("answer");
  const [first] = exchange.evidence ?? [];
  if (first) {
    const others = exchange.evidence.length - 1;
    evidence.replaceChildren(passageList([first], exchange.attention, `Evidence, ${percent(first.score)}`));
    if (others) evidence.append(element("p", { class: "hint", text: `and ${counted(others, "other passage")}` }));
  }
  time.textContent = duration(exchange.seconds);
}
