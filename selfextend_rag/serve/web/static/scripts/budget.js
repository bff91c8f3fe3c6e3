// The budget as a picture: what documents, question and answer take of the model's windows, and
// what to do where it does not fit. Nothing is read for it.

import * as api from "./api.js";
import { changes, chooseOnly, chosen, chosenIds, keepThoseThere, nameOf, noteTokens } from "./documents.js";
import {
  Listeners, afterQuiet, announce, button, byId, bytes, counted, drawn, element, number, percent, sentence, showProblem, tokens,
} from "./page.js";

const WIDTH = 320; // of the picture, in its own units
const BAR = { top: 26, height: 30 };
const TINTS = 6; // of documents, in turn; see app.css

const place = byId("budget");

/** Called when there is another plan. */
export const plans = new Listeners();

let latest = null; // what the server answered
let running = new AbortController();
let info = null;
let settings = () => ({});

/** The plan of the chosen documents; null before it is known, and where there is none. */
export const planned = () => latest?.plan ?? null;

/** Whether the chosen documents fit, as far as that is known. */
export const fits = () => latest === null || latest.fits;

/**
 * Begin to plan whenever documents or settings change.
 * @param {Function} given returns `{question, max_new_tokens}` as they are now.
 * @returns {Function} to call when these changed.
 */
export function startBudget(serverInfo, given) {
  info = serverInfo;
  settings = given;
  const soon = afterQuiet(700, () => refresh());
  changes.add(() => refresh());
  refresh();
  return soon;
}

async function refresh() {
  running.abort();
  running = new AbortController();
  const files = chosenIds();
  if (!files.length) {
    latest = null;
    place.replaceChildren(element("p", { class: "hint", text: windows() }));
    plans.call();
    return;
  }
  const { signal } = running;
  try {
    const answer = await api.plan({ files, ...settings() }, signal);
    latest = answer;
    showProblem(byId("budget-problem"), null);
    noteTokens(answer.tokens);
    show(answer);
  } catch (error) {
    if (signal.aborted) return;
    latest = null;
    place.replaceChildren();
    if (error.details?.code === "file_not_found") {
      keepThoseThere(); // the server was started again; this plans again
      return;
    }
    showProblem(byId("budget-problem"), error);
  }
  plans.call();
}

const windows = () =>
  `The model was trained on ${tokens(info.pretraining_window)} at a time; stretched, it reads up to ` +
  `${number(info.extended_window)}. Question, documents and answer share them.`;

function show(answer) {
  const parts = partsOf(answer);
  const limits = limitsOf(answer);
  place.replaceChildren(
    picture(parts, limits),
    legend(parts),
    element("p", { class: "verdict", text: verdict(answer, limits) }),
    ...memoryOf(answer),
    ...(answer.fits ? [] : [outOf(answer)]),
    element("details", {}, element("summary", { text: "The plan in full" }),
      element("p", { class: "explained", text: answer.explanation ?? "" })),
  );
}

/** The parts of the bar, in the order they are read: documents, the rest of the prompt, the answer. */
function partsOf({ plan, problem, tokens: counts }) {
  const parts = chosen().map((document, index) => ({
    kind: `document-${index % TINTS}`, label: nameOf(document), tokens: counts[document.id] ?? 0,
  }));
  const documents = parts.reduce((sum, part) => sum + part.tokens, 0);
  const answer = plan?.max_new_tokens ?? settings().max_new_tokens ?? info.max_new_tokens;
  const total = plan?.total_tokens ?? problem?.needed ?? documents + answer;
  parts.push({ kind: "question", label: "question and instruction", tokens: Math.max(0, total - documents - answer) });
  parts.push({ kind: "answer", label: "kept for the answer", tokens: answer });
  return parts;
}

function limitsOf({ plan, problem }) {
  // settings may reach farther than the server's rule allows for what is well trained
  const reach = plan?.extended_window ?? problem?.available ?? info.extended_window;
  return { pretraining: info.pretraining_window, extended: Math.max(0, Math.min(reach, info.extended_window)) };
}

function picture(parts, { pretraining, extended }) {
  const total = parts.reduce((sum, part) => sum + part.tokens, 0);
  const scale = WIDTH / Math.max(total, extended, pretraining, 1);
  const bottom = BAR.top + BAR.height;
  const said = `${number(total)} tokens are needed: ${parts.map((part) => `${number(part.tokens)} ${part.label}`).join(", ")}. ` +
    `The pretraining window has ${number(pretraining)} tokens, the extended window ${number(extended)}.`;
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${bottom + 24}`, role: "img", "aria-label": said, class: "bar-picture" });
  const rect = (x, width, kind, title) =>
    drawn("rect", { x, y: BAR.top, width: Math.max(0, width), height: BAR.height, class: kind }, drawn("title", { text: title }));
  svg.append(
    rect(0, extended * scale, "reach", `extended window: ${tokens(extended)}`),
    rect(0, pretraining * scale, "trained", `pretraining window: ${tokens(pretraining)}`),
  );
  let x = 0;
  for (const part of parts) {
    svg.append(rect(x, part.tokens * scale, `part ${part.kind}`, `${part.label}: ${tokens(part.tokens)}`));
    x += part.tokens * scale;
  }
  if (total > extended) svg.append(rect(extended * scale, (total - extended) * scale, "beyond", `${tokens(total - extended)} too many`));
  svg.append(...mark(pretraining, scale, `trained on ${number(pretraining)}`, BAR.top - 8, BAR.top - 3, bottom));
  if (extended !== pretraining) svg.append(...mark(extended, scale, `reaches ${number(extended)}`, bottom + 17, BAR.top, bottom + 5));
  return svg;
}

function mark(at, scale, label, baseline, top, bottom) {
  const x = Math.min(at * scale, WIDTH - 1);
  const anchor = x > WIDTH * 0.7 ? "end" : x < WIDTH * 0.2 ? "start" : "middle";
  return [
    drawn("line", { x1: x, x2: x, y1: top, y2: bottom, class: "limit" }),
    drawn("text", { x: anchor === "end" ? x + 1 : x, y: baseline, "text-anchor": anchor, text: label }),
  ];
}

function legend(parts) {
  return element("ul", { class: "legend" }, ...parts.map((part) =>
    element("li", {}, element("span", { class: `swatch ${part.kind}`, "aria-hidden": "true" }),
      element("span", { class: "label", text: part.label }), element("span", { class: "figures", text: number(part.tokens) }))));
}

function verdict({ plan, problem, memory }, { extended }) {
  if (problem && memory) {
    return `It does not fit into memory: at most ${bytes(memory.needed_bytes)} are needed, and there are ${bytes(memory.available_bytes)}.`;
  }
  if (problem) return `It does not fit: ${number(problem.needed)} tokens are needed, and ${number(problem.available ?? extended)} fit.`;
  if (!plan) return "";
  if (!plan.extended) return `All of it fits the ${tokens(plan.pretraining_window)} the model was trained on: nothing is stretched.`;
  if (!plan.neighbor_window) return `Stretched from ${number(plan.pretraining_window)} to ${tokens(extended)} by ${plan.map?.name ?? "another map"}.`;
  return `G = ${plan.group_size}, W = ${number(plan.neighbor_window)}: the nearest ${number(plan.neighbor_window)} tokens keep ` +
    `their exact distance; of those farther away, ${plan.group_size} share each position. So the model, trained on ` +
    `${number(plan.pretraining_window)}, reaches ${number(extended)}; ${percent(plan.total_tokens / extended)} of that is used.`;
}

function memoryOf({ memory }) {
  if (!memory || !memory.needed_bytes) return [];
  const { needed_bytes: needed, available_bytes: available } = memory;
  const text = `Memory: at most ${bytes(needed)}${available ? ` of ${bytes(available)} available` : ""}`;
  if (!available) return [element("p", { class: "figures", text })];
  const meter = element("meter", { min: "0", max: available, value: Math.min(needed, available), high: 0.9 * available, "aria-label": text });
  return [element("p", { class: "memory figures" }, element("span", { text }), meter)];
}

// What to do where it does not fit

function outOf({ problem, fitting, tokens: counts }) {
  const documents = chosen();
  const rows = [];
  if (fitting?.length && fitting.length < documents.length) rows.push(relevant(fitting, documents, counts));
  if (fitting === null && documents.length > 1 && !settings().question) {
    rows.push(element("li", { class: "hint", text: "Type your question, and the documents that matter most to it and fit can be chosen." }));
  }
  const alone = documents.filter((document) => documents.length > 1 && (counts[document.id] ?? 0) >= (problem?.excess ?? Infinity));
  alone.sort((one, other) => counts[one.id] - counts[other.id]);
  for (const document of alone) {
    rows.push(element("li", {}, button(`Leave out ${nameOf(document)}`, () => leaveOut([document.id])),
      element("span", { class: "hint", text: ` frees ${tokens(counts[document.id])}; ${number(problem.excess)} are too many` })));
  }
  const remedies = problem?.remedies ?? [];
  return element("div", { class: "problem" },
    element("p", { text: sentence(problem?.message ?? "it does not fit") }),
    rows.length ? element("ul", { class: "ways" }, ...rows) : null,
    remedies.length ? element("p", { text: "What would help:" }) : null,
    remedies.length ? element("ul", {}, ...remedies.map((remedy) => element("li", { text: remedy }))) : null);
}

function relevant(fitting, documents, counts) {
  const sum = (some) => some.reduce((all, document) => all + (counts[document.id] ?? 0), 0);
  const kept = documents.filter((document) => fitting.includes(document.id));
  const left = documents.filter((document) => !fitting.includes(document.id));
  const act = () => {
    chooseOnly(fitting);
    announce(`${counted(kept.length, "document")} kept, ${counted(left.length, "document")} left out.`);
  };
  return element("li", {}, button("Keep the most relevant that fit", act, { class: "primary" }),
    element("span", { class: "hint", text: ` by your question: keeps ${counted(kept.length, "document")} with ${tokens(sum(kept))}; ` +
      `leaves out ${left.map((document) => `${nameOf(document)} (${number(counts[document.id] ?? 0)})`).join(", ")}` }));
}

function leaveOut(ids) {
  chooseOnly(chosenIds().filter((id) => !ids.includes(id)));
}
