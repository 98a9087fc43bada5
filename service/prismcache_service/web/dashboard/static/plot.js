// Bars over time as SVG, each with its time and value as a tooltip.

import { element } from "./dom.js";

const [WIDTH, HEIGHT] = [600, 100];

function shape(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// `bars` are [{at, value}], `at` in s; `start` and `stop` are the ends of the time axis, `seconds` the width of a bar;
// `top` is the value of a full bar, and `format` turns a value into text.
export function plot(title, summary, bars, { start, stop, seconds, top, format }) {
  const scale = WIDTH / (stop - start);
  const time = (at) => new Date(1000 * at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const drawn = bars.map(({ at, value }) => {
    const height = top ? (HEIGHT * value) / top : 0;
    return shape("rect", { x: (at - start) * scale, y: HEIGHT - height, width: seconds * scale, height },
      shape("title", {}, `${time(at)}: ${format(value)}`));
  });
  const picture = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
  return element("figure", { class: "plot" },
    element("figcaption", {}, element("strong", {}, title), `: ${summary}`),
    element("div", { class: "top" }, top ? format(top) : ""),
    shape("svg", { ...picture, "aria-label": `${title} over time: ${summary}` }, ...drawn),
    element("div", { class: "ends" }, element("span", {}, time(start)), element("span", {}, time(stop))));
}
