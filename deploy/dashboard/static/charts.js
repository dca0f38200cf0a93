// Charts, drawn as SVG. Each returns its element; nothing keeps state between two drawings.

import { clock, count, plural, rate, s, span } from "./dom.js";

// A point of the node's history (deploy/dashboard/rates.py).
export const TIME = 0, SECONDS = 1, UNANIMOUS = 2, MAJORITY = 3, REJECTED = 4, FAILED = 5, P50 = 6, P99 = 7;

export const RESULTS = [
  ["unanimous", UNANIMOUS, "unanimous", "released while all guests voted and agreed"],
  ["majority", MAJORITY, "by majority", "released although a guest dissented or did not vote: masked"],
  ["refused", REJECTED, "rejected", "refused before any guest executed it"],
  ["failed", FAILED, "failed", "no majority, or no answer in time: the outcome is unknown"],
];

const released = (point) => point[UNANIMOUS] + point[MAJORITY];
const total = (point) => released(point) + point[REJECTED] + point[FAILED];
export const perSecond = (point) => (point[SECONDS] ? total(point) / point[SECONDS] : null);

// A small line of the latest values, without axes.
export function spark(values, look) {
  const width = 120, height = 26, most = Math.max(1e-9, ...values.filter((value) => value !== null));
  const step = width / Math.max(1, values.length - 1);
  const path = lines(values.map((value, index) => value === null ? null : [index * step, height - 2 - (height - 4) * value / most]));
  return s("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    s("path", { d: path, class: look, "vector-effect": "non-scaling-stroke" }));
}

function lines(places) {
  let pen = "M", path = "";
  for (const place of places) {
    if (place === null) { pen = "M"; continue; }
    path += `${pen}${place[0].toFixed(1)} ${place[1].toFixed(1)}`;
    pen = "L";
  }
  return path;
}

// The sample of a legend: what a mark looks like, with its word beside it.
export function sample(kind) {
  const shapes = {
    p50: () => s("path", { d: "M0 6H18", class: "p50" }),
    p99: () => s("path", { d: "M0 6H18", class: "p99" }),
    fault: () => s("rect", { width: 18, height: 12, class: "fault" }),
    out: () => s("text", { x: 9, y: 6, class: "sign out" }, "✕"),
    back: () => s("text", { x: 9, y: 6, class: "sign back" }, "▲"),
    dot: () => s("circle", { cx: 9, cy: 6, r: 4.5, class: "dot" }),
    returns: () => s("rect", { y: 2, width: 18, height: 8, class: "returns" }),
    votes: () => s("rect", { y: 2, width: 18, height: 8, class: "votes" }),
    paper: () => s("path", { d: "M0 6H18", class: "paper" }),
    measured: () => s("path", { d: "M0 6H18", class: "measured" }),
  };
  const shape = shapes[kind] ? shapes[kind]() : s("rect", { x: 3, width: 12, height: 12, class: kind });
  return s("svg", { viewBox: "0 0 18 12", "aria-hidden": "true" }, shape);
}

const LANE = 28, TOP = 18, LATENCY = 150, GAP = 26, RATES = 64, FOOT = 22;

// Latency over time, requests a second by result, and a lane for each guest.
export function timeline({ points, guests, spans, marks, faults, from, until, width }) {
  const left = width < 520 ? 44 : 56, right = width - 8;
  const x = (time) => left + (right - left) * (Math.min(until, Math.max(from, time)) - from) / (until - from);
  const shown = points.filter((point) => point[TIME] >= from);
  const lanesAt = TOP + LATENCY + GAP + RATES + 14;
  const height = lanesAt + guests.length * LANE + FOOT;
  const root = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0" });
  root.append(s("defs", {}, s("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    s("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "hatch" }))));

  for (const fault of faults) {
    const begin = x(fault.from), end = Math.max(x(fault.until), begin + 2);
    root.append(s("rect", { x: begin, y: TOP, width: end - begin, height: height - FOOT - TOP, class: "fault" }));
    for (const edge of fault.open ? [begin] : [begin, end]) {
      root.append(s("line", { x1: edge, x2: edge, y1: TOP, y2: height - FOOT, class: "fault-edge" }));
    }
  }
  const latency = logScale(shown.flatMap((point) => [point[P50], point[P99]]), TOP, TOP + LATENCY);
  for (const { value, major } of latency.ticks) {
    root.append(s("line", { x1: left, x2: right, y1: latency.y(value), y2: latency.y(value), class: major ? "grid" : "grid minor" }));
    if (major) root.append(s("text", { x: left - 6, y: latency.y(value) + 4, class: "axis", "text-anchor": "end" }, span(value)));
  }
  root.append(s("text", { x: left, y: 11, class: "axis" }, "latency, p50 and p99 (log scale)"));
  const known = shown.filter((point) => point[P50] !== null);
  const place = (point, field) => point[field] === null ? null : [x(point[TIME]), latency.y(point[field])];
  for (const run of runs(shown)) {
    const up = run.map((point) => place(point, P99)), down = run.map((point) => place(point, P50)).reverse();
    root.append(s("path", { d: `${lines([...up, ...down])}Z`, class: "between" }));
  }
  root.append(s("path", { d: lines(shown.map((point) => place(point, P99))), class: "p99" }));
  root.append(s("path", { d: lines(shown.map((point) => place(point, P50))), class: "p50" }));

  const base = TOP + LATENCY + GAP + RATES;
  const most = niceTop(Math.max(1, ...shown.map((point) => perSecond(point) ?? 0)));
  for (const value of [0, most / 2, most]) {
    const y = base - RATES * value / most;
    root.append(s("line", { x1: left, x2: right, y1: y, y2: y, class: "grid" }));
    root.append(s("text", { x: left - 6, y: y + 4, class: "axis", "text-anchor": "end" }, count(value, 1)));
  }
  root.append(s("text", { x: left, y: base - RATES - 7, class: "axis" }, "requests a second, by result"));
  for (const [look, field] of RESULTS) {
    const below = (point) => [UNANIMOUS, MAJORITY, REJECTED, FAILED].filter((each) => each < field).reduce((sum, each) => sum + point[each], 0);
    let path = "";
    for (const point of shown) {
      if (!point[SECONDS] || !point[field]) continue;
      const begin = x(point[TIME] - point[SECONDS]), end = Math.max(x(point[TIME]), begin + 1);
      const foot = base - RATES * below(point) / point[SECONDS] / most;
      const tall = Math.max(1, RATES * point[field] / point[SECONDS] / most);
      path += `M${begin.toFixed(1)} ${foot.toFixed(1)}H${end.toFixed(1)}v${(-tall).toFixed(1)}H${begin.toFixed(1)}Z`;
    }
    root.append(s("path", { d: path, class: look }));
  }

  guests.forEach((name, index) => {
    const y = lanesAt + index * LANE + LANE / 2;
    root.append(s("text", { x: left - 6, y: y + 4, class: "axis", "text-anchor": "end" }, name));
    root.append(s("line", { x1: left, x2: right, y1: y, y2: y, class: "away" }));
    for (const each of spans.filter((each) => each.guest === name)) {
      const begin = x(each.from), end = x(each.until);
      if (end <= begin || each.look === "away") continue;
      root.append(s("rect", { x: begin, y: y - 4, width: Math.max(1, end - begin), height: 8, rx: 1.5, class: each.look },
        s("title", {}, `${name}: ${each.state}`)));
    }
    for (const fault of faults.filter((each) => each.guest === name)) {
      root.append(s("text", { x: Math.min(x(fault.from) + 4, right - 60), y: y - 7.5, class: "fault-name" }, fault.kind));
    }
    for (const mark of marks.filter((each) => each.guest === name && each.time >= from)) {
      root.append(s("text", { x: x(mark.time), y: y, class: `sign ${mark.look}` }, mark.sign, s("title", {}, `${clock(mark.time)} ${name}: ${mark.text}`)));
    }
  });
  const every = [5, 10, 20, 30, 60, 120, 300].find((each) => (until - from) / each <= (width < 520 ? 3.5 : 7));
  for (let time = Math.ceil(from / every) * every; time <= until; time += every) {
    const place = x(time);
    root.append(s("line", { x1: place, x2: place, y1: height - FOOT, y2: height - FOOT + 4, class: "grid" }));
    if (place > left + 20 && place < right - 22) root.append(s("text", { x: place, y: height - 6, class: "axis", "text-anchor": "middle" }, clock(time)));
  }
  const last = known.at(-1);
  root.setAttribute("aria-label", `Timeline of the last ${span(until - from)}: `
    + (last ? `latency now p50 ${span(last[P50])}, p99 ${span(last[P99])}; highest p99 ${span(Math.max(...known.map((point) => point[P99])))}; ` : "no request; ")
    + `${plural(faults.length, "fault")}, ${plural(marks.filter((mark) => mark.look === "out" && mark.time >= from).length, "departure")} from the vote, `
    + `${plural(marks.filter((mark) => mark.look === "back" && mark.time >= from).length, "return")}. Arrow keys move through the samples.`);
  return { root, x, from, until, left, right, bottom: height - FOOT, shown };
}

// Stretches of points in which a latency is known.
function runs(points) {
  const found = [];
  let open = false;
  for (const point of points) {
    if (point[P50] === null) open = false;
    else if (open) found.at(-1).push(point);
    else { found.push([point]); open = true; }
  }
  return found;
}

function logScale(values, top, bottom) {
  const known = values.filter((value) => value !== null);
  let low = known.length ? Math.min(...known) : 1e-3, high = known.length ? Math.max(...known) : 1e-1;
  low = 10 ** Math.floor(Math.log10(low) + 1e-9);
  high = 10 ** Math.ceil(Math.log10(high) - 1e-9);
  if (high <= low) high = low * 10;
  const y = (value) => bottom - (bottom - top) * Math.log10(value / low) / Math.log10(high / low);
  const ticks = [], few = high / low <= 100;
  for (let decade = low; decade <= high * 1.001; decade *= 10) {
    ticks.push({ value: decade, major: true });
    if (few && decade < high * 0.9) for (const part of [2, 5]) ticks.push({ value: decade * part, major: false });
  }
  return { y, ticks };
}

function niceTop(value) {
  const decade = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 8, 10].map((part) => part * decade).find((each) => each >= value);
}

// What one point says, as [name, value] rows.
export function readings(point) {
  return [
    ["p50", span(point[P50])], ["p99", span(point[P99])],
    ...RESULTS.map(([, field, name]) => [name, point[SECONDS] ? `${rate(point[field] / point[SECONDS])}/s` : "–"]),
  ];
}

// A campaign's figure: the paper's curve, measured points with their intervals, measured bands.
export function figure(campaign, width) {
  width = Math.min(width, 760);
  const height = Math.min(380, Math.max(260, width * 0.5)), left = 62, right = width - 14, top = 22, bottom = height - 40;
  const root = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const places = [...campaign.points, ...campaign.curves.flatMap((curve) => curve.points)];
  const xs = places.flatMap((each) => [each.x, each.x_low ?? each.x, each.x_high ?? each.x]);
  const ys = [...campaign.points.flatMap((each) => [each.low, each.high]), ...campaign.curves.flatMap((curve) => curve.points.map((each) => each.y))];
  const [x, xTicks] = linear(xs, left, right), [y, yTicks] = linear(ys, bottom, top);
  for (const tick of yTicks) {
    root.append(s("line", { x1: left, x2: right, y1: y(tick), y2: y(tick), class: "grid" }));
    root.append(s("text", { x: left - 7, y: y(tick) + 4, class: "axis", "text-anchor": "end" }, count(tick, 4)));
  }
  for (const tick of xTicks) {
    root.append(s("line", { x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4, class: "grid" }));
    root.append(s("text", { x: x(tick), y: bottom + 17, class: "axis", "text-anchor": "middle" }, count(tick, 3)));
  }
  root.append(s("text", { x: left, y: 12, class: "axis" }, campaign.y_label));
  root.append(s("text", { x: right, y: height - 6, class: "axis", "text-anchor": "end" }, campaign.x_label));
  const clip = (value) => Math.min(bottom + 2, Math.max(top - 2, value));
  for (const curve of campaign.curves) {
    if (curve.kind === "measured") {
      const up = curve.points.map((each) => [x(each.x), clip(y(each.high))]);
      const down = curve.points.map((each) => [x(each.x), clip(y(each.low))]).reverse();
      root.append(s("path", { d: `${lines([...up, ...down])}Z`, class: "between" }));
    }
    root.append(s("path", { d: lines(curve.points.map((each) => [x(each.x), clip(y(each.y))])), class: curve.kind }));
  }
  for (const each of campaign.points) {
    root.append(s("line", { x1: x(each.x), x2: x(each.x), y1: clip(y(each.low)), y2: clip(y(each.high)), class: "spread" }));
    if (each.x_low !== null) root.append(s("line", { x1: x(each.x_low), x2: x(each.x_high), y1: y(each.y), y2: y(each.y), class: "spread" }));
    root.append(s("circle", { cx: x(each.x), cy: y(each.y), r: 4.5, class: "dot" }, s("title", {}, each.label)));
  }
  root.setAttribute("aria-label", `${campaign.y_label} over ${campaign.x_label}: ${plural(campaign.points.length, "measured point")} with intervals, `
    + campaign.curves.map((curve) => curve.label).join(", "));
  return root;
}

// A linear scale with a margin, and round ticks.
function linear(values, begin, end) {
  let low = Math.min(...values), high = Math.max(...values);
  if (!(high > low)) { low -= 0.05; high = low + 0.1; }
  const margin = (high - low) * 0.04, rough = (high - low) / 5, decade = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((part) => part * decade).find((each) => each >= rough);
  low -= margin; high += margin;
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-12; tick += step) ticks.push(Math.round(tick / step) * step || 0);
  return [(value) => begin + (end - begin) * (value - low) / (high - low), ticks];
}
