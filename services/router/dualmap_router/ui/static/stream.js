// The stream of snapshots: read while somebody looks, taken up again when it breaks off.
// fetch and not EventSource, which cannot send a key.

const KEY = "dualmap-key";

export class Stream {
  /** `onSnapshot(snapshot)`; `onState("live" | "lost" | "locked" | "paused", why)`. */
  constructor(onSnapshot, onState) {
    this.onSnapshot = onSnapshot;
    this.onState = onState;
    this.abort = null;
    this.backoff = 0;
    this.timer = 0;
  }

  start() {
    if (this.abort) return;
    this.abort = new AbortController();
    this.run(this.abort.signal);
  }

  stop() {
    clearTimeout(this.timer);
    this.abort?.abort();
    this.abort = null;
  }

  async run(signal) {
    let why = "it closed the connection";
    try {
      const response = await get("ui/stream", signal);
      if (response.status === 401 || response.status === 403) {
        this.abort = null;
        this.onState("locked", sessionStorage.getItem(KEY) ? "That key is not accepted." : "");
        return;
      }
      if (!response.ok) throw new Error(await trouble(response));
      await this.read(response.body.getReader());
    } catch (error) {
      why = error.message;
    }
    if (signal.aborted) return;
    this.onState("lost", why);
    this.backoff = Math.min(this.backoff * 2 + 500, 5000);
    this.timer = setTimeout(() => this.run(signal), this.backoff);
  }

  async read(reader) {
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = events.pop();
      // Only the newest: a page that was held up has nothing to catch up with.
      const event = events.pop();
      if (!event) continue;
      this.backoff = 0;
      this.onSnapshot(JSON.parse(event.slice("data: ".length)));
    }
  }
}

/** One JSON answer of the data; throws an Error that says what is wrong. */
export async function fetchJson(path) {
  const response = await get(path);
  if (!response.ok) throw new Error(await trouble(response));
  return response.json();
}

/** Remember a key for this tab. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

function get(path, signal) {
  const key = sessionStorage.getItem(KEY);
  return fetch(path, { signal, cache: "no-store", headers: key ? { authorization: `Bearer ${key}` } : {} });
}

async function trouble(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the router answered ${response.status}`;
  }
}
