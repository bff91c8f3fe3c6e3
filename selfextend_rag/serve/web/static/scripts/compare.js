// The same question to the same model twice: about whole documents, and about what a search found.

import * as api from "./api.js";
import { chosen, chosenIds } from "./documents.js";
import { conversation, maxNewTokens } from "./questions.js";
import { announce, byId, duration, element, number, showProblem, tokens } from "./page.js";
import { progressText } from "./reading.js";
import { passageList } from "./viewer/passages.js";

const result = byId("compare-result");
const stop = byId("compare-stop");
const state = element("p", { class: "hint" });
const bar = element("progress", { "aria-label": "Comparing" });

let running = null; // the AbortController of a comparison

/** Begin. @param {Function} onEnd called after a comparison, for which documents were read. */
export function startCompare(onEnd) {
  stop.addEventListener("click", () => running?.abort());
  byId("compare-tab").addEventListener("focus", () => (byId("compare-question").value ||= conversation().at(-1)?.question ?? ""));
  byId("compare-question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("compare-form").requestSubmit();
  });
  byId("compare-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running !== null) return;
    await compare();
    onEnd();
  });
}

async function compare() {
  const problem = byId("compare-problem");
  const question = byId("compare-question").value.trim();
  showProblem(problem, null);
  if (!question || !chosen().length) {
    showProblem(problem, new Error(question ? "add a document first, or choose one that is left out" : "type a question first"));
    return;
  }
  begin();
  try {
    const pieces = byId("compare-passages").valueAsNumber || 3;
    const body = { files: chosenIds(), question, pieces, max_new_tokens: maxNewTokens() };
    let both = null;
    for await (const { name, data } of api.compare(body, running.signal)) {
      if (name === "progress") showProgress(data);
      if (name === "compared") both = data;
    }
    if (both === null) throw new api.ServerError("the comparison broke off before its end; compare again");
    show(both);
    announce("Both answers are there.");
  } catch (error) {
    result.replaceChildren();
    showProblem(problem, running.signal.aborted ? null : error);
  } finally {
    running = null;
    end();
  }
}

function begin() {
  running = new AbortController();
  stop.hidden = false;
  byId("compare-run").disabled = true;
  result.setAttribute("aria-busy", "true");
  state.textContent = "Both are being answered; documents that were not read yet are read first …";
  result.replaceChildren(state, bar);
  bar.removeAttribute("value"); // until the first figures it is not known
}

function showProgress({ done, total, ...more }) {
  bar.max = Math.max(1, total);
  bar.value = done;
  state.textContent = done < total ? progressText({ done, total, ...more }) : "Both are being answered …";
  if (done >= total) bar.removeAttribute("value");
}

function end() {
  stop.hidden = true;
  byId("compare-run").disabled = false;
  result.removeAttribute("aria-busy");
}

function show({ whole, retrieved, retriever }) {
  const most = Math.max(whole.tokens_read, retrieved.tokens_read, 1);
  const search = retriever === "bm25" ? "BM25" : retriever;
  // what a search gives a passage is no share of anything
  const scored = ({ score }) => (score === undefined ? null : element("span", { class: "score", text: `${search} ${score.toFixed(2)}` }));
  result.replaceChildren(
    side("whole", "Whole documents", whole, most, "Rests on", passageList(whole.evidence, {}, "Rests on")),
    side("retrieved", `Retrieved by ${search}`, retrieved, most, "Was shown", passageList(retrieved.passages, {}, "Was shown", scored)),
  );
}

function side(kind, title, answer, most, what, passages) {
  const figures = `${tokens(answer.tokens_read)} read, ${duration(answer.seconds)}`;
  return element("section", { class: `side ${kind}`, "aria-label": title },
    element("h3", { text: title }),
    element("p", { class: "answer", text: answer.text || "(no answer)" }),
    element("p", { class: "memory figures" }, element("span", { text: figures }),
      element("meter", { min: "0", max: most, value: answer.tokens_read, "aria-label": `${number(answer.tokens_read)} of ${number(most)} tokens` })),
    element("h4", { text: passages.childElementCount ? what : `${what}: nothing in particular` }),
    passages.childElementCount ? passages : null);
}
