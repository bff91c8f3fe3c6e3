// Files that come in: chosen, or dropped, with all that is in folders but what is hidden there.

import { byId, counted } from "./page.js";

const NAMED = 5; // of what is left out

/**
 * Take files from now on.
 * @param {Function} add called with a list of files, those of folders in the order of their paths.
 * @param {Function} note called with what is left out or can't be read, as a sentence.
 */
export function takeFiles(add, note) {
  takeChoices(add, note);
  takeDrops(add, note);
}

function takeChoices(add, note) {
  for (const [opener, input] of [["choose-files", "file-input"], ["choose-folder", "folder-input"]]) {
    const field = byId(input);
    byId(opener).addEventListener("click", () => field.click());
    field.addEventListener("change", () => {
      const files = [...field.files];
      const hidden = files.filter((file) => file.webkitRelativePath.split("/").some(isHidden));
      noteHidden(hidden.map((file) => file.webkitRelativePath), note);
      add(files.filter((file) => !hidden.includes(file)).sort(byPath));
      field.value = ""; // so that the same file can be chosen again
    });
  }
}

const isHidden = (name) => name.startsWith(".");
const inOrder = (one, other) => one.localeCompare(other, "en", { numeric: true });
const byPath = (one, other) => inOrder(one.webkitRelativePath, other.webkitRelativePath);

function noteHidden(names, note) {
  if (!names.length) return;
  const more = names.length > NAMED ? " and others" : "";
  note(`${counted(names.length, "hidden file")} of the folder left out: ${names.slice(0, NAMED).join(", ")}${more}`);
}

function takeDrops(add, note) {
  const place = byId("drop");
  let inside = 0; // entering a child leaves its parent
  const withFiles = (event) => event.dataTransfer?.types.includes("Files");
  window.addEventListener("dragenter", (event) => {
    if (withFiles(event)) place.classList.toggle("over", (inside += 1) > 0);
  });
  window.addEventListener("dragleave", (event) => {
    if (withFiles(event)) place.classList.toggle("over", (inside -= 1) > 0);
  });
  window.addEventListener("dragover", (event) => withFiles(event) && event.preventDefault());
  window.addEventListener("drop", async (event) => {
    if (!withFiles(event)) return;
    event.preventDefault();
    inside = 0;
    place.classList.remove("over");
    add(await dropped(event.dataTransfer, note));
  });
}

/** The files that were dropped, with those of folders and their folders. */
async function dropped(transfer, note) {
  // entries have to be taken before the first wait: the list is empty afterwards
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const found = await Promise.all(entries.map((entry) => filesOf(entry, note)));
  return found.flat();
}

async function filesOf(entry, note) {
  try {
    if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
    const reader = entry.createReader();
    const entries = [];
    for (;;) {
      // a reader returns some at a time, and none at the end
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) break;
      entries.push(...some);
    }
    noteHidden(entries.map((inner) => inner.name).filter(isHidden), note);
    const shown = entries.filter((inner) => !isHidden(inner.name));
    shown.sort((one, other) => inOrder(one.name, other.name));
    return (await Promise.all(shown.map((inner) => filesOf(inner, note)))).flat();
  } catch (error) {
    note(`${entry.name} can't be read: ${error.message}`);
    return [];
  }
}
