// What events mean: sentences for the list, and spans and marks for the timeline.

import { span } from "./dom.js";

const LOOKS = { active: "votes", learner: "returns", restoring: "returns", observer: "votes" };

// One event as a sentence.
export function describe(event) {
  switch (event.event) {
    case "replica": return `${event.before} → ${event.after}${event.reason ? `: ${event.reason}` : ""}`;
    case "repaired": return `repaired in ${span(event.seconds)}${event.why ? `: ${event.why}` : ""}`;
    case "repair failed": return `repair failed: ${event.error}`;
    case "repair abandoned": return `repair abandoned after ${event.repairs}: ${event.why}`;
    case "fault injected": return `fault injected: ${event.kind}${event.seconds ? ` for ${span(event.seconds)}` : ""}; ${event.proof}`;
    case "healed": return `healed${event.kind ? ` of ${event.kind}` : ""} in ${span(event.seconds)}`;
    default: {
      const details = Object.entries(event).filter(([key, value]) => !["id", "time", "event", "guest"].includes(key) && value !== null);
      return `${event.event}${details.length ? `: ${details.map(([key, value]) => `${key} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ")}` : ""}`;
    }
  }
}

// The states of each guest between two times, what was injected, and who left and came back.
export function lanes(state, events, from, until) {
  const spans = [], marks = [], faults = [];
  for (const guest of state.guests) {
    const mine = events.filter((event) => event.guest === guest.name);
    const changes = mine.filter((event) => event.event === "replica" && event.before !== event.after);
    let since = from, now = null;
    for (const change of changes) {
      spans.push({ guest: guest.name, from: since, until: change.time, state: now ?? change.before, look: LOOKS[now ?? change.before] || "away" });
      [since, now] = [change.time, change.after];
    }
    now = now ?? guest.state;
    spans.push({ guest: guest.name, from: since, until, state: now, look: LOOKS[now] || "away" });
    let open = null;
    for (const event of mine) {
      const left = event.event === "replica" && ["active", "learner"].includes(event.before);
      if (left && event.after === "expelled") marks.push({ guest: guest.name, time: event.time, look: "out", sign: "✕", text: `expelled: ${event.reason}` });
      else if (left && event.after === "absent") marks.push({ guest: guest.name, time: event.time, look: "out", sign: "✕", text: `left the vote: ${event.reason}` });
      else if (event.event === "repaired" || event.event === "healed") marks.push({ guest: guest.name, time: event.time, look: "back", sign: "▲", text: describe(event) });
      if (event.event === "fault injected") open = { guest: guest.name, kind: event.kind, from: event.time, until, open: true };
      else if (event.event === "healed" && open) {
        faults.push({ ...open, until: event.time, open: false });
        open = null;
      }
    }
    if (open && guest.fault) faults.push(open);
    else if (!open && guest.fault) faults.push({ guest: guest.name, kind: guest.fault.kind, from: guest.fault.since, until, open: true });
  }
  return { spans, marks, faults: faults.filter((fault) => fault.until > from) };
}
