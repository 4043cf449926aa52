// Small curves over the steps of thinking: what each step's distribution is like, and how single tokens fare.

const STATISTICS = {
  entropy: "Entropy (nats)",
  effective_tokens: "Effective tokens",
  top_probability: "Top probability",
  divergence: "KL to the next step (nats)",
  best: "Cosine to the best document",
  relevant: "Cosine to the relevant document",
  weight: "Weight of the step",
  end_probability: "p(end)",
};
const CHART = { width: 300, height: 132, left: 44, right: 12, up: 12, down: 20 };

/** Numbers as a reader wants them. */
const figure = (value) =>
  value === null || value === undefined
    ? "none"
    : Math.abs(value) >= 1000
      ? value.toFixed(0)
      : value !== 0 && Math.abs(value) < 0.001
        ? value.toExponential(0)
        : String(Number(value.toPrecision(3)));

/**
 * Lines over K.
 * @param series [{label, values, marks}]: a value per step, null where there is none
 * @param options {title, k, ends: steps after which the thoughts ended, log: ranks, best above}
 */
function lineChart(series, { title, k, ends, log = false }) {
  const { width, height, left, right, up, down } = CHART;
  const steps = series[0].values.length;
  const scaled = (value) => (log ? -Math.log10(value) : value);
  const all = series.flatMap((line) => line.values).filter((v) => v !== null);
  const [low, high] = all.length ? [Math.min(...all.map(scaled)), Math.max(...all.map(scaled))] : [0, 1];
  const span = high - low || 1;
  const x = (i) => left + (i / Math.max(1, steps - 1)) * (width - left - right);
  const y = (value) => height - down - ((scaled(value) - (high === low ? low - 0.5 : low)) / span) * (height - up - down);
  const told = series.map((line) => `${line.label}: ${line.values.map(figure).join(", ")}`).join("; ");
  const bounds = all.length ? [Math.max(...all), Math.min(...all)] : [];
  const [above, below] = log ? bounds.toReversed() : bounds;
  const axis = (value, at) => s("text", { class: "le-axis", x: left - 6, y: at, "text-anchor": "end" }, figure(value));
  return s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "le-chart le-small", role: "img", "aria-label": `${title}. ${told}. ${ending({ taken: ends[0] }, steps)}` },
    s("rect", { class: "le-now", x: x(k - 1) - 9, y: 2, width: 18, height: height - 4, rx: 4 }),
    ends.map((end, i) => end < steps && endMark(x(end - 0.5), 2, height - down, i > 0 && "le-second")).reverse(),
    all.length > 0 && [axis(above, up + 4), above !== below && axis(below, height - down + 4)],
    range(1, steps).map((step) =>
      s("text", { class: "le-axis", x: x(step - 1), y: height - 5, "text-anchor": "middle" }, step),
    ),
    series.map((line) => curve(line, x, y)),
  );
}

function curve(line, x, y) {
  const points = line.values.map((value, i) => (value === null ? null : [x(i), y(value)]));
  const pieces = points.map((p, i) => p && `${i && points[i - 1] ? "L" : "M"}${p[0].toFixed(1)} ${p[1].toFixed(1)}`);
  return s(
    "g",
    { class: `le-curve ${line.marks ?? ""}` },
    s("title", {}, `${line.label}: ${line.values.map(figure).join(", ")}`),
    s("path", { d: pieces.filter(Boolean).join("") }),
    points.map((p) => p && s("circle", { cx: p[0], cy: p[1], r: 3 })),
  );
}

/** Where a thought ended: a dotted line in a chart. */
function endMark(at, top, bottom, second) {
  return s(
    "g",
    { class: classes("le-end", second) },
    s("line", { x1: at, y1: top, x2: at, y2: bottom }),
    s("title", {}, "The thought ended here"),
  );
}

/** The steps after which the thoughts of both columns ended. */
const endsOf = ({ base, second }) => [base, second].filter(Boolean).map((answer) => answer.taken);

/** A small chart for every statistic, the second column's line dashed. */
function statistics(view) {
  const { base, second, k } = view.state;
  const ends = endsOf(view.state);
  const names = Object.keys(STATISTICS).filter((name) => base.statistics[name]);
  return h(
    "div",
    { class: "le-charts" },
    names.map((name) => {
      const series = [{ label: "as thought", values: base.statistics[name] }];
      if (second?.statistics[name])
        series.push({ label: second.label, values: second.statistics[name], marks: "le-second" });
      const svg = lineChart(series, { title: STATISTICS[name], k, ends });
      return h(
        "figure",
        { "data-statistic": name, "data-values": JSON.stringify(base.statistics[name]) },
        h("figcaption", {}, STATISTICS[name], ": ", h("strong", {}, k > base.taken && base.statistics[name][k - 1] === null ? "ended" : figure(base.statistics[name][k - 1]))),
        svg,
      );
    }),
  );
}

/** The tokens that are followed: those that were pinned, else those that were ever first. */
function followed(view) {
  const { base, pins } = view.state;
  const first = [...new Set(base.tokens.filter((step) => step.length).map((step) => step[0].name))];
  return pins.length ? pins : first.slice(0, 8);
}

function pinnedTokens(view) {
  const { base, second, k, pins } = view.state;
  const names = followed(view).filter((name) => base.courses.some((course) => course.name === name));
  const of = (answer, field, dashed) =>
    names
      .map((name, i) => [answer.courses.find((course) => course.name === name), i])
      .filter(([course]) => course)
      .map(([course, i]) => ({
        label: readable(course.text),
        values: course[field],
        marks: `le-colour-${i % 8} ${dashed ? "le-second" : ""}`,
      }));
  const chart = (field, title, log) => {
    const series = [...of(base, field, false), ...(second ? of(second, field, true) : [])];
    return (
      series.length > 0 &&
      h(
        "figure",
        { "data-statistic": `token ${field}`, "data-values": JSON.stringify(series.map((line) => line.values)) },
        h("figcaption", {}, title),
        lineChart(series, { title, k, ends: endsOf(view.state), log }),
      )
    );
  };
  const chip = (name, i) =>
    h(
      "button",
      {
        type: "button",
        class: `le-chip le-pin le-colour-${i % 8}`,
        "data-key": `pin ${name}`,
        title: pins.length ? "Follow it no longer" : "Follow this one alone",
        onclick: () => view.pin(name),
      },
      h("span", { class: "le-swatch", "aria-hidden": "true" }),
      clip(readable(base.courses.find((course) => course.name === name)?.text ?? name), 24),
      pins.length > 0 && h("span", { class: "le-quiet", "aria-hidden": "true" }, " ×"),
      pins.length > 0 && h("span", { class: "le-hidden" }, ", remove"),
    );
  return [
    h("div", { class: "le-chips", role: "group", "aria-label": "Followed tokens" }, names.map(chip)),
    h("div", { class: "le-charts" }, chart("p", "Probability", false), chart("rank", "Rank in the vocabulary", true)),
  ];
}
