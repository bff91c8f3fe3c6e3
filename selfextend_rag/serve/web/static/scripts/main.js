// Begins the page: asks the server what it is, and connects the parts with one another.

import * as api from "./api.js";
import { startBudget } from "./budget.js";
import { startCompare } from "./compare.js";
import { startDocuments } from "./documents.js";
import { startExport } from "./export.js";
import { byId, number, sentence, tokens } from "./page.js";
import { showPositions, startPositions } from "./positions.js";
import { maxNewTokens, plannedFor, startQuestions } from "./questions.js";
import { refreshSaved, startReading } from "./reading.js";
import { startSeveral } from "./several.js";
import { startPassages } from "./viewer/passages.js";
import { showDocument, startViewer } from "./viewer/viewer.js";

const TABS = ["ask", "several", "compare", "positions"];
const SECONDS_UNTIL_NEXT_TRY = 3;

function select(name) {
  for (const tab of TABS) {
    const isSelected = tab === name;
    byId(`${tab}-tab`).setAttribute("aria-selected", String(isSelected));
    byId(`${tab}-tab`).tabIndex = isSelected ? 0 : -1;
    byId(`${tab}-panel`).hidden = !isSelected;
  }
  if (name === "positions") showPositions();
}

function startTabs() {
  TABS.forEach((name, index) => {
    const tab = byId(`${name}-tab`);
    tab.addEventListener("click", () => select(name));
    tab.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: TABS.length - 1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = TABS.at(steps[event.key] % TABS.length);
      select(next);
      byId(`${next}-tab`).focus();
    });
  });
}

async function serverInfo() {
  for (;;) {
    try {
      return await api.info();
    } catch (error) {
      byId("model").textContent = sentence(error.message);
      await new Promise((resolve) => setTimeout(resolve, 1000 * SECONDS_UNTIL_NEXT_TRY));
    }
  }
}

function showModel(info) {
  byId("model").textContent =
    `${info.model}, trained on ${tokens(info.pretraining_window)}, reads up to ${number(info.extended_window)}`;
}

async function start() {
  startTabs();
  startViewer();
  startPassages();
  const info = await serverInfo();
  showModel(info);
  let planSoon = () => {};
  startQuestions(info, () => planSoon(), refreshSaved);
  await startDocuments(info, (id) => showDocument(id));
  planSoon = startBudget(info, plannedFor);
  startReading(info, maxNewTokens);
  startSeveral(refreshSaved);
  startCompare(refreshSaved);
  startPositions(info);
  startExport(info);
  document.documentElement.dataset.ready = "true";
}

start();
