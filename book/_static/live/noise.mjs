// Seeded noise that numpy can redo: mulberry32, then Box and Muller in float64, rounded to float32.

// The k-th number of mulberry32 with this seed, in [0, 1).
const uniform = (seed, k) => {
  const state = (seed + Math.imul(k + 1, 0x6d2b79f5)) | 0;
  let t = Math.imul(state ^ (state >>> 15), state | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};

// Standard normal numbers `from` to `to` of a seed, both even.
export const normals = (seed, from, to) => {
  const z = new Float32Array(to - from);
  for (let i = from; i < to; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform(seed, i)));
    const angle = 2 * Math.PI * uniform(seed, i + 1);
    z[i - from] = radius * Math.cos(angle);
    z[i - from + 1] = radius * Math.sin(angle);
  }
  return z;
};
