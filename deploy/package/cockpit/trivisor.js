// A node that systemd runs, inside Cockpit: three guests, the last dissent, a button to heal.
// It uses the supervisor's control socket with the rights of the user who is logged in: root and
// the group trivisor may open it.
"use strict";

const INTERVAL = 3000; // ms between two reads
const http = cockpit.http({ unix: "/run/trivisor/supervisor.sock" });
const get = (id) => document.getElementById(id);
const healing = new Set();

function problem(words) {
  get("problem").hidden = !words;
  get("problem").textContent = words;
}

function explain(error, body) {
  const reasons = {
    "not-found": "No node runs. To start it: systemctl start trivisor",
    "access-denied": "Only root and members of the group trivisor may use the node. Add the user: adduser USER trivisor",
  };
  let answer = "";
  try { answer = JSON.parse(body).error; } catch (_) { /* not an answer of the supervisor */ }
  return answer || reasons[error.problem] || `The supervisor does not answer: ${error.message || error.problem}`;
}

function row(guest) {
  const cells = [guest.name, guest.state === "active" ? "✓ votes" : `✕ ${guest.state}: ${guest.replica.reason || guest.vm}`,
    String(guest.replica.dissents ?? "–"), String(guest.pid ?? "none"), guest.fault ? guest.fault.kind : "none"];
  const line = document.createElement("tr");
  line.dataset.guest = guest.name;
  line.dataset.state = guest.state === "active" ? "good" : "bad";
  for (const words of cells) line.append(Object.assign(document.createElement("td"), { textContent: words }));
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: `Heal ${guest.name}` });
  button.disabled = healing.has(guest.name) || (guest.state === "active" && !guest.fault);
  button.addEventListener("click", () => heal(guest.name));
  line.append(Object.assign(document.createElement("td"), {}));
  line.lastChild.append(button);
  return line;
}

function show(status, events) {
  const votes = status.guests.filter((guest) => guest.state === "active").length;
  get("verdict").textContent = `${votes} of ${status.guests.length} guests vote (${status.status}), vote ${status.vote}, service ${status.service}`;
  const focused = document.activeElement?.closest("tr")?.dataset.guest;
  get("guests").replaceChildren(...status.guests.map(row));
  if (focused) get("guests").querySelector(`[data-guest="${CSS.escape(focused)}"] button`)?.focus();
  const last = events.filter((event) => event.reason === "dissent").at(-1);
  get("dissent").textContent = last ? `${last.guest}, ${new Date(last.time * 1000).toLocaleString()}, request ${last.seq}` : "none";
}

function read() {
  return Promise.all([http.get("/status"), http.get("/events", { lines: "1000" })])
    .then(([status, events]) => {
      problem("");
      show(JSON.parse(status), JSON.parse(events).events);
    })
    .catch((error) => problem(explain(error)))
    .finally(() => setTimeout(read, INTERVAL));
}

function heal(guest) {
  healing.add(guest);
  http.request({ method: "POST", path: "/heal", body: JSON.stringify({ guest }), headers: { "Content-Type": "application/json" } })
    .then(() => problem(""), (error, body) => problem(explain(error, body)))
    .finally(() => healing.delete(guest));
}

read();
