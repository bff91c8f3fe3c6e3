// What all parts of the page share: elements that hold text as text, figures for people, notices,
// and what the browser remembers. Nothing here reads text as HTML.

const SVG = "http://www.w3.org/2000/svg";
const REMEMBERED = "selfextend-rag:";

/** The element of the page with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element. Children are elements, or strings, which become text.
 * @param {string} tag
 * @param {Object} given `class`, `text`, `on` ({event: function}), and attributes; false leaves out.
 */
export function element(tag, given = {}, ...children) {
  return filled(document.createElement(tag), given, children);
}

/** Make an element of SVG, as `element` does. */
export function drawn(tag, given = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), given, children);
}

function filled(node, { on = {}, text, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== undefined && value !== null) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  for (const [event, act] of Object.entries(on)) node.addEventListener(event, act);
  if (text !== undefined) node.textContent = text;
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A button; `given` as for `element`. */
export function button(label, act, given = {}) {
  return element("button", { type: "button", text: label, on: { click: act }, ...given });
}

const whole = new Intl.NumberFormat("en");

export const number = (count) => whole.format(count);
export const tokens = (count) => (count === 1 ? "1 token" : `${number(count)} tokens`);
export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}\u00a0%`;

/** Bytes as people read them, in powers of 1024. */
export function bytes(count) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit === 0 || count >= 100 ? whole.format(Math.round(count)) : count.toFixed(1)} ${units[unit]}`;
}

/** Seconds as people read them. */
export function duration(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 89.5) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 90) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A count with its noun: `counted(2, "document")` is "2 documents". */
export const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

/** Say something to screen readers. */
export function announce(message) {
  byId("announcements").textContent = message;
}

/** Show what went wrong in a place of its own, as it was said, with its remedies; null clears it. */
export function showProblem(place, error) {
  if (error === null || error.name === "AbortError") {
    place.replaceChildren();
    return;
  }
  const remedies = error.details?.remedies ?? [];
  place.replaceChildren(
    element(
      "div",
      { class: "problem" },
      element("p", { text: sentence(error.message) }),
      remedies.length ? element("ul", {}, ...remedies.map((remedy) => element("li", { text: remedy }))) : null,
    ),
  );
}

/** Text that begins with a capital letter and ends with a stop. */
export function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** Ask before something is deleted. @returns {Promise<boolean>} */
export function confirmed(message, yes = "Delete") {
  const dialog = byId("confirm-dialog");
  byId("confirm-message").textContent = message;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "no"; // what the Escape key leaves
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** What the browser keeps under a name; `otherwise` where it keeps nothing that can be read. */
export function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(REMEMBERED + name)) ?? otherwise;
  } catch {
    return otherwise; // storage is switched off, or what is there is no JSON
  }
}

/** Keep a value under a name. @returns {boolean} false where the browser keeps nothing more. */
export function remember(name, value) {
  try {
    localStorage.setItem(REMEMBERED + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Call a function once things have been quiet for some milliseconds. */
export function afterQuiet(milliseconds, act) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  };
}

/** Functions to call when something changed. */
export class Listeners {
  #acts = [];

  add(act) {
    this.#acts.push(act);
  }

  call() {
    for (const act of this.#acts) act();
  }
}
