// From planes of voxels to pixels. Pure.

// A colour of a label that is always the same: bright, and unlike its neighbours'.
export function colourOf(label) {
  let hash = Math.imul(label, 2654435761) >>> 0;
  hash ^= hash >>> 15;
  return [64 + (hash & 191), 64 + ((hash >>> 8) & 191), 64 + ((hash >>> 16) & 191)];
}

// Return RGBA of a slice. `planes` are [{plane, colour}] with colour 0, 1, 2 for red, green, blue: planes of the same
// colour are added. `gain` multiplies brightness; `labels` is a plane or null; `opacity` is that of labels, 0 to 1.
export function compose(planes, gain, labels, opacity, count) {
  const rgba = new Uint8ClampedArray(4 * count);
  for (const { plane, colour } of planes) {
    for (let i = 0; i < count; i += 1) rgba[4 * i + colour] = Math.min(255, rgba[4 * i + colour] + plane[i] * gain);
  }
  for (let i = 0; i < count; i += 1) {
    rgba[4 * i + 3] = 255;
    const label = labels && opacity ? labels[i] : 0;
    if (!label) continue;
    const colour = colourOf(label);
    for (let k = 0; k < 3; k += 1) rgba[4 * i + k] = rgba[4 * i + k] * (1 - opacity) + colour[k] * opacity;
  }
  return rgba;
}
