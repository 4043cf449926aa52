// The ranking: a list at K, a line per document over all K, and what a change did, in one sentence.

/** Where a thought ended, in one sentence; empty where it did not. */
const ending = ({ taken }, steps) => (taken < steps ? `The thought ended at step ${taken}.` : "");

/** The first documents at K, then the relevant ones further down. */
function list(view, answer, before) {
  const at = (d) => d.ranks[view.state.k - 1];
  if (at(answer.documents[0]) === null)
    return h("p", { class: "le-quiet" }, "Nothing is left to pool: the only step was knocked out.");
  const rows = answer.documents
    .filter((d) => at(d) <= view.settings.top || d.relevant || view.selected(d.id))
    .sort((a, b) => at(a) - at(b));
  return h(
    "ol",
    { class: "le-list" },
    rows.map((d) => listRow(view, d, before)),
  );
}

function listRow(view, d, before) {
  const { k } = view.state;
  const rank = d.ranks[k - 1];
  const name = {
    type: "button",
    class: "le-doc",
    title: d.text,
    "data-key": `${before ? "changed" : "base"} ${d.id}`,
    "aria-pressed": String(view.selected(d.id)),
    onclick: () => view.select(d.id),
  };
  const star = h("span", { class: "le-star" }, "★", h("span", { class: "le-hidden" }, " relevant: "));
  return h(
    "li",
    {
      class: classes(d.relevant && "le-relevant", rank > view.settings.top && "le-below"),
      "data-doc": d.id,
      "data-rank": rank,
    },
    h("span", { class: "le-rank" }, rank),
    h("button", name, d.relevant && star, d.text),
    before && movement(d.before[k - 1], rank),
    h("span", { class: "le-score" }, d.scores[k - 1].toFixed(3)),
  );
}

function movement(was, is) {
  const moved = was - is;
  return h(
    "span",
    { class: `le-moved ${moved > 0 ? "le-up" : moved < 0 ? "le-down" : ""}` },
    moved === 0 ? "=" : `${moved > 0 ? "▲" : "▼"}${Math.abs(moved)}`,
    h("span", { class: "le-hidden" }, ` was ${was}`),
  );
}

/** How wide a card's chart is, from 280 to 640 pixels. */
function columnWidth(view) {
  const all = view.results.clientWidth || 640;
  return Math.round(Math.max(280, Math.min(640, all > 736 ? (all - 20) / 2 : all)));
}

/** A line per document over K: the first ranks, and lanes below for relevant documents further down. */
function bump(view, answer) {
  const { steps, top } = view.settings;
  const { width } = view; // one unit is one pixel, so that letters keep their size
  const [left, right, up, gap] = width < 480 ? [34, 104, 24, 27] : [46, 146, 24, 29];
  const order = (d) => (view.selected(d.id) ? 2 : d.relevant ? 1 : 0);
  const drawn = answer.documents
    .filter((d) => order(d) > 0 || d.ranks.some((rank) => rank !== null && rank <= top))
    .sort((a, b) => order(a) - order(b));
  // A lane for each document that is to stay in sight; from the fourth on they share one.
  const kept = drawn.filter((d) => order(d) > 0 && d.ranks.some((rank) => rank > top)).map((d) => d.id);
  const lanes = Math.min(kept.length, 4);
  const height = up + gap * (top - 1 + lanes) + 14;
  const x = (k) => left + ((k - 1) / Math.max(1, steps - 1)) * (width - left - right);
  const y = (rank, id) => up + gap * (rank > top ? top + Math.min(kept.indexOf(id), lanes - 1) : rank - 1);
  const told = drawn
    .filter((d) => d.relevant)
    .map((d) => `${clip(d.text, 40)}: ${d.ranks.map((r) => r ?? "none").join(", ")}`);
  const summary = told.length ? "Relevant: " + told.join("; ") : "No document is known to be relevant.";
  return s(
    "svg",
    {
      viewBox: `0 0 ${width} ${height}`,
      class: "le-chart",
      role: "img",
      "aria-label": `Rank for K from 1 to ${steps}. ${summary} ${ending(answer, steps)}`,
    },
    s("rect", { class: "le-now", x: x(view.state.k) - 17, y: 2, width: 34, height: height - 4, rx: 6 }),
    answer.taken < steps && endMark(x(answer.taken + 0.5), 2, height - 4),
    range(1, steps).map((k) =>
      s("text", { class: "le-axis", x: x(k), y: 15, "text-anchor": "middle" }, k === 1 ? "K=1" : k),
    ),
    range(1, top).map((rank) => s("text", { class: "le-axis", x: 8, y: y(rank) + 4 }, rank)),
    range(0, lanes - 1).map((lane) =>
      s("text", { class: "le-axis", x: 2, y: up + gap * (top + lane) + 4 }, `>${top}`),
    ),
    drawn.map((d) => bumpLine(view, d, x, y)),
  );
}

function bumpLine(view, d, x, y) {
  const { top } = view.settings;
  const tier = view.selected(d.id) ? "le-selected" : d.relevant ? "le-relevant" : "";
  const below = tier !== ""; // others leave the chart where they leave the first ranks
  const points = d.ranks.map((rank, i) =>
    rank === null || (rank > top && !below) ? null : [x(i + 1), y(rank, d.id), rank],
  );
  const last = points.at(-1);
  const bend = (x(2) - x(1)) / 3;
  const curve = ([x0, y0], [x1, y1]) => `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`;
  return s(
    "g",
    { class: `le-line ${tier}`, "data-doc": d.id, onclick: () => view.select(d.id) },
    s("title", {}, `${d.text}\nranks: ${d.ranks.map((r) => r ?? "–").join(", ")}`),
    points.slice(1).map((p, i) => p && points[i] && s("path", { d: curve(points[i], p) })),
    points.map((p) => p && s("circle", { cx: p[0], cy: p[1], r: below ? (p[2] > top ? 10 : 6) : 3.5 })),
    points.map(
      (p) =>
        p &&
        p[2] > top &&
        s("text", { class: "le-number", x: p[0], y: p[1] + 3.5, "text-anchor": "middle" }, p[2] > 999 ? "…" : p[2]),
    ),
    last && s("text", { class: "le-label", x: last[0] + 14, y: last[1] + 4 }, clip(d.text, view.width < 480 ? 12 : 18)),
  );
}

function legend(answer) {
  return h(
    "p",
    { class: "le-quiet" },
    answer.judged
      ? [h("span", { class: "le-star" }, "★"), " orange: relevant documents. "]
      : "No document is known to be relevant for this query. ",
    "Choose a document in a list to follow it.",
  );
}

/** In one sentence, how the second column differs from the first at K. */
function describe(base, second, k) {
  const { label, change, beside } = second;
  const at = (answer) => answer.documents.map((d) => d.ranks[k - 1]);
  if (at(second)[0] === null) return `${label}: at K = ${k} nothing is left to pool.`;
  const first = (answer) => answer.documents.find((d) => d.ranks[k - 1] === 1);
  const [was, is] = [first(base), first(second)];
  const top =
    was.id === is.id
      ? `“${clip(is.text, 50)}” ${change ? "stays" : "is"} first${change ? "" : " in both"}`
      : `“${clip(is.text, 50)}” comes first instead of “${clip(was.text, 50)}”`;
  if (beside?.query) return `${label}: at K = ${k}, ${top}.`;
  if (change) {
    if (change.step >= base.taken)
      return `${label}: nothing changes, for the thought ended at step ${base.taken} and feeds this soft token to nobody.`;
    if (change.kind === "knock-out" ? k < change.step : k <= change.step)
      return `${label}: at K = ${k} nothing changes, for soft token ${change.step} is first read at step ${change.step + 1}. Raise K.`;
  }
  const best = (answer, field) => Math.min(...answer.documents.filter((d) => d.relevant).map((d) => d[field][k - 1]));
  if (!second.judged) return `${label}: at K = ${k}, ${top}.`;
  const [from, to] = [best(second, "before"), best(second, "ranks")];
  const moved = from === to ? `stays at rank ${to}` : `goes from rank ${from} to ${to}`;
  return `${label}: at K = ${k} the relevant document ${moved}; ${top}.`;
}
