// The conversation as Markdown or JSON, evidence included, and answers as CSV.

import { conversation } from "./questions.js";
import { byId, duration, percent } from "./page.js";

/** Begin: the two buttons over the conversation. */
export function startExport(info) {
  const with_ = (name, make, kind) => () => download(name, make(conversation(), info), kind);
  byId("export-markdown").addEventListener("click", with_("conversation.md", asMarkdown, "text/markdown"));
  byId("export-json").addEventListener("click", with_("conversation.json", asJson, "application/json"));
}

/** Let the browser save text as a file. */
export function download(name, text, kind) {
  const address = URL.createObjectURL(new Blob([text], { type: `${kind};charset=utf-8` }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** A conversation as JSON. */
export function asJson(exchanges, info) {
  return `${JSON.stringify({ model: info.model, exported: new Date().toISOString(), exchanges }, null, 2)}\n`;
}

/** A conversation as Markdown; what documents, questions and answers say stays what it is. */
export function asMarkdown(exchanges, info) {
  const parts = [`# Conversation\n\nModel: ${plain(info.model)}`];
  for (const exchange of exchanges) {
    parts.push(`## ${plain(exchange.question)}`);
    parts.push(`About ${exchange.files.map((file) => plain(file.name)).join(", ")}`);
    parts.push(exchange.schema ? fenced(exchange.answer) : quoted(exchange.answer));
    if (exchange.state === "stopped") parts.push("Stopped before its end.");
    if (exchange.state === "failed") parts.push(`No answer: ${plain(exchange.error)}`);
    if (exchange.evidence?.length) parts.push(evidenceOf(exchange.evidence));
    if (exchange.seconds !== undefined) parts.push(`Answered in ${duration(exchange.seconds)}.`);
  }
  return `${parts.join("\n\n")}\n`;
}

function evidenceOf(passages) {
  const items = passages.map((passage) => {
    const where = [passage.title, passage.location].filter(Boolean).map(plain).join(", ");
    return `1. ${where}, characters ${passage.start} to ${passage.end} (${percent(passage.score)})\n\n${quoted(passage.text).replace(/^/gm, "   ")}`;
  });
  return `Evidence:\n\n${items.join("\n\n")}`;
}

/** One line, in which no sign is read as Markdown. */
const plain = (text) => String(text).replace(/\s+/g, " ").trim().replace(/[\\`*_{}[\]()#+!|<>~&]/g, "\\$&");

/** Lines as a quotation, in which no sign is read as Markdown. */
const quoted = (text) => text.split("\n").map((line) => `> ${escaped(line)}`.trimEnd()).join("\n");

// A number or sign at the start of a line would begin a list, a heading or a rule.
const escaped = (line) =>
  line.replace(/[\\`*_[\]<>~&]/g, "\\$&").replace(/^(\s*)([#+=-])/, "$1\\$2").replace(/^(\s*\d+)([.)])/, "$1\\$2");

function fenced(text) {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}json\n${text}\n${fence}`;
}

/**
 * Answers as CSV (RFC 4180), with the values of JSON answers in columns of their own.
 * A cell that a spreadsheet would run as a formula begins with an apostrophe.
 */
export function answersAsCsv(results) {
  const values = results.map((result) => fieldsOf(result));
  const names = [...new Set(values.flatMap((fields) => Object.keys(fields)))];
  const head = ["question", "answer", ...names, "document", "place", "passage", "score", "seconds", "error"];
  const rows = results.map((result, index) => {
    const [first] = result.evidence ?? [];
    const own = names.map((name) => values[index][name] ?? "");
    const passage = first ? [first.title, first.location ?? "", first.text, first.score] : ["", "", "", ""];
    return [result.question, result.answer, ...own, ...passage, result.seconds ?? "", result.error ?? ""];
  });
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

/** The values of an answer that is a JSON object, as text by name. */
function fieldsOf({ answer, schema }) {
  if (!schema && !answer.startsWith("{")) return {};
  try {
    const value = JSON.parse(answer);
    if (typeof value !== "object" || value === null || Array.isArray(value)) return {};
    const texts = Object.entries(value).map(([name, inner]) => [`answer.${name}`, typeof inner === "string" ? inner : JSON.stringify(inner)]);
    return Object.fromEntries(texts);
  } catch {
    return {}; // an answer that was cut off; it is in its own column as it came
  }
}

function cell(value) {
  let text = String(value);
  if (/^[=+\-@\t\r]/.test(text) && !/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?$/i.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
