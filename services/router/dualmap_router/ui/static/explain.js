// One request in words and numbers: what was weighed, why it went where it went, and what happened then.

import { el, svg } from "./dom.js";
import { count, exact, plural, seconds, share } from "./format.js";
import { isLate } from "./requests.js";

/** The elements that explain a request. */
export function explanation(r) {
  const parts = [facts(r)];
  r.steps.forEach((step, index) => parts.push(...decision(r, step, index)));
  if (!r.steps.length) parts.push(el("p", {}, unplaced(r)));
  parts.push(el("h3", {}, "What happened then"), outcome(r));
  if (r.steps.length) parts.push(timeline(r, r.steps.at(-1)));
  return parts;
}

function facts(r) {
  const said = [
    r.model && `model ${r.model}`,
    plural(r.prompt_tokens, "prompt token"),
    r.chunks ? plural(r.chunks, "chunk") : "shorter than a chunk",
    `objective ${exact(r.slo_s)}`,
    r.streamed ? "streamed" : "answered whole",
    r.policy !== "dualmap" && `policy ${r.policy}`,
  ];
  return el("p", { class: "quiet" }, said.filter(Boolean).join(" · "));
}

function unplaced(r) {
  if (r.outcome === "waiting") return "It is being placed.";
  return r.status === 429
    ? "It was turned away: even on the best instance it would have waited longer than this service lets a request wait."
    : "It was never placed on an instance.";
}

function decision(r, step, index) {
  const title = index === 0 ? `Why ${step.instance}` : `Then ${step.instance}`;
  return [el("h3", {}, title), el("p", {}, why(r, step, index)), weighings(r, step), ...scoring(r, step), ...asides(step)];
}

/** The reason in a sentence. */
function why(r, step, index) {
  const [first, second] = r.candidates;
  const pair = second
    ? `The prefix ${r.key.slice(0, 8)} has two candidates, ${first} and ${second}. `
    : first ? `Only ${first} takes new requests. ` : "";
  const others = step.weighed.filter((w) => w.instance !== step.instance);
  const best = others.length ? others.reduce((a, b) => (b.score < a.score ? b : a)) : null;
  const chosen = own(r, step);
  const says = {
    affinity: () => `${pair}${step.instance} has the lower score` + (best
      ? `, ${seconds(chosen.score)} against ${seconds(best.score)}: it holds ${held(step, r)}, ${best.instance} ${held(best, r)}.` : "."),
    load: () => `${pair}${step.instance} has the lower score` + (best
      ? `, ${seconds(chosen.score)} against ${seconds(best.score)} of ${best.instance}, although it holds no more of the prompt.` : "."),
    outpost: () => `${pair}An earlier request of this prefix had to leave them and went to ${step.instance}. ` +
      `That made it a third candidate, and now the one with the lowest score.`,
    escape: () => `${pair}Neither was expected to answer well within the objective` +
      (best ? ` (${best.instance}: ${seconds(best.ttft_s)} of ${exact(r.slo_s)})` : "") +
      `, so every instance was scored. ${step.instance} was clearly better: ${seconds(step.ttft_s)} until the first token.`,
    only: () => `No other instance could take it.`,
    policy: () => `The policy ${r.policy} chose. It does not weigh candidates.`,
    moved: () => `While it waited, ${r.steps[index - 1]?.instance ?? "its instance"} turned hot, and the rebalancer ` +
      `moved it to ${step.instance}, where it was expected to be answered sooner.`,
    retry: () => `${r.steps[index - 1]?.instance ?? "Its instance"} was lost or refused it before the first byte, ` +
      `so it was placed again, without that one.`,
  };
  return (says[step.reason] ?? (() => `Reason: ${step.reason}.`))();
}

function own(r, step) {
  return { score: step.wait_s + (1 + r.lambda_own) * step.own_s };
}

function held(weighed, r) {
  return weighed.cached_chunks ? `${count(weighed.cached_chunks)} of ${plural(r.chunks, "chunk")}` : "none";
}

function weighings(r, step) {
  const rows = step.weighed.map((w) => ({ ...w, role: roleOf(r, w.instance) }));
  if (!rows.some((w) => w.instance === step.instance)) {
    rows.push({ ...step, role: "outside the pair", score: own(r, step).score });
  }
  const head = [["Instance"], ["Cached", "number"], ["Wait", "number"], ["Own prefill", "number"],
    ["First token", "number minor"], ["Score", "number"]];
  return el("div", { class: "scroll" }, el("table", { class: "weighed" },
    el("caption", { class: "unseen" }, "What was expected of each candidate"),
    el("thead", {}, el("tr", {}, ...head.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))),
    el("tbody", {}, ...rows.map((w) => weighing(w, w.instance === step.instance)))));
}

function roleOf(r, name) {
  const place = r.candidates.indexOf(name);
  return place === 0 ? "outer ring" : place === 1 ? "inner ring" : "outpost";
}

function weighing(w, chosen) {
  const numbers = [count(w.cached_chunks), seconds(w.wait_s), seconds(w.own_s), seconds(w.ttft_s), seconds(w.score)];
  return el("tr", { class: chosen ? "chosen" : null },
    el("th", { scope: "row" }, `${chosen ? "→ " : ""}${w.instance}`, el("small", {}, chosen ? `chosen, ${w.role}` : w.role)),
    ...numbers.map((text, i) => el("td", { class: i === 3 ? "number minor" : "number" }, text)));
}

function scoring(r, step) {
  if (r.policy !== "dualmap" || step.weighed.length < 2) return [];
  return [el("p", { class: "note" },
    `Score: wait + ${1 + r.lambda_own} × own prefill. Work that lands on an instance delays all that follow. Lower is better.`)];
}

function asides(step) {
  const said = [];
  if (step.alone) said.push("Decided without Redis: over this router's own charges, not knowing what is cached where.");
  if (!step.feasible) said.push("It was not expected to meet its objective there, so it waits behind those that can.");
  return said.map((text) => el("p", { class: "note" }, text));
}

function outcome(r) {
  const said = [];
  const step = r.steps.at(-1);
  if (r.ttft_s !== null && step) {
    const off = r.ttft_s - step.ttft_s;
    const than = Math.abs(off) < 0.02 * r.slo_s ? "as expected" : `${seconds(Math.abs(off))} ${off > 0 ? "later" : "sooner"} than expected`;
    // A moved request's clock ran on while it waited elsewhere.
    said.push(`The first token came after ${seconds(r.ttft_s)}` + (r.steps.length === 1 ? `, ${than}` : "") +
      (isLate(r) ? `: ▲ late, the objective is ${exact(r.slo_s)}.` : `, within the objective of ${exact(r.slo_s)}.`));
  } else if (r.outcome === "waiting") {
    said.push(`It has waited ${seconds(r.took_s)} for its first byte${isLate(r) ? ", longer than its objective" : ""}.`);
  }
  const took = seconds(r.took_s);
  const ends = {
    answering: "Its answer is coming.",
    answered: `The answer was complete after ${took}.` + (r.streamed ? "" : " It came whole: that shows no first token."),
    failed: `It failed after ${took}${r.status ? ` with HTTP ${r.status}` : ""}.`,
    left: `Its client went away after ${took}; the engine stopped.`,
    cut: `The answer broke off after ${took} and could not be continued.`,
  };
  said.push(ends[r.outcome]);
  if (r.attempts) said.push(`It was tried again ${r.attempts === 1 ? "once" : `${count(r.attempts)} times`}.`);
  return el("p", {}, said.filter(Boolean).join(" "));
}

/** Expected wait and prefill above what it took, on one scale with the objective. */
function timeline(r, step) {
  const actual = r.ttft_s ?? (r.outcome === "waiting" ? r.took_s : null);
  const end = Math.max(step.ttft_s, actual ?? 0, r.slo_s) * 1.05;
  const x = (value) => Math.round((value / end) * 4000) / 10;
  const label = `Expected: wait ${seconds(step.wait_s)}, own prefill ${seconds(step.own_s)}. ` +
    (actual === null ? "" : `It took ${seconds(actual)}. `) + `Objective: ${seconds(r.slo_s)}.`;
  return el("figure", { class: "timeline" },
    svg("svg", { viewBox: "0 0 400 46", preserveAspectRatio: "none", role: "img", "aria-label": label },
      svg("rect", { class: "wait", x: 0, y: 4, width: x(step.wait_s), height: 14 }),
      svg("rect", { class: "own", x: x(step.wait_s), y: 4, width: Math.max(x(step.own_s), 1), height: 14 }),
      actual === null ? null : svg("rect", { class: isLate(r) ? "took late" : "took", x: 0, y: 26, width: Math.max(x(actual), 1), height: 14 }),
      svg("line", { class: "objective", x1: x(r.slo_s), x2: x(r.slo_s), y1: 0, y2: 46 })),
    el("figcaption", {},
      el("span", { class: "legend wait" }, `wait ${seconds(step.wait_s)}`),
      el("span", { class: "legend own" }, `own prefill ${seconds(step.own_s)}`),
      actual === null ? null : el("span", { class: isLate(r) ? "legend took late" : "legend took" }, `took ${seconds(actual)}`),
      el("span", { class: "legend objective" }, `objective ${exact(r.slo_s)}`)));
}

/** The elements that tell of an instance. */
export function instanceFacts(i, snapshot) {
  const known = (value, say) => (value === null || value === undefined ? "not known" : say(value));
  const rows = [
    ["Model", i.model],
    ["Expected wait", seconds(i.wait_s)],
    ["Booked by " + (snapshot.store_available ? "all routers" : "this router"),
      `${seconds(i.booked_s)} of prefill` + (i.late_s ? `, ${seconds(i.late_s)} of it for requests that are late` : "")],
    ["Prefill at its head", i.running_s === null ? "none" : `for ${seconds(i.running_s)}`],
    ["Queue", known(i.queued, (n) => `${plural(n, "request")}` + (n ? `, the oldest for ${seconds(i.oldest_s)}, ${count(i.late)} late` : ""))],
    ["In the engine", known(i.engine_running, (n) => plural(n, "request"))],
    ["KV cache", known(i.kv_use, (use) => `${share(use)} of ${i.kv_tokens ? plural(i.kv_tokens, "token") : "an unknown size"} in use`)],
    ["Takes new prefills", i.held ? "no: its engine has no room" : "yes"],
    ["Prefill speed", i.speed_known ? `${count(Math.round(i.tokens_s))} tokens a second on a cold prompt of 4,000` : "not seen yet, taken for typical"],
    ["Fit of that speed", known(i.fit_error, (error) => `off by ${share(error)} on average`)],
    ["What it holds", i.kv_events ? known(i.owned_chunks, (n) => `${plural(n, "chunk")}, by its engine's KV events`) : "what was sent there, since its engine tells no KV events"],
    ["Preempted prefills", known(i.preemptions, count)],
    ["This router", `${plural(i.open, "request")} there now, ${plural(i.requests, "request")} in five minutes (${share(i.share)})`],
    ["Weight on the rings", String(i.weight)],
    ["Last telemetry", i.telemetry_age_s === null ? "never" : `${seconds(i.telemetry_age_s)} ago`],
  ];
  return [el("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))];
}

