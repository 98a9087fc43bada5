// The controls above a slice. Each writes into the view and calls `changed`.

import { element } from "./dom.js";
import { hasWindows } from "./view.js";
import { AXES } from "./volume.js";

function slider(name, attributes, onchange) {
  return element("label", {}, name, element("input", { type: "range", ...attributes, oninput: (event) => onchange(Number(event.target.value)) }));
}

// `move` shows the slice of a number, `turn` another axis, `changed` the same slice in another way.
export function buildControls(view, volume, { move, turn, changed }) {
  const set = (name) => (value) => {
    view[name] = value;
    changed();
  };
  const channel = (colour, name) => {
    const options = [["", "none"], ...volume.channels.map(({ label }, index) => [String(index), label])];
    if (colour === 0) options.push(["all", "all, mixed"]);
    const onchange = (event) => {
      view.channels[colour] = event.target.value;
      changed();
    };
    return element("label", {}, name, element("select", { onchange },
      ...options.map(([value, text]) => element("option", { value, selected: view.channels[colour] === value }, text))));
  };
  return element("div", { class: "controls" },
    element("label", {}, "Axis", element("select", { onchange: (event) => turn(Number(event.target.value)) },
      ...AXES.map((name, axis) => element("option", { value: axis, selected: axis === view.axis }, name.toUpperCase())))),
    slider("Slice", { id: "at", min: 0, max: volume.raw.shape[view.axis] - 1, value: view.at }, move),
    element("output", { id: "at-text" }, String(view.at)),
    channel(0, "Red"), channel(1, "Green"), channel(2, "Blue"),
    element("label", { hidden: !hasWindows(volume) },
      element("input", { id: "windows", type: "checkbox", checked: view.windows, onchange: (event) => set("windows")(event.target.checked) }),
      "Windows from facts"),
    slider("Brightness", { id: "gain", min: 1, max: 20, step: 0.5, value: view.gain }, set("gain")),
    volume.hasLabels ? slider("Labels", { min: 0, max: 1, step: 0.05, value: view.opacity }, set("opacity")) : "");
}
