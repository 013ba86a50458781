// The page put together: a stream of snapshots in, everything shown anew; a dialog for what is asked about.

import { byId, el, say, set } from "./dom.js";
import { explanation, instanceFacts } from "./explain.js";
import { makeFigures, showFigures } from "./figures.js";
import { ago, short } from "./format.js";
import { makeInstances, showInstances, stateOf } from "./instances.js";
import { showNotices } from "./notices.js";
import { hasEnded, makeRequests, showRequests } from "./requests.js";
import { makeRings, showRings } from "./rings.js";
import { makeSide, showSide } from "./side.js";
import { Stream, fetchJson, useKey } from "./stream.js";

const LATE_MS = 4000;

let latest = null;
let latestAt = null;
/** When it began to listen: what was missed while nobody looked is no silence. */
let listensFrom = Date.now();
let state = "connecting";
let why = "";
let paused = false;
/** What the dialog shows: {request: id} or {instance: name}, and whether that may still change. */
let shown = null;

const stream = new Stream(onSnapshot, (next, reason) => {
  state = next;
  why = reason;
  byId("unlock").hidden = state !== "locked";
  say(byId("unlock-trouble"), state === "locked" ? reason : "");
  if (state === "locked") byId("key").focus();
  showState();
});

function onSnapshot(snapshot) {
  latest = snapshot;
  latestAt = new Date();
  state = "live";
  byId("main").hidden = false;
  say(byId("where"), `pool ${snapshot.pool} · router ${snapshot.router}${snapshot.models.length ? ` · ${snapshot.models.join(", ")}` : ""}`);
  document.title = `DualMap · ${snapshot.pool}`;
  for (const show of [showFigures, showInstances, showRings, showRequests, showSide]) show(snapshot);
  showState();
  if (shown) refreshDetail();
}

/** The connection, once a second and whenever it changes: silence is told like a break. */
function showState() {
  const silent = latestAt !== null && Date.now() - Math.max(latestAt, listensFrom) > LATE_MS;
  const lost = !paused && state !== "locked" && (state === "lost" || (state === "live" && silent));
  const words = { live: "live", connecting: "connecting", locked: "locked" };
  const text = paused ? "paused" : lost ? "connection lost" : words[state];
  say(byId("live-text"), text);
  set(byId("live"), "class", `live is-${paused ? "paused" : lost ? "lost" : state}`);
  document.body.classList.toggle("old", lost);
  showNotices(latest, lost ? [latestAt, why || "no word for a while"] : null);
}

function follow() {
  if (paused || document.hidden) stream.stop();
  else stream.start();
  listensFrom = Date.now();
  showState();
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  set(byId("pause"), "aria-pressed", String(paused));
  follow();
});
byId("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("unlock").hidden = true;
  say(byId("unlock-trouble"), "");
  stream.start();
});
document.addEventListener("visibilitychange", follow);
setInterval(showState, 1000);

// The dialog

const detail = byId("detail");

async function openRequest(id) {
  say(byId("find-trouble"), "");
  try {
    const request = await fetchJson(`ui/requests/${encodeURIComponent(id)}`);
    shown = { request: id };
    history.replaceState(null, "", `#request=${encodeURIComponent(id)}`);
    present(`Request ${short(id, 40)}`, requestParts(request));
  } catch (error) {
    say(byId("find-trouble"), `${short(id, 40)}: ${error.message}`);
  }
}

function requestParts(request) {
  shown.ended = hasEnded(request);
  const came = el("p", { class: "quiet" }, `POST ${request.label}, ${request.age_s < 1 ? "just now" : `${ago(request.age_s)} ago`}`);
  return [came, ...explanation(request)];
}

function openInstance(name) {
  shown = { instance: name };
  present(name, instanceParts(name));
}

function instanceParts(name) {
  const instance = latest.instances.find((i) => i.name === name);
  if (!instance) return [el("p", {}, "It has left the pool.")];
  const [glyph, word] = stateOf(instance, latest);
  return [el("p", { class: "quiet" }, `${glyph} ${word}`), ...instanceFacts(instance, latest)];
}

function present(title, parts) {
  say(byId("detail-title"), title);
  byId("detail-body").replaceChildren(...parts);
  if (!detail.open) detail.showModal();
}

/** What is shown goes on while it is looked at, until it has ended. */
async function refreshDetail() {
  if (shown.instance) byId("detail-body").replaceChildren(...instanceParts(shown.instance));
  else if (!shown.ended) {
    const { request: id } = shown;
    const request = await fetchJson(`ui/requests/${encodeURIComponent(id)}`).catch(() => null);
    if (request && shown?.request === id) byId("detail-body").replaceChildren(...requestParts(request));
  }
}

byId("detail-close").addEventListener("click", () => detail.close());
detail.addEventListener("click", (event) => event.target === detail && detail.close());
detail.addEventListener("close", () => {
  shown = null;
  history.replaceState(null, "", location.pathname + location.search);
});

function openLinked() {
  const linked = location.hash.match(/^#request=(.+)$/);
  if (linked) openRequest(decodeURIComponent(linked[1]));
}

makeFigures();
makeInstances(openInstance);
makeRings();
makeRequests(openRequest);
makeSide(openRequest);
addEventListener("hashchange", openLinked);
openLinked();
follow();
