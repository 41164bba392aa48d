// The state of the cluster, kept up to date from `/v1/live`: a snapshot, then merge patches (RFC 7396).
//
// The browser itself comes back to a stream that it lost, with the id of the last event that it saw; the server then
// sends what was missed, or a snapshot. If the stream is silent for longer than `SILENCE_MS`, the page says so.
//
// A master that leads no more has no stream. If it stands by, it names the leader, and the page goes there.

const SILENCE_MS = 4000; // the server sends something at least once a second, since time passes

export function mergePatch(target, patch) {
  if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
  const merged = target !== null && typeof target === "object" && !Array.isArray(target) ? { ...target } : {};
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete merged[name];
    else merged[name] = mergePatch(merged[name], value);
  }
  return merged;
}

/** Calls `onState(document)` at most once a frame, and `onLink("live" | "lost")` when that changes. */
export function follow(onState, onLink) {
  let state = null;
  let drawing = false;
  let link = "";
  let heardMs = performance.now();

  function tell(now) {
    if (now !== link) {
      link = now;
      onLink(link);
    }
  }

  function take(next) {
    state = next;
    heardMs = performance.now();
    tell("live");
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      onState(state);
    });
  }

  async function goToLeader() {
    try {
      const told = await (await fetch("/readyz", { cache: "no-store", credentials: "omit" })).json();
      if (told.role === "standby" && told.leader) location.replace(`http://${told.leader.http}/`);
    } catch {
      // This master is not there. It is tried again with the stream.
    }
  }

  function open() {
    const source = new EventSource("/v1/live");
    source.addEventListener("snapshot", (event) => take(JSON.parse(event.data)));
    source.addEventListener("patch", (event) => state && take(mergePatch(state, JSON.parse(event.data))));
    source.addEventListener("error", () => {
      tell("lost");
      // After an answer that is no stream (the master is shutting down), a browser does not try again by itself.
      if (source.readyState !== EventSource.CLOSED) return;
      setTimeout(open, 1000);
      goToLeader();
    });
  }

  open();
  setInterval(() => performance.now() - heardMs > SILENCE_MS && tell("lost"), 500);
}
