// Small helpers to build and change the page. Text is always set as text, so nothing that comes from a key, a value or
// a worker can become markup.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** An HTML element. A child that is a string becomes text. */
export function h(name, attributes = {}, ...children) {
  return build(document.createElement(name), attributes, children);
}

/** An SVG element. */
export function s(name, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, name), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

/** Set a node's text, if it has another one: a screen reader is not told of what stays the same. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Put these children in place of all that the node has. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
}

/** Calls `draw` only when what it is given differs from the last time. */
export function whenChanged(draw) {
  let last;
  return (...given) => {
    const now = JSON.stringify(given);
    if (now !== last) {
      last = now;
      draw(...given);
    }
  };
}

const counts = new Intl.NumberFormat("en-US");

export function count(number) {
  return number === null || number === undefined ? "unknown" : counts.format(number);
}

/** A rate, a duration or the like, with three digits that matter. */
export function figure(number) {
  if (number === null || number === undefined) return "–";
  if (number === 0) return "0";
  return number >= 100 ? counts.format(Math.round(number)) : String(Number(number.toPrecision(3)));
}

export function bytes(number) {
  if (number === null || number === undefined) return "unknown";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${figure(number)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h`;
}
