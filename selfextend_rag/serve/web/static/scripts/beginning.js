// What an empty conversation shows: how one begins, and questions that the samples' texts answer.

import { chosen } from "./documents.js";
import { button, element } from "./page.js";

let samples = [];

/** Begin. @param {Array} given the server's samples, `{name, questions}`. */
export function startBeginning(given) {
  samples = given;
}

/**
 * What to do next, as an element.
 * @param {Function} ask called with a question that was chosen.
 */
export function beginning(ask) {
  const names = chosen().map((document) => document.filename);
  const questions = samples.filter(({ name }) => names.includes(name)).flatMap((sample) => sample.questions);
  return element("div", { class: "beginning" }, ...(names.length ? questionsFor(questions, ask) : steps()));
}

const steps = () => [
  element("p", { class: "lead", text: "Ask questions about whole documents." }),
  element("ol", { class: "steps" },
    element("li", { text: "Add documents, or take a sample." }),
    element("li", { text: "See whether they fit what the model can read." }),
    element("li", { text: "Ask. Each answer comes with the passages it rests on; a click shows them in the text." })),
];

function questionsFor(questions, ask) {
  const lead = element("p", { class: "lead", text: questions.length ? "Ask a question, for instance:" : "Ask a question about the documents." });
  if (questions.length) {
    return [lead, element("ul", { class: "suggestions" }, ...questions.map((question) => element("li", {}, button(question, () => ask(question)))))];
  }
  return [lead, element("p", { class: "hint", text: "They are read with the first question, and kept for those that follow. Each answer comes with the passages it rests on." })];
}
