// The explorer's face, the same in a notebook cell (render, through anywidget) and in the file of Explorer.to_html
// (mount with fileHost). It draws the answers of answers.py and computes nothing but their layout.

/** Draw the explorer into `root`; answers come from `host`. */
function mount(root, host) {
  const view = new View(host);
  root.append(view.section);
  view.showValue();
  view.showOther();
  view.setK(view.state.k);
  view.start();
  return view;
}

/** What is shown, and what can be done to it. */
class View {
  constructor(host) {
    const { settings } = host;
    Object.assign(this, { host, settings });
    this.name = `laser-explorer-${Math.random().toString(36).slice(2)}`; // ids differ between explorers on a page
    this.state = {
      k: host.get("thinking_steps") ?? settings.start,
      base: null, // the first column's answer
      second: null, // the second column's
      docs: [], // ids of the documents that are followed
      pins: [], // names of the tokens that are followed
      layersOn: false,
      layers: null, // [of the first column, of the second]
      lens: "head",
      shade: "probability",
      cell: null,
      effects: null,
      neighbours: null,
    };
    this.asked = 0;
    this.pending = 0;
    this.status = h("p", { class: "le-status", role: "status", "aria-live": "polite" });
    this.problem = h("p", { class: "le-problem", role: "alert" });
    this.results = h("div", { class: "le-results" });
    this.section = h(
      "section",
      { class: "laser-explorer", "aria-label": "Explorer of latent thoughts" },
      askForm(this),
      settings.examples.length > 0 && exampleChips(this),
      this.problem,
      stepsForm(this),
      changeForm(this),
      this.results,
      exportForm(this),
    );
    this.maps = range(0, host.places.length - 1).map((side) => new DocumentMap(this, side));
  }

  start() {
    const { host, settings } = this;
    const query = host.get("query") ?? settings.examples[0];
    const chosen = host.get("selection");
    if (chosen) Object.assign(this.state, { docs: chosen.documents, pins: chosen.tokens });
    for (const name of ["query", "change", "beside"]) host.on(name, () => this.follow());
    host.on("thinking_steps", () => this.setK(host.get("thinking_steps")));
    host.on("selection", () => this.take(host.get("selection")));
    this.resized = new ResizeObserver(() => {
      const width = columnWidth(this);
      if (width !== this.width) Object.assign(this, { width }).draw();
    });
    this.resized.observe(this.results);
    this.themes = watchTheme(() => this.maps.forEach((map) => map.repaint()));
    if (!query) return;
    this.showQuery(query);
    if (settings.first?.query === query) {
      this.show(settings.first, null);
      if (host.get("change") || Object.keys(host.get("beside") ?? {}).length) this.follow();
    } else this.ask(query);
  }

  close() {
    this.themes();
    this.resized.disconnect();
    this.maps.forEach((map) => map.close());
    this.host.close();
  }

  // -- asking --

  /** An answer for a column, or null where it failed (what is shown stays) or a later question has overtaken it. */
  async request(query, more = {}) {
    const { problem, status } = this;
    const mine = ++this.asked;
    this.pending++;
    problem.textContent = "";
    status.textContent = "Thinking …";
    const slow = setTimeout(() => {
      if (mine === this.asked)
        status.textContent = "Still thinking. Is the notebook's kernel running, and no other cell?";
    }, 8000);
    try {
      const answer = await this.host.ask("answer", { query, ...more });
      return mine === this.asked ? named(answer) : null;
    } catch (error) {
      if (mine === this.asked) this.fail(error);
      return null;
    } finally {
      clearTimeout(slow);
      this.pending--;
      if (this.missed) setTimeout(() => this.follow());
    }
  }

  fail(error) {
    this.status.textContent = "";
    this.problem.textContent = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  }

  async ask(text) {
    const answer = await this.request(text);
    if (answer) this.show(answer, null);
  }

  /** Ask for the change in the form, or for this one. */
  async apply(change) {
    const { base } = this.state;
    if (!base) return;
    const answer = await this.request(base.query, { change: change ?? this.given() });
    if (answer) this.show(base, answer);
  }

  /** The change that the form describes. */
  given() {
    const kind = this.kind.value;
    const value = this.valueField.hidden ? "" : this.value.value;
    return { step: Number(this.step.value), kind, value, ...this.how(kind) };
  }

  how(kind) {
    const whole = kind === "knock-out" || !this.host.live;
    return whole ? { strength: 1, mode: "interpolate" } : { strength: Number(this.strength.value), mode: this.mode.value };
  }

  async putBeside(beside) {
    const { base } = this.state;
    if (!base) return;
    const answer = await this.request(base.query, { beside });
    if (answer) this.show(base, answer);
  }

  /** Show what Python has set, once the page's own questions are answered. */
  async follow() {
    this.missed = this.pending > 0; // then again, when it has been answered
    if (this.missed || this.following) return;
    const { host, state } = this;
    this.following = true;
    await new Promise((resolve) => setTimeout(resolve, 20)); // traits that are set together arrive one by one
    this.following = false;
    this.missed = this.pending > 0;
    if (this.missed) return;
    const [query, change, beside] = ["query", "change", "beside"].map((name) => host.get(name));
    if (query && query !== state.base?.query) {
      this.showQuery(query);
      const answer = await this.request(query, { take: false });
      if (!answer) return;
      this.show(answer, null, true);
    }
    const wanted = change?.label ?? JSON.stringify(beside ?? {});
    if (wanted === (state.second?.change?.label ?? JSON.stringify(state.second?.beside ?? {}))) return;
    if (!change && !Object.keys(beside).length) return this.show(state.base, null, true);
    const second = await this.request(query, { ...(change ? { change } : { beside }), take: false });
    if (second) this.show(state.base, second, true);
  }

  // -- what is shown --

  setK(k) {
    const { slider, kShown, state, settings, host } = this;
    state.k = Math.min(settings.steps, Math.max(1, Math.round(k) || 1));
    slider.value = state.k;
    kShown.textContent = state.k;
    host.set("thinking_steps", state.k);
    if (host.live && state.neighbours) this.findNeighbours();
    this.draw();
  }

  show(base, second, quiet = false) {
    const { state, settings, problem, status, host } = this;
    if (base !== state.base) {
      Object.assign(state, { effects: null, cell: null });
      if (base && state.pins.length) this.fetchCourses(base);
    }
    if (second && state.pins.length) this.fetchCourses(second);
    Object.assign(state, { base, second, layers: null });
    if (!quiet) problem.textContent = ""; // following a cell must not hide what went wrong here
    if (base) {
      const { seconds, notes } = second ?? base;
      const time = host.live ? `Answered in ${seconds.toFixed(2)} s.` : "";
      status.textContent = [time, ending(second ?? base, settings.steps), ...notes].filter(Boolean).join(" ");
    }
    if (!second && !quiet) {
      if (host.get("change")) host.set("change", null);
      if (Object.keys(host.get("beside") ?? {}).length) host.set("beside", {});
    }
    this.suggest();
    this.draw();
    if (state.layersOn) this.readLayers(true);
  }

  set(values) {
    Object.assign(this.state, values);
    this.draw();
  }

  selected(id) {
    return this.state.docs.includes(id);
  }

  select(id) {
    const { docs } = this.state;
    this.state.docs = this.selected(id) ? docs.filter((doc) => doc !== id) : [...docs, id];
    this.tell();
    this.findNeighbours();
    this.draw();
  }

  /** The neighbours of the document that was chosen last. */
  async findNeighbours() {
    const { state, host } = this;
    const row = host.documents.ids.indexOf(state.docs.at(-1));
    const k = host.live ? state.k : this.settings.start;
    const found = row < 0 ? null : await host.ask("neighbours", { row, k }).catch(() => null);
    state.neighbours = found && { row, k, found };
    drawFound(this.maps[0]);
  }

  /** Follow a token over the steps, or no longer. */
  async pin(name, keep = false) {
    const { state } = this;
    if (state.pins.includes(name) && keep) return;
    const pins = state.pins.includes(name) ? state.pins.filter((pin) => pin !== name) : [...state.pins, name];
    const good = await Promise.all([state.base, state.second].map((answer) => this.fetchCourses(answer, pins)));
    if (good.includes(false)) return;
    state.pins = pins;
    this.tell();
    this.draw();
  }

  /** Ask for the courses of followed tokens that an answer lacks; false where that failed. */
  async fetchCourses(answer, names = this.state.pins) {
    const lacking = answer ? names.filter((name) => !answer.courses.some((course) => course.name === name)) : [];
    if (!lacking.length) return true;
    const { query, change, beside } = answer;
    const first = beside?.query ? this.state.base.query : query;
    try {
      answer.courses.push(...(await this.host.ask("courses", { query: first, change, beside, names: lacking })));
      this.draw();
      return true;
    } catch (error) {
      this.fail(error);
      return false;
    }
  }

  /** Let Python see what was clicked. */
  tell() {
    this.host.set("selection", { documents: this.state.docs, tokens: this.state.pins });
  }

  take({ documents, tokens }) {
    const { docs, pins } = this.state;
    if (JSON.stringify([docs, pins]) === JSON.stringify([documents, tokens])) return;
    Object.assign(this.state, { docs: documents, pins: tokens });
    this.fetchCourses(this.state.base);
    this.fetchCourses(this.state.second);
    this.findNeighbours();
    this.draw();
  }

  async readLayers(on, lens = this.state.lens) {
    const { state, host } = this;
    const { base, second } = state;
    const before = { layersOn: state.layersOn && state.layers !== null, lens: state.lens, layers: state.layers };
    Object.assign(state, { layersOn: on, lens, layers: null });
    this.refresh("layers");
    const ask = (more) => host.ask("layers", { query: base.query, lens, ...more });
    const of = { change: second?.change, beside: second?.beside, ...(second?.beside?.model ? { lens: "head" } : {}) };
    try {
      const found = [await ask({})];
      const lacking = (error) => {
        state.layersProblem = host.live ? error.message : "Of this column the file does not hold the layers.";
        return null;
      };
      if (second) found.push(await ask(of).catch(lacking));
      if (state.base !== base || state.second !== second || state.lens !== lens) return;
      state.layers = found;
    } catch (error) {
      if (state.base !== base || state.second !== second) return;
      this.fail(error);
      Object.assign(state, before);
    }
    this.refresh("layers");
  }

  /** One effect after the other, so that the kernel can answer other questions in between. */
  async computeEffects() {
    const { state, host } = this;
    const { base } = state;
    try {
      const presets = await host.ask("presets", { query: base.query });
      const changes = presets.map((change) => (host.live ? { ...change, ...this.how(change.kind) } : change));
      const effects = { changes, found: [] };
      state.effects = effects;
      for (const change of changes) {
        if (state.effects !== effects) return; // another query
        const failed = (error) => ({ change, problem: error.message });
        effects.found.push(await host.ask("effect", { query: base.query, change }).catch(failed));
        this.refresh("effects");
      }
    } catch (error) {
      this.fail(error);
    }
  }

  // -- the form --

  /** The value that the chosen kind of intervention needs. */
  showValue() {
    const { kind, value, valueField } = this;
    const labels = { token: "namely", query: "namely", noise: "seed" };
    valueField.hidden = !(kind.value in labels);
    valueField.querySelector("label").textContent = labels[kind.value] ?? "";
    value.value = kind.value === "noise" ? "0" : "";
    value.placeholder = { token: "a token", query: "another query" }[kind.value] ?? "";
    this.strengthField.hidden = kind.value === "knock-out";
    this.showStrength();
    this.suggest();
  }

  showQuery(text) {
    this.query.value = text.replace(/\s+/g, " "); // a field of one line would join the words around a line break
  }

  showStrength() {
    const { strength, mode, settings } = this;
    [strength.min, strength.max] = settings.modes[mode.value];
    strength.value = 1;
    this.strengthShown.textContent = strength.value;
  }

  showOther() {
    this.otherField.hidden = this.other.value !== "query";
    if (this.other.value === "model") this.putBeside({ model: 1 });
    else if (!this.other.value && Object.keys(this.state.second?.beside ?? {}).length) this.show(this.state.base, null);
  }

  suggest() {
    const { base } = this.state;
    const said = base ? base.tokens.flat().map((token) => token.name) : [];
    const offered = { token: said, query: this.settings.examples }[this.kind.value] ?? [];
    this.values.replaceChildren(...[...new Set(offered)].map((text) => h("option", { value: text })));
  }

  /** A cell of the heat map, chosen: follow its token, and put it in the place of its step's soft token. */
  choose(k, token) {
    this.pin(token.name, true);
    if (!this.host.live || k >= this.settings.steps) return;
    this.step.value = k;
    this.kind.value = "token";
    this.showValue();
    this.value.value = token.name;
    this.value.focus();
  }

  // -- drawing --

  draw() {
    const { results } = this;
    const { base, second, k } = this.state;
    this.width ??= columnWidth(this);
    const focused = results.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.interventions.disabled = !base;
    this.reset.hidden = !second;
    this.exports.hidden = !base;
    this.effect.textContent = second ? describe(base, second, k) : "";
    if (!this.host.live && base) presetChips(this);
    const hint = "Type a query to see what it makes the model think.";
    results.replaceChildren(...(base ? Object.values(cards(this)) : [h("p", { class: "le-quiet" }, hint)]).filter(Boolean));
    this.maps.forEach((map) => map.draw());
    if (focused) refocus(results, focused);
  }

  /** Draw a single card anew. */
  refresh(part) {
    const old = this.results.querySelector(`.le-card.le-${part}`);
    if (!old) return;
    const focused = old.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    old.replaceWith(cards(this, part)[part]);
    if (focused) refocus(this.results, focused);
  }
}

/** An answer with what its column is called. */
function named(answer) {
  const { change, beside } = answer;
  answer.label = change?.label ?? (beside?.query ? `“${clip(beside.query, 60)}”` : "the second model");
  return answer;
}

/** Call back when JupyterLab's or the system's theme changes; returns how to stop. */
function watchTheme(action) {
  const later = () => [0, 300, 1000].forEach((delay) => setTimeout(action, delay)); // the style sheet comes after
  const observer = new MutationObserver(later);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", later);
  return () => {
    observer.disconnect();
    media.removeEventListener("change", later);
  };
}

function render({ model, el }) {
  const view = mount(el, kernelHost(model));
  return () => view.close();
}

export default { render };
