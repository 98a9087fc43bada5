// From planes of voxels to pixels. Pure.

// A colour of a label that is always the same: bright, and unlike its neighbours'.
export function colourOf(label) {
  let hash = Math.imul(label, 2654435761) >>> 0;
  hash ^= hash >>> 15;
  return [64 + (hash & 191), 64 + ((hash >>> 8) & 191), 64 + ((hash >>> 16) & 191)];
}

const table = new Map(); // colours that were computed before: a slice has few labels and many voxels

// What each of the 256 values of a channel is shown as: `low` becomes 0 and `high` 255, then `gain` brightens.
function shades({ low, high }, gain) {
  const scale = (255 * gain) / Math.max(1, high - low);
  return Uint8ClampedArray.from({ length: 256 }, (_, value) => (value - low) * scale);
}

// Return RGBA of a slice. `planes` are [{plane, colour, low, high}] with colour 0, 1, 2 for red, green, blue: planes of the
// same colour are added. `gain` multiplies brightness; `labels` is a plane or null; `opacity` is that of labels, 0 to 1.
export function compose(planes, gain, labels, opacity, count) {
  const rgba = new Uint8ClampedArray(4 * count);
  for (const { plane, colour, ...ends } of planes) {
    const shown = shades(ends, gain);
    for (let i = 0, to = colour; i < count; i += 1, to += 4) rgba[to] += shown[plane[i]];
  }
  const rest = 1 - opacity;
  let [last, red, green, blue] = [0, 0, 0, 0];
  for (let i = 0, to = 0; i < count; i += 1, to += 4) {
    rgba[to + 3] = 255;
    const label = opacity && labels ? labels[i] : 0;
    if (!label) continue;
    if (label !== last) {
      if (!table.has(label)) table.set(label, colourOf(label));
      [red, green, blue] = table.get(label);
      last = label;
    }
    rgba[to] = rgba[to] * rest + red * opacity;
    rgba[to + 1] = rgba[to + 1] * rest + green * opacity;
    rgba[to + 2] = rgba[to + 2] * rest + blue * opacity;
  }
  return rgba;
}
