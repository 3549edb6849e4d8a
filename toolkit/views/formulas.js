// The schedules of toolkit.grids, in the same arithmetic: functions (levels, steps, options) -> falling levels with the
// final 0. A test compares every one with Python's. Stands between draw.js and the view that needs it.

const CLOSE_TO_ZERO = 1e-5, LINEAR_PART = 0.025, COSINE_OFFSET = 0.008, LAPLACE_FLOOR = 1e-5;
const ENDS = ["sigma_min", "sigma_max"]; // of the levels, which some schedules let one move
const { fround } = Math;

/** n numbers from a to b, rounded as numpy's linspace rounds them; without b where `ends` is false. */
function linspace(a, b, n, ends = true) {
  const hop = (b - a) / (ends ? n - 1 : n);
  return Array.from({ length: n }, (_, i) => (ends && i === n - 1 ? b : i * hop + a));
}

/** Straight segments through (i, values[i]), at place x. */
function between(x, values) {
  const k = clamp(Math.floor(x), 0, values.length - 2);
  return x >= values.length - 1 ? values.at(-1) : values[k] + (x - k) * (values[k + 1] - values[k]);
}

/** The levels that Python sent: {kind, path, start, end, unit, inverse, ...} and their table, with sigma(time). */
function levelsOf(meta, table) {
  const logs = meta.kind === "discrete" ? Array.from(table, Math.log) : [];
  const sigma = {
    discrete: (time) => Math.exp(between(Math.max(time, 0), logs)),
    edm: (time) => Math.exp(4 * time),
    shifted: (time) => time / meta.unit / (time / meta.unit + (1 - time / meta.unit) * meta.inverse),
  }[meta.kind];
  return { ...meta, table, min: table[0], max: table.at(-1), sigma };
}

/** log(alpha^2/sigma^2): +inf at 0, -inf where no signal is left. */
const logSnr = (sigma, path) => 2 * (Math.log(path === "FLOW" ? Math.max(1 - sigma, 0) : 1) - Math.log(sigma));

// ---- the Beta distribution

/** log Gamma(x): Lanczos's sum with g = 7. */
function logGamma(x) {
  if (x < 0.5) return Math.log(Math.PI / Math.sin(Math.PI * x)) - logGamma(1 - x);
  const terms = [676.5203681218851, -1259.1392167224028, 771.3234287776531, -176.6150291621406, 12.507343278686905,
    -0.13857109526572012, 9.984369578019572e-6, 1.5056327351493116e-7];
  const sum = terms.reduce((total, c, i) => total + c / (x + i), 0.9999999999998099);
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(x + 6.5) - x - 6.5 + Math.log(sum);
}

/** The share of Beta(a, b) below x: the continued fraction of DLMF 8.17.22, from its far end. */
function betaShare(x, a, b, logBeta) {
  if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - betaShare(1 - x, b, a, logBeta);
  let fraction = 1;
  for (let m = 30 + Math.ceil(4 * Math.sqrt(Math.max(a, b))); m >= 0; m--) {
    fraction = 1 + ((m + 1) * (b - m - 1) * x) / ((a + 2 * m + 1) * (a + 2 * m + 2)) / fraction;
    fraction = 1 - ((a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1)) / fraction;
  }
  return Math.exp(a * Math.log(x) + b * Math.log1p(-x) - logBeta) / a / fraction;
}

/** Entries of a table of top + 1 nearest to the quantiles of Beta(a, b), repeats removed. */
function betaEntries(levels, n, a, b) {
  const top = levels.table.length - 1, logBeta = logGamma(a) + logGamma(b) - logGamma(a + b);
  const found = linspace(0, 1, n, false).map((share) => {
    const p = 1 - share;
    if (p === 1) return top;
    // the median of a symmetric shape lies half way between two entries: Python says which one it takes
    if (p === 0.5 && a === b && String(a) in levels.medians) return levels.medians[String(a)];
    let low = 0, high = top; // no quantile is needed: which entry's half-open stretch holds the share p is enough
    while (low < high) {
      const middle = (low + high) >> 1;
      if (betaShare((middle + 0.5) / top, a, b, logBeta) >= p) high = middle;
      else low = middle + 1;
    }
    return low;
  });
  return found.filter((k, i) => k !== found[i - 1]).map((k) => levels.table[k]);
}

// ---- the schedules

const toZero = (values) => [...values, 0];

/** Held between min and max, once at each, then 0. */
function clamped(levels, values) {
  const inside = values.map((v) => clamp(v, levels.min, levels.max));
  return toZero(inside.filter((v, i) => v !== inside[i - 1]));
}

/** A published table at n + 1 places, linear in log sigma; the last is 0. */
function logLinear(table, n) {
  const logs = table.map(Math.log);
  return toZero(linspace(0, table.length - 1, n + 1).map((x) => Math.exp(between(x, logs))).slice(0, -1));
}

const SCHEDULES = {
  normal(L, n) {
    const zero = L.sigma(L.end) <= CLOSE_TO_ZERO;
    const levels = linspace(L.start, L.end, n + (zero ? 1 : 0)).map((t) => L.sigma(fround(t)));
    return zero ? levels : toZero(levels);
  },
  karras(L, n, { rho }) {
    const low = L.min ** (1 / rho), high = L.max ** (1 / rho);
    return toZero(linspace(0, 1, n).map((x) => (high + x * (low - high)) ** rho));
  },
  exponential: (L, n) => toZero(linspace(Math.log(L.max), Math.log(L.min), n).map(Math.exp)),
  sgm_uniform: (L, n) => toZero(linspace(L.start, L.end, n + 1).slice(0, -1).map((t) => L.sigma(fround(t)))),
  simple(L, n) {
    const hop = L.table.length / n;
    return toZero(Array.from({ length: n }, (_, i) => L.table.at(-(1 + Math.trunc(i * hop)))));
  },
  ddim_uniform(L, n) {
    const hop = Math.max(Math.floor(L.table.length / n), 1);
    return toZero([...L.table].filter((_, i) => i % hop === 1 % hop && i > 0).reverse());
  },
  beta: (L, n, { alpha, beta }) => toZero(betaEntries(L, n, alpha, beta)),
  linear_quadratic(L, n) {
    const m = Math.floor(n / 2), q = n - m, gap = m - LINEAR_PART * n;
    const upper = (i) => (gap / (m * q * q)) * (i * i + m * m) + (LINEAR_PART / m - (2 * gap) / (q * q)) * i;
    return toZero(Array.from({ length: n }, (_, i) => (1 - (i < m ? (LINEAR_PART * i) / m : upper(i))) * L.max));
  },
  kl_optimal(L, n) { // in float32 throughout, as its arctangent comes within 3e-4 of the pole
    const low = fround(Math.atan(L.min)), high = fround(Math.atan(L.max));
    const place = (x) => fround(fround(x * low) + fround(fround(1 - x) * high));
    return toZero(linspace(0, 1, n).map((x) => Math.tan(place(fround(x)))));
  },
  beta57: (L, n) => toZero(betaEntries(L, n, 0.5, 0.7)),
  polyexponential(L, n, { rho }) {
    const low = Math.log(L.min), high = Math.log(L.max);
    return toZero(linspace(1, 0, n).map((x) => Math.exp(low + x ** rho * (high - low))));
  },
  vp(L, n, { beta_d: slope, beta_min: start, eps_s: last }) {
    const time = (sigma) => (Math.sqrt(start ** 2 + 2 * slope * Math.log1p(sigma ** 2)) - start) / slope;
    const top = Math.min(1, time(L.max)), bottom = Math.max(last, time(L.min));
    if (top <= bottom) return [];
    const sigma = (t) => Math.sqrt(Math.expm1((slope * t ** 2) / 2 + start * t));
    return toZero(linspace(top, bottom, n).map((t) => clamp(sigma(t), L.min, L.max)));
  },
  cosine: (L, n) => clamped(L, linspace(1, 0, n).map((t) =>
    Math.tan(((t + COSINE_OFFSET) / (1 + COSINE_OFFSET)) * (Math.PI / 2)))),
  laplace: (L, n, { mu, beta }) => clamped(L, linspace(0, 1, n).map((x) => 0.5 - x).map((half) =>
    Math.exp(mu - beta * Math.sign(half) * Math.log(1 - 2 * Math.abs(half) + LAPLACE_FLOOR)))),
  dynamic_shift(L, n, { shift, terminal }) {
    const S = Math.exp(shift), sigma = linspace(1, 1 / n, n).map((t) => (S * t) / (1 + (S - 1) * t));
    if (!terminal) return toZero(sigma);
    return toZero(sigma.map((v) => 1 - ((1 - v) * (1 - terminal)) / (1 - sigma.at(-1))));
  },
  bong_tangent(L, n) {
    const N = n + 2, m = Math.floor((3 * N) / 5), f = (j) => Math.atan(((m - j) * 8) / N); // 0.2 at 40 points
    const upper = (j) => 0.5 + (0.5 * (f(j) - f(m - 1))) / (f(0) - f(m - 1));
    const lower = (j) => (0.5 * (f(j) - f(N - 1))) / (f(m) - f(N - 1));
    return Array.from({ length: N }, (_, j) => (j < m ? upper(j) : lower(j))).filter((_, j) => j !== m - 1);
  },
};

/**
 * A curve: {sigma, snr, size} of float32 levels, their log-SNR and its change in each step; null where the schedule has
 * no levels for these options. `entry` is {name, table}; options sigma_min and sigma_max stand for ends of their own.
 */
function curveOf(levels, entry, n, { sigma_min: min = levels.min, sigma_max: max = levels.max, ...options }) {
  const own = { ...levels, min: fround(min), max: fround(max) };
  const made = entry.table ? logLinear(entry.table, n) : SCHEDULES[entry.name](own, n, options);
  const sigma = made.map(fround), fine = sigma.every((v, i) => Number.isFinite(v) && (!i || v <= sigma[i - 1]));
  if (!fine || sigma.length < 2) return null;
  const snr = sigma.map((v) => logSnr(v, levels.path));
  const size = sigma.slice(1).map((v, i) => (v === sigma[i] ? 0 : snr[i + 1] - snr[i]));
  return { sigma, snr, size, kept: {} };
}

/** The line of Python that makes a curve; `given` holds the options that are not at their defaults. */
function lineOf(levels, name, steps, given) {
  const python = (v) => String(v).replace(/^(-?\d+)$/, "$1.0");
  const free = Object.keys(given).filter((option) => !ENDS.includes(option));
  const options = free.map((option) => `, ${option}=${python(given[option])}`).join("");
  const call = (from) => `tk.schedule(${from}, "${name}", steps=${steps}${options})`;
  if (free.length === Object.keys(given).length) return call(levels.call);
  const [low, high] = [given.sigma_min ?? levels.min, given.sigma_max ?? levels.max].map(python);
  return `tk.schedule(${levels.call}, ${call(`tk.Levels.edm(${low}, ${high})`)}.sigma)`;
}
