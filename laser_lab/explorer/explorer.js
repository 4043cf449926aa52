// The explorer's face, the same in a notebook cell (render, through anywidget) and in the file of Explorer.to_html
// (mount with fileHost). It draws the answers of explorer.py and computes nothing but their layout. All text enters the
// page as text nodes, so no query, token or document can become markup.

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

// -- where answers come from ------------------------------------------------------------------------------------------

/** Asks the kernel, through the widget's messages. */
function kernelHost(model) {
  const waiting = new Map();
  const receive = (reply) => {
    const found = waiting.get(reply.id);
    if (!found) return; // another view's
    waiting.delete(reply.id);
    if (reply.error === undefined) found.resolve(reply.answer);
    else found.reject(new Error(reply.error));
  };
  model.on("msg:custom", receive);
  return {
    settings: model.get("settings"),
    live: true,
    ask: (query, change) =>
      new Promise((resolve, reject) => {
        const id = Math.random().toString(36).slice(2);
        waiting.set(id, { resolve, reject });
        model.send({ id, query, change });
      }),
    close: () => model.off("msg:custom", receive),
  };
}

/** Looks up what was computed when the file was written. */
export function fileHost(settings) {
  const places = new Map(settings.map.map((d) => [d.id, d]));
  for (const answer of settings.answers)
    answer.documents = answer.documents.map((d) => ({ ...places.get(d.id), ...d }));
  const same = (a, b) => (a && b ? a.step === b.step && a.kind === b.kind && a.value === b.value : a === b);
  return {
    settings,
    live: false,
    presets: (query) => settings.answers.filter((a) => a.query === query && a.change).map((a) => a.change),
    ask: async (query, change) => {
      if (!query.trim()) throw new Error("The query is empty: type one, or choose an example.");
      const found = settings.answers.find((a) => a.query === query && same(a.change, change));
      if (!found)
        throw new Error("This file holds its examples only. In a notebook, explore(model, corpus) answers any query.");
      return found;
    },
  };
}

// -- the page ---------------------------------------------------------------------------------------------------------

export function mount(root, host) {
  const { settings } = host;
  const { steps, top, kinds, examples } = settings;
  const name = `laser-explorer-${Math.random().toString(36).slice(2)}`; // ids differ between explorers on a page
  const state = { k: settings.start, base: null, changed: null, selected: null, asked: 0 };

  // Controls stay; what they show is drawn anew after every change.
  const query = h("input", {
    id: `${name}-query`,
    type: "text",
    class: "le-query",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: examples[0] ?? "Type a query",
    onkeydown: onEnter(() => ask(query.value)),
  });
  const status = h("p", { class: "le-status", role: "status", "aria-live": "polite" });
  const problem = h("p", { class: "le-problem", role: "alert" });
  const slider = h("input", {
    id: `${name}-k`,
    type: "range",
    class: "le-k",
    min: 1,
    max: steps,
    step: 1,
    value: state.k,
    list: `${name}-ticks`,
    oninput: () => setK(Number(slider.value)),
  });
  const kShown = h("output", { class: "le-k-shown", for: slider.id });
  const step = h(
    "select",
    { id: `${name}-step`, class: "le-step" },
    range(1, steps - 1).map((k) => h("option", { value: k }, String(k))),
  );
  const kind = h(
    "select",
    { id: `${name}-kind`, class: "le-kind", onchange: () => showValue() },
    Object.entries(kinds).map(([value, text]) => h("option", { value }, text)),
  );
  const value = h("input", {
    id: `${name}-value`,
    type: "text",
    class: "le-value",
    autocomplete: "off",
    spellcheck: "false",
    list: `${name}-values`,
    onkeydown: onEnter(() => apply()),
  });
  const valueLabel = h("label", { for: value.id });
  const values = h("datalist", { id: `${name}-values` });
  const valueField = h("span", { class: "le-field" }, valueLabel, value, values);
  const effect = h("p", { class: "le-effect", role: "status", "aria-live": "polite" });
  const reset = h(
    "button",
    { type: "button", class: "le-reset", onclick: () => show(state.base, null) },
    "Undo the change",
  );
  const presets = h("div", { class: "le-chips le-presets" });
  const results = h("div", { class: "le-results" });

  const interventions = h(
    "fieldset",
    { class: "le-panel" },
    h("legend", {}, "Change a thought"),
    host.live
      ? h(
          "div",
          { class: "le-form" },
          h("span", { class: "le-field" }, h("label", { for: step.id }, "Instead of soft token"), step),
          h("span", { class: "le-field" }, h("label", { for: kind.id }, "feed back"), kind),
          valueField,
          h("button", { type: "button", class: "le-apply", onclick: () => apply() }, "Apply"),
          reset,
        )
      : h("div", { class: "le-form" }, presets, reset),
    effect,
  );

  root.append(
    h(
      "section",
      { class: "laser-explorer", "aria-label": "Explorer of latent thoughts" },
      h(
        "div",
        { class: "le-form le-ask", role: "search" },
        h("label", { for: query.id }, "Query"),
        query,
        h("button", { type: "button", class: "le-go", onclick: () => ask(query.value) }, "Think"),
      ),
      examples.length > 0 &&
        h(
          "div",
          { class: "le-chips le-examples", role: "group", "aria-label": "Examples" },
          h("span", { class: "le-quiet" }, "Examples"),
          examples.map((text) =>
            h(
              "button",
              {
                type: "button",
                class: "le-chip",
                title: text,
                onclick: () => {
                  query.value = text;
                  ask(text);
                },
              },
              clip(text, 60),
            ),
          ),
        ),
      problem,
      h(
        "div",
        { class: "le-form" },
        h("label", { for: slider.id }, "Thinking steps K"),
        slider,
        kShown,
        h(
          "datalist",
          { id: `${name}-ticks` },
          range(1, steps).map((k) => h("option", { value: k })),
        ),
        status,
      ),
      interventions,
      results,
    ),
  );
  showValue();
  setK(state.k);
  if (settings.first || examples.length) {
    query.value = examples[0];
    if (settings.first) show(settings.first, null);
    else ask(examples[0]);
  }

  // -- asking --

  async function request(text, change) {
    const mine = ++state.asked;
    problem.textContent = "";
    status.textContent = "Thinking …";
    const slow = setTimeout(() => {
      if (mine === state.asked)
        status.textContent = "Still thinking. Is the notebook's kernel running, and no other cell?";
    }, 8000);
    try {
      const answer = await host.ask(text, change);
      return mine === state.asked ? answer : null; // a later question has overtaken this one
    } catch (error) {
      if (mine === state.asked) {
        status.textContent = "";
        problem.textContent = error.message;
      }
      return null;
    } finally {
      clearTimeout(slow);
    }
  }

  async function ask(text) {
    const answer = await request(text, null);
    if (answer) show(answer, null);
  }

  async function apply(
    change = { step: Number(step.value), kind: kind.value, value: valueField.hidden ? "" : value.value },
  ) {
    if (!state.base) return;
    const answer = await request(state.base.query, change);
    if (answer) show(state.base, answer);
  }

  function setK(k) {
    state.k = Math.min(steps, Math.max(1, Math.round(k) || 1));
    slider.value = state.k;
    kShown.textContent = state.k;
    draw();
  }

  function show(base, changed) {
    if (base !== state.base) state.selected = null;
    Object.assign(state, { base, changed });
    problem.textContent = "";
    if (base) {
      const { seconds, notes } = changed ?? base;
      status.textContent = [host.live ? `Answered in ${seconds.toFixed(2)} s.` : "", ...notes].join(" ").trim();
    }
    suggest();
    draw();
  }

  /** The value that the chosen kind of intervention needs. */
  function showValue() {
    const labels = { token: "namely", query: "namely", noise: "seed" };
    valueField.hidden = !(kind.value in labels);
    valueLabel.textContent = labels[kind.value] ?? "";
    value.value = kind.value === "noise" ? "0" : "";
    value.placeholder = { token: "a token", query: "another query" }[kind.value] ?? "";
    suggest();
  }

  function suggest() {
    const said = state.base ? state.base.tokens.flat().map((token) => token.name) : [];
    const offered = { token: said, query: examples }[kind.value] ?? [];
    values.replaceChildren(...[...new Set(offered)].map((text) => h("option", { value: text })));
  }

  /** A cell of the heat map, chosen: put this token in the place of its step's soft token. */
  function choose(k, token) {
    step.value = k;
    kind.value = "token";
    showValue();
    value.value = token.name;
    value.focus();
  }

  // -- drawing --

  function draw() {
    const { base, changed, k } = state;
    const focused = results.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    interventions.disabled = !base;
    reset.hidden = !changed;
    effect.textContent = changed ? describe(base, changed, k) : "";
    if (!host.live && base) {
      const same = (change) => changed?.change.label === change.label;
      presets.replaceChildren(
        ...host.presets(base.query).map((change) =>
          h(
            "button",
            {
              type: "button",
              class: "le-chip",
              "data-key": change.label,
              "aria-pressed": String(same(change)),
              title: change.label,
              onclick: () => apply(change).then(() => refocus(presets, change.label)),
            },
            clip(change.label, 60),
          ),
        ),
      );
    }
    const after = changed?.change.label;
    results.classList.toggle("le-both", Boolean(changed));
    results.replaceChildren(
      ...(base
        ? [
            card(
              "tokens",
              "What each step says",
              heatMap(base, "as thought"),
              host.live &&
                h(
                  "p",
                  { class: "le-quiet" },
                  "A soft token is the mixture of its step's tokens. Choose one to feed it back alone.",
                ),
            ),
            changed && card("tokens-changed", `What each step says: ${after}`, heatMap(changed, "changed")),
            card("ranking", `Ranking at K = ${k}`, list(base, null)),
            changed && card("ranking-changed", `Ranking at K = ${k}: ${after}`, list(changed, base)),
            card("bump", "Ranking for every K", bump(base), legend(base)),
            changed && card("bump-changed", `Ranking for every K: ${after}`, bump(changed), legend(changed)),
            card("map", "The way among the documents", map(), mapNote()),
          ].filter(Boolean)
        : [h("p", { class: "le-quiet" }, "Type a query to see what it makes the model think.")]),
    );
    if (focused) refocus(results, focused);
  }

  function refocus(parent, key) {
    [...parent.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus({ preventScroll: true });
  }

  function card(part, title, ...content) {
    return h("section", { class: `le-card le-${part}`, "aria-label": title }, h("h2", {}, title), content);
  }

  function select(id) {
    state.selected = state.selected === id ? null : id;
    draw();
  }

  /** Rows are steps, columns ranks. One tab stop; arrows move, Enter takes the token for an intervention. */
  function heatMap(answer, part) {
    const table = h(
      "table",
      { class: "le-heat", role: host.live ? "grid" : false },
      h("caption", { class: "le-hidden" }, "Most probable tokens of every thinking step, best first"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "step"),
          answer.tokens[0].map((_, rank) => h("th", { scope: "col" }, rank + 1)),
        ),
      ),
      h(
        "tbody",
        {},
        answer.tokens.map((tokens, row) => {
          const k = row + 1;
          const out = answer.change?.kind === "knock-out" && answer.change.step === k;
          const replaced = answer.change?.step === k;
          return h(
            "tr",
            {
              class: [k > state.k && "le-later", replaced && "le-replaced", out && "le-out"].filter(Boolean).join(" "),
            },
            h(
              "th",
              { scope: "row" },
              k,
              replaced &&
                h(
                  "span",
                  { class: "le-mark", title: out ? "not pooled, and not fed back" : "not fed back: replaced" },
                  out ? " ✕" : " ⇄",
                ),
            ),
            tokens.map((token, rank) => {
              const take = host.live && k < steps;
              const cell = h(
                "td",
                {
                  class: token.p >= 0.8 ? "le-strong" : "",
                  title: `${readable(token.text)}: ${percent(token.p)}` + (take ? " · click to feed it back" : ""),
                },
                h("span", { class: "le-token" }, clip(readable(token.text), 14)),
                h("span", { class: "le-p" }, percent(token.p)),
              );
              cell.style.setProperty("--p", token.p);
              if (host.live) {
                cell.tabIndex = row === 0 && rank === 0 ? 0 : -1;
                cell.dataset.key = `${part} ${row} ${rank}`;
              }
              if (take) cell.addEventListener("click", () => choose(k, token));
              return cell;
            }),
          );
        }),
      ),
    );
    if (host.live)
      table.addEventListener("keydown", (event) => {
        const cell = event.target.closest("td");
        if (!cell) return;
        const body = cell.parentElement.parentElement;
        const [row, column] = [[...body.children].indexOf(cell.parentElement), cell.cellIndex];
        const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[
          event.key
        ] ?? [0, 0];
        if (event.key === "Enter" || event.key === " ") cell.click();
        else if (!down && !right) return;
        else {
          const next = body.children[row + down]?.cells[column + right];
          if (next?.tagName === "TD") {
            cell.tabIndex = -1;
            next.tabIndex = 0;
            next.focus();
          }
        }
        event.preventDefault();
      });
    return table;
  }

  /** The first documents at K, then the relevant ones further down. */
  function list(answer, before) {
    const at = (d) => d.ranks[state.k - 1];
    if (at(answer.documents[0]) === null)
      return h("p", { class: "le-quiet" }, "Nothing is left to pool: the only step was knocked out.");
    const rows = answer.documents.filter((d) => at(d) <= top || d.relevant).sort((a, b) => at(a) - at(b));
    return h(
      "ol",
      { class: "le-list" },
      rows.map((d) => {
        const moved = before ? d.before[state.k - 1] - at(d) : 0;
        return h(
          "li",
          {
            class: [d.relevant && "le-relevant", at(d) > top && "le-below"].filter(Boolean).join(" "),
            "data-doc": d.id,
            "data-rank": at(d),
          },
          h("span", { class: "le-rank" }, at(d)),
          h(
            "button",
            {
              type: "button",
              class: "le-doc",
              title: d.text,
              "data-key": `${before ? "changed" : "base"} ${d.id}`,
              "aria-pressed": String(state.selected === d.id),
              onclick: () => select(d.id),
            },
            d.relevant && h("span", { class: "le-star" }, "★", h("span", { class: "le-hidden" }, " relevant: ")),
            d.text,
          ),
          before &&
            h(
              "span",
              { class: `le-moved ${moved > 0 ? "le-up" : moved < 0 ? "le-down" : ""}` },
              moved === 0 ? "=" : `${moved > 0 ? "▲" : "▼"}${Math.abs(moved)}`,
              h("span", { class: "le-hidden" }, ` was ${d.before[state.k - 1]}`),
            ),
          h("span", { class: "le-score" }, d.scores[state.k - 1].toFixed(3)),
        );
      }),
    );
  }

  /** A line per document over K: the first ranks, and lanes below for relevant documents further down. */
  function bump(answer) {
    const [width, left, right, up, gap] = [640, 46, 146, 24, 29];
    const x = (k) => left + ((k - 1) / Math.max(1, steps - 1)) * (width - left - right);
    const order = (d) => (d.id === state.selected ? 2 : d.relevant ? 1 : 0);
    const drawn = answer.documents
      .filter((d) => d.relevant || d.id === state.selected || d.ranks.some((r) => r !== null && r <= top))
      .sort((a, b) => order(a) - order(b));
    // A lane for each document that is to stay in sight; from the fourth on they share one.
    const kept = drawn.filter((d) => order(d) > 0 && d.ranks.some((rank) => rank > top)).map((d) => d.id);
    const lanes = Math.max(1, Math.min(kept.length, 4));
    const height = up + gap * (top - 1 + lanes) + 14;
    const y = (rank, id) => up + gap * (rank > top ? top + Math.min(kept.indexOf(id), lanes - 1) : rank - 1);
    const told = drawn
      .filter((d) => d.relevant)
      .map((d) => `${clip(d.text, 40)}: ${d.ranks.map((r) => r ?? "none").join(", ")}`);
    return s(
      "svg",
      {
        viewBox: `0 0 ${width} ${height}`,
        class: "le-chart",
        role: "img",
        "aria-label": `Rank for K from 1 to ${steps}. ${told.length ? "Relevant: " + told.join("; ") : "No document is known to be relevant."}`,
      },
      s("rect", { class: "le-now", x: x(state.k) - 17, y: 2, width: 34, height: height - 4, rx: 6 }),
      range(1, steps).map((k) =>
        s("text", { class: "le-axis", x: x(k), y: 15, "text-anchor": "middle" }, k === 1 ? "K=1" : k),
      ),
      range(1, top).map((rank) => s("text", { class: "le-axis", x: 8, y: y(rank) + 4 }, rank)),
      range(0, lanes - 1).map((lane) =>
        s("text", { class: "le-axis", x: 2, y: up + gap * (top + lane) + 4 }, `>${top}`),
      ),
      drawn.map((d) => {
        const tier = d.id === state.selected ? "le-selected" : d.relevant ? "le-relevant" : "";
        const below = tier !== ""; // others leave the chart where they leave the first ranks
        const points = d.ranks.map((rank, i) =>
          rank === null || (rank > top && !below) ? null : [x(i + 1), y(rank, d.id), rank],
        );
        const last = points.at(-1);
        return s(
          "g",
          { class: `le-line ${tier}`, "data-doc": d.id, onclick: () => select(d.id) },
          s("title", {}, `${d.text}\nranks: ${d.ranks.map((r) => r ?? "–").join(", ")}`),
          points.slice(1).map(
            (p, i) =>
              p &&
              points[i] &&
              s("path", {
                d: `M${points[i][0]} ${points[i][1]}C${points[i][0] + 25} ${points[i][1]} ${p[0] - 25} ${p[1]} ${p[0]} ${p[1]}`,
              }),
          ),
          points.map((p) => p && s("circle", { cx: p[0], cy: p[1], r: below ? (p[2] > top ? 10 : 6) : 3.5 })),
          points.map(
            (p) =>
              p &&
              p[2] > top &&
              s(
                "text",
                { class: "le-number", x: p[0], y: p[1] + 3.5, "text-anchor": "middle" },
                p[2] > 999 ? "…" : p[2],
              ),
          ),
          last && s("text", { class: "le-label", x: last[0] + 14, y: last[1] + 4 }, clip(d.text, 18)),
        );
      }),
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

  /** The plane of the documents with the way that the query's embedding takes through it. */
  function map() {
    const [width, height, margin] = [640, 400, 26];
    const { base, changed, k } = state;
    const all = [settings.map.flatMap((d) => d.xy), base.path, changed?.path ?? [], base.documents.flatMap((d) => d.xy)]
      .flat()
      .filter(Boolean);
    const [xs, ys] = [all.map((p) => p[0]), all.map((p) => p[1])];
    const span = (v) => [Math.min(...v), Math.max(...v) - Math.min(...v) || 1];
    const [[x0, dx], [y0, dy]] = [span(xs), span(ys)];
    const at = ([px, py]) => [
      margin + ((px - x0) / dx) * (width - 2 * margin),
      height - margin - ((py - y0) / dy) * (height - 2 * margin),
    ];
    const dot = (xy, attributes, ...children) => {
      const [cx, cy] = at(xy);
      return s("circle", { cx, cy, ...attributes }, ...children);
    };
    const documents = new Map([...(changed?.documents ?? []), ...base.documents].map((d) => [d.id, d]));
    const known = [...documents.values()];
    const first = (answer) => documents.get(answer?.documents.find((d) => d.ranks[k - 1] === 1)?.id);
    const named = [
      ...new Set(
        [...known.filter((d) => d.relevant || d.id === state.selected), first(base), first(changed)].filter(Boolean),
      ),
    ].slice(0, 8);
    const labels = [];
    return s(
      "svg",
      {
        viewBox: `0 0 ${width} ${height}`,
        class: "le-chart",
        role: "img",
        "aria-label": `Map of the documents at K = ${k}, with the embedding after each step of thinking`,
      },
      settings.map.map((d) => dot(d.xy[k - 1], { r: 2.5, class: "le-far" })),
      known.map((d) =>
        dot(
          d.xy[k - 1],
          {
            r: d.relevant || d.id === state.selected ? 6 : 4,
            "data-doc": d.id,
            onclick: () => select(d.id),
            class: `le-near ${d.relevant ? "le-relevant" : ""} ${d.id === state.selected ? "le-selected" : ""}`,
          },
          s("title", {}, d.text),
        ),
      ),
      way(changed?.path, "le-way le-way-changed"),
      way(base.path, "le-way"),
      named.map((d) => {
        const [px, py] = at(d.xy[k - 1]);
        return place(px, py, clip(d.text, 22), `le-label ${d.relevant ? "le-relevant" : ""}`, 6.6);
      }),
    );

    function way(path, className) {
      if (!path) return null;
      const points = path.map((p) => p && at(p));
      const numbered = points.map(
        (p, i) =>
          p &&
          (i + 1 === k || i === 0 || points.slice(0, i).every((q) => !q || Math.hypot(p[0] - q[0], p[1] - q[1]) > 20)),
      );
      return s(
        "g",
        { class: className },
        points
          .slice(1)
          .map(
            (p, i) =>
              p &&
              points[i] &&
              s("line", { x1: points[i][0], y1: points[i][1], x2: p[0], y2: p[1], class: i + 2 > k ? "le-later" : "" }),
          ),
        points.map(
          (p, i) =>
            p &&
            s("circle", {
              cx: p[0],
              cy: p[1],
              r: i + 1 === k ? 9 : numbered[i] ? 7 : 3,
              class: i + 1 > k ? "le-later" : i + 1 === k ? "le-here" : "",
            }),
        ),
        points.map(
          (p, i) =>
            p &&
            numbered[i] &&
            (i + 1 === k || Math.hypot(p[0] - (points[k - 1]?.[0] ?? -99), p[1] - (points[k - 1]?.[1] ?? -99)) > 15) &&
            s(
              "text",
              { x: p[0], y: p[1] + 3.5, "text-anchor": "middle", class: `le-number ${i + 1 > k ? "le-later" : ""}` },
              i + 1,
            ),
        ),
      );
    }

    /** A label beside its dot, moved down where another one stands. */
    function place(px, py, text, className, size) {
      const room = [...text].length * size;
      const flip = px + 9 + room > width;
      const lx = flip ? px - 9 - room : px + 9;
      let ly = Math.max(12, py + 4);
      const taken = (l) => Math.abs(l.y - ly) < 14 && lx < l.x + l.room && l.x < lx + room;
      for (let tries = 0; tries < 8 && labels.some(taken); tries++) ly += 14;
      labels.push({ x: lx, y: ly, room });
      return s("text", { x: flip ? px - 9 : lx, y: ly, class: className, "text-anchor": flip ? "end" : "start" }, text);
    }
  }

  function mapNote() {
    const drawn =
      settings.map.length < settings.count
        ? `${settings.map.length} of ${settings.count} documents`
        : `${settings.count} documents`;
    return h(
      "p",
      { class: "le-quiet" },
      `The embedding after 1 to ${steps} steps (numbers; the ring is K = ${state.k}) among ${drawn}, in the plane of the documents' first two principal components (${percent(settings.variance)} of their variance).`,
      state.changed && [" ", h("span", { class: "le-way-name" }, "Dashed"), ": with the changed thought."],
    );
  }
}

/** In one sentence, what an intervention did at K. */
function describe(base, changed, k) {
  const { label, step, kind } = changed.change;
  const at = (answer) => answer.documents.map((d) => d.ranks[k - 1]);
  if (at(changed)[0] === null) return `${label}: at K = ${k} nothing is left to pool.`;
  if (kind === "knock-out" ? k < step : k <= step)
    return `${label}: at K = ${k} nothing changes, for soft token ${step} is first read at step ${step + 1}. Raise K.`;
  const first = (answer) => answer.documents.find((d) => d.ranks[k - 1] === 1);
  const best = (answer, field) => Math.min(...answer.documents.filter((d) => d.relevant).map((d) => d[field][k - 1]));
  const [was, is] = [first(base), first(changed)];
  const top =
    was.id === is.id
      ? `“${clip(is.text, 50)}” stays first`
      : `“${clip(is.text, 50)}” comes first instead of “${clip(was.text, 50)}”`;
  if (!changed.judged) return `${label}: at K = ${k}, ${top}.`;
  const [from, to] = [best(changed, "before"), best(changed, "ranks")];
  return `${label}: at K = ${k} the relevant document ${from === to ? `stays at rank ${to}` : `goes from rank ${from} to ${to}`}; ${top}.`;
}

function range(first, last) {
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}

function render({ model, el }) {
  const host = kernelHost(model);
  mount(el, host);
  return host.close;
}

export default { render };
