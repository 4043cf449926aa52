// Where answers come from: the notebook's kernel, or the file itself.

/** Asks the kernel, through the widget's messages; its traits are what Python sees of the page. */
function kernelHost(model) {
  const waiting = new Map();
  const heard = [["msg:custom", receive]];
  function receive(reply) {
    const found = waiting.get(reply.id);
    if (!found) return; // another view's
    waiting.delete(reply.id);
    if (reply.error === undefined) found.resolve(reply.answer);
    else found.reject(new Error(reply.error));
  }
  model.on("msg:custom", receive);
  const numbers = (bytes) => new Uint16Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  return {
    settings: model.get("settings"),
    documents: model.get("documents"),
    places: model.get("places").map(numbers),
    live: true,
    get: (name) => model.get(name),
    set(name, value) {
      if (JSON.stringify(model.get(name)) === JSON.stringify(value)) return;
      model.set(name, value);
      model.save_changes();
    },
    on(name, action) {
      heard.push([`change:${name}`, action]);
      model.on(`change:${name}`, action);
    },
    ask: (op, request) =>
      new Promise((resolve, reject) => {
        const id = Math.random().toString(36).slice(2);
        waiting.set(id, { resolve, reject });
        model.send({ id, op, ...request });
      }),
    close: () => heard.forEach(([name, action]) => model.off(name, action)),
  };
}

/** Looks up what was computed when the file was written. */
function fileHost(held) {
  const { documents, examples, presets, replies } = held;
  for (const [key, answer] of Object.entries(replies))
    if (key.startsWith("answer/"))
      for (const d of answer.documents) Object.assign(d, { id: documents.ids[d.row], text: documents.texts[d.row] });
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const find = (op, { query, change, beside, lens, row, names }) => {
    if (op === "neighbours") return replies[`neighbours/${row}`];
    const number = examples.indexOf(query);
    const second = change
      ? `/change ${presets[number]?.findIndex((known) => known.label === change.label)}`
      : beside?.model
        ? "/model"
        : beside?.query
          ? `/query ${examples.indexOf(beside.query)}`
          : "";
    if (op === "presets") return presets[number];
    if (op === "courses") {
      const known = replies[`answer/${number}${second}`]?.courses.filter((course) => names.includes(course.name));
      return known?.length === names.length ? known : undefined;
    }
    return replies[`${op}/${number}${second}${lens ? `/${lens}` : ""}`];
  };
  return {
    settings: held,
    documents,
    places: held.places.map((text) => new Uint16Array(bytes(text).buffer)),
    live: false,
    presets: (query) => presets[examples.indexOf(query)] ?? [],
    get: () => undefined,
    set() {},
    on() {},
    ask: async (op, request) => {
      if (op === "answer" && !request.query.trim()) throw new Error("The query is empty: type one, or choose an example.");
      const found = find(op, request);
      if (found === undefined)
        throw new Error("This file holds its examples only. In a notebook, explore(model, corpus) answers anything.");
      return found;
    },
    close() {},
  };
}
