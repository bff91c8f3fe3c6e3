// Which relative position each distance gets, as a plot that follows the pointer and the keys.

import * as api from "./api.js";
import { planned } from "./budget.js";
import { afterQuiet, byId, drawn, number, percent, showProblem } from "./page.js";

const SIZE = { width: 560, height: 360, left: 56, right: 14, top: 16, bottom: 44 };
const TICKS = 5; // of an axis, about

const plot = byId("positions-plot");
const figures = byId("positions-figures");
const fields = { group: byId("group-size"), window: byId("neighbor-window"), length: byId("positions-length") };

let windowOfModel = 0;
let running = new AbortController();
let current = null; // {distances, positions, index, toX, toY}

/** Begin; the plot is drawn when it is first shown, by `showPositions`. */
export function startPositions(info) {
  windowOfModel = info.pretraining_window;
  fields.window.value = Math.max(1, Math.floor(windowOfModel / 4));
  fields.length.value = fields.group.value * (windowOfModel - fields.window.value);
  const soon = afterQuiet(250, () => showPositions());
  byId("positions-form").addEventListener("input", soon);
  byId("positions-form").addEventListener("submit", (event) => event.preventDefault());
  byId("positions-plan").addEventListener("click", usePlan);
}

function usePlan() {
  const plan = planned();
  if (plan?.neighbor_window) {
    take(plan);
    showPositions();
    return;
  }
  const reason = plan === null
    ? "there is no plan: add documents that fit"
    : "the documents fit the window the model was trained on, so nothing is stretched: G is 1";
  showProblem(byId("positions-problem"), new Error(reason));
}

function take(plan) {
  fields.group.value = plan.group_size;
  fields.window.value = plan.neighbor_window;
  fields.length.value = plan.extended_window;
}

/** Fetch the positions at these settings and draw them. */
export async function showPositions() {
  if (current === null && planned()?.neighbor_window) take(planned());
  running.abort();
  running = new AbortController();
  const { signal } = running;
  try {
    const invalid = Object.values(fields).find((field) => !field.checkValidity());
    if (invalid) throw new Error(`${invalid.labels[0].textContent.trim()}: ${invalid.validationMessage}`);
    const answer = await api.positions(fields.group.value, fields.window.value, fields.length.value, signal);
    showProblem(byId("positions-problem"), null);
    draw(answer);
  } catch (error) {
    if (!signal.aborted) showProblem(byId("positions-problem"), error);
  }
}

function draw({ distances, positions }) {
  const farthest = Math.max(distances.at(-1), 1);
  const highest = Math.max(...positions, windowOfModel) * 1.05;
  const toX = (distance) => SIZE.left + (distance / farthest) * (SIZE.width - SIZE.left - SIZE.right);
  const toY = (position) => SIZE.height - SIZE.bottom - (position / highest) * (SIZE.height - SIZE.top - SIZE.bottom);
  const svg = drawn("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, tabindex: "0", role: "slider",
    "aria-label": "Distance between two tokens", "aria-valuemin": "0", "aria-valuemax": farthest, id: "positions-svg" });
  const line = (points, kind) => drawn("polyline", { points: points.map(([x, y]) => `${toX(x).toFixed(1)},${toY(y).toFixed(1)}`).join(" "), class: kind });
  svg.append(...axes(farthest, highest, toX, toY));
  svg.append(line([[0, windowOfModel], [farthest, windowOfModel]], "limit"));
  svg.append(drawn("text", { x: SIZE.width - SIZE.right, y: toY(windowOfModel) - 6, "text-anchor": "end", text: `pretraining window, ${number(windowOfModel)}` }));
  const end = Math.min(farthest, highest);
  svg.append(line([[0, 0], [end, end]], "identity"));
  svg.append(line(distances.map((distance, index) => [distance, positions[index]]), "curve"));
  svg.append(drawn("line", { class: "cross", id: "positions-cross", y1: SIZE.top, y2: SIZE.height - SIZE.bottom }), drawn("circle", { class: "dot", r: 5, id: "positions-dot" }));
  current = { distances, positions, toX, toY, index: Math.min(current?.index ?? distances.length - 1, distances.length - 1) };
  follow(svg);
  const hadFocus = plot.contains(document.activeElement);
  plot.replaceChildren(svg);
  if (hadFocus) svg.focus();
  point(current.index);
}

function axes(farthest, highest, toX, toY) {
  const bottom = SIZE.height - SIZE.bottom;
  const marks = [];
  for (const x of ticks(farthest)) {
    marks.push(drawn("line", { x1: toX(x), x2: toX(x), y1: SIZE.top, y2: bottom, class: "grid" }),
      drawn("text", { x: toX(x), y: bottom + 16, "text-anchor": "middle", text: number(x) }));
  }
  for (const y of ticks(highest)) {
    marks.push(drawn("line", { x1: SIZE.left, x2: SIZE.width - SIZE.right, y1: toY(y), y2: toY(y), class: "grid" }),
      drawn("text", { x: SIZE.left - 8, y: toY(y) + 4, "text-anchor": "end", text: number(y) }));
  }
  marks.push(drawn("text", { x: (SIZE.left + SIZE.width - SIZE.right) / 2, y: SIZE.height - 8, "text-anchor": "middle", text: "distance, in tokens" }),
    drawn("text", { x: 14, y: (SIZE.top + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(SIZE.top + bottom) / 2})`, text: "position it gets" }));
  return marks;
}

/** Round numbers from 0 to `most`. */
function ticks(most) {
  const rough = most / TICKS;
  const power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough) ?? 10 * power;
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, index) => index * step);
}

function follow(svg) {
  svg.addEventListener("pointermove", (event) => {
    const { left, width } = svg.getBoundingClientRect();
    const x = ((event.clientX - left) / width) * SIZE.width;
    const share = (x - SIZE.left) / (SIZE.width - SIZE.left - SIZE.right);
    const wanted = share * current.distances.at(-1);
    const after = current.distances.findIndex((distance) => distance >= wanted);
    point(after === -1 ? current.distances.length - 1 : after);
  });
  svg.addEventListener("keydown", (event) => {
    const last = current.distances.length - 1;
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -20, PageUp: 20, Home: -last, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    point(Math.min(last, Math.max(0, current.index + steps[event.key])));
  });
}

/** Show one distance with its position. */
function point(index) {
  const { distances, positions, toX, toY } = current;
  const [distance, position] = [distances[index], positions[index]];
  current.index = index;
  const cross = document.getElementById("positions-cross");
  cross.setAttribute("x1", toX(distance));
  cross.setAttribute("x2", toX(distance));
  const dot = document.getElementById("positions-dot");
  dot.setAttribute("cx", toX(distance));
  dot.setAttribute("cy", toY(position));
  const exact = position === distance ? "its own, exact" : `${percent(position / windowOfModel)} of the window it was trained on`;
  const beyond = position >= windowOfModel ? "; the model never saw this position" : "";
  const text = `${number(distance)} tokens apart: position ${number(position)}, ${exact}${beyond}`;
  figures.textContent = text;
  const svg = document.getElementById("positions-svg");
  svg.setAttribute("aria-valuenow", distance);
  svg.setAttribute("aria-valuetext", text);
}
