// What every layer would say at every step: a grid of layers × steps, and the ten nearest tokens of one cell.

const COLOURS = { probability: "probability", rank: "rank of the last layer's token", entropy: "entropy" };

/** How strongly a cell is coloured, from 0 to 1. */
function shade(cell, by, vocabulary) {
  if (by === "probability") return cell.tokens[0].p;
  const most = Math.log(vocabulary);
  return by === "rank" ? 1 - Math.log(cell.rank) / most : 1 - cell.entropy / most;
}

/** What stands under the token in a cell. */
function told(cell, by) {
  if (by === "probability") return percent(cell.tokens[0].p);
  return by === "rank" ? `rank ${cell.rank}` : figure(cell.entropy);
}

function layerCard(view) {
  const { state, settings, name } = view;
  const pick = (id, label, options, value, action) => {
    const select = h(
      "select",
      { id: `${name}-${id}`, class: `le-${id}`, onchange: () => action(select.value) },
      Object.entries(options).map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
    );
    return h("span", { class: "le-field" }, h("label", { for: select.id }, label), select);
  };
  if (!state.layersOn)
    return h(
      "p",
      {},
      h("button", { type: "button", class: "le-read-layers", onclick: () => view.readLayers(true) }, "Read every layer"),
      h("span", { class: "le-quiet" }, " What each layer would say, by the logit lens."),
    );
  const controls = h(
    "div",
    { class: "le-form" },
    pick("lens", "Read by", settings.lenses, state.lens, (lens) => view.readLayers(true, lens)),
    pick("shade", "Colour by", COLOURS, state.shade, (by) => view.set({ shade: by })),
  );
  const grid = (answer, part, title) =>
    answer && h("div", {}, title && h("h3", {}, title), layerGrid(view, answer, part), cellTokens(view, answer, part));
  const [base, second] = state.layers ?? [];
  const waiting = h("p", { class: "le-quiet" }, "Reading …");
  return [
    controls,
    base ? grid(base, "layer", second && "As thought") : waiting,
    state.second && (second ? grid(second, "layer-second", state.second.label) : base && lacking(view)),
  ];
}

function lacking(view) {
  return h("p", { class: "le-quiet" }, view.state.layersProblem ?? "");
}

/** Rows are layers, the last one on top; columns are steps. */
function layerGrid(view, answer, part) {
  const { state } = view;
  const cell = (found, layer, k) => {
    const key = `${part} ${layer} ${k}`;
    if (!found) return h("td", { class: classes("le-none", answer.cells[layer][k - 2] && "le-after") }, "–");
    const share = shade(found, state.shade, answer.vocabulary);
    const node = h(
      "td",
      {
        class: classes(share >= 0.8 && "le-strong", state.cell === key && "le-chosen"),
        tabindex: layer === answer.cells.length - 1 && k === 1 ? 0 : -1,
        title: `layer ${layer}, step ${k}: ${readable(found.tokens[0].text)}, ${percent(found.tokens[0].p)}, entropy ${figure(found.entropy)}, rank ${found.rank} of the last layer's token`,
        "data-key": key,
        onclick: () => view.set({ cell: state.cell === key ? null : key }),
      },
      h("span", { class: "le-token" }, clip(readable(found.tokens[0].text), 12)),
      h("span", { class: "le-p" }, told(found, state.shade)),
    );
    node.style.setProperty("--p", Math.max(0, Math.min(1, share)));
    return node;
  };
  const rows = answer.cells.map((row, layer) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, layer),
      row.map((found, i) => cell(found, layer, i + 1)),
    ),
  );
  const table = h(
    "table",
    { class: "le-heat le-layers", role: "grid" },
    h("caption", { class: "le-hidden" }, "Top token of every layer, the last one first, at every thinking step"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "layer"),
        answer.cells[0].map((found, i) => {
          const over = !found && answer.cells[0][i - 1] && h("span", { class: "le-ending" }, " ended");
          return h("th", { scope: "col" }, i === 0 ? "step 1" : i + 1, over);
        }),
      ),
    ),
    h("tbody", {}, rows.reverse()),
  );
  table.addEventListener("keydown", moveInGrid);
  return table;
}

/** The ten nearest tokens of the chosen cell. */
function cellTokens(view, answer, part) {
  const [of, layer, k] = (view.state.cell ?? "").split(" ");
  const cell = of === part && answer.cells[layer]?.[k - 1];
  if (!cell) return h("p", { class: "le-quiet" }, "Choose a cell to see its ten nearest tokens.");
  return h(
    "div",
    { class: "le-nearest", role: "group", "aria-label": `Nearest tokens at layer ${layer}, step ${k}` },
    h("span", {}, `Layer ${layer}, step ${k}:`),
    cell.tokens.map((token) =>
      h(
        "button",
        { type: "button", class: "le-chip", "data-key": `near ${token.name}`, onclick: () => view.pin(token.name) },
        clip(readable(token.text), 24),
        h("span", { class: "le-quiet" }, ` ${percent(token.p)}`),
      ),
    ),
  );
}
