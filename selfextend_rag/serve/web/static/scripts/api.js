// The server: its routes as functions, its errors as they were said, and its streams of events.

import { byId } from "./page.js";

const KEY = "selfextend-rag:key";

/** What the server refused, or the connection lost. */
export class ServerError extends Error {
  /**
   * @param {string} message a sentence for people.
   * @param {Object} details the error's other fields, such as `code`, `needed`, `remedies`.
   */
  constructor(message, details = {}) {
    super(message);
    this.name = "ServerError";
    this.details = details;
  }
}

let asking = null; // the promise of a key, while its dialog is open

/** Addresses are relative to the page, so that the server may be behind a path of another one. */
const address = (path) => new URL(path, document.baseURI);

async function answered(path, options) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = new Headers(options.headers);
    if (key !== null) headers.set("Authorization", `Bearer ${key}`);
    const response = await reached(path, { ...options, headers });
    if (response.ok) return response;
    const error = await refusal(response);
    if (response.status !== 401) throw error;
    if (sessionStorage.getItem(KEY) === key) await askForKey(error.message);
  }
}

async function reached(path, options) {
  try {
    return await fetch(address(path), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("the server can't be reached; is it still running?", { code: "unreachable" });
  }
}

async function refusal(response) {
  let said = null;
  try {
    said = (await response.json()).error;
  } catch {
    // a proxy's page, or nothing at all
  }
  if (typeof said?.message !== "string") {
    return new ServerError(`the server answered ${response.status} ${response.statusText}`.trim());
  }
  return new ServerError(said.message, said);
}

function askForKey(message) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key-message").textContent = message;
    byId("key").value = "";
    dialog.oncancel = (event) => event.preventDefault();
    dialog.showModal();
    dialog.addEventListener(
      "close",
      () => {
        sessionStorage.setItem(KEY, byId("key").value.trim());
        byId("key").value = "";
        asking = null;
        resolve();
      },
      { once: true },
    );
  });
  return asking;
}

async function got(method, path, { body, signal } = {}) {
  const options = { method, signal };
  if (body instanceof FormData) options.body = body;
  else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  return answered(path, options);
}

const json = async (...request) => (await got(...request)).json();
const segment = encodeURIComponent;

export const info = () => json("GET", "api/info");
export const files = async () => (await json("GET", "../v1/files")).data;
export const file = (id) => json("GET", `../v1/files/${segment(id)}`);
export const fileWithText = (id) => json("GET", `api/files/${segment(id)}`);
export const removeFile = (id) => json("DELETE", `../v1/files/${segment(id)}`);
export const sample = (name) => json("POST", `api/samples/${segment(name)}`);
export const plan = (body, signal) => json("POST", "api/plan", { body, signal });
export const readings = () => json("GET", "api/readings");
export const openReading = (id) => json("POST", `api/readings/${segment(id)}/open`);
export const deleteReading = (id) => json("DELETE", `api/readings/${segment(id)}`);

/** The file object of an uploaded file. */
export function upload(given) {
  const body = new FormData();
  body.append("purpose", "user_data");
  body.append("file", given, given.name);
  return json("POST", "../v1/files", { body });
}

/** Which position each of about 400 distances gets: `{distances, positions}`. */
export function positions(groupSize, neighborWindow, length, signal) {
  const query = new URLSearchParams({ group_size: groupSize, neighbor_window: neighborWindow, length });
  return json("GET", `api/positions?${query}`, { signal });
}

export const read = (body, signal) => events("api/read", body, signal);
export const ask = (body, signal) => events("api/ask", body, signal);
export const compare = (body, signal) => events("api/compare", body, signal);

/**
 * Yield the events of a stream as `{name, data}`; an event `error` is thrown.
 * Leaving the loop, or the signal, closes the connection, and the server stops its work.
 */
async function* events(path, body, signal) {
  const response = await got("POST", path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await next(reader, signal);
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event === null) continue;
        if (event.name === "error") throw new ServerError(event.data.message, event.data);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it is closed already where it ended or broke
  }
}

async function next(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    if (signal?.aborted || error.name === "AbortError") throw new DOMException("stopped", "AbortError");
    throw new ServerError("the connection to the server broke off", { code: "unreachable" });
  }
}

function parsed(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  const text = data.join("\n"); // none in a comment, which keeps the connection open
  return text === "" || text === "[DONE]" ? null : { name, data: JSON.parse(text) };
}
