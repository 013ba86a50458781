// Requests: in flight, and the last that ended. The list stands still while somebody points at it or is in it.

import { byId, classes, el, keyed, say, set, table } from "./dom.js";
import { DASH, ago, count, seconds, share, short } from "./format.js";

const COLUMNS = [
  { id: "age", name: "Came", number: true, title: "Ago" },
  { id: "id", name: "Request" },
  { id: "where", name: "Instance", title: "In brackets the other candidates" },
  { id: "reason", name: "Why" },
  { id: "cached", name: "Cached", number: true, minor: true, title: "Share of the prompt's chunks, as the decision expected" },
  { id: "expected", name: "Expected", number: true, minor: true, title: "Time to first token as the last decision expected it" },
  { id: "ttft", name: "First token", number: true, title: "Time to first token of streams" },
  { id: "result", name: "Result" },
];
const FILTERS = {
  all: ["All", () => true],
  flight: ["In flight", (r) => !hasEnded(r)],
  late: ["Late", (r) => isLate(r)],
  moved: ["Moved", (r) => r.steps.length > 1],
  failed: ["Failed", (r) => r.outcome === "failed" || r.outcome === "cut"],
};
const MOST = 60;

let parts = null;
let latest = null;
let filter = "all";
let onOpen = () => {};

export function makeRequests(open) {
  onOpen = open;
  parts = table(byId("requests"), "Requests, the newest first; the arrow keys go from row to row", COLUMNS);
  for (const [id, [name]] of Object.entries(FILTERS)) {
    const input = el("input", { type: "radio", name: "filter", value: id, id: `filter-${id}`, checked: id === filter });
    input.addEventListener("change", () => {
      filter = id;
      list(latest);
    });
    byId("filter").append(el("span", {}, input, el("label", { for: `filter-${id}` }, name)));
  }
  byId("find").addEventListener("submit", (event) => {
    event.preventDefault();
    const id = byId("find-id").value.trim();
    if (id) open(id);
  });
  const scroll = byId("requests-scroll");
  scroll.addEventListener("pointerleave", () => latest && list(latest));
}

export function showRequests(snapshot) {
  latest = snapshot;
  const scroll = byId("requests-scroll");
  const held = scroll.matches(":hover") || (scroll.contains(document.activeElement) && document.activeElement !== scroll);
  if (!held) list(snapshot);
  else say(byId("requests-note"), "The list stands still while you are in it.");
}

function list(snapshot) {
  const keep = FILTERS[filter][1];
  const requests = [...snapshot.waiting, ...snapshot.ended].filter(keep).sort((a, b) => a.age_s - b.age_s).slice(0, MOST);
  keyed(parts.body, requests, keyOf, makeRow, updateRow);
  byId("requests").classList.toggle("empty", !requests.length);
  const note = requests.length === MOST ? `This router's newest ${MOST}.` : requests.length ? "" : "None at the moment.";
  say(byId("requests-note"), note);
}

/** An id may come twice: a client chooses it. */
function keyOf(request) {
  return `${request.id} ${request.came_s}`;
}

function makeRow(request) {
  const row = el("tr", {}, ...COLUMNS.map((column) => el(column.id === "id" ? "th" : "td", { class: classes(column) })));
  const [, id, where] = row.children;
  set(id, "scope", "row");
  const button = el("button", { type: "button", class: "link mono", title: request.id }, short(request.id));
  button.addEventListener("click", () => onOpen(request.id));
  id.append(button);
  where.append(el("b"), el("span", { class: "quiet" }));
  row.addEventListener("click", (event) => event.target.closest("button") || onOpen(request.id));
  return row;
}

function updateRow(row, r) {
  const [age, , where, reason, cached, expected, ttft, result] = row.children;
  const step = r.steps.at(-1);
  say(age, ago(r.age_s));
  say(where.firstChild, step ? step.instance : DASH);
  const others = r.candidates.filter((name) => name !== step?.instance);
  say(where.lastChild, others.length ? ` (${others.join(", ")})` : "");
  say(reason, r.reason || DASH);
  say(cached, step && r.chunks ? share(Math.min(step.cached_chunks / r.chunks, 1)) : DASH);
  say(expected, seconds(step?.ttft_s));
  say(ttft, r.ttft_s !== null ? seconds(r.ttft_s) : r.outcome === "waiting" ? `… ${seconds(r.took_s)}` : DASH);
  const [word, alarming] = resultOf(r);
  say(result, word);
  set(result, "class", alarming ? "result alarm" : "result");
  set(row, "class", hasEnded(r) ? null : "open");
}

export function hasEnded(r) {
  return r.outcome !== "waiting" && r.outcome !== "answering";
}

/** Whether a stream's first token came, or still has to come, after its objective. */
export function isLate(r) {
  return r.ttft_s !== null ? r.ttft_s > r.slo_s : r.outcome === "waiting" && r.took_s > r.slo_s;
}

/** [words, whether it is trouble]. */
export function resultOf(r) {
  const late = isLate(r) ? "▲ late" : "";
  const moved = r.moves ? `moved${r.moves > 1 ? ` ${count(r.moves)}×` : ""}` : "";
  const words = {
    waiting: "waiting",
    answering: "answering",
    answered: r.ttft_s !== null && !late ? "✓ in time" : late ? "" : "✓ answered",
    failed: `✕ failed${r.status ? `, ${r.status}` : ""}`,
    left: "client left",
    cut: "✕ cut off",
  };
  const said = [words[r.outcome], late, moved].filter(Boolean).join(", ");
  return [said, Boolean(late) || r.outcome === "failed" || r.outcome === "cut"];
}
