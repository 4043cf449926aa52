// Elements and texts. All text enters the page as text nodes, so no query, token or document can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: attributes by name, on* as listeners, then children (strings become text). */
function h(tag, attributes = {}, ...children) {
  // JupyterLab's shortcuts (arrows, letters) match the very element in focus, so each one is to be spared.
  const spared = ["input", "select", "button", "td"].includes(tag) ? { "data-lm-suppress-shortcuts": "true" } : {};
  return fill(document.createElement(tag), { ...spared, ...attributes }, children);
}

function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const readable = (token) => {
  const inner = token.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "␣";
  const shown = inner.replace(/\r\n|\r|\n/g, "⏎").replace(/\t/g, "⇥");
  return shown.replace(
    /[\p{C}\p{Zl}\p{Zp}]/gu,
    (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0"),
  );
};
const clip = (text, length) => ([...text].length > length ? [...text].slice(0, length - 1).join("") + "…" : text);
const percent = (p) => (p >= 0.0995 ? Math.round(100 * p) : p >= 0.001 ? (100 * p).toFixed(1) : "<0.1") + "\u00a0%";
/** Enter in a field; said in so many words, for JupyterLab keeps forms from being submitted by it. */
const onEnter = (action) => (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  action();
};

function range(first, last) {
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}

/** Class names, without those that are not there. */
function classes(...names) {
  return names.filter(Boolean).join(" ");
}
