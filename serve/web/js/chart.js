// Small line charts, drawn as SVG: one point a cycle.

import { h, svg } from "./dom.js";

const WIDTH = 320;
const HEIGHT = 128;
const EDGE = { left: 38, right: 10, top: 8, bottom: 20 };

/** Round bounds a little outside the values, and the step between two grid lines (1, 2 or 5 times a power of ten). */
export function scale(low, high, lines = 3) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / lines;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough - 1e-12) * power;
  return { low: Math.floor(low / step + 1e-9) * step, high: Math.ceil(high / step - 1e-9) * step || step, step };
}

/**
 * A figure with a line chart.
 * @param {{title: string, note: string, points: {x: number, y: number, label: string}[], format: (y: number) => string,
 *   reference?: number, bounds?: [number, number]}} options
 */
export function chart({ title, note, points, format, reference = null, bounds = null }) {
  const values = [...points.map(({ y }) => y), ...(reference === null ? [] : [reference]), ...(bounds ?? [])];
  const { low, high, step } = scale(Math.min(...values), Math.max(...values));
  const [first, last] = [points[0].x, points.at(-1).x];
  const inner = { width: WIDTH - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };
  const atX = (x) => EDGE.left + (first === last ? 0.5 : (x - first) / (last - first)) * inner.width;
  const atY = (y) => EDGE.top + (1 - (y - low) / (high - low || 1)) * inner.height;

  const drawing = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    role: "img",
    "aria-label": `${title} by cycle: ${points.map(({ y, label }) => `${label} ${format(y)}`).join(", ")}`,
  });
  for (let y = low; y <= high + step / 2; y += step) {
    drawing.append(
      svg("line", { class: "grid", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: atY(y), y2: atY(y) }),
      svg("text", { x: EDGE.left - 6, y: atY(y) + 4, "text-anchor": "end" }, format(Math.abs(y) < step / 1e6 ? 0 : y)),
    );
  }
  if (reference !== null) {
    drawing.append(svg("line", { class: "reference", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: atY(reference), y2: atY(reference) }));
  }
  drawing.append(svg("path", { class: "line", d: points.map(({ x, y }, i) => `${i ? "L" : "M"}${atX(x).toFixed(1)} ${atY(y).toFixed(1)}`).join("") }));
  points.forEach(({ x, y, label }, index) => {
    const isLast = index === points.length - 1;
    drawing.append(
      svg("circle", { class: isLast ? "dot last" : "dot", cx: atX(x), cy: atY(y), r: points.length > 40 && !isLast ? 0 : 3.5 }),
      svg("circle", { class: "hit", cx: atX(x), cy: atY(y), r: 11 }, svg("title", {}, `${label}: ${format(y)}`)),
    );
  });
  const tick = (x, anchor) => svg("text", { x: atX(x), y: HEIGHT - 3, "text-anchor": anchor }, `cycle ${x}`);
  drawing.append(...(first === last ? [tick(first, "middle")] : [tick(first, "start"), tick(last, "end")]));
  const newest = h("b", {}, format(points.at(-1).y), h("small", {}, `cycle ${last}`)); // later ones may have had no figure
  return h("figure", { class: "chart" }, h("figcaption", {}, title, newest), h("p", {}, note), drawing);
}
