// One question with its answer: as it comes, how it ended, and what it rests on.

import { button, byId, duration, element, number, tokens } from "./page.js";
import { progressText } from "./reading.js";
import { passageList } from "./viewer/passages.js";

const log = byId("conversation");

/** Shows an exchange, whose `node` is for the conversation. */
export class ExchangeView {
  /**
   * @param {Object} exchange with at least `question`, `answer` and `files`; its other fields follow.
   * @param {Function} onAgain called with the question, to ask it again.
   */
  constructor(exchange, onAgain) {
    this.exchange = exchange;
    this.onAgain = onAgain;
    this.state = element("p", { class: "figures", text: "Waiting for the model …" });
    this.bar = element("progress", { "aria-label": "Reading the documents", hidden: true });
    this.answer = element("div", { class: exchange.schema ? "answer code" : "answer" });
    this.below = element("div", { class: "below" });
    this.node = element("article", { class: "exchange", "aria-label": `Question: ${exchange.question}` },
      element("p", { class: "question", text: exchange.question }), this.answer, this.bar, this.state, this.below);
    this.follow(true);
  }

  /** Show how far the documents are read. */
  progress(data) {
    this.bar.hidden = data.done >= data.total;
    this.bar.max = Math.max(1, data.total);
    this.bar.value = data.done;
    this.state.textContent = this.bar.hidden ? "The model begins to answer …" : progressText(data);
  }

  /** Show the text of the answer so far. */
  text() {
    const atEnd = isAtEnd();
    this.bar.hidden = true;
    this.state.textContent = "";
    this.answer.textContent = this.exchange.answer;
    this.follow(atEnd);
  }

  /** Keep the end in sight, unless the reader scrolled away from it. */
  follow(isWanted) {
    if (isWanted) requestAnimationFrame(() => (log.scrollTop = log.scrollHeight));
  }

  /** Show how the answer ended, what it rests on, and all of it from its question on. */
  finish() {
    const { exchange } = this;
    const atEnd = isAtEnd();
    this.bar.hidden = true;
    this.answer.textContent = exchange.answer;
    this.state.textContent = endingOf(exchange);
    this.below.replaceChildren();
    if (exchange.evidence?.length) this.below.append(passageList(exchange.evidence, exchange.attention));
    this.below.append(button("Ask again", () => this.onAgain(exchange.question), { class: "quiet", "aria-label": `Ask again: ${exchange.question}` }));
    if (atEnd) requestAnimationFrame(() => (log.scrollTop += this.node.getBoundingClientRect().top - log.getBoundingClientRect().top));
  }
}

const isAtEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;

function endingOf({ state, error, seconds, usage, finish_reason: reason }) {
  if (state === "failed") return `No answer: ${error}`;
  if (state === "stopped") return "Stopped before its end.";
  const parts = [duration(seconds)];
  const { prompt_tokens: prompt, completion_tokens: completion, prompt_tokens_details: details } = usage ?? {};
  if (completion !== undefined) parts.push(`${tokens(completion)} of answer`);
  if (prompt !== undefined) parts.push(`${number(prompt)} seen${details?.cached_tokens ? `, ${number(details.cached_tokens)} of them read before` : ""}`);
  if (reason === "length") parts.push("cut off at the longest answer that was allowed");
  return parts.join(" · ");
}
