// The plane of the documents, drawn on a canvas, with the way that the query's embedding takes through it above it.

const LISTED = 12;

/** One model's map; it stays on the page while what it shows changes. */
class DocumentMap {
  constructor(view, side) {
    this.view = view;
    this.side = side;
    this.plane = new Plane(view.host, side);
    this.zoom = { scale: 1, x: 0, y: 0 };
    this.cursor = -1;
    this.canvas = h("canvas", {
      class: "le-canvas",
      tabindex: 0,
      role: "application",
      "aria-label": "Map of the documents: arrow keys go from one to the next, Enter follows it, plus and minus zoom",
      "data-key": `map ${side}`,
      "data-lm-suppress-shortcuts": "true",
    });
    this.overlay = s("svg", { class: "le-overlay", role: "img" });
    this.tip = h("div", { class: "le-tip", role: "status", "aria-live": "polite", hidden: true });
    this.stage = h("div", { class: "le-stage" }, this.canvas, this.overlay, this.tip);
    this.legend = h("div", { class: "le-chips le-legend", role: "group", "aria-label": "Colours of the map" });
    this.found = h("div", { class: "le-found" });
    this.note = h("p", { class: "le-quiet" });
    this.node = h("div", {}, mapForm(this), this.stage, this.legend, this.found, this.note);
    listen(this);
    this.colours = new Map(); // style sheet's names to colours
    this.watch = new ResizeObserver(([{ contentRect }]) => {
      this.width = contentRect.width; // asked for in every draw, it would be laid out anew each time
      this.draw();
    });
    this.watch.observe(this.stage);
  }

  close() {
    this.watch.disconnect();
  }

  /** Search, colour or switch a category, and draw what follows. */
  change(values) {
    Object.assign(this.plane, values);
    this.plane.filter();
    drawLegend(this);
    drawFound(this);
    this.draw();
  }

  /** Places from 0 to 1 each way to pixels, and back. */
  pixel([x, y]) {
    const { scale, x: dx, y: dy } = this.zoom;
    return [((x - 0.5) * scale + 0.5 + dx) * this.size[0], ((0.5 - y) * scale + 0.5 + dy) * this.size[1]];
  }

  place([px, py]) {
    const { scale, x: dx, y: dy } = this.zoom;
    return [(px / this.size[0] - 0.5 - dx) / scale + 0.5, 0.5 - (py / this.size[1] - 0.5 - dy) / scale];
  }

  at([px, py], reach = 14) {
    const { scale } = this.zoom;
    const around = [reach / this.size[0] / scale, reach / this.size[1] / scale];
    return this.plane.nearest(this.place([px, py]), this.view.state.k, around);
  }

  draw() {
    const { base } = this.view.state;
    const { width } = this;
    if (!base || !width) return;
    this.size = [width, Math.min(460, Math.round(0.66 * width))];
    this.stage.style.setProperty("height", `${this.size[1]}px`);
    paint(this);
    drawWay(this);
    this.note.textContent = mapNote(this);
  }

  /** Draw in the colours of another theme. */
  repaint() {
    this.colours.clear();
    this.draw();
  }

  /** A colour of the style sheet, as the canvas takes it. */
  colour(name) {
    if (!this.colours.has(name)) {
      this.canvas.style.setProperty("color", `var(--${name})`);
      this.colours.set(name, getComputedStyle(this.canvas).color);
    }
    return this.colours.get(name);
  }

  /** Move the keyboard's place on the map. */
  point(row) {
    this.cursor = row;
    this.tip.hidden = row < 0;
    if (row < 0) return;
    const [px, py] = this.pixel(this.plane.place(row, this.view.state.k));
    this.tip.textContent = clip(`${this.plane.ids[row]}: ${this.plane.texts[row]}`, 140);
    const left = px > this.size[0] / 2;
    this.tip.style.setProperty("left", left ? "auto" : `${Math.max(0, px + 12)}px`);
    this.tip.style.setProperty("right", left ? `${Math.max(0, this.size[0] - px + 12)}px` : "auto");
    this.tip.style.setProperty("top", `${Math.max(0, Math.min(py + 8, this.size[1] - 60))}px`);
  }

  by(factor) {
    const scale = Math.min(64, Math.max(1, this.zoom.scale * factor));
    const ratio = scale / this.zoom.scale;
    this.zoom = scale === 1 ? { scale, x: 0, y: 0 } : { scale, x: this.zoom.x * ratio, y: this.zoom.y * ratio };
    this.draw();
  }
}

function mapForm(map) {
  const { view, plane, side } = map;
  const search = h("input", {
    id: `${view.name}-search-${side}`,
    type: "search",
    class: "le-search",
    autocomplete: "off",
    spellcheck: "false",
    "data-key": `search ${side}`,
    oninput: () => map.change({ search: search.value }),
  });
  const colour = h(
    "select",
    {
      id: `${view.name}-colour-${side}`,
      class: "le-colour",
      onchange: () => map.change({ column: plane.columns[colour.value] ?? null }),
    },
    h("option", { value: "" }, "nothing"),
    plane.columns.map((column, i) => h("option", { value: i }, column.name)),
  );
  const zoom = (text, label, factor) =>
    h("button", { type: "button", class: "le-zoom", "aria-label": label, onclick: () => map.by(factor) }, text);
  const field = (id, label, control) => h("span", { class: "le-field" }, h("label", { for: id }, label), control);
  return h(
    "div",
    { class: "le-form" },
    field(search.id, "Find documents", search),
    plane.columns.length > 0 && field(colour.id, "Colour by", colour),
    zoom("+", "Nearer", 2),
    zoom("−", "Farther", 0.5),
  );
}

/** Hover, click, drag and keys. */
function listen(map) {
  const { canvas, view } = map;
  const spot = (event) => [event.offsetX, event.offsetY];
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { from: spot(event), zoom: map.zoom, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!map.size) return;
    const [px, py] = spot(event);
    if (!drag) return map.point(map.at([px, py]));
    const [dx, dy] = [px - drag.from[0], py - drag.from[1]];
    drag.moved ||= Math.hypot(dx, dy) > 4;
    if (!drag.moved || drag.zoom.scale === 1) return;
    map.zoom = { ...drag.zoom, x: drag.zoom.x + dx / map.size[0], y: drag.zoom.y + dy / map.size[1] };
    map.draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    const row = map.at(spot(event));
    if (drag && !drag.moved && row >= 0) view.select(map.plane.ids[row]);
    drag = null;
  });
  canvas.addEventListener("pointerleave", () => map.point(-1));
  canvas.addEventListener("blur", () => map.point(-1));
  canvas.addEventListener("keydown", (event) => {
    const turn = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] }[event.key];
    if (turn) map.point(map.cursor < 0 ? firstRow(map) : map.plane.towards(map.cursor, view.state.k, turn));
    else if (event.key === "Enter" || event.key === " ") map.cursor >= 0 && view.select(map.plane.ids[map.cursor]);
    else if (event.key === "+" || event.key === "-") map.by(event.key === "+" ? 2 : 0.5);
    else return;
    event.preventDefault();
  });
}

/** Where the arrow keys begin: at the first document of the ranking that the filter keeps. */
function firstRow(map) {
  const { base, k } = map.view.state;
  const ranked = [...base.documents].sort((a, b) => a.ranks[k - 1] - b.ranks[k - 1]);
  return ranked.find((d) => map.plane.kept[d.row])?.row ?? map.plane.kept.indexOf(1);
}

/** All documents, on the canvas: those that the filter leaves out fainter, behind the others. */
function paint(map) {
  const { canvas, plane, view } = map;
  const [width, height] = map.size;
  const dense = devicePixelRatio || 1;
  const [inner, outer] = [Math.round(width * dense), Math.round(height * dense)];
  if (canvas.width !== inner || canvas.height !== outer) Object.assign(canvas, { width: inner, height: outer });
  const context = canvas.getContext("2d");
  context.setTransform(dense, 0, 0, dense, 0, 0);
  context.clearRect(0, 0, width, height);
  const radius = (plane.count > 20000 ? 1 : plane.count > 2000 ? 1.5 : 3) * Math.min(2.5, Math.sqrt(map.zoom.scale));
  const { places } = plane;
  const first = 2 * (view.state.k - 1) * plane.count;
  const [[left, top], [right, bottom]] = [map.pixel([0, 1]), map.pixel([1, 0])];
  const [across, down] = [(right - left) / 65535, (bottom - top) / 65535];
  const dot = (row) => {
    const px = left + places[first + 2 * row] * across - radius;
    const py = bottom - places[first + 2 * row + 1] * down - radius;
    if (px > -9 && py > -9 && px < width && py < height) context.fillRect(px, py, 2 * radius, 2 * radius);
  };
  const every = (rows, kept) => {
    if (rows) for (const row of rows) plane.kept[row] === kept && dot(row);
    else for (let row = 0; row < plane.count; row++) plane.kept[row] === kept && dot(row);
  };
  if (plane.filtered) {
    context.globalAlpha = 0.15;
    context.fillStyle = map.colour("le-grey");
    every(null, 0);
  }
  context.globalAlpha = plane.column || plane.filtered ? 0.9 : 0.55;
  for (const group of plane.groups()) {
    context.fillStyle = map.colour(group.colour);
    every(group.rows, 1);
  }
}

/** The ranked and followed documents and the way of the embedding, above the canvas. */
function drawWay(map) {
  const { overlay, plane, view, side } = map;
  const { base, second, k } = view.state;
  const answers = [base, second].filter((answer) => answer && side === (answer.beside?.model ? 1 : 0));
  const own = answers.includes(base);
  const ranked = new Map([...answers].reverse().flatMap((answer) => answer.documents.map((d) => [d.row, d])));
  for (const id of view.state.docs) {
    const row = plane.ids.indexOf(id);
    if (row >= 0 && !ranked.has(row)) ranked.set(row, { row, id, text: plane.texts[row] });
  }
  const known = [...ranked.values()];
  const followed = (d) => d.relevant || view.selected(d.id);
  const first = (answer) => ranked.get(answer.documents.find((d) => d.ranks[k - 1] === 1)?.row);
  const named = [...new Set([...known.filter(followed), ...answers.map(first)].filter(Boolean))].slice(0, 8);
  const at = (d) => map.pixel(plane.place(d.row, k));
  const path = (answer) => answer.path.map((p) => p && map.pixel(plane.within(p)));
  const paths = answers.map(path);
  const labels = paths.flat().filter(Boolean).map(([x, y]) => ({ x: x - 10, y: y + 4, room: 20 })); // to keep clear of
  overlay.classList.toggle("le-coloured", Boolean(plane.column));
  overlay.setAttribute("viewBox", `0 0 ${map.size[0]} ${map.size[1]}`);
  overlay.setAttribute("aria-label", `At K = ${k}, the embedding after each step of thinking among the documents`);
  overlay.replaceChildren(
    ...known.map((d) => {
      const [cx, cy] = at(d);
      const marks = classes("le-near", d.relevant && "le-relevant", view.selected(d.id) && "le-selected");
      return s("circle", { cx, cy, r: followed(d) ? 7 : 5, "data-doc": d.id, class: marks });
    }),
    ...answers.map((answer, i) => way(paths[i], k, own && answer !== base ? "le-way le-way-changed" : "le-way", answer.taken)).reverse(),
    ...named.map((d) => mapLabel(at(d), clip(d.text, 22), `le-label ${d.relevant ? "le-relevant" : ""}`, labels, map.size)),
  );
}

/** A line through the places of the embedding after each step, with numbers where they do not hide each other. */
function way(points, k, className, taken) {
  const far = (p, q, distance) => Math.hypot(p[0] - q[0], p[1] - q[1]) > distance;
  const numbered = points.map(
    (p, i) => p && (i + 1 === k || i === 0 || points.slice(0, i).every((q) => !q || far(p, q, 20))),
  );
  const later = (i) => (i + 1 > k ? "le-later" : "");
  const here = points[k - 1];
  const line = ([x1, y1], [x2, y2], i) => s("line", { x1, y1, x2, y2, class: later(i) });
  const number = ([x, y], i) =>
    s("text", { x, y: y + 3.5, "text-anchor": "middle", class: `le-number ${later(i)}` }, i + 1);
  const end = taken < points.length && points[taken - 1];
  return s(
    "g",
    { class: className },
    points.map((p, i) => i > 0 && p && points[i - 1] && line(points[i - 1], p, i)),
    end && s("rect", { x: end[0] - 12, y: end[1] - 12, width: 24, height: 24, class: "le-ended" }),
    points.map((p, i) => p && p !== here && s("circle", { cx: p[0], cy: p[1], r: numbered[i] ? 7 : 3, class: later(i) })),
    here && s("circle", { cx: here[0], cy: here[1], r: 9, class: "le-here" }), // above those that lie in the same place
    points.map((p, i) => p && numbered[i] && (i + 1 === k || !here || far(p, here, 15)) && number(p, i)),
  );
}

/** A label beside its dot, moved down or up where another one stands. */
function mapLabel([px, py], text, className, labels, [width, height]) {
  const room = [...text].length * 6.6;
  const flip = px + 9 + room > width;
  const x = flip ? px - 9 - room : px + 9;
  const own = Math.min(height - 6, Math.max(12, py + 4));
  const taken = (y) => labels.some((l) => Math.abs(l.y - y) < 14 && x < l.x + l.room && l.x < x + room);
  const fits = (y) => y >= 12 && y <= height - 6 && !taken(y);
  const y = range(0, 16).map((i) => own + 7 * (i % 2 ? i + 1 : -i)).find(fits) ?? own; // 0, 14, -14, 28, ...
  labels.push({ x, y, room });
  return s("text", { x: flip ? px - 9 : x, y, class: className, "text-anchor": flip ? "end" : "start" }, text);
}

/** A button per category, which switches it on and off; of numbers, their range. */
function drawLegend(map) {
  const { plane } = map;
  const { column } = plane;
  const swatch = (colour) => h("span", { class: `le-swatch ${colour}`, "aria-hidden": "true" });
  if (!column) return map.legend.replaceChildren();
  if (column.kind === "number")
    return map.legend.replaceChildren(
      h("span", {}, figure(column.low)),
      ...range(0, 5).map((i) => swatch(`le-ramp-${i}`)),
      h("span", {}, figure(column.high)),
    );
  const off = plane.hidden.get(column) ?? new Set();
  const toggle = (code) => {
    const codes = new Set(off);
    if (!codes.delete(code)) codes.add(code);
    map.change({ hidden: new Map(plane.hidden).set(column, codes) });
    refocus(map.legend, `category ${code}`);
  };
  map.legend.replaceChildren(
    ...column.names.map((label, code) =>
      h(
        "button",
        {
          type: "button",
          class: "le-chip",
          "data-key": `category ${code}`,
          "aria-pressed": String(!off.has(code)),
          onclick: () => toggle(code),
        },
        swatch(`le-c${code}`),
        label,
      ),
    ),
  );
}

/** The documents that the search has found, and the neighbours of the one that was chosen last. */
function drawFound(map) {
  const { plane, view, side } = map;
  const entry = (prefix) => (row, score) =>
    h(
      "li",
      { "data-doc": plane.ids[row] },
      h(
        "button",
        {
          type: "button",
          class: "le-doc",
          title: plane.texts[row],
          "data-key": `${prefix} ${plane.ids[row]}`,
          "aria-pressed": String(view.selected(plane.ids[row])),
          onclick: () => view.select(plane.ids[row]),
        },
        plane.texts[row],
      ),
      score !== undefined && h("span", { class: "le-score" }, score.toFixed(3)),
    );
  const near = side === 0 && view.state.neighbours;
  map.found.replaceChildren(
    ...[
      plane.filtered &&
        h("p", { role: "status", class: "le-count" }, `${plane.found.length.toLocaleString("en")} of ${plane.count.toLocaleString("en")} documents found`),
      plane.search && h("ol", { class: "le-list le-hits" }, plane.found.slice(0, LISTED).map((row) => entry("hit")(row))),
      near && h("h3", {}, `Nearest to “${clip(plane.texts[near.row], 40)}” at K = ${near.k}`),
      near && h("ol", { class: "le-list le-neighbours" }, near.found.map((d) => entry("near")(d.row, d.score))),
    ].filter(Boolean),
  );
}

function mapNote(map) {
  const { view, plane } = map;
  const dashed = view.state.second && !view.state.second.beside?.model ? " Dashed: the second column." : "";
  const ended = view.state.base.taken < view.settings.steps ? " Framed: where the thought ended." : "";
  return `The embedding after 1 to ${view.settings.steps} steps (numbers; the ring is K = ${view.state.k}) among ${plane.count.toLocaleString("en")} documents, in the plane of their first two principal components (${percent(plane.variance)} of their variance).${dashed}${ended}`;
}
