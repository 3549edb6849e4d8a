// The arithmetic of masks, as toolkit/fitting.py has it: resize, grow, feather, shares; contours and brushes.
// Planes are flat arrays of rows x columns; nothing here knows the page.

const LEFT = 1e-6, HOLE = 0.5, OVERLAP = 0.05;

/** For each of `out` pixels [first, weights] of a bilinear resize from `size` with antialiasing. */
function resampling(size, out) {
  const scale = size / out, reach = Math.max(scale, 1), narrow = Math.min(1 / scale, 1);
  return Array.from({ length: out }, (_, i) => {
    const centre = scale * (i + 0.5), first = Math.max(Math.floor(centre - reach + 0.5), 0);
    const last = Math.min(Math.floor(centre + reach + 0.5), size);
    const weights = Array.from({ length: last - first }, (_, j) =>
      Math.max(0, 1 - Math.abs((j + first - centre + 0.5) * narrow)));
    const sum = weights.reduce((a, b) => a + b, 0);
    return [first, Float64Array.from(weights, (v) => v / sum)];
  });
}

/** Codes of H x W as weights on h x w. `again(codes, top, bottom)` resizes anew what changed between two rows. */
function resizer(H, W, h, w) {
  const across = resampling(W, w), down = resampling(H, h), half = new Float64Array(H * w);
  return (codes, top = 0, bottom = H) => {
    if (H === h && W === w) return Float64Array.from(codes, (v) => v / 255);
    for (let y = top; y < bottom; y++) {
      for (let x = 0; x < w; x++) {
        const [first, weights] = across[x], at = y * W + first;
        let sum = 0;
        for (let j = 0; j < weights.length; j++) sum += weights[j] * codes[at + j];
        half[y * w + x] = sum / 255;
      }
    }
    const plane = new Float64Array(h * w);
    for (let y = 0; y < h; y++) {
      const [first, weights] = down[y];
      for (let j = 0; j < weights.length; j++)
        for (let x = 0, at = (first + j) * w; x < w; x++) plane[y * w + x] += weights[j] * half[at + x];
    }
    return plane.map((v) => clamp(v, 0, 1));
  };
}

/** The greatest of each row within `reach` pixels, by the candidates that are left of a sliding window. */
function widest(plane, h, w, reach) {
  if (!reach) return plane;
  const out = new Float64Array(h * w), queue = new Int32Array(w);
  for (let y = 0; y < h; y++) {
    const row = y * w;
    let head = 0, tail = 0;
    for (let x = 0; x < w + reach; x++) {
      if (x < w) {
        while (tail > head && plane[row + queue[tail - 1]] <= plane[row + x]) tail--;
        queue[tail++] = x;
      }
      const to = x - reach;
      if (to < 0) continue;
      while (queue[head] < to - reach) head++;
      out[row + to] = plane[row + queue[head]];
    }
  }
  return out;
}

/** Grown by a disc, or shrunk where the radius is below 0; beyond the border it is as at the border. */
function grown(plane, h, w, radius) {
  if (!radius) return plane;
  if (radius < 0) return grown(plane.map((v) => 1 - v), h, w, -radius).map((v) => 1 - v);
  const out = Float64Array.from(plane), reach = Math.floor(radius), rows = {};
  for (let dy = 0; dy <= reach; dy++) {
    const wide = Math.floor(Math.sqrt(radius * radius - dy * dy) + 1e-9);
    const best = (rows[wide] ??= widest(plane, h, w, wide));
    for (let y = 0; y < h; y++)
      for (const from of dy ? [y - dy, y + dy] : [y]) {
        if (from < 0 || from >= h) continue;
        for (let x = 0; x < w; x++) if (best[from * w + x] > out[y * w + x]) out[y * w + x] = best[from * w + x];
      }
  }
  return out;
}

/** A Gaussian blur of this standard deviation, cut at four of them, as scipy's; the border is repeated. */
function feathered(plane, h, w, std) {
  if (!std) return plane;
  const reach = Math.floor(4 * std + 0.5), taps = Float64Array.from({ length: reach + 1 },
    (_, i) => Math.exp((-0.5 * i * i) / (std * std)));
  const sum = taps.reduce((a, b) => a + 2 * b, -1), half = new Float64Array(h * w), out = new Float64Array(h * w);
  for (let y = 0; y < h; y++)
    for (let i = -reach; i <= reach; i++) {
      const from = clamp(y + i, 0, h - 1) * w, tap = taps[Math.abs(i)] / sum;
      for (let x = 0; x < w; x++) half[y * w + x] += tap * plane[from + x];
    }
  const line = new Float64Array(w + 2 * reach);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < line.length; x++) line[x] = half[y * w + clamp(x - reach, 0, w - 1)];
    for (let x = 0; x < w; x++) {
      let total = taps[0] * line[x + reach];
      for (let i = 1; i <= reach; i++) total += taps[i] * (line[x + reach - i] + line[x + reach + i]);
      out[y * w + x] = total / sum;
    }
  }
  return out;
}

/** A plane on the latent, grown and feathered: what the sampler sees. */
const shaped = (plane, h, w, { grow, feather }) =>
  feathered(grown(plane, h, w, grow), h, w, feather).map((v) => clamp(v, 0, 1));

/** A plane by a more exact one: itself where they are as near as two codes, so that what is drawn of it stays. */
function corrected(plane, exact) {
  if (!plane.every((v, p) => Math.abs(v - exact[p]) < 1 / 255)) return Float64Array.from(exact);
  plane.set(exact);
  return plane;
}

/** Shares of the base and of every region at one pixel, and the sum before: masks over max(their sum, 1). */
function sharesOf(values, kept) {
  const total = (which) => values.reduce((sum, v, i) => sum + (kept[i] === which ? v : 0), 0);
  const over = (sum) => (sum >= 1 - LEFT ? [0, sum] : [1 - sum, 1]), asked = total(false), own = total(true);
  const [left, most] = over(asked), [rest, all] = over(own);
  return { sum: asked + own, w: [left * rest, ...values.map((v, i) => (kept[i] ? v / all : (v / most) * rest))] };
}

/** What is wrong with planes: shares of hole and overlap, who overlaps most, and the sum of each pixel less 1. */
function coverageOf(planes, kept) {
  const size = planes[0].length, excess = new Float64Array(size), gaps = new Uint8Array(size);
  const common = planes.map(() => planes.map(() => 0));
  let hole = 0, overlap = 0, best = 0, pair = null;
  for (let p = 0; p < size; p++) {
    let all = 0, asked = 0;
    for (let i = 0; i < planes.length; i++) all += planes[i][p], (asked += kept[i] ? 0 : planes[i][p]);
    if (all < HOLE) hole++, (gaps[p] = 1);
    excess[p] = Math.max(0, asked - 1);
    if (asked <= 1 + OVERLAP) continue;
    overlap++;
    for (let j = 0; j < planes.length; j++)
      for (let i = 0; i < j; i++) if (!kept[i] && !kept[j]) common[i][j] += Math.min(planes[i][p], planes[j][p]);
  }
  for (let j = 0; j < planes.length; j++)
    for (let i = 0; i < j; i++) if (common[i][j] > best) (best = common[i][j]), (pair = [i, j]);
  return { hole: hole / size, overlap: overlap / size, pair, excess, gaps };
}

/** Line where a plane is `level`, between the middles of pixels, as a Path2D in units of sx, sy; `unit` is 1 or 255. */
function contourOf(plane, h, w, level, sx, sy) {
  const path = new Path2D(), at = (y, x) => plane[clamp(y, 0, h - 1) * w + clamp(x, 0, w - 1)];
  for (let y = -1; y < h; y++) {
    let a = at(y, -1), c = at(y + 1, -1); // corners: a b over c d
    for (let x = -1; x < w; x++) {
      const b = at(y, x + 1), d = at(y + 1, x + 1);
      const kind = (a >= level) + 2 * (b >= level) + 4 * (c >= level) + 8 * (d >= level);
      if (kind && kind !== 15) {
        const cut = (from, to) => (level - from) / (to - from), ends = [];
        if ((kind & 1) !== (kind >> 1 & 1)) ends.push([x + cut(a, b), y]);
        if ((kind & 1) !== (kind >> 2 & 1)) ends.push([x, y + cut(a, c)]);
        if ((kind >> 1 & 1) !== (kind >> 3)) ends.push([x + 1, y + cut(b, d)]);
        if ((kind >> 2 & 1) !== (kind >> 3)) ends.push([x + cut(c, d), y + 1]);
        for (let i = 0; i + 1 < ends.length; i += 2) {
          path.moveTo((ends[i][0] + 0.5) * sx, (ends[i][1] + 0.5) * sy);
          path.lineTo((ends[i + 1][0] + 0.5) * sx, (ends[i + 1][1] + 0.5) * sy);
        }
      }
      a = b, c = d;
    }
  }
  return path;
}

/**
 * A stroke of a round brush from one place to another, in parts of the canvas, onto codes of H x W: those within
 * `radius` (in pixels of a grid of h x w) become `value`, and the one under the pointer. Returns [top, left, bottom,
 * right] of what it may have touched. The edge is hard: softness is what feather is for.
 */
function stroke(codes, H, W, h, w, from, to, radius, value) {
  const [ay, ax, by, bx] = [from[0] * h, from[1] * w, to[0] * h, to[1] * w], dy = by - ay, dx = bx - ax;
  const length = dy * dy + dx * dx, py = H / h, px = W / w;
  const part = (v, size, n) => clamp(Math.floor((v / size) * n), 0, n - 1);
  const top = part(Math.min(ay, by) - radius, h, H), bottom = part(Math.max(ay, by) + radius, h, H) + 1;
  const left = part(Math.min(ax, bx) - radius, w, W), right = part(Math.max(ax, bx) + radius, w, W) + 1;
  for (let y = top; y < bottom; y++)
    for (let x = left; x < right; x++) {
      const v = (y + 0.5) / py - ay, u = (x + 0.5) / px - ax, t = length && clamp((v * dy + u * dx) / length, 0, 1);
      if ((v - t * dy) ** 2 + (u - t * dx) ** 2 <= radius * radius) codes[y * W + x] = value;
    }
  if (by >= 0 && by < h && bx >= 0 && bx < w) codes[part(by, h, H) * W + part(bx, w, W)] = value;
  return [top, left, bottom, right];
}

/** A rectangle of codes of rows of W, copied out; or, with `codes`, put back. */
function rectangle(plane, W, [top, left, bottom, right], codes) {
  const wide = right - left, out = codes ?? new Uint8Array((bottom - top) * wide);
  for (let y = top; y < bottom; y++) {
    const row = plane.subarray(y * W + left, y * W + right), from = (y - top) * wide;
    const part = out.subarray(from, from + wide);
    if (codes) row.set(part);
    else part.set(row);
  }
  return out;
}

/** Where the name of a region stands best: the middle of its broadest part, as parts of the canvas; null for none. */
function heart(plane, h, w) {
  const reach = Math.max(0.6, Math.min(h, w) / 9), soft = feathered(plane, h, w, reach);
  let best = -1, most = 0.02;
  for (let p = 0; p < soft.length; p++) {
    const y = Math.floor(p / w), x = p % w, rim = Math.min(y, x, h - 1 - y, w - 1 - x) + 0.5;
    const good = soft[p] * (0.4 + 0.6 * Math.min(1, rim / (2 * reach))); // rather not at the rim of the picture
    if (good > most) (most = good), (best = p);
  }
  return best < 0 ? null : [(Math.floor(best / w) + 0.5) / h, (best % w + 0.5) / w];
}
