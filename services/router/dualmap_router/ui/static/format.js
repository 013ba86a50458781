// Numbers as people read them. A dash is "not known".

export const DASH = "–";

export function seconds(value) {
  if (value === null || value === undefined) return DASH;
  if (value < 0.0995) return `${Math.round(value * 1000)} ms`;
  if (value < 9.95) return `${value.toFixed(2)} s`;
  if (value < 99.5) return `${value.toFixed(1)} s`;
  if (value < 3600) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

/** A time that somebody has set. */
export function exact(value) {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${Number(value.toFixed(2))} s`;
}

export function ago(value) {
  if (value < 1) return "now";
  if (value < 60) return `${Math.floor(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  return `${Math.floor(value / 3600)} h`;
}

export function share(value, digits = 0) {
  if (value === null || value === undefined) return DASH;
  // Not "100 %" for what falls just short of it.
  const rounded = (value * 100).toFixed(digits);
  if (value < 1 && Number(rounded) === 100) return `${(99.9).toFixed(Math.max(digits, 1))} %`;
  return `${rounded} %`;
}

export function count(value) {
  return value === null || value === undefined ? DASH : value.toLocaleString("en");
}

export function rate(value) {
  return value && value < 10 ? value.toFixed(1) : count(Math.round(value));
}

export function thousands(value) {
  return value < 10_000 ? count(Math.round(value)) : `${(value / 1000).toFixed(value < 100_000 ? 1 : 0)}k`;
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** An id that fits a cell: its beginning and its end. */
export function short(id, most = 18) {
  return id.length <= most ? id : `${id.slice(0, most - 7)}…${id.slice(-6)}`;
}

export function list(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** worker-2 before worker-10. */
export const byName = new Intl.Collator("en", { numeric: true }).compare;
