// The instances: a table, and above it, where they are many, a strip with one column each.

import { bar, byId, classes, el, keyed, say, set, setBar, svg, table } from "./dom.js";
import { byName, count, plural, seconds, share, thousands } from "./format.js";

const COLUMNS = [
  { id: "name", name: "Instance", sort: (i) => i.name },
  { id: "state", name: "State", sort: (i) => i.state },
  { id: "wait", name: "Expected wait", number: true, sort: (i) => i.wait_s,
    title: "What a request that comes now waits there before its own prefill; the bar is full at the objective" },
  { id: "queue", name: "Queue", number: true, sort: (i) => i.queued ?? -1, title: "Requests in the admission queue" },
  { id: "running", name: "Running", number: true, minor: true, sort: (i) => i.engine_running ?? -1,
    title: "Requests in the engine" },
  { id: "kv", name: "KV use", number: true, sort: (i) => i.kv_use ?? -1, title: "Share of the KV cache in use" },
  { id: "speed", name: "Prefill", number: true, minor: true, sort: (i) => i.tokens_s,
    title: "Tokens a second on a cold prompt of 4,000 tokens, as measured" },
  { id: "share", name: "Share", number: true, minor: true, sort: (i) => i.share ?? 0,
    title: "Of this router's requests in the last five minutes" },
  { id: "heard", name: "Heard", number: true, minor: true, sort: (i) => i.telemetry_age_s ?? Infinity,
    title: "Since its last telemetry" },
];
const STRIP_FROM = 13;
const STALE_S = 5;

let sorting = { id: "name", down: false };
let parts = null;
let latest = null;
let onOpen = () => {};

export function makeInstances(open) {
  onOpen = open;
  parts = table(byId("instances"), "Instances of the pool; the arrow keys go from row to row", COLUMNS, (id) => {
    sorting = { id, down: sorting.id === id ? !sorting.down : id !== "name" && id !== "state" };
    showInstances(latest);
  });
}

export function showInstances(snapshot) {
  latest = snapshot;
  const instances = [...snapshot.instances].sort(order);
  COLUMNS.forEach((column, i) =>
    set(parts.cells[i], "aria-sort", column.id === sorting.id ? (sorting.down ? "descending" : "ascending") : null));
  keyed(parts.body, instances, (i) => i.name, makeRow, (row, i) => updateRow(row, i, snapshot));
  showStrip(snapshot);
  const active = instances.filter((i) => i.state === "active").length;
  say(byId("instances-note"), active === instances.length
    ? plural(active, "instance") : `${active} of ${plural(instances.length, "instance")} active`);
}

function order(a, b) {
  const value = COLUMNS.find((column) => column.id === sorting.id).sort;
  const [x, y] = [value(a), value(b)];
  const compared = typeof x === "string" ? byName(x, y) : x - y;
  return (sorting.down ? -compared : compared) || byName(a.name, b.name);
}

function makeRow(instance) {
  const row = el("tr", {});
  const cells = (row.cellsById = {});
  for (const column of COLUMNS) {
    const cell = column.id === "name" ? el("th", { scope: "row", class: "name" }) : el("td", { class: classes(column) });
    cells[column.id] = cell;
    row.append(cell);
  }
  const button = el("button", { type: "button", class: "link" }, instance.name);
  button.addEventListener("click", () => onOpen(instance.name));
  cells.name.append(button);
  for (const id of ["wait", "kv"]) {
    const text = el("span");
    cells[id].append(bar(), text);
  }
  cells.state.append(el("span", { class: "glyph", "aria-hidden": "true" }), el("span"));
  return row;
}

function updateRow(row, i, snapshot) {
  const cells = row.cellsById;
  const [glyph, word, alarming] = stateOf(i, snapshot);
  const [mark, text] = cells.state.children;
  say(mark, glyph);
  say(text, word);
  set(cells.state, "class", alarming ? "state alarm" : "state");
  set(row, "class", i.state === "active" ? null : "off");
  setBar(cells.wait.firstChild, i.wait_s / snapshot.slo_s, i.wait_s > snapshot.slo_s);
  say(cells.wait.lastChild, seconds(i.wait_s));
  say(cells.queue, count(i.queued));
  say(cells.running, count(i.engine_running));
  setBar(cells.kv.firstChild, i.kv_use ?? 0, i.held);
  say(cells.kv.lastChild, share(i.kv_use));
  say(cells.speed, i.speed_known ? `${thousands(i.tokens_s)} /s` : "not seen yet");
  say(cells.share, share(i.share));
  say(cells.heard, i.telemetry_age_s === null ? "never" : seconds(i.telemetry_age_s));
}

/** [glyph, words, whether it is trouble]. */
export function stateOf(i, snapshot) {
  if (i.state === "gone") return ["✕", "gone", true];
  if (i.state === "unreachable") return ["✕", "unreachable", true];
  if (i.state === "draining") return ["◐", "draining", false];
  if (snapshot.store_available && (i.telemetry_age_s ?? 0) > STALE_S) return ["○", "silent", true];
  if (i.hot) return ["▲", "hot", true];
  if (i.held) return ["■", "full", true];
  return ["●", "active", false];
}

function showStrip(snapshot) {
  const { instances } = snapshot;
  const strip = byId("strip");
  strip.hidden = instances.length < STRIP_FROM;
  if (strip.hidden) return;
  const inOrder = [...instances].sort((a, b) => byName(a.name, b.name));
  if (strip.of !== inOrder.length) {
    strip.of = inOrder.length;
    strip.replaceChildren(
      svg("svg", { viewBox: `0 0 ${inOrder.length * 10} 40`, preserveAspectRatio: "none", role: "img" },
        ...inOrder.map((_, index) => svg("rect", { class: "under", x: index * 10 + 1, y: 0, width: 8, height: 40 })),
        ...inOrder.map((_, index) => svg("rect", { x: index * 10 + 1, width: 8 }))),
      el("p", { class: "note" }, "Expected wait, one column an instance in order of name; full at the objective"));
  }
  const bars = [...strip.firstChild.children].slice(inOrder.length);
  inOrder.forEach((i, index) => {
    const height = Math.max(Math.min(i.wait_s / snapshot.slo_s, 1) * 40, 1.5);
    set(bars[index], "height", height);
    set(bars[index], "y", 40 - height);
    set(bars[index], "class", i.state !== "active" ? "off" : i.wait_s > snapshot.slo_s ? "alarming" : "on");
  });
  const busiest = inOrder.reduce((a, b) => (b.wait_s > a.wait_s ? b : a));
  set(strip.firstChild, "aria-label", `Expected waits; the longest is ${seconds(busiest.wait_s)} at ${busiest.name}`);
}
