// The figures on top: this router's last minutes.

import { byId, el, say, set } from "./dom.js";
import { chart, draw } from "./charts.js";
import { count, exact, plural, rate, seconds, share } from "./format.js";

const FIGURES = [
  { id: "attainment", name: "Within objective", lines: ["line"] },
  { id: "ttft", name: "Time to first token", lines: ["line second", "line"] },
  { id: "rate", name: "Requests a second", lines: ["line"] },
  { id: "cached", name: "Prompt tokens cached", lines: null },
  { id: "flight", name: "In flight", lines: null },
];
const shown = new Map();

export function makeFigures() {
  for (const { id, name, lines } of FIGURES) {
    const parts = { value: el("dd", { class: "value" }), aside: el("dd", { class: "aside" }) };
    if (lines) parts.chart = chart(lines);
    const figure = el("dl", { class: `figure ${id}` }, el("dt", {}, name), parts.value, parts.aside);
    if (lines) figure.append(el("dd", { class: "chart" }, parts.chart));
    byId("figures").append(figure);
    shown.set(id, parts);
  }
}

export function showFigures(snapshot) {
  const { minutes } = snapshot;
  const { points } = minutes;
  const attained = figure("attainment", share(minutes.attainment, 1), `objective ${exact(snapshot.slo_s)}`);
  const worst = Math.min(1, ...points.map((point) => point.attainment ?? 1));
  draw(attained, [points.map((point) => point.attainment)],
    `Share within the objective over five minutes: ${share(minutes.attainment, 1)}, at worst ${share(worst)}`,
    { least: Math.min(worst, 0.9), most: 1 });

  const p90 = points.map((point) => point.p90_s);
  const ttft = figure("ttft", seconds(minutes.p50_s), minutes.p50_s === null
    ? "no stream in five minutes" : `median; nine in ten within ${seconds(minutes.p90_s)}`);
  draw(ttft, [p90, points.map((point) => point.p50_s)],
    `Time to first token over five minutes: median ${seconds(minutes.p50_s)}, 90th percentile ` +
      `${seconds(minutes.p90_s)}; the dashed line is the objective`,
    { mark: snapshot.slo_s < Math.max(...p90.map((value) => value ?? 0)) * 2.5 ? snapshot.slo_s : null });

  const perSecond = points.map((point) => point.requests / (minutes.span_s / points.length));
  const failed = minutes.failed ? `, ${count(minutes.failed)} failed` : "";
  // The newest span has just begun.
  draw(figure("rate", rate(minutes.rate), `${plural(minutes.requests, "request")} in 5 min${failed}`),
    [perSecond.slice(0, -1)], `Requests a second over five minutes: now ${rate(minutes.rate)}`);
  set(shown.get("rate").aside, "class", minutes.failed ? "aside alarm" : "aside");

  figure("cached", share(minutes.cached_share), "as decisions expected");
  const waiting = snapshot.waiting.filter((request) => request.outcome === "waiting").length;
  figure("flight", count(snapshot.in_flight), snapshot.in_flight > snapshot.waiting.length
    ? "requests" : `${plural(waiting, "waits", "wait")} for a first token`);
}

function figure(id, value, aside) {
  const parts = shown.get(id);
  say(parts.value, value);
  say(parts.aside, aside);
  return parts.chart;
}
