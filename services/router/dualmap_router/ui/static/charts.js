// Spark lines: what a figure was over the last minutes.

import { svg, set } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 44;

/** A spark line's element, for `draw`. `lines` names its lines by class. */
export function chart(lines) {
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
    svg("path", { class: "mark" }),
    ...lines.map((name) => svg("path", { class: name })),
  );
}

/** Draw series of numbers (null is a gap) between `least` and `most`; `mark` is a level worth a line of its own. */
export function draw(node, series, label, { least = 0, most = null, mark = null } = {}) {
  const values = series.flat().filter((value) => value !== null);
  const top = most ?? Math.max(...values, mark ?? 0, 1e-9) * 1.08;
  const [level, ...paths] = node.children;
  series.forEach((points, index) => set(paths[index], "d", pathOf(points, least, top)));
  set(level, "d", mark === null ? null : `M0 ${y(mark, least, top)}H${WIDTH}`);
  set(node, "aria-label", label);
}

function pathOf(points, least, top) {
  const step = WIDTH / Math.max(points.length - 1, 1);
  let path = "";
  let pen = false;
  points.forEach((value, index) => {
    if (value === null) {
      pen = false;
      return;
    }
    const at = `${round(index * step)} ${y(value, least, top)}`;
    // A value with no neighbour is a dot.
    path += pen ? `L${at}` : `M${at}h.01`;
    pen = true;
  });
  return path || null;
}

function y(value, least, top) {
  return round(HEIGHT - 3 - ((Math.min(value, top) - least) / (top - least)) * (HEIGHT - 6));
}

function round(value) {
  return Math.round(value * 10) / 10;
}
