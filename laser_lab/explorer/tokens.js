// What each step says, as a heat map: rows are steps, columns ranks.

/** One tab stop; arrows move, Enter follows the token and takes it for an intervention. */
function heatMap(view, answer, part) {
  const columns = Math.max(...answer.tokens.map((step) => step.length));
  const table = h(
    "table",
    { class: "le-heat", role: "grid" },
    h("caption", { class: "le-hidden" }, "Most probable tokens of every thinking step, best first"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "step"),
        range(1, columns).map((rank) => h("th", { scope: "col" }, rank)),
      ),
    ),
    h(
      "tbody",
      {},
      answer.tokens.map((tokens, row) => heatRow(view, answer, tokens, row, part, columns)),
    ),
  );
  table.addEventListener("keydown", moveInGrid);
  return table;
}

function heatRow(view, answer, tokens, row, part, columns) {
  const k = row + 1;
  const replaced = answer.change?.step === k;
  const out = replaced && answer.change.kind === "knock-out";
  const mark = { class: "le-mark", title: out ? "not pooled, and not fed back" : "not fed back as it was: changed" };
  const over = k > answer.taken;
  return h(
    "tr",
    {
      class: classes(k > view.state.k && "le-later", replaced && "le-replaced", out && "le-out", over && "le-over"),
    },
    h("th", { scope: "row" }, k, replaced && h("span", mark, out ? " ✕" : " ⇄")),
    over
      ? h("td", { colspan: columns, class: "le-none" }, k === answer.taken + 1 ? "the thought has ended" : "–")
      : tokens.map((token, rank) => heatCell(view, token, k, rank, part)),
  );
}

function heatCell(view, token, k, rank, part) {
  const take = view.host.live && k < view.settings.steps;
  const cell = h(
    "td",
    {
      class: token.p >= 0.8 ? "le-strong" : "",
      title: `${readable(token.text)}: ${percent(token.p)} · click to follow it` + (take ? " and to feed it back" : ""),
      tabindex: k === 1 && rank === 0 ? 0 : -1,
      "data-key": `${part} ${k - 1} ${rank}`,
      onclick: () => view.choose(k, token),
    },
    h("span", { class: "le-token" }, clip(readable(token.text), 14)),
    h("span", { class: "le-p" }, percent(token.p)),
  );
  cell.style.setProperty("--p", token.p);
  return cell;
}

const ARROWS = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };

/** Arrow keys move the tab stop among a table's cells; Enter and space click. */
function moveInGrid(event) {
  const cell = event.target.closest("td");
  if (!cell) return;
  const body = cell.parentElement.parentElement;
  const [row, column] = [[...body.children].indexOf(cell.parentElement), cell.cellIndex];
  const [down, right] = ARROWS[event.key] ?? [0, 0];
  if (event.key === "Enter" || event.key === " ") cell.click();
  else if (!down && !right) return;
  else {
    const next = body.children[row + down]?.cells[column + right];
    if (next?.tagName === "TD" && next.dataset.key) {
      cell.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
  }
  event.preventDefault();
}
