// What is shown of a query, as cards.

/** Every card by its name, or one of them; a second column's is called …-changed. */
function cards(view, only) {
  const { base, second, k } = view.state;
  const after = second?.label;
  const hint = view.host.live
    ? "A soft token is the mixture of its step's tokens. Choose one to follow it, and to feed it back alone."
    : "A soft token is the mixture of its step's tokens. Choose one to follow it.";
  const quiet = (text) => h("p", { class: "le-quiet" }, text);
  const both = (part, title, make) => ({
    [part]: () => card(view, part, title, make(base, null)),
    [`${part}-changed`]: () => second && card(view, `${part}-changed`, `${title}: ${after}`, make(second, base)),
  });
  const single = (part, title, make) => ({ [part]: () => card(view, part, title, make()) });
  const [map, secondMap] = view.maps;
  const made = {
    ...both("tokens", "What each step says", (answer, before) => [
      heatMap(view, answer, before ? "changed" : "as thought"),
      !before && quiet(hint),
    ]),
    ...both("ranking", `Ranking at K = ${k}`, (answer, before) => [
      list(view, answer, before),
      k > answer.taken && quiet(ending(answer, view.settings.steps)),
    ]),
    ...both("bump", "Ranking for every K", (answer) => [bump(view, answer), legend(answer)]),
    ...single("map", "The way among the documents", () => map.node),
    "map-changed": () => second?.beside?.model && card(view, "map-changed", "The way among the documents: the second model", secondMap.node),
    ...single("pins", "Followed tokens", () => [pinnedTokens(view), tokenForm(view)]),
    ...single("statistics", "Every step in numbers", () => statistics(view)),
    ...single("layers", "Every layer at every step", () => layerCard(view)),
    ...single("effects", "What every change would do", () => effectCard(view)),
  };
  const wanted = Object.entries(made).filter(([part]) => !only || part === only);
  return Object.fromEntries(wanted.map(([part, make]) => [part, make()]));
}

function tokenForm(view) {
  if (!view.host.live) return null;
  const input = textInput(view, "pin-token", { "data-key": "pin-token", onkeydown: onEnter(() => view.pin(input.value, true)) });
  return h("div", { class: "le-form" }, field("Follow the token", input));
}

const DRAWINGS = ["bump", "bump-changed", "map", "map-changed", "pins", "statistics"];

function card(view, part, title, ...content) {
  const take = DRAWINGS.includes(part) && {
    type: "button",
    class: "le-svg",
    "data-key": `svg ${part}`,
    "aria-label": `Download as SVG: ${title}`,
    onclick: (event) => downloadCharts(event.target.closest(".le-card"), part),
  };
  return h(
    "section",
    { class: `le-card le-${part}`, "aria-label": title },
    h("div", { class: "le-head" }, h("h2", { title }, title), take && h("button", take, "SVG")),
    content,
  );
}

function refocus(parent, key) {
  [...parent.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus({ preventScroll: true });
}
