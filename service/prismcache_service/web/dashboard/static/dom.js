// Small helpers to build elements. Text always becomes a text node, so markup in names and errors stays text.

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function button(label, action, described) {
  return element("button", { type: "button", "aria-label": described, onclick: action }, label);
}

export function table(caption, heads, rows, empty, attributes = {}) {
  const live = new LiveTable(caption, heads, empty, attributes);
  live.show(rows.map((row, place) => ({ key: place, data: null, make: () => row })));
  return live.node;
}

// A table of which a row stays as it is while its data do, so that updates disturb neither focus nor selection.
export class LiveTable {
  constructor(caption, heads, empty, attributes = {}) {
    this.heads = heads;
    this.body = element("tbody");
    this.table = element("table", { "aria-label": caption, hidden: true, ...attributes },
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))), this.body);
    this.empty = empty; // what is said in place of a table without rows
    this.note = element("p", { class: "empty" }, "Loading …");
    this.node = element("div", { class: "scroll" }, this.table, this.note);
    this.rows = new Map(); // {data, node} by key; data as text
  }

  // Show `rows`, [{key, data, make}]; `make` makes a row if its data have changed.
  show(rows) {
    const old = this.rows;
    this.rows = new Map(rows.map(({ key, data, make }) => {
      const [text, known] = [JSON.stringify(data), old.get(key)];
      return [key, known?.text === text ? known : { text, node: this.named(make()) }];
    }));
    keepFocus(this.body, () => {
      const nodes = [...this.rows.values()].map(({ node }) => node);
      const wanted = new Set(nodes);
      for (const node of [...this.body.children]) if (!wanted.has(node)) node.remove();
      nodes.forEach((node, place) => {
        if (this.body.children[place] !== node) this.body.insertBefore(node, this.body.children[place] ?? null);
      });
    });
    this.table.hidden = !rows.length;
    this.note.textContent = rows.length ? "" : this.empty;
  }

  // Give each cell the name of its column, which a narrow window shows beside it.
  named(row) {
    [...row.children].forEach((cell, place) => { cell.dataset.head = this.heads[place]; });
    return row;
  }
}

export function bytes(count) {
  if (count === null || count === undefined) return "";
  if (count < 1000) return `${Math.round(count)} B`;
  const units = ["kB", "MB", "GB", "TB", "PB"];
  let power = 1;
  while (count >= 999.5 * 1000 ** power && power < units.length) power += 1;
  const value = count / 1000 ** power;
  return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ${units[power - 1]}`;
}

export function percent(done, total) {
  return total ? Math.min(100, Math.floor((100 * done) / total)) : 0;
}

// The progress of a crop: bytes that were fetched or, once there is a crop, voxels of what is made from it.
export function bar(crop, name) {
  const value = crop.voxels_total ? percent(crop.voxels_done, crop.voxels_total) : percent(crop.bytes_done, crop.bytes_total);
  const fetched = crop.bytes_total ? `${bytes(crop.bytes_done)} of ${bytes(crop.bytes_total)}` : crop.state;
  return element("span", {},
    element("progress", { max: 100, value, "aria-label": `${name}: ${value} %` }), ` ${value} % `,
    crop.voxels_total ? "of the voxels" : fetched, crop.waiting_for ? `, waiting for ${crop.waiting_for}` : "");
}

export function failure(problem) {
  return element("span", { class: "error" },
    `error[${problem.code}]: ${problem.detail}`, ...(problem.remedy ? [element("br"), problem.remedy] : []));
}

// Run `change`, and give the focus back to the control within `place` that had it, or to the one that took its place.
function keepFocus(place, change) {
  const had = place.contains(document.activeElement) ? document.activeElement : null;
  change();
  if (!had || had === document.activeElement) return;
  if (had.isConnected) had.focus();
  else place.querySelector(`[aria-label="${CSS.escape(had.getAttribute("aria-label") ?? "")}"]`)?.focus();
}

export function replace(place, ...children) {
  keepFocus(place, () => place.replaceChildren(...children.filter((child) => child !== null)));
}
