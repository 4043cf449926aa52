// The corpus as the page holds it: ids, texts, metadata, and where every document lies in the plane after each step.

class Plane {
  constructor(host, side) {
    const { documents, settings } = host;
    Object.assign(this, documents); // ids, texts, columns
    this.count = this.ids.length;
    this.places = host.places[side]; // K × N × (x, y), 65,535 to the width or height
    [this.left, this.bottom, this.width, this.height] = settings.planes[side].bounds;
    this.variance = settings.planes[side].variance;
    this.hidden = new Map(); // column to the categories that the legend has switched off
    this.search = "";
    this.column = null;
    this.filter();
  }

  /** A document's place at K, from 0 to 1 each way. */
  place(row, k) {
    const at = 2 * ((k - 1) * this.count + row);
    return [this.places[at] / 65535, this.places[at + 1] / 65535];
  }

  /** A point of the plane in the same units. */
  within([x, y]) {
    return [(x - this.left) / this.width, (y - this.bottom) / this.height];
  }

  /** Keep the documents whose id, text or metadata hold the searched words and whose categories are switched on. */
  filter() {
    const words = this.search.toLowerCase().split(/\s+/).filter(Boolean);
    const off = [...this.hidden].filter(([, codes]) => codes.size);
    const named = this.columns.map((column) => column.names?.map((name) => name.toLowerCase()));
    this.filtered = words.length > 0 || off.length > 0;
    this.kept = new Uint8Array(this.count).fill(1);
    this.found = [];
    if (!this.filtered) return;
    this.lower ??= this.texts.map((text, row) => `${this.ids[row]} ${text}`.toLowerCase());
    const holds = (row, word) =>
      this.lower[row].includes(word) ||
      this.columns.some((column, i) => {
        const value = column.values[row];
        return value !== null && (named[i] ? named[i][value].includes(word) : String(value) === word);
      });
    for (let row = 0; row < this.count; row++) {
      const on = off.every(([column, codes]) => !codes.has(column.values[row]));
      if (on && words.every((word) => holds(row, word))) this.found.push(row);
      else this.kept[row] = 0;
    }
  }

  /** Which colour each document has: rows by colour, with what the legend says of it. */
  groups() {
    if (this.grouped?.column !== this.column) this.grouped = { column: this.column, groups: this.group() };
    return this.grouped.groups;
  }

  group() {
    const { column } = this;
    if (!column) return [{ colour: "le-grey", rows: null }];
    if (column.kind === "number") {
      const span = column.high - column.low || 1;
      const bin = (value) => Math.min(5, Math.floor((6 * (value - column.low)) / span));
      const groups = range(0, 5).map((i) => ({ colour: `le-ramp-${i}`, rows: [] }));
      const unknown = { colour: "le-grey", rows: [] };
      column.values.forEach((value, row) => (value === null ? unknown : groups[bin(value)]).rows.push(row));
      return [unknown, ...groups];
    }
    const groups = column.names.map((label, code) => ({ colour: `le-c${code}`, label, code, rows: [] }));
    const unknown = { colour: "le-grey", rows: [] };
    column.values.forEach((code, row) => (code === null ? unknown : groups[code]).rows.push(row));
    return [unknown, ...groups];
  }

  /** The kept document nearest to a place within `reach`, both from 0 to 1 each way; -1: none. */
  nearest([x, y], k, reach) {
    const base = 2 * (k - 1) * this.count;
    const [px, py, rx, ry] = [x * 65535, y * 65535, reach[0] * 65535, reach[1] * 65535];
    let [best, found] = [1, -1];
    for (let row = 0; row < this.count; row++) {
      if (!this.kept[row]) continue;
      const dx = (this.places[base + 2 * row] - px) / rx;
      const dy = (this.places[base + 2 * row + 1] - py) / ry;
      const distance = dx * dx + dy * dy;
      if (distance < best) [best, found] = [distance, row];
    }
    return found;
  }

  /** The nearest kept document in a direction, for the arrow keys; the same one where there is none. */
  towards(row, k, [right, up]) {
    const base = 2 * (k - 1) * this.count;
    const [x, y] = [this.places[base + 2 * row], this.places[base + 2 * row + 1]];
    let [best, found] = [Infinity, row];
    for (let other = 0; other < this.count; other++) {
      if (!this.kept[other] || other === row) continue;
      const dx = this.places[base + 2 * other] - x;
      const dy = this.places[base + 2 * other + 1] - y;
      const [along, across] = [dx * right + dy * up, Math.abs(dx * up) + Math.abs(dy * right)];
      if (along <= 0 || across > along) continue;
      const distance = along + 2 * across;
      if (distance < best) [best, found] = [distance, other];
    }
    return found;
  }
}
