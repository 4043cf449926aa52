// The controls. They stay; what they show is drawn anew after every change.

const field = (label, control, ...more) => h("span", { class: "le-field" }, h("label", { for: control.id }, label), control, more);
const options = (entries) => entries.map(([value, text]) => h("option", { value }, text));
const textInput = (view, part, more) =>
  h("input", { id: `${view.name}-${part}`, type: "text", class: `le-${part}`, autocomplete: "off", spellcheck: "false", ...more });

function askForm(view) {
  view.query = textInput(view, "query", {
    placeholder: view.settings.examples[0] ?? "Type a query",
    title: "A query can bring its own instruction: Instruct: … Query: …",
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
    view.showQuery(text);
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
    h("datalist", { id: `${view.name}-ticks` }, options(range(1, steps).map((k) => [k, k]))),
    view.status,
  );
}

function changeForm(view) {
  const { name, settings } = view;
  const steps = range(1, settings.steps - 1).map((k) => [k, String(k)]);
  view.step = h("select", { id: `${name}-step`, class: "le-step" }, options(steps));
  view.kind = h(
    "select",
    { id: `${name}-kind`, class: "le-kind", onchange: () => view.showValue() },
    options(Object.entries(settings.kinds)),
  );
  view.value = textInput(view, "value", { list: `${name}-values`, onkeydown: onEnter(() => view.apply()) });
  view.values = h("datalist", { id: `${name}-values` });
  view.valueField = field("namely", view.value, view.values);
  view.effect = h("p", { class: "le-effect", role: "status", "aria-live": "polite" });
  view.reset = h("button", { type: "button", class: "le-reset", onclick: () => view.show(view.state.base, null) }, "Undo");
  view.presets = h("div", { class: "le-presets" });
  const form = [
    field("Instead of soft token", view.step),
    field("feed back", view.kind),
    view.valueField,
    strengthFields(view),
    h("button", { type: "button", class: "le-apply", onclick: () => view.apply() }, "Apply"),
  ];
  view.interventions = h(
    "fieldset",
    { class: "le-panel" },
    h("legend", {}, "Change a thought, or put something beside it"),
    h("div", { class: "le-form" }, view.host.live ? form : view.presets),
    besideForm(view),
    view.effect,
  );
  return view.interventions;
}

/** How far the soft token is moved: released, the slider applies the change again. */
function strengthFields(view) {
  const { modes } = view.settings;
  const again = () => view.state.second?.change && view.apply();
  const told = { interpolate: "interpolate", steer: "steer (add)" };
  view.mode = h(
    "select",
    { id: `${view.name}-mode`, class: "le-mode", onchange: () => view.showStrength() },
    options(Object.keys(modes).map((mode) => [mode, told[mode] ?? mode])),
  );
  view.strength = h("input", {
    id: `${view.name}-strength`,
    type: "range",
    class: "le-strength",
    step: 0.05,
    oninput: () => (view.strengthShown.textContent = view.strength.value),
    onchange: again,
  });
  view.strengthShown = h("output", { for: view.strength.id });
  view.strengthField = h("span", { class: "le-field" }, field("by", view.mode), field("strength", view.strength, view.strengthShown));
  return view.strengthField;
}

/** The second column where it is no change: another query, or the second model. */
function besideForm(view) {
  const { examples, models } = view.settings;
  view.other = h(
    "select",
    { id: `${view.name}-other`, class: "le-other", onchange: () => view.showOther() },
    options([
      ["", "nothing"],
      ["query", "another query"],
      ...(models > 1 ? [["model", "the second model"]] : []),
    ]),
  );
  const ask = () => view.putBeside({ query: view.otherQuery.value });
  view.otherQuery = textInput(view, "other-query", { list: `${view.name}-others`, onkeydown: onEnter(ask) });
  const listed = h("datalist", { id: `${view.name}-others` }, examples.map((text) => h("option", { value: text })));
  const compare = h("button", { type: "button", class: "le-compare", onclick: ask }, "Compare");
  view.otherField = h("span", { class: "le-field" }, field("namely", view.otherQuery, listed), compare);
  return h("div", { class: "le-form" }, field("Beside it", view.other), view.otherField, view.reset);
}

/** In a file: the changes that it holds, a row per soft token. */
function presetChips(view) {
  const { base, second } = view.state;
  const changes = view.host.presets(base.query);
  const chip = (change) => ({
    type: "button",
    class: "le-chip",
    "data-key": change.label,
    "aria-pressed": String(second?.change?.label === change.label),
    "aria-label": change.label,
    title: change.label,
    onclick: () => view.apply(change).then(() => refocus(view.presets, change.label)),
  });
  const short = ({ kind, value }) => (kind === "token" ? `“${clip(readable(value), 24)}”` : kind === "query" ? "another query" : kind);
  const row = (step) => [
    h("span", { class: "le-quiet" }, `soft token ${step} →`),
    changes.filter((change) => change.step === step).map((change) => h("button", chip(change), short(change))),
  ];
  const steps = [...new Set(changes.map((change) => change.step))];
  view.presets.replaceChildren(...steps.map((step) => h("div", { class: "le-chips" }, row(step))));
}
