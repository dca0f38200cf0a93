// The dashboard of one node: log in, follow the stream, show it. No library, no build step.

import { figure, perSecond, readings, RESULTS, sample, SECONDS, spark, timeline, TIME, P50, P99 } from "./charts.js";
import { clock, count, facts, get, h, plural, rate, s, show, size, span, table, text } from "./dom.js";
import { describe, lanes } from "./story.js";

const STATES = {
  active: ["good", "✓", "votes"], learner: ["warn", "↻", "catches up"], restoring: ["warn", "↻", "receives its state"],
  standby: ["warn", "↻", "is about to vote"], retired: ["warn", "○", "is replaced"],
  observer: ["good", "◉", "observes"], booting: ["warn", "↻", "boots"], ready: ["warn", "…", "is not in the vote yet"],
  absent: ["bad", "○", "left the vote"], expelled: ["bad", "✕", "expelled"], dead: ["bad", "✕", "dead"],
  paused: ["bad", "‖", "paused"],
};
const VERDICTS = {
  ready: ["✓", "Every request is voted on by all guests."],
  degraded: ["!", "Requests are answered by a majority. Faults of the others are masked."],
  refusing: ["✕", "No majority: the voter refuses requests instead of guessing."],
  draining: ["…", "The voter is ending: it takes no new requests."],
  unreachable: ["✕", "The voter does not answer. The supervisor restarts it."],
};
const LENGTHS = [[120, "2 min"], [300, "5 min"], [600, "10 min"]];
const DURATIONS = [[10, "10 s have passed"], [60, "1 min has passed"], [600, "10 min have passed"], [0, "it is healed"]];
const SILENCE = 12e3; // ms without a message after which the connection counts as lost
const ASLEEP = 60e3; // ms that a hidden page keeps its stream

let state = null, points = [], events = [], window_ = 600, length = 300;
let stream = null, heard = 0, drawing = false, sleeping = null, retry = null, cursor = null, drawn = null, busy = new Set();

// ---- server

async function call(path, body) {
  const answer = await fetch(`api/${path}`, {
    method: body === undefined ? "GET" : "POST", credentials: "same-origin", cache: "no-store",
    headers: body === undefined ? {} : { "Content-Type": "application/json", "X-Trivisor": "dashboard" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => ({ error: `the server answered ${answer.status}`, remedy: "" }));
  throw Object.assign(new Error([problem.error, problem.remedy].filter(Boolean).join(": ")), { status: answer.status });
}

async function start() {
  const token = location.hash.slice(1);
  if (token) {
    history.replaceState(null, "", location.pathname); // before anything else: it stays in no history
    try {
      await call("login", { token });
    } catch (error) {
      if (!(await call("session").then(() => true, () => false))) return logIn(error.message);
    }
  }
  connect();
}

function logIn(problem) {
  close();
  show(get("main"), false);
  show(get("logout"), false);
  show(get("login"), true);
  show(get("login-error"), Boolean(problem));
  text(get("login-error"), problem || "");
  setLink(false, "not logged in");
}

function connect() {
  clearTimeout(retry);
  close();
  heard = Date.now();
  stream = new EventSource("api/stream");
  stream.addEventListener("full", (message) => receive(JSON.parse(message.data), true));
  stream.addEventListener("update", (message) => receive(JSON.parse(message.data), false));
  stream.addEventListener("error", () => stream && stream.readyState === EventSource.CLOSED ? explain() : offline());
}

function close() {
  if (stream) stream.close();
  stream = null;
}

// The browser does not say why a stream was refused: ask.
async function explain() {
  close();
  try {
    await call("session");
    offline();
  } catch (error) {
    if (error.status === 401) return logIn(get("main").hidden ? "" : "The session has ended.");
    offline(error.status ? error.message : "");
  }
  clearTimeout(retry);
  retry = setTimeout(connect, 5000 + Math.random() * 5000);
}

function offline(problem) {
  setLink(false, "no connection");
  show(get("main"), true);
  show(get("login"), false);
  get("main").dataset.stale = "yes";
  const since = points.length ? ` What is shown is of ${clock(points.at(-1)[TIME])}.` : "";
  text(get("offline"), problem || `The supervisor does not answer. Voter and guests go on without it.${since} Trying again.`);
  show(get("offline"), true);
}

function setLink(live, words) {
  get("link").dataset.live = live ? "yes" : "no";
  text(get("link"), words);
}

function receive(message, full) {
  heard = Date.now();
  const before = state;
  if (full) {
    points = [];
    events = [];
    window_ = message.window;
  }
  state = message.state;
  points.push(...message.points);
  while (points.length && points[0][TIME] < points.at(-1)[TIME] - window_) points.shift();
  events.push(...message.events);
  events.splice(0, events.length - 400);
  if (get("main").hidden) {
    show(get("login"), false);
    show(get("main"), true);
    show(get("logout"), true);
  }
  show(get("logout"), true);
  if (get("main").dataset.stale) delete get("main").dataset.stale;
  show(get("offline"), false);
  setLink(true, "live");
  if (before) announce(before, full ? [] : message.events);
  draw();
}

// Say what changed, once, for screen readers.
function announce(before, added) {
  const words = [];
  if (before.status !== state.status) words.push(verdict());
  for (const event of added) {
    if (["fault injected", "repaired", "repair failed", "repair abandoned"].includes(event.event) || event.after === "expelled") {
      words.push(`${event.guest}: ${describe(event)}`);
    }
  }
  if (words.length) text(get("announce"), words.join(". "));
}

// ---- drawing

function draw() {
  if (drawing || document.hidden || !state) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawSummary();
    drawGuests();
    drawTimeline();
    drawFaults();
    drawEvents();
    drawCampaign();
  });
}

const voting = () => state.guests.filter((guest) => guest.votes).length;
const verdict = () => state.phase === "up" || state.status !== "unreachable"
  ? `${voting()} of ${state.guests.length} guests vote` : `The node is ${state.phase}`;

function drawSummary() {
  const [icon, words] = VERDICTS[state.status] || ["?", `The voter is ${state.status}.`];
  get("verdict").dataset.status = state.status;
  text(get("status-icon"), icon);
  text(get("status"), verdict());
  text(get("status-text"), `${state.status}: ${words}${state.storage ? ` Disk: ${state.storage}.` : ""}${state.connect_problem ? ` ${state.connect_problem}.` : ""}`);
  text(get("node"), `vote ${state.vote} · service ${state.service} · ${state.accel === "tcg" ? "TCG (emulation)" : state.accel.toUpperCase()} · http ${state.http}`);
  document.title = `${voting()}/${state.guests.length} vote – Trivisor`;
  const latest = points.at(-1), recent = points.slice(-60);
  const sum = (field) => points.reduce((all, point) => all + (point[field] || 0), 0);
  const minutes = points.length > 1 ? span(points.at(-1)[TIME] - points[0][TIME]) : "";
  tile("Requests a second", rate(perSecond(latest)), "", `last: no. ${count(state.voter.seq)}`, spark(recent.map(perSecond), "p50"));
  tile("Latency, median", span(latest[P50]), "", `p99 ${span(latest[P99])}`, spark(recent.map((point) => point[P99]), "p50"));
  for (const [look, field, name, words] of RESULTS) {
    const now = latest[SECONDS] ? latest[field] / latest[SECONDS] : null;
    tile(name[0].toUpperCase() + name.slice(1), rate(now), " /s", `${count(sum(field))} in ${minutes || "this sample"}`, null, look, words);
  }
}

const tiles = new Map();
function tile(name, value, small, more, chart, look, title) {
  if (!tiles.has(name)) {
    const box = h("div", { title }, h("dt", {}, look ? s("svg", { class: "key", viewBox: "0 0 12 12", "aria-hidden": "true" }, s("rect", { width: 12, height: 12, rx: 2, class: look })) : null, name),
      h("dd", { class: "value" }, h("span"), h("small")), h("dd", { class: "more" }), h("dd", { class: "line" }));
    get("tiles").append(box);
    tiles.set(name, { value: box.querySelector("span"), small: box.querySelector("small"), more: box.querySelector(".more"), line: box.lastElementChild });
  }
  const parts = tiles.get(name);
  text(parts.value, value);
  text(parts.small, small);
  text(parts.more, more);
  if (chart) parts.line.replaceChildren(chart);
}

const cards = new Map();
function drawGuests() {
  for (const [name, card] of cards) {
    if (!state.guests.some((guest) => guest.name === name)) { card.root.remove(); cards.delete(name); }
  }
  for (const guest of state.guests) {
    if (!cards.has(guest.name)) cards.set(guest.name, makeCard(guest.name));
    const card = cards.get(guest.name), [look, icon, words] = STATES[guest.state] || ["warn", "?", guest.state];
    card.root.dataset.look = card.badge.dataset.look = look;
    text(card.badge, `${icon} ${words}`);
    facts(card.facts, [
      ["lag", guest.lag === null ? "–" : plural(guest.lag, "request")], ["dissents", count(guest.dissents)],
      ["memory of its QEMU", size(guest.memory)], ["process", guest.pid === null ? "none" : String(guest.pid)],
      ["repairs", count(guest.count)],
      ["last repair", guest.repaired ? `${clock(guest.repaired.time)}, in ${span(guest.repaired.seconds)}` : "none yet"],
    ]);
    const why = guest.fault ? `Fault: ${guest.fault.kind} since ${clock(guest.fault.since)}. ${guest.fault.proof}`
      : guest.last_error ? `Last repair failed: ${guest.last_error}`
      : guest.state !== "active" ? guest.reason || `machine: ${guest.vm}` : "";
    text(card.why, why);
    card.why.className = `why notice ${guest.fault ? "warn" : guest.last_error ? "bad" : ""}`;
    show(card.why, Boolean(why));
    const repairing = guest.in_progress || busy.has(guest.name);
    text(card.note, repairing ? "being repaired …" : guest.abandoned ? "repair was abandoned" : guest.fault ? "stays until healed" : guest.state === "active" ? "" : "is repaired automatically");
    card.heal.disabled = repairing;
    show(card.heal, Boolean(guest.fault) || guest.state !== "active");
    show(card.foot, !card.heal.hidden || Boolean(card.note.textContent));
    text(card.heal, guest.fault ? `Heal ${guest.name}` : `Repair ${guest.name}`);
  }
}

function makeCard(name) {
  const card = {
    badge: h("span", { class: "badge" }), facts: h("dl", { class: "facts" }), why: h("p", { hidden: "" }), note: h("span"),
    heal: h("button", { type: "button", onclick: () => heal(name) }),
  };
  card.foot = h("footer", {}, card.note, card.heal);
  card.root = h("article", { class: "guest", "aria-label": `Guest ${name}`, "data-guest": name },
    h("header", {}, h("h3", {}, name), card.badge), card.facts, card.why, card.foot);
  get("guests").append(card.root);
  return card;
}

function drawTimeline() {
  const box = get("timeline"), width = Math.floor(box.clientWidth);
  if (width < 100) return;
  const until = points.at(-1)[TIME], from = until - Math.min(length, Math.max(60, until - points[0][TIME]));
  const guests = state.guests.map((guest) => guest.name);
  const focused = drawn && document.activeElement === drawn.root;
  drawn = timeline({ points, guests, from, until, width, ...lanes(state, events, from, until) });
  drawn.root.addEventListener("pointermove", (event) => point(event.clientX - drawn.root.getBoundingClientRect().left));
  drawn.root.addEventListener("pointerleave", () => point(null));
  drawn.root.addEventListener("keydown", step);
  drawn.root.addEventListener("blur", () => point(null));
  box.replaceChildren(drawn.root);
  if (focused) drawn.root.focus({ preventScroll: true });
  if (cursor !== null) readout();
  if (get("timeline-table").open) drawTable();
}

function point(x) {
  cursor = x === null || x < drawn.left ? null : drawn.from + (drawn.until - drawn.from) * (x - drawn.left) / (drawn.right - drawn.left);
  readout();
}

function step(event) {
  const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
  if (!move || !drawn.shown.length) return;
  event.preventDefault();
  const index = cursor === null ? drawn.shown.length - 1 : nearest(cursor);
  const chosen = drawn.shown[Math.max(0, Math.min(drawn.shown.length - 1, index + move))];
  cursor = chosen[TIME];
  readout();
  text(get("announce"), `${clock(chosen[TIME])}: ${readings(chosen).map((row) => row.join(" ")).join(", ")}`);
}

const nearest = (time) => drawn.shown.reduce((best, each, index) =>
  Math.abs(each[TIME] - time) < Math.abs(drawn.shown[best][TIME] - time) ? index : best, 0);

function readout() {
  for (const each of get("timeline").querySelectorAll(".readout, .cursor")) each.remove();
  if (cursor === null || !drawn.shown.length) return;
  const chosen = drawn.shown[nearest(cursor)], x = drawn.x(chosen[TIME]);
  drawn.root.append(s("line", { x1: x, x2: x, y1: 14, y2: drawn.bottom, class: "cursor" }));
  const note = h("div", { class: "readout" }, h("b", {}, clock(chosen[TIME])),
    ...readings(chosen).map(([name, value]) => h("div", {}, h("span", {}, name), h("span", {}, value))));
  get("timeline").append(note);
  note.style.left = `${x + 12 + note.offsetWidth > drawn.right ? x - 12 - note.offsetWidth : x + 12}px`;
}

function drawTable() {
  const rows = points.filter((each, index) => index % 10 === points.length % 10 || points.length < 30).slice(-60).reverse();
  table(get("timeline-table").querySelector(".scroll"), ["time", ...readings(points.at(-1)).map(([name]) => name)],
    rows.map((each) => [clock(each[TIME]), ...readings(each).map(([, value]) => value)]), "Latency and requests a second");
}

// ---- faults

function drawFaults() {
  const kinds = Object.entries(state.faults), allowed = kinds.length > 0;
  show(get("inject"), allowed);
  show(get("no-faults"), !allowed);
  text(get("no-faults"), `This node takes no injected faults. To allow them, ${state.faults_hint}.`);
  if (allowed && get("kind").options.length !== kinds.length) {
    get("kind").replaceChildren(...kinds.map(([kind]) => h("option", { value: kind }, kind)));
    get("target").replaceChildren(...state.guests.map((guest) => h("option", { value: guest.name }, guest.name)));
    get("seconds").replaceChildren(...DURATIONS.map(([value, words]) => h("option", { value }, words)));
    get("seconds").value = "0";
  }
  text(get("kind-text"), state.faults[get("kind").value] || "");
  const target = state.guests.find((guest) => guest.name === get("target").value);
  const left = target ? voting() - (target.votes ? 1 : 0) : 0, need = Number(state.vote.split("/")[0]);
  show(get("inject-warning"), allowed && left < need);
  text(get("inject-warning"), `Only ${plural(left, "other guest")} would vote, and ${need} must agree: the voter would refuse requests.`);
  get("inject-button").disabled = busy.has("inject") || Boolean(target && target.fault);
  facts(get("journal"), [
    ["durability", state.durability], ["size", size(state.journal.bytes)],
    ["not yet synced", state.journal.position === null ? "–" : size(state.journal.position - state.journal.synced)],
    ["last sync", span(state.journal.sync_last_ms === null ? null : state.journal.sync_last_ms / 1000)],
    ["longest sync", span(state.journal.sync_longest_ms === null ? null : state.journal.sync_longest_ms / 1000)],
    ["disk", state.journal.full ? `full: ${state.journal.reason}` : state.storage || "has room"],
  ]);
}

async function act(name, path, body, done) {
  busy.add(name);
  draw();
  const note = get("outcome");
  try {
    const answer = await call(path, body);
    text(note, done(answer));
    note.className = "notice good";
  } catch (error) {
    if (error.status === 401) return logIn("The session has ended.");
    text(note, error.status ? error.message : "The supervisor does not answer.");
    note.className = "notice bad";
  } finally {
    busy.delete(name);
    draw();
  }
  show(note, true);
}

const heal = (guest) => act(guest, "heal", { guest }, (answer) => `${guest}: ${answer.fault ? `${answer.fault} undone, ` : ""}votes again after ${span(answer.seconds)}.`);

function inject(event) {
  event.preventDefault();
  const kind = get("kind").value, guest = get("target").value, seconds = Number(get("seconds").value) || null;
  act("inject", "inject", { kind, guest, seconds }, () => `${guest}: ${kind} injected.`);
}

// ---- events

let listed = "";
function drawEvents() {
  const latest = events.slice(-80).reverse(), key = latest.length ? `${latest[0].id}-${latest.length}` : "none";
  if (key === listed) return;
  listed = key;
  get("events").replaceChildren(...(latest.length ? latest.map((event) => h("li", {},
    h("time", { datetime: new Date(event.time * 1000).toISOString() }, clock(event.time)),
    h("b", {}, event.guest || "node"), h("span", { class: "text" }, describe(event)))) : [h("li", {}, "none yet")]));
}

// ---- campaign

function drawCampaign() {
  const campaign = state.campaign;
  show(get("campaign"), Boolean(campaign));
  if (!campaign) return;
  const width = Math.floor(get("figure").clientWidth);
  text(get("campaign-title"), `Campaign: ${campaign.title}`);
  text(get("campaign-state"), `${campaign.state}${campaign.age > 30 ? `, no news for ${span(campaign.age)}` : ""}`);
  get("campaign-bar").max = Math.max(1, campaign.total);
  get("campaign-bar").value = campaign.done;
  const parts = [`${count(campaign.done)} of ${count(campaign.total)} missions`];
  if (campaign.rate) parts.push(`${count(campaign.rate * 3600)} an hour`);
  if (campaign.left !== null && campaign.state === "running") parts.push(`about ${span(campaign.left)} left`);
  if (campaign.excluded) parts.push(`${count(campaign.excluded)} excluded`);
  parts.push(`${plural(campaign.wrong, "mission")} with a wrong reply released by the vote`);
  text(get("campaign-text"), parts.join(", "));
  show(get("figure"), campaign.points.length + campaign.curves.length > 0);
  if (width > 100 && campaign.points.length + campaign.curves.length) get("figure").replaceChildren(figure(campaign, width));
  get("campaign-texts").replaceChildren(...(campaign.points.length ? [] : campaign.texts).map((words) => h("li", {}, words)));
  get("campaign-legend").replaceChildren(...(campaign.points.length ? [h("li", {}, sample("dot"), "measured so far, with its intervals")] : []),
    ...campaign.curves.map((curve) => h("li", {}, sample(curve.kind), curve.label)));
  if (get("figure-table").open) {
    const cell = (value) => count(value, 4);
    table(get("figure-table").querySelector(".scroll"), ["", campaign.x_label, campaign.y_label, "low", "high"],
      campaign.points.map((each) => [each.label, cell(each.x), cell(each.y), cell(each.low), cell(each.high)]), campaign.title);
  }
}

// ---- controls

const THEMES = ["system", "light", "dark"], system = matchMedia("(prefers-color-scheme: dark)");
function applyTheme() {
  const theme = localStorage.getItem("theme") || "system";
  document.documentElement.dataset.theme = theme === "system" ? (system.matches ? "dark" : "light") : theme;
  text(get("theme"), `Theme: ${theme}`);
}
function nextTheme() {
  const theme = localStorage.getItem("theme") || "system";
  localStorage.setItem("theme", THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
  applyTheme();
}

function makeControls() {
  applyTheme();
  system.addEventListener("change", applyTheme);
  get("theme").addEventListener("click", nextTheme);
  get("logout").addEventListener("click", () => call("logout", {}).then(() => logIn(""), (error) => logIn(error.message)));
  get("inject").addEventListener("submit", inject);
  get("inject").addEventListener("change", draw);
  get("timeline-table").addEventListener("toggle", draw);
  get("figure-table").addEventListener("toggle", draw);
  for (const [seconds, words] of LENGTHS) {
    const button = h("button", { type: "button", "aria-pressed": seconds === length ? "true" : "false" }, words);
    button.addEventListener("click", () => {
      length = seconds;
      for (const other of get("spans").children) other.setAttribute("aria-pressed", other === button ? "true" : "false");
      draw();
    });
    get("spans").append(button);
  }
  for (const [kind, words] of [["p50", "latency p50"], ["p99", "p99"], ...RESULTS.map(([look, , name]) => [look, name]),
    ["votes", "guest votes"], ["returns", "guest returns"], ["fault", "injected fault"], ["out", "leaves or is expelled"], ["back", "healed or repaired"]]) {
    get("legend").append(h("li", {}, sample(kind), words));
  }
  new ResizeObserver(draw).observe(get("timeline"));
  document.addEventListener("visibilitychange", () => {
    clearTimeout(sleeping);
    if (document.hidden) sleeping = setTimeout(close, ASLEEP);
    else if (!stream && get("login").hidden) connect();
    else draw();
  });
  addEventListener("hashchange", start);
  setInterval(() => {
    if (stream && !document.hidden && Date.now() - heard > SILENCE) explain();
  }, 3000);
}

makeControls();
start();
