// The strip beside a text: the attention over its length, its passages, and what of it is in sight.

import { byId, drawn, element, percent } from "../page.js";

const SLICES = 200; // as the server counts them

const view = byId("view-text");

let shown = null; // {file, blocks, marks}, as the document view has them
let heat = null; // the shares of the slices
let goToShare = () => {};

/** Begin. @param {Function} givenGoToShare shows the text from a share of its length on. */
export function startStrip(givenGoToShare) {
  goToShare = givenGoToShare;
  view.addEventListener("scroll", () => requestAnimationFrame(showWindow), { passive: true });
  new ResizeObserver(() => showWindow()).observe(view);
}

/** Draw the strip of a text; `attention` is null where there is none. */
export function drawStrip(text, attention) {
  shown = text;
  heat = attention;
  const strip = byId("view-strip");
  const length = shown.file.text.length;
  const svg = drawn("svg", { viewBox: `0 0 20 ${SLICES}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const most = Math.max(...(attention ?? [0]), 1e-12);
  (attention ?? []).forEach((share, index) => {
    // the root makes small shares visible
    const strength = Math.sqrt(share / most).toFixed(3);
    svg.append(drawn("rect", { x: 0, width: 20, y: index, height: 1.02, class: "heat", "fill-opacity": strength }));
  });
  for (const { start, end, current } of shown.marks) {
    const y = (SLICES * start) / length;
    svg.append(drawn("rect", { x: 14, width: 6, y, height: Math.max(1.5, (SLICES * (end - start)) / length), class: current ? "tick current" : "tick" }));
  }
  svg.append(drawn("rect", { x: 0.5, width: 19, y: 0, height: SLICES, class: "window", id: "strip-window" }));
  strip.replaceChildren(svg, sliderOver(strip));
  byId("view-strip-hint").hidden = attention === null;
  showWindow();
}

function sliderOver(strip) {
  const slider = element("div", {
    class: "slider", role: "slider", tabindex: "0", "aria-orientation": "vertical", "aria-label": "Place in the text",
    "aria-valuemin": "0", "aria-valuemax": "100", "aria-controls": "view-text", id: "strip-slider",
  });
  const toPointer = (event) => {
    const { top, height } = strip.getBoundingClientRect();
    goToShare(Math.min(1, Math.max(0, (event.clientY - top) / height)));
  };
  slider.addEventListener("pointerdown", (event) => {
    slider.setPointerCapture(event.pointerId);
    toPointer(event);
  });
  slider.addEventListener("pointermove", (event) => slider.hasPointerCapture(event.pointerId) && toPointer(event));
  slider.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -SLICES, End: SLICES };
    if (!(event.key in steps)) return;
    event.preventDefault();
    goToShare(Math.min(1, Math.max(0, visibleShares()[0] + steps[event.key] / SLICES)));
  });
  return slider;
}

/** The first and last visible place, as shares of the text. */
function visibleShares() {
  const { top } = view.getBoundingClientRect();
  const at = (y) => {
    for (const block of shown.blocks) {
      const box = block.node.getBoundingClientRect();
      if (box.bottom <= y) continue;
      const inside = Math.min(1, Math.max(0, (y - box.top) / box.height));
      return (block.start + inside * (block.end - block.start)) / shown.file.text.length;
    }
    return 1;
  };
  return [at(top), at(top + view.clientHeight)];
}

function showWindow() {
  const slider = document.getElementById("strip-slider");
  if (!shown || !slider) return;
  const [first, last] = visibleShares();
  const frame = document.getElementById("strip-window");
  frame.setAttribute("y", SLICES * first);
  frame.setAttribute("height", Math.max(2, SLICES * (last - first)));
  slider.setAttribute("aria-valuenow", Math.round(100 * first));
  const share = heat?.[Math.min(SLICES - 1, Math.floor(((first + last) / 2) * SLICES))];
  const said = share === undefined ? "" : `, ${percent(share)} of the attention at its middle`;
  slider.setAttribute("aria-valuetext", `${percent(first)} to ${percent(last)} of the text in sight${said}`);
}
