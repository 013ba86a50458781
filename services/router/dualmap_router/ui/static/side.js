// Reasons and moves.

import { bar, byId, el, keyed, say, set, setBar, table } from "./dom.js";
import { ago, count, seconds, share, short } from "./format.js";

export const REASONS = {
  affinity: "the candidate that holds more of the prompt",
  load: "the candidate that answers sooner",
  outpost: "where its prefix went before, outside the pair",
  escape: "outside the pair: no candidate was in time",
  only: "nobody else could take it",
  policy: "a baseline policy chose",
  moved: "taken off a hot instance's queue",
  retry: "its instance was lost before the first byte",
};
const OUTCOMES = { done: "moved", late: "had begun", fenced: "refused", failed: "failed" };

let reasons = null;
let moves = null;
let onOpen = () => {};

export function makeSide(open) {
  onOpen = open;
  reasons = table(byId("reasons"), "Requests of the last five minutes by reason", [
    { id: "reason", name: "Reason" },
    { id: "share", name: "Share", number: true },
    { id: "count", name: "Requests", number: true },
  ]);
  moves = table(byId("moves"), "The last moves that the rebalancer asked for; the arrow keys go from row to row", [
    { id: "age", name: "Ago", number: true },
    { id: "id", name: "Request" },
    { id: "way", name: "From → to" },
    { id: "gain", name: "Gain", number: true, title: "How much sooner it was expected to be answered" },
  ]);
}

export function showSide(snapshot) {
  const counted = Object.entries(snapshot.minutes.reasons).filter(([reason]) => reason);
  const whole = counted.reduce((sum, [, number]) => sum + number, 0);
  keyed(reasons.body, counted, ([reason]) => reason, makeReason, (row, [, number]) => {
    setBar(row.children[1].firstChild, number / whole);
    say(row.children[1].lastChild, share(number / whole));
    say(row.children[2], count(number));
  });
  byId("reasons").classList.toggle("empty", !counted.length);
  say(byId("reasons-note"), counted.length ? "" : "no request in five minutes");
  // A batch has several of one request only if it was asked for twice.
  const shown = snapshot.moves.slice(0, 12);
  keyed(moves.body, shown, (m) => `${m.request_id} ${m.source} ${m.target} ${m.outcome}`, makeMove, updateMove);
  byId("moves").classList.toggle("empty", !shown.length);
  const done = snapshot.minutes.moves;
  say(byId("moves-note"), !snapshot.board_known ? "not known" : done ? `${count(done)} of this router's in 5 min` : "none lately");
}

function makeReason([reason]) {
  const words = el("small", {}, REASONS[reason] ?? "");
  return el("tr", {},
    el("th", { scope: "row" }, el("b", {}, reason), words),
    el("td", { class: "number share" }, bar(), el("span")),
    el("td", { class: "number" }));
}

function makeMove(move) {
  const button = el("button", { type: "button", class: "link mono", title: move.request_id }, short(move.request_id, 13));
  button.addEventListener("click", () => onOpen(move.request_id));
  return el("tr", {}, el("td", { class: "number age" }), el("td", {}, button), el("td", { class: "way" }), el("td", { class: "number" }));
}

function updateMove(row, move) {
  const [age, , way, gain] = row.children;
  say(age, ago(move.age_s));
  say(way, `${move.source} → ${move.target}`);
  say(gain, move.outcome === "done" ? seconds(move.benefit_s) : (OUTCOMES[move.outcome] ?? move.outcome));
  set(row, "class", move.outcome === "done" ? null : "off");
}
