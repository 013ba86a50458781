// The two rings and the hot prefixes on them. The rings have a thousand points an instance: what is drawn is who owns
// the middle of each of 360 slots. Pointing at a prefix shows where it falls on either ring, and so its candidates.

import { byId, classes, el, keyed, say, set, svg, table } from "./dom.js";
import { plural, share } from "./format.js";
import { fetchJson } from "./stream.js";

const CENTRE = 160;
const RADII = [138, 120];
const TONES = 4;
const COLUMNS = [
  { id: "hash", name: "Prefix" },
  { id: "share", name: "Share", number: true, title: "Of the recent requests that have a full chunk of prompt" },
  { id: "pair", name: "Candidates", title: "● holds it, ○ does not, as far as is known; + is its outpost, where it went before outside its pair" },
];

let version = -1;
let loading = false;
let arcs = new Map();
let marks = null;
let words = null;
let parts = null;
let latest = null;
let pointed = null;

export function makeRings() {
  words = ["key", "first", "second", "third"].map((name, i) =>
    svg("text", { class: `word ${name}`, x: CENTRE, y: CENTRE - 24 + i * 20 }));
  marks = svg("g", { class: "marks" });
  byId("rings").append(
    svg("svg", { viewBox: "0 0 320 320", role: "img", "aria-labelledby": "rings-title rings-note" },
      svg("g", { class: "arcs" }), marks, ...words));
  parts = table(byId("prefixes"), "Hot prefixes and their candidates; the arrow keys go from row to row", COLUMNS);
}

export function showRings(snapshot) {
  latest = snapshot;
  if (snapshot.rings_version !== version && !loading) load(snapshot.rings_version);
  const { prefixes } = snapshot;
  keyed(marks, prefixes, (p) => p.key, makeMarks, updateMarks);
  keyed(parts.body, prefixes, (p) => p.key, makeRow, updateRow);
  byId("prefixes").classList.toggle("empty", !prefixes.length);
  // What is split is no key any more: its longer prefixes are.
  const splits = snapshot.num_splits ? `${snapshot.num_splits} split into longer ones, too hot for one pair` : "";
  say(byId("rings-note"), prefixes.length ? splits : "no prefix has been counted yet");
  point(prefixes.some((p) => p.key === pointed) ? pointed : null);
}

async function load(wanted) {
  loading = true;
  try {
    const rings = await fetchJson("ui/rings");
    version = wanted;
    drawArcs(rings);
  } catch {
    // The stream tells of the trouble; the next snapshot tries again.
  } finally {
    loading = false;
  }
}

function drawArcs(rings) {
  arcs = new Map();
  const group = byId("rings").querySelector(".arcs");
  group.replaceChildren();
  rings.names.forEach((name, index) => {
    const pair = [rings.first, rings.second].map((owners, ring) =>
      svg("path", { class: `tone-${index % TONES}`, d: runs(owners, index, RADII[ring]) }));
    arcs.set(name, pair);
    group.append(...pair);
  });
  point(pointed);
}

/** The slots of one owner as one path of arcs. */
function runs(owners, index, radius) {
  let path = "";
  for (let slot = 0; slot < owners.length; slot += 1) {
    if (owners[slot] !== index) continue;
    const from = slot;
    while (slot + 1 < owners.length && owners[slot + 1] === index) slot += 1;
    const [x1, y1] = spot(from / owners.length, radius);
    const [x2, y2] = spot((slot + 0.96) / owners.length, radius);
    const large = slot - from >= owners.length / 2 ? 1 : 0;
    path += `M${x1} ${y1}A${radius} ${radius} 0 ${large} 1 ${x2} ${y2}`;
  }
  return path || null;
}

function spot(turn, radius) {
  const angle = (turn - 0.25) * 2 * Math.PI;
  return [CENTRE + radius * Math.cos(angle), CENTRE + radius * Math.sin(angle)].map((v) => Math.round(v * 100) / 100);
}

/** A prefix's two marks: outside the outer ring and inside the inner one, pointing at them. */
function makeMarks(prefix) {
  const group = svg("g", { class: "mark" }, svg("line", { class: "wide" }), svg("line"), svg("circle"), svg("circle"));
  group.addEventListener("pointerenter", () => point(prefix.key));
  group.addEventListener("pointerleave", () => point(null));
  return group;
}

function updateMarks(group, prefix) {
  const [wide, line, ...dots] = group.children;
  const ends = [spot(prefix.places[0], 151), spot(prefix.places[1], 107)];
  ends.forEach(([x, y], i) => {
    set(dots[i], "cx", x);
    set(dots[i], "cy", y);
    set(dots[i], "r", 2.5 + 6 * Math.sqrt(prefix.share));
    for (const each of [wide, line]) {
      set(each, `x${i + 1}`, x);
      set(each, `y${i + 1}`, y);
    }
  });
}

function makeRow(prefix) {
  const row = el("tr", {}, ...COLUMNS.map((column) => el(column.id === "hash" ? "th" : "td", { class: classes(column) })));
  const [key, portion, pair] = row.children;
  set(key, "scope", "row");
  const button = el("button", { type: "button", class: "link mono", "aria-describedby": "rings-note" }, prefix.key.slice(0, 8));
  // A finger has no hover: touching a prefix focuses its button.
  button.addEventListener("click", () => button.focus());
  button.addEventListener("focus", () => point(prefix.key));
  button.addEventListener("blur", () => point(null));
  row.addEventListener("pointerenter", () => point(prefix.key));
  row.addEventListener("pointerleave", () => point(null));
  key.append(button);
  pair.append(el("span"), el("span"), el("span"));
  return row;
}

function updateRow(row, prefix) {
  const [, portion, pair] = row.children;
  say(portion, share(prefix.share, prefix.share < 0.1 ? 1 : 0));
  // Who holds what is in Redis alone.
  const mark = (name) => (!latest.store_available ? "" : prefix.owners.includes(name) ? "● " : "○ ");
  const held = (name) => (name ? mark(name) + name : "");
  const outpost = prefix.candidates.includes(prefix.outpost) ? null : prefix.outpost;
  const shown = [held(prefix.candidates[0]), held(prefix.candidates[1]), outpost ? `+ ${held(outpost)}` : ""];
  shown.forEach((text, i) => say(pair.children[i], text));
}

/** Show one prefix's candidates; null for none. */
function point(key) {
  pointed = key;
  const prefix = latest?.prefixes.find((p) => p.key === key) ?? null;
  byId("rings").classList.toggle("pointing", prefix !== null);
  for (const [name, pair] of arcs) {
    pair.forEach((path, ring) => path.classList.toggle("on", prefix?.candidates[ring] === name));
  }
  for (const [each, group] of marks.kept ?? []) group.classList.toggle("on", each === key);
  for (const [each, row] of parts.body.kept ?? []) row.classList.toggle("on", each === key);
  const lines = prefix ? describe(prefix) : atRest();
  words.forEach((node, i) => say(node, lines[i] ?? ""));
}

function describe(prefix) {
  const [first, second] = prefix.candidates;
  const holders = !latest.store_available ? "" : `held by ${prefix.owners.length || "none"}`;
  return [`${prefix.key.slice(0, 8)} · ${share(prefix.share, 1)}`, `outer: ${first}`, second ? `inner: ${second}` : "", holders];
}

function atRest() {
  const names = latest ? arcs.size : 0;
  return ["", plural(names, "instance"), "on two rings", ""];
}
