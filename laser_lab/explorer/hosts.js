// Where answers come from: the notebook's kernel, or the file itself.

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
function fileHost(settings) {
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
