// From class counts to numbers, as bslib.entropy and bslib.statistics have them; tests hold the two to each other.

// --- counts ---

/** The batches of an explorer: bytes as bslib.interactive.explorer.packed makes them -> for each point the counts of the classes seen. */
export async function unpack(bytes, batches) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const rows = batches.reduce((sum, batch) => sum + batch.points, 0), values = (raw.length - rows) / 2;
  let row = 0, at = rows;
  return batches.map((batch) => ({
    ...batch,
    counts: Array.from({ length: batch.points }, () => {
      const rest = Array.from({ length: raw[row++] }, () => raw[at] + 256 * raw[values + at++]);
      return [batch.n - sum(rest), ...rest];
    }),
  }));
}

// --- W ---

export const estimators = { "plug-in": plugIn, "miller-madow": millerMadow, grassberger };

export function plugIn(counts) {
  const n = sum(counts);
  return sum(counts.map((c) => (c === n ? 0 : -(c / n) * Math.log(c / n))));
}

export function millerMadow(counts) {
  return plugIn(counts) + (counts.length - 1) / (2 * sum(counts));
}

export function grassberger(counts) {
  const n = sum(counts);
  return counts.length === 1 ? 0 : digamma(n) - sum(counts.map((c) => c * grassbergerG(c))) / n;
}

const ofCount = new Map();
function grassbergerG(c) {
  if (!ofCount.has(c)) {
    ofCount.set(c, digamma(c) + ((c % 2 ? -1 : 1) / 2) * (digamma((c + 1) / 2) - digamma(c / 2)));
  }
  return ofCount.get(c);
}

/** The digamma function of a positive number: its recurrence up to 10, then the asymptotic series. */
export function digamma(x) {
  let shift = 0;
  for (; x < 10; x++) shift -= 1 / x;
  const y = 1 / (x * x);
  const series = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y * (1 / 132 - y * (691 / 32760 - y / 12))))));
  return shift + Math.log(x) - 0.5 / x - series;
}

// --- moments, quantiles, outliers ---

export function sum(values) {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

export const mean = (values) => sum(values) / values.length;

/** The standard deviation with n - 1. */
export function deviation(values) {
  const centre = mean(values);
  return Math.sqrt(sum(values.map((v) => (v - centre) ** 2)) / (values.length - 1));
}

/** Quantiles by linear interpolation, numpy's default. */
export function quantiles(values, shares) {
  const sorted = Float64Array.from(values).sort();
  return shares.map((share) => {
    const place = share * (sorted.length - 1), low = Math.floor(place), t = place - low;
    const a = sorted[low], b = sorted[Math.min(low + 1, sorted.length - 1)];
    return t < 0.5 ? a + (b - a) * t : b - (b - a) * (1 - t);
  });
}

export const median = (values) => quantiles(values, [0.5])[0];

/** The values that are no outliers (Eq. 4). */
export function withoutOutliers(values) {
  const [first, third] = quantiles(values, [0.25, 0.75]), reach = 1.5 * (third - first);
  return values.filter((v) => v >= first - reach && v <= third + reach);
}

// --- Levene's test ---

const ROUNDING = 1e-12, MAX_SCORE = 700;

/** Levene's score of a tested batch against a clean one, by default after the outlier rule: positive where the tested one varies less. */
export function levene(clean, tested, center = "mean", outliers = false) {
  const kept = outliers ? [clean, tested] : [clean, tested].map(withoutOutliers), middle = center === "mean" ? mean : median;
  const deviations = kept.map((batch) => {
    const centre = middle(batch);
    return batch.map((v) => Math.abs(v - centre));
  });
  const means = deviations.map(mean), less = means[0] - means[1], all = sum(kept.map((batch) => batch.length));
  if (Math.abs(less) < ROUNDING || all < 3) return 0;
  if (deviations.every((own) => Math.max(...own) - Math.min(...own) < ROUNDING)) return Math.sign(less) * MAX_SCORE;
  const grand = mean(deviations.flat());
  const between = sum(deviations.map((own, k) => own.length * (means[k] - grand) ** 2));
  const within = sum(deviations.map((own, k) => sum(own.map((z) => (z - means[k]) ** 2))));
  return Math.sign(less) * Math.min(-logTailOfF(((all - 2) * between) / within, all - 2), MAX_SCORE);
}

/** The logarithm of the probability that an F with 1 and d degrees of freedom exceeds f. */
export function logTailOfF(f, d) {
  const a = d / 2, x = d / (d + f), y = f / (d + f);
  const front = (p, q, u, v) => p * Math.log(u) + q * Math.log(v) - Math.log(p) - logBeta(p, q);
  if (f <= 0) return 0;
  // The continued fraction converges fast on one side of the mean of a beta variable; on the other, its complement does.
  if (x < (a + 1) / (a + 2.5)) return front(a, 0.5, x, y) + Math.log(betaFraction(a, 0.5, x));
  return Math.log1p(-Math.exp(front(0.5, a, y, x)) * betaFraction(0.5, a, y));
}

const logBeta = (a, b) => logGamma(a) + logGamma(b) - logGamma(a + b);

/** The logarithm of the gamma function of a positive number: Stirling's series above 10. */
export function logGamma(x) {
  let shift = 0;
  for (; x < 10; x++) shift -= Math.log(x);
  const y = 1 / (x * x);
  const series = (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y * (1 / 1188 - (y * 691) / 360360))))) / x;
  return shift + (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) + series;
}

/** The continued fraction of the incomplete beta function, by Lentz's method. */
function betaFraction(a, b, x) {
  const held = (v) => (Math.abs(v) < 1e-300 ? 1e-300 : v);
  let c = 1, d = 1 / held(1 - ((a + b) * x) / (a + 1)), value = d;
  for (let m = 1; m < 10000; m++) {
    const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
    const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    let step = 1;
    for (const term of [even, odd]) {
      d = 1 / held(1 + term * d);
      c = held(1 + term / c);
      step = c * d;
      value *= step;
    }
    if (Math.abs(step - 1) < 1e-15) break;
  }
  return value;
}

// --- correlation, ROC ---

const constant = (values) => values.every((v) => v === values[0]);

/** Kendall's tau-b; NaN where it is not defined. */
export function kendall(x, y) {
  if (x.length < 5 || constant(x) || constant(y)) return NaN;
  let score = 0, untiedX = 0, untiedY = 0;
  for (let i = 0; i < x.length; i++) {
    for (let j = 0; j < i; j++) {
      const dx = Math.sign(x[i] - x[j]), dy = Math.sign(y[i] - y[j]);
      score += dx * dy;
      untiedX += dx * dx;
      untiedY += dy * dy;
    }
  }
  return score / Math.sqrt(untiedX) / Math.sqrt(untiedY);
}

/** Pearson's r; NaN where it is not defined. */
export function pearson(x, y) {
  if (x.length < 5 || constant(x) || constant(y)) return NaN;
  const [a, b] = [x, y].map((values) => {
    const centre = mean(values);
    return values.map((v) => v - centre);
  });
  const product = (p, q) => sum(p.map((v, k) => v * q[k]));
  return product(a, b) / Math.sqrt(product(a, a) * product(b, b));
}

/** The corners of the ROC curve: [false positive rate, true positive rate] at every score, from strict to lax. */
export function roc(positive, negative) {
  const scores = [...positive.map((score) => [score, true]), ...negative.map((score) => [score, false])];
  scores.sort((p, q) => q[0] - p[0]);
  const corners = [[0, 0]];
  let right = 0, wrong = 0;
  scores.forEach(([score, own], k) => {
    own ? right++ : wrong++;
    if (scores[k + 1]?.[0] !== score) corners.push([wrong / negative.length, right / positive.length]);
  });
  return corners;
}

/** The area under it: the share of pairs in which the positive one scores higher; a tie counts half. */
export function auc(positive, negative) {
  const wins = positive.map((p) => sum(negative.map((q) => (p > q ? 1 : p === q ? 0.5 : 0))));
  return sum(wins) / (positive.length * negative.length);
}
