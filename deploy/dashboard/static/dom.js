// Elements and texts. Everything that comes from the node enters the page as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

// Make an element: attributes as an object, then children (nodes or texts).
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// Make an SVG element.
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const get = (id) => document.getElementById(id);

// Change a text only if it differs: nothing is redrawn, or read aloud, without need.
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

// Fill a definition list with [name, value] rows, reusing its elements.
export function facts(list, rows) {
  while (list.children.length > rows.length) list.lastElementChild.remove();
  rows.forEach(([name, value], index) => {
    let row = list.children[index];
    if (!row) list.append((row = h("div", {}, h("dt"), h("dd"))));
    text(row.firstElementChild, name);
    text(row.lastElementChild, value);
  });
}

// Fill a table: a row of titles, then rows of texts.
export function table(place, titles, rows, caption) {
  place.replaceChildren(
    h("table", {}, h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, ...titles.map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell)))))),
  );
}

const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
export const clock = (seconds) => clockFormat.format(new Date(seconds * 1000));

const round = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits });

// A duration with its unit: 0.00042 is "420 µs".
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  for (const [unit, size] of [["h", 3600], ["min", 60], ["s", 1], ["ms", 1e-3]]) {
    if (seconds >= size * (size >= 60 ? 1.5 : 1)) {
      const value = seconds / size;
      return `${round(value, size >= 60 ? 1 : value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit}`;
    }
  }
  return `${round(seconds * 1e6, 0)} µs`;
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  for (const [unit, width] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (bytes >= width) return `${round(bytes / width, bytes < 10 * width ? 1 : 0)} ${unit}`;
  }
  return `${bytes} B`;
}

export const count = (value, digits = 0) =>
  value === null || value === undefined ? "–" : round(value, digits);

// A rate: one digit after the point below 10.
export const rate = (value) => (value === null ? "–" : count(value, value < 10 ? 1 : 0));

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
