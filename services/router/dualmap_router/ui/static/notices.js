// What is wrong, in sentences. A live region: a text changes only when what it says does, so no counters in it.

import { byId, el, keyed } from "./dom.js";
import { list, plural } from "./format.js";

const STALE_S = 5;
const GONE_S = 60;

/** Show what is wrong; `lost` is [since when, why] while the stream is broken. */
export function showNotices(snapshot, lost) {
  const notices = lost ? [lostNotice(lost)] : [];
  if (snapshot && !lost) notices.push(...troubles(snapshot));
  const make = () => el("p", { class: "notice" }, el("strong"), el("span"));
  keyed(byId("notices"), notices, ([title, text]) => title + text, make, (node, [title, text, grave]) => {
    node.classList.toggle("grave", Boolean(grave));
    if (node.firstChild.textContent !== title) node.firstChild.textContent = title;
    if (node.lastChild.textContent !== text) node.lastChild.textContent = text;
  });
}

function lostNotice([since, why]) {
  const at = since ? `What you see is as of ${since.toLocaleTimeString()}. ` : "";
  return ["The connection to the router is lost. ", `${at}Trying again… (${why})`, true];
}

function troubles(snapshot) {
  const found = [];
  if (snapshot.draining) found.push(["This router is shutting down. ", "It finishes what runs and takes nothing new.", true]);
  if (!snapshot.store_available) {
    found.push(["Redis cannot be reached. ",
      "This router decides by itself: it knows its own work only, and not what is cached where. Requests are still " +
      "answered. Waits here are this router's part; queues, KV use and moves are not known.", true]);
  }
  const { instances } = snapshot;
  if (!instances.length) found.push(["No instance. ", "No worker has registered in this pool.", true]);
  const named = (state) => instances.filter((i) => i.state === state).map((i) => i.name);
  const lapsed = named("gone");
  const left = snapshot.gone.filter((g) => g.age_s < GONE_S).map((g) => g.name);
  const unreachable = named("unreachable");
  if (lapsed.length) found.push([`${names(lapsed)} stopped renewing. `, "What waited there starts elsewhere.", true]);
  if (left.length) found.push([`${names(left)} left the pool. `, "Its keys went to the other candidates."]);
  if (unreachable.length) found.push([`${names(unreachable)} cannot be reached from here. `, "Nothing new is sent there.", true]);
  if (snapshot.store_available) {
    const silent = instances.filter((i) => i.state === "active" && i.telemetry_age_s > STALE_S).map((i) => i.name);
    if (silent.length && snapshot.board_known) {
      found.push([`${names(silent)} reports nothing. `, "What runs there is not known; decisions go by what is booked."]);
    }
    if (!snapshot.board_known && instances.length) {
      found.push(["No rebalancer reports. ", "Telemetry is stale: queues and KV use are not known, and nothing is moved off hot instances."]);
    }
  }
  return found;
}

function names(all) {
  return all.length > 3 ? `${plural(all.length, "instance")} (${all.slice(0, 2).join(", ")}, …)` : list(all);
}
