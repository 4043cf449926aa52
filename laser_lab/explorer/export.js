// What can be taken away: the view as a Python call, its numbers as CSV, its charts as SVG.

/** A Python literal. */
const python = (value) =>
  value === null || value === undefined
    ? "None"
    : Array.isArray(value)
      ? `[${value.map(python).join(", ")}]`
      : typeof value === "object"
        ? `{${Object.entries(value).map(([key, part]) => python(key) + ": " + python(part)).join(", ")}}`
        : JSON.stringify(value);

/** The call that reproduces the view; `given` names what explore() was given beside model and corpus. */
function codeFor({ base, second, k, docs, pins }, given) {
  const shown = [python(base.query), `thinking_steps=${k}`];
  if (second?.change) {
    const { step, kind, value, strength, mode } = second.change;
    const more = strength !== 1 || mode !== "interpolate" ? `, ${strength}, ${python(mode)}` : "";
    shown.push(`change=Change(${step}, ${python(kind)}, ${python(value)}${more})`);
  } else if (second) shown.push(`beside=${python(second.beside)}`);
  if (docs.length || pins.length) shown.push(`selection=${python({ documents: docs, tokens: pins })}`);
  const imports = second?.change ? "from laser_lab.explorer import Change\n\n" : "";
  const explored = ["model", "corpus", ...given.map((name) => `${name}=${name}`)];
  return `${imports}ll.explore(${explored.join(", ")}).show(${shown.join(", ")})`;
}

const NEEDS_QUOTES = new RegExp('[",\\n\\r]');

/** The documents that are shown, for every K, in both columns. */
function csvFor({ base, second }) {
  const text = (value) => String(value);
  const quote = (value) => (NEEDS_QUOTES.test(value) ? '"' + text(value).replaceAll('"', '""') + '"' : text(value));
  const rows = [["column", "query", "thinking_steps", "rank", "doc_id", "document", "score", "relevant"]];
  for (const answer of [base, second].filter(Boolean))
    for (const d of answer.documents)
      d.ranks.forEach((rank, i) => {
        if (rank === null) return;
        const column = answer === base ? "as thought" : answer.label;
        rows.push([column, answer.query, i + 1, rank, d.id, d.text, d.scores[i], d.relevant]);
      });
  return rows.map((row) => row.map(quote).join(",")).join("\n") + "\n";
}

const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-weight", "font-family", "paint-order"];

/** A chart as a file of its own: its style sheet written into its elements, a canvas behind it as an image. */
function svgFor(chart, canvas) {
  const copy = chart.cloneNode(true);
  const [from, to] = [chart, copy].map((node) => [node, ...node.querySelectorAll("*")]);
  from.forEach((node, i) => {
    const style = getComputedStyle(node);
    to[i].removeAttribute("class");
    for (const name of DRAWN) to[i].setAttribute(name, style.getPropertyValue(name));
  });
  const [, , width, height] = chart.getAttribute("viewBox").split(" ");
  copy.setAttribute("xmlns", SVG);
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  if (canvas) copy.prepend(s("image", { href: canvas.toDataURL(), width, height }));
  return new XMLSerializer().serializeToString(copy);
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

/** Every chart of a card, as files. */
function downloadCharts(card, part) {
  const charts = [...card.querySelectorAll("svg")];
  charts.forEach((chart, i) => {
    const canvas = chart.parentElement.querySelector("canvas");
    const number = charts.length > 1 ? `-${i + 1}` : "";
    download(`explorer-${part}${number}.svg`, "image/svg+xml", svgFor(chart, canvas));
  });
}

function exportForm(view) {
  const button = (name, text, action) => h("button", { type: "button", class: name, onclick: action }, text);
  view.code = h("pre", { class: "le-code", hidden: true, tabindex: 0, "aria-label": "The call that reproduces this view" });
  const copy = async () => {
    view.code.textContent = codeFor(view.state, view.settings.given);
    view.code.hidden = false;
    try {
      await navigator.clipboard.writeText(view.code.textContent);
      view.status.textContent = "Copied.";
    } catch {
      view.status.textContent = "Copy the call below the buttons."; // no permission to write to the clipboard
      view.code.focus();
    }
  };
  view.exports = h(
    "div",
    { class: "le-form le-exports" },
    button("le-copy", "Copy as code", copy),
    button("le-csv", "Download CSV", () => download("explorer.csv", "text/csv", csvFor(view.state))),
  );
  return [view.exports, view.code];
}
