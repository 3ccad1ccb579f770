// `h` makes elements. Every text becomes a text node, never markup: models write hostile HTML too.

const SVG = "http://www.w3.org/2000/svg";

/** Returns an element of HTML. Properties are attributes, or `on: {click: ...}` for listeners. */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** Returns an element of SVG. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) {
        element.addEventListener(event, listener);
      }
    } else if (name === "value") {
      element.value = value;
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Replaces what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined));
}

/** Sets a text, and leaves the document alone where it is the same. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Says something to people who cannot see the page. */
export function announce(text) {
  const region = document.getElementById("announcements");
  // The same text twice in a row is announced twice.
  region.textContent = region.textContent === text ? text + "\u00a0" : text;
}

let ids = 0;

/** Returns an id that no other element has. */
export function freshId(prefix = "id") {
  ids += 1;
  return `${prefix}-${ids}`;
}

/** Returns a text that only screen readers speak. */
export function spoken(text) {
  return h("span", { class: "hidden-text" }, text);
}
