// The effect of every kind of change at every step on the rank of the relevant (or first) document, at K.

function effectCard(view) {
  const { effects, base, k } = view.state;
  const { kinds } = view.settings;
  if (!effects)
    return h(
      "p",
      {},
      h("button", { type: "button", class: "le-compute", onclick: () => view.computeEffects() }, "Compute the effects"),
      h("span", { class: "le-quiet" }, " of every kind of change at every step, with the strength chosen above."),
    );
  const { found } = effects;
  const failed = found.filter(({ problem }) => problem);
  const rows = [...new Set(effects.changes.map((change) => change.step))];
  const columns = Object.keys(kinds).filter((kind) => effects.changes.some((change) => change.kind === kind));
  const find = (step, kind) => found.find(({ change }) => change.step === step && change.kind === kind);
  const table = h(
    "table",
    { class: "le-heat le-effects", role: "grid" },
    h("caption", { class: "le-hidden" }, `Change in rank at K = ${k} by step and kind of change`),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "step"),
        columns.map((kind) => h("th", { scope: "col", title: kinds[kind] }, kind)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map((step) =>
        h(
          "tr",
          { class: classes(step >= k && "le-later", step >= base.taken && "le-over") },
          h("th", { scope: "row" }, step, step === base.taken && h("span", { class: "le-ending" }, " ended")),
          columns.map((kind, i) => effectCell(view, find(step, kind), step, kind, step === rows[0] && i === 0)),
        ),
      ),
    ),
  );
  table.addEventListener("keydown", moveInGrid);
  const bar = { max: effects.changes.length, value: found.length, "aria-label": "Effects computed" };
  const target = base.judged ? "the relevant document" : "the document that was first";
  return [
    found.length < effects.changes.length && h("p", {}, h("progress", bar), ` ${found.length} of ${effects.changes.length}`),
    failed.length > 0 && h("p", { class: "le-failures" }, `${failed.length} failed: ${failed[0].problem}`),
    h("p", { class: "le-quiet" }, `Change in the rank of ${target} at K = ${k}: ▲ better, ▼ worse. Choose a cell to apply it. ${unread(base, view.settings.steps)}`),
    table,
  ];
}

/** What soft tokens after the end do. */
const unread = (base, steps) => (base.taken < steps ? `${ending(base, steps)} Soft tokens from there on are fed back to nobody.` : "");

function effectCell(view, effect, step, kind, first) {
  const { k } = view.state;
  const key = `effect ${step} ${kind}`;
  if (!effect) return h("td", { class: "le-none", tabindex: first ? 0 : -1, "data-key": key }, "…");
  if (effect.problem) return h("td", { class: "le-none", "data-key": key, title: effect.problem }, "failed");
  const [was, is] = [effect.before[k - 1], effect.after[k - 1]];
  const moved = is === null ? null : was - is;
  const share = moved ? Math.min(1, Math.log10(1 + Math.abs(moved)) / 3) : 0;
  const node = h(
    "td",
    {
      class: classes("le-effect-cell", moved < 0 && "le-worse", moved > 0 && "le-better"),
      tabindex: first ? 0 : -1,
      title: `${effect.change.label}: ${is === null ? "nothing is left to pool" : `rank ${was} to ${is}`}`,
      "data-key": key,
      "data-moved": moved,
      onclick: () => view.apply(effect.change),
    },
    moved === null ? "none" : moved === 0 ? "=" : `${moved > 0 ? "▲" : "▼"}${Math.abs(moved)}`,
  );
  node.style.setProperty("--p", share);
  return node;
}
