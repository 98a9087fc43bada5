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

export function table(caption, heads, rows, empty) {
  if (!rows.length) return element("p", { class: "empty" }, empty);
  return element("div", { class: "scroll" }, element("table", { "aria-label": caption },
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows)));
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

export const fileName = (file) => file.path.split("/").at(-1);

export function percent(done, total) {
  return total ? Math.min(100, Math.floor((100 * done) / total)) : 0;
}

// The progress of a crop: bytes that were fetched or, once there is a crop, voxels of what is made from it.
export function bar(crop, name) {
  const value = crop.voxels_total ? percent(crop.voxels_done, crop.voxels_total) : percent(crop.bytes_done, crop.bytes_total);
  const fetched = crop.bytes_total ? `${bytes(crop.bytes_done)} of ${bytes(crop.bytes_total)}` : crop.state;
  return element("span", {},
    element("progress", { max: 100, value, "aria-label": `${name}: ${value} %` }), ` ${value} % `,
    crop.voxels_total ? "of the voxels" : fetched);
}

export function failure(problem) {
  return element("span", { class: "error" },
    `error[${problem.code}]: ${problem.detail}`, problem.remedy ? ` ${problem.remedy}` : "");
}

// Replace the content of `place`, and give the focus back to the control that had it.
export function replace(place, ...children) {
  const focused = place.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  place.replaceChildren(...children.filter((child) => child !== null));
  if (focused) place.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}
