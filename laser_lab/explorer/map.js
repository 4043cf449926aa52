// The plane of the documents, with the way that the query's embedding takes through it.

const MAP = { width: 640, height: 400, margin: 26 };

function map(view) {
  const { settings, state } = view;
  const { base, changed, k } = state;
  const at = scale([
    ...settings.map.flatMap((d) => d.xy),
    ...base.path,
    ...(changed?.path ?? []),
    ...base.documents.flatMap((d) => d.xy),
  ]);
  const dot = (xy, attributes, ...children) => {
    const [cx, cy] = at(xy);
    return s("circle", { cx, cy, ...attributes }, ...children);
  };
  const documents = new Map([...(changed?.documents ?? []), ...base.documents].map((d) => [d.id, d]));
  const known = [...documents.values()];
  const first = (answer) => documents.get(answer?.documents.find((d) => d.ranks[k - 1] === 1)?.id);
  const followed = (d) => d.relevant || d.id === state.selected;
  const named = [...new Set([...known.filter(followed), first(base), first(changed)].filter(Boolean))].slice(0, 8);
  const labels = [];
  return s(
    "svg",
    {
      viewBox: `0 0 ${MAP.width} ${MAP.height}`,
      class: "le-chart",
      role: "img",
      "aria-label": `Map of the documents at K = ${k}, with the embedding after each step of thinking`,
    },
    settings.map.map((d) => dot(d.xy[k - 1], { r: 2.5, class: "le-far" })),
    known.map((d) => {
      const selected = d.id === state.selected;
      const marks = classes("le-near", d.relevant && "le-relevant", selected && "le-selected");
      const size = { r: followed(d) ? 6 : 4, "data-doc": d.id, onclick: () => view.select(d.id), class: marks };
      return dot(d.xy[k - 1], size, s("title", {}, d.text));
    }),
    changed && way(changed.path.map((p) => p && at(p)), k, "le-way le-way-changed"),
    way(base.path.map((p) => p && at(p)), k, "le-way"),
    named.map((d) => mapLabel(at(d.xy[k - 1]), clip(d.text, 22), `le-label ${d.relevant ? "le-relevant" : ""}`, labels)),
  );
}

/** Places in the plane to places in the chart, such that all of `places` are inside. */
function scale(places) {
  const { width, height, margin } = MAP;
  const known = places.filter(Boolean);
  const span = (values) => {
    const low = values.reduce((a, b) => Math.min(a, b), Infinity);
    return [low, values.reduce((a, b) => Math.max(a, b), -Infinity) - low || 1];
  };
  const [x0, dx] = span(known.map((p) => p[0]));
  const [y0, dy] = span(known.map((p) => p[1]));
  return ([x, y]) => [
    margin + ((x - x0) / dx) * (width - 2 * margin),
    height - margin - ((y - y0) / dy) * (height - 2 * margin),
  ];
}

/** A line through the places of the embedding after each step, with numbers where they do not hide each other. */
function way(points, k, className) {
  const far = (p, q, distance) => Math.hypot(p[0] - q[0], p[1] - q[1]) > distance;
  const numbered = points.map(
    (p, i) => p && (i + 1 === k || i === 0 || points.slice(0, i).every((q) => !q || far(p, q, 20))),
  );
  const later = (i) => (i + 1 > k ? "le-later" : "");
  const here = points[k - 1];
  const line = ([x1, y1], [x2, y2], i) => s("line", { x1, y1, x2, y2, class: later(i) });
  const number = ([x, y], i) =>
    s("text", { x, y: y + 3.5, "text-anchor": "middle", class: `le-number ${later(i)}` }, i + 1);
  return s(
    "g",
    { class: className },
    points.map((p, i) => i > 0 && p && points[i - 1] && line(points[i - 1], p, i)),
    points.map((p, i) => {
      const r = i + 1 === k ? 9 : numbered[i] ? 7 : 3;
      return p && s("circle", { cx: p[0], cy: p[1], r, class: i + 1 === k ? "le-here" : later(i) });
    }),
    points.map((p, i) => p && numbered[i] && (i + 1 === k || !here || far(p, here, 15)) && number(p, i)),
  );
}

/** A label beside its dot, moved down where another one stands. */
function mapLabel([px, py], text, className, labels) {
  const room = [...text].length * 6.6;
  const flip = px + 9 + room > MAP.width;
  const x = flip ? px - 9 - room : px + 9;
  let y = Math.max(12, py + 4);
  const taken = (l) => Math.abs(l.y - y) < 14 && x < l.x + l.room && l.x < x + room;
  for (let tries = 0; tries < 8 && labels.some(taken); tries++) y += 14;
  labels.push({ x, y, room });
  return s("text", { x: flip ? px - 9 : x, y, class: className, "text-anchor": flip ? "end" : "start" }, text);
}

function mapNote(view) {
  const { map, count, steps, variance } = view.settings;
  const drawn = map.length < count ? `${map.length} of ${count} documents` : `${count} documents`;
  return h(
    "p",
    { class: "le-quiet" },
    `The embedding after 1 to ${steps} steps (numbers; the ring is K = ${view.state.k}) among ${drawn}, in the plane of the documents' first two principal components (${percent(variance)} of their variance).`,
    view.state.changed && [" ", h("span", { class: "le-way-name" }, "Dashed"), ": with the changed thought."],
  );
}
