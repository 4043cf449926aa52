// The explorer's face, the same in a notebook cell (render, through anywidget) and in the file of Explorer.to_html
// (mount with fileHost). It draws the answers of answers.py and computes nothing but their layout.

/** Draw the explorer into `root`; answers come from `host`. */
function mount(root, host) {
  const view = new View(host);
  root.append(view.section);
  view.showValue();
  view.setK(view.state.k);
  const { first, examples } = host.settings;
  if (!first && !examples.length) return;
  view.query.value = examples[0];
  if (first) view.show(first, null);
  else view.ask(examples[0]);
}

/** The controls, which stay, and what they show, which is drawn anew after every change. */
class View {
  constructor(host) {
    this.host = host;
    this.settings = host.settings;
    this.name = `laser-explorer-${Math.random().toString(36).slice(2)}`; // ids differ between explorers on a page
    this.state = { k: host.settings.start, base: null, changed: null, selected: null, asked: 0 };
    this.status = h("p", { class: "le-status", role: "status", "aria-live": "polite" });
    this.problem = h("p", { class: "le-problem", role: "alert" });
    this.results = h("div", { class: "le-results" });
    this.section = h(
      "section",
      { class: "laser-explorer", "aria-label": "Explorer of latent thoughts" },
      askForm(this),
      this.settings.examples.length > 0 && exampleChips(this),
      this.problem,
      stepsForm(this),
      changeForm(this),
      this.results,
    );
  }

  // -- asking --

  async request(text, change) {
    const { state, problem, status } = this;
    const mine = ++state.asked;
    problem.textContent = "";
    status.textContent = "Thinking …";
    const slow = setTimeout(() => {
      if (mine === state.asked)
        status.textContent = "Still thinking. Is the notebook's kernel running, and no other cell?";
    }, 8000);
    try {
      const answer = await this.host.ask(text, change);
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

  async ask(text) {
    const answer = await this.request(text, null);
    if (answer) this.show(answer, null);
  }

  /** Ask for the change in the form, or for this one. */
  async apply(change) {
    const { base } = this.state;
    if (!base) return;
    const value = this.valueField.hidden ? "" : this.value.value;
    const answer = await this.request(
      base.query,
      change ?? { step: Number(this.step.value), kind: this.kind.value, value },
    );
    if (answer) this.show(base, answer);
  }

  setK(k) {
    const { slider, kShown, state, settings } = this;
    state.k = Math.min(settings.steps, Math.max(1, Math.round(k) || 1));
    slider.value = state.k;
    kShown.textContent = state.k;
    this.draw();
  }

  show(base, changed) {
    const { state, problem, status } = this;
    if (base !== state.base) state.selected = null;
    Object.assign(state, { base, changed });
    problem.textContent = "";
    if (base) {
      const { seconds, notes } = changed ?? base;
      const time = this.host.live ? `Answered in ${seconds.toFixed(2)} s.` : "";
      status.textContent = [time, ...notes].join(" ").trim();
    }
    this.suggest();
    this.draw();
  }

  /** The value that the chosen kind of intervention needs. */
  showValue() {
    const { kind, value, valueField, valueLabel } = this;
    const labels = { token: "namely", query: "namely", noise: "seed" };
    valueField.hidden = !(kind.value in labels);
    valueLabel.textContent = labels[kind.value] ?? "";
    value.value = kind.value === "noise" ? "0" : "";
    value.placeholder = { token: "a token", query: "another query" }[kind.value] ?? "";
    this.suggest();
  }

  suggest() {
    const { base } = this.state;
    const said = base ? base.tokens.flat().map((token) => token.name) : [];
    const offered = { token: said, query: this.settings.examples }[this.kind.value] ?? [];
    this.values.replaceChildren(...[...new Set(offered)].map((text) => h("option", { value: text })));
  }

  /** A cell of the heat map, chosen: put this token in the place of its step's soft token. */
  choose(k, token) {
    this.step.value = k;
    this.kind.value = "token";
    this.showValue();
    this.value.value = token.name;
    this.value.focus();
  }

  select(id) {
    this.state.selected = this.state.selected === id ? null : id;
    this.draw();
  }

  // -- drawing --

  draw() {
    const { results } = this;
    const { base, changed, k } = this.state;
    const focused = results.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.interventions.disabled = !base;
    this.reset.hidden = !changed;
    this.effect.textContent = changed ? describe(base, changed, k) : "";
    if (!this.host.live && base) presetChips(this);
    results.classList.toggle("le-both", Boolean(changed));
    const hint = "Type a query to see what it makes the model think.";
    results.replaceChildren(...(base ? cards(this) : [h("p", { class: "le-quiet" }, hint)]));
    if (focused) refocus(results, focused);
  }
}

// -- the controls -----------------------------------------------------------------------------------------------------

function askForm(view) {
  view.query = h("input", {
    id: `${view.name}-query`,
    type: "text",
    class: "le-query",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: view.settings.examples[0] ?? "Type a query",
    onkeydown: onEnter(() => view.ask(view.query.value)),
  });
  return h(
    "div",
    { class: "le-form le-ask", role: "search" },
    h("label", { for: view.query.id }, "Query"),
    view.query,
    h("button", { type: "button", class: "le-go", onclick: () => view.ask(view.query.value) }, "Think"),
  );
}

function exampleChips(view) {
  const ask = (text) => {
    view.query.value = text;
    view.ask(text);
  };
  return h(
    "div",
    { class: "le-chips le-examples", role: "group", "aria-label": "Examples" },
    h("span", { class: "le-quiet" }, "Examples"),
    view.settings.examples.map((text) =>
      h("button", { type: "button", class: "le-chip", title: text, onclick: () => ask(text) }, clip(text, 60)),
    ),
  );
}

function stepsForm(view) {
  const { steps } = view.settings;
  const ticks = range(1, steps).map((k) => h("option", { value: k }));
  view.slider = h("input", {
    id: `${view.name}-k`,
    type: "range",
    class: "le-k",
    min: 1,
    max: steps,
    step: 1,
    value: view.state.k,
    list: `${view.name}-ticks`,
    oninput: () => view.setK(Number(view.slider.value)),
  });
  view.kShown = h("output", { class: "le-k-shown", for: view.slider.id });
  return h(
    "div",
    { class: "le-form" },
    h("label", { for: view.slider.id }, "Thinking steps K"),
    view.slider,
    view.kShown,
    h("datalist", { id: `${view.name}-ticks` }, ticks),
    view.status,
  );
}

function changeForm(view) {
  const { name, settings } = view;
  const field = (...nodes) => h("span", { class: "le-field" }, nodes);
  const option = ([value, text]) => h("option", { value }, text);
  const steps = range(1, settings.steps - 1).map((k) => [k, String(k)]);
  view.step = h("select", { id: `${name}-step`, class: "le-step" }, steps.map(option));
  view.kind = h(
    "select",
    { id: `${name}-kind`, class: "le-kind", onchange: () => view.showValue() },
    Object.entries(settings.kinds).map(option),
  );
  view.value = h("input", {
    id: `${name}-value`,
    type: "text",
    class: "le-value",
    autocomplete: "off",
    spellcheck: "false",
    list: `${name}-values`,
    onkeydown: onEnter(() => view.apply()),
  });
  view.valueLabel = h("label", { for: view.value.id });
  view.values = h("datalist", { id: `${name}-values` });
  view.valueField = field(view.valueLabel, view.value, view.values);
  view.effect = h("p", { class: "le-effect", role: "status", "aria-live": "polite" });
  const undo = { type: "button", class: "le-reset", onclick: () => view.show(view.state.base, null) };
  view.reset = h("button", undo, "Undo the change");
  view.presets = h("div", { class: "le-chips le-presets" });
  const form = [
    field(h("label", { for: view.step.id }, "Instead of soft token"), view.step),
    field(h("label", { for: view.kind.id }, "feed back"), view.kind),
    view.valueField,
    h("button", { type: "button", class: "le-apply", onclick: () => view.apply() }, "Apply"),
  ];
  view.interventions = h(
    "fieldset",
    { class: "le-panel" },
    h("legend", {}, "Change a thought"),
    h("div", { class: "le-form" }, view.host.live ? form : view.presets, view.reset),
    view.effect,
  );
  return view.interventions;
}

/** In a file: the changes that it holds. */
function presetChips(view) {
  const { base, changed } = view.state;
  const chip = (change) => ({
    type: "button",
    class: "le-chip",
    "data-key": change.label,
    "aria-pressed": String(changed?.change.label === change.label),
    title: change.label,
    onclick: () => view.apply(change).then(() => refocus(view.presets, change.label)),
  });
  const changes = view.host.presets(base.query);
  view.presets.replaceChildren(...changes.map((change) => h("button", chip(change), clip(change.label, 60))));
}

// -- what they show ---------------------------------------------------------------------------------------------------

function cards(view) {
  const { base, changed, k } = view.state;
  const after = changed?.change.label;
  const hint = "A soft token is the mixture of its step's tokens. Choose one to feed it back alone.";
  return [
    card(
      "tokens",
      "What each step says",
      heatMap(view, base, "as thought"),
      view.host.live && h("p", { class: "le-quiet" }, hint),
    ),
    changed && card("tokens-changed", `What each step says: ${after}`, heatMap(view, changed, "changed")),
    card("ranking", `Ranking at K = ${k}`, list(view, base, null)),
    changed && card("ranking-changed", `Ranking at K = ${k}: ${after}`, list(view, changed, base)),
    card("bump", "Ranking for every K", bump(view, base), legend(base)),
    changed && card("bump-changed", `Ranking for every K: ${after}`, bump(view, changed), legend(changed)),
    card("map", "The way among the documents", map(view), mapNote(view)),
  ].filter(Boolean);
}

function card(part, title, ...content) {
  return h("section", { class: `le-card le-${part}`, "aria-label": title }, h("h2", {}, title), content);
}

function refocus(parent, key) {
  [...parent.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus({ preventScroll: true });
}

function render({ model, el }) {
  const host = kernelHost(model);
  mount(el, host);
  return host.close;
}

export default { render };
